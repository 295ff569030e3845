//! Notes to the kernel that nobody asked for.

use std::io;
use std::os::fd::AsFd;

use zerocopy::IntoBytes as _;

use super::wire::{self, InvalInodeOut, OutHeader};

/// Makes the kernel ask for the attributes of a node again.
pub(super) fn outdate_attributes(device: impl AsFd, node: u64) -> io::Result<()> {
    // An offset before the start leaves the data alone.
    send(device, wire::NOTIFY_INVAL_INODE, InvalInodeOut { node, offset: -1, length: 0 }.as_bytes())
}

/// Makes the kernel hand out again, before anything new, all requests that have been read and not answered.
pub(super) fn resend(device: impl AsFd) -> io::Result<()> {
    send(device, wire::NOTIFY_RESEND, &[])
}

fn send(device: impl AsFd, code: i32, body: &[u8]) -> io::Result<()> {
    let length = size_of::<OutHeader>() + body.len();
    let header = OutHeader { len: u32::try_from(length).unwrap_or(u32::MAX), error: code, unique: 0 };
    let parts = [io::IoSlice::new(header.as_bytes()), io::IoSlice::new(body)];
    rustix::io::writev(device, &parts)?;
    Ok(())
}
