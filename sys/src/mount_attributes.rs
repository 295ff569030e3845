//! `mount_setattr`: flags, propagation and id mapping of mounts, one or a whole tree.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What `mount_setattr` changes. `MOUNT_ATTR_*` bits and an `MS_*` propagation type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 for no change.
    pub propagation: u64,
}

impl MountAttributes {
    /// Tells whether applying these would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Read-only.
pub const RDONLY: u64 = 0x1;
/// Set-user-id bits and file capabilities are ignored.
pub const NOSUID: u64 = 0x2;
/// Device files cannot be opened.
pub const NODEV: u64 = 0x4;
/// Programs cannot be executed.
pub const NOEXEC: u64 = 0x8;
/// The field of the access-time mode: `RELATIME` (0), `NOATIME` or `STRICTATIME`.
pub const ATIME: u64 = 0x70;
/// Access times are not updated.
pub const NOATIME: u64 = 0x10;
/// Access times are always updated.
pub const STRICTATIME: u64 = 0x20;
/// Directory access times are not updated.
pub const NODIRATIME: u64 = 0x80;
/// Owners are mapped through a user namespace.
pub const IDMAP: u64 = 0x0010_0000;
/// Symlinks are not followed.
pub const NOSYMFOLLOW: u64 = 0x0020_0000;

/// Changes the mount that `directory` and `path` name (an empty path names the descriptor itself), with all mounts
/// below it when `recursive`.
///
/// # Errors
/// The errno of the call: `EPERM` where a flag is locked by a more privileged namespace, `ENOSYS` before Linux 5.12.
pub fn mount_setattr(
    directory: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: &MountAttributes,
) -> io::Result<()> {
    set(directory, path, recursive, attributes, 0)
}

/// Makes the mount that `mount` is the root of read-only, whatever its filesystem is.
///
/// # Errors
/// As [`mount_setattr`].
pub fn set_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    mount_setattr(mount, c"", false, &MountAttributes { set: RDONLY, ..MountAttributes::default() })
}

/// Maps the owners of a mount that is not attached anywhere yet through the user namespace of `namespace`.
///
/// # Errors
/// The errno of the call: `EINVAL` where the filesystem cannot be id-mapped.
pub fn mount_idmap(mount: BorrowedFd<'_>, recursive: bool, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = MountAttributes { set: IDMAP, ..MountAttributes::default() };
    set(mount, c"", recursive, &attributes, u64::from(namespace.as_raw_fd().unsigned_abs()))
}

fn set(
    directory: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: &MountAttributes,
    user_namespace: u64,
) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let raw =
        MountAttr { set: attributes.set, clear: attributes.clear, propagation: attributes.propagation, user_namespace };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: the path is NUL-terminated and `raw` is a `struct mount_attr` of the size passed; the kernel reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const raw,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const AT_RECURSIVE: libc::c_int = 0x8000;
