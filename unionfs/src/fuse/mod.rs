//! The FUSE front end.
//!
//! A *transport* brings requests of the kernel and takes answers back: `/dev/fuse` read by ourselves, the queues of an
//! io_uring, or the `fuser` crate. The *operations* answer them out of the tree, the same ones for every transport.
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
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use strata_sys::fuse_ring::Buffers;

use crate::spec::{Options, Transport};
use crate::survive::{Keep, kick_refusal};
use crate::tree::Tree;
pub use counts::Counts;
use handshake::{Agreed, Wishes, shake_hands};
use operations::Operations;
use transport::channels;
pub(crate) use transport::count_of_ranges;

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

/// A connection after the handshake, and all that it takes to serve it.
#[derive(Debug)]
pub(crate) struct Line {
    /// The connection itself and its clones, one for each serving thread.
    channels: Vec<Arc<OwnedFd>>,
    /// The memory of its queues, if requests come in those.
    slots: Option<Arc<Buffers>>,
    number: Option<u32>,
    pub(crate) agreed: Agreed,
    pub(crate) choice: Choice,
}

impl Line {
    /// Shakes hands with the kernel over an open `/dev/fuse` that has been mounted already, as `choice` says, which is
    /// one of our own transports.
    pub(crate) fn open(
        device: OwnedFd,
        options: &Options,
        mut choice: Choice,
        server: Server,
        threads: usize,
    ) -> io::Result<Line> {
        let device = Arc::new(device);
        let number = connection_number(&device);
        let instead = |reason| match options.transport {
            Transport::Ring => Err(io::Error::new(io::ErrorKind::Unsupported, reason)),
            _ => Ok(Choice { transport: Transport::Device, reason }),
        };
        if choice.transport == Transport::Ring && server == Server::MayDie && number.is_none() {
            choice = instead("the kernel does not tell the number of a connection, as it does from Linux 6.16 on")?;
        }
        let slots = if choice.transport == Transport::Ring { Some(transport::Ring::buffers()?) } else { None };
        let agreed = shake_hands(&*device, Wishes::of(options, choice.transport))?;
        let slots = slots.filter(|_| agreed.has_ring());
        if choice.transport == Transport::Ring && slots.is_none() {
            // Switched off in this moment.
            choice = instead("the kernel did not offer FUSE over io_uring")?;
        }
        let channels = if slots.is_some() { vec![device] } else { channels(&device, threads) };
        Ok(Line { channels, slots, number, agreed, choice })
    }

    /// Returns the descriptors by which the connection is served.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.channels.iter().map(|channel| channel.as_fd())
    }

    /// Returns the memory of the queues, if requests come in those.
    pub(crate) fn slots(&self) -> Option<&Arc<Buffers>> {
        self.slots.as_ref()
    }

    /// Returns the number of the connection, which is that of its filesystem's device, if the kernel tells.
    pub(crate) fn number(&self) -> Option<u32> {
        self.number
    }

    fn transport(&self) -> Box<dyn transport::Transport> {
        match (&self.slots, self.channels.first()) {
            (Some(slots), Some(device)) => Box::new(transport::Ring::new(Arc::clone(device), Arc::clone(slots))),
            _ => Box::new(transport::Device::new(self.channels.clone())),
        }
    }
}

impl Connection {
    /// Shakes hands with the kernel over an open `/dev/fuse` that has been mounted already.
    pub(crate) fn new(
        tree: Arc<Tree>,
        device: OwnedFd,
        options: &Options,
        choice: Choice,
        threads: usize,
    ) -> io::Result<Connection> {
        if choice.transport != Transport::Fuser {
            let line = Line::open(device, options, choice, Server::IsTheOnlyOne, threads)?;
            let operations = Operations::new(tree, Arc::clone(&line.channels[0]));
            return Ok(Connection::of(line.transport(), operations, line.choice, line.agreed.passthrough));
        }
        let wishes = Wishes::of(options, choice.transport);
        let device = Arc::new(device);
        let transport = Box::new(transport::Fuser::new(device.try_clone()?, threads, wishes)?);
        let passthrough = handshake::passthrough(&*device, wishes);
        Ok(Connection::of(transport, Operations::new(tree, device), choice, passthrough))
    }

    /// Goes on with a connection after the handshake, as one of several servers that come one after another and leave
    /// each other `keep`.
    pub(crate) fn kept(tree: Arc<Tree>, line: &Line, keep: &Arc<Keep>) -> Connection {
        let operations = Operations::kept(tree, Arc::clone(&line.channels[0]), keep);
        Connection::of(line.transport(), operations, line.choice, line.agreed.passthrough.clone())
    }

    /// Makes the kernel hand out again what an earlier server has read and not answered.
    pub(crate) fn resend(&self) -> io::Result<()> {
        notify::resend(self.operations.device())
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

    /// Serves until the mount is gone. From when `ready` is called on, every request finds somebody.
    pub(crate) fn serve(self, ready: &(dyn Fn() + Sync)) -> io::Result<()> {
        let result = self.transport.serve(&self.operations, ready);
        tracing::debug!(counts = ?self.operations.counts(), "the mount is gone");
        result
    }
}

/// Returns the transport that a mount gets if it does not ask for one, and why.
pub fn default_transport() -> (Transport, &'static str) {
    let Choice { transport, reason } = best(Server::MayDie);
    (transport, reason)
}

/// What becomes of a mount when the process that serves it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// It ends.
    IsTheOnlyOne,
    /// Another serves on.
    MayDie,
}

/// Chooses a transport.
pub(crate) fn choose(wanted: Transport, server: Server) -> io::Result<Choice> {
    if wanted == Transport::Ring
        && let Some(refusal) = ring_refusal(server)
    {
        return Err(io::Error::new(io::ErrorKind::Unsupported, refusal));
    }
    Ok(if wanted == Transport::Auto { best(server) } else { Choice { transport: wanted, reason: "asked for" } })
}

/// Chooses the best transport that works.
fn best(server: Server) -> Choice {
    if kernel_version().is_some_and(|version| version < OLDEST_KERNEL) {
        return Choice { transport: Transport::Fuser, reason: "the kernel is older than 5.12" };
    }
    match ring_refusal(server) {
        None => Choice { transport: Transport::Ring, reason: "fuse's enable_uring is on" },
        Some(refusal) => Choice { transport: Transport::Device, reason: refusal },
    }
}

/// Finds out why requests cannot come in the queues of an io_uring.
fn ring_refusal(server: Server) -> Option<&'static str> {
    let to_survive = || if server == Server::MayDie { kick_refusal() } else { None };
    transport::Ring::refusal().or_else(to_survive)
}

/// Returns the number of a connection, which is that of its filesystem's device, if the kernel tells.
fn connection_number(device: &OwnedFd) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("fuse_connection:")?.trim().parse().ok())
}

fn kernel_version() -> Option<(u32, u32)> {
    let name = rustix::system::uname();
    let mut numbers = name.release().to_str().ok()?.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// From here on, requests have the layout that we read.
const OLDEST_KERNEL: (u32, u32) = (5, 12);
