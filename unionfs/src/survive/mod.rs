//! Surviving the death of the server (`docs/design/survival.md`).

mod faults;
mod journal;
mod keep;
mod known;
mod memory;
mod pins;

pub(crate) use faults::{Point, expose, pass, step};
pub(crate) use journal::{
    Begun, Journal, Ticket, attach, detach, effects_undone, finish, intend, past_intent, was_executed,
};
pub(crate) use keep::Keep;
pub(crate) use known::{Counter, Known, KnownNode};
pub(crate) use memory::{Header, Memory, RecordId};
