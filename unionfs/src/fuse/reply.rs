//! Putting our values into `fuser`'s.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::node::{Device, Kind, Stat, Timestamp};

/// How long the kernel may keep what it was told: until it is told otherwise.
///
/// As large as the kernel's arithmetic allows, so that it never expires.
pub(super) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Turns our errno into `fuser`'s: the one place where the operations' errors leave the union.
pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

pub(super) fn attributes(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino.0),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: stat.permissions,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: device_number(stat.device.major, stat.device.minor),
        blksize: stat.block_size,
        flags: 0,
    }
}

/// The attributes of "there is no such name": inode number 0, which may be cached like any other answer.
pub(super) fn absent() -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Regular => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// Returns the moment that the kernel meant.
///
/// For moments before 1970, `fuser` subtracts the nanoseconds where it has to add them.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanoseconds: after.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            Timestamp { seconds, nanoseconds: before.subsec_nanos() }
        }
    }
}

/// Unpacks a device number.
pub(super) fn device(number: u32) -> Device {
    Device { major: (number >> 8) & 0xfff, minor: (number & 0xff) | ((number >> 12) & 0xfff00) }
}

/// Returns the moment, or the nearest one that `SystemTime` can hold.
fn system_time(time: Timestamp) -> SystemTime {
    let nanoseconds = Duration::from_nanos(time.nanoseconds.min(999_999_999).into());
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let seconds = if time.seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    };
    seconds.and_then(|seconds| seconds.checked_add(nanoseconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Packs a device number as the FUSE protocol does (`new_encode_dev`).
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_packing() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 300_000), (4095, 0xf_ffff)] {
            assert_eq!(device(device_number(major, minor)), Device { major, minor });
        }
    }

    #[test]
    fn moments_out_of_range_do_not_panic() {
        for seconds in [i64::MIN, -1, 0, 1, i64::MAX] {
            system_time(Timestamp { seconds, nanoseconds: u32::MAX });
        }
    }

    #[test]
    fn moments_before_1970_keep_their_nanoseconds() {
        let as_fuser_says = SystemTime::UNIX_EPOCH - Duration::new(2, 500);
        assert_eq!(timestamp(as_fuser_says), Timestamp { seconds: -2, nanoseconds: 500 });
    }
}
