//! `tmpcopyup`: a memory filesystem that begins with what the root has at its place.

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, chownat, fchmod, fchown, fstat, futimens, major,
    makedev, minor, mkdirat, mknodat, openat, readlinkat, symlinkat, utimensat,
};

use crate::rooted;

/// Copies what is in the directory `path` of the root, which nobody uses yet, into a filesystem that is not mounted yet.
/// Without such a directory there is nothing to copy.
pub(crate) fn fill(target: BorrowedFd<'_>, root: BorrowedFd<'_>, path: &CString) -> io::Result<()> {
    let source = match rooted::open(root, path.as_c_str(), OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        result => result?,
    };
    let target = openat(target, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    copy_directory(&source, &target, 0)
}

fn copy_directory(source: &OwnedFd, target: &OwnedFd, depth: u32) -> io::Result<()> {
    // An image decides how deep this goes.
    if depth > MAX_DEPTH {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let handle = openat(source, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&handle)?;
        let open = |flags| openat(source, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(target, name, Mode::RWXU)?;
                let made = openat(target, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                copy_directory(&open(OFlags::RDONLY | OFlags::DIRECTORY)?, &made, depth + 1)?;
                give(&made, &stat)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut made = std::fs::File::from(openat(target, name, flags, Mode::RUSR | Mode::WUSR)?);
                io::copy(&mut std::fs::File::from(open(OFlags::RDONLY | OFlags::NONBLOCK)?), &mut made)?;
                give(&OwnedFd::from(made), &stat)?;
            }
            FileType::Symlink => {
                symlinkat(readlinkat(&handle, c"", Vec::new())?, target, name)?;
                give_name(target, name, &stat)?;
            }
            kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                mknodat(target, name, kind, mode, makedev(major(stat.st_rdev), minor(stat.st_rdev)))?;
                give_name(target, name, &stat)?;
            }
            // A socket without its program is nothing.
            _ => {}
        }
    }
    // The mount point looks as what it covers.
    give(target, &fstat(source)?)
}

fn give(file: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    fchown(file, Some(uid), Some(gid))?;
    fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(futimens(file, &times(stat))?)
}

fn give_name(folder: &OwnedFd, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(folder, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    Timestamps { last_access: time, last_modification: time }
}

const MAX_DEPTH: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_tree_arrives_with_its_attributes() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        std::fs::create_dir_all(path("root/etc/deep")).unwrap();
        std::fs::create_dir(path("target")).unwrap();
        std::fs::write(path("root/etc/deep/file"), "content").unwrap();
        std::fs::set_permissions(path("root/etc/deep/file"), PermissionsExt::from_mode(0o640)).unwrap();
        std::fs::set_permissions(path("root/etc"), PermissionsExt::from_mode(0o1750)).unwrap();
        std::os::unix::fs::symlink("/etc/deep", path("root/etc/link")).unwrap();
        std::os::unix::fs::symlink("etc", path("root/alias")).unwrap();
        let open = |name: &str| OwnedFd::from(std::fs::File::open(path(name)).unwrap());
        fill(open("target").as_fd(), open("root").as_fd(), &c"alias".to_owned()).unwrap();
        assert_eq!(std::fs::read_to_string(path("target/deep/file")).unwrap(), "content");
        assert_eq!(path("target/deep/file").metadata().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(path("target").metadata().unwrap().mode() & 0o7777, 0o1750);
        assert_eq!(std::fs::read_link(path("target/link")).unwrap().to_str(), Some("/etc/deep"));
        // Nothing there is nothing to copy.
        fill(open("target").as_fd(), open("root").as_fd(), &c"none".to_owned()).unwrap();
    }
}
