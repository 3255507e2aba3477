//! How fast a directory takes appends and is recovered:
//! `cargo run --release -p holdfast-journal --example logbench -- DIR [MiB [WRITERS]]`. With a number of
//! writers it prints two numbers only: durable writes of 4 KiB a second around the page cache, and
//! microseconds a commit. The segments are made beforehand, as those of a journal are that has been
//! in use for a while.

use bytes::Bytes;
use holdfast_journal::driver::{Directory, DirectoryOptions, Log, LogError, Open, spare_name};
use holdfast_journal::{Op, Settings};
use holdfast_units::{GenerationId, HybridTime, NodeId, ResourceId};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

fn settings() -> Settings {
    let node = NodeId::new(0).expect("0 is a node");
    Settings {
        dirty_bytes: 1 << 40,
        dirty_parts: 1 << 22,
        unsynced_bytes: 1 << 40,
        ..Settings::new(ResourceId([1; 16]), node, 1)
    }
}

/// Files that wait to be segments, for all that is appended: twice as many bytes as are written, for
/// a frame of one block has a second one.
fn make_spares(dir: &Path, mib: u64) -> io::Result<usize> {
    let len = settings().segment_bytes;
    let count = (mib << 21).div_ceil(len) + 1;
    for number in 1..=count {
        let mut file = File::create(dir.join(spare_name(number)))?;
        let zeroes = vec![0; 1 << 20];
        for _ in 0..len >> 20 {
            file.write_all(&zeroes)?;
        }
        file.sync_all()?;
    }
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

fn open(dir: &Path, direct: bool, spares: usize) -> Result<Log<Directory>, LogError> {
    let open = Open {
        settings: settings(),
        leads: true,
        generation: GenerationId(4),
        time: HybridTime(0),
        cut: None,
        spares,
    };
    let files = Directory::open(dir, DirectoryOptions { direct })?;
    Ok(Log::open(files, &open)?.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("say which directory to use")?;
    let mib: u64 = args.next().map_or(Ok(64), |text| text.parse())?;
    let only: Option<u64> = args.next().map(|text| text.parse()).transpose()?;
    let payload = Bytes::from(vec![0x5a; 4096]);
    let usual = [1, 4, 16, 64];
    for direct in [true, false].into_iter().take(if only.is_some() { 1 } else { 2 }) {
        for writers in only.map_or(usual.to_vec(), |only| vec![only]) {
            let scratch = Path::new(&dir).join("logbench");
            std::fs::create_dir(&scratch)?;
            let spares = make_spares(&scratch, mib)?;
            let mut log = open(&scratch, direct, spares)?;
            let rounds = (mib << 8) / if writers == 1 { 8 } else { writers };
            let begin = Instant::now();
            let mut block = 1;
            for _ in 0..rounds {
                for _ in 0..writers {
                    block = block * 1_103_515_245 % 262_139;
                    log.push(Op::write(block * 4096, payload.clone(), HybridTime(0), true)?)?;
                }
                log.flush()?;
            }
            let took = begin.elapsed();
            drop(log);
            let begin = Instant::now();
            let log = open(&scratch, direct, spares)?;
            let recovered = begin.elapsed();
            let count = rounds * writers;
            if only.is_some() {
                let seconds = took.as_secs_f64();
                println!("{:.0} {:.0}", count as f64 / seconds, seconds * 1e6 / rounds as f64);
                std::fs::remove_dir_all(&scratch)?;
                continue;
            }
            println!(
                "{}, {writers:2} writers: {:.0} durable writes of 4 KiB a second, {:.0} µs a commit; \
                 {} MiB of journal opened in {:.2} s",
                if direct { "O_DIRECT" } else { "fdatasync" },
                count as f64 / took.as_secs_f64(),
                took.as_secs_f64() * 1e6 / rounds as f64,
                log.journal().head().0 >> 20,
                recovered.as_secs_f64(),
            );
            std::fs::remove_dir_all(&scratch)?;
        }
    }
    Ok(())
}
