//! Why an archive was not loaded.

use std::io;

use strata_layer::{DiffId, Digest};

use crate::ingest::IngestError;
use crate::model::{ConfigError, DocumentError};
use crate::publish::PublishError;
use crate::reference::InvalidReference;
use crate::stack::StackError;
use crate::store::StoreError;

/// Why an archive was not loaded. The store is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An image is for another machine than was asked for.
    #[error("image {name} was found but its platform ({found}) does not match the specified platform ({wanted})")]
    Platform {
        /// The image.
        name: String,
        /// What it is for.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive could not be opened.
    #[error("open {path}")]
    Open {
        /// The file or folder.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The archive could not be read.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// The archive's outer compression is damaged.
    #[error("decompress the archive")]
    Decompress(#[source] io::Error),
    /// The input is something else.
    #[error("not an image archive: it does not begin as a tar")]
    NotAnArchive,
    /// The archive is damaged.
    #[error("invalid archive{}", after_text(.after))]
    Tar {
        /// The last member that was read.
        after: Option<String>,
        /// What is wrong.
        source: strata_layer::tar::TarError,
    },
    /// The archive ends in the middle of a member.
    #[error("archive is cut off in {member:?}")]
    CutOff {
        /// The member.
        member: String,
    },
    /// A member has a name that leads out of the archive.
    #[error("archive member {name:?} has an invalid name")]
    MemberName {
        /// The name.
        name: String,
    },
    /// A member appears twice.
    #[error("archive has {member:?} twice")]
    Repeated {
        /// The member.
        member: String,
    },
    /// The archive has more members, or longer documents, than any image needs.
    #[error("archive has too many members or documents")]
    TooManyMembers,
    /// There is nothing in it that describes images.
    #[error("not an image archive: it has neither manifest.json nor index.json")]
    NotAnImageArchive,
    /// It is an archive of the form that was given up in 2016.
    #[error("archive has no manifest.json: it was written by Docker before 1.10, which is not supported")]
    BeforeManifests,
    /// There is no image in it.
    #[error("archive has no image")]
    NoImages,
    /// A member that a document names is not there.
    #[error("archive member {member:?} is missing")]
    Missing {
        /// The member.
        member: String,
    },
    /// A member that is needed is not a file.
    #[error("archive member {member:?} is not a file")]
    NotAFile {
        /// The member.
        member: String,
    },
    /// A member that must be a document is a layer.
    #[error("archive member {member:?} is not a document")]
    NotADocument {
        /// The member.
        member: String,
    },
    /// A document is too large.
    #[error("document {member:?} has {size} bytes, at most {limit} are accepted")]
    DocumentTooLarge {
        /// The member.
        member: String,
        /// Its size.
        size: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A document cannot be understood.
    #[error("document {member:?}")]
    Document {
        /// The member.
        member: String,
        /// Why.
        source: DocumentError,
    },
    /// A configuration cannot be understood.
    #[error("image configuration {member:?}")]
    Config {
        /// The member.
        member: String,
        /// Why.
        source: Box<ConfigError>,
    },
    /// `index.json` is a manifest.
    #[error("\"index.json\" is a manifest and not an index")]
    NotAnIndex,
    /// The layout is of another version.
    #[error("unknown version {version:?} of the OCI image layout")]
    LayoutVersion {
        /// The version.
        version: String,
    },
    /// An index leads back to itself.
    #[error("image index {digest} contains itself")]
    Loop {
        /// The index.
        digest: Digest,
    },
    /// Indexes are nested too deep.
    #[error("image indexes are nested too deep")]
    Nesting,
    /// There is no image for this machine.
    #[error("no image for {wanted}; there are images for: {}", offered.join(", "))]
    NoPlatform {
        /// The machine.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// A member does not have the digest that a document, or its name, says.
    #[error("archive member {member:?} has the digest {found}, expected {expected}")]
    Digest {
        /// The member.
        member: String,
        /// What it must be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A member does not have the size that a document says.
    #[error("archive member {member:?} has {found} bytes, expected {expected}")]
    Size {
        /// The member.
        member: String,
        /// How many it must have.
        expected: u64,
        /// How many it has.
        found: u64,
    },
    /// A layer is not the one that the configuration lists.
    #[error("layer {member:?} has the diff_id {found}, expected {expected}")]
    DiffId {
        /// The member.
        member: String,
        /// What the configuration says.
        expected: DiffId,
        /// What it is.
        found: DiffId,
    },
    /// The configuration lists another number of layers than the archive.
    #[error("image configuration {member:?} lists {config} layers, the archive has {archive}")]
    LayerCount {
        /// The configuration.
        member: String,
        /// How many it lists.
        config: usize,
        /// How many there are.
        archive: usize,
    },
    /// A layer is only to be had elsewhere.
    #[error("layer {digest} is not distributable and not in the archive")]
    ForeignLayer {
        /// The layer's digest.
        digest: Digest,
    },
    /// A layer was not taken in.
    #[error("layer {member:?}")]
    Layer {
        /// The member.
        member: String,
        /// Why.
        source: IngestError,
    },
    /// The archive gives an image a name that is none.
    #[error("invalid image name {text:?}")]
    Name {
        /// The name.
        text: String,
        /// Why.
        source: InvalidReference,
    },
    /// The archive gives an image a name with a digest.
    #[error("image name {text:?} must not have a digest")]
    NameWithDigest {
        /// The name.
        text: String,
    },
    /// The layers of an image do not fit on each other, or a layer that is present cannot be read.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The images could not be made visible.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl LoadError {
    /// Returns whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            LoadError::Store(error)
            | LoadError::Stack(StackError::Store(error))
            | LoadError::Publish(PublishError::Store(error)) => error.is_full(),
            _ => false,
        }
    }

    /// Says which layer failed, unless the store did.
    pub(super) fn layer(member: &str, source: IngestError) -> LoadError {
        match source {
            IngestError::Disk(error) => StoreError::from(error).into(),
            source => LoadError::Layer { member: member.to_owned(), source },
        }
    }
}

fn after_text(after: &Option<String>) -> String {
    after.as_ref().map(|name| format!(" after {name:?}")).unwrap_or_default()
}
