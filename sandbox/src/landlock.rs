//! Landlock as a second wall, derived from the container's mounts.
//!
//! The rules follow inodes, not the mount table: whatever way leads out of the container's root (a leaked descriptor,
//! a mistake in the mount namespace), files outside of it cannot be opened. Inside nothing is denied that the mounts
//! allow, except `mount` itself, which landlock always denies: so containers that may mount go without.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use strata_sys::landlock::Handled;

use crate::capabilities::{CapabilitySet, SYS_ADMIN};
use crate::plan::options::MountOptions;
use crate::plan::{SeccompPlan, target};
use crate::policy::Policy;
use crate::{Landlock, SpawnError, rooted};

/// The rules, to be opened and applied by the child.
#[derive(Debug)]
pub(crate) struct LandlockPlan {
    handled: Handled,
    /// Paths in the container and what is allowed beneath.
    rules: Vec<PathRule>,
    /// TCP ports and what is allowed with them.
    ports: Vec<(u16, u64)>,
}

#[derive(Debug)]
struct PathRule {
    path: CString,
    access: u64,
    /// Whether a path that is not there is no error: then there is nothing to allow either.
    may_be_missing: bool,
}

impl PathRule {
    fn new(path: CString, access: u64) -> Self {
        Self { path, access, may_be_missing: false }
    }
}

impl LandlockPlan {
    /// Plans what `wanted` asks for, for a container with these capabilities and this filter. `None` where that is nothing.
    ///
    /// # Errors
    /// A policy that this kernel cannot enforce.
    pub(crate) fn of(
        wanted: &Landlock,
        spec: &Spec,
        bounding: CapabilitySet,
        seccomp: Option<&SeccompPlan>,
    ) -> Result<Option<Self>, SpawnError> {
        // Landlock denies every mount. Who may mount, by capability or in a user namespace, goes without.
        let may_mount = bounding.contains(SYS_ADMIN) || seccomp.is_none_or(|filter| filter.may_mount);
        let abi = strata_sys::landlock::abi().unwrap_or(0);
        match wanted {
            Landlock::Off => Ok(None),
            Landlock::Auto if may_mount => Ok(None),
            Landlock::Auto => Ok(Self::around_root(spec, abi)),
            Landlock::Hardened => Ok(Self::around_root(spec, abi).map(|plan| plan.with_scopes(spec, abi))),
            Landlock::Policy(policy) => Self::from_policy(policy, spec, abi).map(Some),
        }
    }

    /// The container's root: what its mounts allow, and nothing outside. `None` where the kernel's landlock is too old to
    /// leave renames alone.
    fn around_root(spec: &Spec, abi: u32) -> Option<Self> {
        let files = accesses(abi)?;
        let read_only_root = spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true));
        let root_access = if read_only_root { files & !CHANGES } else { files };
        let mut rules = vec![PathRule::new(c".".to_owned(), root_access)];
        // Rules add up along the way to the root, so below a writable root there is nothing to say.
        if read_only_root {
            for mount in spec.mounts().iter().flatten() {
                let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default()).ok()?;
                let read_only =
                    (options.attributes.set | options.recursive.set) & strata_sys::mount_attributes::RDONLY != 0;
                if !read_only {
                    rules.push(PathRule::new(target(mount.destination(), false).ok()?.path, files));
                }
            }
        }
        Some(Self { handled: Handled { files, ..Handled::default() }, rules, ports: Vec::new() })
    }

    /// Adds what no namespace of the container's own does already: with one, signals and abstract sockets reach nobody
    /// outside, and a scope would only part the container's processes from those that are added to it.
    fn with_scopes(mut self, spec: &Spec, abi: u32) -> Self {
        if abi >= 6 {
            let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
            let has = |kind| listed.is_some_and(|all| all.iter().any(|namespace| namespace.typ() == kind));
            if !has(LinuxNamespaceType::Network) {
                self.handled.scoped |= SCOPE_ABSTRACT_SOCKETS;
            }
            if !has(LinuxNamespaceType::Pid) {
                self.handled.scoped |= SCOPE_SIGNALS;
            }
        }
        self
    }

    fn from_policy(policy: &Policy, spec: &Spec, abi: u32) -> Result<Self, SpawnError> {
        let too_old = |what, needed| {
            SpawnError::Unsupported(format!("a policy about {what}: landlock ABI {needed} is needed, here it is {abi}"))
        };
        let mut plan = match &policy.files {
            None => Self { handled: Handled::default(), rules: Vec::new(), ports: Vec::new() },
            Some(rules) => {
                let files = accesses(abi).ok_or_else(|| too_old("files", 3))?;
                let looking = files & (READ_FILE | READ_DIRECTORY | IOCTL_DEVICE);
                let mut plan = Self {
                    handled: Handled { files, ..Handled::default() },
                    // What every program needs of them the device list and the masks have under control.
                    rules: vec![
                        PathRule { may_be_missing: true, ..PathRule::new(c"proc".to_owned(), looking | WRITE_FILE) },
                        PathRule { may_be_missing: true, ..PathRule::new(c"dev".to_owned(), files & !EXECUTE) },
                    ],
                    ports: Vec::new(),
                };
                let lists =
                    [(&rules.read, looking), (&rules.write, files & !EXECUTE), (&rules.execute, looking | EXECUTE)];
                for (paths, access) in lists {
                    for path in paths {
                        let path = target(path, false)?.path;
                        plan.rules.push(PathRule { may_be_missing: true, ..PathRule::new(path, access) });
                    }
                }
                plan
            }
        };
        if let Some(ports) = &policy.network {
            if abi < 4 {
                return Err(too_old("ports", 4));
            }
            plan.handled.ports = BIND_TCP | CONNECT_TCP;
            plan.ports = ports.bind.iter().map(|port| (*port, BIND_TCP)).collect();
            plan.ports.extend(ports.connect.iter().map(|port| (*port, CONNECT_TCP)));
        }
        Ok(plan.with_scopes(spec, abi))
    }
}

/// The accesses to files that the kernel knows. `None` before ABI 3: renames between folders were always denied, and
/// truncating was not seen.
fn accesses(abi: u32) -> Option<u64> {
    match abi {
        0..=2 => None,
        3 | 4 => Some(EVERYTHING & !IOCTL_DEVICE),
        _ => Some(EVERYTHING),
    }
}

/// Opens the paths and makes the ruleset, in the child, inside the container's root. Does not allocate. `None` for a plan
/// that denies nothing.
pub(crate) fn prepare(plan: &LandlockPlan) -> Result<Option<OwnedFd>, Errno> {
    if plan.handled == Handled::default() {
        return Ok(None);
    }
    let ruleset = strata_sys::landlock::create_ruleset(&plan.handled).map_err(errno)?;
    let root = openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for rule in &plan.rules {
        match rooted::open(root.as_fd(), rule.path.as_c_str(), OFlags::PATH) {
            Ok(beneath) => allow(ruleset.as_fd(), beneath.as_fd(), rule.access)?,
            Err(Errno::NOENT | Errno::NOTDIR) if rule.may_be_missing => {}
            Err(errno) => return Err(errno),
        }
    }
    for (port, access) in &plan.ports {
        strata_sys::landlock::allow_port(ruleset.as_fd(), *port, *access).map_err(errno)?;
    }
    if plan.handled.files != 0 {
        // Streams from outside may be files there, and programs open /dev/stdin and its kin again.
        for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
            // Pipes and sockets take no rule and need none.
            let _ = allow(ruleset.as_fd(), stream, plan.handled.files);
        }
    }
    Ok(Some(ruleset))
}

/// Puts the wall up, for good.
pub(crate) fn enforce(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    strata_sys::landlock::restrict_self(ruleset).map_err(errno)
}

fn allow(ruleset: BorrowedFd<'_>, beneath: BorrowedFd<'_>, access: u64) -> Result<(), Errno> {
    let is_directory = FileType::from_raw_mode(fstat(beneath)?.st_mode) == FileType::Directory;
    let access = if is_directory { access } else { access & FOR_FILES };
    strata_sys::landlock::allow_beneath(ruleset, beneath, access).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIRECTORY: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEVICE: u64 = 1 << 15;
/// Up to ABI 5.
const EVERYTHING: u64 = (1 << 16) - 1;
/// All that changes something.
const CHANGES: u64 = EVERYTHING & !(EXECUTE | READ_FILE | READ_DIRECTORY | IOCTL_DEVICE);
const FOR_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE;
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 1 << 1;
const SCOPE_ABSTRACT_SOCKETS: u64 = 1;
const SCOPE_SIGNALS: u64 = 1 << 1;
