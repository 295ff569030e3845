//! Putting our values into `fuser`'s.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::node::{Ino, Kind, Stat, Timestamp};

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

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
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
