//! Polling instead of sleeping, for a moment after something happened.
//!
//! To wake a sleeping thread on another CPU takes several times as long as a small request; while
//! requests come one by one, the next event is worth waiting for. Where more threads want to run
//! than there are CPUs, the same polling takes the CPU from those who would bring the event, so a
//! thread that has to wait for its CPU does not poll for a while.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::future::poll_fn;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use tokio::task::yield_now;

/// Whoever has more to do at a time than this gains nothing from polling.
const FEW: usize = 4;
/// How often the thread looks at how long it had to wait for its CPU.
const LOOK: Duration = Duration::from_millis(20);
/// How long it does not poll when that was too long.
const PAUSE: Duration = Duration::from_millis(100);
/// What is too long, in percent of the time. Where CPUs are left, a thread waits for 5 to 25 %,
/// because the kernel likes to wake it on the CPU of whoever woke it.
const CROWDED: u32 = 35;

/// For how long a thread polls at least: about what it takes until a peer on the same network or a
/// client on the same machine has answered.
const SPIN: Duration = Duration::from_micros(50);
/// How many times that it polls at most, where events have been coming so slowly.
const SLOWEST: u32 = 4;
/// One in so many of the times between two events counts for the usual one.
const WEIGHT: u32 = 8;

/// Keeps its thread from sleeping while there was activity a moment ago.
///
/// One for each thread. [`Spinner::run`] has to be a task of the thread's runtime.
pub struct Spinner {
    time: Duration,
    pace: Cell<Pace>,
    until: Cell<Option<Instant>>,
    /// The task, when it sleeps.
    waker: Cell<Option<Waker>>,
    crowd: RefCell<Crowd>,
}

impl Spinner {
    /// How long is worth it on this machine: nothing where there is only one CPU, because who
    /// polls on it keeps everybody else from answering. A process that is tied to one CPU of many
    /// polls: others may have theirs, and if not, that is noticed.
    #[must_use]
    pub fn usual_time() -> Duration {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        if has_one(&online) { Duration::ZERO } else { SPIN }
    }

    /// For the calling thread. With a time of zero it does nothing.
    #[must_use]
    pub fn new(time: Duration) -> Rc<Self> {
        Rc::new(Self {
            time,
            pace: Cell::new(Pace::new(time, Instant::now())),
            until: Cell::new(None),
            waker: Cell::new(None),
            crowd: RefCell::new(Crowd::new(Instant::now())),
        })
    }

    /// So many events were handled together just now.
    pub fn note(&self, events: usize) {
        if self.time.is_zero() || events == 0 || events > FEW {
            return;
        }
        let now = Instant::now();
        if self.crowd.borrow_mut().is_crowded(now) {
            return;
        }
        let mut pace = self.pace.get();
        self.until.set(Some(now + pace.step(now)));
        self.pace.set(pace);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Runs for ever. Each round lets all other tasks run and looks at all sockets.
    pub async fn run(self: Rc<Self>) {
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

/// How fast events follow each other.
#[derive(Clone, Copy)]
struct Pace {
    /// The shortest time that is polled.
    least: Duration,
    last: Instant,
    /// What usually passes between two events, as far as that is short enough to be waited for.
    usual: Duration,
}

impl Pace {
    const fn new(least: Duration, now: Instant) -> Self {
        Self { least, last: now, usual: Duration::ZERO }
    }

    /// An event has come; for how long the next one is worth waiting for: twice the usual time,
    /// within the bounds.
    fn step(&mut self, now: Instant) -> Duration {
        let most = self.least * SLOWEST;
        let gap = now.saturating_duration_since(self.last);
        self.last = now;
        let gap = if gap <= most { gap } else { Duration::ZERO };
        self.usual = (self.usual * (WEIGHT - 1) + gap) / WEIGHT;
        (self.usual * 2).clamp(self.least, most)
    }
}

/// Whether a list of CPUs, such as `0-3,8`, names one only.
fn has_one(list: &str) -> bool {
    list.trim_end().parse::<u32>().is_ok()
}

/// Whether others want the thread's CPU.
struct Crowd {
    /// What the kernel counts for this thread. Without it nothing is ever crowded.
    counts: Option<File>,
    looked: Instant,
    /// How long the thread had been waiting for a CPU then, since its start.
    waited: Duration,
    /// There were too many; not to be asked again before.
    until: Option<Instant>,
}

impl Crowd {
    fn new(now: Instant) -> Self {
        let counts = File::open("/proc/thread-self/schedstat").ok();
        let mut crowd = Self { counts, looked: now, waited: Duration::ZERO, until: None };
        crowd.look(now);
        crowd
    }

    fn is_crowded(&mut self, now: Instant) -> bool {
        if let Some(until) = self.until {
            if now < until {
                return true;
            }
            // What happened meanwhile says nothing of how it is with polling.
            self.until = None;
            self.look(now);
        } else if now - self.looked >= LOOK && self.look(now) {
            self.until = Some(now + PAUSE);
        }
        self.until.is_some()
    }

    /// Whether the thread had to wait for too long since the last look.
    fn look(&mut self, now: Instant) -> bool {
        let waited = self.counts.as_ref().and_then(waited).unwrap_or(self.waited);
        let crowded = is_too_long(waited.saturating_sub(self.waited), now - self.looked);
        (self.looked, self.waited) = (now, waited);
        crowded
    }
}

fn is_too_long(waited: Duration, passed: Duration) -> bool {
    waited * 100 > passed * CROWDED
}

/// The second of three numbers: nanoseconds for which the thread could have run and did not.
fn waited(counts: &File) -> Option<Duration> {
    let mut text = [0; 64];
    let len = counts.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::{Crowd, LOOK, PAUSE, Pace, has_one, is_too_long, waited};
    use std::io::Write;
    use std::time::{Duration, Instant};

    fn wait_in_all(crowd: &Crowd, time: Duration) {
        let mut counts = crowd.counts.as_ref().unwrap();
        counts.set_len(0).unwrap();
        let text = format!("12345 {} 678\n", time.as_nanos());
        std::io::Seek::rewind(&mut counts).unwrap();
        counts.write_all(text.as_bytes()).unwrap();
        assert_eq!(waited(counts), Some(time));
    }

    #[test]
    fn a_thread_that_waits_for_its_cpu_does_not_poll_for_a_while() {
        let start = Instant::now();
        let counts = Some(tempfile::tempfile().unwrap());
        let mut crowd = Crowd { counts, looked: start, waited: Duration::ZERO, until: None };
        wait_in_all(&crowd, LOOK / 5);
        assert!(!crowd.is_crowded(start + LOOK), "a fifth of the time is usual");
        wait_in_all(&crowd, LOOK);
        assert!(!crowd.is_crowded(start + LOOK + LOOK / 2), "it does not look so often");
        assert!(crowd.is_crowded(start + LOOK * 2));
        let over = start + LOOK * 2 + PAUSE;
        assert!(crowd.is_crowded(over - LOOK / 2));
        wait_in_all(&crowd, PAUSE * 2);
        assert!(!crowd.is_crowded(over), "it tries again");
        wait_in_all(&crowd, PAUSE * 2 + LOOK / 2);
        assert!(crowd.is_crowded(over + LOOK));
    }

    #[test]
    fn who_comes_slowly_is_waited_for_longer_and_who_comes_rarely_is_not() {
        let least = Duration::from_micros(50);
        let mut now = Instant::now();
        let mut pace = Pace::new(least, now);
        let mut after = |gap: u64, times: usize| {
            let mut time = Duration::ZERO;
            for _ in 0..times {
                now += Duration::from_micros(gap);
                time = pace.step(now);
            }
            time
        };
        assert_eq!(after(10, 100), least);
        let slow = after(90, 100);
        assert!(
            slow > Duration::from_micros(170) && slow <= Duration::from_micros(180),
            "{slow:?}"
        );
        assert_eq!(after(190, 100), least * 4);
        assert_eq!(after(201, 100), least, "these are not worth waiting for");
        assert_eq!(after(1_000_000, 1), least);
    }

    #[test]
    fn one_cpu_is_told_from_several() {
        assert!(has_one("0\n") && has_one("3"));
        assert!(!has_one("0-1\n") && !has_one("0,2") && !has_one(""));
    }

    #[test]
    fn without_counts_nothing_is_crowded() {
        let start = Instant::now();
        let mut crowd = Crowd { counts: None, looked: start, waited: Duration::ZERO, until: None };
        assert!(!crowd.is_crowded(start + LOOK * 10));
        assert!(!is_too_long(Duration::ZERO, Duration::ZERO));
    }
}
