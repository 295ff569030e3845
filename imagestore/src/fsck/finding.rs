//! What a check finds.

use std::fmt;

use strata_layer::{ChainId, DiffId, Digest};

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub subject: Subject,
    /// What is wrong with it.
    pub problem: String,
    /// The images that need it, by their names, or by their IDs where they have none.
    pub images: Vec<String>,
    /// What was done about it.
    pub outcome: Outcome,
}

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The list of images and names.
    Catalog,
    /// An image's configuration.
    Config(Digest),
    /// An image's manifest.
    Manifest(Digest),
    /// The record of an image in the catalog, which does not fit the image's configuration.
    Record(Digest),
    /// A layer's tar.
    Layer(DiffId),
    /// A layer's index: a cache.
    LayerIndex(DiffId),
    /// A layer's object table: a cache.
    Objects(DiffId),
    /// What is noted about a layer: the blob it came from, its compressed forms. A cache.
    Notes(DiffId),
    /// The index of a whole stack: a cache.
    MergedIndex(ChainId),
    /// The list of a stack's layers: a cache, as long as an image or a lease names the layers too.
    StackList(ChainId),
    /// A lease, by the digest of its name.
    Lease(Digest),
}

/// What was done about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, as nothing was asked for.
    Left,
    /// It is as it must be again; the text says how that was done.
    Repaired(String),
    /// It cannot be made again; the text says why.
    Lost(String),
}

impl Subject {
    /// Returns whether it is made again from other files when it is missing, so that nothing is lost with it.
    pub fn is_cache(&self) -> bool {
        match self {
            Subject::LayerIndex(_)
            | Subject::Objects(_)
            | Subject::Notes(_)
            | Subject::MergedIndex(_)
            | Subject::StackList(_) => true,
            Subject::Catalog
            | Subject::Config(_)
            | Subject::Manifest(_)
            | Subject::Record(_)
            | Subject::Layer(_)
            | Subject::Lease(_) => false,
        }
    }

    /// Returns the kind in one word, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Subject::Catalog => "catalog",
            Subject::Config(_) => "config",
            Subject::Manifest(_) => "manifest",
            Subject::Record(_) => "record",
            Subject::Layer(_) => "layer",
            Subject::LayerIndex(_) => "layer-index",
            Subject::Objects(_) => "objects",
            Subject::Notes(_) => "notes",
            Subject::MergedIndex(_) => "merged-index",
            Subject::StackList(_) => "stack-list",
            Subject::Lease(_) => "lease",
        }
    }

    /// Returns the digest by which it is known, if it has one.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Subject::Catalog | Subject::Lease(_) => None,
            Subject::Config(digest) | Subject::Manifest(digest) | Subject::Record(digest) => Some(*digest),
            Subject::Layer(id) | Subject::LayerIndex(id) | Subject::Objects(id) | Subject::Notes(id) => Some(id.0),
            Subject::MergedIndex(chain) | Subject::StackList(chain) => Some(chain.0),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Catalog => formatter.write_str("the list of images"),
            Subject::Config(digest) => write!(formatter, "configuration {digest}"),
            Subject::Manifest(digest) => write!(formatter, "manifest {digest}"),
            Subject::Record(digest) => write!(formatter, "record of image {digest}"),
            Subject::Layer(id) => write!(formatter, "layer {id}"),
            Subject::LayerIndex(id) => write!(formatter, "index of layer {id}"),
            Subject::Objects(id) => write!(formatter, "object table of layer {id}"),
            Subject::Notes(id) => write!(formatter, "notes about layer {id}"),
            Subject::MergedIndex(chain) => write!(formatter, "merged index of stack {chain}"),
            Subject::StackList(chain) => write!(formatter, "list of the layers of stack {chain}"),
            Subject::Lease(_) => formatter.write_str("lease"),
        }
    }
}

impl Finding {
    /// Returns whether it is as it must be again.
    pub fn is_repaired(&self) -> bool {
        matches!(self.outcome, Outcome::Repaired(_))
    }
}
