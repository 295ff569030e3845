//! Requests read from `/dev/fuse` and answers written to it, by threads with a channel each.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::readers::Readers;
use super::{Sink, Transport, send, serve_frame};
use crate::fuse::backing::{Backing, Register};
use crate::fuse::handshake::MAX_WRITE;
use crate::fuse::operations::Operations;
use crate::fuse::reply::Reply;
use crate::fuse::request::Frame;
use crate::fuse::wire::OutHeader;

/// A connection and its channels. A request must be answered on the channel that it was read from.
#[derive(Debug)]
pub(crate) struct Device {
    channels: Vec<Arc<OwnedFd>>,
}

impl Device {
    /// Serves a connection by one thread for each of its channels.
    pub(crate) fn new(channels: Vec<Arc<OwnedFd>>) -> Device {
        Device { channels }
    }
}

/// Returns a connection and as many clones of it as it takes for `threads` threads.
pub(crate) fn channels(device: &Arc<OwnedFd>, threads: usize) -> Vec<Arc<OwnedFd>> {
    // Without a channel of its own, a thread shares the first.
    let clones = (1..threads).map(|_| clone(device).map_or_else(|_| Arc::clone(device), Arc::new));
    std::iter::once(Arc::clone(device)).chain(clones).collect()
}

impl Transport for Device {
    fn serve(self: Box<Self>, operations: &Arc<Operations>, ready: &(dyn Fn() + Sync)) -> io::Result<()> {
        ready();
        let readers = &Readers::new(self.channels.len());
        let run = |number: usize, channel: &Arc<OwnedFd>| serve_channel(channel, operations, &readers.reader(number));
        std::thread::scope(|scope| {
            let mut servers = Vec::new();
            let mut result = Ok(());
            if let [first, _, ..] = &self.channels[..] {
                let watch = move || readers.watch(first);
                // Without it, all read.
                let _ = std::thread::Builder::new().name("fuse-watch".to_owned()).spawn_scoped(scope, watch);
            }
            for channel in &self.channels {
                // Those that there are have no gaps: the first is always there.
                let number = servers.len();
                let server = move || run(number, channel);
                let name = format!("fuse-{number}");
                match std::thread::Builder::new().name(name).spawn_scoped(scope, server) {
                    Ok(server) => servers.push(server),
                    // Those that are there serve as well.
                    Err(error) if servers.is_empty() => result = Err(error),
                    Err(_) => {}
                }
            }
            for server in servers {
                result = result.and(server.join().unwrap_or_else(|_| Err(io::Error::other("a serving thread ended"))));
            }
            readers.finish();
            result
        })
    }
}

/// Makes one more channel of a connection.
fn clone(device: &OwnedFd) -> io::Result<OwnedFd> {
    let clone = File::options().read(true).write(true).open("/dev/fuse")?;
    strata_sys::fuse::clone_device(clone.as_fd(), device.as_fd())?;
    Ok(clone.into())
}

/// When a thread reads.
pub(super) trait Turns {
    /// Waits until the thread may read the next request; asked before each reading. Returns whether there is to be one.
    fn may_read(&self) -> bool;

    /// Notes that a request was read, and which thread waits for its answer (0: none).
    fn has_read(&self, _thread: u32) {}

    /// Notes that what is left to do for the request is to send its answer, if that is not left to others.
    fn has_served(&self) {}
}

impl<F: Fn() -> bool> Turns for F {
    fn may_read(&self) -> bool {
        self()
    }
}

/// Serves what comes by a channel for as long as `turns` says so.
pub(super) fn serve_channel(
    channel: &Arc<OwnedFd>,
    operations: &Arc<Operations>,
    turns: &impl Turns,
) -> io::Result<()> {
    // Neither is in memory before it is used.
    let mut message = vec![0; MESSAGE_MAX];
    let mut room = vec![0; MAX_WRITE as usize];
    operations.expose_this_thread();
    while turns.may_read() {
        match rustix::io::read(&**channel, &mut message) {
            // A channel that is no device says so at its end.
            Ok(0) => return Ok(()),
            Ok(length) => {
                // What is too short to be a request cannot be answered.
                let Some(frame) = Frame::of_message(&message[..length]) else { continue };
                turns.has_read(frame.header().pid);
                let answer = Answer { channel: Arc::clone(channel), unique: frame.header().unique };
                let answer = serve_frame(operations, &frame, &mut room, answer);
                turns.has_served();
                if let Some((sink, reply)) = answer {
                    send(sink, reply, &room);
                }
            }
            // The mount is gone, or the connection was given up.
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
            // What was to be read has been taken back.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The answer to one request.
struct Answer {
    channel: Arc<OwnedFd>,
    unique: u64,
}

impl Register for Answer {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Backing> {
        let number = strata_sys::fuse::open_backing(self.channel.as_fd(), file)?;
        Ok(Backing::Numbered { device: Arc::clone(&self.channel), number })
    }
}

impl Sink for Answer {
    /// That nobody waits for it any more is no failure.
    fn send(self, reply: Reply, room: &[u8]) {
        let unique = self.unique;
        let in_room = if let Reply::InRoom(length) = reply { room.get(..length).unwrap_or_default() } else { &[] };
        let sent = reply.with_bytes(|encoded| {
            let Some(encoded) = encoded else { return Ok(0) };
            let parts = [encoded.first, encoded.second, in_room];
            let length = size_of::<OutHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
            let header = OutHeader { len: u32::try_from(length).unwrap_or(u32::MAX), error: encoded.error, unique };
            let [first, second, third] = parts.map(IoSlice::new);
            rustix::io::writev(&*self.channel, &[IoSlice::new(header.as_bytes()), first, second, third])
        });
        match sent {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(error) => tracing::warn!(unique, %error, "the kernel did not take an answer"),
        }
    }
}

/// The longest message: a write with what comes before the data.
const MESSAGE_MAX: usize = MAX_WRITE as usize + 4096;
