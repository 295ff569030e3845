//! What is known about each layer of an image.

use strata_layer::DiffId;

use crate::image_id::ImageId;
use crate::images::{Image, ImageError, created};
use crate::layout::{INDEX, TAR};
use crate::lazy::LazyProgress;
use crate::model::{Descriptor, Document};
use crate::stack::open_index;
use crate::store::{Store, StoreError};
use crate::timestamp::Timestamp;

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDetails {
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// How the image's manifest describes it: its form in a registry.
    pub descriptor: Descriptor,
    /// The bytes of its tar, or 0 if that is not here.
    pub tar_size: u64,
    /// The bytes of its files.
    pub size: u64,
    /// Its names, whiteouts included; `None` while it has no index.
    pub entries: Option<u32>,
    /// When the step that made it was taken.
    pub created: Option<Timestamp>,
    /// The command of the step.
    pub created_by: String,
    /// The message of the step.
    pub comment: String,
    /// How much of it is here; `None` if it is whole.
    pub lazy: Option<LazyProgress>,
    /// The other images that have it.
    pub shared_by: Vec<ImageId>,
}

impl Store {
    /// Returns what is known about the layers of an image, bottom first.
    pub fn layers(&self, image: &Image) -> Result<Vec<LayerDetails>, ImageError> {
        let catalog = self.catalog().map_err(StoreError::from)?;
        let damaged = || ImageError::Damaged { digest: image.manifest };
        let Ok(Document::Manifest(manifest)) = Document::parse(&image.raw_manifest, "") else { return Err(damaged()) };
        if manifest.layers.len() != image.layers.len() {
            return Err(damaged());
        }
        // A history may tell of fewer steps than there are layers.
        let mut steps = image.config.history.iter().filter(|step| !step.empty_layer);
        let mut found = Vec::with_capacity(image.layers.len());
        for (diff_id, descriptor) in image.layers.iter().zip(manifest.layers) {
            let step = steps.next();
            let folder = self.layout.layer(*diff_id);
            let text = |text: Option<&String>| text.cloned().unwrap_or_default();
            let shares = |(id, record): (&ImageId, &crate::catalog::ImageRecord)| {
                (*id != image.id && record.layers.contains(diff_id)).then_some(*id)
            };
            found.push(LayerDetails {
                diff_id: *diff_id,
                descriptor,
                tar_size: if folder.join(TAR).exists() { self.tar_size(*diff_id)? } else { 0 },
                size: self.layer_size(*diff_id)?,
                entries: open_index(&folder.join(INDEX)).map_err(StoreError::from)?.map(|index| index.entry_count()),
                created: step.and_then(|step| created(step.created.as_deref())),
                created_by: text(step.and_then(|step| step.created_by.as_ref())),
                comment: text(step.and_then(|step| step.comment.as_ref())),
                lazy: self.lazy_progress(&[*diff_id])?,
                shared_by: catalog.images.iter().filter_map(shares).collect(),
            });
        }
        Ok(found)
    }
}
