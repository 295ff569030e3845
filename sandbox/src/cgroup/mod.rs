//! Control groups: one directory per hierarchy for a container, its limits, its end.
//!
//! The three layouts of hosts are one thing here: a set of [`Hierarchies`], each of version 1 or 2 with its
//! controllers. A setting goes to whichever hierarchy has its controller. A limit that was asked for and cannot be
//! applied is an error with a name, never silently left out.

mod device_program;
mod devices;
mod group;
mod hierarchies;
mod limits;
mod manager;
mod settings;
pub mod systemd;
mod usage;

pub use devices::{DeviceKind, DeviceRule, docker_device_rules};
pub use group::Cgroup;
pub(crate) use group::{Door, Place};
pub use hierarchies::{Hierarchies, Hierarchy, Layout, Version};
pub use limits::Shortage;
pub use manager::CgroupManager;
pub use usage::Usage;

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The place of a container's cgroup below the root of each hierarchy, such as `strata/3f9c1a`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupName(String);

impl CgroupName {
    /// Takes a relative or absolute path; both count from the root of the hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::Name`] when it is empty or has `.`, `..` or NUL in it.
    pub fn new(path: &str) -> Result<Self, CgroupError> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() || parts.iter().any(|part| matches!(*part, "." | "..") || part.contains(['\0', '\n'])) {
            return Err(CgroupError::Name(path.to_owned()));
        }
        Ok(Self(parts.join("/")))
    }

    /// Returns the path, without a leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CgroupName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A name that no cgroup can have.
    #[error("invalid cgroup path {0:?}")]
    Name(String),
    /// A path that names no unit.
    #[error("expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} instead")]
    UnitPath(String),
    /// A name that no scope, or no slice, can have.
    #[error("{0:?} is no name that systemd takes for a scope or a slice")]
    Unit(String),
    /// A list of CPUs or memory nodes that is none.
    #[error("{0:?} is no list such as 0-2,5")]
    List(String),
    /// systemd does not answer, or refuses.
    #[error(transparent)]
    Systemd(#[from] systemd::BusError),
    /// The process that a scope begins with.
    #[error("make a process for systemd to begin the scope with")]
    Keeper {
        /// Why.
        source: io::Error,
    },
    /// `/proc/self/mountinfo` or `/proc/self/cgroup` cannot be read.
    #[error("read {path}")]
    Detect {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A limit needs a controller that this host does not have.
    #[error("cannot apply {setting}: this host has no {controller} cgroup controller")]
    NoController {
        /// The controller.
        controller: String,
        /// The limit.
        setting: String,
    },
    /// A limit needs a file that this kernel's controller does not have.
    #[error("cannot apply {setting}: the kernel does not support it")]
    NoFile {
        /// The limit.
        setting: String,
    },
    /// A limit was asked for and the user may not make cgroups.
    #[error("cannot apply {setting}: no cgroup is delegated to this user")]
    NotDelegated {
        /// The limit.
        setting: String,
        /// Why.
        source: io::Error,
    },
    /// A memory limit below what is in use, where the spec asks to look (`memory.checkBeforeUpdate`).
    #[error("the memory limit of {limit} bytes is below the {usage} bytes in use")]
    BelowUsage {
        /// In bytes.
        limit: u64,
        /// In bytes.
        usage: u64,
    },
    /// The directory cannot be made.
    #[error("create cgroup {path:?}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory belongs to another container that is alive.
    #[error("cgroup {path:?} is in use")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel refused a value.
    #[error("set {file} of the cgroup to {value:?}")]
    Set {
        /// The file.
        file: String,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A real-time process cannot enter a fresh v1 cpu cgroup on kernels with real-time group scheduling.
    #[error(
        "move the process into cgroup {path:?}: a real-time process cannot enter a cpu cgroup without real-time budget"
    )]
    RealTime {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process cannot be moved in.
    #[error("move the process into cgroup {path:?}")]
    Attach {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device rules of cgroup v2.
    #[error("attach the device program to cgroup {path:?}")]
    DeviceProgram {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A device rule that is malformed.
    #[error("invalid device rule: {0}")]
    DeviceRule(String),
    /// The directory cannot be removed.
    #[error("remove cgroup {path:?}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The processes cannot be frozen or thawed.
    #[error("{action} cgroup {path:?}")]
    Freeze {
        /// `freeze` or `thaw`.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        assert_eq!(CgroupName::new("/strata//ab/").unwrap().as_str(), "strata/ab");
        for bad in ["", "/", "../x", "a/../b", "a/./b", "a\0b"] {
            assert!(CgroupName::new(bad).is_err(), "{bad:?}");
        }
    }
}
