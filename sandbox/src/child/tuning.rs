//! Settings of the kernel's schedulers and security modules for the program that is executed next.

use std::ffi::CStr;

use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;
use strata_sys::scheduling;

use super::report::{At, Failure, Step};
use crate::plan::labels::Labels;
use crate::plan::tuning::Tuning;

/// Applies the settings, in the container's cgroup and with the privileges that some of them need.
pub(super) fn apply(tuning: &Tuning) -> Result<(), Failure> {
    if let Some(priority) = tuning.io_priority {
        scheduling::set_io_priority(priority).at(Step::IoPriority, 0)?;
    }
    if let Some(attributes) = &tuning.scheduling {
        scheduling::set_scheduling(attributes).at(Step::Scheduler, 0)?;
    }
    if let Some(policy) = &tuning.memory_policy {
        scheduling::set_memory_policy(policy.mode, &policy.nodes).at(Step::MemoryPolicy, 0)?;
    }
    Ok(())
}

/// Says which label the next program gets. Done first of all: `/proc` is that of the host then, which nobody in a container
/// could have replaced, and the write has to be made by who opened the file.
pub(super) fn set_labels(labels: &Labels) -> Result<(), Failure> {
    for (index, (file, label)) in labels.writes.iter().enumerate() {
        write_attribute(file, label.to_bytes()).at(Step::Label, index)?;
    }
    Ok(())
}

fn write_attribute(path: &CStr, value: &[u8]) -> Result<(), Errno> {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if fstatfs(&file)?.f_type != PROC_MAGIC {
        return Err(Errno::NODEV);
    }
    match rustix::io::write(&file, value)? {
        written if written == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

const PROC_MAGIC: i64 = 0x9fa0;
