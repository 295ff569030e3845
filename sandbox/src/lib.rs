//! An OCI runtime as a library: a spec and a root filesystem become a confined process.
//!
//! [`spawn`] takes a [`Launch`] and returns a [`Running`]. Everything is worked out in the parent before the child
//! exists; the child is made by one `clone3` and walks through that plan with nothing but system calls; failures come
//! back as steps and become [`SpawnError`]s. Waiting is by pidfd, never by signal.
//!
//! The crate knows a root filesystem and a spec. It does not know images, and keeps no state on disk.

#![deny(unsafe_code)]

pub mod audit;
mod builder;
pub mod capabilities;
pub mod cgroup;
mod child;
pub mod console;
mod create;
mod describe;
mod error;
mod exec;
mod hook_state;
mod landlock;
mod launch;
mod network_devices;
mod notify;
mod plan;
pub mod policy;
pub mod probe;
mod rooted;
mod running;
pub mod runtime;
pub mod seccomp;
mod spawn;
pub mod spec_default;
pub mod user;
pub mod userns;
pub mod view;

pub use builder::{Access, Policy, Sandbox, Sandboxed};
pub use create::{AtGate, Creation, Stages, StartError, create, probe_gate, start};
pub use error::{HookError, HookFault, SpawnError};
pub use exec::{Exec, exec};
pub use hook_state::HookState;
pub use launch::{Identity, Inherited, Landlock, Launch, Listener, Orphan, Pipes, Root, Seccomp, Stdio, WindowSize};
pub use running::{ExitStatus, Running};
pub use spawn::spawn;
