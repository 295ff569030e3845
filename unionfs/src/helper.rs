//! Mounting by `fusermount3`, which may mount for a plain user where everybody sees it.
//!
//! The helper sends the descriptor of the connection back through a socket whose number it finds in its environment.
//! It must be called before the process enters a user namespace: there, its set-user-id bit means nothing.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::spec::Options;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Mounts on `directory` and returns the connection, on which nobody serves yet.
pub fn mount_by_helper(directory: &Path, options: &Options) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(option_list(options)).arg("--").arg(directory);
    command.env("_FUSE_COMMFD", "0").stdin(Stdio::from(OwnedFd::from(theirs)));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn()?;
    // Only the helper holds the other end from here on: if it fails, the stream ends.
    drop(command);
    let received = receive(&ours);
    let output = child.wait_with_output()?;
    match received? {
        Some(connection) if output.status.success() => Ok(connection),
        _ => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn option_list(options: &Options) -> String {
    // A comma would begin another option, and a backslash is how one is written.
    let escape = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let mut list = format!(
        "fsname={},subtype={},default_permissions,{}",
        escape(&options.source),
        escape(&options.subtype),
        if options.read_only { "ro" } else { "rw" },
    );
    for (set, name) in [(options.allow_other, "allow_other"), (options.noexec, "noexec"), (options.noatime, "noatime")]
    {
        if set {
            list.push(',');
            list.push_str(name);
        }
    }
    list
}

fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    loop {
        let buffer = &mut [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket.as_fd(), buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut received) => received.next(),
        _ => None,
    });
    Ok(descriptors.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_smuggle_options_in() {
        let options = Options { source: "a,suid\\".to_owned(), read_only: true, ..Options::default() };
        assert_eq!(option_list(&options), "fsname=a\\,suid\\\\,subtype=strata,default_permissions,ro");
    }
}
