//! What the kernel's `linux/ublk_cmd.h` and `linux/ioctl.h` say, as far as it is used here.
#![allow(unsafe_code)]

use std::mem::offset_of;

/// Commands on `/dev/ublk-control`, by their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    GetDeviceInfo,
    AddDevice,
    DeleteDevice,
    StartDevice,
    StopDevice,
    SetParams,
    StartRecovery,
    EndRecovery,
    GetFeatures,
    DeleteDeviceAsync,
    UpdateSize,
    TryStopDevice,
}

impl Command {
    const fn number(self) -> u32 {
        match self {
            Self::GetDeviceInfo => 0x02,
            Self::AddDevice => 0x04,
            Self::DeleteDevice => 0x05,
            Self::StartDevice => 0x06,
            Self::StopDevice => 0x07,
            Self::SetParams => 0x08,
            Self::StartRecovery => 0x10,
            Self::EndRecovery => 0x11,
            Self::GetFeatures => 0x13,
            Self::DeleteDeviceAsync => 0x14,
            Self::UpdateSize => 0x15,
            Self::TryStopDevice => 0x17,
        }
    }

    /// Whether the encoding says that the kernel only reads of the device.
    const fn only_reads(self) -> bool {
        matches!(self, Self::GetDeviceInfo | Self::GetFeatures | Self::DeleteDeviceAsync)
    }

    /// The command as the kernel wants it: since Linux 6.4 encoded like an ioctl, before as the
    /// bare number.
    pub(crate) const fn code(self, encoded: bool) -> u32 {
        if !encoded {
            return self.number();
        }
        let direction = if self.only_reads() { IOC_READ } else { IOC_READ | IOC_WRITE };
        ioctl_code(direction, self.number(), CONTROL_SIZE)
    }

    /// The name in the kernel's header, for messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::GetDeviceInfo => "GET_DEV_INFO",
            Self::AddDevice => "ADD_DEV",
            Self::DeleteDevice => "DEL_DEV",
            Self::StartDevice => "START_DEV",
            Self::StopDevice => "STOP_DEV",
            Self::SetParams => "SET_PARAMS",
            Self::StartRecovery => "START_USER_RECOVERY",
            Self::EndRecovery => "END_USER_RECOVERY",
            Self::GetFeatures => "GET_FEATURES",
            Self::DeleteDeviceAsync => "DEL_DEV_ASYNC",
            Self::UpdateSize => "UPDATE_SIZE",
            Self::TryStopDevice => "TRY_STOP_DEV",
        }
    }
}

/// Commands of a queue on `/dev/ublkcN`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IoCommand {
    Fetch,
    CommitAndFetch,
}

impl IoCommand {
    /// As [`Command::code`].
    pub(crate) const fn code(self, encoded: bool) -> u32 {
        let number = match self {
            Self::Fetch => 0x20,
            Self::CommitAndFetch => 0x21,
        };
        if encoded { ioctl_code(IOC_READ | IOC_WRITE, number, IO_SIZE) } else { number }
    }
}

const IOC_WRITE: u32 = 1;
const IOC_READ: u32 = 2;
const CONTROL_SIZE: u32 = 32;
const IO_SIZE: u32 = 16;

/// `_IOC(direction, 'u', number, size)` as on every machine that Holdfast runs on.
const fn ioctl_code(direction: u32, number: u32, size: u32) -> u32 {
    (direction << 30) | (size << 16) | ((b'u' as u32) << 8) | number
}

/// What a device can do (`UBLK_F_...`).
pub(crate) mod feature {
    pub(crate) const USER_RECOVERY: u64 = 1 << 3;
    pub(crate) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    pub(crate) const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    pub(crate) const USER_COPY: u64 = 1 << 7;
    pub(crate) const UPDATE_SIZE: u64 = 1 << 10;
}

/// The state of a device (`UBLK_S_DEV_...`).
pub(crate) mod state {
    pub(crate) const DEAD: u16 = 0;
    pub(crate) const LIVE: u16 = 1;
}

/// Operations and flags in [`IoDescriptor::op_flags`].
pub(crate) mod op {
    pub(crate) const MASK: u32 = 0xff;
    pub(crate) const READ: u32 = 0;
    pub(crate) const WRITE: u32 = 1;
    pub(crate) const FLUSH: u32 = 2;
    pub(crate) const DISCARD: u32 = 3;
    pub(crate) const WRITE_ZEROES: u32 = 5;
    pub(crate) const FUA: u32 = 1 << 13;
    pub(crate) const NO_UNMAP: u32 = 1 << 15;
}

/// The attributes in [`BasicParams::attributes`].
pub(crate) mod attribute {
    pub(crate) const READ_ONLY: u32 = 1;
    pub(crate) const VOLATILE_CACHE: u32 = 1 << 2;
    pub(crate) const FUA: u32 = 1 << 3;
}

/// What is set in [`Params::types`].
pub(crate) mod param {
    pub(crate) const BASIC: u32 = 1;
    pub(crate) const DISCARD: u32 = 1 << 1;
}

/// Says "all queues", or "any number", where one is expected.
pub(crate) const NO_QUEUE: u16 = u16::MAX;

/// How far the descriptors of two queues are apart in `/dev/ublkcN`: those of the deepest queue.
const QUEUE_STRIDE: u64 = 4096 * size_of::<IoDescriptor>() as u64;
/// Where the data of requests begin in `/dev/ublkcN`.
const DATA_OFFSET: u64 = 0x8000_0000;
const TAG_SHIFT: u32 = 25;
const QUEUE_SHIFT: u32 = 41;

/// Where the descriptors of a queue are in `/dev/ublkcN`.
pub(crate) fn descriptors_offset(queue: u16) -> u64 {
    u64::from(queue) * QUEUE_STRIDE
}

/// Where the data of a request are in `/dev/ublkcN`, for devices with [`feature::USER_COPY`].
pub(crate) fn data_offset(queue: u16, tag: u16) -> u64 {
    DATA_OFFSET + (u64::from(queue) << QUEUE_SHIFT) + (u64::from(tag) << TAG_SHIFT)
}

/// A structure of numbers without padding: any bytes are one.
///
/// # Safety
/// The type must be `repr(C)`, have no padding, and be valid for every pattern of bits.
pub(crate) unsafe trait Plain: Copy {}

/// `struct ublksrv_ctrl_cmd`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ControlCommand {
    pub(crate) device: u32,
    pub(crate) queue: u16,
    pub(crate) length: u16,
    pub(crate) address: u64,
    pub(crate) data: u64,
    pub(crate) path_length: u16,
    pub(crate) pad: u16,
    pub(crate) reserved: u32,
}

impl ControlCommand {
    /// As it stands in the first bytes of a submission.
    pub(crate) fn bytes(&self) -> [u8; 80] {
        let mut out = [0; 80];
        out[0..4].copy_from_slice(&self.device.to_ne_bytes());
        out[4..6].copy_from_slice(&self.queue.to_ne_bytes());
        out[6..8].copy_from_slice(&self.length.to_ne_bytes());
        out[8..16].copy_from_slice(&self.address.to_ne_bytes());
        out[16..24].copy_from_slice(&self.data.to_ne_bytes());
        out[24..26].copy_from_slice(&self.path_length.to_ne_bytes());
        out
    }
}

const _: () = {
    assert!(size_of::<ControlCommand>() == CONTROL_SIZE as usize);
    assert!(offset_of!(ControlCommand, queue) == 4);
    assert!(offset_of!(ControlCommand, length) == 6);
    assert!(offset_of!(ControlCommand, address) == 8);
    assert!(offset_of!(ControlCommand, data) == 16);
    assert!(offset_of!(ControlCommand, path_length) == 24);
    assert!(offset_of!(ControlCommand, reserved) == 28);
};

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(crate) struct DeviceInfo {
    pub(crate) queues: u16,
    pub(crate) depth: u16,
    pub(crate) state: u16,
    pub(crate) pad0: u16,
    pub(crate) max_io_bytes: u32,
    pub(crate) id: u32,
    pub(crate) server_pid: i32,
    pub(crate) pad1: u32,
    pub(crate) flags: u64,
    /// The kernel keeps it and does not look at it.
    pub(crate) token: u64,
    pub(crate) owner_uid: u32,
    pub(crate) owner_gid: u32,
    pub(crate) reserved: [u64; 2],
}

// SAFETY: `repr(C)`, numbers only; 64 bytes, the sum of its fields, so there is no padding.
unsafe impl Plain for DeviceInfo {}

const _: () = {
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(offset_of!(DeviceInfo, state) == 4);
    assert!(offset_of!(DeviceInfo, max_io_bytes) == 8);
    assert!(offset_of!(DeviceInfo, id) == 12);
    assert!(offset_of!(DeviceInfo, server_pid) == 16);
    assert!(offset_of!(DeviceInfo, flags) == 24);
    assert!(offset_of!(DeviceInfo, token) == 32);
    assert!(offset_of!(DeviceInfo, owner_uid) == 40);
    assert!(offset_of!(DeviceInfo, reserved) == 48);
};

// SAFETY: a number.
unsafe impl Plain for u64 {}

/// `struct ublk_param_basic`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(crate) struct BasicParams {
    pub(crate) attributes: u32,
    pub(crate) logical_block_shift: u8,
    pub(crate) physical_block_shift: u8,
    pub(crate) optimal_io_shift: u8,
    pub(crate) minimum_io_shift: u8,
    pub(crate) max_sectors: u32,
    pub(crate) chunk_sectors: u32,
    pub(crate) sectors: u64,
    pub(crate) boundary_mask: u64,
}

/// `struct ublk_param_discard`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(crate) struct DiscardParams {
    pub(crate) alignment: u32,
    pub(crate) granularity: u32,
    pub(crate) max_sectors: u32,
    pub(crate) max_zeroes_sectors: u32,
    pub(crate) max_segments: u16,
    pub(crate) reserved: u16,
}

/// The first parts of `struct ublk_params`, those that Linux 6.0 knows. `length` says how much of
/// it there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) length: u32,
    pub(crate) types: u32,
    pub(crate) basic: BasicParams,
    pub(crate) discard: DiscardParams,
    pub(crate) unused: u32,
}

// SAFETY: `repr(C)`, numbers only; 64 bytes, the sum of its fields (with `unused`), so there is no
// padding.
unsafe impl Plain for Params {}

/// How much of [`Params`] the kernel is told of.
pub(crate) const PARAMS_LENGTH: u32 = 60;

const _: () = {
    assert!(size_of::<BasicParams>() == 32);
    assert!(offset_of!(BasicParams, logical_block_shift) == 4);
    assert!(offset_of!(BasicParams, max_sectors) == 8);
    assert!(offset_of!(BasicParams, sectors) == 16);
    assert!(offset_of!(BasicParams, boundary_mask) == 24);
    assert!(size_of::<DiscardParams>() == 20);
    assert!(offset_of!(DiscardParams, max_segments) == 16);
    assert!(size_of::<Params>() == 64);
    assert!(offset_of!(Params, basic) == 8);
    assert!(offset_of!(Params, discard) == 40);
    assert!(offset_of!(Params, unused) == PARAMS_LENGTH as usize);
};

/// `struct ublksrv_io_desc`: a request, in memory that the kernel shares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct IoDescriptor {
    pub(crate) op_flags: u32,
    pub(crate) sectors: u32,
    pub(crate) start_sector: u64,
    pub(crate) address: u64,
}

const _: () = {
    assert!(size_of::<IoDescriptor>() == 24);
    assert!(offset_of!(IoDescriptor, sectors) == 4);
    assert!(offset_of!(IoDescriptor, start_sector) == 8);
    assert!(offset_of!(IoDescriptor, address) == 16);
};

/// `struct ublksrv_io_cmd`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct IoAnswer {
    pub(crate) queue: u16,
    pub(crate) tag: u16,
    pub(crate) result: i32,
    /// The buffer for the data of the next request; 0 for devices with [`feature::USER_COPY`].
    pub(crate) address: u64,
}

impl IoAnswer {
    /// As it stands in a submission.
    pub(crate) fn bytes(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[0..2].copy_from_slice(&self.queue.to_ne_bytes());
        out[2..4].copy_from_slice(&self.tag.to_ne_bytes());
        out[4..8].copy_from_slice(&self.result.to_ne_bytes());
        out[8..16].copy_from_slice(&self.address.to_ne_bytes());
        out
    }
}

const _: () = {
    assert!(size_of::<IoAnswer>() == IO_SIZE as usize);
    assert!(offset_of!(IoAnswer, tag) == 2);
    assert!(offset_of!(IoAnswer, result) == 4);
    assert!(offset_of!(IoAnswer, address) == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_encoded_as_the_kernel_has_them() {
        let expected = [
            (Command::GetDeviceInfo, 0x02, 0x8020_7502),
            (Command::AddDevice, 0x04, 0xc020_7504),
            (Command::DeleteDevice, 0x05, 0xc020_7505),
            (Command::StartDevice, 0x06, 0xc020_7506),
            (Command::StopDevice, 0x07, 0xc020_7507),
            (Command::SetParams, 0x08, 0xc020_7508),
            (Command::StartRecovery, 0x10, 0xc020_7510),
            (Command::EndRecovery, 0x11, 0xc020_7511),
            (Command::GetFeatures, 0x13, 0x8020_7513),
            (Command::DeleteDeviceAsync, 0x14, 0x8020_7514),
            (Command::UpdateSize, 0x15, 0xc020_7515),
            (Command::TryStopDevice, 0x17, 0xc020_7517),
        ];
        for (command, bare, encoded) in expected {
            assert_eq!(command.code(false), bare, "{command:?}");
            assert_eq!(command.code(true), encoded, "{command:?}");
        }
        assert_eq!(IoCommand::Fetch.code(false), 0x20);
        assert_eq!(IoCommand::Fetch.code(true), 0xc010_7520);
        assert_eq!(IoCommand::CommitAndFetch.code(true), 0xc010_7521);
    }

    #[test]
    fn submissions_have_every_field_in_its_place() {
        let command = ControlCommand {
            device: 0x0403_0201,
            queue: 0x0605,
            length: 0x0807,
            address: 0x100f_0e0d_0c0b_0a09,
            data: 0x1817_1615_1413_1211,
            path_length: 0x1a19,
            pad: 0,
            reserved: 0,
        };
        let bytes = command.bytes();
        assert!(bytes[..26].iter().copied().eq(1..=26));
        assert_eq!(bytes[26..], [0; 54]);
        let answer =
            IoAnswer { queue: 0x0201, tag: 0x0403, result: 0x0807_0605, address: 0x0b0a_0900 };
        assert_eq!(answer.bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 10, 11, 0, 0, 0, 0]);
    }

    #[test]
    fn places_in_the_character_device() {
        assert_eq!(descriptors_offset(0), 0);
        assert_eq!(descriptors_offset(2), 2 * 4096 * 24);
        assert_eq!(descriptors_offset(1) % 4096, 0);
        assert_eq!(data_offset(0, 0), 0x8000_0000);
        assert_eq!(data_offset(1, 2), 0x8000_0000 + (1 << 41) + (2 << 25));
    }
}
