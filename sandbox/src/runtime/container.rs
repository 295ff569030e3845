//! One container: its folder, its record, and how it is at the moment.

use std::cell::OnceCell;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, stat};
use serde::Serialize;

use super::bundle;
use super::init::Init;
use super::record::{RECORD, Record};
use super::{ContainerId, RuntimeError};
use crate::cgroup::{Cgroup, CgroupName};
use crate::{AtGate, HookState, Identity, Running, probe_gate};

/// How a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A `create` is at work on it.
    Creating,
    /// Its first process waits to be started.
    Created,
    /// Its program runs.
    Running,
    /// Its processes stand still.
    Paused,
    /// Its first process has ended, or was never complete.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The state of a container as runc prints it: that of the spec, and some more.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The version of the specification that the bundle follows.
    pub oci_version: String,
    /// The container.
    pub id: String,
    /// Its first process; 0 when it has ended.
    pub pid: u32,
    /// How it is.
    pub status: Status,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The root filesystem.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The annotations of the bundle.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The name of who made it, or the number.
    pub owner: String,
}

/// A container that is there.
#[derive(Debug)]
pub struct Container {
    pub(super) id: ContainerId,
    /// Its folder.
    pub(super) path: PathBuf,
    pub(super) folder: OwnedFd,
    pub(super) record: Record,
    /// Read when it is first asked for.
    pub(super) spec: OnceCell<Spec>,
    /// Looked for when it is first asked for: that reads the mount table.
    pub(super) cgroup: OnceCell<Option<Cgroup>>,
}

impl Container {
    pub(super) fn open(root: &Path, id: &ContainerId) -> Result<Self, RuntimeError> {
        let path = root.join(id.as_str());
        let folder = open_folder(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => RuntimeError::NotFound,
            _ => RuntimeError::Folder { path: path.clone(), source: error },
        })?;
        let record = read_record(folder.as_fd(), &path)?;
        Ok(Self { id: id.clone(), path, folder, record, spec: OnceCell::new(), cgroup: OnceCell::new() })
    }

    /// Waits until nobody else changes the container, keeps others from it, and reads its record again.
    pub(super) fn lock(self) -> Result<Self, RuntimeError> {
        let failed = |source| RuntimeError::Folder { path: self.path.clone(), source };
        lock_exclusively(self.folder.as_fd()).map_err(failed)?;
        if !is_linked(self.folder.as_fd(), &self.path) {
            return Err(RuntimeError::NotFound); // raced with its removal
        }
        let record = read_record(self.folder.as_fd(), &self.path)?;
        Ok(Self { record, ..self })
    }

    /// Lets others change the container again.
    pub(super) fn unlock(&self) {
        // Of a lock that is held, this cannot fail.
        let _ = flock(&self.folder, FlockOperation::Unlock);
    }

    /// Returns the container's name.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Asks the kernel how the container is.
    #[must_use]
    pub fn status(&self) -> Status {
        if !self.record.complete {
            // Abandoned, its process ends by itself as soon as it notices: as good as ended.
            return if self.is_being_changed() { Status::Creating } else { Status::Stopped };
        }
        if !self.record.init.as_ref().is_some_and(Init::is_alive) {
            return Status::Stopped;
        }
        if self.cgroup().is_ok_and(|cgroup| cgroup.is_some_and(|cgroup| cgroup.is_frozen())) {
            return Status::Paused;
        }
        match probe_gate(self.folder.as_fd()) {
            AtGate::Waiting => Status::Created,
            AtGate::Coming if self.is_being_changed() => Status::Creating,
            // `create` was killed at its very end: the process is about to notice.
            AtGate::Coming => Status::Stopped,
            AtGate::Nobody => Status::Running,
        }
    }

    /// Returns what `state` prints.
    #[must_use]
    pub fn state(&self) -> State {
        let status = self.status();
        let pid = self.record.init.as_ref().filter(|_| status != Status::Stopped).map_or(0, |init| init.pid);
        State {
            oci_version: self.record.oci_version.clone(),
            id: self.id.to_string(),
            pid,
            status,
            bundle: self.record.bundle.clone(),
            rootfs: self.record.rootfs.clone(),
            created: self.record.created.clone(),
            annotations: self.record.annotations.clone().into_iter().collect(),
            owner: owner_name(self.record.owner),
        }
    }

    /// Returns the spec as it was when the container was made.
    ///
    /// # Errors
    /// [`RuntimeError::ReadSpec`], [`RuntimeError::ParseSpec`].
    pub fn spec(&self) -> Result<&Spec, RuntimeError> {
        if let Some(spec) = self.spec.get() {
            return Ok(spec);
        }
        let spec = bundle::read_spec(&self.path.join(bundle::CONFIG))?;
        Ok(self.spec.get_or_init(|| spec))
    }

    /// Tells whether the spec asks for a terminal.
    ///
    /// # Errors
    /// As [`spec`](Self::spec).
    pub fn has_terminal(&self) -> Result<bool, RuntimeError> {
        Ok(self.spec()?.process().as_ref().is_some_and(|process| process.terminal() == Some(true)))
    }

    /// Lists the container's processes, as this process's pid namespace numbers them.
    ///
    /// # Errors
    /// [`RuntimeError::Cgroup`].
    pub fn processes(&self) -> Result<Vec<u32>, RuntimeError> {
        let found = self.cgroup()?.map(|cgroup| cgroup.all_processes()).unwrap_or_default();
        if !found.is_empty() {
            return Ok(found);
        }
        Ok(self.record.init.as_ref().filter(|init| init.is_alive()).map(|init| init.pid).into_iter().collect())
    }

    /// Returns the cgroup, if the container has one.
    pub(super) fn cgroup(&self) -> Result<Option<&Cgroup>, RuntimeError> {
        let Some(name) = &self.record.cgroup else { return Ok(None) };
        if let Some(cgroup) = self.cgroup.get() {
            return Ok(cgroup.as_ref());
        }
        let cgroup = Cgroup::open(&CgroupName::new(name)?)?;
        Ok(self.cgroup.get_or_init(|| Some(cgroup).filter(|cgroup| !cgroup.is_empty())).as_ref())
    }

    /// Returns the first process, to join it, with its cgroup.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`] when it has ended.
    pub(super) fn running(&self) -> Result<Running, RuntimeError> {
        let process = self.process()?;
        Ok(Running { cgroup: self.cgroup()?.map(Cgroup::places), ..process })
    }

    /// Returns the first process, to signal it or to wait for it; its cgroup stays when it has ended.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`] when it has ended.
    pub fn process(&self) -> Result<Running, RuntimeError> {
        let init = self.record.init.as_ref().ok_or(RuntimeError::NotRunning)?;
        let pidfd = init.open().ok_or(RuntimeError::NotRunning)?;
        Ok(Running::adopt(init.pid, pidfd, None))
    }

    /// Returns how an agent that answers for a filter is told of it.
    pub(super) fn identity(&self) -> Identity<'_> {
        Identity { id: self.id.as_str(), bundle: &self.record.bundle }
    }

    /// Returns what hooks read.
    pub(super) fn hook_state(&self) -> HookState {
        hook_state(&self.record)
    }

    fn is_being_changed(&self) -> bool {
        // Through a descriptor of its own: ours may hold the lock itself.
        let Ok(folder) = open_folder(&self.path) else { return false };
        flock(&folder, FlockOperation::NonBlockingLockShared).is_err()
    }
}

pub(super) fn hook_state(record: &Record) -> HookState {
    HookState {
        version: record.oci_version.clone(),
        id: record.id.clone(),
        bundle: record.bundle.clone(),
        annotations: record.annotations.clone(),
    }
}

/// Makes a folder for a new container and locks it. What a killed command has left under the name is given back instead.
pub(super) enum Claim {
    New(OwnedFd),
    Left(OwnedFd),
}

/// Takes the name.
pub(super) fn claim(root: &Path, id: &ContainerId) -> Result<Claim, RuntimeError> {
    let path = root.join(id.as_str());
    let failed = |source| RuntimeError::Folder { path: path.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let made = match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        let folder = match open_folder(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // raced with its removal
            result => result.map_err(failed)?,
        };
        let locked = match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => false,
            Err(errno) => return Err(failed(errno.into())),
        };
        if !is_linked(folder.as_fd(), &path) {
            continue;
        }
        return match (made, locked) {
            (true, true) => Ok(Claim::New(folder)),
            (false, true) => Ok(Claim::Left(folder)),
            // Somebody looks at it, or the child of a killed command has not closed its copy of the lock yet.
            (_, false) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            // Somebody is at work on it.
            (_, false) => Err(RuntimeError::Exists),
        };
    }
}

/// How long a name may seem taken without anybody being at work on it.
const PATIENCE: Duration = Duration::from_millis(50);

pub(super) fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

fn lock_exclusively(folder: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        match flock(folder, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Tells whether the folder still has its name.
fn is_linked(folder: BorrowedFd<'_>, path: &Path) -> bool {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    matches!((fstat(folder), stat(path)), (Ok(own), Ok(named)) if identity(own) == identity(named))
}

fn read_record(folder: BorrowedFd<'_>, path: &Path) -> Result<Record, RuntimeError> {
    let path = path.join(RECORD);
    let file = match openat(folder, RECORD, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(file) => file,
        // A `create` that has just begun, or a `delete` that has just ended.
        Err(rustix::io::Errno::NOENT) => return Err(RuntimeError::NotFound),
        Err(errno) => return Err(RuntimeError::Record { path, reason: errno.to_string() }),
    };
    let mut bytes = Vec::new();
    fs::File::from(file)
        .read_to_end(&mut bytes)
        .map_err(|error| RuntimeError::Record { path: path.clone(), reason: error.to_string() })?;
    Record::parse(&bytes).map_err(|reason| RuntimeError::Record { path, reason })
}

/// As runc prints it: the name of the host's account, else nothing but the number.
fn owner_name(uid: u32) -> String {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let number = uid.to_string();
    let mut lines =
        passwd.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>());
    let name = lines.find(|fields| fields.get(2).is_some_and(|field| *field == number.as_bytes()));
    name.map_or(number, |fields| String::from_utf8_lossy(fields[0]).into_owned())
}
