//! Starting a container and following it to its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use strata_imagestore::{Image, ImageError, ImageId, Stack, StackError, StoreError, Timestamp};
use strata_layer::index::{Index, NodeId};
use strata_sandbox::capabilities::{CHOWN, has_effective};
use strata_sandbox::{Landlock, Launch, Orphan, Root, Running, SpawnError, Stdio, WindowSize};
use strata_unionfs::{MountSpec, Options, Upper};

use crate::container::{Container, ContainerId, CreateError, Event, Locked, RecordError, State, Use, UserNamespace};
use crate::creation::{Creation, InvalidCreation};
use crate::durable::Durability;
use crate::engine::{Engine, lease_name, lower_of};
use crate::filesystem::{FilesystemError, FilesystemProcess};
use crate::network_files;
use crate::process::Process;
use crate::spec;

/// A container whose process runs and whose end somebody must wait for: [`Attached::finish`].
///
/// The process does not outlive the command that started it: if that is killed, so is the process, and the next
/// command removes what is left.
#[derive(Debug)]
#[must_use = "the container's record says that it runs until it is finished"]
pub struct Attached<'a> {
    engine: &'a Engine,
    locked: Locked,
    running: Running,
    filesystem: FilesystemProcess,
    pipes: Option<Pipes>,
    warnings: Vec<String>,
    /// Keeps the layers; given up last.
    stack: Stack,
}

/// A container that did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The image is not here. The text is Docker's.
    #[error("unable to find image '{reference}' locally")]
    NoImage {
        /// The image, completed.
        reference: String,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Image(ImageError),
    /// Its layers cannot be read.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// What was asked for makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidCreation),
    /// The record cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The record cannot be changed.
    #[error("write the record of the container")]
    Record(#[from] RecordError),
    /// Something that the store does for it failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel has no random numbers.
    #[error("draw a random identifier")]
    Random(#[source] rustix::io::Errno),
    /// The root filesystem cannot be mounted.
    #[error("mount the container's root")]
    Filesystem(#[from] FilesystemError),
    /// The writable layer cannot be prepared.
    #[error("prepare the writable layer")]
    Upper(#[source] io::Error),
    /// The files that say where the container is in the network.
    #[error("write the container's /etc/hosts and its like")]
    OwnFiles(#[source] io::Error),
    /// The configuration cannot be translated.
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    /// There are no ids left for a user namespace.
    #[error(transparent)]
    Ids(#[from] strata_sandbox::userns::UserNamespaceError),
    /// The pipes of the standard streams.
    #[error("make the pipes of the standard streams")]
    Pipes(#[source] io::Error),
    /// The sandbox could not be set up, or the program not be executed.
    #[error("cannot start container {id}")]
    Spawn {
        /// The container's short identifier.
        id: String,
        /// Why.
        source: SpawnError,
    },
}

impl RunError {
    /// The exit code of the command: 126 and 127 for a program that cannot be executed, else 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Spawn { source, .. } => source.exit_code(),
            _ => 125,
        }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            RunError::NoImage { .. } => {
                Some("load it with 'strata load -i FILE'; 'strata images' lists what is here".to_owned())
            }
            RunError::Spawn { source: SpawnError::BindSource { path, source }, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                let path = path.display();
                Some(format!("create it, or use '-v {path}:TARGET', which creates a directory"))
            }
            RunError::Filesystem(FilesystemError::Mount(reason)) => crate::filesystem::hint(reason),
            _ => None,
        }
    }
}

/// A container's end that could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// The process cannot be waited for.
    #[error("wait for the container's process")]
    Wait(#[source] io::Error),
    /// The record cannot be changed.
    #[error("write the record of the container")]
    Record(#[from] RecordError),
}

impl Engine {
    /// Creates a container and starts its process. `size` is that of the user's terminal in lines and columns.
    pub fn run(&self, creation: &Creation, size: Option<(u16, u16)>) -> Result<Attached<'_>, RunError> {
        let image = self.find_image(&creation.image)?;
        let id = ContainerId::random().map_err(RunError::Random)?;
        let mut config = creation.configure(id, &image)?;
        if config.command.is_empty() {
            return Err(InvalidCreation::NoCommand.into());
        }
        let stack = self.images().stack(&image.id)?;
        let choosing = match config.user_namespace {
            UserNamespace::Auto => Some(self.registry().lock_ids().map_err(RunError::Record)?),
            UserNamespace::Host => None,
        };
        if choosing.is_some() {
            config.id_base = Some(self.free_ids()?);
        }
        let durability = if config.auto_remove { Durability::Relaxed } else { Durability::Synced };
        let state = State::Starting { owner: Process::current() };
        let created = self.registry().create(config.clone(), state.clone(), creation.name.clone(), durability);
        let locked = match created {
            Err(CreateError::NameTaken { .. }) => {
                // The holder may be what a killed command left.
                self.recover().map_err(RunError::Record)?;
                self.registry().create(config, state, creation.name.clone(), durability)?
            }
            created => created?,
        };
        drop(choosing);
        match self.keep_layers(&locked, &image.id, &stack).and_then(|()| self.start(&locked, &stack, size)) {
            Ok(started) => {
                let attached = self.attach(locked, stack, started, durability)?;
                // While the process is at work anyway.
                if let Err(error) = self.recover() {
                    tracing::warn!(error = %crate::error_chain(&error), "what killed commands left stays");
                }
                Ok(attached)
            }
            Err(error) => {
                self.give_up(locked, durability);
                Err(error)
            }
        }
    }

    /// Chooses the first host id of a user namespace that no other container has.
    fn free_ids(&self) -> Result<u32, RunError> {
        let others = self.registry().list().map_err(RunError::Record)?;
        let taken: Vec<u32> = others.iter().filter_map(|container| container.config.id_base).collect();
        let maps = strata_sandbox::userns::auto(&taken)?;
        Ok(maps.uids.first().map_or(0, |range| range.host))
    }

    /// Keeps the image's layers for a container that outlives its process, and prepares its writable layer.
    fn keep_layers(&self, container: &Container, image: &ImageId, stack: &Stack) -> Result<(), RunError> {
        prepare_upper(container, stack).map_err(RunError::Upper)?;
        if !container.config.auto_remove {
            self.images().lease(&lease_name(container), image)?;
        }
        Ok(())
    }

    fn find_image(&self, name: &str) -> Result<Image, RunError> {
        let find = || -> Result<Image, ImageError> { self.images().image(&self.images().resolve(name)?) };
        find().map_err(|error| match error {
            ImageError::NoSuchImage { name } => RunError::NoImage { reference: name },
            error => RunError::Image(error),
        })
    }

    fn start(&self, container: &Container, stack: &Stack, size: Option<(u16, u16)>) -> Result<Started, RunError> {
        let mut filesystem = self.mount_root(container, stack)?;
        let root = filesystem.take_mount().ok_or_else(|| {
            RunError::Filesystem(FilesystemError::Mount("no descriptor of the mount came back".to_owned()))
        })?;
        match self.spawn(container, stack, root, size) {
            Ok((running, pipes)) => Ok(Started { running, pipes, filesystem }),
            Err(error) => {
                filesystem.kill();
                Err(error)
            }
        }
    }

    /// Starts the filesystem process of a container's root, which nothing on the host can see.
    fn mount_root(&self, container: &Container, stack: &Stack) -> Result<FilesystemProcess, RunError> {
        let in_use = container.use_files(Use::Alone, Duration::from_secs(2))?;
        let in_use = in_use.ok_or_else(|| {
            let busy = "its writable layer is in use by another mount".to_owned();
            RunError::Filesystem(FilesystemError::Mount(busy))
        })?;
        let id_map = spec::id_map(&container.config);
        let spec = MountSpec {
            lower: lower_of(stack),
            upper: Some(Upper { dir: container.upper(), work: container.work() }),
            options: Options {
                allow_other: true,
                source: format!("strata:{}", container.config.id.short()),
                // What is thrown away at the end need not survive a power cut.
                volatile: container.config.auto_remove,
                uid_map: id_map.clone(),
                gid_map: id_map,
                ..Options::default()
            },
        };
        let held = [in_use.as_fd(), stack.hold.as_file().as_fd()];
        Ok(FilesystemProcess::start(&spec, None, &held)?)
    }

    fn spawn(
        &self,
        container: &Container,
        stack: &Stack,
        root: OwnedFd,
        size: Option<(u16, u16)>,
    ) -> Result<(Running, Option<Pipes>), RunError> {
        let config = &container.config;
        let failed = |source| RunError::Spawn { id: config.id.short().to_owned(), source };
        let own_files = open_index(stack).and_then(|index| network_files::prepare(container, &index));
        let spec = spec::build(config, &own_files.map_err(RunError::OwnFiles)?)?;
        let (stdio, pipes) = match config.tty {
            true => (Stdio::Terminal { size: size.map(|(rows, columns)| WindowSize { rows, columns }) }, None),
            false => {
                let (stdio, pipes) = Stdio::pipes().map_err(RunError::Pipes)?;
                let strata_sandbox::Pipes { stdin, stdout, stderr } = pipes;
                (stdio, Some(Pipes { stdin: Some(stdin), stdout, stderr }))
            }
        };
        let mut launch = Launch::new(&spec, Root::Mount(root));
        // Nobody in particular is the superuser, whose groups and home the image may still know.
        launch.user = Some(if config.user.is_empty() { "0" } else { &config.user });
        launch.groups = &config.groups;
        launch.stdio = stdio;
        launch.cgroup = Some(self.cgroup_name(container).map_err(|error| failed(error.into()))?);
        launch.seccomp = spec::seccomp(config)?;
        launch.landlock = Landlock::Auto;
        launch.orphan = Orphan::IsKilled;
        let running = strata_sandbox::spawn(launch).map_err(failed)?;
        Ok((running, pipes))
    }

    fn attach(
        &self,
        mut locked: Locked,
        stack: Stack,
        started: Started,
        durability: Durability,
    ) -> Result<Attached<'_>, RunError> {
        let Started { running, pipes, filesystem } = started;
        let pid = i32::try_from(running.pid()).unwrap_or(0);
        // A process that has ended meanwhile cannot be found any more: its number is still ours until it is reaped.
        let init = Process::with_pid(pid).unwrap_or(Process { pid, start: 0, boot: String::new() });
        let warnings = running.warnings().to_vec();
        let recorded = locked.apply(Event::Started { init, at: Timestamp::now() }, durability);
        let attached = Attached { engine: self, locked, running, filesystem, pipes, warnings, stack };
        if let Err(error) = recorded {
            // Nobody would know of the process: it must not go on.
            let _ = attached.running.signal(9);
            let _ = attached.running.wait();
            attached.filesystem.kill();
            self.give_up(attached.locked, durability);
            return Err(error.into());
        }
        Ok(attached)
    }

    /// Puts a container back that did not start, or removes it.
    fn give_up(&self, mut locked: Locked, durability: Durability) {
        self.remove_cgroup(&locked);
        let lease = lease_name(&locked);
        let done = match locked.config.auto_remove {
            true => locked.delete(self.registry()).map(|()| self.release(&lease)),
            false => locked.apply(Event::StartFailed, durability),
        };
        // The next command finds and finishes it; what matters to the user is why it did not start.
        if let Err(error) = done {
            tracing::warn!(error = %crate::error_chain(&error), "record of a failed start not written");
        }
    }
}

/// Our ends of the streams of a process without a terminal.
#[derive(Debug)]
struct Pipes {
    /// Until it is handed out.
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

struct Started {
    running: Running,
    pipes: Option<Pipes>,
    filesystem: FilesystemProcess,
}

impl Attached<'_> {
    /// The container.
    pub fn id(&self) -> &ContainerId {
        &self.locked.config.id
    }

    /// What was asked for and left out because this host cannot do it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Becomes readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.running.pidfd()
    }

    /// Sends a signal. A process that has ended is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.running.signal(signal)
    }

    /// Sets the size of the container's terminal, if it has one.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        self.running.resize(WindowSize { rows, columns })
    }

    /// Hands out where the process reads; with `wanted` false, its input ends at once.
    pub fn take_input(&mut self, wanted: bool) -> io::Result<Option<OwnedFd>> {
        match (&mut self.pipes, self.running.console()) {
            (Some(pipes), _) => Ok(pipes.stdin.take().filter(|_| wanted)),
            (None, Some(console)) if wanted => Ok(Some(console.try_clone_to_owned()?)),
            (None, _) => Ok(None),
        }
    }

    /// Where the process writes.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        match &self.pipes {
            Some(pipes) => Some(pipes.stdout.as_fd()),
            None => self.running.console(),
        }
    }

    /// Where it complains; with a terminal, that is the output.
    pub fn error_output(&self) -> Option<BorrowedFd<'_>> {
        self.pipes.as_ref().map(|pipes| pipes.stderr.as_fd())
    }

    /// Waits for the process, records its end, and removes the container if it was created so. Returns the exit code.
    pub fn finish(self) -> Result<u8, FinishError> {
        let Attached { engine, mut locked, running, filesystem, pipes, stack, .. } = self;
        let status = running.wait().map_err(FinishError::Wait)?;
        drop((running, pipes));
        if locked.config.auto_remove {
            filesystem.kill();
            locked.delete(engine.registry())?;
        } else {
            // The mount has gone with the container's namespace; what it still held back is written by now or never.
            if !filesystem.wait(Duration::from_secs(30)) {
                tracing::warn!(id = %locked.config.id, "the filesystem process does not end");
            }
            tidy_upper(&locked, &stack);
            locked.apply(Event::Ended { code: i32::from(status.code()), at: Timestamp::now() }, Durability::Synced)?;
        }
        Ok(status.code())
    }
}

fn open_index(stack: &Stack) -> io::Result<Index> {
    Index::open(&std::fs::File::open(&stack.index)?).map_err(io::Error::other)
}

/// Takes away the mount points that every container needs, where the image has none: they are no change of the
/// container's. Docker keeps them in a layer of their own.
pub(crate) fn tidy_upper(container: &Container, stack: &Stack) {
    let Ok(index) = open_index(stack) else { return };
    for name in ["dev", "proc", "sys"] {
        if index.lookup(NodeId::ROOT, name.as_bytes()).is_none() {
            // A folder with something in it is the container's own, and so it stays.
            let _ = std::fs::remove_dir(container.upper().join(name));
        }
    }
}

/// Gives the upper's top folder what the image says of its root: that is what the container's root will show.
pub(crate) fn prepare_upper(container: &Container, stack: &Stack) -> io::Result<()> {
    let upper = container.upper();
    let index = open_index(stack)?;
    let Some(root) = index.attributes(NodeId::ROOT) else { return Ok(()) };
    match std::os::unix::fs::chown(&upper, Some(root.uid), Some(root.gid)) {
        // A plain user outside of his user namespace, for a mount of his own: then the root is his.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !has_effective(CHOWN) => {}
        result => result?,
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(u32::from(root.permissions));
    std::fs::set_permissions(&upper, mode)
}
