//! Real devices: needs root and the driver, and says so when they are missing.

// The lint looks away in test functions only, and the helpers are outside of them.
#![allow(clippy::unwrap_used)]

use holdfast_ublk::{DeviceSpec, Op, Request, Stopped, Target, UblkDevice, is_free, obstacle};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

const SIZE: usize = 16 << 20;

/// Answers at once, on the thread that asks.
struct Memory(Mutex<Vec<u8>>);

impl Target for Memory {
    fn submit(&self, request: Request) {
        let mut data = self.0.lock().unwrap();
        let span = |offset: u64, length: u64| {
            let start = usize::try_from(offset).unwrap();
            start..start + usize::try_from(length).unwrap()
        };
        let result = match request.op() {
            Op::Read { offset, length } => {
                request.write_data(&data[span(offset, u64::from(length))])
            }
            Op::Write { offset, length, .. } => {
                request.read_data(&mut data[span(offset, u64::from(length))])
            }
            Op::WriteZeroes { offset, length, .. } => {
                data[span(offset, length)].fill(0);
                Ok(())
            }
            Op::Flush | Op::Discard { .. } => Ok(()),
        };
        request.answer(result);
    }
}

fn create(user_copy: bool) -> (UblkDevice, Arc<Memory>) {
    let memory = Arc::new(Memory(Mutex::new(vec![0; SIZE])));
    let spec = DeviceSpec {
        queues: 4,
        depth: 32,
        max_io_bytes: 1 << 20,
        size: SIZE as u64,
        block_size: 512,
        read_only: false,
        token: 77,
        user_copy,
    };
    let target = Arc::clone(&memory) as Arc<dyn Target>;
    for id in (0..64).filter(|id| is_free(*id)) {
        match UblkDevice::create(id, &spec, &target) {
            Ok(device) => return (device, memory),
            Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no number is free");
}

#[test]
fn data_arrive_by_both_ways_of_copying() {
    if let Some(reason) = obstacle() {
        println!("skipped: {reason}");
        return;
    }
    for user_copy in [true, false] {
        let (mut device, memory) = create(user_copy);
        assert!(device.survives());
        let node = PathBuf::from(format!("/dev/{}", device.name()));
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&node)
            .unwrap();
        let mut buffer = vec![0_u8; (2 << 20) + 4096];
        let skip = buffer.as_ptr().align_offset(4096);
        for (turn, length) in (1_u8..).zip([512, 4096, 1 << 20, 2 << 20]) {
            let data = &mut buffer[skip..skip + length];
            for (at, byte) in data.iter_mut().enumerate() {
                *byte = (at / 512 + at) as u8 ^ turn;
            }
            let expected = data.to_vec();
            file.write_all_at(data, 1 << 20).unwrap();
            assert!(memory.0.lock().unwrap()[1 << 20..][..length] == expected, "{length} written");
            data.fill(0);
            file.read_exact_at(data, 1 << 20).unwrap();
            assert!(data == expected, "{length} read, user copy {user_copy}");
        }
        file.sync_all().unwrap();
        drop(file);
        assert_eq!(device.stop().unwrap(), Stopped::Gone);
        assert!(!node.exists());
    }
}
