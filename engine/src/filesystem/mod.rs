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
//! If the command is gone before the reply arrives, the fs process undoes the mount and ends; a detached mount ends
//! with its last descriptor in any case.

mod channel;
mod process;
mod server;

pub use process::{FilesystemError, FilesystemProcess};
pub use server::{ServeError, serve};

use serde::{Deserialize, Serialize};
use strata_unionfs::MountSpec;

/// The hidden verb of the executable that becomes a filesystem process.
pub const VERB: &str = "fs";

/// What the user can do about a mount that failed for this reason, where that is known.
pub fn hint(reason: &str) -> Option<String> {
    let closed = reason.contains("/dev/fuse") && reason.contains("Permission denied");
    closed.then(|| "let everybody use FUSE, as udev does: 'chmod 0666 /dev/fuse' as root".to_owned())
}

/// What the fs process is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    spec: MountSpec,
    /// The folder to mount on; `None` for a detached mount whose descriptor comes back.
    directory: Option<std::path::PathBuf>,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Mounted { report: serde_json::Value },
    Failed { error: String },
}
