//! The OCI runtime: containers that are made by one command, started by the next and removed by a third.
//!
//! ```text
//! <root>/<id>/            0700, locked (flock) by whatever changes the container
//! ├── state.json          the record: which process, which cgroup (docs/formats/runtime-state.md)
//! ├── config.json         the spec as it was when the container was made
//! ├── start.word          the pipe at which the first process waits; gone once it is started
//! └── start.answers       the pipe through which it says how that went
//! ```
//!
//! What is written is where things are, never how they are: whether a container is created, running, paused or stopped is
//! asked of the kernel each time ([`Status`]). So there is nothing to be repaired after a command was killed. What a killed
//! `create` has left is a stopped container, which `delete` removes, and unless it was complete the next `create` of that name.

mod bundle;
mod container;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod hooks;
mod id;
mod init;
mod kill;
mod own_program;
mod pause;
mod record;
mod rootless;
mod start;
mod statistics;
mod template;
mod update;

use std::path::{Path, PathBuf};

use crate::cgroup::CgroupManager;

pub use crate::userns::is_initial as is_initial_user_namespace;
pub use crate::{ExitStatus, Inherited, Running, WindowSize};
pub use container::{Container, State, Status};
pub use create::{Create, Receiver, timestamp};
pub use delete::Delete;
pub use error::RuntimeError;
pub use events::Event;
pub use exec::{Added, Addition, Differences};
pub use features::{MAX_VERSION, features};
pub use id::ContainerId;
pub use kill::parse_signal;
pub use own_program::{protect_own_program, protected_program};
pub use rootless::enter;
pub use statistics::Statistics;
pub use template::{Audience, template};
pub use update::{LIMITS, Limit, resources};

/// All containers below one folder.
#[derive(Clone, Debug)]
pub struct Runtime {
    root: PathBuf,
    cgroup_manager: CgroupManager,
    ids_outside: bool,
}

impl Runtime {
    /// The containers below `root`, which is made when it is needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, cgroup_manager: CgroupManager::default(), ids_outside: false }
    }

    /// The same, with another manager of cgroups for containers that it makes. Those that are there keep theirs.
    #[must_use]
    pub fn with_cgroup_manager(self, cgroup_manager: CgroupManager) -> Self {
        Self { cgroup_manager, ..self }
    }

    /// The same, for specs whose ids are those outside of the namespace that [`enter`] has made.
    #[must_use]
    pub fn with_ids_outside(self, ids_outside: bool) -> Self {
        Self { ids_outside, ..self }
    }

    /// Returns the folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finds a container.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`]; [`RuntimeError::Record`] when what is written about it cannot be read.
    pub fn container(&self, id: &ContainerId) -> Result<Container, RuntimeError> {
        Container::open(&self.root, id)
    }

    /// Removes the folder that a killed `delete` or `create` has left without a record: there is no container in it any more,
    /// or not yet.
    ///
    /// # Errors
    /// [`RuntimeError::Folder`].
    pub fn sweep(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        delete::sweep(&self.root.join(id.as_str()))
    }

    /// Finds all containers, sorted by name. What disappears meanwhile is left out.
    ///
    /// # Errors
    /// [`RuntimeError::Folder`] when the root cannot be read; that it does not exist is no error.
    pub fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let failed = |source| RuntimeError::Folder { path: self.root.clone(), source };
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<ContainerId>().ok()));
        }
        ids.sort();
        Ok(ids.iter().filter_map(|id| self.container(id).ok()).collect())
    }
}
