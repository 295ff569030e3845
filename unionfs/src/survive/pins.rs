//! Files without a name, kept open for the next worker.
//!
//! A file that was removed while somebody uses it lives as long as it is open somewhere, and the worker's descriptors die
//! with it. So a further one lies in a message in a socket whose both ends the keeper has too: nobody has to receive it,
//! and it costs a microsecond. Messages of files that are not used any more are thrown away in time; those that are, are
//! sent to the other of two sockets first, so that there is no moment without.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, socketpair,
};

/// The files.
#[derive(Debug)]
pub(crate) struct Pins {
    sockets: [Queue; 2],
    state: Mutex<State>,
}

/// Both ends of a socket.
#[derive(Debug)]
struct Queue {
    sender: OwnedFd,
    receiver: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    /// The socket that is written to.
    active: usize,
    live: HashMap<u64, Arc<OwnedFd>>,
    /// Messages in the socket at most, and how many of them are of no use any more.
    queued: usize,
    dead: usize,
    /// Units of 512 bytes that the dead ones still take.
    dead_blocks: u64,
}

impl Pins {
    /// Makes the sockets.
    pub(crate) fn new() -> io::Result<Pins> {
        let queue = || -> io::Result<Queue> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            // As many messages as the system lets us.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&sender, 1 << 22);
            Ok(Queue { sender, receiver })
        };
        Ok(Pins { sockets: [queue()?, queue()?], state: Mutex::default() })
    }

    /// Returns the sockets.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().flat_map(|queue| [queue.sender.as_fd(), queue.receiver.as_fd()])
    }

    /// Keeps the file of a node that is about to lose its last name. Returns whether that worked.
    pub(crate) fn pin(&self, ino: u64, file: &Arc<OwnedFd>) -> bool {
        let mut state = self.state();
        if state.live.insert(ino, Arc::clone(file)).is_some() {
            return true;
        }
        if self.send(state.active, &[(ino, file.as_fd())]).is_ok() {
            state.queued = state.queued.saturating_add(1);
            return true;
        }
        // Full: that sends it together with the others.
        self.clean(&mut state)
    }

    /// Lets the file of a node go.
    pub(crate) fn unpin(&self, ino: u64) {
        let mut state = self.state();
        let Some(file) = state.live.remove(&ino) else { return };
        state.dead += 1;
        let many = state.dead > state.live.len() / 8;
        if !many {
            state.dead_blocks += rustix::fs::fstat(&*file).map_or(0, |raw| u64::try_from(raw.st_blocks).unwrap_or(0));
        }
        if many || state.dead_blocks > MUCH {
            self.clean(&mut state);
        }
    }

    /// Returns the files that an earlier worker has kept. [`keep`](Self::keep) must follow.
    pub(crate) fn take_over(&self) -> HashMap<u64, Arc<OwnedFd>> {
        let mut found = HashMap::new();
        // There and back: a socket shows its first message only. Each is sent to the other before it is taken from the
        // one, so whenever this ends, no file is lost.
        for from in [0, 1] {
            let mut left = Vec::new();
            while let Some((inos, files)) = self.first(from) {
                let files: Vec<_> = inos.into_iter().zip(files.into_iter().map(Arc::new)).collect();
                let sent = self.send(1 - from, &borrowed(&files)).is_ok();
                for (ino, file) in &files {
                    found.entry(*ino).or_insert_with(|| Arc::clone(file));
                }
                self.discard_first(from);
                if !sent {
                    // No room for one more than there is. Without it, there is.
                    left.push(files);
                }
            }
            for files in left {
                let batch = borrowed(&files);
                let sent = self.send(1 - from, &batch).or_else(|_| self.send(from, &batch));
                if let Err(error) = sent {
                    tracing::warn!(%error, count = batch.len(), "files without a name are not kept");
                }
            }
        }
        found
    }

    /// Says which of the files that were taken over are in use.
    pub(crate) fn keep(&self, live: HashMap<u64, Arc<OwnedFd>>) {
        let mut state = self.state();
        // The last round of `take_over` was into the first one.
        *state = State { live, queued: usize::MAX, ..State::default() };
        self.clean(&mut state);
    }

    /// Sends what is alive to the other socket, and throws away what is in this one.
    fn clean(&self, state: &mut State) -> bool {
        let old = state.active;
        let live: Vec<_> = state.live.iter().map(|(ino, file)| (*ino, file.as_fd())).collect();
        let mut sent = 0;
        for batch in live.chunks(BATCH) {
            if self.send(1 - old, batch).is_err() {
                // No room for so many: what is in the old one stays there, and its copies must not fill the other.
                while self.discard_first(1 - old) {}
                return false;
            }
            sent += 1;
        }
        for _ in 0..state.queued {
            if !self.discard_first(old) {
                break;
            }
        }
        (state.active, state.queued, state.dead, state.dead_blocks) = (1 - old, sent, 0, 0);
        true
    }

    /// Looks at the first message of a socket.
    fn first(&self, number: usize) -> Option<(Vec<u64>, Vec<OwnedFd>)> {
        let mut bytes = [0; BATCH * 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let length = rustix::net::recvmsg(&self.sockets[number].receiver, buffers, &mut ancillary, flags).ok()?.bytes;
        let files = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let files: Vec<OwnedFd> = files.flatten().collect();
        let (inos, _) = bytes[..length].as_chunks::<8>();
        Some((inos.iter().map(|ino| u64::from_le_bytes(*ino)).collect(), files)).filter(|_| length > 0)
    }

    /// Throws the first message of a socket away. Without room for descriptors, they are closed at once.
    fn discard_first(&self, number: usize) -> bool {
        let received = rustix::net::recv(&self.sockets[number].receiver, &mut [0; 1][..], RecvFlags::DONTWAIT);
        received.is_ok_and(|(length, _)| length > 0)
    }

    fn send(&self, number: usize, batch: &[(u64, BorrowedFd<'_>)]) -> io::Result<()> {
        let bytes: Vec<u8> = batch.iter().flat_map(|(ino, _)| ino.to_le_bytes()).collect();
        let files: Vec<BorrowedFd<'_>> = batch.iter().map(|(_, file)| *file).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.sockets[number].sender, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn borrowed(files: &[(u64, Arc<OwnedFd>)]) -> Vec<(u64, BorrowedFd<'_>)> {
    files.iter().map(|(ino, file)| (*ino, file.as_fd())).collect()
}

/// The most descriptors that one message carries.
const BATCH: usize = 253;
/// So many units of 512 bytes are not left to files that nobody uses any more.
const MUCH: u64 = (16 << 20) / 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: u64) -> Arc<OwnedFd> {
        let file = rustix::fs::memfd_create("pins-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, number).unwrap();
        Arc::new(file)
    }

    /// What another process over the same sockets finds.
    fn seen(pins: &Pins) -> Vec<(u64, i64)> {
        let found = pins.take_over();
        let mut seen: Vec<_> =
            found.iter().map(|(ino, file)| (*ino, rustix::fs::fstat(&**file).unwrap().st_size)).collect();
        seen.sort_unstable();
        seen
    }

    #[test]
    fn files_in_use_are_found_again_and_others_are_closed() {
        let pins = Pins::new().unwrap();
        let gone = file(1);
        for number in 1..=1500 {
            assert!(pins.pin(number, &if number == 1 { Arc::clone(&gone) } else { file(number) }), "{number}");
        }
        assert!(Arc::strong_count(&gone) == 2);
        for number in 1..=1000 {
            pins.unpin(number);
        }
        assert!(pins.state().queued < 1100, "{:?}", pins.state().queued);
        let expected: Vec<_> = (1001..=1500).map(|number| (number, i64::try_from(number).unwrap())).collect();
        for _ in 0..3 {
            let mut all = seen(&pins);
            all.retain(|(number, _)| *number > 1000);
            assert_eq!(all, expected);
        }
        let found = pins.take_over();
        pins.keep(found.into_iter().filter(|(ino, _)| *ino == 1200).collect());
        assert_eq!(seen(&pins), [(1200, 1200)]);
    }

    #[test]
    fn what_does_not_fit_leaves_nothing_behind_and_loses_nothing() {
        let pins = Pins::new().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&pins.sockets[1].sender, 1).unwrap();
        let one = file(1);
        let all: HashMap<u64, _> = (1..=3000).map(|number| (number, Arc::clone(&one))).collect();
        for batch in all.iter().map(|(ino, file)| (*ino, file.as_fd())).collect::<Vec<_>>().chunks(BATCH) {
            pins.send(0, batch).unwrap();
        }
        pins.state().live = all;
        assert!(!pins.clean(&mut pins.state()), "the other socket is too small");
        assert!(pins.first(1).is_none(), "a part of the copy stayed");
        for _ in 0..3 {
            assert_eq!(pins.take_over().len(), 3000);
        }
        pins.keep(pins.take_over());
        assert_eq!(pins.take_over().len(), 3000);
    }

    #[test]
    fn a_file_without_users_does_not_stay() {
        let pins = Pins::new().unwrap();
        pins.pin(7, &file(7));
        pins.unpin(7);
        assert_eq!(seen(&pins), []);
        assert_eq!(pins.state().queued, 0);
    }
}
