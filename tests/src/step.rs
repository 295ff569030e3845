//! One thing that a program does to a tree, for doing it to two trees and comparing the answers.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Something that a program does. Paths are relative to the root of the tree and may end with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opens; writes the text if that is allowed, reads all if that is.
    Open(String, OFlags, &'static str),
    /// truncate(2).
    Truncate(String, u64),
    /// chmod(2).
    Chmod(String, u32),
    /// lchown(2) to this user and group.
    Chown(String, u32),
    /// Sets both times to this second; follows links.
    Touch(String, i64),
    /// Sets `user.step`; follows links.
    SetXattr(String, &'static str),
    /// Takes `user.step` away.
    RemoveXattr(String),
    /// link(2): old and new name; a symbolic link itself is linked.
    Link(String, String),
    /// renameat2(2).
    Rename(String, String, RenameFlags),
    /// unlink(2).
    Unlink(String),
    /// rmdir(2).
    Rmdir(String),
    /// mkdir(2).
    Mkdir(String),
    /// symlink(2): target and name.
    Symlink(String, String),
    /// mkfifo(3).
    Fifo(String),
    /// mknod(2) of a character device 1:3.
    Device(String),
    /// readlink(2).
    ReadLink(String),
    /// The sorted names in a folder.
    List(String),
    /// Opens, deletes, and goes on with the descriptor.
    DeleteOpen(String),
    /// Deletes with everything below.
    RemoveAll(String),
}

impl Step {
    /// Does it below `root`; returns what a program would see.
    pub fn apply(&self, root: &Path) -> Result<String, Errno> {
        let at = |path: &str| root.join(path);
        let nothing = |()| String::new();
        match self {
            Step::Open(path, flags, text) => open(&at(path), *flags, text),
            Step::Truncate(path, length) => truncate(&at(path), *length).map(nothing),
            Step::Chmod(path, mode) => rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode)).map(nothing),
            Step::Chown(path, id) => {
                let (user, group) = (Uid::from_raw(*id), Gid::from_raw(*id));
                rustix::fs::chownat(CWD, at(path), Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map(nothing)
            }
            Step::Touch(path, second) => {
                let time = Timespec { tv_sec: *second, tv_nsec: 0 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, at(path), &times, AtFlags::empty())?;
                let found = rustix::fs::stat(at(path))?;
                Ok(format!("{} {}", found.st_atime, found.st_mtime))
            }
            Step::SetXattr(path, value) => {
                rustix::fs::setxattr(at(path), ATTRIBUTE, value.as_bytes(), XattrFlags::empty()).map(nothing)
            }
            Step::RemoveXattr(path) => rustix::fs::removexattr(at(path), ATTRIBUTE).map(nothing),
            Step::Link(old, new) => rustix::fs::link(at(old), at(new)).map(nothing),
            Step::Rename(old, new, flags) => rustix::fs::renameat_with(CWD, at(old), CWD, at(new), *flags).map(nothing),
            Step::Unlink(path) => rustix::fs::unlink(at(path)).map(nothing),
            Step::Rmdir(path) => rustix::fs::rmdir(at(path)).map(nothing),
            Step::Mkdir(path) => rustix::fs::mkdir(at(path), Mode::from_raw_mode(0o755)).map(nothing),
            Step::Symlink(target, path) => rustix::fs::symlink(target, at(path)).map(nothing),
            Step::Fifo(path) => make(&at(path), FileType::Fifo, 0).map(nothing),
            Step::Device(path) => make(&at(path), FileType::CharacterDevice, rustix::fs::makedev(1, 3)).map(nothing),
            Step::ReadLink(path) => Ok(rustix::fs::readlink(at(path), Vec::new())?.to_string_lossy().into_owned()),
            Step::List(path) => {
                let entries = fs::read_dir(at(path)).map_err(errno)?;
                let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
                let mut names = names.map_err(errno)?;
                names.sort();
                Ok(format!("{names:?}"))
            }
            Step::DeleteOpen(path) => delete_open(&at(path)),
            Step::RemoveAll(path) => {
                let path = at(path);
                if rustix::fs::lstat(&path)?.st_mode & S_IFMT == S_IFDIR {
                    fs::remove_dir_all(&path).map_err(errno).map(nothing)
                } else {
                    rustix::fs::unlink(&path).map(nothing)
                }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn open(path: &Path, flags: OFlags, text: &str) -> Result<String, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    let found = rustix::fs::fstat(&file)?;
    if found.st_mode & S_IFMT != S_IFREG || flags.contains(OFlags::PATH) {
        return Ok(format!("{:o}", found.st_mode & S_IFMT));
    }
    let mut file = File::from(file);
    let mut seen = String::new();
    if !text.is_empty() {
        match file.write_all(text.as_bytes()) {
            Ok(()) => seen += "written;",
            Err(error) => seen += &format!("{:?};", errno(error)),
        }
    }
    let mut content = String::new();
    match io::Seek::rewind(&mut file).and_then(|()| file.read_to_string(&mut content)) {
        Ok(_) => seen += &content,
        Err(error) => seen += &format!("{:?}", errno(error)),
    }
    Ok(format!("{seen};{}", rustix::fs::fstat(&file)?.st_size))
}

fn truncate(path: &Path, length: u64) -> Result<(), Errno> {
    let length = i64::try_from(length).map_err(|_| Errno::FBIG)?;
    nix::unistd::truncate(path, length).map_err(|error| Errno::from_raw_os_error(error as i32))
}

fn make(path: &Path, kind: FileType, device: u64) -> Result<(), Errno> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)
}

/// What can be done with a file that has lost its name, and with a folder.
fn delete_open(path: &Path) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata().map_err(errno)?;
    if metadata.is_dir() {
        rustix::fs::rmdir(path)?;
        let links = file.metadata().map_err(errno)?.nlink();
        let made = rustix::fs::mkdirat(&file, "made", Mode::RWXU);
        return Ok(format!("{links} {made:?}"));
    }
    rustix::fs::unlink(path)?;
    let after = file.metadata().map_err(errno)?;
    let mut content = String::new();
    if metadata.is_file() {
        io::Read::read_to_string(&mut &file, &mut content).map_err(errno)?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640))?;
    let mode = file.metadata().map_err(errno)?.mode();
    let same = metadata.ino() == after.ino();
    Ok(format!("{} {} {mode:o} {same} {content}", metadata.nlink(), after.nlink()))
}

/// The number of an error that has one.
pub fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// The attribute that steps set.
pub const ATTRIBUTE: &str = "user.step";
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
