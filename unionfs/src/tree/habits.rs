//! What a mount was asked to do differently.

use rustix::io::Errno;

use super::Tree;
use crate::marks::Namespace;
use crate::node::{Kind, Stat};
use crate::spec::{Metacopy, Options};
use crate::{Result, acl, override_stat};

/// The options that concern single operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    noacl: bool,
    noxattrs: bool,
    static_nlink: bool,
    /// Folders of the lowers cannot be moved.
    pub(super) noredirect: bool,
    /// Changing attributes copies no data.
    pub(super) metacopy: bool,
}

impl Habits {
    pub(super) fn of(options: &Options, marks: Namespace) -> Habits {
        let &Options { noacl, noxattrs, static_nlink, noredirect, .. } = options;
        let metacopy = match options.metacopy {
            Metacopy::On => true,
            Metacopy::Off => false,
            // The kernel follows no such files with `userxattr`, nor without redirects.
            Metacopy::Auto => marks == Namespace::TRUSTED && !noredirect,
        };
        Habits { noacl, noxattrs, static_nlink, noredirect, metacopy }
    }
}

impl Tree {
    /// Puts ids and counts in the form that the mount shows.
    pub(super) fn to_shown(&self, stat: Stat) -> Stat {
        let nlink =
            if self.habits.static_nlink && stat.kind == Kind::Directory { 1.min(stat.nlink) } else { stat.nlink };
        Stat { uid: self.ids.uid_to_host(stat.uid), gid: self.ids.gid_to_host(stat.gid), nlink, ..stat }
    }

    /// Returns whether an attribute can be seen at all.
    pub(super) fn shows_xattr(&self, name: &[u8]) -> bool {
        let hidden =
            self.habits.noacl && acl::is_acl(name) || self.keeps_owners_beside() && override_stat::is_override(name);
        !hidden
    }

    /// Fails for attributes that are not there to be changed.
    pub(super) fn check_xattr_change(&self, name: &[u8]) -> Result<()> {
        self.check_xattrs()?;
        match self.shows_xattr(name) {
            true => Ok(()),
            false if acl::is_acl(name) => Err(Errno::OPNOTSUPP),
            false => Err(Errno::PERM),
        }
    }

    /// Fails if there are no attributes; the kernel does not ask again then.
    pub(super) fn check_xattrs(&self) -> Result<()> {
        if self.habits.noxattrs { Err(Errno::NOSYS) } else { Ok(()) }
    }

    fn keeps_owners_beside(&self) -> bool {
        self.upper.as_ref().is_some_and(|upper| upper.owners().are_kept_beside()) || self.lower.keeps_owners_beside()
    }
}
