//! cgroups by systemd: a container is a transient scope, which systemd makes, and hands over to us with all below it.
//!
//! What is asked of systemd is what runc asks, over a client of our own: the calls are few and their types fixed, and every
//! D-Bus library brings more code than that, most of them another runtime.
//!
//! A scope begins with a process. That is one of ours, which does nothing and goes once the container's first process is in.

mod bus;
mod properties;
mod unit;
mod wire;

pub use bus::{BusError, ENVIRONMENT};
pub(crate) use unit::Scope;
pub use unit::{Unit, is_reachable};
