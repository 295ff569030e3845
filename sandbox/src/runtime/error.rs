//! Why an operation of the runtime failed.

use std::io;
use std::path::PathBuf;

use super::Status;
use crate::cgroup::CgroupError;
use crate::{HookError, SpawnError, StartError};

/// Why an operation of the runtime failed.
///
/// Clients read the texts: containerd's shim and conmon tell by `does not exist` and `container not running` what is no
/// fault, as runc words it.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A name that no container can have.
    #[error("invalid container ID format: {0:?}")]
    InvalidId(String),
    /// There is no such container.
    #[error("container does not exist")]
    NotFound,
    /// The name is taken.
    #[error("container with given ID already exists")]
    Exists,
    /// The operation needs another state.
    #[error("{0}")]
    WrongStatus(String),
    /// The container has no process any more.
    #[error("container not running")]
    NotRunning,
    /// A container is removed that has not ended.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped {
        /// The container.
        id: String,
        /// Its status.
        status: Status,
    },
    /// The process does not end though it was killed.
    #[error("container init still running")]
    StillRunning,
    /// The bundle's `config.json` cannot be read.
    #[error("JSON specification file {} cannot be read", path.display())]
    ReadSpec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no JSON of the spec's form.
    #[error("JSON specification file {} is not valid", path.display())]
    ParseSpec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It says something that cannot be.
    #[error("invalid container configuration: {0}")]
    InvalidSpec(String),
    /// An argument that cannot be.
    #[error("{0}")]
    InvalidArgument(String),
    /// The root folder, or that of a container, does not work.
    #[error("state folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is written about a container cannot be read.
    #[error("state of the container in {}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A process could not be made.
    #[error("unable to start container process: {}", crate::runtime::error::chain(.0))]
    Spawn(SpawnError),
    /// A created container could not be started.
    #[error("unable to start container process: {}", crate::runtime::error::chain(.0))]
    Start(StartError),
    /// A hook outside of the container.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Something with the cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A plain user cannot be root of a namespace, or not of the container's.
    #[error(transparent)]
    UserNamespace(#[from] crate::userns::UserNamespaceError),
    /// Something else.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl RuntimeError {
    /// Tells whether there is no such container.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound)
    }

    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Errors that only pass another on have its text.
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
