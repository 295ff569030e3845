//! Keeps a container's hands off this very program (CVE-2019-5736).
//!
//! Until its exec, a container's first process is a copy of us, and an image can name `/proc/self/exe` as its program or as the
//! interpreter of a script: then it runs this file, and once that has ended, root of the container may write to it. So whatever
//! makes processes in containers runs from a mount of this file alone that is read-only and attached nowhere.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{
    CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fstat, fstatvfs, memfd_create,
    openat, readlinkat, stat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use strata_sys::mount_attributes::{MountAttributes, RDONLY, mount_setattr};
use strata_sys::process::{CStringList, execve_of};

/// Executes this program again from where a container cannot write to it, with the same arguments and environment. Returns
/// when that is so already.
///
/// # Errors
/// The errno of whatever stands against it.
pub fn protect_own_program() -> io::Result<()> {
    let own = openat(CWD, OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if fstatvfs(&own)?.f_flag.contains(StatVfsMountFlags::RDONLY) || is_sealed() {
        return Ok(());
    }
    let program = protected_program()?;
    let strings = |list: Vec<OsString>| -> io::Result<CStringList> {
        let list: Result<Vec<CString>, _> = list.into_iter().map(|entry| CString::new(entry.into_vec())).collect();
        Ok(CStringList::new(list?))
    };
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    Err(execve_of(program.as_fd(), &strings(std::env::args_os().collect())?, &strings(environment.collect())?))
}

/// Returns this program as a file to be executed from where a container cannot write to it: for whoever starts itself again
/// anyway.
///
/// # Errors
/// The errno of whatever stands against it.
pub fn protected_program() -> io::Result<OwnedFd> {
    // Without the right to mount: a copy in memory.
    read_only_mount().or_else(|_| sealed_copy())
}

fn read_only_mount() -> io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, OWN, clone).or_else(|_| {
        // Since we were executed we have got mounts of our own, and only these can be copied.
        let here = openat(CWD, readlinkat(CWD, OWN, Vec::new())?, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let (found, own) = (fstat(&here)?, stat(OWN)?);
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino) {
            return Err(Errno::STALE);
        }
        open_tree(&here, c"", clone | OpenTreeFlags::AT_EMPTY_PATH)
    })?;
    mount_setattr(mount.as_fd(), c"", false, &MountAttributes { set: RDONLY, ..MountAttributes::default() })?;
    Ok(mount)
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let memory = memfd_create(c"strata", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(memory);
    io::copy(&mut File::open(OWN)?, &mut copy)?;
    fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    // For writing it may not be open when it is executed.
    let copy = OwnedFd::from(copy);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A copy in memory that nobody can change has its seals to show.
fn is_sealed() -> bool {
    let own = openat(CWD, OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    own.is_ok_and(|own| rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

const OWN: &str = "/proc/self/exe";
