//! Connections to the port for nodes that have not proved yet whose they are.
//!
//! Their number is bounded, in all and by where they come from, apart from that of known nodes.
//! When there are too many, one goes that has said nothing yet, the oldest first: a node says its
//! part at once, so those who only hold places lose them.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// At a time, in all.
const MOST: usize = 256;
/// At a time, of one origin.
const MOST_OF_ONE: usize = 128;
/// Lines about connections that led to nothing, in [`WINDOW`].
const LINES: usize = 5;
const WINDOW: Duration = Duration::from_secs(10);

/// Who is before the door.
#[derive(Default)]
pub(crate) struct Doorstep(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    guests: BTreeMap<u64, Guest>,
    turned_away: TurnedAway,
}

struct Guest {
    origin: IpAddr,
    spoke: bool,
    task: AbortHandle,
}

/// A connection that is before the door; dropped, it is so no more.
pub(crate) struct Place {
    doorstep: Arc<Doorstep>,
    number: u64,
}

impl Place {
    /// It has said something.
    pub(crate) fn spoke(&self) {
        if let Some(guest) = self.doorstep.lock().guests.get_mut(&self.number) {
            guest.spoke = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.doorstep.lock().guests.remove(&self.number);
    }
}

impl Doorstep {
    /// Runs `work` for a connection from `from`, which keeps its [`Place`] until it knows whose
    /// connection it is. Until then it may be aborted at any time, in favour of others.
    pub(crate) fn receive<F>(self: &Arc<Self>, from: SocketAddr, work: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let origin = origin_of(from.ip());
        let mut waiting = self.lock();
        let of_one = waiting.guests.values().filter(|guest| guest.origin == origin).count();
        if of_one >= MOST_OF_ONE {
            waiting.turn_one_away(from, |guest| guest.origin == origin);
        } else if waiting.guests.len() >= MOST {
            waiting.turn_one_away(from, |_| true);
        }
        let number = waiting.next;
        waiting.next += 1;
        let work = work(Place { doorstep: Arc::clone(self), number });
        // Its place is given up only after this lock.
        let task = tokio::spawn(work).abort_handle();
        waiting.guests.insert(number, Guest { origin, spoke: false, task });
    }

    /// Something to log of a connection that led to nothing; many such lines become one.
    pub(crate) fn refused(&self, why: &str) {
        self.lock().turned_away.note(why);
    }

    /// Tells how many lines were left out; to be called now and then.
    pub(crate) fn sum_up(&self) {
        self.lock().turned_away.sum_up();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn turn_one_away(&mut self, newcomer: SocketAddr, of: impl Fn(&Guest) -> bool) {
        let all = || self.guests.iter().filter(|(_, guest)| of(guest));
        let silent = all().find(|(_, guest)| !guest.spoke).or_else(|| all().next());
        if let Some(number) = silent.map(|(number, _)| *number)
            && let Some(guest) = self.guests.remove(&number)
        {
            guest.task.abort();
            self.turned_away.note(&format!(
                "a connection from {} was closed before it said who it is, in favour of one \
                 from {newcomer}: too many are open",
                guest.origin
            ));
        }
    }
}

/// What counts as one origin: an address, or a network of the size that one site has.
fn origin_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => IpAddr::V4(four),
            None => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 64 << 64)),
        },
        IpAddr::V4(_) => address,
    }
}

/// Keeps the log short.
#[derive(Default)]
struct TurnedAway {
    /// When the last lines were written.
    lines: VecDeque<Instant>,
    left_out: u64,
    last: String,
}

impl TurnedAway {
    fn note(&mut self, why: &str) {
        self.forget_old();
        if self.lines.len() < LINES {
            tracing::info!("{why}");
            self.lines.push_back(Instant::now());
        } else {
            self.left_out += 1;
            why.clone_into(&mut self.last);
        }
    }

    fn forget_old(&mut self) {
        while self.lines.front().is_some_and(|at| at.elapsed() >= WINDOW) {
            self.lines.pop_front();
        }
    }

    fn sum_up(&mut self) {
        if self.left_out > 0 {
            let count = std::mem::take(&mut self.left_out);
            tracing::info!("{count} more connections led to nothing; the last one: {}", self.last);
        }
    }
}

/// How often [`Doorstep::sum_up`] is due.
pub(crate) const SUM_UP: Duration = WINDOW;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    fn address(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 1)
    }

    /// A guest who says something, or not, and stays. Its number comes when it is let go.
    fn stay(doorstep: &Arc<Doorstep>, from: &str, spoke: bool, gone: &mpsc::UnboundedSender<u64>) {
        struct Tell(u64, mpsc::UnboundedSender<u64>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.1.send(self.0);
            }
        }
        let gone = gone.clone();
        let (said, heard) = std::sync::mpsc::channel();
        doorstep.receive(address(from), |place| async move {
            let _tell = Tell(place.number, gone);
            if spoke {
                place.spoke();
            }
            said.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(place);
        });
        heard.recv().unwrap();
    }

    fn count(doorstep: &Doorstep) -> usize {
        doorstep.lock().guests.len()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_oldest_who_said_nothing_goes_first() {
        let doorstep = Arc::new(Doorstep::default());
        let (gone, mut who) = mpsc::unbounded_channel();
        stay(&doorstep, "10.0.0.1", true, &gone);
        for _ in 1..MOST_OF_ONE {
            stay(&doorstep, "10.0.0.1", false, &gone);
        }
        assert_eq!(count(&doorstep), MOST_OF_ONE);
        stay(&doorstep, "10.0.0.1", false, &gone);
        assert_eq!(who.recv().await, Some(1), "the first one had said something");
        assert_eq!(count(&doorstep), MOST_OF_ONE);
        // Others have room of their own.
        for _ in MOST_OF_ONE..MOST {
            stay(&doorstep, "10.0.0.2", true, &gone);
        }
        assert_eq!(count(&doorstep), MOST);
        stay(&doorstep, "10.0.0.3", false, &gone);
        assert_eq!(who.recv().await, Some(2));
        assert_eq!(count(&doorstep), MOST);
        assert!(who.try_recv().is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_has_shown_who_it_is_takes_no_place() {
        let doorstep = Arc::new(Doorstep::default());
        let (done, mut ended) = mpsc::unbounded_channel();
        for _ in 0..3 * MOST {
            let done = done.clone();
            doorstep.receive(address("::1"), |place| async move {
                drop(place);
                done.send(()).unwrap();
            });
            ended.recv().await.unwrap();
        }
        assert_eq!(count(&doorstep), 0);
    }

    #[test]
    fn a_site_is_one_origin() {
        let of = |text: &str| origin_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
