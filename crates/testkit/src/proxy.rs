use crate::far::{self, Far, Line};
use rustix::net::sockopt::set_socket_linger;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a connection to the server may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a write waits before it looks whether the connection was cut.
const WRITE_PATIENCE: Duration = Duration::from_millis(100);

/// How connections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both ends get a reset.
    Reset,
    /// Both ends read an end of file.
    Finish,
}

/// A TCP proxy on loopback that can break what goes through it.
///
/// Connections to [`Proxy::address`] are forwarded to the server that [`Proxy::set_target`] names.
/// All switches act on every connection, those that stand and those to come. It ends with the
/// value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    to_server: Way,
    to_client: Way,
}

/// One direction of all connections.
#[derive(Debug, Default)]
struct Way {
    forwarded: AtomicU64,
    line: Line,
}

#[derive(Debug, Default)]
struct State {
    target: Option<SocketAddr>,
    /// Connections of this number and below are to end.
    cut_through: u64,
    /// The number of the newest connection.
    newest: u64,
    how: Option<Cut>,
    /// New connections are refused.
    refusing: bool,
    /// Nothing is forwarded, and nothing is read any more.
    stalled: bool,
    delay: Duration,
    /// Bytes per second and direction; 0 for no limit.
    rate: u64,
    /// What connections that are made from now on go through.
    far: Option<Far>,
    /// What each connection has brought to its client, in bytes.
    carried: BTreeMap<u64, u64>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a test must not become one of its proxy.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits while the connection is held up, and `pause` on top; how it is to end, when it is.
    fn pass(&self, connection: u64, pause: Duration) -> Result<(), Option<Cut>> {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        loop {
            if state.ended || connection <= state.cut_through {
                return Err(state.how);
            }
            let left = until.saturating_duration_since(Instant::now());
            if !state.stalled && left.is_zero() {
                return Ok(());
            }
            // A stalled connection looks again now and then; a change wakes it at once.
            let left = if state.stalled { Duration::from_secs(1) } else { left };
            let woken = self.changed.wait_timeout(state, left);
            state = woken.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }
}

impl Proxy {
    /// Begins to listen on a free port. Until there is a target, connections are refused.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let address = listener.local_addr().expect("it was just bound");
        let shared = Arc::new(Shared::default());
        let for_accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &for_accepting));
        Self { address, shared }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it forwards new connections to.
    pub fn set_target(&self, target: SocketAddr) {
        self.shared.change(|state| state.target = Some(target));
    }

    /// Ends the connections that stand, and refuses new ones until [`Self::heal`].
    pub fn cut(&self, how: Cut) {
        self.shared.change(|state| {
            state.cut_through = state.newest;
            state.how = Some(how);
            state.refusing = true;
        });
    }

    /// Ends the connections that stand; new ones may come at once.
    pub fn cut_once(&self, how: Cut) {
        self.shared.change(|state| {
            state.cut_through = state.newest;
            state.how = Some(how);
        });
    }

    /// Ceases to forward anything, without a word to either side: half-open connections.
    pub fn stall(&self) {
        self.shared.change(|state| state.stalled = true);
    }

    /// Undoes [`Self::cut`], [`Self::stall`], [`Self::delay`] and [`Self::limit_rate`].
    pub fn heal(&self) {
        self.shared.change(|state| {
            state.refusing = false;
            state.stalled = false;
            state.delay = Duration::ZERO;
            state.rate = 0;
        });
    }

    /// Holds everything back for so long before it is forwarded.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|state| state.delay = delay);
    }

    /// Forwards no more than so many bytes per second in each direction of a connection.
    pub fn limit_rate(&self, bytes_per_second: u64) {
        self.shared.change(|state| state.rate = bytes_per_second);
    }

    /// Puts a long way between the ends of the connections that are made from now on, until it is
    /// taken away again.
    pub fn far(&self, far: Option<Far>) {
        self.shared.change(|state| state.far = far);
    }

    /// How many bytes were forwarded since the start: to the server, and to clients.
    #[must_use]
    pub fn forwarded(&self) -> (u64, u64) {
        let count = |way: &Way| way.forwarded.load(Ordering::Relaxed);
        (count(&self.shared.to_server), count(&self.shared.to_client))
    }

    /// How many bytes each connection has brought to its client, by the number of the connection;
    /// also of those that have ended.
    #[must_use]
    pub fn carried(&self) -> BTreeMap<u64, u64> {
        self.shared.lock().carried.clone()
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| state.ended = true);
        // Wakes the thread that accepts, which then ends.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT_LIMIT);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        // It has its number from now on, so that a cut that comes before it is connected ends it.
        let taken = {
            let mut state = shared.lock();
            if state.ended {
                return;
            }
            let target = state.target.filter(|_| client.is_ok() && !state.refusing);
            target.map(|target| {
                state.newest += 1;
                (target, state.newest, state.far)
            })
        };
        let Ok(client) = client else { continue };
        let Some((target, number, far)) = taken else {
            reset(&client);
            continue;
        };
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            match TcpStream::connect_timeout(&target, CONNECT_LIMIT) {
                Ok(server) => forward(number, far, client, server, &shared),
                Err(_) => reset(&client),
            };
        });
    }
}

/// Makes the next close a reset.
fn reset(stream: &TcpStream) {
    // Without it the other side reads an end of file, which is as good an end.
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}

/// Both directions of a connection.
fn forward(
    number: u64,
    far: Option<Far>,
    client: TcpStream,
    server: TcpStream,
    shared: &Arc<Shared>,
) {
    let streams = Arc::new((client, server));
    for stream in [&streams.0, &streams.1] {
        // The first is a matter of speed only. The second lets a cut end a write that waits.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(WRITE_PATIENCE));
    }
    // Ends reads that wait when the connection is to be cut.
    let (watched, watching) = (Arc::clone(&streams), Arc::clone(shared));
    thread::spawn(move || watch(number, &watched, &watching));
    let (back, for_back) = (Arc::clone(&streams), Arc::clone(shared));
    let other = thread::spawn(move || {
        pump(number, far, (&back.1, &back.0), &for_back, &for_back.to_client);
    });
    pump(number, far, (&streams.0, &streams.1), shared, &shared.to_server);
    // A thread that only forwards does not panic; if it did, the connection ends as well.
    let _ = other.join();
    drop(streams);
    // Under the lock, so that the thread that watches is not just about to wait.
    shared.change(|_| ());
}

/// Waits for the order to cut, then wakes both pumps. Ends with them.
fn watch(number: u64, streams: &Arc<(TcpStream, TcpStream)>, shared: &Shared) {
    let mut state = shared.lock();
    while !state.ended && number > state.cut_through {
        // Only this thread is left when both pumps have ended.
        if Arc::strong_count(streams) == 1 {
            return;
        }
        let woken = shared.changed.wait_timeout(state, Duration::from_secs(1));
        state = woken.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
    }
    let how = state.how;
    drop(state);
    for stream in [&streams.0, &streams.1] {
        if how == Some(Cut::Finish) {
            let _ = stream.shutdown(Shutdown::Both);
        } else {
            reset(stream);
            // Wakes the reader without a word to the other side: that comes with the close.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

/// One direction of a connection, until it ends or is cut.
fn pump(
    number: u64,
    far: Option<Far>,
    (mut from, to): (&TcpStream, &TcpStream),
    shared: &Shared,
    way: &Way,
) {
    if let Some(far) = far {
        return far::carry(far, number, from, to, &way.line, |chunk, at| {
            let wait = at.saturating_duration_since(Instant::now());
            shared.pass(number, wait).is_ok() && deliver(number, to, chunk, shared, way)
        });
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (delay, rate) = {
            let state = shared.lock();
            (state.delay, state.rate)
        };
        if shared.pass(number, Duration::ZERO).is_err() {
            return;
        }
        // Slowly means in small pieces, too.
        let most = if rate == 0 { buffer.len() } else { 4096.min(buffer.len()) };
        let count = match from.read(&mut buffer[..most]) {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        let slow = (bytes * 1_000_000_000)
            .checked_div(rate)
            .map_or(delay, |nanos| delay + Duration::from_nanos(nanos));
        if shared.pass(number, slow).is_err() {
            return;
        }
        if !deliver(number, to, &buffer[..count], shared, way) {
            break;
        }
    }
    // An end of file travels as such; what goes the other way may go on.
    let _ = to.shutdown(Shutdown::Write);
}

/// Counts it and sends all of it; whether it could.
fn deliver(number: u64, to: &TcpStream, data: &[u8], shared: &Shared, way: &Way) -> bool {
    // Before, so that whoever has got it sees it counted.
    way.forwarded.fetch_add(data.len() as u64, Ordering::Relaxed);
    if ptr::eq(way, &shared.to_client) {
        *shared.lock().carried.entry(number).or_default() += data.len() as u64;
    }
    send(number, to, data, shared)
}

/// Whether all of it could be sent.
fn send(number: u64, mut to: &TcpStream, mut data: &[u8], shared: &Shared) -> bool {
    while !data.is_empty() {
        match to.write(data) {
            Ok(0) => return false,
            Ok(count) => data = &data[count..],
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.pass(number, Duration::ZERO).is_err() {
                    return false;
                }
            }
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long anything may take that is not held up.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    std::io::copy(&mut &stream, &mut &stream)?;
                    stream.shutdown(Shutdown::Write)
                });
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn round(stream: &mut TcpStream, data: &[u8]) -> std::io::Result<()> {
        stream.write_all(data)?;
        let mut back = vec![0; data.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, data);
        Ok(())
    }

    fn proxy() -> Proxy {
        let proxy = Proxy::new();
        proxy.set_target(echo());
        proxy
    }

    #[test]
    fn it_forwards_and_counts() {
        let proxy = proxy();
        let mut stream = connect(&proxy);
        round(&mut stream, &[7; 100_000]).unwrap();
        assert_eq!(proxy.forwarded().0, 100_000);
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
        assert_eq!(proxy.forwarded().1, 100_000);
        round(&mut connect(&proxy), &[8; 1000]).unwrap();
        assert_eq!(proxy.carried(), [(1, 100_000), (2, 1000)].into());
    }

    #[test]
    fn a_cut_ends_what_stands_and_refuses_what_comes() {
        let proxy = proxy();
        for how in [Cut::Reset, Cut::Finish] {
            let mut stream = connect(&proxy);
            round(&mut stream, b"before").unwrap();
            proxy.cut(how);
            let end = stream.read(&mut [0; 10]);
            // A reset can overtake nothing: the end is seen as one or as the other.
            let reset = end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
            let finished = end.as_ref().is_ok_and(|bytes| *bytes == 0);
            assert!(finished || (reset && how == Cut::Reset), "{how:?}: {end:?}");
            // The reset may come while it is still being connected.
            let refused = TcpStream::connect(proxy.address());
            assert!(refused.and_then(|mut stream| round(&mut stream, b"refused")).is_err());
            proxy.heal();
            round(&mut connect(&proxy), b"after").unwrap();
            proxy.cut_once(how);
            round(&mut connect(&proxy), b"at once").unwrap();
        }
    }

    #[test]
    fn a_stall_holds_everything_and_loses_nothing() {
        let proxy = proxy();
        let mut stream = connect(&proxy);
        round(&mut stream, b"before").unwrap();
        proxy.stall();
        stream.write_all(b"held").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut back = [0; 4];
        assert!(stream.read(&mut back).is_err());
        proxy.heal();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"held");
    }

    #[test]
    fn a_long_way_takes_its_time_whatever_is_on_it() {
        let one_way = Duration::from_millis(50);
        let way = |one_lost_of, line| Some(Far { one_way, one_lost_of, line });
        let time = |proxy: &Proxy, bytes: usize| {
            let mut stream = connect(proxy);
            let start = Instant::now();
            round(&mut stream, &vec![3; bytes]).unwrap();
            start.elapsed()
        };
        let proxy = proxy();
        proxy.far(way(0, 0));
        // One after the other, its 256 pieces would take as many trips.
        let much = time(&proxy, 4 << 20);
        assert!(much >= 2 * one_way && much < 200 * one_way, "one trip for all of it: {much:?}");
        proxy.far(way(1, 0));
        let lost = time(&proxy, 1);
        assert!(lost >= 6 * one_way, "what is lost comes a round trip later: {lost:?}");
        proxy.far(way(0, 1 << 20));
        let slow = time(&proxy, 256 << 10);
        assert!(slow >= Duration::from_millis(300), "the line has so much a second: {slow:?}");
        proxy.far(Some(Far { one_way: 2 * PATIENCE, one_lost_of: 0, line: 0 }));
        proxy.far(None);
        assert!(time(&proxy, 1) < PATIENCE, "the way is short again");
    }

    #[test]
    fn delay_and_rate_slow_it_down() {
        let proxy = proxy();
        let mut stream = connect(&proxy);
        proxy.delay(Duration::from_millis(50));
        let start = Instant::now();
        round(&mut stream, b"x").unwrap();
        // The piece that was waited for when the delay was set goes at once.
        round(&mut stream, b"x").unwrap();
        assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
        proxy.heal();
        proxy.limit_rate(100_000);
        let start = Instant::now();
        round(&mut connect(&proxy), &[1; 20_000]).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
    }
}
