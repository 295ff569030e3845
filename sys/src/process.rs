//! Calls a process makes on itself on the way to `execve`.

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// A NUL-terminated list of C strings, as `execve` wants for arguments and environment.
///
/// The pointers borrow from the strings, which live in the same value, so that nothing is built after a fork.
#[derive(Debug)]
pub struct CStringList {
    strings: Vec<std::ffi::CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers lead to strings that the same value owns and nobody changes, wherever it is moved.
unsafe impl Send for CStringList {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for CStringList {}

impl CStringList {
    /// Takes the strings and builds the list of pointers to them.
    #[must_use]
    pub fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers = strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { strings, pointers }
    }

    /// Returns the strings.
    #[must_use]
    pub fn strings(&self) -> &[std::ffi::CString] {
        &self.strings
    }
}

/// Replaces the program of this process; returns only on failure.
#[must_use]
pub fn execve(path: &CStr, arguments: &CStringList, environment: &CStringList) -> io::Error {
    // SAFETY: the path is NUL-terminated, both lists end with a null pointer and point to NUL-terminated strings that
    // the lists own.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// As [`execve`], of the program that `file` is.
#[must_use]
pub fn execve_of(file: BorrowedFd<'_>, arguments: &CStringList, environment: &CStringList) -> io::Error {
    // SAFETY: the empty path is NUL-terminated, both lists end with a null pointer and point to NUL-terminated strings
    // that the lists own.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Marks every descriptor from `first` up close-on-exec.
///
/// # Errors
/// The errno of `close_range`; `EINVAL` before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only descriptor flags change; no descriptor is closed before an exec.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the descriptors of `numbers` go along into the next program; those that are not open are passed over.
pub fn keep_on_exec(numbers: std::ops::Range<RawFd>) {
    for number in numbers {
        // SAFETY: sets a flag by number; nothing is opened or closed, and a number that is not open is an error only.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    }
}

/// Closes all descriptors from `first` up but those of `kept`, in a process that was just cloned, where the destructors of
/// their owners will never run. Allocates nothing.
///
/// Their numbers must not be used again in this process; in the one it was cloned from they stay open.
///
/// # Errors
/// The errno of `close_range`.
pub fn close_from_except<const N: usize>(first: u32, kept: [BorrowedFd<'_>; N]) -> io::Result<()> {
    let mut numbers = kept.map(|fd| fd.as_raw_fd().unsigned_abs());
    numbers.sort_unstable();
    let mut next = first;
    for number in numbers {
        if number > next {
            close_range(next, number - 1)?;
        }
        next = next.max(number + 1);
    }
    close_range(next, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: closing affects this process's table only; the caller never uses the owners of these numbers again.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes descriptor `number` a copy of `from` that survives exec, whatever it was before.
///
/// # Errors
/// The errno of `dup2` or `fcntl`.
pub fn place_fd(from: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // dup2 of a descriptor onto itself keeps its close-on-exec flag, so clear that by hand.
    let result = if from.as_raw_fd() == number {
        // SAFETY: sets a flag of a descriptor that the caller has borrowed.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) }
    } else {
        // SAFETY: the caller asks for `number` to be replaced; only raw-number users can notice.
        unsafe { libc::dup2(from.as_raw_fd(), number) }
    };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives every signal its default action and unblocks all of them: ignored signals would stay so across exec.
pub fn reset_signals() {
    // SAFETY: `sigset_t` and `sigaction` are plain data; an all-zero sigaction is SIG_DFL with no flags.
    unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            // Fails for SIGKILL, SIGSTOP and the C library's own two; none of them can be ignored.
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Gives `SIGCHLD` its default action if it is ignored; tells whether it was.
///
/// The kernel throws the exit codes of children away for a process that ignores the signal. The default does nothing
/// visible either, but keeps them. A parent may have left it ignored, since that survives exec.
pub fn keep_exit_codes_of_children() -> bool {
    // SAFETY: `sigaction` is plain data; the first call only reads the present action, and the second replaces "ignore"
    // by the default, so that no handler of anybody is lost.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut present) != 0
            || present.sa_sigaction != libc::SIG_IGN
        {
            return false;
        }
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, &raw const default, std::ptr::null_mut()) == 0
    }
}

/// Sets the execution domain (`PER_*`).
///
/// # Errors
/// The errno of `personality`.
pub fn personality(persona: u32) -> io::Result<()> {
    // SAFETY: takes a number and touches no memory.
    if unsafe { libc::personality(persona.into()) } >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Joins a new, empty session keyring, so that the caller's keys are not reachable.
///
/// # Errors
/// The errno of `keyctl`; `ENOSYS` without key support, `EDQUOT` at the user's limit of keys.
pub fn new_session_keyring(name: &CStr) -> io::Result<()> {
    // SAFETY: the kernel reads a NUL-terminated name.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread other ids for what it does with files, and returns whether it has them now.
///
/// The kernel takes the effective capabilities for files away from a thread that was root.
#[must_use]
pub fn set_filesystem_ids(uid: u32, gid: u32) -> bool {
    // SAFETY: both take a number and touch no memory. They return the former id and have no other way to fail than not to
    // change it, so that the second call, which changes nothing, tells.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        let number = |id: libc::c_int| u32::from_ne_bytes(id.to_ne_bytes());
        number(libc::setfsgid(gid)) == gid && number(libc::setfsuid(uid)) == uid
    }
}

/// Ends the process at once, running no destructor and no exit handler.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` never returns and runs nothing of ours.
    unsafe { libc::_exit(code) }
}

/// Hides this process from others of the same user (`/proc/PID/exe`, `ptrace`) until its next exec.
///
/// # Errors
/// None that the kernel documents.
pub fn set_not_dumpable() -> io::Result<()> {
    // SAFETY: takes numbers and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the kernel send `signal` to this process when the thread that made it ends; 0 switches that off.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const CLOSE_RANGE_CLOEXEC: u32 = 4;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Tells whether the working directory lies below the root of this process.
#[must_use]
pub fn is_cwd_reachable() -> bool {
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most the given length into the buffer.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    // The kernel marks a directory outside of the root with a prefix that is no slash.
    length > 0 && buffer[0] == b'/'
}

/// Closes all descriptors from 3 up but those of `kept`, in a process that was just forked, where the destructors of
/// their owners will never run.
///
/// Their numbers must not be used again in this process; in the one it was forked from they stay open.
///
/// # Errors
/// Those of reading `/proc/self/fd`.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in open.into_iter().filter(|number| *number > 2) {
        if !kept.iter().any(|fd| fd.as_raw_fd() == number) {
            // SAFETY: closing affects this process's table only, and the owners are never used again, as above. The
            // number of the listing itself is among them and closed already, which fails and does nothing.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

/// Closes a descriptor in a process that was just cloned, where the owner's destructor will never run.
///
/// The number must not be used again in this process; in the one it was cloned from it stays open.
pub fn close_fd(fd: BorrowedFd<'_>) {
    // SAFETY: closing affects this process's table only. The caller never uses the owner again: it executes or exits.
    unsafe { libc::close(fd.as_raw_fd()) };
}
