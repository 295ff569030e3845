//! The three landlock calls, without the allocation that a library around them needs.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Returns the newest landlock ABI that the kernel speaks.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` where landlock is absent or switched off.
pub fn abi() -> io::Result<u32> {
    // SAFETY: with the version flag the kernel dereferences nothing.
    let version = unsafe {
        libc::syscall(SYS_LANDLOCK_CREATE_RULESET, std::ptr::null::<u8>(), 0_usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}

/// Makes a ruleset that denies `handled` filesystem accesses except where a rule allows them.
///
/// # Errors
/// The errno of `landlock_create_ruleset`.
pub fn create_ruleset(handled: u64) -> io::Result<OwnedFd> {
    // The first field alone is the structure of ABI 1, and every newer kernel accepts it.
    // SAFETY: the kernel reads eight bytes through the pointer.
    let fd = unsafe { libc::syscall(SYS_LANDLOCK_CREATE_RULESET, &raw const handled, size_of::<u64>(), 0) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that nobody else knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Allows `access` on `path` and everything beneath it.
///
/// # Errors
/// The errno of `landlock_add_rule`; `EINVAL` for directory accesses on something that is none.
pub fn allow_beneath(ruleset: BorrowedFd<'_>, path: BorrowedFd<'_>, access: u64) -> io::Result<()> {
    #[repr(C, packed)]
    struct PathBeneath {
        allowed_access: u64,
        parent_fd: i32,
    }
    let rule = PathBeneath { allowed_access: access, parent_fd: path.as_raw_fd() };
    // SAFETY: `rule` is laid out as `struct landlock_path_beneath_attr`; the kernel reads it during the call.
    let result = unsafe {
        libc::syscall(SYS_LANDLOCK_ADD_RULE, ruleset.as_raw_fd(), LANDLOCK_RULE_PATH_BENEATH, &raw const rule, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Applies the ruleset to the calling thread and its future children, for good.
///
/// # Errors
/// `EPERM` without `no_new_privs` and without `CAP_SYS_ADMIN` in the own user namespace.
pub fn restrict_self(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let result = unsafe { libc::syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset.as_raw_fd(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// Numbers shared by all architectures; libc has no names for them on every target.
const SYS_LANDLOCK_CREATE_RULESET: libc::c_long = 444;
const SYS_LANDLOCK_ADD_RULE: libc::c_long = 445;
const SYS_LANDLOCK_RESTRICT_SELF: libc::c_long = 446;
const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;
