//! How the kernel schedules the calling thread, its disk requests and its memory.

use std::io;

/// The scheduling of a thread, as `sched_setattr(2)` takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulingAttributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// The nice value of the policies that share time.
    pub nice: i32,
    /// The static priority of the real-time policies.
    pub priority: u32,
    /// Nanoseconds of `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds of `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds of `SCHED_DEADLINE`.
    pub period: u64,
}

/// Sets the scheduling of the calling thread.
///
/// # Errors
/// The errno of `sched_setattr`: `EPERM` without CAP_SYS_NICE or without a real-time budget of the cgroup, `EBUSY` where
/// the CPUs cannot keep a deadline.
pub fn set_scheduling(attributes: &SchedulingAttributes) -> io::Result<()> {
    #[repr(C)]
    struct Raw {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let SchedulingAttributes { policy, flags, nice, priority, runtime, deadline, period } = *attributes;
    let size = u32::try_from(size_of::<Raw>()).expect("a small structure");
    let raw = Raw { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: `raw` is a `struct sched_attr` of the size it names (its first version), and the kernel only reads it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How a thread shares its CPU with others, of the policies that share time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// `SCHED_OTHER`.
    Ordinary,
    /// `SCHED_IDLE`: next to nothing beside any other. Threads that it starts begin so as well.
    Idle,
}

/// Sets how a thread of this process shares its CPU; its nice value stays.
///
/// # Errors
/// The errno of `sched_setscheduler`: `EPERM` for becoming ordinary again where neither CAP_SYS_NICE nor `RLIMIT_NICE`
/// permits it, `ESRCH` for a thread that is not there.
pub fn set_share(thread: u32, share: Share) -> io::Result<()> {
    let policy = match share {
        Share::Ordinary => libc::SCHED_OTHER,
        Share::Idle => libc::SCHED_IDLE,
    };
    // These policies have no static priority.
    let parameters: libc::c_int = 0;
    // Not the function of the C library, which in musl refuses.
    // SAFETY: the kernel reads a `struct sched_param`, which is one number.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, thread, policy, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns how the calling thread shares its CPU; `None` for another policy.
///
/// # Errors
/// The errno of `sched_getscheduler`.
pub fn share() -> io::Result<Option<Share>> {
    // SAFETY: takes a number and touches no memory.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    if policy < 0 {
        return Err(io::Error::last_os_error());
    }
    let is = |known: libc::c_int| policy == libc::c_long::from(known);
    Ok(if is(libc::SCHED_OTHER) {
        Some(Share::Ordinary)
    } else if is(libc::SCHED_IDLE) {
        Some(Share::Idle)
    } else {
        None
    })
}

/// Sets the priority of the calling thread's disk requests: the class shifted by 13 bits, and the level.
///
/// # Errors
/// The errno of `ioprio_set`: `EPERM` for the real-time class without CAP_SYS_ADMIN or CAP_SYS_NICE.
pub fn set_io_priority(priority: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes numbers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, libc::c_int::from(priority)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets on which nodes the calling thread and the program it executes get memory: `MPOL_*` with flags, and a bit for each node.
///
/// # Errors
/// The errno of `set_mempolicy`: `EINVAL` for a mode that does not fit the nodes, or for nodes that are not there.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let pointer = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads as many bits as the slice has, the one more excepted, which it does not read.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_of_idle_priority_starts_is_so_too() {
        std::thread::spawn(|| {
            assert_eq!(share().unwrap(), Some(Share::Ordinary));
            set_share(0, Share::Idle).unwrap();
            assert_eq!(share().unwrap(), Some(Share::Idle));
            assert_eq!(std::thread::spawn(share).join().unwrap().unwrap(), Some(Share::Idle));
        })
        .join()
        .unwrap();
        assert_eq!(set_share(u32::MAX >> 1, Share::Idle).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
