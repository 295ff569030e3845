//! A command that is connected to the monitor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;
use serde::Serialize;

use super::frame::{self, Decoder, Frame, Kind};
use super::protocol::{Attach, Reply};

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    pub(super) role: Role,
    is_closed: bool,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing was asked yet.
    New,
    /// It carries the streams of the process with this key.
    Attached(u32, Attach),
    /// It waits for the end of the first process, and then for an answer.
    AwaitsEnd,
    /// It is closed once everything was sent.
    Done,
}

/// How much may wait for a command that does not read before the process's output is not read any more.
const OUTPUT_LIMIT: usize = 256 << 10;

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Connection> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let (decoder, out) = (Decoder::default(), Vec::new());
        Ok(Connection { socket, decoder, out, sent: 0, role: Role::New, is_closed: false })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.out.len() - self.sent > OUTPUT_LIMIT
    }

    /// Whether there is nothing more to do with it.
    pub(super) fn is_over(&self) -> bool {
        self.is_closed || (self.role == Role::Done && self.out.is_empty())
    }

    /// Reads once; `false` when the other side is gone.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> bool {
        match rustix::io::read(&self.socket, &mut *buffer) {
            Ok(0) => self.is_closed = true,
            Ok(count) => self.decoder.push(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.is_closed = true,
        }
        !self.is_closed
    }

    /// Takes the next whole frame; a stream of something else ends the connection.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        self.decoder.next().unwrap_or_else(|_| {
            self.is_closed = true;
            None
        })
    }

    pub(super) fn send(&mut self, kind: Kind, payload: &[u8]) {
        if !self.is_closed {
            frame::encode(kind, payload, &mut self.out);
            self.flush();
        }
    }

    fn send_json(&mut self, kind: Kind, value: &impl Serialize) {
        if !self.is_closed {
            frame::encode_json(kind, value, &mut self.out);
            self.flush();
        }
    }

    /// Answers a request.
    pub(super) fn reply(&mut self, reply: &Reply) {
        self.send_json(Kind::Reply, reply);
    }

    /// Answers a request, and that was all.
    pub(super) fn conclude(&mut self, reply: &Reply) {
        self.reply(reply);
        self.role = Role::Done;
    }

    /// Sends as much as the socket takes.
    pub(super) fn flush(&mut self) {
        while self.sent < self.out.len() {
            match rustix::net::send(&self.socket, &self.out[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.is_closed = true;
                    break;
                }
            }
        }
        self.out.clear();
        self.out.shrink_to(16 << 10);
        self.sent = 0;
    }
}
