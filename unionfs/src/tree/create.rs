//! Making new nodes and new names.
//!
//! Most are made in place. Where a whiteout has the name, the new node is prepared in the staging folder and takes the
//! whiteout's place, so that what was deleted cannot come back after a crash. A new directory is opaque wherever the
//! lower could show through it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::Tree;
use super::copy_up::Wanted;
use super::directory::Directory;
use super::intent::Intent;
use super::object::{Data, Object, State};
use crate::Result;
use crate::backing::{self, RawStat};
use crate::lower::Place;
use crate::node::{Device, Ino, Kind, Stat, is_null_device};
use crate::survive;
use crate::upper::{LOOK, UpperLayer};

/// On whose behalf something is done, in the host's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, 0 if unknown.
    pub pid: u32,
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New<'a> {
    /// A regular file; if `open`, it is open for reading and writing from the start and must be released.
    File {
        /// Whether it is opened as well.
        open: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(&'a [u8]),
    /// A device, FIFO or socket.
    Node(Kind, Device),
}

impl New<'_> {
    fn kind(&self) -> Kind {
        match self {
            New::File { .. } => Kind::Regular,
            New::Directory => Kind::Directory,
            New::Symlink(_) => Kind::Symlink,
            New::Node(kind, _) => *kind,
        }
    }
}

impl Tree {
    /// Makes `name` in the directory `dir` and counts a reference to it.
    ///
    /// `umask` counts unless the directory has a default ACL, which then says what is allowed.
    pub fn create(&self, dir: Ino, name: &[u8], new: New<'_>, mode: u32, umask: u32, caller: &Caller) -> Result<Stat> {
        let upper = self.writable_upper()?;
        upper.check_new_name(name)?;
        let past = Intent::of_the_past();
        let _names = self.write_names();
        if let Some(Intent::Make { whiteout }) = past {
            self.unmake(dir, name, whiteout)?;
        }
        let (parent, directory) = self.directory_for_change(dir)?;
        let found = self.name_to_make(&directory, name)?;
        if found.found.is_some() {
            return Err(Errno::EXIST);
        }
        Intent::Make { whiteout: found.whiteout }.note();
        survive::step();
        let parent_fd = directory.upper.as_ref().ok_or(Errno::STALE)?.as_fd();
        let maker = self.maker(upper, &parent, parent_fd, new, mode, umask, caller)?;
        let admission = self.admit(if matches!(new, New::Directory | New::Symlink(_)) { FIRST_BLOCK } else { 0 })?;
        let opaque = new == New::Directory && directory.lower.is_some();
        let Made { file, raw } = if found.whiteout {
            let (staged, made) = maker.stage(opaque)?;
            if new == New::Directory {
                upper.exchange(&staged, parent_fd, name)?;
                upper.discard(&staged);
            } else {
                upper.put_in_place(&staged, parent_fd, name)?;
            }
            // Moving it is a change of it.
            Made { raw: upper.owners().stat(made.file.as_fd())?, ..made }
        } else {
            maker.make(parent_fd, name, opaque)?
        };
        let ino = self.number(backing::identity(&raw));
        let open = new == New::File { open: true };
        let state = State {
            upper: Some(backing::identity(&raw)),
            opaque,
            opens: u64::from(open),
            data: open.then(|| Data { file: Arc::clone(&file), writable: true }),
            places: vec![Place { parent: dir, name: name.to_vec() }],
            ..State::default()
        };
        survive::step();
        let object = Object::new(ino, new.kind(), false, state);
        object.set_capable(false);
        let object = self.objects.insert(object);
        self.account_new(&object, file.as_fd(), admission);
        self.account_directory(&parent);
        if new.kind() != Kind::Regular {
            // The file of a regular one can be written to. Nobody but who has it open is to have it.
            self.handles.insert(ino, file);
        }
        parent.list(name);
        self.count_one(ino, dir, name)?;
        let stat = self.object_stat_with(&object, Some(&raw)).inspect_err(|_| self.forget(ino, 1))?;
        Ok(self.to_shown(stat))
    }

    /// Makes a regular file without a name in the filesystem of the directory `dir`, open for writing, and counts a
    /// reference to it. [`link`](Self::link) can name it.
    pub fn create_unnamed(&self, dir: Ino, mode: u16, umask: u16, caller: &Caller) -> Result<Stat> {
        let upper = self.writable_upper()?;
        let _names = self.write_names();
        let (parent, directory) = self.directory_for_change(dir)?;
        let parent_fd = directory.upper.as_ref().ok_or(Errno::STALE)?.as_fd();
        let new = New::File { open: true };
        let maker = self.maker(upper, &parent, parent_fd, new, mode.into(), umask.into(), caller)?;
        let admission = self.admit(0)?;
        let file = Arc::new(maker.make_unnamed(parent_fd)?);
        let raw = backing::stat(file.as_fd())?;
        let identity = backing::identity(&raw);
        let state = State {
            upper: Some(identity),
            unnamed: true,
            pinned: Some(Arc::new(backing::reopen(file.as_fd(), OFlags::PATH)?)),
            data: Some(Data { file: Arc::clone(&file), writable: true }),
            opens: 1,
            ..State::default()
        };
        let object = Object::new(self.number(identity), Kind::Regular, false, state);
        object.references.store(1, Ordering::Relaxed);
        self.account_new(&object, file.as_fd(), admission);
        let ino = object.ino;
        self.objects.insert(object);
        self.stat_of(ino)
    }

    /// Gives the node `ino` the further name `name` in `dir` and counts a reference to it.
    pub fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Stat> {
        let upper = self.writable_upper()?;
        upper.check_new_name(name)?;
        let past = Intent::of_the_past();
        let mut wanted = Wanted::Attributes;
        loop {
            let object = self.copy_up(ino, wanted)?;
            if object.kind == Kind::Directory {
                return Err(Errno::PERM);
            }
            let _names = self.write_names();
            let (parent, directory) = self.directory_for_change(dir)?;
            let found = self.name_to_make(&directory, name)?;
            let before = matches!(past, Some(Intent::Link { ino: linked }) if linked == ino);
            if before && found.found.as_ref().is_some_and(|found| found.ino == ino && found.upper.is_some()) {
                survive::was_executed();
                return self.finish_link(&object, &parent, dir, name);
            }
            if found.found.is_some() {
                return Err(Errno::EXIST);
            }
            if object.is_removed() && !object.state().unnamed {
                return Err(Errno::NOENT);
            }
            if self.keep_data(upper, &object)? {
                wanted = Wanted::Everything;
                continue;
            }
            self.mark_impure_for(upper, &parent, &object)?;
            let parent_fd = directory.upper.as_ref().ok_or(Errno::STALE)?.as_fd();
            Intent::Link { ino }.note();
            survive::step();
            self.link_in_upper(upper, &object, parent_fd, name, found.whiteout)?;
            survive::step();
            return self.finish_link(&object, &parent, dir, name);
        }
    }

    /// Notes that an object has one more name, and counts a reference to it. May be done more than once but for that.
    fn finish_link(&self, object: &Object, parent: &Object, dir: Ino, name: &[u8]) -> Result<Stat> {
        object.add_place(dir, name);
        self.unpin_named(object);
        self.account_directory(parent);
        parent.list(name);
        self.hold(object.ino, dir, name)
    }

    /// Links an object's file in the upper to one more name, in place of a whiteout if there is one.
    pub(super) fn link_in_upper(
        &self,
        upper: &UpperLayer,
        object: &Object,
        dir: BorrowedFd<'_>,
        name: &[u8],
        whiteout: bool,
    ) -> Result<()> {
        let file = self.upper_file(object)?;
        let source = backing::magic_link(file.as_fd());
        if !whiteout {
            return rustix::fs::linkat(rustix::fs::CWD, source, dir, name, AtFlags::SYMLINK_FOLLOW);
        }
        let staged = upper.staging_name();
        rustix::fs::linkat(rustix::fs::CWD, source, upper.staging(), &staged, AtFlags::SYMLINK_FOLLOW)?;
        upper.put_in_place(&staged, dir, name)
    }

    /// A file that has a name now need not be kept open.
    pub(super) fn unpin_named(&self, object: &Object) {
        let mut state = object.state();
        state.unnamed = false;
        if let Some(file) = state.pinned.take() {
            drop(state);
            self.handles.insert(object.ino, file);
        }
    }

    /// Collects how a new node in the directory `parent`, open at `file`, is to be made. The caller holds `namespace` for
    /// writing.
    #[expect(clippy::too_many_arguments, reason = "all that a request says, and where")]
    fn maker<'a>(
        &self,
        upper: &'a UpperLayer,
        parent: &Object,
        file: BorrowedFd<'_>,
        new: New<'a>,
        mode: u32,
        umask: u32,
        caller: &Caller,
    ) -> Result<Maker<'a>> {
        let known = parent.heritage().clone();
        let Heritage { group, default_acl } = match known {
            Some(heritage) => heritage,
            None => parent.heritage().insert(Heritage::of(upper, file)?).clone(),
        };
        let (uid, gid) = self.ids.owner_to_disk(caller.uid, caller.gid, upper.server())?;
        let mut bits = mode & 0o7777;
        if default_acl.is_none() {
            bits &= !(umask & 0o777);
        }
        if new == New::Directory && group.is_some() {
            bits |= libc::S_ISGID;
        }
        Ok(Maker { upper, new, bits, default_acl, uid, gid: group.unwrap_or(gid) })
    }

    /// Returns a directory that is in the upper now. The caller holds `namespace` for writing.
    pub(super) fn directory_for_change(&self, dir: Ino) -> Result<(Arc<Object>, Directory)> {
        let (object, file) = self.copy_up_directory(dir)?;
        if object.is_removed() {
            return Err(Errno::NOENT);
        }
        self.account_before(&object, file.as_fd())?;
        Ok((object, self.directory(dir)?))
    }
}

/// What a new directory or symbolic link takes at most, at first.
const FIRST_BLOCK: u64 = 4096;

/// How a new node is made.
struct Maker<'a> {
    upper: &'a UpperLayer,
    new: New<'a>,
    /// The permission bits; what the default ACL then makes of them is the filesystem's business.
    bits: u32,
    default_acl: Option<Vec<u8>>,
    uid: u32,
    gid: u32,
}

/// A new node.
struct Made {
    /// Open for reading and writing if it is a regular file.
    file: Arc<OwnedFd>,
    /// Its attributes.
    raw: RawStat,
}

/// What is made in a directory gets from it.
#[derive(Clone, Debug)]
pub(super) struct Heritage {
    /// The group, where set-group-id says so.
    group: Option<u32>,
    default_acl: Option<Vec<u8>>,
}

impl Heritage {
    fn of(upper: &UpperLayer, dir: BorrowedFd<'_>) -> Result<Heritage> {
        let raw = upper.owners().stat(dir)?;
        Ok(Heritage {
            group: (raw.mode & libc::S_ISGID != 0).then_some(raw.gid),
            default_acl: backing::xattr(dir, b"system.posix_acl_default")?,
        })
    }
}

impl Maker<'_> {
    /// Makes the node in the staging folder.
    fn stage(&self, opaque: bool) -> Result<(String, Made)> {
        let staging = self.upper.staging();
        let name = self.upper.staging_name();
        let Some(acl) = &self.default_acl else {
            let made = self.make(staging, name.as_bytes(), opaque)?;
            return Ok((name, made));
        };
        // A folder with the same default ACL, so that the filesystem passes it on.
        let nursery = self.upper.staging_name();
        rustix::fs::mkdirat(staging, &nursery, Mode::RWXU)?;
        let grown = (|| {
            let fd = rustix::fs::openat(staging, &nursery, LOOK | OFlags::DIRECTORY, Mode::empty())?;
            backing::set_xattr(fd.as_fd(), b"system.posix_acl_default", acl, XattrFlags::empty())?;
            let made = self.make(fd.as_fd(), name.as_bytes(), opaque)?;
            rustix::fs::renameat(&fd, &name, staging, &name)?;
            Ok(made)
        })();
        let _ = self.upper.discard_directory(&nursery);
        grown.map(|made| (name, made))
    }

    /// Makes a regular file without a name on the filesystem of `dir`, whose default ACL counts.
    fn make_unnamed(&self, dir: BorrowedFd<'_>) -> Result<OwnedFd> {
        // The directory itself is open as a path only, and "." asks for nothing that we may not do.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(self.bits & 0o777))?;
        self.finish(file.as_fd(), false)?;
        Ok(file)
    }

    /// Makes the node as `name` in `dir`, where the name is free. On failure nothing is left.
    fn make(&self, dir: BorrowedFd<'_>, name: &[u8], opaque: bool) -> Result<Made> {
        let mode = Mode::from_raw_mode(self.bits & 0o777);
        let mut file = None;
        match self.new {
            New::File { .. } => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                file = Some(rustix::fs::openat(dir, name, flags, mode)?);
            }
            New::Directory => rustix::fs::mkdirat(dir, name, mode)?,
            New::Symlink(target) => rustix::fs::symlinkat(target, dir, name)?,
            New::Node(kind, device) if is_null_device(kind, device) => self.upper.make_null_device(dir, name, mode)?,
            New::Node(kind, device) => self.upper.owners().make_node(dir, name, (kind, device), mode)?,
        }
        survive::step();
        let finish = || {
            let file = file.map_or_else(|| rustix::fs::openat(dir, name, LOOK, Mode::empty()), Ok)?;
            let raw = self.finish(file.as_fd(), opaque)?;
            Ok(Made { file: Arc::new(file), raw })
        };
        finish().inspect_err(|_: &Errno| {
            let flags = if self.new == New::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _ = rustix::fs::unlinkat(dir, name, flags);
        })
    }

    /// Gives a new node what it is to have, and returns its attributes.
    fn finish(&self, file: BorrowedFd<'_>, opaque: bool) -> Result<RawStat> {
        let owners = self.upper.owners();
        if opaque {
            self.upper.set_opaque(file)?;
        }
        let mut raw = owners.stat(file)?;
        if raw.uid != self.uid || raw.gid != self.gid {
            owners.set_owner(file, Some(self.uid), Some(self.gid))?;
            raw = owners.stat(file)?;
        }
        if !matches!(self.new, New::Symlink(_)) {
            // The special bits are asked for; the others are, unless the filesystem has applied a default ACL.
            let ordinary = if self.default_acl.is_some() { raw.mode & 0o777 } else { self.bits & 0o777 };
            let wanted = self.bits & 0o7000 | ordinary;
            if raw.mode & 0o7777 != wanted {
                owners.set_permissions(file, crate::node::permission_bits(wanted))?;
                raw = owners.stat(file)?;
            }
        }
        Ok(raw)
    }
}
