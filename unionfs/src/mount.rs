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

use crate::apart;
use crate::fuse::{Choice, Connection, Counts, Line, Server, choose};
use crate::helper::mount_by_helper;
use crate::spec::{MountSpec, Options, Transport};
use crate::survive::{Faults, Keep, Keeper, Pinned, Service, Survived, WorkerError};
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
    server: Serving,
    detached: Option<OwnedFd>,
    report: MountReport,
}

/// Who serves a mount.
#[derive(Debug)]
enum Serving {
    /// This process.
    Here(Connection, Arc<Tree>),
    /// Processes that this one starts, the next when one dies.
    Kept(Box<Keeper>),
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
    /// The process that serves cannot be started, or cannot use the layers.
    #[error(transparent)]
    Worker(#[from] WorkerError),
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

impl UnmountError {
    /// Returns whether somebody uses it: has a file open there or is in one of its folders.
    pub fn is_busy(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EBUSY)
    }
}

/// Mounts a union and returns when it is there. Nobody gets an answer from it before [`Mounted::serve`] runs.
pub fn mount(spec: &MountSpec, target: &Target) -> Result<Mounted, MountError> {
    mount_by(spec, target, chosen(spec, Server::IsTheOnlyOne)?)
}

/// Takes over a filesystem that somebody else has mounted and nobody serves yet: `device` is its connection.
pub fn adopt(spec: &MountSpec, device: OwnedFd) -> Result<Mounted, MountError> {
    adopt_by(spec, device, chosen(spec, Server::IsTheOnlyOne)?)
}

/// As [`mount`], but served by processes of its own: when one dies, whoever uses the mount waits for the next, and nothing
/// is lost. The calling process must have one thread only, and should do nothing but [`Mounted::serve`] from then on.
pub fn mount_kept(spec: &MountSpec, target: &Target, faults: Faults) -> Result<Mounted, MountError> {
    let choice = chosen(spec, Server::MayDie)?;
    if choice.transport == Transport::Fuser {
        return mount_by(spec, target, choice);
    }
    // Before there is a mount, which may lie over them.
    let (layers, lock) = (Pinned::new(spec), lock(spec)?);
    make(spec, target, |device, by_helper| {
        let place = if by_helper { Place::ByHelper } else { Place::of(target) };
        kept(layers, device, choice, lock, faults, place)
    })
}

/// As [`adopt`], but served as by [`mount_kept`]. The layers were pinned before the mount was made.
pub fn adopt_kept(layers: Pinned, device: OwnedFd) -> Result<Mounted, MountError> {
    let choice = chosen(layers.spec(), Server::MayDie)?;
    if choice.transport == Transport::Fuser {
        return adopt_by(layers.spec(), device, choice);
    }
    let lock = lock(layers.spec())?;
    let (server, report) = kept(layers, device, choice, lock, Faults::default(), Place::ByHelper)?;
    Ok(Mounted { server, detached: None, report })
}

fn chosen(spec: &MountSpec, server: Server) -> Result<Choice, MountError> {
    choose(spec.options.transport, server).map_err(|source| MountError::Handshake { source })
}

fn mount_by(spec: &MountSpec, target: &Target, choice: Choice) -> Result<Mounted, MountError> {
    let tree = Arc::new(Tree::open(spec)?);
    make(spec, target, |device, by_helper| here(tree, device, &spec.options, choice, by_helper))
}

fn adopt_by(spec: &MountSpec, device: OwnedFd, choice: Choice) -> Result<Mounted, MountError> {
    let tree = Arc::new(Tree::open(spec)?);
    let (server, report) = here(tree, device, &spec.options, choice, true)?;
    Ok(Mounted { server, detached: None, report })
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

    /// Returns how often the kernel asks for what; it goes on counting while the mount is served. `None` if another process
    /// serves it.
    pub fn counts(&self) -> Option<Arc<Counts>> {
        match &self.server {
            Serving::Here(connection, _) => Some(connection.counts()),
            Serving::Kept(_) => None,
        }
    }

    /// Serves until the filesystem is unmounted, a detached one until nobody has a reference any more.
    pub fn serve(self) -> Result<(), ServeError> {
        let somewhere = self.detached.is_none();
        // Our own reference would keep it alive for ever.
        drop(self.detached);
        match self.server {
            Serving::Here(connection, tree) => {
                connection.serve(&|| ())?;
                if somewhere {
                    tree.write_through_at_the_end().map_err(io::Error::from)?;
                }
                Ok(())
            }
            Serving::Kept(keeper) => Ok(keeper.watch()?),
        }
    }

    /// As [`serve`](Self::serve), and returns what a mount by [`mount_kept`] has been through.
    pub fn serve_and_tell(self) -> (Result<(), ServeError>, Survived) {
        let keep = match &self.server {
            Serving::Here(..) => None,
            Serving::Kept(keeper) => Some(Arc::clone(keeper.keep())),
        };
        (self.serve(), keep.map_or_else(Survived::default, |keep| Survived::of(&keep)))
    }
}

/// Where a mount is, and by whom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    ByHelper,
    AtFolder,
    Nowhere,
}

impl Place {
    fn of(target: &Target) -> Place {
        match target {
            Target::Directory(_) => Place::AtFolder,
            Target::Detached => Place::Nowhere,
        }
    }
}

fn here(
    tree: Arc<Tree>,
    device: OwnedFd,
    options: &Options,
    choice: Choice,
    by_helper: bool,
) -> Result<(Serving, MountReport), MountError> {
    let threads = threads(options);
    let connection = Connection::new(Arc::clone(&tree), device, options, choice, threads)
        .map_err(|source| MountError::Handshake { source })?;
    let report = report(connection.choice(), connection.passthrough(), by_helper, threads);
    Ok((Serving::Here(connection, tree), report))
}

fn lock(spec: &MountSpec) -> Result<Option<OwnedFd>, MountError> {
    apart::check(spec).map_err(OpenError::Overlap)?;
    let lock = spec.upper.as_ref().map(crate::upper::lock_upper).transpose();
    Ok(lock.map_err(OpenError::Upper)?)
}

fn kept(
    layers: Pinned,
    device: OwnedFd,
    choice: Choice,
    lock: Option<OwnedFd>,
    faults: Faults,
    place: Place,
) -> Result<(Serving, MountReport), MountError> {
    let options = &layers.spec().options;
    let threads = threads(options);
    let line = Line::open(device, options, choice, Server::MayDie, threads)
        .map_err(|source| MountError::Handshake { source })?;
    let report = report(line.choice, &line.agreed.passthrough, place == Place::ByHelper, threads);
    let keep = Arc::new(Keep::new().map_err(WorkerError::Start)?);
    let service = Service { layers, keep, lock, line, somewhere: place != Place::Nowhere };
    Ok((Serving::Kept(Box::new(Keeper::start(service, faults)?)), report))
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

/// Makes the mount, by `fusermount3` if we may not ourselves, and has `serve` prepare what answers over its connection.
fn make(
    spec: &MountSpec,
    target: &Target,
    serve: impl FnOnce(OwnedFd, bool) -> Result<(Serving, MountReport), MountError>,
) -> Result<Mounted, MountError> {
    let read_only = spec.options.read_only || spec.upper.is_none();
    match fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => {
            let (device, detached) = mount_by_kernel(context.as_fd(), &spec.options, read_only)?;
            let (server, report) = serve(device, false)?;
            if let Target::Directory(dir) = target {
                attach(detached.as_fd(), dir)?;
            }
            let detached = matches!(target, Target::Detached).then_some(detached);
            Ok(Mounted { server, detached, report })
        }
        Err(Errno::PERM) if let Target::Directory(dir) = target => {
            let options = Options { read_only, ..spec.options.clone() };
            let device =
                mount_by_helper(dir, &options).map_err(|source| MountError::Place { path: dir.clone(), source })?;
            let (server, report) = serve(device, true).inspect_err(|_| {
                // Nobody will ever serve it.
                let _ = unmount_as(dir, UnmountFlags::DETACH);
            })?;
            Ok(Mounted { server, detached: None, report })
        }
        Err(error) => Err(MountError::Mount { step: "fsopen", source: error.into() }),
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

fn report(choice: Choice, passthrough: &Result<bool, String>, by_helper: bool, threads: usize) -> MountReport {
    MountReport {
        by_helper,
        passthrough: *passthrough == Ok(true),
        passthrough_refused: passthrough.as_ref().err().cloned(),
        transport: choice.transport,
        transport_reason: choice.reason.to_owned(),
        threads,
    }
}

fn attach(mount: BorrowedFd<'_>, dir: &Path) -> Result<(), MountError> {
    move_mount(mount, "", rustix::fs::CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| MountError::Place { path: dir.to_owned(), source: error.into() })
}

/// Returns how many threads serve. One per CPU: whoever serves a request on the CPU that asked is fastest. At least two,
/// for a slow one.
fn threads(options: &Options) -> usize {
    let default = || std::thread::available_parallelism().map_or(2, NonZeroUsize::get).clamp(2, 16);
    options.threads.unwrap_or_else(default).max(1)
}
