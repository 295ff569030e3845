//! Taking in a layer: its tar is hashed, parsed and indexed in one pass.
//!
//! The caller keeps the bytes; here they are only looked at. What names may mean and which contents of an archive are
//! left out is decided here and in [`index::Builder`](crate::index::Builder), and written down in
//! `docs/formats/layer.md`.

use sha2::{Digest as _, Sha256};

use crate::index::{BuildError, Builder, Content, Layer, Metadata, NewIndex, TableError};
use crate::objects::Segment;
use crate::path::{self, InvalidPath};
use crate::table::Scratch;
use crate::tar::{BLOCK, Entry, EntryKind, Event, Limits, Parser, TarError};
use crate::whiteout::{self, InvalidMarker, Meaning};
use crate::{DiffId, Digest};

/// A layer on its way in.
#[derive(Debug)]
pub struct LayerIngest {
    /// `None` while only an outline is made.
    sha: Option<Sha256>,
    parser: Parser,
    builder: Builder,
    limits: Limits,
    entries: u64,
    metadata_bytes: u64,
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestedLayer {
    /// The digest of the tar.
    pub diff_id: DiffId,
    /// The length of the tar.
    pub tar_size: u64,
    /// The layer's index, to be written to a file.
    pub index: Vec<u8>,
    /// Entries of the tar, markers included.
    pub entries: u64,
}

impl LayerIngest {
    /// Starts a layer.
    pub fn new(limits: Limits) -> LayerIngest {
        LayerIngest { sha: Some(Sha256::new()), ..LayerIngest::outline(limits) }
    }

    /// Starts the outline of a layer whose data is elsewhere: the bytes of its files may be pushed as zeros, or entries
    /// described without a tar. To be ended by [`finish_outline`](Self::finish_outline).
    pub fn outline(limits: Limits) -> LayerIngest {
        LayerIngest {
            sha: None,
            parser: Parser::new(limits.clone()),
            builder: Builder::new(),
            limits,
            entries: 0,
            metadata_bytes: 0,
        }
    }

    /// Lets what is held of the entries go into temporary files once there is no more memory for it.
    #[must_use]
    pub fn with_scratch(self, scratch: Scratch) -> LayerIngest {
        LayerIngest { builder: self.builder.with_scratch(scratch), ..self }
    }

    /// Takes in the next bytes of the tar. After an error the layer is given up.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if let Some(sha) = &mut self.sha {
            sha.update(bytes);
        }
        let mut rest = bytes;
        while let Some(event) = self.parser.next_event(&mut rest)? {
            if let Event::Entry(entry) = event {
                self.add(*entry)?;
            }
        }
        Ok(())
    }

    /// Returns how many zeros are missing at the end for the tar to be `expected`: some writers leave out what fills up the
    /// last record of an archive. `None` if nothing is missing, or something else.
    pub fn missing_zeros(&self, expected: DiffId) -> Option<usize> {
        self.parser.finish().ok()?;
        let mut sha = self.sha.clone()?;
        let is_expected = |sha: &Sha256| Digest::from_bytes(sha.clone().finalize().into()) == expected.0;
        if is_expected(&sha) {
            return None;
        }
        let end = usize::try_from(self.parser.offset() % RECORD as u64).expect("less than a record");
        (1..=(RECORD - end) / BLOCK).map(|blocks| blocks * BLOCK).find(|_| {
            sha.update([0; BLOCK]);
            is_expected(&sha)
        })
    }

    /// Ends the layer. An archive may end without its two blocks of zeros, but not inside an entry.
    ///
    /// # Panics
    /// For an outline, which knows no digest.
    pub fn finish(self) -> Result<IngestedLayer, LayerError> {
        let entries = self.entries;
        let (Layer { diff_id, tar_size }, index) = self.finish_index()?;
        Ok(IngestedLayer { diff_id, tar_size, index: index.into_bytes().map_err(TableError::from)?, entries })
    }

    /// Ends the layer as [`finish`](Self::finish) does, without holding its index in memory.
    ///
    /// # Panics
    /// For an outline, which knows no digest.
    pub fn finish_index(self) -> Result<(Layer, NewIndex), LayerError> {
        self.parser.finish()?;
        let sha = self.sha.expect("an outline is ended by finish_outline");
        let diff_id = DiffId(Digest::from_bytes(sha.finalize().into()));
        let layer = Layer { diff_id, tar_size: self.parser.offset() };
        Ok((layer, self.builder.finish(layer)?))
    }

    /// Ends an outline, and returns the index that the layer has if the tar is what was said of it.
    pub fn finish_outline(self, layer: Layer) -> Result<Vec<u8>, LayerError> {
        self.parser.finish()?;
        Ok(self.builder.finish(layer)?.into_bytes().map_err(TableError::from)?)
    }

    /// Returns how many bytes of the tar were pushed.
    pub fn tar_size(&self) -> u64 {
        self.parser.offset()
    }

    /// Takes in an entry that somebody else has read, with `data` as it lies where the layer's bytes are found.
    pub fn describe(&mut self, entry: Entry) -> Result<(), LayerError> {
        self.add(entry)
    }

    fn add(&mut self, entry: Entry) -> Result<(), LayerError> {
        self.count(&entry)?;
        let Entry { path, offset, .. } = &entry;
        let refused = |problem: EntryProblem| {
            let entry = path.clone();
            LayerError::Entry { entry, offset: *offset, problem }
        };
        path::check(path).map_err(|problem| refused(problem.into()))?;
        let meaning = Meaning::of(path).map_err(|problem| refused(problem.into()))?;
        let is_marker = matches!(meaning, Meaning::Whiteout(_) | Meaning::Opaque(_));
        if is_marker && entry.kind == EntryKind::Directory {
            return Err(refused(InvalidMarker::UsedAsDirectory.into()));
        }
        let added = match meaning {
            Meaning::Ignored => Ok(()),
            Meaning::Whiteout(path) => self.builder.whiteout(&path),
            Meaning::Opaque(directory) => self.builder.opaque(&directory),
            Meaning::Entry => return self.add_file(entry),
        };
        added.map_err(|problem| LayerError::of_entry(path.clone(), *offset, problem))
    }

    fn add_file(&mut self, entry: Entry) -> Result<(), LayerError> {
        let Entry { path, kind, permissions, uid, gid, mtime, mut xattrs, size, data, sparse, offset } = entry;
        xattrs.retain(|(name, _)| is_kept(name));
        let metadata = Metadata { permissions, uid, gid, mtime, xattrs };
        let whole = [Segment { offset: 0, length: size, source: data.start }];
        let content = match &kind {
            EntryKind::Directory => Content::Directory,
            EntryKind::Regular => Content::Regular {
                size,
                segments: match &sparse {
                    Some(segments) => segments,
                    None if size == 0 => &[],
                    None => &whole,
                },
            },
            EntryKind::Symlink { target } => Content::Symlink { target },
            EntryKind::CharDevice(device) => Content::CharDevice(*device),
            EntryKind::BlockDevice(device) => Content::BlockDevice(*device),
            EntryKind::Fifo => Content::Fifo,
            EntryKind::HardLink { target } => {
                let linked = self.builder.hard_link(&path, target);
                return linked.map_err(|problem| LayerError::of_entry(path, offset, problem));
            }
        };
        let added = self.builder.add(&path, metadata, content);
        added.map_err(|problem| LayerError::of_entry(path, offset, problem))
    }

    /// Keeps the books on what the layer makes us hold. Directories that entries only imply count as entries, too.
    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries.max(self.builder.inode_count()) > self.limits.entries {
            return Err(LayerError::TooManyEntries(self.limits.entries));
        }
        let target = match &entry.kind {
            EntryKind::HardLink { target } | EntryKind::Symlink { target } => target.len(),
            _ => 0,
        };
        let xattr = |(name, value): &(Vec<u8>, Vec<u8>)| XATTR_OVERHEAD + name.len() + value.len();
        let xattrs: usize = entry.xattrs.iter().map(xattr).sum();
        let map = entry.sparse.as_ref().map_or(0, |segments| size_of_val(&segments[..]));
        self.metadata_bytes += (entry.path.len() + target + xattrs + map) as u64;
        if self.metadata_bytes > self.limits.metadata_bytes {
            return Err(LayerError::TooMuchMetadata(self.limits.metadata_bytes));
        }
        Ok(())
    }
}

/// Returns whether an extended attribute of a layer is shown to containers.
///
/// Kept are what belongs to the file itself: `user.*` and `trusted.*` except the private names of union file systems,
/// file capabilities and access control lists. Labels and measurements of the machine the layer was made on (SELinux,
/// Smack, IMA) are not.
fn is_kept(name: &[u8]) -> bool {
    let exact = [&b"security.capability"[..], b"system.posix_acl_access", b"system.posix_acl_default"];
    let free = name.starts_with(b"user.") || name.starts_with(b"trusted.");
    exact.contains(&name) || free && !whiteout::is_private_xattr(name)
}

/// What tar writes at once, and fills up at the end: twenty blocks.
const RECORD: usize = 20 * BLOCK;
/// What an extended attribute takes in memory beside its name and value.
const XATTR_OVERHEAD: usize = 96;

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is not a tar that we read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry cannot be in a layer.
    #[error("layer entry {} at offset {offset}: {problem}", crate::tar::Escaped(.entry))]
    Entry {
        /// Its name as it stands in the tar.
        entry: Vec<u8>,
        /// Where its first header is.
        offset: u64,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// More entries, or directories on the way to them, than [`Limits::entries`].
    #[error("layer has more than {0} entries")]
    TooManyEntries(u64),
    /// More names and attributes than [`Limits::metadata_bytes`].
    #[error("names and attributes of the layer take more than {0} bytes")]
    TooMuchMetadata(u64),
    /// More than the index can count, or there was no place for what the layer makes us hold: then it is not to blame.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl LayerError {
    fn of_entry(entry: Vec<u8>, offset: u64, problem: BuildError) -> LayerError {
        match problem {
            BuildError::Table(error @ TableError::Scratch(_)) => error.into(),
            problem => LayerError::Entry { entry, offset, problem: problem.into() },
        }
    }
}

/// Why an entry cannot be in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// Its name is not one.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// Its name starts like a marker and is none.
    #[error(transparent)]
    Marker(#[from] InvalidMarker),
    /// It does not fit what the layer has already.
    #[error(transparent)]
    Build(#[from] BuildError),
}

#[cfg(test)]
mod tests;
