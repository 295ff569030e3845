//! The FUSE front end over the `fuser` crate. No `fuser` type leaves this module.
//!
//! The mount is the only writer of what it shows, so entries, attributes and negative answers are valid for ever, and
//! what matters is to be asked as seldom as possible: directory reads hand out attributes, opening a directory is
//! answered once with "not needed", symbolic links are cached.

mod adapter;
mod reply;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL};

use crate::spec::Options;
use crate::tree::Tree;
use adapter::Adapter;

/// A mounted filesystem whose requests are about to be served.
#[derive(Debug)]
pub(crate) struct Connection {
    session: Session<Adapter>,
}

impl Connection {
    /// Shakes hands with the kernel over an open `/dev/fuse` that has been mounted already.
    pub(crate) fn from_device(tree: Arc<Tree>, device: OwnedFd, threads: usize) -> io::Result<Connection> {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let session = Session::from_fd(Adapter::new(tree), device, SessionACL::All, config)?;
        Ok(Connection { session })
    }

    /// Mounts at `dir` with the help of `fusermount3`.
    pub(crate) fn by_helper(tree: Arc<Tree>, dir: &Path, options: &Options, threads: usize) -> io::Result<Connection> {
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
        Ok(Connection { session: Session::new(Adapter::new(tree), dir, &config)? })
    }

    /// Serves until the mount is gone.
    pub(crate) fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}
