//! Agreeing with the kernel on the protocol.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::wire::{self, InHeader, InitIn, InitOut, OutHeader, init, opcode};
use crate::spec::{Options, Passthrough, Transport};

/// What we would like to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Name backing files to the kernel.
    pub(crate) passthrough: bool,
    /// Requests in the queues of an io_uring. If that is agreed on there is no way back.
    pub(crate) ring: bool,
}

impl Wishes {
    /// Returns what a mount with these options is to have.
    pub(crate) fn of(options: &Options, transport: Transport) -> Wishes {
        Wishes { passthrough: options.passthrough == Passthrough::Auto, ring: transport == Transport::Ring }
    }
}

/// What was agreed on. It holds for as long as the connection, whoever serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agreed {
    /// The kernel's minor version.
    pub(crate) minor: u32,
    /// What both sides can do.
    pub(crate) flags: u64,
    /// Whether file data may bypass us, or why not if it was wanted.
    pub(crate) passthrough: Result<bool, String>,
}

impl Agreed {
    /// Returns whether requests come in the queues of an io_uring.
    pub(crate) fn has_ring(&self) -> bool {
        self.flags & init::OVER_IO_URING != 0
    }

    /// Returns whether the kernel hands out again what a server has read and not answered.
    pub(crate) fn can_resend(&self) -> bool {
        self.flags & init::HAS_RESEND != 0
    }
}

/// Answers the first request of a new connection.
pub(crate) fn shake_hands(device: impl AsFd, wishes: Wishes) -> io::Result<Agreed> {
    let mut message = vec![0; FIRST_READ];
    loop {
        let length = match rustix::io::read(&device, &mut message) {
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let (header, offer) = read_offer(&message[..length])?;
        let (answer, agreed) = respond(&offer, wishes);
        let length = size_of::<OutHeader>() + size_of::<InitOut>();
        let out = OutHeader { len: u32::try_from(length).unwrap_or(u32::MAX), error: 0, unique: header.unique };
        rustix::io::writev(&device, &[io::IoSlice::new(out.as_bytes()), io::IoSlice::new(answer.as_bytes())])?;
        if let Some(agreed) = agreed {
            return Ok(Agreed { passthrough: passthrough(&device, wishes), ..agreed });
        }
    }
}

/// Finds out whether we may name backing files: what the handshake says is only what the kernel knows.
pub(crate) fn passthrough(device: impl AsFd, wishes: Wishes) -> Result<bool, String> {
    let attempt = || -> io::Result<()> {
        let probe = rustix::fs::memfd_create("strata-probe", MemfdFlags::CLOEXEC)?;
        let number = strata_sys::fuse::open_backing(device.as_fd(), probe.as_fd())?;
        strata_sys::fuse::close_backing(device.as_fd(), number)
    };
    if wishes.passthrough { attempt().map(|()| true).map_err(|error| error.to_string()) } else { Ok(false) }
}

fn read_offer(message: &[u8]) -> io::Result<(InHeader, InitIn)> {
    let refused = || io::Error::from_raw_os_error(libc::EPROTO);
    let (header, body) = InHeader::read_from_prefix(message).map_err(|_| refused())?;
    if header.opcode != opcode::INIT || body.len() < OLD_INIT_IN {
        return Err(refused());
    }
    // Older kernels send less.
    let mut offer = InitIn::default();
    let length = body.len().min(size_of::<InitIn>());
    offer.as_mut_bytes()[..length].copy_from_slice(&body[..length]);
    if offer.major < wire::MAJOR || (offer.major == wire::MAJOR && offer.minor < OLDEST_MINOR) {
        return Err(refused());
    }
    Ok((header, offer))
}

/// Returns the answer, and what is agreed on unless the kernel has to come down to our version and ask again.
fn respond(offer: &InitIn, wishes: Wishes) -> (InitOut, Option<Agreed>) {
    let mut out = InitOut { major: wire::MAJOR, minor: wire::MINOR, ..InitOut::default() };
    if offer.major > wire::MAJOR {
        return (out, None);
    }
    let mut offered = u64::from(offer.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(offer.flags2) << 32;
    }
    let mut wanted = WANTED;
    if wishes.passthrough {
        wanted |= init::PASSTHROUGH;
    }
    if wishes.ring {
        wanted |= init::OVER_IO_URING;
    }
    let flags = offered & wanted;
    let [low, high] = [flags & u64::from(u32::MAX), flags >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    out.minor = offer.minor.min(wire::MINOR);
    out.max_readahead = offer.max_readahead.max(MAX_WRITE);
    (out.flags, out.flags2) = (low, high);
    out.max_background = 64;
    out.congestion_threshold = 48;
    out.max_write = MAX_WRITE;
    out.max_pages = MAX_PAGES;
    out.time_granularity = 1;
    // The least that allows passthrough, so that a container may still stack an overlay on us.
    out.max_stack_depth = u32::from(flags & init::PASSTHROUGH != 0);
    (out, Some(Agreed { minor: out.minor, flags, passthrough: Ok(false) }))
}

/// Largest read and write.
pub(crate) const MAX_WRITE: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;
/// The kernel wants at least this much room for the first request.
const FIRST_READ: usize = 64 << 10;
/// Size of the kernel's offer before the further flags came.
const OLD_INIT_IN: usize = 16;
/// Version 7.33 (Linux 5.11) brought the last thing that changed the layout of what we read.
const OLDEST_MINOR: u32 = 33;

/// What we ask of the kernel, where it can. What an older one lacks only costs speed.
const WANTED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::EXPORT_SUPPORT
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::IOCTL_DIR
    | init::DO_READDIRPLUS
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::ABORT_ERROR
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::EXPLICIT_INVAL_DATA
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::HAS_RESEND;

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(major: u32, minor: u32, flags: u64) -> Vec<u8> {
        let header = InHeader { opcode: opcode::INIT, unique: 2, ..InHeader::default() };
        let [low, high] = [flags & 0xffff_ffff, flags >> 32].map(|half| u32::try_from(half).unwrap());
        let init = InitIn { major, minor, max_readahead: 4096, flags: low, flags2: high, ..InitIn::default() };
        [header.as_bytes(), init.as_bytes()].concat()
    }

    fn answer(message: &[u8], passthrough: bool) -> (InitOut, Option<Agreed>) {
        respond(&read_offer(message).unwrap().1, Wishes { passthrough, ring: false })
    }

    #[test]
    fn only_what_both_sides_can_is_agreed_on() {
        let (out, agreed) = answer(&offer(7, 45, u64::MAX), true);
        assert_eq!(agreed.unwrap().flags, WANTED | init::PASSTHROUGH);
        assert_eq!((out.minor, out.max_stack_depth, out.max_write), (45, 1, 1 << 20));
        let (_, agreed) = answer(&offer(7, 99, init::POSIX_ACL | init::INIT_EXT | (1 << 62)), true);
        assert_eq!(
            agreed,
            Some(Agreed { minor: wire::MINOR, flags: init::POSIX_ACL | init::INIT_EXT, passthrough: Ok(false) })
        );
        // Without the flag that says so there are no further flags.
        let (_, agreed) = answer(&offer(7, 36, init::PASSTHROUGH | init::DONT_MASK), true);
        assert_eq!(agreed, Some(Agreed { minor: 36, flags: init::DONT_MASK, passthrough: Ok(false) }));
    }

    #[test]
    fn a_newer_kernel_is_asked_to_come_down() {
        let (out, agreed) = answer(&offer(8, 0, 0), false);
        assert_eq!((out.major, out.minor, agreed), (7, wire::MINOR, None));
    }

    #[test]
    fn what_is_no_offer_is_refused() {
        assert!(read_offer(&[]).is_err());
        assert!(read_offer(&offer(7, 45, 0)[..50]).is_err());
        assert!(read_offer(&offer(7, 8, 0)).is_err());
        assert!(read_offer(&offer(6, 99, 0)).is_err());
        assert!(read_offer(&offer(7, 45, 0)[..56]).is_ok());
    }
}
