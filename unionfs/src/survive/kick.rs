//! Starting the queues of an io_uring again after a server's death.
//!
//! What came while nobody served lies in lists of the kernel, one per CPU, and stays there until the next new request
//! from the same CPU has been answered. So somebody has to make one on each: a process apart, since a worker that waits
//! for its own mount could not be replaced if it died in that. It asks for the room of the filesystem by the number of
//! its device, which needs no place where it is mounted and holds nothing that would keep it in use.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use strata_sys::fork::{Forked, fork};
use strata_sys::fuse_ring::{Buffers, Tally};
use strata_sys::ustat::ask_filesystem;

/// Finds out why a connection's queues could not be started again here.
pub(crate) fn refusal() -> Option<&'static str> {
    // No filesystem has this number.
    if ask_filesystem(0).is_err_and(|error| error.raw_os_error() != Some(libc::EINVAL)) {
        return Some("the system call ustat, which a mount over io_uring needs to outlive its server, is not there");
    }
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let online = online.and_then(|text| crate::fuse::count_of_ranges(text.trim()));
    let allowed = sched_getaffinity(None).ok().map(|cpus| usize::try_from(cpus.count()).unwrap_or(0));
    match (online, allowed) {
        (Some(online), Some(allowed)) if allowed >= online => None,
        _ => Some("not all CPUs may be used here, which a mount over io_uring needs to outlive its server"),
    }
}

/// Starts all queues of the connection of this number, which are served again, by a child process that ends when all
/// were found to work. This process must have one thread only.
pub(crate) fn kick(number: u32, slots: &Arc<Buffers>) -> io::Result<OwnedFd> {
    let keeper = rustix::process::getpid();
    match fork()? {
        Forked::Parent { pidfd, .. } => Ok(pidfd),
        Forked::Child => {
            // Whatever happens, nothing of this process may return to the keeper's frames.
            let worked = catch_unwind(AssertUnwindSafe(|| -> io::Result<()> {
                strata_sys::process::set_parent_death_signal(libc::SIGKILL)?;
                // Nothing depends on it.
                let _ = rustix::thread::set_name(NAME);
                if rustix::process::getppid() != Some(keeper) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                // Above all not the connection, which ends when nobody has it.
                strata_sys::process::close_all_but(&[])?;
                ask_all(number, slots);
                Ok(())
            }));
            strata_sys::process::exit_now(i32::from(!matches!(worked, Ok(Ok(())))))
        }
    }
}

fn ask_all(number: u32, slots: &Arc<Buffers>) {
    std::thread::scope(|scope| {
        for queue in 0..slots.queues() {
            let ask = move || ask_on(queue, number, slots);
            if std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, ask).is_err() {
                ask();
            }
        }
    });
}

/// Asks from the CPU of a queue, as often as it has slots: each answer starts one of the requests that wait, and its
/// answer the next, so that one that takes long does not hold up all others.
fn ask_on(queue: u16, number: u32, slots: &Buffers) {
    let mut cpu = CpuSet::new();
    cpu.set(queue.into());
    // From a CPU that is not there nobody waits.
    if sched_setaffinity(None, &cpu).is_err() {
        return;
    }
    for _ in 0..slots.depth() {
        slots.tally(queue, Tally::Asked).fetch_add(1, Ordering::AcqRel);
        // That there was an answer is all.
        let _ = ask_filesystem(number);
        slots.tally(queue, Tally::Returned).fetch_add(1, Ordering::AcqRel);
    }
}

/// What the process is called.
const NAME: &CStr = c"strata-fs-kick";
const STACK: usize = 64 << 10;
