//! Notes to the kernel that nobody asked for.

use std::io;
use std::os::fd::AsFd;

use zerocopy::IntoBytes as _;

use super::wire::{self, InvalInodeOut, OutHeader, StoreOut};

/// Makes the kernel ask for the attributes of a node again.
pub(super) fn outdate_attributes(device: impl AsFd, node: u64) -> io::Result<()> {
    // An offset before the start leaves the data alone.
    send(device, wire::NOTIFY_INVAL_INODE, InvalInodeOut { node, offset: -1, length: 0 }.as_bytes())
}

/// Makes the kernel hand out again, before anything new, all requests that have been read and not answered.
pub(super) fn resend(device: impl AsFd) -> io::Result<()> {
    send(device, wire::NOTIFY_RESEND, &[])
}

/// Puts the content of a file, from its start, into the kernel's cache.
pub(super) fn store(device: impl AsFd, node: u64, content: &[u8]) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let body = StoreOut { node, offset: 0, size, padding: 0 };
    send_two(device, wire::NOTIFY_STORE, body.as_bytes(), content)
}

fn send(device: impl AsFd, code: i32, body: &[u8]) -> io::Result<()> {
    send_two(device, code, body, &[])
}

fn send_two(device: impl AsFd, code: i32, body: &[u8], data: &[u8]) -> io::Result<()> {
    let length = size_of::<OutHeader>() + body.len() + data.len();
    let header = OutHeader { len: u32::try_from(length).unwrap_or(u32::MAX), error: code, unique: 0 };
    let parts = [io::IoSlice::new(header.as_bytes()), io::IoSlice::new(body), io::IoSlice::new(data)];
    rustix::io::writev(device, &parts)?;
    Ok(())
}
