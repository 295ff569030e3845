//! How requests come from the kernel and answers get back.

mod device;
mod fuser;
mod ring;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::backing::Register;
use super::guard::survive;
use super::operations::{Operations, Outcome};
use super::reply::Reply;
use super::request::Frame;
use super::wire::opcode;
pub(crate) use device::{Device, channels};
pub(crate) use fuser::Fuser;
pub(crate) use ring::Ring;

/// A way to the kernel, after the handshake.
pub(crate) trait Transport: Debug + Send {
    /// Serves until the mount is gone.
    fn serve(self: Box<Self>, operations: &Arc<Operations>) -> io::Result<()>;
}

/// Where the answer to one request goes.
trait Sink: Register + Send + 'static {
    /// Sends the answer; what is in its room comes with it.
    fn send(self, reply: Reply, room: &[u8]);
}

/// Serves one request, from its bytes to the sending of its answer.
fn serve_frame(operations: &Arc<Operations>, frame: &Frame<'_>, room: &mut [u8], sink: impl Sink) {
    let header = *frame.header();
    operations.counts().add(header.opcode);
    let request = match frame.parse() {
        Ok(request) => request,
        Err(_) if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) => {
            return sink.send(Reply::Silent, &[]);
        }
        Err(error) => return sink.send(Reply::Error(error), &[]),
    };
    match operations.serve(&request, room, &sink) {
        Outcome::Now(reply) => sink.send(reply, room),
        Outcome::Later(job) => operations.slow().run(move || {
            let reply = survive(|| job(&sink)).unwrap_or(Reply::Error(Errno::IO));
            sink.send(reply, &[]);
        }),
    }
}
