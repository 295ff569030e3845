//! How requests come from the kernel and answers get back.

mod calm;
mod device;
mod fuser;
mod idle;
mod policy;
mod queue_turns;
mod readers;
mod ring;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::backing::Register;
use super::guard::survive;
use super::operations::{Job, Operations, Outcome};
use super::reply::Reply;
use super::request::Frame;
use super::slow::Slow;
use super::wire::opcode;
pub(crate) use device::{Device, channels};
pub(crate) use fuser::Fuser;
pub(crate) use ring::{Ring, count_of_ranges};

use crate::survive::{self as journal, Point};

/// A way to the kernel, after the handshake.
pub(crate) trait Transport: Debug + Send {
    /// Serves until the mount is gone. From when `ready` is called on, every request finds somebody.
    fn serve(self: Box<Self>, operations: &Arc<Operations>, ready: &(dyn Fn() + Sync)) -> io::Result<()>;
}

/// Where the answer to one request goes.
trait Sink: Register + Send + 'static {
    /// Sends the answer; what is in its room comes with it. The request is in work until then: whoever only puts the
    /// answer aside takes the ticket of the journal with it.
    fn send(self, reply: Reply, room: &[u8]);
}

/// Serves one request; returns its answer for the caller to [`send`], unless that is left to others.
fn serve_frame<S: Sink>(
    operations: &Arc<Operations>,
    frame: &Frame<'_>,
    room: &mut [u8],
    sink: S,
) -> Option<(S, Reply)> {
    let header = *frame.header();
    operations.counts().add(header.opcode);
    let request = match frame.parse() {
        Ok(request) => request,
        Err(_) if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) => {
            return Some((sink, Reply::Silent));
        }
        Err(error) => return Some((sink, Reply::Error(error))),
    };
    if let Some(reply) = operations.begin(&request, header.opcode) {
        return Some((sink, reply));
    }
    match operations.serve(&request, room, &sink) {
        Outcome::Now(reply) => return Some((sink, reply)),
        Outcome::Later(job) => run(operations.slow(), job, sink),
        Outcome::Fetched(job) => run(operations.fetching(), job, sink),
    }
    None
}

/// Does work in another thread and sends its answer from there.
fn run(threads: &Slow, job: Job, sink: impl Sink) {
    let ticket = journal::detach();
    threads.run(move || {
        journal::attach(ticket);
        let reply = survive(|| job(&sink)).unwrap_or(Reply::Error(Errno::IO));
        send(sink, reply, &[]);
    });
}

/// Sends the answer to a request, which is no longer in work then.
fn send(sink: impl Sink, reply: Reply, room: &[u8]) {
    journal::pass(Point::Executed);
    sink.send(reply, room);
    journal::pass(Point::Replied);
    journal::finish();
}
