//! Opening files of an EROFS mount by number.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags};
use strata_layer::objects;
use strata_sys::file_handle::{FileHandle, name_to_handle_at, open_by_handle_at};

use super::ObjectsUnavailable;

/// How this kernel writes the number of an EROFS inode into a file handle.
///
/// That is nobody's interface, so it is learnt from the handle of a file whose number is known, the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HandleForm {
    kind: i32,
    width: Width,
    generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// Number, generation.
    Narrow,
    /// High half of the number, low half, generation.
    Wide,
}

impl HandleForm {
    /// Learns the form from the root of a mounted table.
    pub(super) fn learn(root: &OwnedFd) -> Result<HandleForm, ObjectsUnavailable> {
        let handle = name_to_handle_at(root.as_fd(), c"", AtFlags::EMPTY_PATH).map_err(|error| {
            let source = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
            ObjectsUnavailable::Mount { step: "name_to_handle_at", source }
        })?;
        let unknown = ObjectsUnavailable::HandleForm { kind: handle.kind(), length: handle.bytes().len() };
        HandleForm::of_root(&handle).ok_or(unknown)
    }

    fn of_root(handle: &FileHandle) -> Option<HandleForm> {
        let width = match handle.bytes().len() {
            8 => Width::Narrow,
            12 => Width::Wide,
            _ => return None,
        };
        let generation = u32::from_ne_bytes(*handle.bytes().last_chunk()?);
        let form = HandleForm { kind: handle.kind(), width, generation };
        (form.handle(objects::ROOT_NID)? == *handle).then_some(form)
    }

    /// Opens the file with number `nid` for reading.
    pub(super) fn open(&self, root: &OwnedFd, nid: u64) -> io::Result<OwnedFd> {
        let handle = self.handle(nid).ok_or(io::ErrorKind::InvalidInput)?;
        open_by_handle_at(root.as_fd(), &handle, OFlags::RDONLY)
    }

    fn handle(&self, nid: u64) -> Option<FileHandle> {
        let mut bytes = [0; 12];
        let (words, rest) = bytes.as_chunks_mut::<4>();
        debug_assert!(rest.is_empty());
        let low = u32::try_from(nid & u64::from(u32::MAX)).ok()?;
        let high = u32::try_from(nid >> 32).ok()?;
        let used = match self.width {
            Width::Narrow if high != 0 => return None,
            Width::Narrow => [low, self.generation, 0],
            Width::Wide => [high, low, self.generation],
        };
        for (word, value) in words.iter_mut().zip(used) {
            *word = value.to_ne_bytes();
        }
        let length = if self.width == Width::Narrow { 8 } else { 12 };
        FileHandle::new(self.kind, &bytes[..length])
    }
}
