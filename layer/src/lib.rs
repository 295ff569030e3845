//! Facts about one layer: digests, tar, the mapped index, whiteouts.
//!
//! A layer is its tar; nothing is unpacked. What the tar says is kept in an [`index`](mod@index). This crate touches no
//! file but the ones it is handed.

#![forbid(unsafe_code)]

mod digest;
pub mod index;
pub mod objects;
pub mod path;
pub mod tar_writer;
pub mod whiteout;

pub use digest::{ChainId, DiffId, Digest, InvalidDigest};
