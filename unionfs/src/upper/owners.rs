//! Who owns the files of the upper, what they permit and of which type they are.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use crate::Result;
use crate::backing::{self, RawStat};
use crate::node::{Device, Kind, kind_of, permission_bits, type_bits};
use crate::override_stat::{Override, Shown};

/// How these are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owners {
    kept_beside: Override,
    /// Owners that cannot be stored are no error, since others are shown anyway.
    lenient: bool,
}

/// How a file was given to another owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// By the filesystem, which takes away with that what lets it run as somebody else: set-user-id, set-group-id and
    /// capabilities of anything but a directory (`chown_common` in Linux).
    ByFilesystem,
    /// It only looks so.
    InName,
}

impl Owners {
    pub(crate) fn new(kept_beside: Override, lenient: bool) -> Owners {
        Owners { kept_beside, lenient }
    }

    /// Returns whether they are kept in an attribute that users of the mount must not see.
    pub(crate) fn are_kept_beside(&self) -> bool {
        self.kept_beside.is_active()
    }

    /// Returns the attributes of a file of the upper.
    pub(crate) fn stat(&self, file: BorrowedFd<'_>) -> Result<RawStat> {
        let mut raw = backing::stat(file)?;
        self.kept_beside.apply(file, &mut raw)?;
        Ok(raw)
    }

    /// Changes owner and group.
    pub(crate) fn set_owner(&self, file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<Given> {
        if self.kept_beside.is_active() {
            return self
                .change(file, |shown| {
                    shown.uid = uid.unwrap_or(shown.uid);
                    shown.gid = gid.unwrap_or(shown.gid);
                })
                .map(|()| Given::InName);
        }
        match backing::set_owner(file, uid, gid) {
            Err(Errno::PERM | Errno::INVAL) if self.lenient => Ok(Given::InName),
            result => result.map(|()| Given::ByFilesystem),
        }
    }

    /// Changes the permission bits; not for symbolic links.
    pub(crate) fn set_permissions(&self, file: BorrowedFd<'_>, permissions: u16) -> Result<()> {
        if !self.kept_beside.is_active() {
            return backing::set_permissions(file, permissions);
        }
        self.change(file, |shown| shown.permissions = permissions.into())?;
        let own = backing::stat(file)?;
        // What is shown is checked by the kernel; on disk the server must be able to open the file, and nobody may
        // run it as somebody else.
        let needed = if own.mode & libc::S_IFMT == libc::S_IFDIR { 0o700 } else { 0o600 };
        backing::set_permissions(file, permissions & 0o777 | needed)
    }

    /// Makes a device, FIFO or socket.
    pub(crate) fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        (kind, device): (Kind, Device),
        mode: Mode,
    ) -> Result<()> {
        if !self.kept_beside.is_active() {
            let number = rustix::fs::makedev(device.major, device.minor);
            return rustix::fs::mknodat(dir, name, FileType::from_raw_mode(type_bits(kind)), mode, number);
        }
        rustix::fs::mknodat(dir, name, FileType::RegularFile, mode | Mode::RUSR | Mode::WUSR, 0)?;
        let finish = || {
            let file = rustix::fs::openat(dir, name, super::LOOK, Mode::empty())?;
            let raw = backing::stat(std::os::fd::AsFd::as_fd(&file))?;
            let permissions = mode.bits() & 0o7777;
            let shown = Shown { uid: raw.uid, gid: raw.gid, permissions, kind: Some((kind, device)) };
            self.kept_beside.write(std::os::fd::AsFd::as_fd(&file), &shown)
        };
        finish().inspect_err(|_: &Errno| {
            // What remains is cleaned at the next mount, or is an empty file.
            let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty());
        })
    }

    fn change(&self, file: BorrowedFd<'_>, change: impl Fn(&mut Shown)) -> Result<()> {
        let raw = self.stat(file)?;
        let kind = kind_of(raw.mode).map(|kind| match kind {
            Kind::CharDevice | Kind::BlockDevice => (kind, raw.stands_for),
            kind => (kind, Device::default()),
        });
        let permissions = permission_bits(raw.mode).into();
        let mut shown = Shown { uid: raw.uid, gid: raw.gid, permissions, kind };
        change(&mut shown);
        match self.kept_beside.write(file, &shown) {
            // Symbolic links have no such attributes; they belong to whoever made them.
            Err(Errno::PERM | Errno::OPNOTSUPP) if raw.mode & libc::S_IFMT == libc::S_IFLNK => Ok(()),
            result => result,
        }
    }
}
