//! Layers whose tar is not whole yet.
//!
//! Where their bytes come from is not known here. Whoever mounts images that may have such layers says once, with
//! [`set_layer_sources`], how to open what stands in for a tar.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

/// The bytes of a layer that is not whole.
pub trait LayerSource: Debug + Send + Sync {
    /// Fills a buffer from an address of the layer on. Waits for what is not there, but not for ever: then, and when it
    /// cannot be had, the error has an errno, which users of the mount see.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns whether reading these bytes would not wait.
    fn is_here(&self, offset: u64, length: u64) -> bool;

    /// Returns whether the layer's tar is there now, and the addresses are those in it: once true, always true.
    fn is_whole(&self) -> bool;
}

/// Opens what stands in for the tar of a layer; `None` if that is whole by now.
pub type OpenLayerSource = fn(&Absent) -> io::Result<Option<Arc<dyn LayerSource>>>;

/// What [`OpenLayerSource`] needs to find a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The store that the layer is in.
    pub store: PathBuf,
    /// The layer, by the digest of its tar.
    pub layer: String,
}

/// Says how layers that are not whole are opened in this process and in those that it forks. The first call counts.
pub fn set_layer_sources(open: OpenLayerSource) {
    let _ = OPEN.set(open);
}

static OPEN: OnceLock<OpenLayerSource> = OnceLock::new();

/// What a layer's bytes are read from.
#[derive(Debug)]
pub(crate) enum LayerData {
    /// Its tar.
    Tar(File),
    /// What stands in for it.
    Source(Arc<dyn LayerSource>),
}

impl LayerData {
    /// Opens what stands in for a tar, if there is such a thing.
    pub(crate) fn of_absent(absent: &Absent) -> io::Result<Option<LayerData>> {
        let open =
            OPEN.get().ok_or_else(|| io::Error::other("nobody has said how to read layers that are not whole"))?;
        Ok(open(absent)?.map(LayerData::Source))
    }

    /// Returns whether reading these bytes would not wait.
    pub(crate) fn is_here(&self, offset: u64, length: u64) -> bool {
        match self {
            LayerData::Tar(_) => true,
            LayerData::Source(source) => source.is_here(offset, length),
        }
    }

    /// Returns whether the kernel may read the tar by itself.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            LayerData::Tar(_) => true,
            LayerData::Source(source) => source.is_whole(),
        }
    }
}
