//! The filesystem process itself: the keeper of a mount, which forks the worker that serves it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use strata_unionfs::{Faults, IdMap, IdRange, MountSpec, Mounted, Options, Pinned, Target};

use super::{Reply, Request};
use crate::channel;

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
    // Executed through /proc/self/exe, it would be called `exe` in `ps` and `top`. Nothing depends on the name.
    let _ = rustix::thread::set_name(c"strata-fs");
    crate::fetcher::provide_layers();
    let stdin = rustix::stdio::stdin();
    let control = rustix::io::fcntl_dupfd_cloexec(stdin, 3).map_err(|error| ServeError::NotStarted(error.into()))?;
    let (request, held) = match channel::receive::<Request>(control.as_fd()) {
        // There turned out to be nothing to mount.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        received => received.map_err(ServeError::NotStarted)?,
    };
    close_stdin().map_err(ServeError::NotStarted)?;

    let mounted = match mount(&request, control.as_fd()) {
        Ok(mounted) => mounted,
        Err(error) => {
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

fn mount(request: &Request, control: BorrowedFd<'_>) -> Result<Mounted, String> {
    let text = |error: &dyn std::error::Error| crate::error_chain(error);
    match &request.directory {
        Some(_) if request.inside => {
            strata_sandbox::userns::enter_rootless().map_err(|error| text(&error))?;
            let options = &request.spec.options;
            // What is on the disk is seen with the ids of the namespace, what is shown are those outside.
            let options = Options {
                uid_map: own_map("uid_map", options.uid_map.as_ref()),
                gid_map: own_map("gid_map", options.gid_map.as_ref()),
                ..options.clone()
            };
            let spec = MountSpec { options, ..request.spec.clone() };
            // What the helper mounts may come to lie over a layer.
            let layers = Pinned::new(&spec);
            channel::send(control, &Reply::Inside, &[]).map_err(|error| text(&error))?;
            let (_, devices) = channel::receive::<Reply>(control).map_err(|error| text(&error))?;
            let device = devices.into_iter().next().ok_or("no connection came with the answer")?;
            strata_unionfs::adopt_kept(layers, device).map_err(|error| text(&error))
        }
        Some(directory) => {
            let target = Target::Directory(directory.clone());
            strata_unionfs::mount_kept(&request.spec, &target, Faults::default()).map_err(|error| text(&error))
        }
        None => {
            let target = Target::Detached;
            strata_unionfs::mount_kept(&request.spec, &target, Faults::default()).map_err(|error| text(&error))
        }
    }
}

/// Reads how the ids of this namespace are seen outside, where `asked` is applied to them.
fn own_map(file: &str, asked: Option<&IdMap>) -> Option<IdMap> {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).ok()?;
    let ranges = text.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        Some(IdRange { container: numbers.next()??, host: numbers.next()??, count: numbers.next()?? })
    });
    let own = IdMap(ranges.collect());
    Some(asked.map_or_else(|| own.clone(), |asked| own.then(asked)))
}

/// Puts `/dev/null` in the place of standard input, so that the socket is not kept open.
fn close_stdin() -> io::Result<()> {
    let null: OwnedFd = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::stdio::dup2_stdin(null)?)
}
