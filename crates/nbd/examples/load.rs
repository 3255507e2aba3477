//! A client that costs little, so that what it measures is the server:
//! `load URI [--op read|write|fua] [--depth N] [--connections N] [--block BYTES] [--sequential]
//! [--seconds S]`. Prints one line of JSON. Each connection has a thread, which sends as many
//! requests as there is room for and then waits for answers. Data are not looked at.

use holdfast_nbd::{NbdUri, UriTransport};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FUA: u16 = 1;

type Fault = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
struct Plan {
    uri: NbdUri,
    command: u16,
    flags: u16,
    depth: usize,
    connections: u64,
    block: usize,
    sequential: bool,
    time: Duration,
}

fn plan() -> Result<Plan, Fault> {
    let mut arguments = std::env::args().skip(1);
    let uri = arguments.next().ok_or("an URI is needed")?.parse()?;
    let mut plan = Plan {
        uri,
        command: READ,
        flags: 0,
        depth: 1,
        connections: 1,
        block: 4096,
        sequential: false,
        time: Duration::from_secs(3),
    };
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{option} needs a value"));
        match option.as_str() {
            "--op" => {
                (plan.command, plan.flags) = match value()?.as_str() {
                    "read" => (READ, 0),
                    "write" => (WRITE, 0),
                    "fua" => (WRITE, FUA),
                    other => return Err(format!("there is no operation {other}").into()),
                }
            }
            "--depth" => plan.depth = value()?.parse()?,
            "--connections" => plan.connections = value()?.parse()?,
            "--block" => plan.block = value()?.parse()?,
            "--sequential" => plan.sequential = true,
            "--seconds" => plan.time = Duration::from_secs_f64(value()?.parse()?),
            other => return Err(format!("there is no option {other}").into()),
        }
    }
    Ok(plan)
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Connects and enters the export in the oldest way, which every server knows; its size.
fn enter(uri: &NbdUri) -> Result<(Box<dyn Stream>, u64), Fault> {
    let mut stream: Box<dyn Stream> = match &uri.transport {
        UriTransport::Unix { path } => Box::new(UnixStream::connect(path)?),
        UriTransport::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    };
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend(1u32.to_be_bytes());
    hello.extend(u32::try_from(uri.export.len())?.to_be_bytes());
    hello.extend(uri.export.as_bytes());
    stream.write_all(&hello)?;
    let mut export = [0; 10];
    stream.read_exact(&mut export)?;
    Ok((stream, u64::from_be_bytes(export[..8].try_into()?)))
}

/// What one connection did: the time that each request took, in nanoseconds.
fn load(plan: &Plan, number: u64) -> Result<Vec<u64>, Fault> {
    let (mut stream, size) = enter(&plan.uri)?;
    let blocks = size / plan.block as u64;
    let mut place = number * (blocks / plan.connections);
    let mut random = 0x9e37_79b9_7f4a_7c15 ^ (number << 32) ^ u64::from(std::process::id());
    let payload: Vec<u8> = (0..plan.block).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
    let answer = 16 + if plan.command == READ { plan.block } else { 0 };
    let mut free: Vec<usize> = (0..plan.depth).collect();
    let mut sent = vec![Instant::now(); plan.depth];
    let mut times = Vec::new();
    let (mut out, mut input) = (Vec::new(), vec![0; answer * plan.depth]);
    let (mut at, mut end) = (0, 0);
    let start = Instant::now();
    loop {
        out.clear();
        let now = Instant::now();
        while now - start < plan.time
            && let Some(slot) = free.pop()
        {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            place = if plan.sequential { (place + 1) % blocks } else { random % blocks };
            request(&mut out, plan, slot as u64, place * plan.block as u64);
            if plan.command == WRITE {
                out.extend(&payload);
            }
            sent[slot] = now;
        }
        stream.write_all(&out)?;
        if free.len() == plan.depth {
            break;
        }
        input.copy_within(at..end, 0);
        (at, end) = (0, end - at);
        let count = stream.read(&mut input[end..])?;
        if count == 0 {
            return Err("the server hung up".into());
        }
        end += count;
        while end - at >= answer {
            let head = &input[at..at + 16];
            let fine = head[..4] == SIMPLE_REPLY.to_be_bytes() && head[4..8] == [0; 4];
            let slot = usize::try_from(u64::from_be_bytes(head[8..].try_into()?))?;
            if !fine || slot >= plan.depth {
                return Err("the server answered with an error".into());
            }
            times.push(u64::try_from(sent[slot].elapsed().as_nanos())?);
            free.push(slot);
            at += answer;
        }
    }
    request(&mut out, &Plan { command: DISCONNECT, flags: 0, block: 0, ..plan.clone() }, 0, 0);
    stream.write_all(&out)?;
    Ok(times)
}

fn request(out: &mut Vec<u8>, plan: &Plan, cookie: u64, offset: u64) {
    out.extend(REQUEST.to_be_bytes());
    out.extend(plan.flags.to_be_bytes());
    out.extend(plan.command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(u32::try_from(plan.block).unwrap_or(u32::MAX).to_be_bytes());
}

fn main() -> Result<(), Fault> {
    let plan = plan()?;
    let start = Instant::now();
    let threads: Vec<_> = (0..plan.connections)
        .map(|number| {
            let plan = plan.clone();
            thread::spawn(move || load(&plan, number))
        })
        .collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().map_err(|_| "a connection failed")??);
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(0.0, |ns| *ns as f64 / 1e3);
    let (ops, p50, p99) = (times.len(), at(50), at(99));
    let iops = ops as f64 / seconds;
    let mbps = iops * plan.block as f64 / 1e6;
    println!(
        "{{\"iops\":{iops:.0},\"mbps\":{mbps:.1},\"p50\":{p50:.1},\"p99\":{p99:.1},\"ops\":{ops}}}"
    );
    Ok(())
}
