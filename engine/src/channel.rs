//! Messages with descriptors between two of our own processes: a length, JSON, and what `SCM_RIGHTS` carries.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// More descriptors than this are never sent in one message.
const MAX_DESCRIPTORS: usize = 16;
/// A mount of hundreds of layers is well below this.
const MAX_LENGTH: usize = 16 << 20;

/// Sends `message` and copies of `descriptors`.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_LENGTH || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_le_bytes();

    // The descriptors ride on the length; the body follows as plain data.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = retry(|| rustix::net::sendmsg(socket, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL))?;
    let mut rest = length[sent..].to_vec();
    rest.extend(body);
    let mut rest = rest.as_slice();
    while !rest.is_empty() {
        let sent = retry(|| rustix::net::send(socket, rest, SendFlags::NOSIGNAL))?;
        rest = &rest[sent..];
    }
    Ok(())
}

/// Receives one message; an end of the stream before it is complete is `UnexpectedEof`.
pub(crate) fn receive<T: for<'a> Deserialize<'a>>(socket: BorrowedFd<'_>) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut descriptors = Vec::new();
    let mut length = [0_u8; 4];
    let mut filled = 0;
    while filled < length.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let buffer = &mut [IoSliceMut::new(&mut length[filled..])];
        let received = rustix::net::recvmsg(socket, buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        match received {
            Ok(message) if message.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(message) => filled += message.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_LENGTH {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match retry(|| rustix::io::read(socket, &mut body[filled..]))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => filled += received,
        }
    }
    Ok((serde_json::from_slice(&body)?, descriptors))
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        let long = "x".repeat(1 << 20);
        let sender = std::thread::spawn(move || {
            send(one.as_fd(), &"first", &[file.as_fd(), one.as_fd()]).unwrap();
            send(one.as_fd(), &long, &[]).unwrap();
        });
        let (first, descriptors) = receive::<String>(other.as_fd()).unwrap();
        assert_eq!((first.as_str(), descriptors.len()), ("first", 2));
        let mut received = std::fs::File::from(descriptors.into_iter().next().unwrap());
        let mut text = String::new();
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        let (second, descriptors) = receive::<String>(other.as_fd()).unwrap();
        assert_eq!((second.len(), descriptors.len()), (1 << 20, 0));
        sender.join().unwrap();
        assert_eq!(receive::<String>(other.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (one, other) = UnixStream::pair().unwrap();
        drop(other);
        assert_eq!(send(one.as_fd(), &"lost", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_absurd_length_is_refused_before_memory_is_taken() {
        let (one, mut other) = UnixStream::pair().unwrap();
        other.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(receive::<String>(one.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
