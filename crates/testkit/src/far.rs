//! A long way: what a proxy does to make two programs on one machine far apart.

use crate::Rng;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a segment of TCP carries on Ethernet.
const SEGMENT: usize = 1448;
/// How much is read at once.
const CHUNK: usize = 16 << 10;
/// Chunks that are on the way of one direction of a connection: its window, 8 MiB.
const WINDOW: usize = (8 << 20) / CHUNK;

/// A long way. What is lost on it is sent again by TCP, which costs all that lies behind it on the same
/// connection a round trip; the windows of TCP are taken to be large and not to shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Far {
    /// Time that everything is on the way, in one direction.
    pub one_way: Duration,
    /// Of so many segments one is lost; 0 for none.
    pub one_lost_of: u64,
    /// Bytes per second and direction, of all connections together; 0 for no limit.
    pub line: u64,
}

/// When the line of one direction is free again.
#[derive(Debug, Default)]
pub(crate) struct Line(Mutex<Option<Instant>>);

impl Line {
    /// Puts `bytes` on the line; when the last of them has left.
    fn put(&self, bytes: usize, rate: u64) -> Instant {
        let now = Instant::now();
        let nanos = (bytes as u64).saturating_mul(1_000_000_000).checked_div(rate).unwrap_or(0);
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = free.map_or(now, |at| at.max(now));
        *free.insert(start + Duration::from_nanos(nanos))
    }
}

/// One direction of a connection over a long way, until it ends. `seed` decides what is lost; `deliver`
/// sends a chunk, and says whether it could.
pub(crate) fn carry(
    far: Far,
    seed: u64,
    mut from: &TcpStream,
    to: &TcpStream,
    line: &Line,
    mut deliver: impl FnMut(&[u8], Instant) -> bool + Send,
) {
    let (sent, queue): (SyncSender<(Instant, Vec<u8>)>, Receiver<_>) = sync_channel(WINDOW);
    thread::scope(|scope| {
        scope.spawn(move || {
            while let Ok((at, chunk)) = queue.recv() {
                if !deliver(&chunk, at) {
                    break;
                }
            }
            // An end of file travels as such; what goes the other way may go on.
            let _ = to.shutdown(Shutdown::Write);
            drop(queue);
        });
        let mut dice = Rng::new(seed);
        let mut behind = Instant::now();
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut at = line.put(count, far.line) + far.one_way;
            for _ in 0..count.div_ceil(SEGMENT) {
                if far.one_lost_of > 0 && dice.below(far.one_lost_of) == 0 {
                    at += 2 * far.one_way;
                }
            }
            // Nothing overtakes what was lost.
            behind = behind.max(at);
            if sent.send((behind, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
        drop(sent);
    });
}
