//! A device as the place of a journal: what its table promises when the power fails, and what a real
//! file does.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use bytes::Bytes;
use holdfast_format::journal::DEVICE_DATA_AT;
use holdfast_journal::driver::{Device, Files, Media, RawMedia, open_claimed};
use std::io::ErrorKind;
use std::path::Path;
use support::{CRASHES, Dice, Sim, SimMedia, State, Step};

const FILE: u64 = 16 * 4096;
/// Tables, and room for two files and a half.
const DEVICE: u64 = DEVICE_DATA_AT + FILE * 5 / 2;

/// What an earlier use left in the room of files.
fn used() -> State {
    let mut state = State::default();
    let byte = |at: u64| if at < DEVICE_DATA_AT { 0 } else { 0xee };
    state.add_file("device", (0..DEVICE).map(byte).collect());
    state
}

fn content<M: Media>(device: &Device<M>, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(FILE).unwrap()];
    assert_eq!(device.read(name, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

fn is_all(bytes: &[u8], value: u8) -> bool {
    bytes.iter().all(|byte| *byte == value)
}

fn fill(files: &mut impl Files, name: &str, value: u8) {
    let bytes = Bytes::from(vec![value; usize::try_from(FILE).unwrap()]);
    files.write(name, 0, &[bytes]).unwrap();
    files.sync(name).unwrap();
}

#[test]
fn a_new_file_is_zeroes_whatever_was_there() {
    let sim = Sim::new(used(), false);
    let mut device = Device::format(SimMedia(sim)).unwrap();
    device.create("a", FILE).unwrap();
    assert!(is_all(&content(&device, "a"), 0), "of an earlier use");
    fill(&mut device, "a", 1);
    device.remove("a").unwrap();
    for name in ["b", "c"] {
        device.create(name, FILE).unwrap();
        assert!(is_all(&content(&device, name), 0), "{name}: of another file");
    }
}

#[test]
fn a_file_of_the_durable_table_keeps_its_content_until_the_table_is_another() {
    let mut dice = Dice::new(1);
    for through in [false, true] {
        let sim = Sim::new(used(), through);
        let mut device = Device::format(SimMedia(sim.clone())).unwrap();
        for (name, value) in [("a", 1), ("b", 2)] {
            device.create(name, FILE).unwrap();
            fill(&mut device, name, value);
        }
        device.sync_dir().unwrap();
        let from = sim.0.borrow().steps.len();
        // There is only the room of one that was given up, which then holds something else.
        device.remove("a").unwrap();
        device.create("c", FILE).unwrap();
        fill(&mut device, "c", 3);
        device.rename("c", "d").unwrap();
        device.sync_dir().unwrap();
        let (mut old, mut new) = (0, 0);
        let tracing = sim.0.borrow();
        let mut state = tracing.start.clone();
        for (n, step) in tracing.steps.iter().enumerate() {
            state.apply(step);
            if n < from || !matches!(step, Step::Write(..) | Step::Sync(_) | Step::Through(_)) {
                continue;
            }
            for crash in [CRASHES, CRASHES].concat() {
                let after = Sim::new(state.crash(crash, &mut dice), through);
                let device = Device::open(SimMedia(after)).expect("a crash is no damage");
                let names = device.list().unwrap();
                assert!(is_all(&content(&device, "b"), 2), "nobody touched it");
                for name in names.iter().filter(|name| *name == "a") {
                    assert!(is_all(&content(&device, name), 1), "its room was used too early");
                    old += 1;
                }
                for name in names.iter().filter(|name| *name == "d") {
                    assert!(is_all(&content(&device, name), 3), "it was durable before its name");
                    new += 1;
                }
            }
        }
        assert!(old > 0 && new > 0, "{old} and {new}");
    }
}

fn file_of(dir: &Path, len: u64, byte: u8) -> std::path::PathBuf {
    let path = dir.join("device");
    std::fs::write(&path, vec![byte; usize::try_from(len).unwrap()]).unwrap();
    path
}

#[test]
fn a_real_file_is_claimed_keeps_its_names_and_is_given_free() {
    let scratch = tempfile::tempdir().unwrap();
    let path = file_of(scratch.path(), DEVICE, 0);
    assert_eq!(open_claimed(&path).err().unwrap().kind(), ErrorKind::NotFound);
    let media = RawMedia::open(&path, true).unwrap();
    assert!(Device::is_blank(&media).unwrap());
    let mut device = Device::format(media).unwrap();
    assert_eq!(RawMedia::open(&path, true).err().unwrap().kind(), ErrorKind::WouldBlock);
    device.create("a", FILE).unwrap();
    fill(&mut device, "a", 1);
    device.sync_dir().unwrap();
    drop(device);
    let files = open_claimed(&path).unwrap();
    assert_eq!(files.list().unwrap(), ["a"]);
    drop(files);
    assert!(!Device::is_blank(&RawMedia::open(&path, true).unwrap()).unwrap());
    // A device that has become shorter.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(DEVICE - 4096).unwrap();
    assert_eq!(open_claimed(&path).err().unwrap().kind(), ErrorKind::InvalidData);
    file.set_len(DEVICE + 4096).unwrap();
    let mut device = Device::open(RawMedia::open(&path, true).unwrap()).unwrap();
    device.create("end", FILE * 3 / 2 + 4096).unwrap();
    let bytes = vec![1; usize::try_from(FILE * 3 / 2 + 4096).unwrap()];
    device.write("end", 0, &[Bytes::from(bytes)]).unwrap();
    device.wipe().unwrap();
    assert!(Device::is_blank(&RawMedia::open(&path, true).unwrap()).unwrap());
    assert_eq!(open_claimed(&path).err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn somebody_elses_data_are_no_journal() {
    let scratch = tempfile::tempdir().unwrap();
    let path = file_of(scratch.path(), DEVICE, 7);
    assert_eq!(open_claimed(&path).err().unwrap().kind(), ErrorKind::InvalidData);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    file.set_len(DEVICE).unwrap();
    assert!(Device::is_blank(&RawMedia::open(&path, true).unwrap()).unwrap());
    // As an array's superblock, or metadata of a resource.
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", DEVICE - 4096).unwrap();
    assert!(!Device::is_blank(&RawMedia::open(&path, true).unwrap()).unwrap());
}

#[test]
fn a_file_made_apart_is_zeroes_and_nobody_writes_behind_the_end() {
    let scratch = tempfile::tempdir().unwrap();
    let path = file_of(scratch.path(), DEVICE, 0xee);
    let mut device = Device::format(RawMedia::open(&path, true).unwrap()).unwrap();
    let make = device.create_apart("a", FILE).unwrap().unwrap();
    make().unwrap();
    assert!(is_all(&content(&device, "a"), 0));
    fill(&mut device, "a", 1);
    device.sync_dir().unwrap();
    let late = device.create_apart("b", FILE).unwrap().unwrap();
    drop(device);
    let mut device = Device::open(RawMedia::open(&path, true).expect("it is free")).unwrap();
    device.create("c", FILE).unwrap();
    fill(&mut device, "c", 3);
    assert_eq!(late().unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(is_all(&content(&device, "c"), 3) && is_all(&content(&device, "a"), 1));
}
