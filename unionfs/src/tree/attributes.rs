//! Reading and changing the attributes of nodes.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::copy_up::Wanted;
use super::create::Caller;
use super::object::{Content, Object};
use super::{Tree, file};
use crate::Result;
use crate::backing;
use crate::marks::LayerId;
use crate::node::{Ino, Kind, Stat, Timestamp};
use crate::upper::Given;

/// What to change about a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// The permission bits.
    pub permissions: Option<u16>,
    /// The owner, as the host sees it.
    pub uid: Option<u32>,
    /// The group, as the host sees it.
    pub gid: Option<u32>,
    /// The size.
    pub size: Option<u64>,
    /// The time of the last access.
    pub atime: Option<SetTime>,
    /// The time of the last change.
    pub mtime: Option<SetTime>,
    /// Takes away what lets it run as somebody else: set-user-id, set-group-id and file capabilities.
    pub kill_privileges: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// When it is done.
    Now,
    /// A fixed moment.
    At(Timestamp),
}

impl Tree {
    /// Returns the attributes of a node.
    pub fn stat(&self, ino: Ino) -> Result<Stat> {
        let _names = self.read_names();
        self.stat_of(ino)
    }

    /// Changes attributes of a node and returns them all.
    pub fn set_attributes(&self, ino: Ino, change: &SetAttributes) -> Result<Stat> {
        if *change == SetAttributes::default() {
            return self.stat(ino);
        }
        let wanted = change.size.map_or(Wanted::Attributes, Wanted::Data);
        let object = self.copy_up(ino, wanted)?;
        let _settled = self.wait_for_copy(&object);
        let _names = self.read_names();
        let fd = self.upper_file(&object)?;
        object.attributes_change();
        if let Some(size) = change.size {
            self.accounted(&object, fd.as_fd(), || self.truncate(&object, fd.as_fd(), size))?;
        }
        let mut privileged = change.kill_privileges;
        if change.uid.is_some() || change.gid.is_some() {
            let stored = |id: Option<u32>| match id {
                None if self.ids.squashes() => Ok(None),
                id => id.map(Some).ok_or(Errno::INVAL),
            };
            let uid = change.uid.map_or(Ok(None), |id| stored(self.ids.uid_to_disk(id)))?;
            let gid = change.gid.map_or(Ok(None), |id| stored(self.ids.gid_to_disk(id)))?;
            if self.writable_upper()?.owners().set_owner(fd.as_fd(), uid, gid)? == Given::ByFilesystem {
                privileged = false;
            }
        }
        if privileged {
            self.drop_privileges(&object, fd.as_fd())?;
        }
        if change.kill_privileges {
            self.forget_capability(&object, fd.as_fd())?;
        }
        if let Some(permissions) = change.permissions {
            self.set_permissions(fd.as_fd(), permissions)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let time = |time: Option<SetTime>| match time {
                None => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
                Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
                Some(SetTime::At(time)) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() },
            };
            let times = Timestamps { last_access: time(change.atime), last_modification: time(change.mtime) };
            backing::set_times(fd.as_fd(), &times)?;
        }
        self.stat_of(ino)
    }

    /// Returns whether the caller is root in the container, who keeps set-user-id bits as CAP_FSETID lets it.
    pub(super) fn is_root(&self, caller: &Caller) -> bool {
        self.ids.uid_to_disk(caller.uid) == Some(0)
    }

    /// Returns what tells a node from an earlier one of the same number, which who has a file handle may mean. Numbers of
    /// the lower are not given twice; those of the upper are, by its filesystem.
    pub(crate) fn generation(&self, stat: &Stat) -> u32 {
        let born_there = |object: &Object| object.state().upper.is_some_and(|file| self.number(file) == stat.ino);
        match (stat.birth, self.object(stat.ino)) {
            (Some(birth), Some(object)) if stat.ino != Ino::ROOT && born_there(&object) => {
                let bytes = [birth.seconds.to_le_bytes(), u64::from(birth.nanoseconds).to_le_bytes()].concat();
                LayerId::of_bytes(&bytes).0
            }
            _ => 0,
        }
    }

    /// Returns the attributes of a node. The caller holds `namespace`.
    pub(super) fn stat_of(&self, ino: Ino) -> Result<Stat> {
        let stat = match self.object(ino) {
            Some(object) => self.object_stat(&object)?,
            None => self.lower.stat(ino)?,
        };
        Ok(self.to_shown(stat))
    }

    fn object_stat(&self, object: &Object) -> Result<Stat> {
        let in_upper = object.is_in_upper();
        let raw = if in_upper { Some(self.upper_stat(self.upper_file(object)?.as_fd())?) } else { None };
        self.object_stat_with(object, raw.as_ref())
    }

    /// The same, if `raw` is what the upper says of its file. The caller holds `namespace`.
    pub(super) fn object_stat_with(&self, object: &Object, raw: Option<&backing::RawStat>) -> Result<Stat> {
        let in_upper = raw.is_some();
        let mut stat = match raw {
            // The device 0:0 lies there in another form.
            Some(raw) => Stat { kind: object.kind, ..backing::to_stat(raw, object.ino)? },
            None => self.lower.stat(object.ino)?,
        };
        let content = object.state().content;
        if let (true, Content::Lower(data)) = (in_upper, content) {
            stat.blocks = self.lower.stat(data)?.blocks;
        }
        let removed = object.is_removed();
        let state = object.state();
        if let (Some(raw), Some(unmoved)) = (raw, &state.unmoved) {
            unmoved.show(raw, &mut stat);
        }
        stat.nlink = match (object.kind, state.link) {
            _ if removed && (object.kind == Kind::Directory || !in_upper && state.link.is_none()) => 0,
            // As overlayfs has it. What the lower alone has is told as the lower tells it, whatever is known of it here.
            (Kind::Directory, _) if state.merged && in_upper => 1,
            (_, Some(link)) => {
                let in_upper = if in_upper { stat.nlink - u32::from(link.copied).min(stat.nlink) } else { 0 };
                in_upper + link.all.saturating_sub(link.covered)
            }
            _ => stat.nlink,
        };
        Ok(stat)
    }

    fn truncate(&self, object: &Object, fd: BorrowedFd<'_>, size: u64) -> Result<()> {
        if object.kind != Kind::Regular {
            return Err(if object.kind == Kind::Directory { Errno::ISDIR } else { Errno::INVAL });
        }
        let open = object.state().data.clone().filter(|data| data.writable);
        match open {
            Some(data) => rustix::fs::ftruncate(&*data.file, size),
            None => rustix::fs::ftruncate(backing::reopen(fd, OFlags::WRONLY)?, size),
        }
    }

    /// Takes away set-user-id, set-group-id (if it is not about locking) and file capabilities.
    pub(super) fn drop_privileges(&self, object: &Object, fd: BorrowedFd<'_>) -> Result<()> {
        let raw = self.upper_stat(fd)?;
        if raw.mode & libc::S_IFMT != libc::S_IFREG {
            return Ok(());
        }
        let permissions = crate::node::permission_bits(raw.mode);
        let kept = file::without_privileges(permissions);
        if kept != permissions {
            self.set_permissions(fd, kept)?;
        }
        if !object.is_capable() {
            return Ok(());
        }
        match backing::remove_xattr(fd, crate::capability::NAME) {
            // Whoever may not remove it could not have set it; and the kernel takes it away at the write itself.
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns what the upper says about one of its files.
    pub(super) fn upper_stat(&self, fd: BorrowedFd<'_>) -> Result<backing::RawStat> {
        self.upper.as_ref().ok_or(Errno::STALE)?.owners().stat(fd)
    }

    pub(super) fn set_permissions(&self, fd: BorrowedFd<'_>, permissions: u16) -> Result<()> {
        self.writable_upper()?.owners().set_permissions(fd, permissions)
    }
}
