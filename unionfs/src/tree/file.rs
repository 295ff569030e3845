//! Opening files, and their data.
//!
//! One descriptor per file serves everybody who has it open, with offsets given at each call. A file that is only in
//! the lower needs none.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Tree;
use super::copy_up::Wanted;
use super::object::{Content, Data, Object};
use crate::Result;
use crate::backing;
use crate::node::{Ino, Kind};
use crate::upper::UpperLayer;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Its data will be changed.
    pub write: bool,
    /// Its data is thrown away.
    pub truncate: bool,
    /// Truncating it takes away what lets it run as somebody else.
    pub kill_privileges: bool,
}

/// Where the data of an open file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a file opened in the upper must be released"]
pub enum Opened {
    /// In a lower; nothing has to be released.
    Lower,
    /// In the upper; [`Tree::release`] must follow.
    Upper,
}

/// Where the data of a regular file is.
#[derive(Debug)]
pub(super) enum DataPlace {
    /// In this object's file in the upper.
    Upper(Arc<Object>),
    /// In this node of the lower.
    Lower(Ino),
    /// Nowhere: the upper says that it is in the lower, which has no such file.
    Missing,
}

impl Tree {
    /// Opens a regular file; for writing, it is brought into the upper.
    pub fn open_file(&self, ino: Ino, access: Access) -> Result<Opened> {
        if access.write || access.truncate {
            let object = self.copy_up(ino, if access.truncate { Wanted::Data(0) } else { Wanted::Everything })?;
            let _names = self.read_names();
            if object.kind != Kind::Regular {
                return Err(Errno::INVAL);
            }
            object.state().opens += 1;
            let opened = self.open_for_change(&object, access);
            if opened.is_err() {
                drop_data(&object);
            }
            return opened.map(|()| Opened::Upper);
        }
        let _names = self.read_names();
        match self.data_place(ino) {
            DataPlace::Upper(object) => {
                object.state().opens += 1;
                Ok(Opened::Upper)
            }
            DataPlace::Lower(_) | DataPlace::Missing => Ok(Opened::Lower),
        }
    }

    /// Takes back one [`open_file`](Self::open_file) that found the file in the upper.
    pub fn release(&self, ino: Ino) {
        if let Some(object) = self.object(ino) {
            let data = object.state().data.clone();
            self.account_last(&object, data.as_ref().map(|data| &*data.file));
            drop(data);
            drop_data(&object);
            self.account_leaving(&object);
        }
    }

    /// Returns a file with the node's data for the kernel to work on directly: of the upper if it is there, else of the
    /// lower, if that has such a thing. A file whose growth is counted is never given away.
    pub fn backing_file(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        let _names = self.read_names();
        match self.data_place(ino) {
            DataPlace::Upper(_) if self.ledger.is_some() => None,
            DataPlace::Upper(object) => self.data(&object, false).ok(),
            DataPlace::Lower(data) => self.lower.open_object(data).map(Arc::new),
            DataPlace::Missing => None,
        }
    }

    /// Returns whether reading these bytes of a file would not wait for them to be fetched.
    pub(crate) fn is_here(&self, ino: Ino, offset: u64, length: u64) -> bool {
        match self.data_place(ino) {
            DataPlace::Lower(data) => self.lower.is_here(data, offset, length),
            DataPlace::Upper(_) | DataPlace::Missing => true,
        }
    }

    /// Returns whether the node has a file in the upper, be it with its data or without.
    pub fn is_in_upper(&self, ino: Ino) -> bool {
        self.upper_object(ino).is_some()
    }

    /// Returns whether the node's data is in the upper.
    pub(crate) fn has_own_data(&self, ino: Ino) -> bool {
        matches!(self.data_place(ino), DataPlace::Upper(_))
    }

    /// Reads from a regular file; fewer bytes than asked only at its end.
    pub fn read(&self, ino: Ino, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let object = match self.data_place(ino) {
            DataPlace::Upper(object) => object,
            DataPlace::Lower(data) => return self.read_lower_data(ino, data, buffer, offset),
            DataPlace::Missing => return Err(Errno::IO),
        };
        let file = self.data_now(&object, false)?;
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&*file, &mut buffer[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes to a regular file that is in the upper and returns how much was written: less than asked only where
    /// space is limited and ends. `foreign` says that the writer may not keep set-user-id bits.
    pub fn write(&self, ino: Ino, data: &[u8], offset: u64, foreign: bool) -> Result<usize> {
        let object = self.upper_object(ino).ok_or(Errno::BADF)?;
        let file = self.data_now(&object, true)?;
        if foreign {
            self.drop_privileges(&object, file.as_fd())?;
        }
        self.write_accounted(&object, &file, data, offset)
    }

    /// Allocates or frees space of a file; `mode` holds the bits of `fallocate`.
    pub fn allocate(&self, ino: Ino, mode: u32, offset: u64, length: u64) -> Result<()> {
        let object = self.copy_up(ino, Wanted::Everything)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        let file = self.data_now(&object, true)?;
        self.allocate_accounted(&object, &file, flags, offset, length)
    }

    /// Finds the next data or hole, as `lseek` does with `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        let object = match self.data_place(ino) {
            DataPlace::Upper(object) => object,
            DataPlace::Lower(lower) => return self.lower.seek(lower, offset, data),
            DataPlace::Missing => return Err(Errno::IO),
        };
        let from = if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
        // The position that this moves is nobody's: all reads and writes name their own.
        rustix::fs::seek(&*self.data_now(&object, false)?, from)
    }

    /// Copies a range from one file to another inside the union and returns how much was copied.
    pub fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), length: u64) -> Result<u64> {
        let target = self.copy_up(to.0, Wanted::Everything)?;
        let output = self.data_now(&target, true)?;
        let length = length.min(MAX_COPY);
        let DataPlace::Upper(source) = self.data_place(from.0) else {
            return self.copy_range_by_buffer(from, (&target, &output, to.1), length);
        };
        let input = self.data_now(&source, false)?;
        let length = length.min(backing::stat(input.as_fd())?.size.saturating_sub(from.1));
        let Ok(_room) = self.copy_room(to.1, length) else {
            return self.copy_range_by_buffer(from, (&target, &output, to.1), length);
        };
        let (mut input_offset, mut output_offset) = (from.1, to.1);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let copied = self.accounted(&target, output.as_fd(), || {
            rustix::fs::copy_file_range(&*input, Some(&mut input_offset), &*output, Some(&mut output_offset), length)
        })?;
        Ok(copied as u64)
    }

    /// Waits until a file or directory is on the disk.
    pub fn sync(&self, ino: Ino, data_only: bool) -> Result<()> {
        let Some(object) = self.upper_object(ino) else { return Ok(()) };
        if self.upper.as_ref().is_none_or(|upper| !upper.is_durable()) {
            return Ok(());
        }
        let file = match object.kind {
            Kind::Regular if object.state().content != Content::Own => {
                let _names = self.read_names();
                Arc::new(backing::reopen(self.upper_file(&object)?.as_fd(), OFlags::RDONLY)?)
            }
            Kind::Regular => self.data_now(&object, false)?,
            Kind::Directory => {
                let _names = self.read_names();
                if object.is_removed() {
                    return Ok(());
                }
                Arc::new(backing::reopen(self.upper_file(&object)?.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?)
            }
            _ => return Ok(()),
        };
        if data_only { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) }
    }

    /// Returns whether [`sync`](Self::sync) has something to wait for.
    pub(crate) fn sync_waits(&self, ino: Ino) -> bool {
        self.upper.as_ref().is_some_and(UpperLayer::is_durable) && self.is_in_upper(ino)
    }

    /// Waits until everything that was written is on the disk, unless the mount is not to wait for the disk.
    pub(crate) fn write_through_at_the_end(&self) -> Result<()> {
        self.announce_end();
        // Whoever unmounts a folder and waits for us may switch the machine off then.
        // Fails only for names that are too long. It tells those who wait that this is the end.
        let _ = rustix::thread::set_name(crate::mounted::ENDING);
        self.write_through()
    }

    /// Tells whoever mounts the same upper next that there is only to be written out. It is known until the lock of the
    /// upper is given back, which is when this process ends at the latest.
    fn announce_end(&self) {
        if let Some(ending) = self.upper.as_ref().filter(|upper| upper.is_writable()).and_then(UpperLayer::announce_end)
        {
            let _ = self.ending.set(ending);
        }
    }

    /// Waits until everything is on the disk.
    pub(crate) fn write_through(&self) -> Result<()> {
        match self.upper.as_ref().filter(|upper| upper.is_writable() && upper.is_durable()) {
            Some(upper) => rustix::fs::syncfs(backing::reopen(upper.root(), OFlags::RDONLY | OFlags::DIRECTORY)?),
            None => Ok(()),
        }
    }

    /// Returns where the data of a regular file is.
    pub(super) fn data_place(&self, ino: Ino) -> DataPlace {
        let Some(object) = self.upper_object(ino) else { return DataPlace::Lower(ino) };
        let content = object.state().content;
        match content {
            Content::Own => DataPlace::Upper(object),
            Content::Lower(data) => DataPlace::Lower(data),
            Content::Missing => DataPlace::Missing,
        }
    }

    /// Reads from the lower what a node shows of it.
    fn read_lower_data(&self, ino: Ino, data: Ino, buffer: &mut [u8], offset: u64) -> Result<usize> {
        if !self.is_in_upper(ino) {
            return self.lower.read_at(data, buffer, offset);
        }
        let left = usize::try_from(self.stat(ino)?.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        self.lower.read_at(data, &mut buffer[..length], offset)
    }

    fn copy_range_by_buffer(&self, from: (Ino, u64), to: (&Object, &OwnedFd, u64), length: u64) -> Result<u64> {
        let step = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 20);
        let mut buffer = vec![0; step];
        let read = self.read(from.0, &mut buffer, from.1)?;
        Ok(self.write_accounted(to.0, to.1, &buffer[..read], to.2)? as u64)
    }

    fn open_for_change(&self, object: &Object, access: Access) -> Result<()> {
        let file = self.data(object, true)?;
        if access.truncate {
            self.accounted(object, file.as_fd(), || rustix::fs::ftruncate(&*file, 0))?;
            if access.kill_privileges {
                self.drop_privileges(object, file.as_fd())?;
            }
        }
        Ok(())
    }

    /// Returns the open file of an object, for which it takes `namespace`.
    fn data_now(&self, object: &Object, write: bool) -> Result<Arc<OwnedFd>> {
        if let Some(data) = object.state().data.as_ref().filter(|data| data.writable || !write) {
            return Ok(Arc::clone(&data.file));
        }
        let _names = self.read_names();
        self.data(object, write)
    }

    /// Returns the open file of an object. The caller holds `namespace`.
    fn data(&self, object: &Object, write: bool) -> Result<Arc<OwnedFd>> {
        if object.kind != Kind::Regular {
            return Err(Errno::INVAL);
        }
        if let Some(data) = object.state().data.as_ref().filter(|data| data.writable || !write) {
            return Ok(Arc::clone(&data.file));
        }
        if object.state().content != Content::Own {
            // Whoever opened it for writing has copied its data.
            return Err(Errno::IO);
        }
        let path = self.upper_file(object)?;
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let file = Arc::new(backing::reopen(path.as_fd(), flags)?);
        let mut state = object.state();
        if state.opens > 0 {
            state.data = Some(Data { file: Arc::clone(&file), writable: write });
        }
        Ok(file)
    }
}

/// Returns permission bits without those that let a file run as somebody else.
///
/// Set-group-id without the right to execute means mandatory locking and stays, as in the kernel.
pub(super) fn without_privileges(permissions: u16) -> u16 {
    const SETUID: u16 = 0o4000;
    const SETGID: u16 = 0o2000;
    const GROUP_EXECUTE: u16 = 0o010;
    let kept = permissions & !SETUID;
    if kept & GROUP_EXECUTE != 0 { kept & !SETGID } else { kept }
}

fn drop_data(object: &Object) {
    let mut state = object.state();
    state.opens = state.opens.saturating_sub(1);
    if state.opens == 0 {
        // Closed after the lock is gone.
        let data = state.data.take();
        drop(state);
        drop(data);
    }
}

/// The most that one request copies, so that a queue is not held up.
const MAX_COPY: u64 = 1 << 28;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_group_id_goes_only_where_the_group_may_execute() {
        assert_eq!(without_privileges(0o4755), 0o755);
        assert_eq!(without_privileges(0o6755), 0o755);
        assert_eq!(without_privileges(0o2745), 0o2745);
        assert_eq!(without_privileges(0o2755), 0o755);
        assert_eq!(without_privileges(0o1777), 0o1777);
    }
}
