//! Surviving the death of the server (`docs/design/survival.md`).

mod faults;
mod journal;
mod keep;
mod keeper;
mod known;
mod memory;
mod pinned;
mod pins;

pub(crate) use faults::{Point, expose, pass, step};
pub(crate) use journal::{Begun, Journal, attach, detach, effects_undone, finish, intend, past_intent, was_executed};
pub(crate) use keep::Keep;
pub use keeper::{Faults, Survived, WorkerError};
pub(crate) use keeper::{Keeper, Service};
pub(crate) use known::{Counter, Known};
pub(crate) use memory::{Header, RecordId};
pub use pinned::Pinned;
