//! Handing the listener of a filter to the agent that answers for it.
//!
//! As the OCI runtime specification has it: one message over a stream socket, the state of the container and its process
//! as JSON, with the descriptor as ancillary data.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, send, sendmsg, socket_with,
};
use serde_json::json;

use crate::{Identity, Listener, SpawnError};

/// Where the listener of a filter goes.
#[derive(Clone, Debug)]
pub(crate) struct Destination<'a> {
    spec: &'a Spec,
    listener: Listener<'a>,
    identity: Identity<'a>,
    /// The first process of a container that exists already.
    init: Option<u32>,
}

impl<'a> Destination<'a> {
    /// Checks that there is somebody to ask.
    pub(crate) fn new(
        spec: &'a Spec,
        listener: Listener<'a>,
        identity: Identity<'a>,
        init: Option<u32>,
    ) -> Result<Self, SpawnError> {
        let destination = Self { spec, listener, identity, init };
        if matches!(listener, Listener::Agent) && destination.path().is_none() {
            return Err(SpawnError::Invalid("SCMP_ACT_NOTIFY without linux.seccomp.listenerPath".into()));
        }
        Ok(destination)
    }

    fn path(&self) -> Option<&'a Path> {
        let seccomp = self.spec.linux().as_ref()?.seccomp().as_ref()?;
        seccomp.listener_path().as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    /// Hands the listener of process `pid` over.
    pub(crate) fn deliver(&self, listener: OwnedFd, pid: u32) -> Result<(), SpawnError> {
        if let Listener::Caller(function) = self.listener {
            function(listener, pid);
            return Ok(());
        }
        let path = self.path().unwrap_or(Path::new(""));
        send_to_agent(path, &self.state(pid), listener.as_fd())
            .map_err(|source| SpawnError::SeccompAgent { path: PathBuf::from(path), source })
    }

    /// The specification's container process state.
    fn state(&self, pid: u32) -> String {
        let seccomp = self.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let metadata = seccomp.and_then(|seccomp| seccomp.listener_metadata().as_deref()).unwrap_or_default();
        let version = self.spec.version();
        json!({
            "ociVersion": version,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": metadata,
            "state": {
                "ociVersion": version,
                "id": self.identity.id,
                "status": if self.init.is_some() { "running" } else { "creating" },
                "pid": self.init.unwrap_or(pid),
                "bundle": self.identity.bundle,
                "annotations": self.spec.annotations(),
            },
        })
        .to_string()
    }
}

fn send_to_agent(path: &Path, state: &str, listener: BorrowedFd<'_>) -> io::Result<()> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // An agent that does not accept must not keep the start for ever.
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [listener];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let mut rest = state.as_bytes();
    let sent = sendmsg(&socket, &[IoSlice::new(rest)], &mut ancillary, SendFlags::NOSIGNAL)?;
    rest = rest.get(sent..).unwrap_or_default();
    while !rest.is_empty() {
        let sent = send(&socket, rest, SendFlags::NOSIGNAL)?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(10);
