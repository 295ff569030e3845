//! Answering for calls that a filter notifies of (`SECCOMP_RET_USER_NOTIF`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A call that waits for an answer, laid out as the kernel's `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// Names it in the answer.
    pub id: u64,
    /// The calling thread, in the pid namespace of whoever receives; 0 if it is not in there.
    pub pid: u32,
    /// None are defined.
    pub flags: u32,
    /// The call's number.
    pub number: i32,
    /// `AUDIT_ARCH_*`.
    pub architecture: u32,
    /// Where it was made.
    pub instruction_pointer: u64,
    /// All six arguments.
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel executes it. Its arguments may have been changed since they were looked at: no way to enforce anything.
    Continue,
    /// It returns this.
    Value(i64),
    /// It fails with this errno.
    Errno(i32),
}

/// Waits for the next call.
///
/// # Errors
/// The errno of the ioctl; `ENOENT` when the caller was killed meanwhile and there is another chance to try.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    let mut notification = Notification::default();
    // SAFETY: the kernel writes one `struct seccomp_notif`, which this is laid out as and which it wants zeroed.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut notification) };
    if result == 0 { Ok(notification) } else { Err(io::Error::last_os_error()) }
}

/// Answers for call `id`.
///
/// # Errors
/// `ENOENT` when the caller is gone, or a signal has ended its waiting.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    #[repr(C)]
    struct Response {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }
    let (value, error, flags) = match answer {
        Answer::Continue => (0, 0, CONTINUE),
        Answer::Value(value) => (value, 0, 0),
        Answer::Errno(errno) => (0, -errno, 0),
    };
    let response = Response { id, value, error, flags };
    // SAFETY: the kernel reads one `struct seccomp_notif_resp`, which this is laid out as.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const response) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Tells whether call `id` still waits: what was read of the caller since it was received was then read of it, and of no
/// later process with its number.
#[must_use]
pub fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads one u64.
    unsafe { libc::ioctl(listener.as_raw_fd(), IS_VALID, &raw const id) == 0 }
}

const RECEIVE: libc::Ioctl = libc::_IOWR::<Notification>(b'!' as u32, 0);
const SEND: libc::Ioctl = libc::_IOWR::<[u64; 3]>(b'!' as u32, 1);
const IS_VALID: libc::Ioctl = libc::_IOW::<u64>(b'!' as u32, 2);
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const CONTINUE: u32 = 1;
