//! Making the files of a tar in a directory of a tree.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, StatVfsMountFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, fstat, fstatvfs, futimens, linkat, makedev, mkdirat, mknodat, openat, renameat, statat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::thread::CapabilitySets;
use strata_layer::index::Device;
use strata_layer::tar::{Entry, EntryKind, Event, Limits, Parser};

use super::pack::CAPABILITY;
use super::tree::{Tree, is_kernel_filesystem, open_beneath};
use super::{ArchiveError, text};

/// To whom new files belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// To whom they belonged.
    Kept,
    /// To this user and group of the tree.
    Given(u32, u32),
    /// To whoever makes them. What gives powers to the file of another owner is left out then: the set-user-id and
    /// set-group-id bits, file capabilities, and device nodes.
    Maker,
}

/// What became of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Device nodes that were not made: nobody may here, or files are not to keep their powers.
    pub left_out: Vec<OsString>,
}

impl Tree {
    /// Makes the files of a tar in the directory `path`. Compressed with gzip or zstd, it is decompressed.
    ///
    /// Directories that are there are joined with those of the archive; other things are replaced, each in one step. In a
    /// container, the parents of entries may be links that it has; on the host none is followed.
    ///
    /// # Errors
    /// [`ArchiveError`]; what was made before the failure stays, complete file by complete file.
    pub fn unpack(&self, path: &[u8], input: &mut dyn Read, owner: Owner) -> Result<Unpacked, ArchiveError> {
        let (path, found) = self.follow(path)?;
        let found = found.ok_or_else(|| self.failed(&path, Errno::NOENT))?;
        if !found.is_directory() {
            return Err(ArchiveError::NotADirectory);
        }
        let flags = fstatvfs(&found.handle).map_err(|errno| self.failed(&path, errno))?.f_flag;
        if flags.contains(StatVfsMountFlags::RDONLY) {
            let of_root = fstat(self.root()).is_ok_and(|root| root.st_dev == found.stat.st_dev);
            return Err(match of_root {
                true if self.foreign => ArchiveError::ReadOnlyRoot,
                _ if self.foreign => ArchiveError::ReadOnlyVolume,
                _ => self.failed(&path, Errno::ROFS),
            });
        }
        let mut unpacker = Unpacker {
            tree: self,
            base: path,
            top: found.handle,
            device: found.stat.st_dev,
            owner,
            directories: Vec::new(),
            current: None,
            temporary: temporary_prefix(),
            count: 0,
            done: Unpacked::default(),
        };
        let _maker =
            self.foreign_root().map(Maker::become_owner).transpose().map_err(|errno| self.failed(b"/", errno))?;
        let mut input = strata_imagestore::decompressed(input).map_err(ArchiveError::Input)?;
        let mut parser = Parser::new(Limits::default());
        let mut buffer = vec![0; INPUT_BUFFER];
        loop {
            let count = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ArchiveError::Input(error)),
            };
            let mut piece = &buffer[..count];
            while let Some(event) = parser.next_event(&mut piece)? {
                match event {
                    Event::Entry(entry) => unpacker.begin(*entry)?,
                    Event::Data(bytes) => unpacker.write(bytes)?,
                }
            }
        }
        parser.finish()?;
        unpacker.finish_file()?;
        unpacker.finish_directories()?;
        Ok(unpacker.done)
    }
}

/// Makes files as root of a user namespace, for its filesystem knows nobody else. All powers stay; dropped, this is undone.
struct Maker {
    capabilities: CapabilitySets,
}

impl Maker {
    fn become_owner((uid, gid): (u32, u32)) -> rustix::io::Result<Maker> {
        let capabilities = rustix::thread::capabilities(None)?;
        let maker = Maker { capabilities };
        if !strata_sys::process::set_filesystem_ids(uid, gid) {
            return Err(Errno::PERM);
        }
        rustix::thread::set_capabilities(None, maker.capabilities)?;
        Ok(maker)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // It had these before, so it may have them again.
        let _ = strata_sys::process::set_filesystem_ids(0, 0);
        let _ = rustix::thread::set_capabilities(None, self.capabilities);
    }
}

struct Unpacker<'a> {
    tree: &'a Tree,
    /// The path of the directory in the tree.
    base: Vec<u8>,
    top: OwnedFd,
    device: u64,
    owner: Owner,
    /// Directories whose attributes come when nothing is made in them any more.
    directories: Vec<(Vec<u8>, Attributes)>,
    current: Option<Growing>,
    temporary: String,
    count: u64,
    done: Unpacked,
}

/// What an entry says about a file besides its content.
#[derive(Clone, Copy)]
struct Attributes {
    permissions: u16,
    owner: Option<(u32, u32)>,
    /// Of the last change.
    time: Timespec,
}

/// A file that is being written under a temporary name.
struct Growing {
    entry: Entry,
    file: File,
    made: Made,
    /// Bytes of data that have come.
    position: u64,
    /// Where the data that comes belongs, the next last.
    ranges: Vec<Range<u64>>,
}

/// Something under a temporary name, which goes with this unless it gets its own.
struct Made {
    folder: OwnedFd,
    temporary: CString,
    name: CString,
}

impl Made {
    /// Puts it in its place, whatever is there.
    fn place(self) -> rustix::io::Result<()> {
        renameat(&self.folder, &self.temporary, &self.folder, &self.name)?;
        // Two names of one file are left alone by the kernel, the temporary one too.
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Gone when it was put in its place.
        let _ = unlinkat(&self.folder, &self.temporary, AtFlags::empty());
    }
}

impl Unpacker<'_> {
    fn begin(&mut self, entry: Entry) -> Result<(), ArchiveError> {
        self.finish_file()?;
        let path = inside(&entry.path)?;
        let Some(name) = path.last() else { return Ok(()) };
        let name = CString::new(*name).expect("names in archives have no NUL");
        let folder = self.folder(&path[..path.len() - 1], &entry.path, true)?;
        self.count += 1;
        let temporary = CString::new(format!("{}{}", self.temporary, self.count)).expect("digits have no NUL");
        let failed = |errno| write_failed(&entry.path, errno);

        let present = match statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(present) => Some(present),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        let is_directory =
            present.is_some_and(|present| FileType::from_raw_mode(present.st_mode) == FileType::Directory);
        match (&entry.kind, present) {
            (EntryKind::Directory, Some(present)) if is_directory => {
                if present.st_dev == self.device || !self.is_of_kernel(folder.as_fd(), &name) {
                    let attributes = self.attributes(&entry)?;
                    self.directories.push((path.join(&b'/'), attributes));
                }
                return Ok(());
            }
            (EntryKind::Directory, Some(_)) => return Err(ArchiveError::OverwriteFile { path: text(&entry.path) }),
            (_, Some(_)) if is_directory => return Err(ArchiveError::OverwriteDirectory { path: text(&entry.path) }),
            _ => {}
        }
        let made = Made { folder, temporary, name };
        let at = made.folder.as_fd();
        match &entry.kind {
            EntryKind::Directory => {
                let attributes = self.attributes(&entry)?;
                mkdirat(at, &made.name, Mode::RWXU).map_err(failed)?;
                self.directories.push((path.join(&b'/'), attributes));
                return Ok(());
            }
            EntryKind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(at, &made.temporary, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                let mut ranges: Vec<Range<u64>> = match &entry.sparse {
                    Some(map) => map.iter().map(|part| part.offset..part.offset + part.length).collect(),
                    None => std::iter::once(0..entry.size).collect(),
                };
                ranges.reverse();
                self.current = Some(Growing { entry, file: File::from(file), made, position: 0, ranges });
                return Ok(());
            }
            EntryKind::Symlink { target } => {
                symlinkat(OsStr::from_bytes(target), at, &made.temporary).map_err(failed)?;
            }
            EntryKind::HardLink { target } => {
                let target_path = inside(target)?;
                let Some(last) = target_path.last() else { return Err(failed(Errno::ISDIR)) };
                let folder = self.folder(&target_path[..target_path.len() - 1], target, false)?;
                linkat(&folder, OsStr::from_bytes(last), at, &made.temporary, AtFlags::empty()).map_err(failed)?;
                // Its attributes are those of the file, which has them by now.
                return made.place().map_err(failed);
            }
            EntryKind::CharDevice(_) | EntryKind::BlockDevice(_) if self.owner == Owner::Maker => {
                self.done.left_out.push(OsString::from_vec(entry.path));
                return Ok(());
            }
            EntryKind::CharDevice(device) | EntryKind::BlockDevice(device) => {
                let file_type = match entry.kind {
                    EntryKind::CharDevice(_) => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                let Device { major, minor } = *device;
                match mknodat(at, &made.temporary, file_type, Mode::RUSR | Mode::WUSR, makedev(major, minor)) {
                    // In a user namespace nobody may.
                    Err(Errno::PERM) => {
                        self.done.left_out.push(OsString::from_vec(entry.path));
                        return Ok(());
                    }
                    result => result.map_err(failed)?,
                }
            }
            EntryKind::Fifo => {
                mknodat(at, &made.temporary, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(failed)?;
            }
        }
        let attributes = self.attributes(&entry)?;
        let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
        attributes.apply_by_name(at, &made.temporary, is_link).map_err(failed)?;
        made.place().map_err(failed)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        let Some(growing) = &mut self.current else { return Ok(()) };
        while !bytes.is_empty() {
            let Some(range) = growing.ranges.last_mut() else { return Ok(()) };
            let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            if left == 0 {
                growing.ranges.pop();
                continue;
            }
            let (part, rest) = bytes.split_at(left.min(bytes.len()));
            let path = &growing.entry.path;
            growing
                .file
                .write_all_at(part, range.start)
                .map_err(|source| ArchiveError::Write { path: text(path), source })?;
            range.start += part.len() as u64;
            growing.position += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Gives the file that was written its attributes and its name.
    fn finish_file(&mut self) -> Result<(), ArchiveError> {
        let Some(growing) = self.current.take() else { return Ok(()) };
        let failed = |errno| write_failed(&growing.entry.path, errno);
        let attributes = self.attributes(&growing.entry)?;
        if growing.entry.sparse.is_some() {
            growing
                .file
                .set_len(growing.entry.size)
                .map_err(|source| ArchiveError::Write { path: text(&growing.entry.path), source })?;
        }
        attributes
            .apply(growing.file.as_fd(), || {
                let capability = growing.entry.xattrs.iter().find(|(name, _)| name == CAPABILITY.to_bytes());
                match capability {
                    Some((_, value)) if self.owner != Owner::Maker => {
                        match fsetxattr(&growing.file, CAPABILITY, value, XattrFlags::empty()) {
                            // A filesystem without them, or nobody who may give them away.
                            Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
                            result => result,
                        }
                    }
                    _ => Ok(()),
                }
            })
            .map_err(failed)?;
        growing.made.place().map_err(failed)
    }

    /// Gives directories their attributes, those inside first.
    fn finish_directories(&mut self) -> Result<(), ArchiveError> {
        for (path, attributes) in std::mem::take(&mut self.directories).into_iter().rev() {
            let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            let Some((name, parents)) = components.split_last() else { continue };
            let folder = self.folder(parents, &path, false)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&folder, OsStr::from_bytes(name), flags, Mode::empty()) {
                Ok(directory) => {
                    attributes.apply(directory.as_fd(), || Ok(())).map_err(|errno| write_failed(&path, errno))?;
                }
                // Somebody removed it since.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(write_failed(&path, errno)),
            }
        }
        Ok(())
    }

    /// Opens the directory of these names, made where it is missing.
    fn folder(&self, names: &[&[u8]], entry: &[u8], make: bool) -> Result<OwnedFd, ArchiveError> {
        let failed = |errno| match errno {
            Errno::LOOP => ArchiveError::BehindLink { path: text(entry) },
            errno => write_failed(entry, errno),
        };
        let folder = match self.open_folder(&names.join(&b'/')) {
            Err(Errno::NOENT) if make => self.make_folder(names),
            result => result,
        };
        let folder = folder.map_err(failed)?;
        let device = fstat(&folder).map_err(failed)?.st_dev;
        if self.tree.foreign && device != self.device && is_kernel_filesystem(folder.as_fd()) {
            return Err(ArchiveError::KernelFilesystem { path: text(entry) });
        }
        Ok(folder)
    }

    fn make_folder(&self, names: &[&[u8]]) -> rustix::io::Result<OwnedFd> {
        let mut folder = self.open_folder(b"")?;
        for (position, name) in names.iter().enumerate() {
            folder = match self.open_folder(&names[..=position].join(&b'/')) {
                Err(Errno::NOENT) => {
                    match mkdirat(&folder, OsStr::from_bytes(name), Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                    open_beneath(folder.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?
                }
                result => result?,
            };
        }
        Ok(folder)
    }

    fn open_folder(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        match open_beneath(self.top.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY) {
            // The container's own links mean places of that container, as they do for its programs.
            Err(Errno::LOOP) if self.tree.foreign => {
                self.tree.open(&[&self.base, &b"/"[..], path].concat(), OFlags::PATH | OFlags::DIRECTORY)
            }
            result => result,
        }
    }

    fn is_of_kernel(&self, folder: BorrowedFd<'_>, name: &CString) -> bool {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.tree.foreign
            && openat(folder, name, flags, Mode::empty()).is_ok_and(|found| is_kernel_filesystem(found.as_fd()))
    }

    fn attributes(&self, entry: &Entry) -> Result<Attributes, ArchiveError> {
        let owner = match self.owner {
            Owner::Maker => None,
            Owner::Kept => Some((entry.uid, entry.gid)),
            Owner::Given(uid, gid) => Some((uid, gid)),
        };
        let owner = match owner.map(|(uid, gid)| self.tree.owner_outside(uid, gid)) {
            Some(None) => return Err(write_failed(&entry.path, Errno::OVERFLOW)),
            owner => owner.flatten(),
        };
        let time = Timespec { tv_sec: entry.mtime.seconds, tv_nsec: i64::from(entry.mtime.nanoseconds) };
        let kept = if self.owner == Owner::Maker { 0o1777 } else { 0o7777 };
        Ok(Attributes { permissions: entry.permissions & kept, owner, time })
    }
}

impl Attributes {
    fn mode(self) -> Mode {
        Mode::from_raw_mode(self.permissions.into())
    }

    fn times(self) -> Timestamps {
        Timestamps { last_access: self.time, last_modification: self.time }
    }

    fn ids(self) -> (Option<Uid>, Option<Gid>) {
        let id = |id: u32| if id == u32::MAX { None } else { Some(id) };
        self.owner.map_or((None, None), |(uid, gid)| (id(uid).map(Uid::from_raw), id(gid).map(Gid::from_raw)))
    }

    /// In this order: a new owner takes powers away, and times come last.
    fn apply(self, file: BorrowedFd<'_>, powers: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        let (uid, gid) = self.ids();
        tolerate_unknown(fchown(file, uid, gid))?;
        fchmod(file, self.mode())?;
        powers()?;
        futimens(file, &self.times())
    }

    /// For what cannot be opened without effects. It has a name that nobody else knows.
    fn apply_by_name(self, folder: BorrowedFd<'_>, name: &CString, is_link: bool) -> rustix::io::Result<()> {
        let (uid, gid) = self.ids();
        tolerate_unknown(chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        if !is_link {
            let handle = openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            // It may have been replaced by a link since it was made.
            if FileType::from_raw_mode(fstat(&handle)?.st_mode) == FileType::Symlink {
                return Err(Errno::LOOP);
            }
            rustix::fs::chmod(super::tree::by_descriptor(handle.as_fd()), self.mode())?;
        }
        utimensat(folder, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// An id that this user namespace does not have belongs to nobody here, and the file stays with its maker.
fn tolerate_unknown(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// The names of an entry's path, which has to stay in the directory.
fn inside(path: &[u8]) -> Result<Vec<&[u8]>, ArchiveError> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or_else(|| ArchiveError::Outside { path: text(path) })?;
            }
            name => names.push(name),
        }
    }
    Ok(names)
}

fn write_failed(path: &[u8], errno: Errno) -> ArchiveError {
    ArchiveError::Write { path: text(path), source: errno.into() }
}

/// How the temporary names of one run begin: nobody guesses them, and no two runs have the same.
fn temporary_prefix() -> String {
    let mut random = [0; 8];
    // Only an early boot has none, and then the process number tells runs apart.
    let drawn = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK).is_ok();
    let number = if drawn { u64::from_le_bytes(random) } else { std::process::id().into() };
    format!(".strata-cp-{number:016x}-")
}

const INPUT_BUFFER: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_inside() {
        let names = |path: &str| inside(path.as_bytes()).map(|names| text(&names.join(&b'/')));
        for (path, inside) in [("a/b", "a/b"), ("/a//./b/", "a/b"), ("a/../b", "b"), ("./", ""), ("/", "")] {
            assert_eq!(names(path).unwrap(), inside, "{path}");
        }
        for path in ["..", "../x", "a/../../x", "/../x"] {
            assert!(names(path).is_err(), "{path}");
        }
    }
}
