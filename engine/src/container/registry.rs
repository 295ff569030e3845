//! The folder of all containers: creating, finding, changing and removing records.
//!
//! Three rules make a kill at any point harmless:
//! - a container appears by renaming a finished folder into place and disappears by renaming it away;
//! - whoever creates, starts, changes or removes one holds an exclusive lock on its folder, which the kernel drops
//!   with the process;
//! - names are links made after the folder and removed before it, so a link to nothing is always garbage.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::changes::Changes;
use super::{Config, ContainerId, ContainerName, Event, Refused, State};
use crate::durable::{self, Durability};

const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const CHANGES: &str = "changes.json";
const NAMES: &str = "names";
/// Folders that are being filled and are no containers yet.
const CREATING: &str = ".creating-";
/// Folders that are no containers any more and are being deleted.
const REMOVING: &str = ".removing-";

/// All containers below one root.
#[derive(Clone, Debug)]
pub struct Containers {
    folder: PathBuf,
    pub(super) cgroup_prefix: String,
}

/// One container: where it is, what it was created with, how it was when it was read.
#[derive(Clone, Debug)]
pub struct Container {
    folder: PathBuf,
    /// What it was created with.
    pub config: Config,
    /// How it was when it was read; only the holder of `Locked` knows it for certain.
    pub state: State,
    /// How often its restart policy has started it again since the user did.
    pub restarts: u32,
}

/// A container whose record nobody else changes.
#[derive(Debug)]
#[must_use = "the container is unlocked when this is dropped"]
pub(crate) struct Locked {
    container: Container,
    _lock: OwnedFd,
}

/// How the files of a container are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// They are written, or removed: nobody else may use them.
    Alone,
    /// They are only read.
    Shared,
}

/// A record that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("access {path:?}")]
    Access {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else than a record.
    #[error("{path:?} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file was written by a later version.
    #[error("{path:?} has version {version}, this strata knows {}", super::config::VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The life of a container does not allow it.
    #[error(transparent)]
    Refused(#[from] Box<Refused>),
    /// Somebody else keeps the record.
    #[error("the record of container {0} is in use by another command, or gone")]
    Busy(ContainerName),
}

/// A container that cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is taken. The text is Docker's.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: ContainerName,
        /// Who has it.
        holder: String,
    },
    /// The kernel has no random numbers.
    #[error("draw a random identifier")]
    Random(#[source] rustix::io::Errno),
    /// The record cannot be written.
    #[error("write the record of the container")]
    Record(#[from] RecordError),
}

/// A name or identifier that means no container, or several.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none. The text is Docker's.
    #[error("No such container: {0}")]
    NotFound(String),
    /// A prefix fits several.
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// It is there and cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl FindError {
    /// Whether there is no such container.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FindError::NotFound(_))
    }
}

/// A container that cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Its process runs. The text is Docker's.
    #[error(
        "cannot remove container \"/{0}\": container is running: stop the container before removing or force remove"
    )]
    Running(ContainerName),
    /// A command is working on it.
    #[error("cannot remove container \"/{0}\": it is being started or changed by another command")]
    Busy(ContainerName),
    /// Its file system is in use.
    #[error("cannot remove container \"/{0}\": its file system is mounted; unmount it first")]
    Mounted(ContainerName),
    /// Its process is stopped. The text is Docker's.
    #[error("cannot remove container \"/{0}\": container is paused and must be unpaused first")]
    Paused(ContainerName),
    /// It waits to be started again. The text is Docker's.
    #[error(
        "cannot remove container \"/{0}\": container is restarting: stop the container before removing or force remove"
    )]
    Restarting(ContainerName),
    /// Its process did not end.
    #[error("kill the container's process")]
    Kill(#[source] io::Error),
    /// Its files stay.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    version: u32,
    state: State,
    #[serde(default)]
    restarts: u32,
}

impl Containers {
    /// Opens the folder, which need not exist yet.
    pub fn new(root: &Path) -> Containers {
        Containers { folder: root.join("containers"), cgroup_prefix: super::cgroup::prefix(root) }
    }

    /// Writes a new container's record and locks it. With no name given, one is drawn.
    pub(crate) fn create(
        &self,
        mut config: Config,
        state: State,
        name: Option<ContainerName>,
        durability: Durability,
    ) -> Result<Locked, CreateError> {
        let names = self.folder.join(NAMES);
        if !names.is_dir() {
            fs::create_dir_all(&names).map_err(access(&names))?;
        }
        let building = self.folder.join(format!("{CREATING}{}", config.id));
        let folder = self.folder.join(config.id.as_str());
        make_folder(&building)?;
        let lock = lock_folder(&building).map_err(access(&building))?;
        for inner in ["upper", "work"] {
            make_folder(&building.join(inner))?;
        }
        let mut attempt = 0;
        loop {
            config.name = match &name {
                Some(name) => name.clone(),
                None => ContainerName::random(attempt).map_err(CreateError::Random)?,
            };
            if let Some(holder) = self.holder(&config.name) {
                if name.is_some() {
                    remove_tree(&building)?;
                    return Err(CreateError::NameTaken { name: config.name, holder });
                }
                attempt += 1;
                continue;
            }
            write_json(&building.join(CONFIG), &config, durability)?;
            write_json(
                &building.join(STATE),
                &StateFile { version: super::config::VERSION, state: state.clone(), restarts: 0 },
                durability,
            )?;
            break;
        }
        fs::rename(&building, &folder).map_err(access(&folder))?;
        loop {
            match self.take_name(&config.name, &config.id) {
                Ok(true) => break,
                // Raced with another command that took the name after it was looked up.
                Ok(false) if name.is_none() => {
                    attempt += 1;
                    config.name = ContainerName::random(attempt).map_err(CreateError::Random)?;
                    durable_json(&folder.join(CONFIG), &config, durability)?;
                }
                Ok(false) => {
                    let holder = self.holder(&config.name).unwrap_or_default();
                    let name = config.name.clone();
                    Locked { container: Container { folder, config, state, restarts: 0 }, _lock: lock }
                        .discard(self)?;
                    return Err(CreateError::NameTaken { name, holder });
                }
                Err(error) => return Err(error.into()),
            }
        }
        if durability == Durability::Synced {
            for path in [&folder, &names, &self.folder] {
                durable::sync_directory(path).map_err(access(path))?;
            }
        }
        Ok(Locked { container: Container { folder, config, state, restarts: 0 }, _lock: lock })
    }

    /// Makes one for a test.
    #[cfg(test)]
    pub(crate) fn create_for_test(&self, state: State) -> Locked {
        self.create(tests::config(false), state, None, Durability::Relaxed).unwrap()
    }

    /// Returns every container, the newest first. One that cannot be read is left out and reported in the log.
    pub fn list(&self) -> Result<Vec<Container>, RecordError> {
        let mut containers = Vec::new();
        for name in self.entries()? {
            let read = match name.strip_prefix(REMOVING) {
                Some(_) => Container::read_removed(self.folder.join(&name)),
                None if name.parse::<ContainerId>().is_ok() => Container::read(self.folder.join(&name)),
                None => continue,
            };
            match read {
                Ok(container) => containers.push(container),
                // Raced with its removal.
                Err(RecordError::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%name, error = %crate::error_chain(&error), "skipped a container"),
            }
        }
        containers
            .sort_by(|one, other| (other.config.created, &other.config.id).cmp(&(one.config.created, &one.config.id)));
        Ok(containers)
    }

    /// Returns those of these containers whose command is gone. Looks at little more than their states.
    pub(crate) fn abandoned<'a>(&self, ids: impl Iterator<Item = &'a ContainerId>) -> Vec<Container> {
        let is_abandoned = |folder: &PathBuf| {
            // One that is being removed, or is damaged, is what `list` and `find` report.
            let file = read_json::<StateFile>(&folder.join(STATE));
            file.is_ok_and(|file| file.state.is_abandoned())
        };
        let folders = ids.map(|id| self.folder.join(id.as_str())).filter(is_abandoned);
        folders.filter_map(|folder| Container::read(folder).ok()).collect()
    }

    /// Keeps others from choosing ids for a user namespace until a record with the chosen ones is there.
    pub(crate) fn lock_ids(&self) -> Result<OwnedFd, RecordError> {
        let names = self.folder.join(NAMES);
        fs::create_dir_all(&names).map_err(access(&names))?;
        let folder = open_folder(&names).map_err(access(&names))?;
        loop {
            match rustix::fs::flock(folder.as_fd(), FlockOperation::LockExclusive) {
                Ok(()) => return Ok(folder),
                Err(Errno::INTR) => {}
                Err(error) => return Err(access(&names)(error.into())),
            }
        }
    }

    /// Whether there is a container with this identifier.
    pub(crate) fn contains(&self, id: &ContainerId) -> bool {
        self.folder.join(id.as_str()).exists()
    }

    /// Finds a container by its identifier, its name, or the beginning of its identifier.
    pub fn find(&self, text: &str) -> Result<Container, FindError> {
        let not_found = || FindError::NotFound(text.to_owned());
        let id = match text.parse::<ContainerId>() {
            Ok(id) => id,
            Err(_) => match self.find_by_name(text) {
                Some(id) => id,
                None => {
                    let hexadecimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                    let mut fitting = self.identifiers()?.into_iter().filter(|id| id.as_str().starts_with(text));
                    match (hexadecimal, fitting.next(), fitting.next()) {
                        (true, Some(id), None) => id,
                        (true, Some(_), Some(_)) => return Err(FindError::Ambiguous(text.to_owned())),
                        _ => return Err(not_found()),
                    }
                }
            },
        };
        match Container::read(self.folder.join(id.as_str())) {
            Err(RecordError::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(not_found()),
            result => Ok(result?),
        }
    }

    /// Deletes what commands that were killed left half made or half deleted. Returns the identifiers of all others.
    pub(crate) fn sweep(&self) -> Result<Vec<ContainerId>, RecordError> {
        let mut identifiers = Vec::new();
        for name in self.entries()? {
            if name.starts_with(CREATING) || name.starts_with(REMOVING) {
                let path = self.folder.join(&name);
                // Locked by a command that is still at it, or gone by now.
                if let Ok(Some(_lock)) = try_lock_folder(&path)
                    && let Err(error) = remove_container_tree(&path)
                {
                    // Shown as dead; no reason to refuse everything else.
                    tracing::warn!(%name, error = %crate::error_chain(&error), "a removed container's files stay");
                }
            } else {
                identifiers.extend(name.parse::<ContainerId>());
            }
        }
        Ok(identifiers)
    }

    /// Deletes names of nothing, and those that a container has lost.
    pub(crate) fn sweep_names(&self) -> Result<(), RecordError> {
        let names = self.folder.join(NAMES);
        for entry in read_folder(&names)? {
            let link = names.join(&entry);
            let target = fs::read_link(&link).ok().and_then(|target| target.file_name().map(|name| name.to_owned()));
            let Some(target) = target else { continue };
            let folder = self.folder.join(&target);
            if !folder.exists() || self.is_second_name(&folder, &entry) {
                // Raced with the command that removes the container: then it is gone, which is as well.
                let _ = fs::remove_file(&link);
            }
        }
        Ok(())
    }

    /// Whether a container has another name than this one by its record, which nobody is about to change.
    fn is_second_name(&self, folder: &Path, name: &str) -> bool {
        // Only renamed containers have this file: for all others there is nothing to read.
        if !folder.join(CHANGES).exists() {
            return false;
        }
        match try_lock_folder(folder) {
            Ok(Some(_lock)) => {
                Container::read(folder.to_owned()).is_ok_and(|container| container.config.name.as_str() != name)
            }
            _ => false,
        }
    }

    fn find_by_name(&self, text: &str) -> Option<ContainerId> {
        let name: ContainerName = text.parse().ok()?;
        self.holder(&name)?.parse().ok()
    }

    /// Who has a name; a link to a container that is gone holds nothing and is removed.
    fn holder(&self, name: &ContainerName) -> Option<String> {
        let link = self.folder.join(NAMES).join(name.as_str());
        let target = fs::read_link(&link).ok()?;
        let holder = target.file_name()?.to_str()?.to_owned();
        if self.folder.join(&holder).exists() {
            return Some(holder);
        }
        // Raced at worst with the command that removes the container.
        let _ = fs::remove_file(&link);
        None
    }

    /// Links a name to a container; `false` when another has it.
    fn take_name(&self, name: &ContainerName, id: &ContainerId) -> Result<bool, RecordError> {
        let link = self.folder.join(NAMES).join(name.as_str());
        match std::os::unix::fs::symlink(Path::new("..").join(id.as_str()), &link) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(RecordError::Access { path: link, source }),
        }
    }

    fn identifiers(&self) -> Result<Vec<ContainerId>, RecordError> {
        Ok(self.entries()?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn entries(&self) -> Result<Vec<String>, RecordError> {
        read_folder(&self.folder)
    }
}

impl Container {
    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its writable layer.
    pub fn upper(&self) -> PathBuf {
        self.folder.join("upper")
    }

    /// The scratch folder of its writable layer.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// Whether the command that is responsible for it is gone.
    pub fn is_abandoned(&self) -> bool {
        self.state.is_abandoned()
    }

    /// Whether no killed command has left anything to do about it, and it is the one that is called `text`, which found it.
    pub(crate) fn is_settled_as(&self, text: &str) -> bool {
        // A name may be left of a renaming that was cut off.
        let name = text.strip_prefix('/').unwrap_or(text);
        let is_called = self.config.name.as_str() == name || self.config.id.as_str().starts_with(text);
        is_called && !self.is_abandoned()
    }

    /// Takes the lock that whoever mounts the container's files keeps; `None` when they stay in use for `limit`.
    pub(crate) fn use_files(&self, usage: Use, limit: Duration) -> Result<Option<OwnedFd>, RecordError> {
        // Not on the folders of the writable layer: those the union locks for itself.
        let path = self.folder.join(CONFIG);
        let file = rustix::fs::openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(|error| access(&path)(error.into()))?;
        let operation = match usage {
            Use::Alone => FlockOperation::NonBlockingLockExclusive,
            Use::Shared => FlockOperation::NonBlockingLockShared,
        };
        let deadline = Instant::now() + limit;
        loop {
            match rustix::fs::flock(file.as_fd(), operation) {
                Ok(()) => return Ok(Some(file)),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(access(&path)(error.into())),
            }
        }
    }

    fn read(folder: PathBuf) -> Result<Container, RecordError> {
        let path = folder.join(CONFIG);
        let mut config: Config = read_json(&path)?;
        if config.version > super::config::VERSION {
            return Err(RecordError::Version { path, version: config.version });
        }
        let path = folder.join(CHANGES);
        match read_json::<Changes>(&path) {
            Ok(changes) if changes.version > super::config::VERSION => {
                return Err(RecordError::Version { path, version: changes.version });
            }
            Ok(changes) => changes.apply(&mut config),
            Err(RecordError::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let StateFile { state, restarts, .. } = read_json(&folder.join(STATE))?;
        Ok(Container { folder, config, state, restarts })
    }

    /// Reads what is no container any more: somebody deletes it, or nobody could.
    fn read_removed(folder: PathBuf) -> Result<Container, RecordError> {
        let in_work = match try_lock_folder(&folder) {
            Ok(lock) => lock.is_none(),
            Err(source) => return Err(RecordError::Access { path: folder, source }),
        };
        let mut container = Container::read(folder)?;
        container.state = if in_work { State::Removing } else { State::Dead };
        Ok(container)
    }

    /// Waits at most `limit` for the container's lock and reads the container again; `None` when another command
    /// keeps it, or when the container is gone.
    pub(crate) fn lock(&self, limit: Duration) -> Result<Option<Locked>, RecordError> {
        let deadline = Instant::now() + limit;
        loop {
            match try_lock_folder(&self.folder) {
                Ok(Some(lock)) => {
                    // The folder may have been renamed away between opening and locking it.
                    return match Container::read(self.folder.clone()) {
                        Ok(container) => Ok(Some(Locked { container, _lock: lock })),
                        Err(RecordError::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                        Err(error) => Err(error),
                    };
                }
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(RecordError::Access { path: self.folder.clone(), source }),
            }
        }
    }
}

impl Locked {
    /// Moves the container on `event` and writes its new state.
    pub(crate) fn apply(&mut self, event: Event, durability: Durability) -> Result<(), RecordError> {
        let restarts = match event {
            Event::Start { .. } => 0,
            Event::Restart => self.container.restarts.saturating_add(1),
            _ => self.container.restarts,
        };
        let state = self.container.state.apply(event)?;
        let file = StateFile { version: super::config::VERSION, state: state.clone(), restarts };
        durable_json(&self.container.folder.join(STATE), &file, durability)?;
        self.container.state = state;
        self.container.restarts = restarts;
        Ok(())
    }

    /// Changes what may change of its configuration. A new name is taken before the old one is given back.
    pub(crate) fn change(
        &mut self,
        containers: &Containers,
        change: impl FnOnce(&mut Config),
    ) -> Result<(), CreateError> {
        let mut config = self.container.config.clone();
        change(&mut config);
        let path = self.container.folder.join(CHANGES);
        let write = |config: &Config| durable_json(&path, &Changes::of(config), Durability::Synced);
        if config.name == self.container.config.name {
            write(&config)?;
            self.container.config = config;
            return Ok(());
        }
        let names = containers.folder.join(NAMES);
        if let Some(holder) = containers.holder(&config.name) {
            return Err(CreateError::NameTaken { name: config.name, holder });
        }
        if !containers.take_name(&config.name, &config.id)? {
            let holder = containers.holder(&config.name).unwrap_or_default();
            return Err(CreateError::NameTaken { name: config.name, holder });
        }
        // Killed here, the container has two names; its record says which one is right, and sweeping removes the other.
        let old = names.join(self.container.config.name.as_str());
        write(&config)?;
        fs::remove_file(&old).map_err(access(&old))?;
        durable::sync_directory(&names).map_err(access(&names))?;
        self.container.config = config;
        Ok(())
    }

    /// Lets others change the record.
    pub(crate) fn unlock(self) -> Container {
        self.container
    }

    /// Deletes a container that was never more than its record.
    pub(crate) fn discard(mut self, containers: &Containers) -> Result<(), RecordError> {
        self.container.state = State::created();
        self.delete(containers)
    }

    /// Moves the container on `event` and deletes it, without writing the state in between.
    pub(crate) fn delete_after(mut self, event: Event, containers: &Containers) -> Result<(), RecordError> {
        self.container.state = self.container.state.apply(event)?;
        self.delete(containers)
    }

    /// Makes the container disappear, then deletes its files.
    pub(crate) fn delete(self, containers: &Containers) -> Result<(), RecordError> {
        self.container.state.apply(Event::Remove)?;
        let Container { folder, config, .. } = &self.container;
        let link = containers.folder.join(NAMES).join(config.name.as_str());
        // Only its own name: the link may by now belong to another container.
        if fs::read_link(&link).is_ok_and(|target| target.ends_with(config.id.as_str())) {
            fs::remove_file(&link).map_err(access(&link))?;
        }
        let removing = containers.folder.join(format!("{REMOVING}{}", config.id));
        fs::rename(folder, &removing).map_err(access(folder))?;
        if !config.auto_remove {
            // Else it may come back with the next power cut. One that goes with its process is of an earlier boot then.
            durable::sync_directory(&containers.folder).map_err(access(&containers.folder))?;
        }
        remove_container_tree(&removing)
    }
}

impl std::ops::Deref for Locked {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.container
    }
}

/// Deletes a container's folder, its record last: what cannot be deleted can still be shown.
fn remove_container_tree(path: &Path) -> Result<(), RecordError> {
    for inner in ["upper", "work"] {
        remove_tree(&path.join(inner))?;
    }
    remove_tree(path)
}

/// Deletes a folder with all it holds; follows no link.
fn remove_tree(path: &Path) -> Result<(), RecordError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // A container may have taken the owner's permissions off a folder of its own.
            open_up(path);
            fs::remove_dir_all(path).map_err(access(path))
        }
        result => result.map_err(access(path)),
    }
}

/// Gives the owner all permissions on every folder below `path`.
fn open_up(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    // What cannot be opened up is what the next attempt to delete reports.
    let _ = fs::set_permissions(path, mode);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

fn make_folder(path: &Path) -> Result<(), RecordError> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(|error| access(path)(error.into()))
}

fn read_folder(path: &Path) -> Result<Vec<String>, RecordError> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(RecordError::Access { path: path.to_owned(), source }),
    }
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, RecordError> {
    let bytes = fs::read(path).map_err(access(path))?;
    serde_json::from_slice(&bytes).map_err(|source| RecordError::Damaged { path: path.to_owned(), source })
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have only string keys")
}

fn write_json(path: &Path, value: &impl Serialize, durability: Durability) -> Result<(), RecordError> {
    durable::write_new(path, &to_json(value), durability).map_err(access(path))
}

fn durable_json(path: &Path, value: &impl Serialize, durability: Durability) -> Result<(), RecordError> {
    durable::replace(path, &to_json(value), durability).map_err(access(path))
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

fn lock_folder(path: &Path) -> io::Result<OwnedFd> {
    let folder = open_folder(path)?;
    rustix::fs::flock(folder.as_fd(), FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

fn try_lock_folder(path: &Path) -> io::Result<Option<OwnedFd>> {
    match lock_folder(path) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn access(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Access { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;
    use strata_imagestore::Timestamp;

    pub(super) fn config(auto_remove: bool) -> Config {
        Config {
            version: 1,
            id: ContainerId::random().unwrap(),
            name: "unset".parse().unwrap(),
            created: Timestamp::now(),
            image: "sha256:0".to_owned(),
            image_reference: "busybox".to_owned(),
            command: vec!["sh".to_owned()],
            entrypoint_length: 0,
            environment: Vec::new(),
            user: String::new(),
            working_directory: "/".to_owned(),
            hostname: "h".to_owned(),
            domainname: None,
            names: Default::default(),
            labels: Default::default(),
            stop_signal: "SIGTERM".to_owned(),
            tty: false,
            open_stdin: false,
            stdin_once: false,
            auto_remove,
            read_only: false,
            mounts: Vec::new(),
            devices: Vec::new(),
            device_rules: Vec::new(),
            limits: Default::default(),
            oom_kill_disable: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            seccomp: Default::default(),
            no_new_privileges: false,
            security: Default::default(),
            network: Default::default(),
            namespaces: Default::default(),
            user_namespace: Default::default(),
            own_ids: None,
            groups: Vec::new(),
            privileged: false,
            rlimits: Vec::new(),
            sysctls: Default::default(),
            shm_size: None,
            storage_size: None,
            oom_score: None,
            restart: Default::default(),
            stop_timeout: None,
            log: Default::default(),
            cgroup_manager: Default::default(),
        }
    }

    fn create(containers: &Containers, name: Option<&str>) -> Result<Locked, CreateError> {
        let name = name.map(|name| name.parse().unwrap());
        containers.create(config(false), State::created(), name, Durability::Relaxed)
    }

    fn names(containers: &Containers) -> Vec<String> {
        let mut names = containers.entries().unwrap();
        names.extend(read_folder(&containers.folder.join(NAMES)).unwrap());
        names.sort();
        names
    }

    #[test]
    fn a_container_is_found_by_id_name_and_prefix() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        assert!(containers.list().unwrap().is_empty());
        let id = create(&containers, Some("web")).unwrap().config.id.clone();
        for text in [id.as_str(), id.short(), "web", "/web"] {
            assert_eq!(containers.find(text).unwrap().config.id, id, "{text}");
        }
        for text in ["", "we", "zz", "../x"] {
            assert!(containers.find(text).unwrap_err().is_not_found(), "{text}");
        }
        assert_eq!(containers.find("nope").unwrap_err().to_string(), "No such container: nope");
    }

    #[test]
    fn a_taken_name_is_refused_in_docker_s_words_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        let first = create(&containers, Some("web")).unwrap();
        let before = names(&containers);
        let error = create(&containers, Some("web")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "Conflict. The container name \"/web\" is already in use by container \"{}\". You have to remove (or \
                 rename) that container to be able to reuse that name.",
                first.config.id
            )
        );
        assert_eq!(names(&containers), before);
        first.delete(&containers).unwrap();
        assert_eq!(names(&containers), ["names"]);
        let _ = create(&containers, Some("web")).unwrap();
    }

    #[test]
    fn names_are_drawn_until_one_is_free() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        for _ in 0..40 {
            let _ = create(&containers, None).unwrap();
        }
        let mut names: Vec<_> = containers.list().unwrap().into_iter().map(|container| container.config.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 40);
    }

    #[test]
    fn a_state_is_written_only_when_the_life_allows_it() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        let mut locked = create(&containers, Some("web")).unwrap();
        assert!(locked.apply(Event::Pause, Durability::Relaxed).is_err());
        assert_eq!(containers.find("web").unwrap().state, State::created());
        let owner = Process::current();
        locked.apply(Event::Start { owner: owner.clone() }, Durability::Relaxed).unwrap();
        let read = containers.find("web").unwrap();
        assert_eq!(read.state, State::Starting { owner, before: None });
        assert!(!read.is_abandoned());
    }

    #[test]
    fn a_locked_container_is_left_alone_until_its_holder_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        let locked = create(&containers, Some("web")).unwrap();
        let seen = containers.find("web").unwrap();
        assert!(seen.lock(Duration::ZERO).unwrap().is_none());
        drop(locked);
        let locked = seen.lock(Duration::ZERO).unwrap().unwrap();
        locked.delete(&containers).unwrap();
        assert!(seen.lock(Duration::ZERO).unwrap().is_none());
    }

    #[test]
    fn sweep_removes_what_was_half_made_and_keeps_what_is_in_work() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        let _ = create(&containers, Some("web")).unwrap();
        let kept = names(&containers);
        let folder = containers.folder.clone();
        for name in [".creating-a", ".removing-b/upper/deep", ".creating-live"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let sealed = folder.join(".removing-b/upper/deep");
        fs::set_permissions(sealed, std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
        std::os::unix::fs::symlink("../gone", folder.join("names/lost")).unwrap();
        let live = lock_folder(&folder.join(".creating-live")).unwrap();
        let sweep = || containers.sweep().and_then(|_| containers.sweep_names());
        sweep().unwrap();
        let mut expected = kept.clone();
        expected.push(".creating-live".to_owned());
        expected.sort();
        assert_eq!(names(&containers), expected);
        drop(live);
        sweep().unwrap();
        assert_eq!(names(&containers), kept);
    }

    #[test]
    fn a_renamed_container_has_one_name_even_when_killed_in_between() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        let _ = create(&containers, Some("other")).unwrap();
        let mut locked = create(&containers, Some("web")).unwrap();
        let rename = |name: &str| {
            let name = name.parse().unwrap();
            move |config: &mut Config| config.name = name
        };
        let error = locked.change(&containers, rename("other")).unwrap_err();
        assert!(matches!(error, CreateError::NameTaken { .. }), "{error}");
        locked.change(&containers, rename("shop")).unwrap();
        assert_eq!(containers.find("shop").unwrap().config.name.as_str(), "shop");
        assert!(containers.find("web").unwrap_err().is_not_found());
        // As if killed before the record was written, and after.
        let id = locked.config.id.to_string();
        let link = |name: &str| {
            std::os::unix::fs::symlink(format!("../{id}"), containers.folder.join(NAMES).join(name)).unwrap();
        };
        link("next");
        drop(locked);
        assert!(!containers.find("next").unwrap().is_settled_as("next"));
        for text in ["shop", &id, &id[..20]] {
            let found = containers.find(text).unwrap();
            assert!(found.is_settled_as(text) && found.config.id.as_str() == id, "{text}");
        }
        containers.sweep_names().unwrap();
        assert!(containers.find("next").unwrap_err().is_not_found());
        assert_eq!(containers.find("shop").unwrap().config.id.as_str(), id);
    }

    #[test]
    fn what_cannot_be_deleted_is_dead_and_what_is_being_deleted_is_not() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        let locked = create(&containers, Some("web")).unwrap();
        let removing = containers.folder.join(format!("{REMOVING}{}", locked.config.id));
        fs::rename(locked.folder(), &removing).unwrap();
        let states = || containers.list().unwrap().into_iter().map(|found| found.state).collect::<Vec<_>>();
        assert_eq!(states(), [State::Removing]);
        drop(locked);
        assert_eq!(states(), [State::Dead]);
        containers.sweep().unwrap();
        assert_eq!(states(), []);
    }

    #[test]
    fn a_record_of_a_later_version_is_named() {
        let root = tempfile::tempdir().unwrap();
        let containers = Containers::new(root.path());
        let locked = create(&containers, Some("web")).unwrap();
        let later = Config { version: 2, ..locked.config.clone() };
        write_json(&locked.folder.join(CONFIG), &later, Durability::Relaxed).unwrap();
        let error = containers.find("web").unwrap_err().to_string();
        assert!(error.ends_with("has version 2, this strata knows 1"), "{error}");
    }
}
