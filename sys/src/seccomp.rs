//! Loading seccomp filters, and asking which actions the kernel knows.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One instruction of a classic BPF program, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

/// Puts `filter` on the calling thread, for good. `flags` are `SECCOMP_FILTER_FLAG_*` bits; with `NEW_LISTENER` the
/// descriptor is returned that receives what the filter has to ask, and which closes on exec.
///
/// # Errors
/// `EACCES` without `CAP_SYS_ADMIN` in the own user namespace and without `no_new_privs`; `E2BIG` above 4096
/// instructions; `EINVAL` for an invalid program.
pub fn load(filter: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const Instruction,
    }
    let Ok(length) = libc::c_ushort::try_from(filter.len()) else {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    };
    let program = Program { length, filter: filter.as_ptr() };
    // SAFETY: `program` is laid out as `struct sock_fprog`; it and the slice outlive the call; the kernel only reads.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match i32::try_from(result) {
        Ok(fd) if fd >= 0 && u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 => {
            // SAFETY: with this flag the result is a new descriptor, which nobody else knows.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        Ok(0) => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells whether the kernel takes these `SECCOMP_FILTER_FLAG_*` bits together.
#[must_use]
pub fn are_flags_available(flags: u32) -> bool {
    let nothing = std::ptr::null::<u8>();
    // SAFETY: flags are looked at first; then the kernel fails to read a filter from nowhere, and loads none.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, nothing) };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Tells whether the kernel knows the filter action `action` (`SECCOMP_RET_*`).
#[must_use]
pub fn is_action_available(action: u32) -> bool {
    // SAFETY: the kernel reads one u32 through the pointer.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}
