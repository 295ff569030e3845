//! The process that stays with a container as long as that runs.
//!
//! It is this executable again, as the hidden verb `monitor`: one thread and one `poll`, no runtime. It starts the
//! container's first process, keeps what that writes, writes down how it ends, starts it again if it shall, and does
//! what commands ask of it through the socket in the container's folder. A foreground `run` is a command like any
//! other: if it is killed, the container goes on.
//!
//! ```text
//!   command                                        monitor
//!      | spawn, stdin = socket  -------------------->  |  setsid
//!      | record: starting, owner = monitor             |
//!      | Task + hold on the layers  ---------------->  |  fs process, first process; record: running
//!      | <------------------------------ Reply frame   |
//!      | <= frames: input, output, signals, end ====>  |  record: exited (or deleted)
//! ```
//!
//! If the command is gone before the task arrives, the monitor ends, and the record is that of a start that came to
//! nothing. If the monitor is killed, so is the container, by the kernel; the next command writes that down.

mod allowance;
mod client;
mod connection;
mod execution;
mod frame;
mod protocol;
mod requests;
mod server;
mod streams;

pub(crate) use client::ask;
pub use client::{AskError, Monitor, Session, SessionEvent};
pub use protocol::{Attach, Execution, Refusal, Update, UpdateConflict};
pub(crate) use protocol::{Request, Task};
pub use server::{MonitorError, watch};

/// The hidden verb of the executable that becomes a monitor.
pub const VERB: &str = "monitor";

/// The name of the socket in a container's folder.
const SOCKET: &str = "monitor.sock";
