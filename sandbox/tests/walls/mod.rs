//! The walls around a process: filters that ask, landlock, modes.

mod hardened;
mod landlock;
mod notify;

/// A test, and what it needs beside root.
pub(crate) type Case = (&'static str, fn(), Option<String>);

pub(crate) fn cases() -> Vec<Case> {
    [notify::cases(), landlock::cases(), hardened::cases()].concat()
}
