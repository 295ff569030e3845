//! System call filters: profiles, their compiler, and Docker's default.
//!
//! A [`Profile`] is a list of rules in order. For one architecture and one system call the first rule that matches
//! decides: rules with argument conditions before those without. What no rule names gets the
//! default action, except that calls newer than every call the profile names get `ENOSYS` where the default is an
//! errno: a libc that tries something new then falls back instead of failing.

mod architecture;
mod cache;
mod compile;
mod decide;
mod docker;
mod json;
mod oci;
mod precompiled;
mod profile;

pub use architecture::Architecture;
pub(crate) use architecture::names;
pub use compile::Program;
pub(crate) use compile::kernel_version;
pub use decide::Call;
pub use profile::{Action, Comparison, Condition, Profile, Rule, flags};

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is no JSON, or not of the right form.
    #[error("decoding seccomp profile failed: {0}")]
    Json(#[from] serde_json::Error),
    /// An action with a name that does not exist.
    #[error("unknown action {0:?}")]
    Action(String),
    /// An operator with a name that does not exist.
    #[error("unknown operator {0:?}")]
    Operator(String),
    /// An architecture with a name that does not exist.
    #[error("unknown architecture {0:?}")]
    Architecture(String),
    /// A flag with a name that does not exist.
    #[error("unknown flag {0:?}")]
    Flag(String),
    /// A system call has six arguments.
    #[error("argument index {0} is above 5")]
    ArgumentIndex(usize),
    /// `architectures` and `archMap` exclude each other, and so do `name` and `names`.
    #[error("use either {0} or {1}")]
    Both(&'static str, &'static str),
    /// A kernel version that is none.
    #[error("invalid kernel version {0:?}")]
    KernelVersion(String),
    /// The native architecture has no table here.
    #[error("no system call table for this architecture")]
    NoTable,
    /// The descriptor of a listener is sent by that call, after the filter is loaded.
    #[error("SCMP_ACT_NOTIFY needs sendmsg to be allowed without conditions: the listener is handed out by it")]
    NotifyNeedsSendmsg,
    /// More than the kernel takes.
    #[error("the filter has {0} instructions, the kernel takes 4096")]
    TooLong(usize),
}
