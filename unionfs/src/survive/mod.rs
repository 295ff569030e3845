//! Surviving the death of the server (`docs/design/survival.md`).

mod journal;
mod memory;
mod pins;

#[expect(unused_imports, reason = "wired in step by step")]
pub(crate) use journal::{
    Begun, Journal, Ticket, attach, detach, effects_undone, finish, intend, past_intent, was_executed,
};
#[expect(unused_imports, reason = "wired in step by step")]
pub(crate) use memory::{Header, Memory, RecordId};
#[expect(unused_imports, reason = "wired in step by step")]
pub(crate) use pins::Pins;
