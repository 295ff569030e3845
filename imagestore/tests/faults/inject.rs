//! Lets one system call of an operation fail, or kills the process at it.
//!
//! The operation runs on a thread whose system calls, and those of the threads it makes, are decided about by another
//! thread (`SECCOMP_RET_USER_NOTIF`). So every call is a point where things may go wrong, and nothing has to be built into
//! what is tested.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, poll};
use strata_sys::seccomp::{self, Instruction};
use strata_sys::seccomp_notify::{Answer, answer, receive};

/// What happens at which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Injection {
    /// The call fails.
    Fail(Failure),
    /// The process is killed before the call is done.
    Kill,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// `EIO`: every call that touches files.
    Io,
    /// `ENOSPC`: calls that need space.
    NoSpace,
    /// `EMFILE`: calls that need a descriptor.
    NoDescriptor,
}

/// What an operation came to.
#[derive(Debug)]
pub(super) struct Outcome<T> {
    /// What it returned; `None` if it panicked.
    pub(super) result: Option<T>,
    /// The number of the call that was failed, if there were as many.
    pub(super) hit: Option<i64>,
}

/// Runs an operation; its call number `nth`, counted from 1, of those that the injection is about, meets its fate.
pub(super) fn run<T: Send>(injection: Injection, nth: usize, operation: impl FnOnce() -> T + Send) -> Outcome<T> {
    let (sender, receiver) = mpsc::channel::<OwnedFd>();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let supervisor = scope.spawn(|| supervise(receiver, injection, nth, &done));
        let worker = scope.spawn(move || {
            let flags = u32::try_from(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER).expect("a bit");
            let listener = seccomp::load(&filter(calls(injection)), flags).expect("filters can be put on, as root");
            let listener = listener.expect("a listener was asked for");
            sender.send(listener).expect("the supervisor waits");
            drop(sender);
            operation()
        });
        let result = worker.join().ok();
        done.store(true, Ordering::Release);
        Outcome { result, hit: supervisor.join().expect("the supervisor does not panic") }
    })
}

/// Decides about calls until the operation is done. Threads that it has started for good may still be there then.
fn supervise(receiver: mpsc::Receiver<OwnedFd>, injection: Injection, nth: usize, done: &AtomicBool) -> Option<i64> {
    let listener = receiver.recv().ok()?;
    let (mut count, mut hit) = (0, None);
    loop {
        let mut waiting = [PollFd::new(&listener, PollFlags::IN)];
        if poll(&mut waiting, Some(&LOOK)).is_err() {
            continue;
        }
        let events = waiting[0].revents();
        if !events.contains(PollFlags::IN) {
            if !events.is_empty() || done.load(Ordering::Acquire) {
                return hit;
            }
            continue;
        }
        let Ok(call) = receive(listener.as_fd()) else { continue };
        count += 1;
        let decided = if count == nth {
            hit = Some(i64::from(call.number));
            match injection {
                Injection::Kill => {
                    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                    Answer::Continue
                }
                Injection::Fail(failure) => Answer::Errno(failure.errno()),
            }
        } else {
            Answer::Continue
        };
        let _ = answer(listener.as_fd(), call.id, decided);
    }
}

/// How often it is looked whether the operation is done.
const LOOK: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

impl Failure {
    fn errno(self) -> i32 {
        match self {
            Failure::Io => libc::EIO,
            Failure::NoSpace => libc::ENOSPC,
            Failure::NoDescriptor => libc::EMFILE,
        }
    }
}

/// The system calls that an injection is about.
fn calls(injection: Injection) -> Vec<i64> {
    let changing = [
        libc::SYS_openat,
        libc::SYS_mkdirat,
        libc::SYS_renameat2,
        libc::SYS_unlinkat,
        libc::SYS_linkat,
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_writev,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_syncfs,
        libc::SYS_fallocate,
        libc::SYS_ftruncate,
        libc::SYS_copy_file_range,
        libc::SYS_sendfile,
        libc::SYS_fchmod,
        libc::SYS_flock,
        libc::SYS_utimensat,
    ];
    #[cfg(target_arch = "x86_64")]
    let older = [libc::SYS_mkdir, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_chmod];
    #[cfg(not(target_arch = "x86_64"))]
    let older = [libc::SYS_renameat];
    let reading = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_readv,
        libc::SYS_getdents64,
        libc::SYS_statx,
        libc::SYS_lseek,
        libc::SYS_mmap,
    ];
    let changing = changing.into_iter().chain(older);
    match injection {
        Injection::Kill => changing.collect(),
        Injection::Fail(Failure::Io) => changing.chain(reading).filter(|call| *call != libc::SYS_mmap).collect(),
        Injection::Fail(Failure::NoSpace) => {
            let no_room = [libc::SYS_unlinkat, libc::SYS_flock, libc::SYS_fchmod, libc::SYS_sendfile];
            changing.filter(|call| !no_room.contains(call)).collect()
        }
        Injection::Fail(Failure::NoDescriptor) => vec![libc::SYS_openat, libc::SYS_fcntl, libc::SYS_socket],
    }
}

/// A filter that notifies of these calls and lets all others go on.
fn filter(calls: Vec<i64>) -> Vec<Instruction> {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let count = calls.len();
    let mut filter = vec![Instruction { code: LOAD, jump_true: 0, jump_false: 0, k: 0 }];
    for (position, call) in calls.into_iter().enumerate() {
        let to_notify = u8::try_from(count - position).expect("there are few calls");
        let number = u32::try_from(call).expect("numbers of calls are small");
        filter.push(Instruction { code: EQUAL, jump_true: to_notify, jump_false: 0, k: number });
    }
    filter.push(Instruction { code: RETURN, jump_true: 0, jump_false: 0, k: libc::SECCOMP_RET_ALLOW });
    filter.push(Instruction { code: RETURN, jump_true: 0, jump_false: 0, k: libc::SECCOMP_RET_USER_NOTIF });
    filter
}
