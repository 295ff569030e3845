//! User namespaces that exist only for their maps: what an id-mapped mount shows its owners by.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::LinuxIdMapping;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use strata_sys::mount_attributes::mount_idmap;

use crate::spawn::{clone_process, map_line};

/// Maps the owners of a detached mount: an id on the disk that is a `containerID` shows as its `hostID`.
pub(crate) fn map_mount(
    mount: BorrowedFd<'_>,
    recursive: bool,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> io::Result<()> {
    mount_idmap(mount, recursive, namespace(uids, gids)?.as_fd())
}

/// Makes a user namespace with these maps. It lives as long as its descriptor and what it was used for.
fn namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let ends = (ours, theirs);
    let (pid, pidfd) = clone_process(NEW_USER, None, &ends, |(ours, theirs)| {
        // Our own copy of the writing end would keep us waiting for ever if the parent died.
        strata_sys::process::close_fd(theirs.as_fd());
        // Nothing is ever written: this ends with the parent's end.
        let _ = rustix::io::read(ours, &mut [0_u8; 1]);
        strata_sys::process::exit_now(0)
    })?;
    let made = (|| {
        for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
            let lines: String = maps.iter().map(map_line).collect();
            std::fs::write(format!("/proc/{pid}/{file}"), lines)?;
        }
        File::open(format!("/proc/{pid}/ns/user"))
    })();
    drop(ends);
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
    Ok(made?.into())
}

const NEW_USER: u64 = 0x1000_0000;
