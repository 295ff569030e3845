//! A streaming reader of tar archives: bytes are pushed in, entries come out. It does no input or output of its own.
//!
//! It reads v7, ustar, GNU (long names, old sparse files, base-256 numbers) and PAX archives (local and global headers,
//! sparse files of all three versions, extended attributes) and is strict: where readers are known to disagree about an
//! archive, it is refused, because such a difference is how contents are smuggled past a check. Memory is bounded by
//! [`Limits`] whatever the archive says. What is accepted and refused is listed in `docs/formats/layer.md`.

#[cfg(test)]
pub(crate) mod archive;
mod compose;
mod entry;
mod error;
mod header;
mod limits;
mod number;
mod parser;
mod pax;
mod sparse;

pub use entry::{Entry, EntryKind};
pub(crate) use error::Escaped;
pub use error::{Problem, TarError};
pub use limits::Limits;
pub use parser::{Event, Parser};

#[cfg(test)]
mod tests;

/// Everything in a tar is a multiple of this.
pub const BLOCK: usize = 512;
