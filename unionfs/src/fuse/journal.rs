//! The seam for whoever keeps a record of requests, so that a successor of this process can go on where it stopped.

use std::fmt::Debug;

use super::reply::Reply;
use super::request::Request;

/// A record of what is being executed.
///
/// Requests may be executed by one thread after another: what takes long ends in a thread other than the one where it
/// began.
pub(crate) trait Journal: Debug + Send + Sync {
    /// Is called before each request, whatever it asks for, in the thread that read it.
    fn before(&self, request: &Request<'_>) -> Verdict;

    /// Is called when a request with a ticket has been executed, before its answer is sent.
    fn after(&self, ticket: Ticket, reply: &Reply);
}

/// What to do with a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Execute it, and say so afterwards if there is a ticket.
    Execute(Option<Ticket>),
    /// It has been executed before; this is the answer.
    Answer(Reply),
}

/// Names an entry of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(pub(crate) u64);
