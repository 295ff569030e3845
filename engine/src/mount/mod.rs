//! Images, containers and plain folders as folders of the host.

mod options;
pub(crate) mod table;

pub use options::{InvalidOption, MountOptions};

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use strata_imagestore::{ImageError, Stack, StackError};
use strata_unionfs::{Force, Lower, MountSpec, Options, RemountError, Upper};

use crate::container::{
    Container, ContainerId, ContainerName, CreateError, FindError, Locked, RecordError, State, Use,
};
use crate::creation::{Creation, InvalidCreation};
use crate::durable::Durability;
use crate::engine::{Engine, lease_name, lower_of};
use crate::filesystem::{FilesystemError, FilesystemProcess, SpareProcess};
use crate::launch::{open_index, prepare_upper};

/// What to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// An image or a container, by any of its names.
    Named(String),
    /// Folders of the host, topmost first.
    Folders(Vec<PathBuf>),
}

/// Where changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writable {
    /// There are none.
    No,
    /// Into a container's writable layer; for an image, a new container is made.
    Kept,
    /// Into these folders.
    At(Upper),
}

/// A mount that is made.
#[derive(Debug)]
pub struct MountMade {
    /// The container that was made to keep the changes.
    pub container: Option<(ContainerId, ContainerName)>,
    /// What was chosen.
    pub report: serde_json::Value,
    /// The process that serves it.
    pub server: FilesystemProcess,
}

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The place to mount on.
    #[error("mount on {path:?}")]
    Place {
        /// The place.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Neither a container nor an image is called so.
    #[error("No such image or container: {0}")]
    NotFound(String),
    /// The container cannot be found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The layers cannot be read.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The container cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The container makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidCreation),
    /// The record of the container.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The writable layer cannot be prepared.
    #[error("prepare the writable layer")]
    Upper(#[source] io::Error),
    /// Its process runs and writes to the same files.
    #[error("container {0} is running; its filesystem cannot be mounted a second time")]
    Running(ContainerName),
    /// It has changes of its own, which other folders cannot hold.
    #[error("container {0} has a writable layer of its own; --upper and --work are for images and folders")]
    OwnLayer(ContainerName),
    /// It is mounted already.
    #[error("the filesystem of container {0} is in use by another mount")]
    InUse(ContainerName),
    /// The kernel has no random numbers.
    #[error("draw a random identifier")]
    Random(#[source] rustix::io::Errno),
    /// The mount itself.
    #[error("mount {what}")]
    Filesystem {
        /// What was to be mounted.
        what: String,
        /// Why not.
        source: FilesystemError,
    },
    /// Folders without a writable layer need at least two, as overlayfs has it.
    #[error("a mount of folders needs at least one lower folder")]
    NoLower,
}

impl MountError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            MountError::NotFound(_) => Some("'strata images' and 'strata ps -a' list what is here".to_owned()),
            MountError::Running(_) => Some("wait for its end, or mount its image".to_owned()),
            MountError::Filesystem { source: FilesystemError::Mount(reason), .. } => crate::filesystem::hint(reason),
            _ => None,
        }
    }
}

/// A mount that stays.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Nothing of ours is there.
    #[error("{0}: not mounted")]
    NotMounted(String),
    /// Something else is there.
    #[error("{path}: this is a mount of type {kind}, not of strata")]
    Foreign {
        /// The place.
        path: String,
        /// The type.
        kind: String,
    },
    /// The list of mounts cannot be read.
    #[error("read the list of mounts")]
    Table(#[source] io::Error),
    /// It is in use, or may not be unmounted.
    #[error(transparent)]
    Unmount(#[from] strata_unionfs::UnmountError),
}

impl UnmountError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        let busy = matches!(self, UnmountError::Unmount(error) if error.is_busy());
        busy.then_some(
            "a process has a file open there or works in it, see 'fuser -vm DIR'; '-l' hides the mount from all others",
        )
    }
}

/// Unmounts what strata mounted at `directory`, even when its server is dead. If it is alive, returns when everything is
/// on the disk.
pub fn unmount(directory: &Path, force: Force) -> Result<(), UnmountError> {
    // The place itself is not looked at: if its server is dead, that fails.
    let absolute = std::path::absolute(directory).map_err(UnmountError::Table)?;
    let place = match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => absolute,
    };
    let entries = table::read().map_err(UnmountError::Table)?;
    // A symbolic link to the place, if it can be followed.
    let place = match table::at(&entries, &place) {
        Some(_) => place,
        None => place.canonicalize().unwrap_or(place),
    };
    match table::at(&entries, &place) {
        None => Err(UnmountError::NotMounted(directory.display().to_string())),
        Some(entry) if entry.kind != FILESYSTEM_TYPE && entry.kind != DROP_IN_TYPE => {
            Err(UnmountError::Foreign { path: directory.display().to_string(), kind: entry.kind.clone() })
        }
        Some(_) => Ok(strata_unionfs::unmount_with(&place, force, PATIENCE)?),
    }
}

/// The type that our mounts have in the kernel's list.
pub(crate) const FILESYSTEM_TYPE: &str = "fuse.strata";
/// The type of those made under the name of the other program.
const DROP_IN_TYPE: &str = "fuse.fuse-overlayfs";

/// Changes the flags of what is mounted at `directory`.
pub fn remount(mount: &MountOptions, directory: &Path) -> Result<(), RemountError> {
    strata_unionfs::remount(directory, &mount.options)
}

/// How long the end of a mount waits for its server. One that writes to a slow disk may take long; it goes on then.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is mounted, and what must stay locked as long.
struct Prepared {
    lower: Lower,
    upper: Option<Upper>,
    stack: Option<Stack>,
    in_use: Option<OwnedFd>,
    made: Option<Locked>,
    what: String,
    /// The limit of the container.
    size: Option<u64>,
}

impl Engine {
    /// Mounts an image or a container on `directory`. The server stays when the caller ends.
    pub fn mount(
        &self,
        name: &str,
        writable: Writable,
        options: &Options,
        directory: &Path,
    ) -> Result<MountMade, MountError> {
        let place = check_place(directory)?;
        let mut options = Options { read_only: writable == Writable::No, ..options.clone() };
        if options.source == Options::default().source {
            // So that the list of mounts says what is where.
            options.source = name.to_owned();
        }
        // Ready by the time that it is known what to mount.
        let spare = start_server(name)?;
        let prepared = self.prepare(name, writable, options.limits.bytes)?;
        // A container's own limit, unless another one is asked for.
        options.limits.bytes = options.limits.bytes.or(prepared.size);
        let lease = prepared.made.as_ref().map(|made| lease_name(made));
        match mount_prepared(&prepared, &options, &place, spare) {
            Ok(server) => {
                let container = prepared.made.as_ref().map(|made| (made.config.id.clone(), made.config.name.clone()));
                Ok(MountMade { container, report: server.report().clone(), server })
            }
            Err(error) => {
                drop(prepared.in_use);
                if let (Some(made), Some(lease)) = (prepared.made, lease) {
                    made.delete(self.registry())?;
                    self.release(&lease);
                }
                Err(error)
            }
        }
    }

    fn prepare(&self, name: &str, writable: Writable, size: Option<u64>) -> Result<Prepared, MountError> {
        let found = self.registry().find(name);
        // A plain user outside of his user namespace may be unable to remove what a killed command left: no matter here.
        if found.is_ok_and(|found| !found.is_settled_as(name))
            && let Err(error) = self.recover()
        {
            tracing::warn!(error = %crate::error_chain(&error), "containers of killed commands not dealt with");
        }
        match self.registry().find(name) {
            Ok(container) => return self.prepare_container(&container, writable),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        let image = match self.images().resolve(name) {
            Ok(image) => image,
            Err(error) if error.is_not_found() => return Err(MountError::NotFound(name.to_owned())),
            Err(error) => return Err(error.into()),
        };
        let stack = self.images().stack(&image)?;
        let (upper, in_use, made) = match writable {
            Writable::No => (None, None, None),
            Writable::At(upper) => (Some(upper), None, None),
            Writable::Kept => {
                let made = self.make_folder_container(name, &image, &stack, size)?;
                let in_use = lock_files(&made, Use::Alone)?;
                (Some(upper_of(&made)), Some(in_use), Some(made))
            }
        };
        Ok(Prepared { lower: lower_of(&stack), upper, stack: Some(stack), in_use, made, what: name.to_owned(), size })
    }

    fn prepare_container(&self, container: &Container, writable: Writable) -> Result<Prepared, MountError> {
        if container.state.owner().is_some() {
            return Err(MountError::Running(container.config.name.clone()));
        }
        if let Writable::At(_) = writable {
            return Err(MountError::OwnLayer(container.config.name.clone()));
        }
        let stack = self.stack_of(container)?;
        let usage = if writable == Writable::Kept { Use::Alone } else { Use::Shared };
        let in_use = lock_files(container, usage)?;
        Ok(Prepared {
            lower: lower_of(&stack),
            // A read-only mount shows the container's changes too; the options refuse writers.
            upper: Some(upper_of(container)),
            stack: Some(stack),
            in_use: Some(in_use),
            made: None,
            what: container.config.name.to_string(),
            size: container.config.storage_size,
        })
    }

    /// Makes a container that has files and no process, so that `diff`, `commit` and `rm` work on the changes.
    fn make_folder_container(
        &self,
        name: &str,
        image: &strata_imagestore::ImageId,
        stack: &Stack,
        size: Option<u64>,
    ) -> Result<Locked, MountError> {
        let creation = Creation { image: name.to_owned(), storage_size: size, ..Creation::default() };
        let id = ContainerId::random().map_err(MountError::Random)?;
        let image = self.images().image(image)?;
        let config = creation.configure(id, &image)?;
        let made = self.registry().create(config, State::created(), None, Durability::Synced)?;
        let prepared = open_index(&stack.index).and_then(|index| prepare_upper(&made, &index));
        let prepared = prepared.map_err(MountError::Upper);
        let kept = prepared.and_then(|()| Ok(self.images().lease(&lease_name(&made), &image.id)?));
        match kept {
            Ok(()) => Ok(made),
            Err(error) => {
                made.delete(self.registry())?;
                Err(error)
            }
        }
    }
}

/// Mounts plain folders on `directory`. The server stays when the caller ends.
pub fn mount_folders(mount: &MountOptions, directory: &Path) -> Result<FilesystemProcess, MountError> {
    let place = check_place(directory)?;
    if mount.lower.is_empty() {
        return Err(MountError::NoLower);
    }
    let upper = match (&mount.upper, &mount.work) {
        (Some(dir), Some(work)) => Some(Upper { dir: dir.clone(), work: work.clone() }),
        (None, None) => None,
        _ => {
            let missing = if mount.upper.is_some() { "workdir" } else { "upperdir" };
            let error = io::Error::other(format!("upperdir and workdir belong together, {missing} is missing"));
            return Err(MountError::Upper(error));
        }
    };
    let prepared = Prepared {
        lower: Lower::Folders(mount.lower.clone()),
        upper,
        stack: None,
        in_use: None,
        made: None,
        what: "the folders".to_owned(),
        size: None,
    };
    let spare = start_server(&prepared.what)?;
    mount_prepared(&prepared, &mount.options, &place, spare)
}

fn start_server(what: &str) -> Result<SpareProcess, MountError> {
    SpareProcess::spawn().map_err(|source| MountError::Filesystem { what: what.to_owned(), source })
}

fn mount_prepared(
    prepared: &Prepared,
    options: &Options,
    place: &Path,
    server: SpareProcess,
) -> Result<FilesystemProcess, MountError> {
    let spec = MountSpec { lower: prepared.lower.clone(), upper: prepared.upper.clone(), options: options.clone() };
    let held: Vec<_> = prepared
        .stack
        .iter()
        .map(|stack| stack.hold.as_file().as_fd())
        .chain(prepared.in_use.iter().map(AsFd::as_fd))
        .collect();
    server
        .mount(&spec, Some(place), &held)
        .map_err(|source| MountError::Filesystem { what: prepared.what.clone(), source })
}

fn upper_of(container: &Container) -> Upper {
    Upper { dir: container.upper(), work: container.work() }
}

fn lock_files(container: &Container, usage: Use) -> Result<OwnedFd, MountError> {
    container.use_files(usage, Duration::from_secs(2))?.ok_or_else(|| MountError::InUse(container.config.name.clone()))
}

/// Makes the place absolute, and refuses what is no folder before anything is made for the mount.
fn check_place(directory: &Path) -> Result<PathBuf, MountError> {
    let failed = |source| MountError::Place { path: directory.to_owned(), source };
    let place = directory.canonicalize().map_err(failed)?;
    if !place.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    Ok(place)
}
