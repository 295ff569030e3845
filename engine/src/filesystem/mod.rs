//! The process that serves a filesystem.
//!
//! A mount outlives the command that asked for it, so the server is a process of its own: this executable again, as
//! the hidden verb `fs`, in a session of its own, with nothing of the caller but a socket as its standard input.
//!
//! ```text
//!   command                                       fs process
//!      | spawn, stdin = socket  ------------------->  |  setsid
//!      | Request { spec, target } + held locks ---->  |  mount
//!      | <----- Reply { report | error } + mount fd   |  stdin = /dev/null, serve until unmounted
//! ```
//!
//! Whoever will mount something starts the process before knowing what, so that it is ready by then; one that is not
//! needed finds the end of the socket and ends.
//!
//! The fs process is the keeper of the mount and has one thread. What serves is its child, forked and not executed; when
//! that dies, the fs process forks the next, and nobody who uses the mount notices. If the fs process itself dies, so does
//! its child, and the mount with them.
//!
//! A plain user's writable mount takes one step more: the process enters the user's own namespace, where his layers
//! belong to him, says so, and gets the connection of a mount that fusermount3 makes meanwhile outside.
//!
//! If the command is gone before the reply arrives, the fs process undoes the mount and ends; a detached mount ends
//! with its last descriptor in any case.

mod process;
mod server;

pub(crate) use process::SpareProcess;
pub use process::{FilesystemError, FilesystemProcess, expect_mount, expect_no_mount};
pub use server::{ServeError, serve};

use serde::{Deserialize, Serialize};
use strata_unionfs::MountSpec;

/// The hidden verb of the executable that becomes a filesystem process.
pub const VERB: &str = "fs";

/// What the user can do about a mount that failed for this reason, where that is known.
pub(crate) fn hint(reason: &str) -> Option<String> {
    let closed = reason.contains("/dev/fuse") && reason.contains("Permission denied");
    closed.then(|| "let everybody use FUSE, as udev does: 'chmod 0666 /dev/fuse' as root".to_owned())
}

/// What the fs process is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    spec: MountSpec,
    /// The folder to mount on; `None` for a detached mount whose descriptor comes back.
    directory: Option<std::path::PathBuf>,
    /// Whether the layers are to be used inside of the user's own namespace, where he owns what his containers made,
    /// while the mount is seen outside.
    inside: bool,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The process is inside its own namespaces and needs the connection of a mount made outside. Only now: a mount
    /// namespace made later would hold a copy of that mount, and the mount would never end.
    Inside,
    Mounted {
        report: serde_json::Value,
    },
    Failed {
        error: String,
    },
}
