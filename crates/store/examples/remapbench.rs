//! What the layers cost. All that is named is overwritten; the bare disk and the disk with a layer are
//! measured in turns, and the ratio of their medians is printed.
//!
//! - `remapbench PATH SPARE ENTRIES [ROUNDS]`: the layer for bad sectors, with ENTRIES random blocks
//!   moved to the spare.
//! - `remapbench PATH OTHER checksums [ROUNDS]`: the layer for checksums, on a disk OTHER of the same
//!   kind and size, with its file beside it.
//! - `remapbench PATH SPARE ENTRIES prepare`: only moves blocks; `PATH.moved` says which.
//! - `remapbench PATH SPARE with count`, after that: 10,000 blocks that are not in the spare
//!   (`count-moved`: that are) are read by system calls of the same thread, in the function
//!   `counted`, whose instructions callgrind counts. `bare` for `with`: without the layer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use holdfast_format::remap::SpareId;
use holdfast_store::{
    BufferPool, ChecksumFile, Completion, DirectMode, Disk, DiskIdentity, DiskOp, EngineChoice,
    OpId, OpenOptions, RemapOp, SpareAt, SpareFormat, format_spare,
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
    let [path, other, what, rounds @ ..] = words.as_slice() else {
        return Err("usage: remapbench PATH SPARE|OTHER ENTRIES|checksums [ROUNDS]".into());
    };
    let (path, other) = (Path::new(path), Path::new(other));
    match rounds.first().map(String::as_str) {
        Some("prepare") => return prepare(path, other, what.parse()?),
        Some("count") => return count(path, other, what, false),
        Some("count-moved") => return count(path, other, what, true),
        _ => {}
    }
    let rounds = rounds.first().map_or(Ok(7), |text| text.parse::<usize>())?;
    let pool = BufferPool::new(64 << 20);
    let open = |path| Disk::open(path, &OPTIONS, &pool);
    fill(&mut open(path)?)?;
    // Both stay open, so that both have what there is to be warmed up.
    let with_disk = match what.as_str() {
        "checksums" => with_checksums(other, &pool)?,
        entries => with_spare(path, other, entries.parse()?, &pool)?.0,
    };
    compare(open(path)?, with_disk, what, rounds, &pool)
}

fn list_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.moved", path.display()))
}

fn prepare(path: &Path, spare: &Path, entries: u64) -> Result<(), Box<dyn std::error::Error>> {
    let pool = BufferPool::new(64 << 20);
    fill(&mut Disk::open(path, &OPTIONS, &pool)?)?;
    let (_, moved) = with_spare(path, spare, entries, &pool)?;
    let lines: String = moved.iter().map(|place| format!("{place}\n")).collect();
    Ok(std::fs::write(list_of(path), lines)?)
}

fn count(
    path: &Path,
    spare: &Path,
    what: &str,
    of_moved: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let options = OpenOptions { engine: EngineChoice::Inline, ..OPTIONS };
    let pool = BufferPool::new(64 << 20);
    let open = |path| Disk::open(path, &options, &pool);
    let list = std::fs::read_to_string(list_of(path))?;
    let moved = list.lines().map(str::parse).collect::<Result<HashSet<u64>, _>>()?;
    let mut disk = open(path)?;
    if what != "bare" {
        disk = disk.with_spares(vec![SpareAt::Disk(Box::new(open(spare)?))], &OWNER)?;
    }
    let (blocks, mut rng) = (disk.size() / 4096, Rng(7));
    if (of_moved && moved.is_empty()) || moved.len() as u64 > blocks / 2 {
        return Err("there are too few blocks of that kind".into());
    }
    let mut places = Vec::new();
    while places.len() < 10_000 {
        let place = rng.below(blocks) * 4096;
        if moved.contains(&place) == of_moved {
            places.push(place);
        }
    }
    counted(&mut disk, &places)
}

/// One read after the other. Has a name of its own in the program.
#[inline(never)]
fn counted(disk: &mut Disk, places: &[u64]) -> Result<(), Box<dyn std::error::Error>> {
    for place in places {
        disk.execute(DiskOp::Read { range: ByteRange::new(*place, 4096), holes: false })?;
    }
    Ok(())
}

const OPTIONS: OpenOptions = OpenOptions {
    read_only: false,
    direct: DirectMode::Auto,
    engine: EngineChoice::Auto,
    queue_depth: 128,
    max_in_flight: 4096,
    // The bare disk and the one with the layer are the same file.
    exclusive: false,
    exact_size: false,
    hand_off: None,
    claim_wait: Duration::ZERO,
};

fn with_spare(
    path: &Path,
    spare: &Path,
    entries: u64,
    pool: &BufferPool,
) -> Result<(Disk, HashSet<u64>), Box<dyn std::error::Error>> {
    let open = |path| Disk::open(path, &OPTIONS, pool);
    let format = SpareFormat {
        id: SpareId([3; 16]),
        unit: 4096,
        slots: None,
        force: true,
        disk_size: 0,
        created: SystemTime::UNIX_EPOCH.elapsed()?.as_secs(),
    };
    format_spare(&mut open(spare)?, None, &OWNER, &format)?;
    let mut disk = open(path)?.with_spares(vec![SpareAt::Disk(Box::new(open(spare)?))], &OWNER)?;
    let moved = move_away(&mut disk, entries)?;
    Ok((disk, moved))
}

fn with_checksums(path: &Path, pool: &BufferPool) -> Result<Disk, Box<dyn std::error::Error>> {
    let disk = Disk::open(path, &OPTIONS, pool)?;
    let sums = PathBuf::from(format!("{}.checksums", path.display()));
    let file = ChecksumFile::create(&sums, OWNER.resource, disk.size(), pool)?;
    let size = disk.size();
    let (mut disk, handle) = disk.with_checksums(size, Some(file));
    fill(&mut disk)?;
    disk.settle_checksums_now(Duration::from_secs(60));
    println!("{} % have checksums", handle.stats().percent());
    Ok(disk)
}

fn compare(
    mut bare_disk: Disk,
    mut with_disk: Disk,
    what: &str,
    rounds: usize,
    pool: &BufferPool,
) -> Result<(), Box<dyn std::error::Error>> {
    for load in LOADS {
        let (mut bare, mut with) = (Vec::new(), Vec::new());
        measure(&mut bare_disk, load, pool, 99)?;
        measure(&mut with_disk, load, pool, 99)?;
        for round in 0..rounds {
            let seed = round as u64 + 1;
            bare.push(measure(&mut bare_disk, load, pool, seed)?);
            with.push(measure(&mut with_disk, load, pool, seed)?);
        }
        let (bare, with) = (median(bare), median(with));
        let ratio = with as f64 / bare as f64;
        println!("{}: bare {bare}, {what} {with} per second, ratio {ratio:.3}", load.name);
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

/// Moves random blocks into the spare, many at a time; where they were.
fn move_away(disk: &mut Disk, entries: u64) -> Result<HashSet<u64>, Box<dyn std::error::Error>> {
    let mut moved = HashSet::new();
    let (blocks, mut rng, mut done) = (disk.size() / 4096, Rng(99), Vec::<Completion>::new());
    let begin = Instant::now();
    while disk.remap_stats().map_or(entries, |stats| stats.mapped) < entries {
        let left = entries - disk.remap_stats().map_or(0, |stats| stats.mapped);
        for _ in 0..left.min(2000) {
            let range = ByteRange::new(rng.below(blocks) * 4096, 4096);
            moved.insert(range.offset);
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
    Ok(moved)
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
