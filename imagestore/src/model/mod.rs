//! The documents of an image: parsed JSON, within limits.
//!
//! Digests are of bytes, so whoever needs to keep a document keeps its bytes; what is here is what those bytes mean.
//! Every parser takes bytes, refuses documents over a stated size, nesting deeper than 64 and objects that have
//! a key twice (two readers could take different values from such a document).

mod config;
mod docker_archive;
mod json;
mod manifest;
mod media_type;

pub use config::{ConfigError, ContainerConfig, HistoryEntry, ImageConfig, RootFs};
pub use docker_archive::{ArchivedImage, parse_docker_manifest};
pub use json::DocumentError;
pub(crate) use json::{parse as parse_json, parse_unbounded as parse_own_json};
pub use manifest::{Descriptor, Document, Index, InvalidPlatform, Manifest, Platform};
pub use media_type::LayerMediaType;

/// The most bytes that a manifest or an index may have.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The most bytes that an image's configuration may have.
pub const MAX_CONFIG: u64 = 8 << 20;
/// The most layers that an image may have.
pub const MAX_LAYERS: usize = 512;
