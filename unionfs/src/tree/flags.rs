//! The flags of files that `chattr` and `xfs_io` change, as far as the filesystem of the upper has them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use strata_sys::file_flags;
pub use strata_sys::file_flags::ExtendedFlags;

use super::Tree;
use super::copy_up::Wanted;
use crate::Result;
use crate::backing;
use crate::node::{Ino, Kind};

impl Tree {
    /// Returns a node's flags (`FS_IOC_GETFLAGS`).
    pub fn flags(&self, ino: Ino) -> Result<u32> {
        match self.file_with_flags(ino)? {
            Some(file) => file_flags::flags(file.as_fd()).map_err(errno),
            None => Ok(0),
        }
    }

    /// Sets a node's flags (`FS_IOC_SETFLAGS`). The kernel has checked who may.
    pub fn set_flags(&self, ino: Ino, flags: u32) -> Result<()> {
        if self.flags(ino)? == flags {
            return Ok(());
        }
        self.change_flags(ino, |file| file_flags::set_flags(file, flags))
    }

    /// Returns a node's flags, extent sizes and project (`FS_IOC_FSGETXATTR`).
    pub fn fsxattr(&self, ino: Ino) -> Result<ExtendedFlags> {
        match self.file_with_flags(ino)? {
            Some(file) => file_flags::extended_flags(file.as_fd()).map_err(errno),
            None => Ok(ExtendedFlags::default()),
        }
    }

    /// Sets a node's flags, extent sizes and project (`FS_IOC_FSSETXATTR`).
    pub fn set_fsxattr(&self, ino: Ino, flags: &ExtendedFlags) -> Result<()> {
        self.change_flags(ino, |file| file_flags::set_extended_flags(file, flags))
    }

    /// Changes the flags of the file in the upper, brought there if need be.
    fn change_flags(&self, ino: Ino, change: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<()>) -> Result<()> {
        let object = self.copy_up(ino, Wanted::Everything)?;
        if !matches!(object.kind, Kind::Regular | Kind::Directory) {
            return Err(Errno::NOTTY);
        }
        // Held until it is done: a copy that comes into a directory takes what moves meanwhile for its own doing.
        let _names = self.read_names();
        let file = backing::reopen(self.upper_file(&object)?.as_fd(), OFlags::RDONLY)?;
        object.attributes_change();
        change(file.as_fd()).map_err(errno)?;
        // The kernel does not know that this moves the time of its last change.
        self.outdated.add(ino);
        Ok(())
    }

    /// Opens the file that has the node's flags; a file of an image has none.
    fn file_with_flags(&self, ino: Ino) -> Result<Option<OwnedFd>> {
        let _names = self.read_names();
        if !matches!(self.stat_of(ino)?.kind, Kind::Regular | Kind::Directory) {
            return Err(Errno::NOTTY);
        }
        match self.upper_object(ino) {
            Some(object) => backing::reopen(self.upper_file(&object)?.as_fd(), OFlags::RDONLY).map(Some),
            None => self.lower.open_for_flags(ino),
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
