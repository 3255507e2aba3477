//! Connections that are made again when they break.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The waits between two tries: the first repeats at once, the others double up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// Why a request on a connection did not succeed.
pub(crate) enum Fault {
    /// The server answered with this error; the connection is good.
    Answered(io::Error),
    /// The connection broke: the request may be repeated on another one.
    Lost(io::Error),
    /// No answer came in time, or one that cannot be understood: the connection is given up. The
    /// server may still carry the request out, at any time: so it is not repeated.
    GivenUp(io::Error),
}

/// A set of equal connections, each used by one caller at a time.
pub(crate) struct Pool<C> {
    connect: Box<dyn Fn() -> io::Result<C> + Send + Sync>,
    /// How many unused connections are kept.
    keep: usize,
    /// How long a request waits for a connection to come back.
    limit: Duration,
    state: Mutex<State<C>>,
}

struct State<C> {
    idle: Vec<C>,
    /// When the outage began that no request has ended yet.
    lost_since: Option<Instant>,
}

impl<C> Pool<C> {
    pub(crate) fn new(
        first: C,
        keep: usize,
        limit: Duration,
        connect: impl Fn() -> io::Result<C> + Send + Sync + 'static,
    ) -> Self {
        let state = Mutex::new(State { idle: vec![first], lost_since: None });
        Self { connect: Box::new(connect), keep, limit, state }
    }

    /// Runs a request on some connection, and again on others for as long as connections break.
    /// An outage that lasts longer than the limit fails every request at its first try.
    pub(crate) fn run<T>(
        &self,
        mut request: impl FnMut(&mut C) -> Result<T, Fault>,
    ) -> io::Result<T> {
        let start = Instant::now();
        let mut pause = Duration::ZERO;
        loop {
            let error = match self.take() {
                Err(error) => error,
                Ok(mut connection) => match request(&mut connection) {
                    Ok(value) => {
                        self.give_back(connection);
                        return Ok(value);
                    }
                    Err(Fault::Answered(error)) => {
                        self.give_back(connection);
                        return Err(error);
                    }
                    Err(Fault::GivenUp(error)) => return Err(error),
                    Err(Fault::Lost(error)) => error,
                },
            };
            if self.lost_since(start).elapsed() + pause > self.limit {
                return Err(error);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
    }

    fn take(&self) -> io::Result<C> {
        let idle = self.state().idle.pop();
        idle.map_or_else(&self.connect, Ok)
    }

    fn give_back(&self, connection: C) {
        let mut state = self.state();
        state.lost_since = None;
        if state.idle.len() < self.keep {
            state.idle.push(connection);
        }
    }

    /// Notes an outage that a request which began at `start` has met. What is idle broke, too,
    /// most likely.
    fn lost_since(&self, start: Instant) -> Instant {
        let mut state = self.state();
        state.idle.clear();
        let since = *state.lost_since.get_or_insert_with(Instant::now);
        since.min(start)
    }

    fn state(&self) -> MutexGuard<'_, State<C>> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Pool};
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    /// A server that can be away, and counts what reaches it.
    #[derive(Default)]
    struct Server {
        away: AtomicBool,
        connects: AtomicU32,
        generation: AtomicU32,
    }

    fn pool(server: &Arc<Server>, limit: Duration) -> Pool<u32> {
        let theirs = Arc::clone(server);
        Pool::new(0, 4, limit, move || {
            theirs.connects.fetch_add(1, Ordering::SeqCst);
            match theirs.away.load(Ordering::SeqCst) {
                true => Err(io::ErrorKind::ConnectionRefused.into()),
                false => Ok(theirs.generation.load(Ordering::SeqCst)),
            }
        })
    }

    /// Succeeds on a connection to the server as it is now.
    fn ask(server: &Server, connection: u32) -> Result<u32, Fault> {
        match connection == server.generation.load(Ordering::SeqCst) {
            true => Ok(connection),
            false => Err(Fault::Lost(io::ErrorKind::BrokenPipe.into())),
        }
    }

    #[test]
    fn a_connection_is_used_again() {
        let server = Arc::new(Server::default());
        let pool = pool(&server, Duration::from_secs(10));
        for _ in 0..5 {
            pool.run(|connection| ask(&server, *connection)).unwrap();
        }
        assert_eq!(server.connects.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_restarted_server_is_not_noticed() {
        let server = Arc::new(Server::default());
        let pool = pool(&server, Duration::from_secs(10));
        server.generation.store(1, Ordering::SeqCst);
        assert_eq!(pool.run(|connection| ask(&server, *connection)).unwrap(), 1);
        assert_eq!(server.connects.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_request_waits_for_a_server_that_comes_back() {
        let server = Arc::new(Server::default());
        let pool = pool(&server, Duration::from_secs(30));
        server.away.store(true, Ordering::SeqCst);
        server.generation.store(1, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.run(|connection| ask(&server, *connection)));
            while server.connects.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            server.away.store(false, Ordering::SeqCst);
            assert_eq!(waiting.join().unwrap().unwrap(), 1);
        });
    }

    #[test]
    fn an_outage_ends_in_an_error_and_then_at_once() {
        let server = Arc::new(Server::default());
        let limit = Duration::from_millis(100);
        let pool = pool(&server, limit);
        server.away.store(true, Ordering::SeqCst);
        server.generation.store(1, Ordering::SeqCst);
        let ask = || pool.run(|connection| ask(&server, *connection));
        assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        while pool.state().lost_since.unwrap().elapsed() < limit {
            std::thread::yield_now();
        }
        let before = server.connects.load(Ordering::SeqCst);
        ask().unwrap_err();
        assert_eq!(server.connects.load(Ordering::SeqCst), before + 1, "one try, no wait");
        server.away.store(false, Ordering::SeqCst);
        ask().unwrap();
        assert_eq!(pool.state().lost_since, None);
    }

    #[test]
    fn a_server_that_always_hangs_up_is_given_up() {
        let server = Arc::new(Server::default());
        let pool = pool(&server, Duration::from_millis(50));
        let start = Instant::now();
        let result: io::Result<()> =
            pool.run(|_| Err(Fault::Lost(io::ErrorKind::ConnectionReset.into())));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn only_a_lost_request_is_repeated() {
        let server = Arc::new(Server::default());
        let pool = pool(&server, Duration::from_secs(10));
        let mut tries = 0;
        let answered: io::Result<()> = pool.run(|_| {
            tries += 1;
            Err(Fault::Answered(io::ErrorKind::StorageFull.into()))
        });
        assert_eq!(answered.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(server.connects.load(Ordering::SeqCst), 0);
        let late: io::Result<()> = pool.run(|_| {
            tries += 1;
            Err(Fault::GivenUp(io::ErrorKind::TimedOut.into()))
        });
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(tries, 2);
        // The late connection was given up.
        pool.run(|connection| ask(&server, *connection)).unwrap();
        assert_eq!(server.connects.load(Ordering::SeqCst), 1);
    }
}
