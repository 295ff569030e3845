//! Who receives the descriptors of a container: a socket of the caller, or ourselves.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use strata_engine::oci::Receiver;

/// A unix socket on which somebody waits for one descriptor (`--console-socket`, `--pidfd-socket`).
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// What is said with it: runc sends the name of the file.
    word: &'static str,
}

impl Socket {
    pub(super) fn new(path: &str, word: &'static str) -> Socket {
        Socket { path: PathBuf::from(path), word }
    }
}

impl Receiver for Socket {
    fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        let socket = UnixStream::connect(&self.path).map_err(failed)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&socket, &[IoSlice::new(self.word.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)
            .map_err(|errno| failed(errno.into()))?;
        Ok(())
    }
}

/// Keeps the descriptor.
#[derive(Debug, Default)]
pub(super) struct Kept(pub(super) Option<OwnedFd>);

impl Receiver for Kept {
    fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.0 = Some(fd.as_fd().try_clone_to_owned()?);
        Ok(())
    }
}
