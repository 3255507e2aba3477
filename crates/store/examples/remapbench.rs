//! What the layer for bad sectors costs: `remapbench PATH SPARE ENTRIES [ROUNDS]`. PATH and SPARE are
//! overwritten. ENTRIES random blocks are moved to the spare; then the bare disk and the disk with
//! the layer are measured in turns, and the ratio of their medians is printed.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use holdfast_format::remap::SpareId;
use holdfast_store::{
    BufferPool, Completion, Disk, DiskIdentity, DiskOp, OpId, OpenOptions, RemapOp, SpareAt,
    SpareFormat, format_spare,
};
use holdfast_units::{ByteRange, ResourceId};

const OWNER: DiskIdentity = DiskIdentity { resource: ResourceId([1; 16]), disk: [2; 16] };
const RUN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    len: u64,
    random: bool,
    writes: bool,
    depth: usize,
}

const LOADS: [Load; 4] = [
    Load { name: "4 KiB random read", len: 4096, random: true, writes: false, depth: 32 },
    Load { name: "4 KiB random write", len: 4096, random: true, writes: true, depth: 32 },
    Load { name: "1 MiB sequential read", len: 1 << 20, random: false, writes: false, depth: 4 },
    Load { name: "1 MiB sequential write", len: 1 << 20, random: false, writes: true, depth: 4 },
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, spare, entries, rounds @ ..] = words.as_slice() else {
        return Err("usage: remapbench PATH SPARE ENTRIES [ROUNDS]".into());
    };
    let (path, spare, entries) = (Path::new(path), Path::new(spare), entries.parse::<u64>()?);
    let rounds = rounds.first().map_or(Ok(7), |text| text.parse::<usize>())?;
    let pool = BufferPool::new(64 << 20);
    // Both stay open, so that both have what there is to be warmed up.
    let options = OpenOptions { exclusive: false, ..OpenOptions::default() };
    let open = |path| Disk::open(path, &options, &pool);
    fill(&mut open(path)?)?;
    let format = SpareFormat {
        id: SpareId([3; 16]),
        unit: 4096,
        slots: None,
        force: true,
        disk_size: 0,
        created: SystemTime::UNIX_EPOCH.elapsed()?.as_secs(),
    };
    format_spare(&mut open(spare)?, None, &OWNER, &format)?;
    let layered = || -> Result<Disk, Box<dyn std::error::Error>> {
        Ok(open(path)?.with_spares(vec![SpareAt::Disk(Box::new(open(spare)?))], &OWNER)?)
    };
    move_away(&mut layered()?, entries)?;
    let (mut bare_disk, mut with_disk) = (open(path)?, layered()?);
    for load in LOADS {
        let (mut bare, mut with) = (Vec::new(), Vec::new());
        measure(&mut bare_disk, load, &pool, 99)?;
        measure(&mut with_disk, load, &pool, 99)?;
        for round in 0..rounds {
            let seed = round as u64 + 1;
            bare.push(measure(&mut bare_disk, load, &pool, seed)?);
            with.push(measure(&mut with_disk, load, &pool, seed)?);
        }
        let (bare, with) = (median(bare), median(with));
        let ratio = with as f64 / bare as f64;
        println!(
            "{}: bare {bare}, {entries} entries {with} per second, ratio {ratio:.3}",
            load.name
        );
    }
    Ok(())
}

fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers[numbers.len() / 2]
}

/// Gives every block of the disk memory or space.
fn fill(disk: &mut Disk) -> Result<(), Box<dyn std::error::Error>> {
    let data = Bytes::from(vec![7; 1 << 20]);
    for offset in (0..disk.size()).step_by(1 << 20) {
        let len = (disk.size() - offset).min(1 << 20);
        let data = data.slice(..usize::try_from(len)?);
        disk.execute(DiskOp::Write { range: ByteRange::new(offset, len), data, fua: false })?;
    }
    disk.execute(DiskOp::Flush)?;
    Ok(())
}

/// Moves random blocks into the spare, many at a time.
fn move_away(disk: &mut Disk, entries: u64) -> Result<(), Box<dyn std::error::Error>> {
    let (blocks, mut rng, mut done) = (disk.size() / 4096, Rng(99), Vec::<Completion>::new());
    let begin = Instant::now();
    while disk.remap_stats().map_or(entries, |stats| stats.mapped) < entries {
        let left = entries - disk.remap_stats().map_or(0, |stats| stats.mapped);
        for _ in 0..left.min(2000) {
            let range = ByteRange::new(rng.below(blocks) * 4096, 4096);
            done.extend(disk.remap(OpId(0), RemapOp::Move { range, imported: false }));
        }
        while disk.in_flight() > 0 {
            disk.wait(&mut done, Duration::from_secs(10));
        }
        for completion in done.drain(..) {
            completion.result?;
        }
    }
    println!("{entries} blocks moved in {:?}", begin.elapsed());
    Ok(())
}

/// Operations per second.
fn measure(
    disk: &mut Disk,
    load: Load,
    pool: &BufferPool,
    seed: u64,
) -> Result<u64, Box<dyn std::error::Error>> {
    let (slots, mut rng, mut next) = (disk.size() / load.len, Rng(seed), 0);
    let (mut done, mut count, begin) = (Vec::new(), 0_u64, Instant::now());
    let data = pool.get(usize::try_from(load.len)?).freeze();
    while begin.elapsed() < RUN {
        while disk.in_flight() < load.depth {
            next = if load.random { rng.below(slots) } else { (next + 1) % slots };
            let range = ByteRange::new(next * load.len, load.len);
            let request = if load.writes {
                DiskOp::Write { range, data: data.clone(), fua: false }
            } else {
                DiskOp::Read { range, holes: false }
            };
            if let Some(completion) = disk.submit(OpId(0), request) {
                completion.result?;
                count += 1;
                if count.is_multiple_of(64) {
                    break;
                }
            }
        }
        disk.kick();
        if disk.in_flight() > 0 {
            disk.wait(&mut done, Duration::from_secs(10));
        }
        for completion in done.drain(..) {
            completion.result?;
            count += 1;
        }
    }
    Ok(count * 1_000_000 / u64::try_from(begin.elapsed().as_micros())?.max(1))
}
