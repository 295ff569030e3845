//! A registry of images: the OCI distribution API 1.1 over HTTP or HTTPS, from a folder.
//!
//! Complete as far as the specification goes: blobs with ranges, monolithic, streamed, chunked and resumed uploads,
//! mounts from other repositories, manifests by tag and digest, tags and catalog with pagination, referrers with their
//! filter, deletion; basic and bearer authentication against an htpasswd file.
//!
//! It serves two kinds of user. `strata registry serve` is a private registry for people. Tests use [`Server`] in their
//! own process, and make it misbehave on demand: see [`Fault`].
//!
//! It shares no code with the client in `strata_imagestore`, on purpose: what one side takes for the protocol, the other
//! has to understand without having read the same function.
//!
//! # What must stay true
//!
//! - A blob or manifest is visible only under the digest that was computed from its bytes.
//! - Nothing in a request becomes part of a path on disk before it has been parsed as a name, tag or digest.
//! - One thread serves one connection; the only state shared between them is in `Access` and `Faults`, each behind
//!   one lock that is never held while bytes are moved.
#![forbid(unsafe_code)]

mod access;
mod api;
mod blobs;
#[cfg(test)]
mod conformance;
mod fault;
mod http;
mod lists;
mod manifests;
mod name;
mod response;
mod server;
mod storage;
mod uploads;

pub use access::{Access, AccessError, hash_password};
pub use fault::{Fault, InvalidFault, Misbehaviour};
pub use server::{Exchange, Options, ServeError, Server, Tls};
