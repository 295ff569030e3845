//! Files with their attributes in the upper and their data still in the lower.
//!
//! In the form of the kernel's overlayfs: the file in the upper is a hole of the right size with the mark `metacopy`. Its
//! data is that of the lower file under the same name or, once it was moved or linked, at the path in the mark `redirect`.
//! Before the first change of the data it is copied into the file, and then the marks go: who crashes in between still
//! finds the data in the lower.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, OFlags, XattrFlags};
use rustix::io::Errno;

use super::Tree;
use super::copy_up::Wanted;
use super::object::{Content, Object};
use crate::Result;
use crate::backing;
use crate::capability;
use crate::marks::{self, Marks, Recorded};
use crate::node::{Kind, Stat};
use crate::survive;
use crate::upper::UpperLayer;

impl Tree {
    /// Makes a staged file one without data, if there is data that could be left in the lower and a way to say so.
    pub(super) fn leaves_data(&self, upper: &UpperLayer, file: &OwnedFd, stat: &Stat) -> Result<bool> {
        // Under its other names the kernel's overlayfs would find the data of the old file.
        if !self.habits.metacopy || stat.size == 0 || stat.nlink > 1 && self.lower.is_joined(stat.ino) {
            return Ok(false);
        }
        match upper.set_mark(file.as_fd(), METACOPY, b"") {
            Ok(()) => rustix::fs::ftruncate(file, stat.size).map(|()| true),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies the data that was left in the lower, as much of it as is wanted. The caller holds `copying`.
    pub(super) fn complete(&self, upper: &UpperLayer, object: &Object, wanted: Wanted) -> Result<()> {
        let content = object.state().content;
        let data = match content {
            Content::Own => return Ok(()),
            Content::Lower(data) => Some(data),
            Content::Missing => None,
        };
        let path = {
            let _names = self.read_names();
            self.upper_file(object)?
        };
        let file = backing::reopen(path.as_fd(), OFlags::RDWR)?;
        let before = backing::stat(file.as_fd())?;
        let length = match wanted {
            Wanted::Data(length) => length.min(before.size),
            Wanted::Attributes | Wanted::Everything => before.size,
        };
        // Writing takes it away: who ends halfway must find it.
        let capability = match backing::xattr(file.as_fd(), capability::NAME)? {
            Some(value) => {
                self.note_capability(upper, object, file.as_fd(), &value)?;
                Some(value)
            }
            None => self.marks.read(file.as_fd())?.capability,
        };
        let restore_capability = || match &capability {
            Some(value) => {
                backing::set_xattr(file.as_fd(), capability::NAME, value, XattrFlags::empty())?;
                self.accounted(object, file.as_fd(), || upper.remove_mark(file.as_fd(), marks::CAPABILITY))
            }
            None => Ok(()),
        };
        let bring = || {
            if length > 0 {
                let data = data.ok_or(Errno::IO)?;
                let lower = self.lower.stat(data)?;
                let bytes = length.min(lower.blocks.saturating_mul(512));
                self.fill_accounted(object, &file, bytes, || {
                    self.lower.copy_data(data, file.as_fd(), length.min(lower.size))
                })?;
            }
            survive::step();
            // With the mark still there this shows as much of the lower, which is right if we end here.
            rustix::fs::ftruncate(&file, length)?;
            survive::step();
            restore_capability()?;
            survive::step();
            if upper.is_durable() { rustix::fs::fdatasync(&file) } else { Ok(()) }
        };
        bring().inspect_err(|_| {
            // Its data does not count as long as it has the mark, but takes room; all else counts.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = self.allocate_accounted(object, &file, flags, 0, before.size.max(1));
            let _ = rustix::fs::ftruncate(&file, before.size);
            let _ = restore_capability();
            let _ = backing::restore_times(file.as_fd(), before.atime, before.mtime);
        })?;
        for mark in [METACOPY, REDIRECT] {
            self.accounted(object, file.as_fd(), || upper.remove_mark(file.as_fd(), mark))?;
        }
        backing::restore_times(file.as_fd(), before.atime, before.mtime)?;
        let held = {
            let mut state = object.state();
            state.content = Content::Own;
            state.held.take()
        };
        if let Some(held) = held {
            self.lower.forget(held, 1);
        }
        // The time of its last change has moved.
        self.outdated.add(object.ino);
        Ok(())
    }

    /// Notes a capability where nothing that is done to the file's data can take it away. What cannot be noted is lost
    /// only if the machine or the server ends before it is given back.
    fn note_capability(&self, upper: &UpperLayer, object: &Object, file: BorrowedFd<'_>, value: &[u8]) -> Result<()> {
        match self.accounted(object, file, || upper.set_mark(file, marks::CAPABILITY, value)) {
            Ok(()) | Err(Errno::NOSPC | Errno::OPNOTSUPP | Errno::RANGE | Errno::TOOBIG | Errno::PERM) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a file its capabilities back that a copy of its data has taken away and not given back, because it did not
    /// come to its end. If it takes none, as in a user namespace that may not give it or on a filesystem that has none, the
    /// note stays for who can. Returns whether anything about the file may have changed.
    pub(super) fn recover_capability(&self, file: BorrowedFd<'_>, marks: &Marks) -> bool {
        let (Some(value), Ok(upper)) = (&marks.capability, self.writable_upper()) else { return false };
        let given = backing::set_xattr(file, capability::NAME, value, XattrFlags::empty());
        if let Err(error) = given.and_then(|()| upper.remove_mark(file, marks::CAPABILITY)) {
            tracing::warn!(%error, "a file of the upper has not got its capabilities back that a copy had taken away");
        }
        true
    }

    /// Does so for every file whose data was being copied when an earlier server died, before anything is served.
    pub(crate) fn recover_capabilities(&self) {
        let _names = self.read_names();
        for object in self.objects.all() {
            if object.state().content != Content::Own
                && let Ok(file) = self.upper_file(&object)
                && let Ok(marks) = self.marks.read(file.as_fd())
            {
                self.recover_capability(file.as_fd(), &marks);
            }
        }
    }

    /// Takes away the note of a capability that was not given back, as whatever takes away the capability must. It is there
    /// only as long as the data is elsewhere.
    pub(super) fn forget_capability(&self, object: &Object, file: BorrowedFd<'_>) -> Result<()> {
        if object.state().content == Content::Own {
            return Ok(());
        }
        self.writable_upper()?.remove_mark(file, marks::CAPABILITY)
    }

    /// Waits for a copy of the data that is being made, since that ends with the times and capabilities of when it began.
    pub(super) fn wait_for_copy<'a>(&self, object: &'a Object) -> Option<MutexGuard<'a, ()>> {
        let own = object.state().content == Content::Own;
        (!own).then(|| object.copying.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Marks a directory that gets something which came from the lower: overlayfs looks for numbers of other layers
    /// there only. The caller holds `namespace` for writing.
    pub(super) fn mark_impure(&self, upper: &UpperLayer, dir: &Object, file: BorrowedFd<'_>) -> Result<()> {
        if dir.state().impure {
            return Ok(());
        }
        match self.accounted(dir, file, || upper.set_mark(file, b"impure", b"y")) {
            // Without it numbers and links are not found again, should this become a lower.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC) => {}
            Err(error) => return Err(error),
        }
        dir.state().impure = true;
        Ok(())
    }

    /// The same, if the number of what comes there is not its own. Then it is also recorded, in case that it was copied up
    /// by the kernel, where the name alone told the number. The caller holds `namespace` for writing.
    pub(super) fn mark_impure_for(&self, upper: &UpperLayer, dir: &Object, child: &Object) -> Result<()> {
        if child.state().upper.is_some_and(|identity| self.number(identity) == child.ino) {
            return Ok(());
        }
        let file = self.upper_file(child)?;
        if child.kind != Kind::Directory
            && self.marks.read(file.as_fd())?.number.is_none()
            && let Some(layer) = self.lower.layer_of(child.ino)
        {
            upper.record_number(
                file.as_fd(),
                Recorded { ino: child.ino, layer, shared: child.state().link.is_some() },
            )?;
        }
        self.mark_impure(upper, dir, self.upper_file(dir)?.as_fd())
    }

    /// Notes in a file where its data is, before it gets a name that does not tell. Returns whether the data has to be
    /// copied instead. The caller holds `namespace` for writing.
    pub(super) fn keep_data(&self, upper: &UpperLayer, object: &Object) -> Result<bool> {
        let Content::Lower(data) = object.state().content else { return Ok(false) };
        let Some(path) = self.lower.file_path(data) else { return Ok(true) };
        let file = self.upper_file(object)?;
        match self.accounted(object, file.as_fd(), || upper.set_mark(file.as_fd(), REDIRECT, &path)) {
            Ok(()) => Ok(false),
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::OPNOTSUPP) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

const METACOPY: &[u8] = b"metacopy";
const REDIRECT: &[u8] = b"redirect";
