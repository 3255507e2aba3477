//! Random 4 KiB reads or writes on a disk: `diskbench PATH DEPTH read|write|fua [each] [blocking]`.
//! PATH is overwritten. With `each`, every operation is kicked by itself; with `blocking`, threads
//! do the work.

use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_store::{BufferPool, Disk, DiskOp, EngineChoice, OpId, OpenOptions};
use holdfast_units::ByteRange;

const RUN: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, depth, mode, flags @ ..] = words.as_slice() else {
        return Err("usage: diskbench PATH DEPTH read|write|fua [each] [blocking]".into());
    };
    let has = |flag: &str| flags.iter().any(|word| word == flag);
    let pool = BufferPool::new(16 << 20);
    let engine = if has("blocking") { EngineChoice::Blocking } else { EngineChoice::Auto };
    let options = OpenOptions { engine, ..OpenOptions::default() };
    let mut disk = Disk::open(Path::new(path), &options, &pool)?;
    let (depth, blocks) = (depth.parse::<usize>()?, disk.size() / 4096);
    let (begin, mut done, mut count, mut seed) = (Instant::now(), Vec::new(), 0_u64, 1_u64);
    while begin.elapsed() < RUN {
        while disk.in_flight() < depth {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let range = ByteRange::new((seed >> 33) % blocks * 4096, 4096);
            let request = match mode.as_str() {
                "read" => DiskOp::Read { range, holes: false },
                mode => {
                    let data = pool.get(4096).freeze();
                    DiskOp::Write { range, data, fua: mode == "fua" }
                }
            };
            if let Some(completion) = disk.submit(OpId(0), request) {
                completion.result?;
                count += 1;
                if count.is_multiple_of(64) {
                    break;
                }
            }
            if has("each") {
                disk.kick();
            }
        }
        disk.kick();
        disk.wait(&mut done, Duration::from_secs(10));
        for completion in done.drain(..) {
            completion.result?;
            count += 1;
        }
    }
    let elapsed = begin.elapsed();
    let nanos = elapsed.as_nanos() / u128::from(count.max(1));
    let engine = disk.info().engine.as_str();
    println!("{engine}: {} per second, one each {nanos} ns", 1_000_000_000 / nanos.max(1));
    Ok(())
}
