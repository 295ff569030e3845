//! Where things lie below the store's root. The layout itself is described in `docs/formats/store.md`.

use std::path::{Path, PathBuf};

use strata_layer::{ChainId, DiffId, Digest};

/// The paths of a store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Layout {
        Layout { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folders that must exist before anything else is done.
    pub(crate) fn folders(&self) -> [PathBuf; 7] {
        [
            self.root.clone(),
            self.root.join("blobs"),
            self.blobs(),
            self.layers(),
            self.images(),
            self.refs(),
            self.leases(),
        ]
    }

    pub(crate) fn format(&self) -> PathBuf {
        self.root.join("format.json")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, id: DiffId) -> PathBuf {
        self.layers().join(id.0.hex())
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn chain(&self, id: ChainId) -> PathBuf {
        self.images().join(id.0.hex())
    }

    pub(crate) fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.refs().join("catalog")
    }

    pub(crate) fn catalog_lock(&self) -> PathBuf {
        self.refs().join("lock")
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(crate) fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("tmp")
    }
}

/// The name of a layer's tar within the layer's folder.
pub(crate) const TAR: &str = "tar";
/// The name of the folder of the process that fetches what layers lack.
pub(crate) const FETCHER: &str = "fetcher";
/// The name of the mapped index within the folder of a layer or of a chain.
pub(crate) const INDEX: &str = "index";
/// The name of a layer's object table.
pub(crate) const OBJECTS: &str = "objects";
/// The name of the list of layers within a chain's folder.
pub(crate) const CHAIN_LAYERS: &str = "layers";
/// The name of the file whose lock allows to build what a folder lacks.
pub(crate) const BUILD_LOCK: &str = "lock";
/// The name of the compressed form of a layer, where that is kept.
pub(crate) const COMPRESSED: &str = "compressed";
/// The name of the list of what a layer was compressed to.
pub(crate) const FORMS: &str = "forms";
/// The name of the file that tells which compressed blob a layer came from.
pub(crate) const BLOB: &str = "blob";
/// The name of the file with the digest that the kernel verifies a layer's tar against.
pub(crate) const VERITY: &str = "verity";
/// The name of the empty file whose time is that of the last whole check of a layer.
pub(crate) const CHECKED: &str = "checked";
