//! Why an archive is refused.

use std::fmt;

/// A refusal, and where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarError {
    /// How far the reader had come: the start of the header that is wrong, or the place in or behind the data.
    pub offset: u64,
    /// The name of the entry, if it was known.
    pub entry: Option<Vec<u8>>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(entry) => write!(f, "tar entry {} at offset {}: {}", Escaped(entry), self.offset, self.problem),
            None => write!(f, "tar at offset {}: {}", self.offset, self.problem),
        }
    }
}

impl std::error::Error for TarError {}

/// What is wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The checksum of a header is wrong: damaged, or no tar at all.
    #[error("not a tar header (wrong checksum)")]
    Checksum,
    /// The archive ends inside an entry.
    #[error("archive is truncated")]
    Truncated,
    /// Something follows the end of the archive.
    #[error("data after the end of the archive")]
    TrailingData,
    /// An entry type that has no meaning in a layer.
    #[error("unsupported entry type {:?}", char::from(*.0))]
    Type(u8),
    /// A field that should hold a number does not, or not one that fits.
    #[error("invalid number in field {0:?}")]
    Number(&'static str),
    /// A user or group id above 4294967294.
    #[error("{0} is out of range")]
    Owner(&'static str),
    /// A file longer than [`Limits::file_size`](super::Limits::file_size).
    #[error("file of {0} bytes is too large")]
    FileTooLarge(u64),
    /// A directory, link or device that claims to have data.
    #[error("entry of a type without data has {0} bytes of data")]
    UnexpectedData(u64),
    /// No name.
    #[error("entry has no name")]
    EmptyName,
    /// A name or link target with a NUL byte in it.
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    /// An extended header or long name longer than [`Limits::header_bytes`](super::Limits::header_bytes).
    #[error("extended header of {0} bytes is too large")]
    HeaderTooLarge(u64),
    /// Two extended headers of one kind for one entry, or a long name and a PAX name that differ.
    #[error("entry has contradicting extended headers")]
    Contradiction,
    /// An extended header that no entry follows.
    #[error("extended header without an entry")]
    NoEntry,
    /// A PAX record that is not of the form "length keyword=value".
    #[error("malformed PAX record")]
    Record,
    /// A PAX record whose value is not valid.
    #[error("invalid value of PAX record {0:?}")]
    Value(String),
    /// A global PAX header that says what only one entry can.
    #[error("PAX record {0:?} in a global header")]
    Global(String),
    /// A sparse file whose map contradicts itself, the file or the data.
    #[error("invalid sparse map: {0}")]
    Sparse(&'static str),
    /// A name or value of an extended attribute that no file system would take.
    #[error("invalid extended attribute {0:?}")]
    Xattr(String),
}

/// Shows bytes from an archive on one line, in quotes.
pub(crate) struct Escaped<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(LONGEST_SHOWN)];
        let rest = if shown.len() < self.0.len() { "..." } else { "" };
        write!(f, "{:?}{rest}", String::from_utf8_lossy(shown))
    }
}

/// Longer names are cut in messages.
const LONGEST_SHOWN: usize = 256;
