//! OCI images on disk: blobs, layers, references.
//!
//! A [`Store`] is a folder that any number of processes use at once. An image is a configuration (whose digest is the
//! image's ID), a manifest and a list of layers; a layer is its uncompressed tar with a mapped index beside it, and
//! nothing is ever unpacked. What lies where is described in `docs/formats/store.md`.
//!
//! What must stay true:
//!
//! - Nothing is visible before it is whole, verified and on the disk. Everything is written in a temporary folder; the
//!   rename of the catalog is the one step that makes images appear, all of an operation or none.
//! - What is in the catalog, leased, mounted or relied on by a running operation is never collected.
//! - A crash can only keep too much, and the next open or collection removes that.
//!
//! # Lock order
//!
//! ```text
//! refs/lock                    (shared: taking holds and pins; exclusive: changing the catalog, sweeping; short)
//! └── tmp/                     (for the moment of making or removing temporary folders)
//! └── images/<chain>/          (shared: the stack is in use; exclusive, without waiting: may it be removed?)
//! images/<chain>/lock          (building the merged index; taken with a hold, without refs/lock)
//! └── layers/<diff_id>/lock    (building a layer's index)
//!     └── tmp/
//! ```
#![forbid(unsafe_code)]

mod catalog;
mod change;
mod commit;
mod compress;
mod decompress;
mod disk;
mod events;
mod format;
mod fsck;
mod gc;
mod image_id;
mod images;
mod ingest;
mod layer_details;
mod layout;
mod lazy;
mod lease;
mod load;
pub mod model;
mod new_stack;
mod progress;
mod prune;
mod publish;
mod reference;
mod registry;
mod remove;
mod reserve;
mod save;
mod scratch;
mod stack;
mod store;
mod timestamp;
mod usage;
mod work;

pub use catalog::CatalogError;
pub use change::{Change, InvalidChange, clean_path};
pub use commit::{CommitError, CommitLayerError, CommitOptions};
pub use compress::CompressionFormat;
pub use decompress::decompressed;
pub use disk::DiskError;
pub use events::{EventActor, EventMessage, EventReader, EventsFrom};
pub use format::{Access, FormatError};
pub use fsck::{Depth, Finding, FsckOptions, FsckReport, Mend, Outcome, Subject};
pub use gc::{Collected, Leftovers};
pub use image_id::ImageId;
pub use images::{HistoryLine, Image, ImageError, ImageSummary};
pub use ingest::IngestError;
pub use layer_details::LayerDetails;
pub use lazy::{FetchError, Fetcher, LazyLayer, LazyProgress, MapError, StartFetcher};
pub use load::{Input, LoadError, LoadOptions, Loaded};
pub use model::{ContainerConfig, HistoryEntry, ImageConfig, Platform};
pub use progress::{Event, Progress, Upload};
pub use prune::{Pruned, Unused};
pub use publish::PublishError;
pub use reference::{ImageRef, InvalidReference};
#[cfg(feature = "fuzzing")]
pub use registry::fuzzing;
pub use registry::{
    FoundRepository, InvalidUrl, Login, Proxies, PullOptions, Pulled, PushOptions, Pushed, RegistryClient,
    RegistryError, Secret, Settings as RegistrySettings, SettingsError, Start, Stored, Timeouts,
};
pub use remove::{ContainerUse, Reason, RemoveError, RemoveOptions, Removed};
pub use save::SaveError;
pub use stack::{Hold, LayerPaths, Stack, StackError};
pub use store::{OpenError, Store, StoreError};
pub use timestamp::{InvalidTimestamp, Timestamp};
pub use usage::{DiskUsage, disk_space};
