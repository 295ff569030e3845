//! The FUSE front end.
//!
//! A *transport* brings requests of the kernel and takes answers back: `/dev/fuse` read by ourselves, or the `fuser`
//! crate. The *operations* answer them out of the tree, the same ones for every transport.
//!
//! The mount is the only writer of what it shows, so entries, attributes and negative answers are valid for ever, and
//! what matters is to be asked as seldom as possible: directory reads hand out attributes, opening a directory is
//! answered once with "not needed", symbolic links are cached, and file data bypasses us where it can.

mod backing;
mod counts;
mod cpus;
mod guard;
mod handshake;
mod notify;
mod operations;
mod reply;
mod request;
mod slow;
mod transport;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::spec::{Options, Transport};
use crate::survive::Keep;
use crate::tree::Tree;
pub use counts::Counts;
pub(crate) use handshake::{Agreed, Wishes, shake_hands};
use operations::Operations;
pub(crate) use transport::channels;

/// A mounted filesystem whose requests are about to be served.
#[derive(Debug)]
pub(crate) struct Connection {
    transport: Box<dyn transport::Transport>,
    operations: Arc<Operations>,
    choice: Choice,
    passthrough: Result<bool, String>,
}

/// The transport that was chosen, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) transport: Transport,
    pub(crate) reason: &'static str,
}

impl Connection {
    /// Shakes hands with the kernel over an open `/dev/fuse` that has been mounted already.
    pub(crate) fn new(tree: Arc<Tree>, device: OwnedFd, options: &Options, threads: usize) -> io::Result<Connection> {
        let choice = choose(options.transport)?;
        let wishes = Wishes::of(options, choice.transport);
        let device = Arc::new(device);
        if choice.transport == Transport::Fuser {
            let transport = Box::new(transport::Fuser::new(device.try_clone()?, threads, wishes)?);
            let passthrough = handshake::passthrough(&*device, wishes);
            return Ok(Connection::over(transport, tree, device, choice, passthrough));
        }
        let buffers = if wishes.ring { Some(transport::Ring::buffers()?) } else { None };
        let agreed = shake_hands(&*device, wishes)?;
        match buffers {
            Some(buffers) if agreed.has_ring() => {
                let ring = Box::new(transport::Ring::new(Arc::clone(&device), buffers));
                Ok(Connection::over(ring, tree, device, choice, agreed.passthrough))
            }
            Some(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel did not offer FUSE over io_uring")),
            None => Ok(Connection::agreed(tree, transport::channels(&device, threads), agreed, choice)),
        }
    }

    /// Goes on with a connection after the handshake, whoever made that: `channels` are the connection itself and its
    /// clones, one for each serving thread.
    pub(crate) fn agreed(tree: Arc<Tree>, channels: Vec<Arc<OwnedFd>>, agreed: Agreed, choice: Choice) -> Connection {
        let device = Arc::clone(&channels[0]);
        let transport = Box::new(transport::Device::new(channels));
        Connection::over(transport, tree, device, choice, agreed.passthrough)
    }

    /// The same, as one of several servers that come one after another and leave each other `keep`.
    pub(crate) fn kept(
        tree: Arc<Tree>,
        channels: Vec<Arc<OwnedFd>>,
        agreed: Agreed,
        choice: Choice,
        keep: &Arc<Keep>,
    ) -> Connection {
        let operations = Operations::kept(tree, Arc::clone(&channels[0]), keep);
        Connection::of(Box::new(transport::Device::new(channels)), operations, choice, agreed.passthrough)
    }

    /// Makes the kernel hand out again what an earlier server has read and not answered.
    pub(crate) fn resend(&self) -> io::Result<()> {
        notify::resend(self.operations.device())
    }

    fn over(
        transport: Box<dyn transport::Transport>,
        tree: Arc<Tree>,
        device: Arc<OwnedFd>,
        choice: Choice,
        passthrough: Result<bool, String>,
    ) -> Connection {
        Connection::of(transport, Operations::new(tree, device), choice, passthrough)
    }

    fn of(
        transport: Box<dyn transport::Transport>,
        operations: Arc<Operations>,
        choice: Choice,
        passthrough: Result<bool, String>,
    ) -> Connection {
        if passthrough == Ok(true) {
            operations.allow_passthrough();
        }
        Connection { transport, operations, choice, passthrough }
    }

    /// Returns which transport was chosen, and why.
    pub(crate) fn choice(&self) -> Choice {
        self.choice
    }

    /// Returns whether file data may bypass us, or why not if it was wanted.
    pub(crate) fn passthrough(&self) -> &Result<bool, String> {
        &self.passthrough
    }

    /// Returns how often the kernel has asked for what.
    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(self.operations.counts())
    }

    /// Serves until the mount is gone.
    pub(crate) fn serve(self) -> io::Result<()> {
        let result = self.transport.serve(&self.operations);
        tracing::debug!(counts = ?self.operations.counts(), "the mount is gone");
        result
    }
}

/// Returns the transport that a mount gets if it does not ask for one, and why.
pub fn default_transport() -> (Transport, &'static str) {
    let Choice { transport, reason } = best();
    (transport, reason)
}

/// Chooses a transport.
pub(crate) fn choose(wanted: Transport) -> io::Result<Choice> {
    if wanted == Transport::Ring
        && let Some(refusal) = transport::Ring::refusal()
    {
        return Err(io::Error::new(io::ErrorKind::Unsupported, refusal));
    }
    Ok(if wanted == Transport::Auto { best() } else { Choice { transport: wanted, reason: "asked for" } })
}

/// Chooses the best transport that works.
fn best() -> Choice {
    if kernel_version().is_some_and(|version| version < OLDEST_KERNEL) {
        return Choice { transport: Transport::Fuser, reason: "the kernel is older than 5.12" };
    }
    match transport::Ring::refusal() {
        None => Choice { transport: Transport::Ring, reason: "fuse's enable_uring is on" },
        Some(refusal) => Choice { transport: Transport::Device, reason: refusal },
    }
}

fn kernel_version() -> Option<(u32, u32)> {
    let name = rustix::system::uname();
    let mut numbers = name.release().to_str().ok()?.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// From here on, requests have the layout that we read.
const OLDEST_KERNEL: (u32, u32) = (5, 12);
