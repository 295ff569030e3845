//! Answers to requests, as values and as bytes.

use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::backing::Backing;
use super::wire::{
    self, Attr, AttrOut, CopyFileRangeOut, EntryOut, GetxattrOut, IoctlOut, LseekOut, OpenOut, StatfsOut, StatxOut,
    WriteOut, fopen,
};
use crate::node::{Kind, Stat, type_bits};
use crate::tree::Usage;

/// An answer.
#[derive(Debug)]
pub(crate) enum Reply {
    /// There is none to give.
    Silent,
    Error(Errno),
    Done,
    Entry(EntryOut),
    Attributes(AttrOut),
    Statx(Box<StatxOut>),
    Opened(Open),
    Created(EntryOut, Open),
    /// So many bytes, which have been put into the room that the transport gave.
    InRoom(usize),
    Bytes(Vec<u8>),
    Written(u32),
    Copied(u64),
    /// How much room a value needs.
    Needs(u32),
    Position(u64),
    Statfs(StatfsOut),
    Ioctl(Vec<u8>),
}

/// How a file was opened.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) handle: u64,
    pub(crate) flags: u32,
    pub(crate) backing: Option<Arc<Backing>>,
}

/// The bytes of an answer, for one write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Encoded<'a> {
    /// Negative errno, or 0.
    pub(crate) error: i32,
    pub(crate) first: &'a [u8],
    pub(crate) second: &'a [u8],
}

impl Reply {
    /// Returns the bytes of the answer; those in the room are not among them. `None` if there is nothing to send.
    pub(crate) fn with_bytes<T>(&self, send: impl FnOnce(Option<Encoded<'_>>) -> T) -> T {
        let fine = |first, second| Some(Encoded { error: 0, first, second });
        match self {
            Reply::Silent => send(None),
            Reply::Error(error) => send(Some(Encoded { error: -error.raw_os_error(), first: &[], second: &[] })),
            Reply::Done | Reply::InRoom(_) => send(fine(&[], &[])),
            Reply::Entry(entry) => send(fine(entry.as_bytes(), &[])),
            Reply::Attributes(attributes) => send(fine(attributes.as_bytes(), &[])),
            Reply::Statx(statx) => send(fine(statx.as_bytes(), &[])),
            Reply::Opened(open) => send(fine(open.to_wire().as_bytes(), &[])),
            Reply::Created(entry, open) => send(fine(entry.as_bytes(), open.to_wire().as_bytes())),
            Reply::Bytes(bytes) => send(fine(bytes, &[])),
            Reply::Written(size) => send(fine(WriteOut { size: *size, padding: 0 }.as_bytes(), &[])),
            Reply::Copied(copied) => send(fine(CopyFileRangeOut { copied: *copied }.as_bytes(), &[])),
            Reply::Needs(size) => send(fine(GetxattrOut { size: *size, padding: 0 }.as_bytes(), &[])),
            Reply::Position(offset) => send(fine(LseekOut { offset: *offset }.as_bytes(), &[])),
            Reply::Statfs(statfs) => send(fine(statfs.as_bytes(), &[])),
            Reply::Ioctl(data) => send(fine(IoctlOut::default().as_bytes(), data)),
        }
    }
}

impl Open {
    fn to_wire(&self) -> OpenOut {
        match &self.backing {
            Some(backing) => {
                let backing = backing.number();
                OpenOut { handle: self.handle, open_flags: self.flags | fopen::PASSTHROUGH, backing }
            }
            None => OpenOut { handle: self.handle, open_flags: self.flags, backing: 0 },
        }
    }
}

impl From<Errno> for Reply {
    fn from(error: Errno) -> Reply {
        Reply::Error(error)
    }
}

/// Puts attributes into the kernel's form.
pub(super) fn attributes(stat: &Stat) -> Attr {
    Attr {
        ino: stat.ino.0,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime.seconds.cast_unsigned(),
        mtime: stat.mtime.seconds.cast_unsigned(),
        ctime: stat.ctime.seconds.cast_unsigned(),
        atime_nanoseconds: stat.atime.nanoseconds,
        mtime_nanoseconds: stat.mtime.nanoseconds,
        ctime_nanoseconds: stat.ctime.nanoseconds,
        mode: stat.mode(),
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        device: device_number(stat.device.major, stat.device.minor),
        block_size: stat.block_size,
        flags: 0,
    }
}

/// Returns the answer "there is no such name", which may be kept like any other.
pub(super) fn absent() -> EntryOut {
    EntryOut { entry_valid: FOREVER, ..EntryOut::default() }
}

pub(super) fn statfs(usage: &Usage) -> StatfsOut {
    StatfsOut {
        blocks: usage.blocks,
        free: usage.free,
        available: usage.available,
        files: usage.files,
        free_files: usage.free_files,
        block_size: usage.block_size,
        name_length: 255,
        fragment_size: usage.block_size,
        ..StatfsOut::default()
    }
}

/// Returns the `d_type` of a kind.
pub(super) fn dirent_kind(kind: Kind) -> u32 {
    type_bits(kind) >> 12
}

/// Returns where an entry that begins at `used` ends.
pub(super) fn dirent_end(used: usize, with_attributes: bool, name: &[u8]) -> usize {
    let attributes = if with_attributes { size_of::<EntryOut>() } else { 0 };
    used + attributes + size_of::<wire::Dirent>() + name.len().next_multiple_of(8)
}

/// Appends one entry of a directory to `room` behind `used` bytes and returns the new end, or `None` if it is full.
pub(super) fn put_dirent(
    room: &mut [u8],
    used: usize,
    entry: Option<&EntryOut>,
    dirent: &wire::Dirent,
    name: &[u8],
) -> Option<usize> {
    let mut end = used;
    let mut put = |bytes: &[u8]| {
        room.get_mut(end..end + bytes.len())?.copy_from_slice(bytes);
        end += bytes.len();
        Some(())
    };
    if let Some(entry) = entry {
        put(entry.as_bytes())?;
    }
    put(dirent.as_bytes())?;
    put(name)?;
    put(&[0; 7][..name.len().next_multiple_of(8) - name.len()])?;
    Some(end)
}

/// Packs a device number as the FUSE protocol does (`new_encode_dev`).
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// How long the kernel may keep what it was told, in seconds: until it is told otherwise.
///
/// As large as the kernel's arithmetic allows, so that it never expires.
pub(super) const FOREVER: u64 = u32::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::request::device;
    use crate::node::Device;

    #[test]
    fn device_numbers_survive_the_packing() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 300_000), (4095, 0xf_ffff)] {
            assert_eq!(device(device_number(major, minor)), Device { major, minor });
        }
    }

    #[test]
    fn a_directory_entry_is_padded_and_never_written_in_part() {
        let dirent = wire::Dirent { name_length: 3, ..wire::Dirent::default() };
        let mut room = [0xff; 64];
        assert_eq!(put_dirent(&mut room, 0, None, &dirent, b"abc"), Some(32));
        assert_eq!(&room[24..32], b"abc\0\0\0\0\0");
        assert_eq!(put_dirent(&mut room, 32, None, &dirent, b"12345678"), Some(64));
        assert_eq!(put_dirent(&mut room, 33, None, &dirent, b"12345678"), None);
        assert_eq!(put_dirent(&mut room, 64, None, &dirent, b""), None);
    }
}
