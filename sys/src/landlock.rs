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

/// What a ruleset denies, laid out as `struct landlock_ruleset_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Accesses to files that need a rule.
    pub files: u64,
    /// Uses of TCP ports that need a rule. ABI 4.
    pub ports: u64,
    /// What can only be reached inside the domain, without exception. ABI 6.
    pub scoped: u64,
}

/// Makes a ruleset that denies what is `handled`, except where a rule allows it.
///
/// # Errors
/// The errno of `landlock_create_ruleset`; `E2BIG` or `EINVAL` for what the kernel is too old for.
pub fn create_ruleset(handled: &Handled) -> io::Result<OwnedFd> {
    // A kernel takes the structure of every ABI up to its own, told apart by size: no more is given than is asked for.
    let size = match handled {
        Handled { ports: 0, scoped: 0, .. } => 8,
        Handled { scoped: 0, .. } => 16,
        Handled { .. } => size_of::<Handled>(),
    };
    // SAFETY: the kernel reads `size` bytes, which the structure has.
    let fd = unsafe { libc::syscall(SYS_LANDLOCK_CREATE_RULESET, std::ptr::from_ref(handled), size, 0) };
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

/// Allows `access` to TCP port `port`.
///
/// # Errors
/// The errno of `landlock_add_rule`.
pub fn allow_port(ruleset: BorrowedFd<'_>, port: u16, access: u64) -> io::Result<()> {
    #[repr(C)]
    struct NetPort {
        allowed_access: u64,
        port: u64,
    }
    let rule = NetPort { allowed_access: access, port: port.into() };
    // SAFETY: `rule` is laid out as `struct landlock_net_port_attr`; the kernel reads it during the call.
    let result = unsafe {
        libc::syscall(SYS_LANDLOCK_ADD_RULE, ruleset.as_raw_fd(), LANDLOCK_RULE_NET_PORT, &raw const rule, 0)
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
const LANDLOCK_RULE_NET_PORT: u32 = 2;
