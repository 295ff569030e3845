//! Extended attributes of nodes.
//!
//! The marks of the union are hidden. What a user calls by such a name, to nest one union in another, is stored with the
//! name escaped as overlayfs does: `trusted.overlay.x` as `trusted.overlay.overlay.x`.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Tree;
use super::copy_up::Wanted;
use super::create::Caller;
use super::intent::Intent;
use crate::Result;
use crate::acl;
use crate::backing;
use crate::capability;
use crate::marks;
use crate::node::Ino;
use crate::survive;

impl Tree {
    /// Returns the value of an extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino == Ino::ROOT && name == SERVER {
            return Ok(self.about_server());
        }
        self.check_xattrs()?;
        if !self.shows_xattr(name) {
            return Err(Errno::NODATA);
        }
        let stored = marks::escaped(name);
        let _names = self.read_names();
        let value = match self.upper_object(ino) {
            Some(object) if name == capability::NAME && !object.is_capable() => None,
            Some(object) => self.upper_xattr(self.upper_file(&object)?.as_fd(), &stored)?,
            None => {
                let mut found = None;
                self.lower.for_each_xattr(ino, &mut |candidate, value| {
                    if candidate == &*stored {
                        found = Some(value.to_vec());
                    }
                })?;
                found
            }
        };
        self.ids.xattr_to_host(name, value.ok_or(Errno::NODATA)?)
    }

    /// Says which process serves the mount and whether there is something to write to.
    fn about_server(&self) -> Vec<u8> {
        let mode = if self.is_read_only() { "ro" } else { "rw" };
        format!("{} {mode}", std::process::id()).into_bytes()
    }

    /// Returns the names of the extended attributes, each ended by a zero byte. Only the privileged see `trusted.` ones.
    pub fn list_xattrs(&self, ino: Ino, privileged: bool) -> Result<Vec<u8>> {
        self.check_xattrs()?;
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            if let Some(shown) = marks::shown(name)
                && !name.is_empty()
                && !name.contains(&0)
                && (privileged || !name.starts_with(b"trusted."))
                && self.shows_xattr(name)
            {
                names.extend_from_slice(&shown);
                names.push(0);
            }
        };
        let _names = self.read_names();
        match self.upper_object(ino) {
            Some(object) => {
                let list = self.upper_xattr_names(self.upper_file(&object)?.as_fd())?;
                list.split(|byte| *byte == 0).for_each(&mut add);
            }
            None => self.lower.for_each_xattr(ino, &mut |name, _| add(name))?,
        }
        Ok(names)
    }

    /// Returns an attribute of a file in the upper by the name under which it is stored.
    pub(super) fn upper_xattr(&self, file: BorrowedFd<'_>, stored: &[u8]) -> Result<Option<Vec<u8>>> {
        match backing::xattr(file, stored)? {
            None if stored == capability::NAME && self.writable_upper().is_err() => {
                // Who may write has given it back already (`recover_capability`).
                backing::xattr(file, &self.marks.name(marks::CAPABILITY))
            }
            value => Ok(value),
        }
    }

    /// Returns the names of all that [`upper_xattr`](Self::upper_xattr) finds, each ended by a zero byte.
    pub(super) fn upper_xattr_names(&self, file: BorrowedFd<'_>) -> Result<Vec<u8>> {
        let mut names = backing::list_xattrs(file)?;
        if self.writable_upper().is_err() {
            self.marks.add_noted_capability(&mut names);
        }
        Ok(names)
    }

    /// Sets an extended attribute; `flags` as for `setxattr`. With an access list set-group-id goes as `setgid` says.
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: XattrFlags, setgid: SetGroupId) -> Result<()> {
        self.check_xattr_change(name)?;
        let past = Intent::of_the_past();
        let value = self.ids.xattr_to_disk(name, value)?;
        let stored = marks::escaped(name);
        let object = self.copy_up(ino, Wanted::Attributes)?;
        let _settled = self.wait_for_copy(&object);
        let _names = self.read_names();
        let file = self.upper_file(&object)?;
        object.attributes_change();
        if name == capability::NAME {
            object.set_capable(true);
        }
        let mut flags = flags;
        if flags.contains(XattrFlags::CREATE) && backing::xattr(file.as_fd(), &stored)?.is_none() {
            Intent::AddXattr.note();
        } else if matches!(past, Some(Intent::AddXattr)) {
            // It was not there, and an earlier server has added it for this very request.
            flags.remove(XattrFlags::CREATE);
        }
        self.set_xattr_accounted(&object, file.as_fd(), &stored, &value, flags)?;
        survive::step();
        if name == acl::ACCESS {
            self.drop_setgid(file.as_fd(), setgid)?;
        }
        Ok(())
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.check_xattr_change(name)?;
        // Nothing is copied up for what is not there.
        match (self.xattr(ino, name), Intent::of_the_past()) {
            (Err(Errno::NODATA), Some(Intent::RemoveXattr)) => {
                survive::was_executed();
                return Ok(());
            }
            (found, _) => drop(found?),
        }
        let stored = marks::escaped(name);
        let object = self.copy_up(ino, Wanted::Attributes)?;
        let _settled = self.wait_for_copy(&object);
        let _names = self.read_names();
        let file = self.upper_file(&object)?;
        object.attributes_change();
        Intent::RemoveXattr.note();
        self.accounted(&object, file.as_fd(), || backing::remove_xattr(file.as_fd(), &stored))?;
        if name == capability::NAME {
            self.forget_capability(&object, file.as_fd())?;
        }
        survive::step();
        Ok(())
    }

    fn drop_setgid(&self, file: BorrowedFd<'_>, setgid: SetGroupId) -> Result<()> {
        let raw = self.upper_stat(file)?;
        if raw.mode & libc::S_ISGID == 0 {
            return Ok(());
        }
        let keep = match setgid {
            SetGroupId::Keep => true,
            SetGroupId::Drop => false,
            SetGroupId::Judge(caller) => {
                let group = self.ids.gid_to_host(raw.gid);
                self.is_root(&caller) || group == caller.gid || supplementary_groups(caller.pid).contains(&group)
            }
        };
        if keep {
            return Ok(());
        }
        self.set_permissions(file, crate::node::permission_bits(raw.mode & !libc::S_ISGID))
    }
}

/// What becomes of set-group-id when an access list is set: whoever does that without being of the file's group loses it,
/// as with `chmod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetGroupId {
    /// It stays.
    Keep,
    /// It goes.
    Drop,
    /// To be found out from the caller, as far as that can be seen from outside.
    Judge(Caller),
}

/// Returns the further groups of a process, none if it is gone.
fn supplementary_groups(pid: u32) -> Vec<u32> {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return Vec::new() };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// An attribute of the root that is in no list: who serves it.
pub(crate) const SERVER: &[u8] = b"strata.server";
