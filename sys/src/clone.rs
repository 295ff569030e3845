//! `clone3`: a child in new namespaces, with a pidfd, born in its cgroup.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which side of the call this is.
#[derive(Debug)]
pub enum Cloned {
    /// The caller, with the new process.
    Parent {
        /// The child's process id in the caller's pid namespace.
        pid: u32,
        /// A descriptor for the child, close-on-exec.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// Makes a copy of the calling process in the new namespaces of `namespaces` (`CLONE_NEW*` bits).
///
/// With [`CLONE_PARENT`], the child is one of the caller's parent. With `cgroup`, a cgroup v2 directory, it is born inside it.
/// Signal handlers are reset in the child. Below a filter that hides `clone3`, as that of Docker does, a child that needs
/// nothing of it is made by `clone`, and keeps them.
///
/// # Errors
/// The errno of `clone3`; `ENOSYS` on kernels before 5.7.
///
/// # Safety
/// The child has only the calling thread and whatever state locks were in. Until it calls `execve` or `exit`, it
/// must not allocate, take a lock, or call into code that may do either, and must not return to the caller's frames.
pub unsafe fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = namespaces | CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
    let mut cgroup_fd = 0;
    if let Some(fd) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup_fd = u64::from(fd.as_raw_fd().unsigned_abs());
    }
    let arguments = CloneArguments {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        // A child of our parent tells that parent of its end as we do.
        exit_signal: if namespaces & CLONE_PARENT == 0 { u64::from(libc::SIGCHLD.unsigned_abs()) } else { 0 },
        cgroup: cgroup_fd,
        ..CloneArguments::default()
    };
    // SAFETY: `arguments` is a valid `struct clone_args` of the size passed, `pidfd` outlives the call, no stack is
    // given so that the child goes on with a copy of this one (no CLONE_VM). The caller keeps to the rules above.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) };
    let hidden = pid < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS);
    let pid = if hidden && namespaces & !CLONE_PARENT == 0 && cgroup.is_none() {
        let flags = namespaces | CLONE_WITHOUT_NAMESPACES;
        // SAFETY: as above; the descriptor's place is the third argument on every architecture.
        unsafe { libc::syscall(libc::SYS_clone, flags, std::ptr::null::<u8>(), &raw mut pidfd, 0, 0) }
    } else {
        pid
    };
    match pid {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => Ok(Cloned::Parent {
            pid: u32::try_from(pid).expect("a pid fits 32 bits"),
            // SAFETY: the kernel stored a new descriptor there, and nobody else knows it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The flags with which `clone` makes a child below a filter that hides `clone3`.
pub const CLONE_WITHOUT_NAMESPACES: u64 = CLONE_PIDFD | libc::SIGCHLD.unsigned_abs() as u64;

/// Makes a child one of the caller's parent.
pub const CLONE_PARENT: u64 = 0x8000;

/// Moves the calling thread into new namespaces (`CLONE_NEW*` bits), or with `CLONE_FS` gives it a working directory
/// and root of its own.
///
/// # Errors
/// The errno of `unshare`; `EINVAL` for other bits.
pub fn unshare(what: u64) -> io::Result<()> {
    // Sharing of descriptors or memory between threads must not end: owners elsewhere would be wrong about theirs.
    if what & !UNSHAREABLE != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: takes a number; the bits let through change what names mean to this thread, no memory or descriptor.
    if unsafe { libc::syscall(libc::SYS_unshare, what) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's `struct clone_args`, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Mount, cgroup, UTS, IPC, user, pid, network and time namespaces, and `CLONE_FS`.
const UNSHAREABLE: u64 = 0x7e02_0000 | 0x80 | 0x200;
