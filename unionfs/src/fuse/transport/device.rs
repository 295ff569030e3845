//! Requests read from `/dev/fuse` and answers written to it, by threads with a channel each.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::Transport;
use crate::fuse::cpus::Cpus;
use crate::fuse::handshake::MAX_WRITE;
use crate::fuse::operations::{Operations, Outcome};
use crate::fuse::reply::Reply;
use crate::fuse::request::Frame;
use crate::fuse::wire::{OutHeader, opcode};

/// A connection and its channels. A request must be answered on the channel that it was read from.
#[derive(Debug)]
pub(crate) struct Device {
    channels: Vec<Arc<OwnedFd>>,
    cpus: Cpus,
}

impl Device {
    /// Serves a connection by `threads` threads.
    pub(crate) fn new(device: &Arc<OwnedFd>, threads: usize) -> Device {
        let mut channels = vec![Arc::clone(device)];
        // Without a channel of its own, a thread shares the first.
        channels.extend((1..threads).map(|_| clone(device).map_or_else(|_| Arc::clone(device), Arc::new)));
        Device::with_channels(channels)
    }

    /// Serves a connection by one thread for each of the channels that somebody has made before.
    pub(crate) fn with_channels(channels: Vec<Arc<OwnedFd>>) -> Device {
        Device { channels, cpus: Cpus::allowed() }
    }
}

impl Transport for Device {
    fn serve(self: Box<Self>, operations: &Arc<Operations>) -> io::Result<()> {
        let pinned = self.channels.len() >= self.cpus.count();
        let run = |number: usize, channel: &Arc<OwnedFd>| {
            if pinned {
                self.cpus.pin_to(number);
            }
            serve_channel(channel, operations)
        };
        std::thread::scope(|scope| {
            let mut servers = Vec::new();
            let mut result = Ok(());
            for (number, channel) in self.channels.iter().enumerate() {
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
            result
        })
    }
}

/// Makes one more channel of a connection.
pub(crate) fn clone(device: &OwnedFd) -> io::Result<OwnedFd> {
    let clone = File::options().read(true).write(true).open("/dev/fuse")?;
    strata_sys::fuse::clone_device(clone.as_fd(), device.as_fd())?;
    Ok(clone.into())
}

fn serve_channel(channel: &Arc<OwnedFd>, operations: &Arc<Operations>) -> io::Result<()> {
    // Neither is in memory before it is used.
    let mut message = vec![0; MESSAGE_MAX];
    let mut room = vec![0; MAX_WRITE as usize];
    loop {
        match rustix::io::read(&**channel, &mut message) {
            // A channel that is no device says so at its end.
            Ok(0) => return Ok(()),
            Ok(length) => serve_message(channel, operations, &message[..length], &mut room),
            // The mount is gone, or the connection was given up.
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
            // What was to be read has been taken back.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn serve_message(channel: &Arc<OwnedFd>, operations: &Arc<Operations>, message: &[u8], room: &mut [u8]) {
    let Some(frame) = Frame::of_message(message) else { return };
    let header = *frame.header();
    operations.counts().add(header.opcode);
    let request = match frame.parse() {
        Ok(request) => request,
        Err(_) if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) => return,
        Err(error) => return send(channel, header.unique, &Reply::Error(error), &[]),
    };
    match operations.serve(&request, room, channel) {
        Outcome::Now(reply) => send(channel, header.unique, &reply, room),
        Outcome::Later(job) => {
            let channel = Arc::clone(channel);
            operations.slow().run(move || send(&channel, header.unique, &job(&channel), &[]));
        }
    }
}

/// Sends an answer. That nobody waits for it any more is no failure.
fn send(channel: &OwnedFd, unique: u64, reply: &Reply, room: &[u8]) {
    let in_room = if let Reply::InRoom(length) = reply { room.get(..*length).unwrap_or_default() } else { &[] };
    let sent = reply.with_bytes(|encoded| {
        let Some(encoded) = encoded else { return Ok(0) };
        let parts = [encoded.first, encoded.second, in_room];
        let length = size_of::<OutHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
        let header = OutHeader { len: u32::try_from(length).unwrap_or(u32::MAX), error: encoded.error, unique };
        let [first, second, third] = parts.map(IoSlice::new);
        rustix::io::writev(channel, &[IoSlice::new(header.as_bytes()), first, second, third])
    });
    match sent {
        Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
        Err(error) => tracing::warn!(unique, %error, "the kernel did not take an answer"),
    }
}

/// The longest message: a write with what comes before the data.
const MESSAGE_MAX: usize = MAX_WRITE as usize + 4096;
