//! Making new layers and images visible: all of them or none.
//!
//! Everything is in a temporary folder and on the disk before the catalog's lock is taken; under the lock there are
//! only renames, and the last of them, the catalog's, is the one that counts.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::Path;

use strata_layer::{DiffId, Digest};

use crate::catalog::{CatalogError, CatalogGuard, ImageRecord};
use crate::disk::{
    DiskError, OnDisk, create_new, exists, make_folder, names_in, read_if_present, rename_unless_present,
    sync_file_system, sync_folder,
};
use crate::gc::sweep_locked;
use crate::image_id::ImageId;
use crate::ingest::NewLayer;
use crate::layout::{BLOB, INDEX, TAR};
use crate::lazy::{is_lazy, is_refused};
use crate::model::Manifest;
use crate::new_stack::NewStack;
use crate::reference::ImageRef;
use crate::store::{Store, StoreError};
use crate::timestamp::Timestamp;
use crate::work::WorkDir;

/// An image that is to be made visible.
#[derive(Clone, Debug)]
pub(crate) struct NewImage {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) layers: Vec<DiffId>,
    pub(crate) names: Vec<ImageRef>,
    /// Whether the manifest takes the place of the one that the image has, should it be present.
    pub(crate) replaces_manifest: bool,
}

impl NewImage {
    pub(crate) fn id(&self) -> ImageId {
        ImageId(Digest::of(&self.config))
    }

    /// Makes an image whose manifest says that its layers are plain tars.
    pub(crate) fn of_plain_layers(config: Vec<u8>, layers: &[(DiffId, u64)], names: Vec<ImageRef>) -> NewImage {
        let descriptor = (Digest::of(&config), config.len() as u64);
        let manifest = Manifest::of_plain_layers(descriptor, layers);
        NewImage {
            manifest,
            config,
            layers: layers.iter().map(|(layer, _)| *layer).collect(),
            names,
            replaces_manifest: false,
        }
    }
}

/// Why images did not become visible.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer that was present when the operation began has disappeared.
    #[error("layer {layer} has disappeared from the store")]
    LayerGone {
        /// The layer.
        layer: DiffId,
    },
}

impl From<DiskError> for PublishError {
    fn from(error: DiskError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<CatalogError> for PublishError {
    fn from(error: CatalogError) -> Self {
        StoreError::from(error).into()
    }
}

impl Store {
    /// Makes layers and images visible. Layers that the images need and that are not given are in the store already.
    ///
    /// Returns for each image the images that lost a name to it.
    pub(crate) fn publish(
        &self,
        work: &WorkDir,
        layers: &BTreeMap<DiffId, NewLayer>,
        stacks: &[NewStack],
        images: &[NewImage],
    ) -> Result<Vec<Vec<(ImageRef, ImageId)>>, PublishError> {
        write_blobs(work, images)?;
        sync_file_system(work.path())?;

        let guard = CatalogGuard::lock(&self.layout)?;
        let mut catalog = guard.read()?;
        let published = (|| {
            for (id, layer) in layers {
                self.place_layer(work, *id, &layer.folder)?;
            }
            for stack in stacks {
                self.place_stack(stack)?;
            }
            let now = Timestamp::now();
            let mut replaced = Vec::with_capacity(images.len());
            for image in images {
                for layer in &image.layers {
                    if !self.has_layer(*layer)? {
                        return Err(PublishError::LayerGone { layer: *layer });
                    }
                }
                self.place_blob(work, image.id().0)?;
                // An image that is present keeps its manifest: that may be the one it was pulled with. Pulled again, it has
                // the one of the registry that it came from last.
                let present = catalog.images.get(&image.id());
                let keeps = match present {
                    Some(record) => exists(&self.layout.blob(record.manifest))?,
                    None => false,
                };
                if !keeps || image.replaces_manifest {
                    let manifest = Digest::of(&image.manifest);
                    self.place_blob(work, manifest)?;
                    catalog
                        .images
                        .insert(image.id(), ImageRecord { manifest, layers: image.layers.clone(), tagged: 0 });
                }
                catalog.touch(image.id(), now);
                let name = |name: &ImageRef| Some((name.clone(), catalog.name(name.clone(), image.id(), now)?));
                replaced.push(image.names.iter().filter_map(name).collect());
            }
            sync_folder(&self.layout.layers())?;
            sync_folder(&self.layout.blobs())?;
            guard.write(&catalog)?;
            Ok(replaced)
        })();
        if published.is_err() {
            // Take back what was renamed already. Should that fail too, the next collection does it.
            if let Ok(before) = guard.read() {
                let _ = sweep_locked(&self.layout, &before);
            }
        }
        published
    }

    /// Moves a layer from the temporary folder to its place, unless it is there already.
    fn place_layer(&self, work: &WorkDir, layer: DiffId, folder: &Path) -> Result<(), DiskError> {
        let place = self.layout.layer(layer);
        if !self.has_layer(layer)? && exists(&place)? {
            // What is left of a layer that has lost its tar is worth nothing.
            let aside = work.path().join(format!("lost-{}", layer.0.hex()));
            fs::rename(&place, &aside).on_disk("rename", &place)?;
        }
        rename_unless_present(folder, &place).map(|_| ())
    }

    /// Returns whether a layer is in the store, be it that it is not whole yet. One that turned out to be another is not.
    pub(crate) fn has_layer(&self, layer: DiffId) -> Result<bool, DiskError> {
        let folder = self.layout.layer(layer);
        Ok(exists(&folder.join(TAR))? || (is_lazy(&folder)? && !is_refused(&folder)?))
    }

    /// Moves a merged index to its place. It is a cache, so what is there already is as good.
    fn place_stack(&self, stack: &NewStack) -> Result<(), DiskError> {
        let place = self.layout.chain(stack.chain);
        if rename_unless_present(&stack.folder, &place)? {
            return Ok(());
        }
        let index = place.join(INDEX);
        if exists(&index)? { Ok(()) } else { fs::rename(stack.folder.join(INDEX), &index).on_disk("rename", &index) }
    }

    /// Moves a document from the temporary folder to its place, unless another image has moved it already.
    fn place_blob(&self, work: &WorkDir, digest: Digest) -> Result<(), DiskError> {
        let (from, to) = (work.path().join(BLOBS).join(digest.hex()), self.layout.blob(digest));
        if exists(&from)? { fs::rename(&from, &to).on_disk("rename", &to) } else { Ok(()) }
    }

    /// Returns the layers that came compressed, by the digest of the blob.
    ///
    /// The digests were computed when the layers were taken in: what a manifest says about a layer that was not read
    /// proves nothing.
    pub(crate) fn layers_by_blob(&self) -> Result<HashMap<Digest, DiffId>, StoreError> {
        let mut layers = HashMap::new();
        for name in names_in(&self.layout.layers())? {
            let Ok(layer) = Digest::from_hex(&name).map(DiffId) else { continue };
            let Some(bytes) = read_if_present(&self.layout.layer(layer).join(BLOB))? else { continue };
            if let Some(blob) = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok()) {
                layers.insert(blob, layer);
            }
        }
        Ok(layers)
    }

    /// Returns those of `layers` that are in the store, and makes them stay while `work` exists.
    pub(crate) fn pin_present(&self, work: &WorkDir, layers: &[DiffId]) -> Result<Vec<DiffId>, StoreError> {
        let _shared = CatalogGuard::share(&self.layout)?;
        let mut present = Vec::new();
        for layer in layers {
            if self.has_layer(*layer)? {
                present.push(*layer);
            }
        }
        if !present.is_empty() {
            work.pin_locked(&present)?;
        }
        Ok(present)
    }
}

/// Writes the documents of the images into the temporary folder.
fn write_blobs(work: &WorkDir, images: &[NewImage]) -> Result<(), DiskError> {
    let folder = work.path().join(BLOBS);
    make_folder(&folder)?;
    let documents: BTreeMap<Digest, &[u8]> = images
        .iter()
        .flat_map(|image| [&image.config, &image.manifest])
        .map(|bytes| (Digest::of(bytes), &bytes[..]))
        .collect();
    for (digest, bytes) in documents {
        let path = folder.join(digest.hex());
        create_new(&path)?.write_all(bytes).on_disk("write", &path)?;
    }
    Ok(())
}

const BLOBS: &str = "blobs";
