//! Keeping count of what the upper holds: each change of a file is wrapped by one of these, and costs nothing but that
//! where nothing is limited.
//!
//! A file's share is read before its first change and after each, so it does not matter what a filesystem allocates for
//! what. Files on such a mount are never written by the kernel past us ([`Tree::backing_file`]).

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;

use super::Tree;
use super::copy_up::Wanted;
use super::object::Object;
use crate::Result;
use crate::backing;
use crate::node::{Ino, Kind};
use crate::quota::{Admission, LayerUsage, Room, allocated_of};

/// What the sums hold of one file. `Account::charged` is the last of all locks.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Its allocated bytes, once they had to be known.
    charged: Mutex<Option<u64>>,
    /// It has no name, nobody has it open, and so the kernel is about to forget it.
    leaving: AtomicBool,
}

impl Account {
    fn charged(&self) -> MutexGuard<'_, Option<u64>> {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    /// Returns what the writable layer holds, if that is counted because it is limited.
    pub fn layer_usage(&self) -> Option<LayerUsage> {
        self.ledger.as_ref().map(|ledger| ledger.usage())
    }

    /// Ends the counting: keeps the sums for the next mount. Further changes would not be counted.
    pub(super) fn keep_accounts(&self) {
        let (Some(ledger), Some(upper)) = (&self.ledger, &self.upper) else { return };
        // What was deleted and is still held goes with this process.
        self.objects.for_each(&mut |object| self.account_gone(object));
        // A filesystem may take blocks when it writes; only then a file's share is what it will be found to be.
        if upper.is_durable()
            && let Err(error) = self.write_through()
        {
            tracing::warn!(%error, "the layer will be counted at its next mount");
            return;
        }
        {
            let _names = self.read_names();
            for object in self.objects.all() {
                self.settle_account(&object);
            }
        }
        if let Err(error) = ledger.keep(upper) {
            tracing::warn!(%error, "the layer will be counted at its next mount");
        }
    }

    /// Notes the share of a file that is about to change.
    pub(super) fn account_before(&self, object: &Object, file: BorrowedFd<'_>) -> Result<()> {
        if self.ledger.is_some() {
            let mut charged = object.account.charged();
            if charged.is_none() {
                *charged = Some(allocated_of(file)?);
            }
        }
        Ok(())
    }

    /// Counts what a file has grown or shrunk by since then; returns whether it grew.
    pub(super) fn account_after(&self, object: &Object, file: BorrowedFd<'_>) -> bool {
        let Some(ledger) = &self.ledger else { return false };
        let mut charged = object.account.charged();
        // If it cannot be told, the next change tells.
        let Ok(now) = allocated_of(file) else { return false };
        let before = charged.replace(now).unwrap_or(now);
        ledger.changed(before, now);
        now > before
    }

    /// Counts what the filesystem has done to a file since its last change, if there was one. The caller holds
    /// `namespace`.
    fn settle_account(&self, object: &Object) {
        if self.ledger.is_none() || !object.is_in_upper() || object.account.charged().is_none() {
            return;
        }
        if let Ok(file) = self.upper_file(object) {
            self.account_after(object, file.as_fd());
        }
    }

    /// Counts once more what the file of an object has that is about to be closed or forgotten, where that costs no more
    /// than to ask for it.
    pub(super) fn account_last(&self, object: &Object, file: Option<&OwnedFd>) {
        if self.ledger.is_some()
            && let Some(file) = file
            && object.account.charged().is_some()
        {
            self.account_after(object, file.as_fd());
        }
    }

    /// Counts that a file which the last server had made is taken away again; nobody has it open.
    pub(super) fn account_unmade(&self, object: Option<&Object>, raw: &backing::RawStat) {
        let Some(ledger) = &self.ledger else { return };
        let charged = object.and_then(|object| object.account.charged().take());
        ledger.gone(charged.unwrap_or_else(|| crate::quota::allocated(raw)));
    }

    /// Changes a file in a way that takes no space.
    pub(super) fn accounted<T>(
        &self,
        object: &Object,
        file: BorrowedFd<'_>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.account_before(object, file)?;
        let result = change();
        self.account_after(object, file);
        result
    }

    /// Counts a directory's growth by a name.
    pub(super) fn account_directory(&self, directory: &Object) {
        if self.ledger.is_some()
            && let Ok(file) = self.upper_file(directory)
        {
            self.account_after(directory, file.as_fd());
        }
    }

    /// Allows one more inode, of which `bytes` are needed at once.
    pub(super) fn admit(&self, bytes: u64) -> Result<Option<Admission<'_>>> {
        self.ledger.as_ref().map(|ledger| ledger.admit(bytes)).transpose()
    }

    /// Allows the copy of a lower node.
    pub(super) fn admit_copy(&self, ino: Ino, wanted: Wanted) -> Result<Option<Admission<'_>>> {
        let Some(ledger) = &self.ledger else { return Ok(None) };
        let stat = self.lower.stat(ino)?;
        let bytes = match (stat.kind, wanted) {
            (Kind::Regular, Wanted::Everything) => stat.size.min(stat.blocks.saturating_mul(512)),
            (Kind::Regular, Wanted::Data(length)) => length.min(stat.size),
            (Kind::Directory, _) => ledger.block(),
            _ => 0,
        };
        ledger.admit(ledger.span(0, bytes)).map(Some)
    }

    /// Counts a new file.
    pub(super) fn account_new(&self, object: &Object, file: BorrowedFd<'_>, admission: Option<Admission<'_>>) {
        let (Some(ledger), Some(admission)) = (&self.ledger, admission) else { return };
        let mut charged = object.account.charged();
        let now = allocated_of(file).unwrap_or(0);
        ledger.changed(0, now);
        *charged = Some(now);
        admission.used();
    }

    /// Notes that a file may be about to go, so that whoever finds no space waits for it.
    pub(super) fn account_leaving(&self, object: &Object) {
        let Some(ledger) = &self.ledger else { return };
        let goes = object.is_removed() && object.is_in_upper() && object.state().opens == 0;
        if goes && !object.account.leaving.swap(true, Ordering::Relaxed) {
            ledger.leaving();
        }
    }

    /// Counts that the file of an object that nobody knows any more is gone, if it is.
    pub(super) fn account_gone(&self, object: &Object) {
        let Some(ledger) = &self.ledger else { return };
        if object.account.leaving.swap(false, Ordering::Relaxed) {
            ledger.left();
        }
        if !object.is_removed() {
            return;
        }
        let Some(file) = object.state().pinned.clone() else { return };
        let Ok(raw) = backing::stat(file.as_fd()) else { return };
        // A removed directory has a link count on some filesystems.
        if raw.nlink == 0 || object.kind == Kind::Directory {
            let charged = object.account.charged().take();
            ledger.gone(charged.unwrap_or_else(|| crate::quota::allocated(&raw)));
        }
    }

    /// Counts files without a name that the last server has left us: a walk over the layer does not meet them.
    pub(super) fn account_restored(&self) {
        let Some(ledger) = &self.ledger else { return };
        self.objects.for_each(&mut |object| {
            let Some(file) = object.state().pinned.clone() else { return };
            let Ok(raw) = backing::stat(file.as_fd()) else { return };
            if raw.nlink == 0 || object.kind == Kind::Directory && object.is_removed() {
                let bytes = crate::quota::allocated(&raw);
                ledger.restored(bytes);
                *object.account.charged() = Some(bytes);
            }
        });
    }

    /// Writes as much as there is room for; fails only if there is none for the first byte.
    pub(super) fn write_accounted(&self, object: &Object, file: &OwnedFd, data: &[u8], offset: u64) -> Result<usize> {
        let whole = |data: &[u8]| crate::copy::write_all_at(file.as_fd(), data, offset).map(|()| data.len());
        let Some(ledger) = &self.ledger else { return whole(data) };
        self.account_before(object, file.as_fd())?;
        let most = ledger.span(offset, data.len() as u64);
        let mut room = ledger.reserve(most);
        // From here on one at a time, as what is left may be enough after all.
        let narrow = room.is_none().then(|| ledger.narrow());
        if narrow.is_some() {
            room = ledger.wait_for_room(most);
        }
        if room.is_some() {
            let result = whole(data);
            self.account_after(object, file.as_fd());
            return result;
        }
        let mut done = 0;
        while done < data.len() {
            let position = offset.saturating_add(done as u64);
            let in_block = usize::try_from(ledger.block() - position % ledger.block()).unwrap_or(usize::MAX);
            let part = &data[done..data.len().min(done.saturating_add(in_block))];
            match self.write_block(object, file, part, position) {
                Ok(true) => done += part.len(),
                Ok(false) | Err(Errno::NOSPC | Errno::DQUOT) => break,
                Err(error) => return Err(error),
            }
        }
        if done == 0 && !data.is_empty() { Err(Errno::NOSPC) } else { Ok(done) }
    }

    /// Writes within one block, and takes it back if the block was a new one and one too many.
    fn write_block(&self, object: &Object, file: &OwnedFd, part: &[u8], offset: u64) -> Result<bool> {
        let ledger = self.ledger.as_ref().ok_or(Errno::INVAL)?;
        let block = Block::look(file, offset, ledger.block())?;
        // What the file has grown by since its last change is not the fault of this one.
        self.account_after(object, file.as_fd());
        crate::copy::write_all_at(file.as_fd(), part, offset)?;
        if !self.account_after(object, file.as_fd()) || !ledger.is_over() || block.held {
            return Ok(true);
        }
        let result = block.free(file, offset.saturating_add(part.len() as u64));
        self.account_after(object, file.as_fd());
        result.map(|()| false)
    }

    /// Copies this much data into a file of which there was none before.
    pub(super) fn fill_accounted(
        &self,
        object: &Object,
        file: &OwnedFd,
        bytes: u64,
        copy: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(ledger) = &self.ledger else { return copy() };
        self.account_before(object, file.as_fd())?;
        let most = ledger.span(0, bytes);
        let mut room = ledger.reserve(most);
        let narrow = room.is_none().then(|| ledger.narrow());
        if narrow.is_some() {
            room = ledger.wait_for_room(most);
        }
        if room.is_none() {
            return Err(Errno::NOSPC);
        }
        let result = copy();
        self.account_after(object, file.as_fd());
        result
    }

    /// Allocates or frees space of a file.
    pub(super) fn allocate_accounted(
        &self,
        object: &Object,
        file: &OwnedFd,
        flags: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let Some(ledger) = &self.ledger else { return rustix::fs::fallocate(file, flags, offset, length) };
        self.account_before(object, file.as_fd())?;
        let frees = flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE);
        let most = if frees { 0 } else { ledger.span(offset, length) };
        let _narrow = ledger.narrow();
        if frees || ledger.wait_for_room(most).is_some() {
            let result = rustix::fs::fallocate(file, flags, offset, length);
            self.account_after(object, file.as_fd());
            return result;
        }
        // Some of it may be allocated already. Hopeless is what would not fit even if all was.
        let held = allocated_of(file.as_fd())?;
        let missing = most.saturating_sub(held);
        if missing > 0 && ledger.reserve(missing).is_none() {
            return Err(Errno::NOSPC);
        }
        let end = offset.saturating_add(length);
        let mut position = offset;
        while position < end {
            let step = (ledger.block() - position % ledger.block()).min(end - position);
            let block = Block::look(file, position, ledger.block())?;
            self.account_after(object, file.as_fd());
            rustix::fs::fallocate(file, flags, position, step)?;
            position += step;
            if self.account_after(object, file.as_fd()) && ledger.is_over() && !block.held {
                let freed = block.free(file, position);
                self.account_after(object, file.as_fd());
                return freed.and(Err(Errno::NOSPC));
            }
        }
        Ok(())
    }

    /// Takes hold of what a copy between files needs at most, if that is there; without limits it is nothing.
    pub(super) fn copy_room(&self, offset: u64, length: u64) -> Result<Option<Room<'_>>> {
        let Some(ledger) = &self.ledger else { return Ok(None) };
        ledger.reserve(ledger.span(offset, length)).map(Some).ok_or(Errno::NOSPC)
    }

    /// Sets an attribute, and takes that back if it needed a block too many.
    pub(super) fn set_xattr_accounted(
        &self,
        object: &Object,
        file: BorrowedFd<'_>,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let Some(ledger) = &self.ledger else { return backing::set_xattr(file, name, value, flags) };
        self.account_before(object, file)?;
        // What the file has grown by since its last change is not the fault of this one.
        self.account_after(object, file);
        let before = backing::xattr(file, name)?;
        backing::set_xattr(file, name, value, flags)?;
        if self.account_after(object, file) && ledger.is_over() {
            match before {
                Some(before) => backing::set_xattr(file, name, &before, XattrFlags::empty())?,
                None => backing::remove_xattr(file, name)?,
            }
            self.account_after(object, file);
            return Err(Errno::NOSPC);
        }
        Ok(())
    }
}

/// A block that a change may allocate, as it was before.
struct Block {
    start: u64,
    length: u64,
    /// The file's size.
    size: u64,
    /// It was the file's already: with data, which nothing may take away, or allocated ahead.
    held: bool,
}

impl Block {
    fn look(file: &OwnedFd, offset: u64, length: u64) -> Result<Block> {
        let size = backing::stat(file.as_fd())?.size;
        let start = offset - offset % length;
        let has_data = || match rustix::fs::seek(file, SeekFrom::Data(start)) {
            Ok(data) => data < start.saturating_add(length),
            Err(Errno::NXIO) => false,
            // If it cannot be told, there may be.
            Err(_) => true,
        };
        // What such a block makes the file grow by when it is written is only what it takes to find it.
        let allocated = || strata_sys::extents::is_allocated(file.as_fd(), start, length).unwrap_or(false);
        let held = start < size && has_data() || allocated();
        Ok(Block { start, length, size, held })
    }

    /// Frees the block after a change that ended at `end`.
    fn free(&self, file: &OwnedFd, end: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let now = backing::stat(file.as_fd())?.size;
        if self.start < now {
            rustix::fs::fallocate(file, flags, self.start, self.length)?;
        }
        // Space behind the end goes only by truncation. If somebody else has made the file longer, that stays.
        if now == self.size || now == end { rustix::fs::ftruncate(file, self.size) } else { Ok(()) }
    }
}
