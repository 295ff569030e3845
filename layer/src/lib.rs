//! Facts about one layer: digests, tar, the mapped index, whiteouts.
//!
//! A layer is its tar; nothing is unpacked. This crate reads the tar once ([`ingest`]), keeps what it says in an
//! [`index`](mod@index), and stacks such indexes ([`merge`](mod@merge)). It touches no file but the ones it is handed.

#![forbid(unsafe_code)]

mod digest;
pub mod index;
pub mod ingest;
pub mod listing;
pub mod merge;
pub mod objects;
pub mod path;
mod table;
pub mod tar;
pub mod tar_writer;
pub mod whiteout;

pub use digest::{ChainId, DiffId, Digest, InvalidDigest};
pub use ingest::{IngestedLayer, LayerError, LayerIngest};
pub use merge::{MergeError, merge};
pub use table::{Memory, Scratch, ScratchError};
