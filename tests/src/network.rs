//! A network of a test's own: addresses that are not the machine's loopback, and names that lead to them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::MountPropagationFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Runs `body` where this machine has the addresses of `hosts`, under their names, and no other network. So do the processes
/// that it starts. For root only.
///
/// # Errors
/// What `body` returns, and what keeps the namespaces from being made.
pub fn inside(hosts: &[(&str, Ipv4Addr)], body: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        // A thread of its own, as the runner's go on with other tests.
        let thread = scope.spawn(|| {
            enter(hosts).context("a network of the test's own")?;
            body()
        });
        thread.join().map_err(|_| anyhow!("the test panicked"))?
    })
}

fn enter(hosts: &[(&str, Ipv4Addr)]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    // What is mounted below stays here.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let flags = SocketFlags::CLOEXEC;
    // No protocol is that of routes and addresses.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let ask = |request: &[u8]| -> Result<()> {
        rustix::net::send(&socket, request, SendFlags::empty())?;
        let mut answer = [0; 256];
        let (count, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
        ensure!(count >= 20, "the kernel's answer has {count} bytes");
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(-error).into()),
        }
    };
    ask(&message(RTM_NEWLINK, &[[0; 4], LOOPBACK, UP, UP].concat()))?;
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for (name, address) in hosts {
        text.push_str(&format!("{address} {name}\n"));
    }
    let mut addresses: Vec<Ipv4Addr> = hosts.iter().map(|(_, address)| *address).collect();
    addresses.sort();
    addresses.dedup();
    for address in addresses {
        let attribute = |kind: u16| [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &address.octets()].concat();
        let family = [u8::try_from(AddressFamily::INET.as_raw())?, 32, 0, 0];
        ask(&message(RTM_NEWADDR, &[&family[..], &LOOPBACK, &attribute(IFA_LOCAL), &attribute(IFA_ADDRESS)].concat()))?;
    }
    let folder = tempfile::tempdir()?;
    let names = folder.path().join("hosts");
    fs::write(&names, text)?;
    // What is bound stays when its name goes.
    rustix::mount::mount_bind(&names, Path::new("/etc/hosts"))?;
    Ok(())
}

/// A request that is to be acknowledged.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    const REQUEST_ACK: u16 = 1 | 4;
    const CREATE: u16 = 0x400;
    let length = u32::try_from(16 + body.len()).expect("requests are short");
    let flags = if kind == RTM_NEWADDR { REQUEST_ACK | CREATE } else { REQUEST_ACK };
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body].concat()
}

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The index of the loopback interface in every network namespace.
const LOOPBACK: [u8; 4] = 1_u32.to_ne_bytes();
/// `IFF_UP`
const UP: [u8; 4] = 1_u32.to_ne_bytes();
