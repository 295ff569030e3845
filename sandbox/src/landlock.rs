//! Landlock as a second wall, derived from the container's mounts.
//!
//! The rules follow inodes, not the mount table: whatever way leads out of the container's root (a leaked descriptor,
//! a mistake in the mount namespace), files outside of it cannot be opened. Inside nothing is denied that the mounts
//! allow, except `mount` itself, which landlock always denies: so containers that may mount go without.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::capabilities::{CapabilitySet, SYS_ADMIN};
use crate::plan::options::MountOptions;
use crate::plan::target;
use crate::rooted;

/// The rules, to be opened and applied by the child.
#[derive(Debug)]
pub(crate) struct LandlockPlan {
    /// Every access that needs a rule.
    handled: u64,
    /// Paths in the container and what is allowed beneath.
    rules: Vec<(CString, u64)>,
}

impl LandlockPlan {
    /// Plans the wall for a container with these capabilities, whose filter denies mounting. `None` where it would deny
    /// what the other walls allow, or where the kernel's landlock is too old to leave renames alone.
    pub(crate) fn new(spec: &Spec, bounding: CapabilitySet) -> Option<Self> {
        if bounding.contains(SYS_ADMIN) {
            return None;
        }
        let abi = strata_sys::landlock::abi().ok()?;
        let handled = match abi {
            0..=2 => return None,
            3 | 4 => EVERYTHING & !IOCTL_DEVICE,
            _ => EVERYTHING,
        };
        let read_only_root = spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true));
        let root_access = if read_only_root { handled & !CHANGES } else { handled };
        let mut rules = vec![(c".".to_owned(), root_access)];
        // Rules add up along the way to the root, so below a writable root there is nothing to say.
        if read_only_root {
            for mount in spec.mounts().iter().flatten() {
                let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default()).ok()?;
                let read_only =
                    (options.attributes.set | options.recursive.set) & strata_sys::mount_attributes::RDONLY != 0;
                if !read_only {
                    rules.push((target(mount.destination(), false).ok()?.path, handled));
                }
            }
        }
        Some(Self { handled, rules })
    }
}

/// Opens the paths and makes the ruleset, in the child, inside the container's root. Does not allocate.
pub(crate) fn prepare(plan: &LandlockPlan) -> Result<OwnedFd, Errno> {
    let ruleset = strata_sys::landlock::create_ruleset(plan.handled).map_err(errno)?;
    let root = openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (path, access) in &plan.rules {
        let beneath = rooted::open(root.as_fd(), path.as_c_str(), OFlags::PATH)?;
        allow(ruleset.as_fd(), beneath.as_fd(), *access)?;
    }
    // Streams from outside may be files there, and programs open /dev/stdin and its kin again.
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        // Pipes and sockets take no rule and need none.
        let _ = allow(ruleset.as_fd(), stream, plan.handled);
    }
    Ok(ruleset)
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
