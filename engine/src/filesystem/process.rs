//! Starting a filesystem process and hearing from it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use strata_sandbox::capabilities::{SYS_ADMIN, has_effective};
use strata_unionfs::{Lower, MountSpec};

use super::{Reply, Request, VERB};
use crate::channel;
use crate::fetcher::{self, ENVIRONMENT};
use crate::process::wait_for_end;

/// A running filesystem process.
#[derive(Debug)]
pub struct FilesystemProcess {
    child: Child,
    pidfd: OwnedFd,
    report: serde_json::Value,
    mount: Option<OwnedFd>,
}

/// A filesystem process that has nothing to mount yet. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct SpareProcess {
    /// Taken once it has mounted something.
    child: Option<Child>,
    socket: UnixStream,
}

/// A filesystem that could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    /// The process could not be started.
    #[error("start the filesystem process")]
    Start(#[source] io::Error),
    /// It could not be told what to do.
    #[error("talk to the filesystem process")]
    Talk(#[source] io::Error),
    /// It ended without a word.
    #[error("the filesystem process ended before it mounted ({0})")]
    Died(std::process::ExitStatus),
    /// It says why not.
    #[error("{0}")]
    Mount(String),
}

/// Starts a filesystem process for a mount that this process is about to make, which then finds it there. One that is not
/// needed ends with this process. What the mount is to see, such as namespaces and environment, must not change any more.
pub fn expect_mount() {
    // Whoever mounts learns the reason when he starts one himself.
    if let Ok(spare) = SpareProcess::start() {
        *EXPECTED.lock().unwrap_or_else(PoisonError::into_inner) = Some(spare);
    }
}

/// Ends what [`expect_mount`] has started: no mount is to come.
pub fn expect_no_mount() {
    EXPECTED.lock().unwrap_or_else(PoisonError::into_inner).take();
}

static EXPECTED: Mutex<Option<SpareProcess>> = Mutex::new(None);

impl SpareProcess {
    /// Starts one, or takes the one that was started when a mount was expected. The earlier, the better: it gets ready
    /// while the caller does other things.
    pub(crate) fn spawn() -> Result<SpareProcess, FilesystemError> {
        let expected = EXPECTED.lock().unwrap_or_else(PoisonError::into_inner).take();
        expected.map_or_else(SpareProcess::start, Ok)
    }

    /// Returns whether it has not ended: it may have been killed while it waited.
    fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn start() -> Result<SpareProcess, FilesystemError> {
        let (ours, theirs) = UnixStream::pair().map_err(FilesystemError::Start)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("strata").arg(VERB).current_dir("/").env_clear();
        // The only thing looked up by name there is fusermount3.
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        // It may have to start the process that fetches layers.
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(FilesystemError::Start)?;
        // The command holds the other end of the socket as long as it lives, and an end of the stream is a message.
        drop(command);
        Ok(SpareProcess { child: Some(child), socket: ours })
    }

    /// Has it mount `spec` on `directory`, or detached. Returns when that can be used.
    ///
    /// `held` are locks and the like that must last as long as the mount.
    pub(crate) fn mount(
        mut self,
        spec: &MountSpec,
        directory: Option<&Path>,
        held: &[BorrowedFd<'_>],
    ) -> Result<FilesystemProcess, FilesystemError> {
        if !self.is_alive() {
            // Any other will do.
            self = SpareProcess::start()?;
        }
        // A plain user's writable layer belongs to his namespace, and his mounts are made by a helper outside of it.
        let inside = directory.is_some() && spec.upper.is_some() && !has_effective(SYS_ADMIN);
        let request = Request { spec: spec.clone(), directory: directory.map(PathBuf::from), inside };
        if let Some(store) = absent_in(spec) {
            // What is not asked for is fetched as well.
            fetcher::start(store).map_err(FilesystemError::Start)?;
        }
        let mut helped = false;
        let mounted = self.become_one(&request, held, &mut helped);
        if let (Err(_), true, Some(directory)) = (&mounted, helped, directory) {
            // Inside, it cannot take away what the helper mounted.
            let _ = strata_unionfs::unmount(directory);
        }
        mounted
    }

    fn become_one(
        mut self,
        request: &Request,
        held: &[BorrowedFd<'_>],
        helped: &mut bool,
    ) -> Result<FilesystemProcess, FilesystemError> {
        let Some(mut child) = self.child.take() else {
            return Err(FilesystemError::Talk(io::ErrorKind::NotFound.into()));
        };
        match converse(&self.socket, request, held, &child, helped) {
            Ok((report, mount, pidfd)) => Ok(FilesystemProcess { child, pidfd, report, mount }),
            Err(FilesystemError::Talk(error)) if is_end(&error) => {
                Err(FilesystemError::Died(child.wait().map_err(FilesystemError::Talk)?))
            }
            Err(error) => {
                self.child = Some(child);
                Err(error)
            }
        }
    }
}

impl Drop for SpareProcess {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It ends by itself once it finds nobody to answer to; it is only reaped here.
            let _ = self.socket.shutdown(Shutdown::Both);
            let _ = child.wait();
        }
    }
}

impl FilesystemProcess {
    /// Mounts `spec` on `directory`, or detached. Returns when it can be used.
    ///
    /// `held` are locks and the like that must last as long as the mount.
    pub fn start(
        spec: &MountSpec,
        directory: Option<&Path>,
        held: &[BorrowedFd<'_>],
    ) -> Result<FilesystemProcess, FilesystemError> {
        SpareProcess::spawn()?.mount(spec, directory, held)
    }

    /// What the mount turned out to be.
    pub fn report(&self) -> &serde_json::Value {
        &self.report
    }

    /// The process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Becomes readable when the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Hands out the descriptor of a detached mount.
    pub fn take_mount(&mut self) -> Option<OwnedFd> {
        self.mount.take()
    }

    /// Waits until the process has ended, which it does when its mount is gone; tells whether it has.
    pub fn wait(mut self, limit: Duration) -> bool {
        drop(self.mount.take());
        let ended = wait_for_end(self.pidfd.as_fd(), limit);
        if ended {
            // Ended: this only reaps it.
            let _ = self.child.wait();
        }
        ended
    }

    /// Waits until the process has ended, however long that takes.
    pub fn wait_forever(mut self) {
        drop(self.mount.take());
        // Fails only for a process that somebody else has reaped.
        let _ = self.child.wait();
    }

    /// Ends the process at once: for a mount whose content is thrown away.
    pub fn kill(mut self) {
        drop(self.mount.take());
        // Both can only fail for a process that has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Conversation = (serde_json::Value, Option<OwnedFd>, OwnedFd);

fn converse(
    socket: &UnixStream,
    request: &Request,
    held: &[BorrowedFd<'_>],
    child: &Child,
    helped: &mut bool,
) -> Result<Conversation, FilesystemError> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child has a process number");
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|error| FilesystemError::Start(error.into()))?;
    channel::send(socket.as_fd(), request, held).map_err(FilesystemError::Talk)?;
    if let (true, Some(directory)) = (request.inside, &request.directory) {
        match channel::receive::<Reply>(socket.as_fd()).map_err(FilesystemError::Talk)? {
            (Reply::Failed { error }, _) => return Err(FilesystemError::Mount(error)),
            (Reply::Inside | Reply::Mounted { .. }, _) => {}
        }
        let device = strata_unionfs::mount_by_helper(directory, &request.spec.options)
            .map_err(|error| FilesystemError::Mount(crate::error_chain(&error)))?;
        *helped = true;
        channel::send(socket.as_fd(), &Reply::Inside, &[device.as_fd()]).map_err(FilesystemError::Talk)?;
    }
    let (reply, descriptors) = channel::receive::<Reply>(socket.as_fd()).map_err(FilesystemError::Talk)?;
    match reply {
        Reply::Mounted { report } => Ok((report, descriptors.into_iter().next(), pidfd)),
        Reply::Failed { error } => Err(FilesystemError::Mount(error)),
        Reply::Inside => Err(FilesystemError::Talk(io::ErrorKind::InvalidData.into())),
    }
}

/// The store of a layer that may not be whole.
fn absent_in(spec: &MountSpec) -> Option<&Path> {
    let Lower::Image { layers, .. } = &spec.lower else { return None };
    layers.iter().find_map(|layer| Some(layer.absent.as_ref()?.store.as_path()))
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
