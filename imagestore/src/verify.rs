//! Is the store whole? Everything that is visible is read and compared with the digests it must have.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use strata_layer::{ChainId, DiffId, Digest};

use crate::disk::{DiskError, OnDisk, open_if_present};
use crate::images::ImageError;
use crate::layout::{INDEX, OBJECTS};
use crate::model::{ConfigError, ImageConfig};
use crate::stack::{StackError, chain_of, open_index};
use crate::store::{Store, StoreError};

/// Something that is not as it must be.
#[derive(Debug)]
pub enum Finding {
    /// A configuration or manifest is missing or damaged. The image cannot be used.
    Blob {
        /// The document.
        digest: Digest,
        /// What is wrong.
        error: ImageError,
    },
    /// A configuration cannot be understood, or lists other layers than the catalog.
    Config {
        /// The document.
        digest: Digest,
        /// What is wrong with it, if it is not the list of layers.
        error: Option<ConfigError>,
    },
    /// The tar of a layer is missing or damaged. Images that have it cannot be used.
    Layer {
        /// The layer.
        layer: DiffId,
        /// What is wrong.
        error: StackError,
    },
    /// The index of a layer was not what its tar gives. It was removed, and is made again when it is needed.
    LayerIndex {
        /// The layer.
        layer: DiffId,
    },
    /// A merged index was damaged. It was removed, and is made again when it is needed.
    MergedIndex {
        /// The stack.
        chain: ChainId,
    },
}

impl Finding {
    /// Returns whether it was repaired.
    pub fn is_repaired(&self) -> bool {
        matches!(self, Finding::LayerIndex { .. } | Finding::MergedIndex { .. })
    }
}

impl Store {
    /// Reads everything that images need, compares it with the digests, and repairs what can be made again.
    pub fn verify(&self) -> Result<Vec<Finding>, StoreError> {
        let catalog = self.catalog()?;
        let mut findings = Vec::new();
        let mut layers = BTreeSet::new();
        let mut chains = BTreeSet::new();
        for (id, record) in &catalog.images {
            layers.extend(record.layers.iter().copied());
            chains.insert(chain_of(&record.layers));
            if let Err(error) = self.blob(record.manifest) {
                findings.push(Finding::Blob { digest: record.manifest, error });
            }
            match self.blob(id.0).map(|bytes| ImageConfig::parse(&bytes)) {
                Err(error) => findings.push(Finding::Blob { digest: id.0, error }),
                Ok(Err(error)) => findings.push(Finding::Config { digest: id.0, error: Some(error) }),
                Ok(Ok(config)) if config.rootfs.diff_ids != record.layers => {
                    findings.push(Finding::Config { digest: id.0, error: None });
                }
                Ok(Ok(_)) => {}
            }
        }
        for layer in layers {
            findings.extend(self.verify_layer(layer)?);
        }
        for chain in chains {
            let path = self.layout.chain(chain).join(INDEX);
            let present = open_if_present(&path)?.is_some();
            let good = open_index(&path)?.is_some_and(|index| index.verify().is_ok());
            if present && !good {
                remove_cache(&path)?;
                findings.push(Finding::MergedIndex { chain });
            }
        }
        Ok(findings)
    }

    fn verify_layer(&self, layer: DiffId) -> Result<Option<Finding>, StoreError> {
        let ingested = match self.read_layer_again(layer) {
            Ok(ingested) => ingested,
            Err(StackError::Store(error)) => return Err(error),
            Err(error) => return Ok(Some(Finding::Layer { layer, error })),
        };
        let paths = self.layer_paths(layer);
        let found = crate::disk::read_if_present(&paths.index)?;
        if found.as_ref() == Some(&ingested.index) {
            return Ok(None);
        }
        remove_cache(&paths.index)?;
        // Made from the index, so no better than it was.
        remove_cache(&self.layout.layer(layer).join(OBJECTS))?;
        Ok(found.map(|_| Finding::LayerIndex { layer }))
    }
}

fn remove_cache(path: &std::path::Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on_disk("remove", path),
        _ => Ok(()),
    }
}
