//! Polling instead of sleeping, for a moment after something happened.
//!
//! To wake a sleeping thread on another CPU takes several times as long as a small request; while
//! requests come one by one, the next event is worth waiting for.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use tokio::task::yield_now;

/// Whoever has more to do at a time than this gains nothing from polling.
const FEW: usize = 4;

/// Keeps its thread from sleeping while there was activity not longer than `time` ago.
pub(super) struct Spinner {
    time: Duration,
    until: Cell<Option<Instant>>,
    /// The task, when it sleeps.
    waker: Cell<Option<Waker>>,
}

impl Spinner {
    /// With a time of zero it does nothing.
    pub(super) fn new(time: Duration) -> Rc<Self> {
        Rc::new(Self { time, until: Cell::new(None), waker: Cell::new(None) })
    }

    /// So many events were handled together just now.
    pub(super) fn note(&self, events: usize) {
        if self.time.is_zero() || events == 0 || events > FEW {
            return;
        }
        self.until.set(Some(Instant::now() + self.time));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Runs for ever. Each round lets all other tasks run and looks at all sockets.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            poll_fn(|cx| {
                if self.until.get().is_some_and(|until| Instant::now() < until) {
                    return Poll::Ready(());
                }
                self.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
            yield_now().await;
        }
    }
}
