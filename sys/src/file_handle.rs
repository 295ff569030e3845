//! File handles: names for files that outlive paths, and opening a file by one.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags};

/// A file handle: what a filesystem calls one of its files, independent of names.
///
/// The bytes mean something only to the filesystem that made them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileHandle {
    kind: i32,
    length: u8,
    bytes: [u8; MAX_LENGTH],
}

impl FileHandle {
    /// Makes a handle of type `kind` from its bytes, or `None` if they are more than a handle can have.
    pub fn new(kind: i32, bytes: &[u8]) -> Option<FileHandle> {
        let mut buffer = [0; MAX_LENGTH];
        buffer.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let length = u8::try_from(bytes.len()).ok()?;
        Some(FileHandle { kind, length, bytes: buffer })
    }

    /// Returns the type, a number that the filesystem chose.
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileHandle").field("kind", &self.kind).field("bytes", &self.bytes()).finish()
    }
}

/// Returns the handle of the file at `path` below `directory`. `flags` may hold `EMPTY_PATH` and `SYMLINK_FOLLOW`.
pub fn name_to_handle_at(directory: BorrowedFd<'_>, path: &CStr, flags: AtFlags) -> io::Result<FileHandle> {
    let mut raw = RawHandle { length: libc::MAX_HANDLE_SZ.unsigned_abs(), kind: 0, bytes: [0; MAX_LENGTH] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: `raw` is a `struct file_handle` followed by the number of bytes that its first field announces, `path` is
    // terminated by NUL, and all pointers are valid for the call.
    let ret = unsafe {
        libc::name_to_handle_at(
            directory.as_raw_fd(),
            path.as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount_id,
            flags.bits().cast_signed(),
        )
    };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    match u8::try_from(raw.length) {
        Ok(length) if usize::from(length) <= MAX_LENGTH => Ok(FileHandle { kind: raw.kind, length, bytes: raw.bytes }),
        _ => Err(io::Error::from_raw_os_error(libc::EOVERFLOW)),
    }
}

/// Opens the file that `handle` names on the filesystem of `mount`, which is any file or directory of it that is open
/// (not with `O_PATH`). Needs CAP_DAC_READ_SEARCH in the initial user namespace; close-on-exec is always set.
pub fn open_by_handle_at(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> io::Result<OwnedFd> {
    let mut raw = RawHandle { length: handle.length.into(), kind: handle.kind, bytes: handle.bytes };
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    // SAFETY: `raw` is a `struct file_handle` followed by at least the number of bytes that its first field announces;
    // the kernel only reads it.
    let ret = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut raw).cast(), flags) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(ret) })
}

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    length: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; MAX_LENGTH],
}

/// `MAX_HANDLE_SZ` of the kernel.
const MAX_LENGTH: usize = 128;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_handle_keeps_its_bytes() {
        let handle = FileHandle::new(0x81, &[1, 2, 3]).unwrap();
        assert_eq!((handle.kind(), handle.bytes()), (0x81, &[1, 2, 3][..]));
        assert_eq!(FileHandle::new(1, &[0; 129]), None);
        assert_eq!(FileHandle::new(1, &[0; 128]).unwrap().bytes().len(), 128);
    }

    #[test]
    fn the_same_file_has_the_same_handle() {
        let root = std::fs::File::open("/").unwrap();
        // A filesystem without handles is no failure of ours.
        let Ok(by_path) = name_to_handle_at(root.as_fd(), c"usr", AtFlags::empty()) else { return };
        let usr = std::fs::File::open("/usr").unwrap();
        assert_eq!(name_to_handle_at(usr.as_fd(), c"", AtFlags::EMPTY_PATH).unwrap(), by_path);
    }
}
