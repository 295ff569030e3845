//! The files of one container, running or not.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use strata_imagestore::Stack;
use strata_sandbox::capabilities::{SYS_ADMIN, has_effective};
use strata_sandbox::userns::{self, UserNamespaceError};
use strata_sandbox::view::{self, Volume};

use super::{ArchiveError, Owner, Tree, Unpacked};
use crate::container::{Container, Containers, Mount, State, Use};
use crate::engine::{Engine, lower_of};
use crate::filesystem::FilesystemProcess;
use crate::launch::{self, Layers};
use crate::process::Process;

/// Makes a plain user root of a namespace in which he can reach the files of the container `name`: that of its monitor, if it
/// runs, since nobody else sees its mounts, else one of his own. Without effect where mounting is allowed already.
///
/// # Preconditions
/// The process has one thread.
///
/// # Errors
/// [`UserNamespaceError`].
pub fn enter_rootless_of(root: &Path, name: &str) -> Result<(), UserNamespaceError> {
    if !has_effective(SYS_ADMIN)
        && let Ok(container) = Containers::new(root).find(name)
        && let Some(monitor) = container.state.owner().and_then(Process::open)
    {
        return userns::join_rootless(monitor.as_fd());
    }
    userns::enter_rootless().map(drop)
}

/// What the files of a container are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesUse {
    /// They are only looked at.
    Read,
    /// They may be changed.
    Write,
}

/// The files of a container as its processes see them, volumes included, without what belongs to the kernel.
///
/// Those of a container that does not run are mounted for as long as this lives; nobody can start it meanwhile.
#[derive(Debug)]
pub struct ContainerFiles {
    container: Container,
    // In this order: the mount goes before the process that serves it is waited for.
    tree: Option<Tree>,
    server: Option<FilesystemProcess>,
    _stack: Option<Stack>,
}

impl Engine {
    /// Opens the files of a container.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn container_files(&self, name: &str, usage: FilesUse) -> Result<ContainerFiles, ArchiveError> {
        let container = self.container(name)?;
        let opened = match &container.state {
            State::Running { init, .. } | State::Paused { init, .. } => {
                let Some(init) = init.open() else { return Err(ArchiveError::Busy(container.config.name)) };
                let root = view::of_running(init.as_fd())?;
                (root, None, None)
            }
            State::Starting { .. } | State::Restarting { .. } => {
                return Err(ArchiveError::Busy(container.config.name));
            }
            _ => {
                let stack = self.stack_of(&container)?;
                let volumes: Vec<Volume> = container.config.mounts.iter().filter_map(volume).collect();
                // One that was never started may still lack the places for its volumes.
                let usage = if volumes.is_empty() { usage } else { FilesUse::Write };
                let (server, root) = mount(&container, &stack, usage)?;
                let root = view::of_stopped(root, container.config.read_only, &volumes)?;
                (root, Some(server), Some(stack))
            }
        };
        let (root, server, stack) = opened;
        let tree = Tree::container(root, name, container.config.own_ids.as_ref());
        Ok(ContainerFiles { tree: Some(tree), container, server, _stack: stack })
    }
}

impl ContainerFiles {
    /// The tree.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        self.tree.as_ref().expect("taken only by the destructor")
    }

    /// Writes what is at `path` as a tar, as `GET /containers/{id}/archive` does.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn read(&self, path: &[u8], out: &mut dyn Write) -> Result<(), ArchiveError> {
        let source = self.tree().source(path, false)?;
        self.tree().pack(&source.found, &source.name, out)
    }

    /// Makes the files of a tar in the directory `path`, as `PUT /containers/{id}/archive` does. With `give`, they belong to
    /// the user that the container runs as, else to whom the archive says.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn write(&self, path: &[u8], input: &mut dyn Read, give: bool) -> Result<Unpacked, ArchiveError> {
        let user = &self.container.config.user;
        let owner = match give && !user.is_empty() {
            true => {
                let user = strata_sandbox::user::look_up(self.tree().root(), user, &[])?;
                Owner::Given(user.uid, user.gid)
            }
            false => Owner::Kept,
        };
        self.tree().unpack(path, input, owner)
    }
}

impl Drop for ContainerFiles {
    fn drop(&mut self) {
        drop(self.tree.take());
        if let Some(server) = self.server.take()
            && !server.wait(PATIENCE)
        {
            // What was written is in the files of the layer already.
            tracing::warn!(name = %self.container.config.name, "the filesystem process still runs");
        }
    }
}

fn mount(container: &Container, stack: &Stack, usage: FilesUse) -> Result<(FilesystemProcess, OwnedFd), ArchiveError> {
    let usage = match usage {
        FilesUse::Read => Use::Shared,
        FilesUse::Write => Use::Alone,
    };
    let layers = Layers {
        lower: lower_of(stack),
        index: stack.index.clone(),
        hold: rustix::io::fcntl_dupfd_cloexec(stack.hold.as_file(), 3)
            .map_err(|errno| ArchiveError::Input(errno.into()))?,
    };
    let in_use = container.use_files(usage, PATIENCE_FOR_LOCK)?;
    let in_use = in_use.ok_or_else(|| ArchiveError::InUse(container.config.name.clone()))?;
    let server = crate::filesystem::SpareProcess::spawn()?;
    let mut server = launch::mount_files(container, &layers, in_use, usage == Use::Shared, server)?;
    let root = server
        .take_mount()
        .ok_or_else(|| crate::filesystem::FilesystemError::Mount("no descriptor of the mount came back".to_owned()))?;
    Ok((server, root))
}

fn volume(mount: &Mount) -> Option<Volume> {
    match mount {
        Mount::Bind(bind) => {
            Some(Volume { source: bind.source.clone(), target: bind.target.clone().into(), read_only: bind.read_only })
        }
        // What it holds went with the process.
        Mount::Tmpfs(_) => None,
    }
}

/// How long the end of a mount waits for its server to write everything down.
const PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE_FOR_LOCK: Duration = Duration::from_secs(2);
