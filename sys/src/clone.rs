//! `clone3`: a child in new namespaces, with a pidfd, born in its cgroup; and `clone`: a child of the caller's parent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::shared::SharedWords;

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
/// Signal handlers are reset in the child.
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

/// Where the kernel notes the number of a process that is made for somebody else: in memory of whoever makes it and of those it is
/// made for.
///
/// The number is there as soon as the process is, and before it runs, whatever becomes of its maker.
#[derive(Debug)]
pub struct Announcement(SharedWords);

impl Announcement {
    /// Makes room for one number. It is shared with processes that are forked afterwards.
    ///
    /// # Errors
    /// The errno of `mmap`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(SharedWords::new(1)?))
    }

    /// Takes the memory away from processes that the caller makes from now on. The kernel writes there for the caller.
    ///
    /// # Errors
    /// The errno of `madvise`.
    pub fn keep_from_children(&self) -> io::Result<()> {
        self.0.keep_from_children()
    }

    /// Returns the number of the process in its maker's pid namespace, once there is one.
    pub fn pid(&self) -> Option<u32> {
        let [low, high, other, one, ..] = self.0[0].load(Ordering::Acquire).to_ne_bytes();
        Some(u32::from_ne_bytes([low, high, other, one])).filter(|pid| *pid != 0)
    }
}

/// Which side of [`clone_for_parent`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller, whose sibling the new process is.
    Maker,
    /// The new process.
    Made,
}

/// Makes a copy of the calling process that is a child of its parent. It keeps the caller's signal handlers.
///
/// By `clone`, since filters hide `clone3`, whose flags they cannot see.
///
/// # Errors
/// The errno of `clone`.
///
/// # Safety
/// As for [`clone3`].
pub unsafe fn clone_for_parent(announcement: &Announcement) -> io::Result<Side> {
    let place = announcement.0.as_ptr().cast::<libc::pid_t>();
    // SAFETY: the place is that of a whole word of a mapping that outlives the call; no stack is given, so the child goes on with a
    // copy of this one. The caller keeps to the rules. The place is the third argument on every architecture.
    let pid = unsafe { libc::syscall(libc::SYS_clone, CLONE_FOR_PARENT, std::ptr::null::<u8>(), place, 0, 0) };
    match pid {
        0 => Ok(Side::Made),
        pid if pid > 0 => Ok(Side::Maker),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The flags of [`clone_for_parent`], for filters.
pub const CLONE_FOR_PARENT: u64 = CLONE_PARENT | CLONE_PARENT_SETTID | libc::SIGCHLD.unsigned_abs() as u64;

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
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Mount, cgroup, UTS, IPC, user, pid, network and time namespaces, and `CLONE_FS`.
const UNSHAREABLE: u64 = 0x7e02_0000 | 0x80 | 0x200;

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever makes it is killed right afterwards.
    #[test]
    fn a_process_for_the_parent_is_known_whatever_becomes_of_its_maker() {
        let announcement = Announcement::new().unwrap();
        assert_eq!(announcement.pid(), None);
        // SAFETY: both children make system calls alone.
        let maker = match unsafe { clone3(0, None) }.unwrap() {
            Cloned::Parent { pid, .. } => pid,
            // SAFETY: as above.
            Cloned::Child => unsafe {
                if announcement.keep_from_children().is_err() {
                    libc::_exit(2);
                }
                match clone_for_parent(&announcement) {
                    // It is not there for the process that was made.
                    Ok(Side::Made) => libc::_exit(if crate::shared::is_mapped(&announcement.0) { 8 } else { 7 }),
                    _ => libc::kill(libc::getpid(), libc::SIGKILL),
                };
                libc::_exit(1)
            },
        };
        let wait = |pid: u32| {
            let mut status = 0;
            // SAFETY: writes one number.
            assert_eq!(unsafe { libc::waitpid(pid.cast_signed(), &raw mut status, 0) }, pid.cast_signed());
            status
        };
        assert!(libc::WIFSIGNALED(wait(maker)));
        assert_eq!(libc::WEXITSTATUS(wait(announcement.pid().unwrap())), 7);
    }
}
