//! Links and addresses of one network namespace, by rtnetlink(7).
//!
//! The attributes of an address are passed on as they came, so that nothing is lost that the kernel knows of it and we do not.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};

/// A socket, which stays in the namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A link as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) is_up: bool,
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// `struct ifaddrmsg` up to the index.
    head: [u8; 4],
    /// Kind and value of each attribute.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        // Whoever is not the kernel is not heard.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Finds a link; `ENODEV` when there is none of that name.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Link> {
        let mut request = Request::new(libc::RTM_GETLINK, 0, &link_head(0, 0, 0));
        request.attribute(libc::IFLA_IFNAME, &terminated(name));
        let mut found = None;
        self.call(request, |kind, body| {
            if kind == libc::RTM_NEWLINK {
                let flags = number(body, 8)?;
                found = Some(Link { index: number(body, 4)?, is_up: flags & UP != 0 });
            }
            Ok(())
        })?;
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Switches a link on or off.
    pub(super) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let request = Request::new(libc::RTM_NEWLINK, 0, &link_head(index, if up { UP } else { 0 }, UP));
        self.call(request, |_, _| Ok(()))
    }

    /// Moves a link to another namespace and gives it its name there, in one step. It is off afterwards.
    pub(super) fn move_to(&mut self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_head(index, 0, UP));
        request.attribute(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        request.attribute(libc::IFLA_IFNAME, &terminated(name));
        self.call(request, |_, _| Ok(()))
    }

    /// Lists the addresses of a link that were given to it and are valid everywhere: those the kernel makes by itself it makes
    /// again, and those that somebody was lent are not ours to keep.
    pub(super) fn lasting_addresses(&mut self, index: u32) -> io::Result<Vec<Address>> {
        let dump = flag(libc::NLM_F_DUMP);
        let request = Request::new(libc::RTM_GETADDR, dump, &address_head([0; 4], index));
        let mut found = Vec::new();
        self.call(request, |kind, body| {
            if kind == libc::RTM_NEWADDR && number(body, 4)? == index {
                let head: [u8; 4] = body[..4].try_into().map_err(|_| malformed())?;
                let attributes = attributes(&body[8..])?;
                let flags = attributes.iter().find(|(kind, _)| *kind == libc::IFA_FLAGS);
                let flags = flags.map_or(Ok(u32::from(head[2])), |(_, value)| number(value, 0))?;
                if flags & libc::IFA_F_PERMANENT != 0 && head[3] == libc::RT_SCOPE_UNIVERSE {
                    found.push(Address { head, attributes });
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Gives a link, now called `name`, an address that another one, or it under the name `old`, had. Has it already is fine.
    pub(super) fn add_address(&mut self, index: u32, address: &Address, old: &str, name: &str) -> io::Result<()> {
        let flags = flag(libc::NLM_F_CREATE) | flag(libc::NLM_F_EXCL);
        let mut request = Request::new(libc::RTM_NEWADDR, flags, &address_head(address.head, index));
        for (kind, value) in &address.attributes {
            match *kind {
                // The old interface's name, or what begins with it.
                libc::IFA_LABEL => request.attribute(libc::IFA_LABEL, &terminated(&relabel(value, old, name))),
                kind => request.attribute(kind, value),
            }
        }
        match self.call(request, |_, _| Ok(())) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Asks, hands every message of the answer to `take`, and returns once the kernel is done.
    fn call(&mut self, request: Request, mut take: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
        self.sequence += 1;
        let message = request.finish(self.sequence);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (_, length) = match recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            let mut rest = buffer.get(..length).ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
            while !rest.is_empty() {
                let size = usize::try_from(number(rest, 0)?).map_err(|_| malformed())?;
                let message = rest.get(..size).filter(|message| message.len() >= HEAD).ok_or_else(malformed)?;
                rest = rest.get(size.next_multiple_of(ALIGN)..).unwrap_or_default();
                if number(message, 8)? != self.sequence {
                    continue; // the end of an answer to what failed before
                }
                let body = &message[HEAD..];
                match i32::from(short(message, 4)?) {
                    libc::NLMSG_ERROR => match number(body, 0)?.cast_signed() {
                        0 => return Ok(()),
                        errno => return Err(io::Error::from_raw_os_error(-errno)),
                    },
                    libc::NLMSG_DONE => return Ok(()),
                    _ => take(short(message, 4)?, body)?,
                }
            }
        }
    }
}

/// A message to the kernel while it is written.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; HEAD];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        // A list has an end, and needs no acknowledgement.
        let wait = if flags & flag(libc::NLM_F_DUMP) == flag(libc::NLM_F_DUMP) { 0 } else { flag(libc::NLM_F_ACK) };
        bytes[6..8].copy_from_slice(&(flag(libc::NLM_F_REQUEST) | wait | flags).to_ne_bytes());
        bytes.extend(head);
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length =
            u16::try_from(value.len() + 4).expect("names and addresses are short, and the kernel's own fit again");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a request has a few hundred bytes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// `struct ifinfomsg`
fn link_head(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..].copy_from_slice(&change.to_ne_bytes());
    head
}

/// `struct ifaddrmsg`
fn address_head(start: [u8; 4], index: u32) -> [u8; 8] {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&start);
    head[4..].copy_from_slice(&index.to_ne_bytes());
    head
}

fn attributes(mut bytes: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(short(bytes, 0)?);
        let value = bytes.get(4..length).ok_or_else(malformed)?;
        found.push((short(bytes, 2)?, value.to_vec()));
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    Ok(found)
}

/// `eth0:1` of `eth0` as that of `net0`.
fn relabel(label: &[u8], old: &str, name: &str) -> String {
    let label = String::from_utf8_lossy(label);
    match label.trim_end_matches('\0').strip_prefix(old) {
        Some(rest) if rest.starts_with(':') && name.len() + rest.len() <= super::LONGEST_NAME => {
            format!("{name}{rest}")
        }
        _ => name.to_owned(),
    }
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn number(bytes: &[u8], at: usize) -> io::Result<u32> {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).ok_or_else(malformed)?;
    Ok(u32::from_ne_bytes(*found))
}

fn short(bytes: &[u8], at: usize) -> io::Result<u16> {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).ok_or_else(malformed)?;
    Ok(u16::from_ne_bytes(*found))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a malformed netlink message")
}

/// The constants of libc are wider than the field.
fn flag(flag: libc::c_int) -> u16 {
    u16::try_from(flag).expect("the field has 16 bits")
}

/// `struct nlmsghdr`
const HEAD: usize = 16;
const ALIGN: usize = 4;
/// As the kernel's largest answer.
const BUFFER: usize = 32 << 10;
/// `IFF_UP`, as wide as the field.
const UP: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernel_s_form() {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &link_head(7, 0, UP));
        request.attribute(libc::IFLA_IFNAME, b"eth0\0");
        let bytes = request.finish(3);
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!((number(&bytes, 0).unwrap(), short(&bytes, 4).unwrap(), short(&bytes, 6).unwrap()), (44, 16, 5));
        assert_eq!((number(&bytes, 8).unwrap(), number(&bytes, 20).unwrap()), (3, 7));
        assert_eq!(attributes(&bytes[32..]).unwrap(), [(libc::IFLA_IFNAME, b"eth0\0".to_vec())]);
    }

    #[test]
    fn malformed_attributes_are_an_error() {
        for bytes in [&[1_u8, 0][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 0]] {
            assert!(attributes(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn labels_follow_the_name() {
        assert_eq!(relabel(b"eth0\0", "eth0", "net0"), "net0");
        assert_eq!(relabel(b"eth0:web\0", "eth0", "net0"), "net0:web");
        assert_eq!(relabel(b"eth01\0", "eth0", "net0"), "net0");
        assert_eq!(relabel(b"eth0:abcdefghij\0", "eth0", "longername"), "longername");
    }
}
