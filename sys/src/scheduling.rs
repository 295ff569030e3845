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
