//! Surviving the death of the server (`docs/design/survival.md`).

mod faults;
mod journal;
mod keep;
mod keeper;
mod kick;
mod known;
mod memory;
mod pinned;
mod pins;
mod watchdog;

pub(crate) use faults::{Point, expose, pass, step};
pub(crate) use journal::{
    Begun, Journal, RESENT, Ticket, attach, detach, effects_undone, finish, intend, outdates, past_intent, was_executed,
};
pub(crate) use keep::Keep;
pub use keeper::{Faults, Survived, WorkerError};
pub(crate) use keeper::{Keeper, Service};
pub(crate) use kick::refusal as kick_refusal;
pub(crate) use known::{Counter, Known};
pub(crate) use memory::{Header, Memory, RecordId};
pub use pinned::Pinned;
