//! The filesystem process itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use strata_unionfs::Target;

use super::{Reply, Request, channel};

/// Why a filesystem process ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It was not started by strata.
    #[error("the verb \"fs\" is only for strata itself: standard input is no socket of a strata command")]
    NotStarted(#[source] io::Error),
    /// The command that started it is gone.
    #[error("the command that asked for the mount is gone")]
    Orphaned(#[source] io::Error),
    /// The mount failed; the command was told.
    #[error("mount: {0}")]
    Mount(String),
    /// Serving failed.
    #[error("serve the mount")]
    Serve(#[from] strata_unionfs::ServeError),
}

/// Runs a filesystem process: takes the request from standard input, mounts, answers, serves until unmounted.
pub fn serve() -> Result<(), ServeError> {
    // Fails only for a process that leads its group already, which then has no terminal to lose.
    let _ = rustix::process::setsid();
    let stdin = rustix::stdio::stdin();
    let control = rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(|error| ServeError::NotStarted(error.into()))?;
    let (request, held) = channel::receive::<Request>(control.as_fd()).map_err(ServeError::NotStarted)?;
    close_stdin().map_err(ServeError::NotStarted)?;

    let target = match &request.directory {
        Some(directory) => Target::Directory(directory.clone()),
        None => Target::Detached,
    };
    let mounted = match strata_unionfs::mount(&request.spec, &target) {
        Ok(mounted) => mounted,
        Err(error) => {
            let error = crate::error_chain(&error);
            channel::send(control.as_fd(), &Reply::Failed { error: error.clone() }, &[])
                .map_err(ServeError::Orphaned)?;
            return Err(ServeError::Mount(error));
        }
    };
    let report = serde_json::to_value(mounted.report()).unwrap_or_default();
    let descriptors: Vec<_> = mounted.mount_fd().into_iter().collect();
    if let Err(error) = channel::send(control.as_fd(), &Reply::Mounted { report }, &descriptors) {
        // Nobody knows of the mount: it must not stay.
        if let Some(directory) = &request.directory {
            drop(mounted);
            // A mount that is gone with its server needs no unmounting; one that is not, this takes away.
            let _ = strata_unionfs::unmount(directory);
        }
        return Err(ServeError::Orphaned(error));
    }
    drop(control);
    let result = mounted.serve();
    drop(held);
    Ok(result?)
}

/// Puts `/dev/null` in the place of standard input, so that the socket is not kept open.
fn close_stdin() -> io::Result<()> {
    let null: OwnedFd = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::stdio::dup2_stdin(null)?)
}
