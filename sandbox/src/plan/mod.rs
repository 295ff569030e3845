//! Everything the child will do, worked out before it exists.
//!
//! The child may neither allocate nor take locks, so a plan is C strings, numbers and open descriptors; the child only
//! walks through it. What can fail for a reason that lies in the configuration fails here, in the parent.

mod copy_up;
pub(crate) mod hooks;
mod idmap;
pub(crate) mod labels;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod options;
pub(crate) mod process;
pub(crate) mod tuning;

use std::ffi::CString;
use std::os::fd::OwnedFd;

use strata_sys::mount_attributes::MountAttributes;
use strata_sys::seccomp::Instruction;

use crate::SpawnError;
use crate::cgroup::Door;
use crate::landlock::LandlockPlan;
use crate::plan::hooks::HooksPlan;
pub(crate) use crate::plan::namespaces::Namespaces;
use crate::plan::process::ProcessPlan;

/// The whole plan.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The child's end of the socket to the parent.
    pub(crate) parent: OwnedFd,
    pub(crate) namespaces: Namespaces,
    pub(crate) hostname: Option<CString>,
    pub(crate) domainname: Option<CString>,
    /// Text for `/proc/self/timens_offsets`.
    pub(crate) time_offsets: Option<String>,
    pub(crate) rootfs: RootfsPlan,
    pub(crate) stdio: StdioPlan,
    /// The ways into the container's cgroups.
    pub(crate) cgroups: Vec<Door>,
    pub(crate) process: ProcessPlan,
    /// Whether the process is to die with the thread that makes it.
    pub(crate) dies_with_parent: bool,
    pub(crate) landlock: Option<LandlockPlan>,
    pub(crate) seccomp: Option<SeccompPlan>,
    /// Where the child waits between everything being made and its start.
    pub(crate) gate: Option<GatePlan>,
}

/// The wait between the two halves of a start.
#[derive(Debug)]
pub(crate) struct GatePlan {
    /// A pipe through which whoever starts the container says so. We can write to it, too, so that its end is never read.
    pub(crate) word: OwnedFd,
    /// A pipe through which they hear how it goes. We can read from it, too, so that nobody has to be there.
    pub(crate) answers: OwnedFd,
    /// Whether the parent has something to do once all is mounted.
    pub(crate) pauses_when_mounted: bool,
    pub(crate) hooks: HooksPlan,
}

/// The file system the container will see.
#[derive(Debug)]
pub(crate) struct RootfsPlan {
    /// The root, a detached mount.
    pub(crate) root: OwnedFd,
    pub(crate) root_read_only: bool,
    /// Propagation of the container's root after the switch; private when absent.
    pub(crate) root_propagation: Option<MountAttributes>,
    pub(crate) mounts: Vec<MountPlan>,
    /// How `/dev` is filled; `None` when it is a bind mount of somebody else's.
    pub(crate) devices: Option<DevicesPlan>,
    pub(crate) masked: Vec<CString>,
    pub(crate) read_only: Vec<CString>,
    /// Path below `/proc/sys` and value.
    pub(crate) sysctls: Vec<(CString, Vec<u8>)>,
    /// Where the root is attached before it becomes the root: over `/`, or where hooks expect it.
    pub(crate) place: CString,
    /// Make a terminal in the container's devpts.
    pub(crate) console: Option<ConsolePlan>,
}

/// One mount.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// Where, and how to make what is missing.
    pub(crate) target: TargetPlan,
    pub(crate) source: MountSource,
    /// For a detached bind these are applied already; they are for what the child makes itself.
    pub(crate) attributes: MountAttributes,
    pub(crate) propagation: Option<(u64, bool)>,
}

/// A path in the root, with all its parents.
#[derive(Debug)]
pub(crate) struct TargetPlan {
    /// The whole path, relative to the root; `.` for the root itself.
    pub(crate) path: CString,
    /// Each of its components.
    pub(crate) components: Vec<CString>,
    /// Whether a missing target is made as a file.
    pub(crate) is_file: bool,
    /// Whether a symlink at the end is refused: the container's own `/proc`, `/sys` and `/dev`.
    pub(crate) no_symlink: bool,
}

/// What is mounted.
#[derive(Debug)]
pub(crate) enum MountSource {
    /// A mount the parent made.
    Detached {
        mount: OwnedFd,
        /// The parent still has to map its owners: `false` alone, `true` with all below.
        idmap: Option<bool>,
    },
    /// A new filesystem.
    Filesystem { kind: CString, source: Option<CString>, data: Vec<(CString, Option<CString>)>, role: Role },
    /// The container's view of its cgroups.
    Cgroups(Vec<CgroupMount>),
}

/// What a new filesystem is to the rest of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sysctls are written through it.
    Proc,
    /// Device nodes are made in it.
    Dev,
    /// The terminal is made in it.
    Devpts,
    Other,
}

/// One hierarchy below `/sys/fs/cgroup`; without a folder it is mounted there itself.
#[derive(Debug)]
pub(crate) struct CgroupMount {
    pub(crate) folder: Option<CString>,
    pub(crate) kind: CString,
    pub(crate) data: Vec<(CString, Option<CString>)>,
    /// Symlinks beside a folder with several controllers: name and target.
    pub(crate) links: Vec<(CString, CString)>,
}

/// The content of `/dev`.
#[derive(Debug)]
pub(crate) struct DevicesPlan {
    pub(crate) nodes: Vec<NodePlan>,
    /// Name below `/dev` and target.
    pub(crate) links: Vec<(CString, CString)>,
}

/// One device node.
#[derive(Debug)]
pub(crate) struct NodePlan {
    /// Relative to `/dev` when `in_dev`, else to the root.
    pub(crate) target: TargetPlan,
    pub(crate) in_dev: bool,
    pub(crate) kind: rustix::fs::FileType,
    pub(crate) device: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The host's node as a detached mount, where making one is not allowed.
    pub(crate) bind: Option<OwnedFd>,
}

/// The terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConsolePlan {
    pub(crate) size: Option<crate::WindowSize>,
}

/// Where the standard streams come from.
#[derive(Debug)]
pub(crate) enum StdioPlan {
    Inherit,
    Fds([OwnedFd; 3]),
    /// The terminal that the rootfs plan makes.
    Terminal,
}

/// The compiled filter.
#[derive(Debug)]
pub(crate) struct SeccompPlan {
    pub(crate) filter: std::borrow::Cow<'static, [Instruction]>,
    pub(crate) flags: u32,
    /// Whether a process in a user namespace of its own could mount.
    pub(crate) may_mount: bool,
}

impl SeccompPlan {
    /// Tells whether somebody will be asked.
    pub(crate) fn notifies(&self) -> bool {
        self.flags & crate::seccomp::flags::NEW_LISTENER != 0
    }
}

/// Turns an absolute path of the container into a target, resolving `.` and `..` by text as Docker does.
pub(crate) fn target(path: &std::path::Path, is_file: bool) -> Result<TargetPlan, SpawnError> {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Component;
    let mut components: Vec<CString> = Vec::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                components.pop();
            }
            Component::Normal(name) => components
                .push(CString::new(name.as_bytes()).map_err(|_| SpawnError::Invalid(format!("path {path:?}")))?),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let joined = components.iter().map(|component| component.as_bytes()).collect::<Vec<_>>().join(&b'/');
    let joined = if joined.is_empty() { b".".to_vec() } else { joined };
    let path = CString::new(joined).expect("the components have no NUL");
    let no_symlink = matches!(path.to_bytes(), b"proc" | b"sys" | b"dev");
    Ok(TargetPlan { path, components, is_file, no_symlink })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn targets_never_climb() {
        let plain = target(Path::new("/a/./b/../c"), false).unwrap();
        assert_eq!(plain.path.as_c_str(), c"a/c");
        assert_eq!(target(Path::new("/../../etc"), false).unwrap().path.as_c_str(), c"etc");
        assert_eq!(target(Path::new("/.."), false).unwrap().path.as_c_str(), c".");
        assert!(target(Path::new("//proc/"), false).unwrap().no_symlink);
        assert!(!target(Path::new("/proc/sys"), false).unwrap().no_symlink);
    }
}
