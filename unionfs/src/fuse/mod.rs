//! The FUSE front end over the `fuser` crate. No `fuser` type leaves this module.
//!
//! The mount is the only writer of what it shows, so entries, attributes and negative answers are valid for ever, and
//! what matters is to be asked as seldom as possible: directory reads hand out attributes, opening a directory is
//! answered once with "not needed", symbolic links are cached, and file data bypasses us where it can.

mod adapter;
mod affinity;
mod guard;
mod nodes;
mod open;
mod reply;
mod slow;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fuser::{Config, MountOption, Notifier, Session, SessionACL};
use rustix::fs::MemfdFlags;

use crate::spec::{Options, Passthrough};
use crate::tree::Tree;
use adapter::Adapter;
use guard::Guard;
use nodes::Nodes;
use slow::Slow;

/// A mounted filesystem whose requests are about to be served.
#[derive(Debug)]
pub(crate) struct Connection {
    session: Session<Guard>,
    shared: Arc<Shared>,
    /// Why the kernel does not let us name backing files, if we asked.
    passthrough_refused: Option<io::Error>,
}

/// What all serving threads share.
#[derive(Debug)]
struct Shared {
    tree: Arc<Tree>,
    nodes: Nodes,
    /// Whether it is asked for at all.
    wants_passthrough: bool,
    /// Whether the kernel lets us. Known after the handshake.
    passthrough: AtomicBool,
    notifier: OnceLock<Notifier>,
    slow: Slow,
}

impl Connection {
    /// Shakes hands with the kernel over an open `/dev/fuse` that has been mounted already.
    pub(crate) fn from_device(
        tree: Arc<Tree>,
        device: OwnedFd,
        options: &Options,
        threads: usize,
    ) -> io::Result<Connection> {
        let shared = Shared::new(tree, options);
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let adapter = Guard(Adapter { shared: Arc::clone(&shared) });
        Ok(Connection::new(Session::from_fd(adapter, device, SessionACL::All, config)?, shared))
    }

    /// Mounts at `dir` with the help of `fusermount3`.
    pub(crate) fn by_helper(tree: Arc<Tree>, dir: &Path, options: &Options, threads: usize) -> io::Result<Connection> {
        let shared = Shared::new(tree, options);
        let mut config = Config::default();
        let flag = |set: bool, yes: MountOption, no: MountOption| if set { yes } else { no };
        config.mount_options = vec![
            MountOption::FSName(options.source.clone()),
            MountOption::Subtype(options.subtype.clone()),
            MountOption::DefaultPermissions,
            flag(options.read_only, MountOption::RO, MountOption::RW),
            flag(options.noexec, MountOption::NoExec, MountOption::Exec),
        ];
        config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let adapter = Guard(Adapter { shared: Arc::clone(&shared) });
        Ok(Connection::new(Session::new(adapter, dir, &config)?, shared))
    }

    fn new(session: Session<Guard>, shared: Arc<Shared>) -> Connection {
        let tried = shared.wants_passthrough.then(|| try_passthrough(&session));
        shared.passthrough.store(matches!(tried, Some(Ok(()))), Ordering::Relaxed);
        let _ = shared.notifier.set(session.notifier());
        Connection { session, shared, passthrough_refused: tried.and_then(Result::err) }
    }

    /// Returns whether file data may bypass us.
    pub(crate) fn has_passthrough(&self) -> bool {
        self.shared.passthrough.load(Ordering::Relaxed)
    }

    /// Returns why not, if it was wanted.
    pub(crate) fn passthrough_refused(&self) -> Option<&io::Error> {
        self.passthrough_refused.as_ref()
    }

    /// Serves until the mount is gone.
    pub(crate) fn serve(self) -> io::Result<()> {
        match self.session.run() {
            // A thread was just taking a request when the mount went away.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            result => result,
        }
    }
}

impl Shared {
    fn new(tree: Arc<Tree>, options: &Options) -> Arc<Shared> {
        Arc::new(Shared {
            tree,
            nodes: Nodes::new(),
            wants_passthrough: options.passthrough == Passthrough::Auto,
            passthrough: AtomicBool::new(false),
            notifier: OnceLock::new(),
            slow: Slow::default(),
        })
    }
}

/// Tries it: what the handshake says about passthrough is only what the kernel knows, not what we may.
fn try_passthrough(session: &Session<Guard>) -> io::Result<()> {
    let probe = rustix::fs::memfd_create("strata-probe", MemfdFlags::CLOEXEC)?;
    strata_sys::fuse::probe_backing(session.as_fd(), probe.as_fd())
}
