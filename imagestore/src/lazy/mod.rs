//! Layers that are used before their data is here.
//!
//! A layer whose table of contents is known gets its index at once, and its bytes chunk by chunk: when somebody reads
//! them, and otherwise one after the other. `docs/design/lazy.md` says why it is as it is, `docs/formats/lazy.md` what
//! lies where.
//!
//! What must stay true:
//!
//! - A byte is served, or counts as being there, only when it was compared with a digest that the image's manifest leads
//!   to.
//! - A layer becomes an ordinary one only when its whole tar has its diff_id.
//! - One process fetches for a store. Whoever reads asks it, and waits no longer than its deadline.

pub(crate) mod artifact;
pub(crate) mod chunked;
mod fetcher;
mod folder;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod map;
mod reader;
pub(crate) mod stargz;

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use strata_layer::DiffId;
use strata_layer::ingest::LayerError;

use crate::store::Store;

pub(crate) use fetcher::layer::NEXT_INDEX;
pub use fetcher::{FetchError, Fetcher};
pub use folder::LazyProgress;
pub(crate) use folder::{FolderAccess, LAZY, LazyFolder, Source, is_lazy, is_refused};
pub use map::MapError;
pub use reader::{LazyLayer, StartFetcher};

pub(crate) use map::{Chunk, ChunkMap, Gaps, Layout};

/// A layer as it is described by a table of contents.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(crate) map: ChunkMap,
    /// The layer's index, to be written to a file.
    pub(crate) index: Vec<u8>,
}

/// Why a layer cannot be used before it is here. It is fetched as others are then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutlineError {
    /// What was fetched makes no sense.
    #[error("{0}")]
    Malformed(&'static str),
    /// Its entries are not acceptable.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Its chunks are not.
    #[error(transparent)]
    Map(#[from] MapError),
    /// It is not JSON of that form.
    #[error("read the table of contents")]
    Json(#[from] serde_json::Error),
    /// What of it is known cannot be written.
    #[error("write what is known of the layer")]
    Write(#[source] std::io::Error),
}

/// Reads the entries of a table of contents, which take many times as much memory as the shortest text of them.
fn bounded_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "a list of no more than {MAX_ENTRIES} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if list.len() == MAX_ENTRIES {
                    return Err(A::Error::invalid_length(list.len() + 1, &self));
                }
                list.push(entry);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(List(PhantomData))
}

/// Makes ordinary layers of those that are whole and only waited for the end of a mount. What cannot be done now is done
/// later.
pub(crate) fn settle(store: &Store, layers: &[DiffId]) {
    for layer in layers {
        if store.layout.layer(*layer).join(NEXT_INDEX).exists() && store.check_writable().is_ok() {
            let _ = fetcher::layer::settle(store, *layer);
        }
    }
}

/// Where the addresses of a layer begin whose place in the tar is not known: beyond every tar, so that neither can be
/// taken for the other, and beyond every object table.
pub(crate) const FILES_BASE: u64 = 1 << 56;
/// The most entries of a table of contents: files, and chunks of files.
const MAX_ENTRIES: usize = 1 << 21;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_without_end_is_not_read_to_its_end() {
        #[derive(Debug, Deserialize)]
        struct Table {
            #[serde(deserialize_with = "bounded_list")]
            entries: Vec<u8>,
        }
        let table = |count: usize| format!("{{\"entries\":[0{}]}}", ",0".repeat(count - 1));
        let read: Table = serde_json::from_str(&table(MAX_ENTRIES)).unwrap();
        assert_eq!(read.entries.len(), MAX_ENTRIES);
        let error = serde_json::from_str::<Table>(&table(MAX_ENTRIES + 1)).unwrap_err();
        assert!(error.to_string().contains("no more than"), "{error}");
    }
}
