//! Operations on a file of a layer through an `O_PATH` descriptor, which every type of file has without side effects.
//!
//! Where the kernel refuses those (EBADF), as it does for attributes, there is a path in `/proc`, by which it takes several
//! times as long. So what may be open is tried first.

use std::fmt::Write as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, StatxFlags, StatxTimestamp, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::Result;
use crate::node::{Device, Ino, Kind, Stat, Timestamp, kind_of, permission_bits};

/// What a filesystem says about one of its files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStat {
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    /// The filesystem.
    pub(crate) device: u64,
    /// What a device node stands for.
    pub(crate) stands_for: Device,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) birth: Option<Timestamp>,
}

/// Which file it is, as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) ino: u64,
}

pub(crate) fn stat(fd: BorrowedFd<'_>) -> Result<RawStat> {
    stat_at(fd, b"", AtFlags::EMPTY_PATH)
}

/// Asks about `name` in `dir` without following it.
pub(crate) fn stat_name(dir: BorrowedFd<'_>, name: &[u8]) -> Result<RawStat> {
    stat_at(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn stat_at(dir: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> Result<RawStat> {
    let raw = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let time = |time: StatxTimestamp| Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    let has_birth = StatxFlags::from_bits_retain(raw.stx_mask).contains(StatxFlags::BTIME);
    Ok(RawStat {
        mode: raw.stx_mode.into(),
        nlink: raw.stx_nlink,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        ino: raw.stx_ino,
        size: raw.stx_size,
        blocks: raw.stx_blocks,
        block_size: raw.stx_blksize,
        device: rustix::fs::makedev(raw.stx_dev_major, raw.stx_dev_minor),
        stands_for: Device { major: raw.stx_rdev_major, minor: raw.stx_rdev_minor },
        atime: time(raw.stx_atime),
        mtime: time(raw.stx_mtime),
        ctime: time(raw.stx_ctime),
        birth: has_birth.then(|| time(raw.stx_btime)),
    })
}

pub(crate) fn identity(raw: &RawStat) -> Identity {
    Identity { device: raw.device, ino: raw.ino }
}

pub(crate) fn kind(raw: &RawStat) -> Result<Kind> {
    kind_of(raw.mode).ok_or(Errno::IO)
}

/// Returns whether this is the character device 0:0 that says "deleted".
pub(crate) fn is_whiteout(raw: &RawStat) -> bool {
    raw.mode & libc::S_IFMT == libc::S_IFCHR && raw.stands_for == Device::default()
}

/// Puts it in our form under the number that users see.
pub(crate) fn to_stat(raw: &RawStat, ino: Ino) -> Result<Stat> {
    Ok(Stat {
        ino,
        kind: kind(raw)?,
        permissions: permission_bits(raw.mode),
        nlink: raw.nlink,
        uid: raw.uid,
        gid: raw.gid,
        size: raw.size,
        blocks: raw.blocks,
        block_size: raw.block_size,
        device: raw.stands_for,
        atime: raw.atime,
        mtime: raw.mtime,
        ctime: raw.ctime,
        birth: raw.birth,
    })
}

/// Opens the file again, for reading or writing.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(magic_link(fd), flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::empty())
}

/// Changes the permission bits; not for symbolic links.
pub(crate) fn set_permissions(fd: BorrowedFd<'_>, permissions: u16) -> Result<()> {
    match strata_sys::file_mode::set(fd, permissions.into()) {
        Ok(()) => Ok(()),
        // Before Linux 6.6, or where a filter does not know the call.
        Err(_) => rustix::fs::chmod(magic_link(fd), Mode::from_raw_mode(permissions.into())),
    }
}

pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    rustix::fs::chownat(fd, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

pub(crate) fn set_times(fd: BorrowedFd<'_>, times: &Timestamps) -> Result<()> {
    match rustix::fs::utimensat(fd, "", times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8.
        Err(Errno::INVAL | Errno::NOENT) => {
            rustix::fs::utimensat(rustix::fs::CWD, magic_link(fd), times, AtFlags::empty())
        }
        result => result,
    }
}

/// Sets access and modification time to fixed moments.
pub(crate) fn restore_times(fd: BorrowedFd<'_>, atime: Timestamp, mtime: Timestamp) -> Result<()> {
    let time = |time: Timestamp| rustix::fs::Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    set_times(fd, &Timestamps { last_access: time(atime), last_modification: time(mtime) })
}

pub(crate) fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(fd, "", Vec::new())?.into_bytes())
}

/// Returns the value of an attribute, or `None` if there is none or the filesystem has no such thing.
pub(crate) fn xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let get = |value: &mut [u8]| match rustix::fs::fgetxattr(fd, name, &mut *value) {
        Err(Errno::BADF) => rustix::fs::getxattr(magic_link(fd), name, value),
        result => result,
    };
    let mut small = [0; 256];
    match get(&mut small) {
        Ok(length) => return Ok(Some(small[..length].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut value = vec![0; MAX_XATTR];
    match get(&mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the names of the attributes, each ended by a zero byte.
pub(crate) fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let list = |names: &mut [u8]| match rustix::fs::flistxattr(fd, &mut *names) {
        Err(Errno::BADF) => rustix::fs::listxattr(magic_link(fd), names),
        result => result,
    };
    let mut small = [0; 512];
    match list(&mut small) {
        Ok(length) => return Ok(small[..length].to_vec()),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut names = vec![0; MAX_XATTR];
    let length = list(&mut names)?;
    names.truncate(length);
    Ok(names)
}

pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
    match rustix::fs::fsetxattr(fd, name, value, flags) {
        Err(Errno::BADF) => rustix::fs::setxattr(magic_link(fd), name, value, flags),
        result => result,
    }
}

pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::fremovexattr(fd, name) {
        Err(Errno::BADF) => rustix::fs::removexattr(magic_link(fd), name),
        result => result,
    }
}

/// A path that leads to the open file itself, a symbolic link not followed.
pub(crate) fn magic_link(fd: BorrowedFd<'_>) -> String {
    let mut path = String::with_capacity(24);
    // Writing to a string cannot fail.
    let _ = write!(path, "/proc/self/fd/{}", fd.as_raw_fd());
    path
}

/// Largest value and largest list that the kernel knows.
const MAX_XATTR: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_is_open_as_a_path_is_changed_like_what_is_open() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        std::fs::write(&path, "").unwrap();
        let moment = Timestamp { seconds: -7, nanoseconds: 9 };
        for (number, flags) in [OFlags::PATH, OFlags::RDWR].into_iter().enumerate() {
            let file = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
            let fd = file.as_fd();
            let permissions = 0o4750 + u16::try_from(number).unwrap();
            set_permissions(fd, permissions).unwrap();
            restore_times(fd, moment, moment).unwrap();
            let raw = stat(fd).unwrap();
            assert_eq!((permission_bits(raw.mode), raw.atime, raw.mtime), (permissions, moment, moment));
            set_xattr(fd, b"user.a", b"value", XattrFlags::CREATE).unwrap();
            assert_eq!(xattr(fd, b"user.a").unwrap().unwrap(), b"value");
            assert_eq!(list_xattrs(fd).unwrap(), b"user.a\0");
            remove_xattr(fd, b"user.a").unwrap();
            assert_eq!(xattr(fd, b"user.a").unwrap(), None);
        }
    }

    #[test]
    fn a_symbolic_link_has_no_permissions_to_change() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link")).unwrap();
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let link = rustix::fs::open(temp.path().join("link"), flags, Mode::empty()).unwrap();
        let file = rustix::fs::open(temp.path().join("file"), flags, Mode::empty()).unwrap();
        let before = stat(file.as_fd()).unwrap().mode;
        assert_eq!(set_permissions(link.as_fd(), 0o777), Err(Errno::OPNOTSUPP));
        assert_eq!(stat(file.as_fd()).unwrap().mode, before);
    }
}
