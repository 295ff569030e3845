//! Putting a container's root and its sandbox together: what a monitor does to start one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use strata_layer::index::{Index, NodeId};
use strata_sandbox::audit::Audit;
use strata_sandbox::capabilities::{CHOWN, has_effective};
use strata_sandbox::cgroup::Shortage;
use strata_sandbox::{Launch, Listener, Orphan, Root, Running, SpawnError, Stdio, WindowSize};
use strata_unionfs::{Limits, Lower, MountSpec, Options, Upper};

use crate::container::{Container, Containers, OwnIds, RecordError, Use};
use crate::filesystem::{FilesystemError, FilesystemProcess, SpareProcess};
use crate::monitor::Refusal;
use crate::namespaces::{ForStart, JoinError};
use crate::{network_files, own_accounts, spec};

/// What a container's root stands on, kept in the store.
#[derive(Debug)]
pub(crate) struct Layers {
    /// The layers, as the union takes them.
    pub(crate) lower: Lower,
    /// Their merged index.
    pub(crate) index: PathBuf,
    /// Keeps the garbage collector away.
    pub(crate) hold: OwnedFd,
}

/// A container that did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Its record cannot be read.
    #[error("read the record of the container")]
    Record(#[from] RecordError),
    /// The root filesystem cannot be mounted.
    #[error("mount the container's root")]
    Filesystem(#[from] FilesystemError),
    /// The files that say where the container is in the network.
    #[error("write the container's own files in /etc")]
    OwnFiles(#[source] io::Error),
    /// Another container whose namespace it is to be in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The configuration cannot be translated.
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    /// The pipes of the standard streams.
    #[error("make the pipes of the standard streams")]
    Pipes(#[source] io::Error),
    /// The socket for commands.
    #[error("make the socket of the container's monitor")]
    Socket(#[source] io::Error),
    /// The log of what it writes.
    #[error("open the log of the container")]
    Log(#[source] io::Error),
    /// The sandbox could not be set up, or the program not be executed.
    #[error("cannot start container {id}")]
    Spawn {
        /// The container's short identifier.
        id: String,
        /// Why.
        source: SpawnError,
    },
}

impl StartError {
    /// As the command that asked for the start hears of it.
    pub(crate) fn refusal(&self) -> Refusal {
        let code = match self {
            StartError::Spawn { source, .. } => source.exit_code(),
            _ => 125,
        };
        let hint = match self {
            StartError::Spawn { source: SpawnError::BindSource { path, source }, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                let path = path.display();
                Some(format!("create it, or use '-v {path}:TARGET', which creates a directory"))
            }
            StartError::Filesystem(FilesystemError::Mount(reason)) => crate::filesystem::hint(reason),
            _ => None,
        };
        Refusal { text: crate::error_chain(self), code, hint }
    }
}

/// A container that has started.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its first process.
    pub(crate) running: Running,
    /// Our ends of its streams; without, it has a terminal.
    pub(crate) pipes: Option<strata_sandbox::Pipes>,
    /// What serves its root.
    pub(crate) filesystem: FilesystemProcess,
    /// What observes it.
    pub(crate) audit: Option<Audit>,
}

/// Mounts the root of a container and starts its first process in it. `spare` is to serve the root, if there is one.
pub(crate) fn start(
    containers: &Containers,
    container: &Container,
    layers: &Layers,
    spare: Option<SpareProcess>,
    size: Option<(u16, u16)>,
) -> Result<Started, StartError> {
    let mut filesystem = mount_root(container, layers, spare)?;
    let root = filesystem.take_mount().ok_or_else(|| {
        StartError::Filesystem(FilesystemError::Mount("no descriptor of the mount came back".to_owned()))
    })?;
    match spawn(containers, container, layers, root, size) {
        Ok((running, pipes, audit)) => Ok(Started { running, pipes, filesystem, audit }),
        Err(error) => {
            filesystem.kill();
            Err(error)
        }
    }
}

/// Mounts a container's root where nothing on the host can see it, served by `spare` if there is one.
pub(crate) fn mount_root(
    container: &Container,
    layers: &Layers,
    spare: Option<SpareProcess>,
) -> Result<FilesystemProcess, StartError> {
    let in_use = container.use_files(Use::Alone, Duration::from_secs(2))?;
    let in_use = in_use.ok_or_else(|| {
        let busy = "its writable layer is in use by another mount".to_owned();
        StartError::Filesystem(FilesystemError::Mount(busy))
    })?;
    let server = spare.map_or_else(SpareProcess::spawn, Ok)?;
    Ok(mount_files(container, layers, in_use, false, server)?)
}

/// Has `server` mount a container's root, whose files are in use for as long as it runs.
pub(crate) fn mount_files(
    container: &Container,
    layers: &Layers,
    in_use: OwnedFd,
    read_only: bool,
    server: SpareProcess,
) -> Result<FilesystemProcess, FilesystemError> {
    let (uid_map, gid_map) = container.config.own_ids.as_ref().map(OwnIds::of_filesystem).unwrap_or_default();
    let spec = MountSpec {
        lower: layers.lower.clone(),
        upper: Some(Upper { dir: container.upper(), work: container.work() }),
        options: Options {
            allow_other: true,
            read_only,
            source: format!("strata:{}", container.config.id.short()),
            // What is thrown away at the end need not survive a power cut.
            volatile: container.config.auto_remove,
            uid_map,
            gid_map,
            limits: Limits { bytes: container.config.storage_size, inodes: None },
            ..Options::default()
        },
    };
    let held = [in_use.as_fd(), layers.hold.as_fd()];
    server.mount(&spec, None, &held)
}

fn spawn(
    containers: &Containers,
    container: &Container,
    layers: &Layers,
    root: OwnedFd,
    size: Option<(u16, u16)>,
) -> Result<(Running, Option<strata_sandbox::Pipes>, Option<Audit>), StartError> {
    let config = &container.config;
    let failed = |source| StartError::Spawn { id: config.id.short().to_owned(), source };
    let own_files = open_index(&layers.index).and_then(|index| {
        let accounts = own_accounts::prepare(container, &index, root.as_fd())?;
        Ok([network_files::prepare(container, &index)?, accounts].concat())
    });
    let namespaces = ForStart::find(containers, config)?;
    let spec = spec::build(config, &own_files.map_err(StartError::OwnFiles)?, namespaces.in_spec(config))?;
    let (stdio, pipes) = streams(config.tty, size, config.own_ids.as_ref()).map_err(StartError::Pipes)?;
    let mut launch = Launch::new(&spec, Root::Mount(root));
    // Nobody in particular is the superuser, whose groups and home the image may still know.
    launch.user = Some(if config.user.is_empty() { "0" } else { &config.user });
    launch.groups = &config.groups;
    launch.stdio = stdio;
    launch.cgroup = Some(containers.cgroup_name(config).map_err(|error| failed(error.into()))?);
    let unit = containers.unit(config).map_err(|error| failed(error.into()))?;
    launch.unit = unit.as_ref();
    // That of the last start has gone by itself, or is about to.
    containers.stop_unit(config);
    launch.seccomp = spec::seccomp(config)?;
    // As Docker: a limit that this host or this user cannot have is told, and the container runs.
    launch.shortage = Shortage::Told;
    launch.landlock = spec::landlock(config, false)?;
    launch.orphan = Orphan::IsKilled;
    let audit = spec::audit(config)?;
    let observe = listen(audit.as_ref());
    if audit.is_some() {
        launch.listener = Listener::Caller(&observe);
    }
    let running = strata_sandbox::spawn(launch).map_err(failed)?;
    drop(observe);
    Ok((running, pipes, audit))
}

/// Hands the listener of a filter to the audit. Only the filter of an audit has one.
pub(crate) fn listen(audit: Option<&Audit>) -> impl Fn(OwnedFd, u32) {
    move |listener, _| {
        if let Some(Err(error)) = audit.map(|audit| audit.watch(listener)) {
            tracing::error!(%error, "no thread for the audit: what it is asked about fails");
        }
    }
}

/// A terminal, or pipes, for a process of a container with these ids.
pub(crate) fn streams(
    tty: bool,
    size: Option<(u16, u16)>,
    ids: Option<&OwnIds>,
) -> io::Result<(Stdio, Option<strata_sandbox::Pipes>)> {
    if tty {
        return Ok((Stdio::Terminal { size: size.map(|(rows, columns)| WindowSize { rows, columns }) }, None));
    }
    let (stdio, pipes) = Stdio::pipes()?;
    if let (Stdio::Fds { stdin, stdout, stderr }, Some((uid, gid))) = (&stdio, ids.and_then(OwnIds::root)) {
        // Else they would be nobody's in there, and could neither be opened again (/dev/stdout) nor given to its user.
        for stream in [stdin, stdout, stderr] {
            std::os::unix::fs::fchown(stream, Some(uid), Some(gid))?;
        }
    }
    Ok((stdio, Some(pipes)))
}

/// Opens the merged index of a stack of layers.
pub(crate) fn open_index(index: &Path) -> io::Result<Index> {
    Index::open(&std::fs::File::open(index)?).map_err(io::Error::other)
}

/// Gives the upper's top folder what the image says of its root: that is what the container's root will show.
pub(crate) fn prepare_upper(container: &Container, index: &Index) -> io::Result<()> {
    let upper = container.upper();
    let Some(root) = index.attributes(NodeId::ROOT) else { return Ok(()) };
    match std::os::unix::fs::chown(&upper, Some(root.uid), Some(root.gid)) {
        // A plain user outside of his user namespace, for a mount of his own: then the root is his.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !has_effective(CHOWN) => {}
        result => result?,
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(u32::from(root.permissions));
    std::fs::set_permissions(&upper, mode)
}

/// Puts the empty file into a prepared upper by which programs tell that they are in a container. The root keeps the time
/// that the image says.
pub(crate) fn mark(container: &Container, index: &Index) -> io::Result<()> {
    let Some(root) = index.attributes(NodeId::ROOT) else { return Ok(()) };
    if index.lookup(NodeId::ROOT, CONTAINER_MARK.as_bytes()).is_some() {
        return Ok(());
    }
    let upper = container.upper();
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o755);
    options.open(upper.join(CONTAINER_MARK))?;
    let time = Timespec { tv_sec: root.mtime.seconds, tv_nsec: root.mtime.nanoseconds.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, &upper, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Docker's name for it.
pub(crate) const CONTAINER_MARK: &str = ".dockerenv";
