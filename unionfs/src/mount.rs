//! Showing a tree to the system.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::fuse::{Connection, Counts};
use crate::helper::mount_by_helper;
use crate::spec::{MountSpec, Options, Transport};
use crate::tree::{OpenError, Tree};

/// Where to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// At a directory that everybody in the mount namespace sees.
    Directory(PathBuf),
    /// Nowhere: the mount exists as a descriptor only, until somebody moves it to a place.
    Detached,
}

/// A filesystem that is mounted but not served yet: whoever looks at it waits.
#[derive(Debug)]
#[must_use = "requests are answered only by `serve`; dropping this takes the filesystem away"]
pub struct Mounted {
    connection: Connection,
    detached: Option<OwnedFd>,
    report: MountReport,
    tree: Arc<Tree>,
}

/// What was chosen for a mount.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MountReport {
    /// Whether `fusermount3` mounted it rather than we ourselves.
    pub by_helper: bool,
    /// Whether the kernel reads and writes files directly.
    pub passthrough: bool,
    /// Why not, if it was wanted.
    pub passthrough_refused: Option<String>,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// Why this way.
    pub transport_reason: String,
    /// Number of serving threads.
    pub threads: usize,
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The layers cannot be used.
    #[error(transparent)]
    Layers(#[from] OpenError),
    /// There is no FUSE here.
    #[error("open /dev/fuse")]
    Device {
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("mount the filesystem: {step}")]
    Mount {
        /// What was being done.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The place cannot be used.
    #[error("mount at {path:?}")]
    Place {
        /// The place.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel and we found no common protocol.
    #[error("agree with the kernel on the FUSE protocol")]
    Handshake {
        /// The cause.
        source: io::Error,
    },
}

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
#[error("serve the mount")]
pub struct ServeError {
    #[from]
    source: io::Error,
}

/// Why a filesystem could not be unmounted.
#[derive(Debug, thiserror::Error)]
#[error("unmount {path:?}")]
pub struct UnmountError {
    path: PathBuf,
    source: io::Error,
}

/// Mounts a union and returns when it is there. Nobody gets an answer from it before [`Mounted::serve`] runs.
pub fn mount(spec: &MountSpec, target: &Target) -> Result<Mounted, MountError> {
    let tree = Arc::new(Tree::open(spec)?);
    let options = &spec.options;
    let threads = options.threads.unwrap_or_else(default_threads).max(1);
    let read_only = options.read_only || spec.upper.is_none();
    match fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => {
            let (device, detached) = mount_by_kernel(context.as_fd(), options, read_only)?;
            let connection = Connection::new(Arc::clone(&tree), device, options, threads)
                .map_err(|source| MountError::Handshake { source })?;
            if let Target::Directory(dir) = target {
                attach(detached.as_fd(), dir)?;
            }
            let detached = matches!(target, Target::Detached).then_some(detached);
            let report = report(&connection, false, threads);
            Ok(Mounted { connection, detached, report, tree })
        }
        Err(Errno::PERM) if let Target::Directory(dir) = target => {
            let options = Options { read_only, ..options.clone() };
            let device =
                mount_by_helper(dir, &options).map_err(|source| MountError::Place { path: dir.clone(), source })?;
            let connection = Connection::new(Arc::clone(&tree), device, &options, threads)
                .map_err(|source| MountError::Handshake { source })?;
            let report = report(&connection, true, threads);
            Ok(Mounted { connection, detached: None, report, tree })
        }
        Err(error) => Err(MountError::Mount { step: "fsopen", source: error.into() }),
    }
}

/// Takes over a filesystem that somebody else has mounted and nobody serves yet: `device` is its connection.
pub fn adopt(spec: &MountSpec, device: OwnedFd) -> Result<Mounted, MountError> {
    let tree = Arc::new(Tree::open(spec)?);
    let threads = spec.options.threads.unwrap_or_else(default_threads).max(1);
    let connection = Connection::new(Arc::clone(&tree), device, &spec.options, threads)
        .map_err(|source| MountError::Handshake { source })?;
    let report = report(&connection, true, threads);
    Ok(Mounted { connection, detached: None, report, tree })
}

impl Mounted {
    /// Returns the mount itself, for a [`Target::Detached`] one.
    pub fn mount_fd(&self) -> Option<BorrowedFd<'_>> {
        self.detached.as_ref().map(|fd| fd.as_fd())
    }

    /// Returns what was chosen.
    pub fn report(&self) -> &MountReport {
        &self.report
    }

    /// Returns how often the kernel asks for what; it goes on counting while the mount is served.
    pub fn counts(&self) -> Arc<Counts> {
        self.connection.counts()
    }

    /// Serves until the filesystem is unmounted, a detached one until nobody has a reference any more.
    pub fn serve(self) -> Result<(), ServeError> {
        let somewhere = self.detached.is_none();
        // Our own reference would keep it alive for ever.
        drop(self.detached);
        self.connection.serve()?;
        if somewhere {
            // Whoever unmounts a folder and waits for us may switch the machine off then.
            // Fails only for names that are too long. It tells those who wait that this is the end.
            let _ = rustix::thread::set_name(crate::mounted::ENDING);
            self.tree.write_through().map_err(io::Error::from)?;
        }
        Ok(())
    }
}

/// Unmounts the filesystem at `dir`, by `fusermount3` if we may not ourselves.
pub fn unmount(dir: &Path) -> Result<(), UnmountError> {
    unmount_as(dir, UnmountFlags::empty())
}

pub(crate) fn unmount_as(dir: &Path, flags: UnmountFlags) -> Result<(), UnmountError> {
    let failed = |source: io::Error| UnmountError { path: dir.to_owned(), source };
    match rustix::mount::unmount(dir, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => {
            let mut helper = std::process::Command::new("fusermount3");
            helper.arg("-u");
            if flags.contains(UnmountFlags::DETACH) {
                helper.arg("-z");
            }
            let output = helper.arg("--").arg(dir).output().map_err(failed)?;
            if output.status.success() {
                return Ok(());
            }
            Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())))
        }
        Err(error) => Err(failed(error.into())),
    }
}

/// Creates the filesystem and a detached mount of it. The device is opened in the user namespace that mounts.
fn mount_by_kernel(
    context: BorrowedFd<'_>,
    options: &Options,
    read_only: bool,
) -> Result<(OwnedFd, OwnedFd), MountError> {
    let device =
        File::options().read(true).write(true).open("/dev/fuse").map_err(|source| MountError::Device { source })?;
    let step = |step| move |error: Errno| MountError::Mount { step, source: error.into() };
    let set = |key: &str, value: &str| fsconfig_set_string(context, key, value);
    set("source", &options.source).map_err(step("source"))?;
    set("subtype", &options.subtype).map_err(step("subtype"))?;
    set("fd", &device.as_raw_fd().to_string()).map_err(step("fd"))?;
    set("rootmode", "40000").map_err(step("rootmode"))?;
    set("user_id", &rustix::process::getuid().as_raw().to_string()).map_err(step("user_id"))?;
    set("group_id", &rustix::process::getgid().as_raw().to_string()).map_err(step("group_id"))?;
    fsconfig_set_flag(context, "default_permissions").map_err(step("default_permissions"))?;
    fsconfig_set_flag(context, "allow_other").map_err(step("allow_other"))?;
    for (wanted, flag) in [(read_only, "ro"), (options.sync, "sync"), (options.dirsync, "dirsync")] {
        if wanted {
            fsconfig_set_flag(context, flag).map_err(step(flag))?;
        }
    }
    fsconfig_create(context).map_err(step("create"))?;
    let attributes = [
        (read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (options.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (options.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (options.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (options.noatime, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (options.nodiratime, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (options.nosymfollow, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    let attributes = attributes.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect();
    let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(step("fsmount"))?;
    Ok((device.into(), mount))
}

fn report(connection: &Connection, by_helper: bool, threads: usize) -> MountReport {
    let choice = connection.choice();
    MountReport {
        by_helper,
        passthrough: matches!(connection.passthrough(), Ok(true)),
        passthrough_refused: connection.passthrough().as_ref().err().cloned(),
        transport: choice.transport,
        transport_reason: choice.reason.to_owned(),
        threads,
    }
}

fn attach(mount: BorrowedFd<'_>, dir: &Path) -> Result<(), MountError> {
    move_mount(mount, "", rustix::fs::CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| MountError::Place { path: dir.to_owned(), source: error.into() })
}

/// One thread per CPU: whoever serves a request on the CPU that asked is fastest. At least two, for a slow one.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get).clamp(2, 16)
}
