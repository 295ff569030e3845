//! Finding out what is in a layer before it is fetched: by the tables that some blobs carry, or by our own index where
//! it refers to the image.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use strata_layer::{DiffId, Digest};

use super::client::Remote;
use super::error::RegistryError;
use crate::disk::{OnDisk, create_new, make_folder};
use crate::ingest::NewLayer;
use crate::layout::INDEX;
use crate::lazy::artifact::{self, ARTIFACT_TYPE};
use crate::lazy::{LAZY, LazyFolder, Outline, OutlineError, Source, chunked, stargz};
use crate::model::{Descriptor, Document};
use crate::progress::Progress;
use crate::store::StoreError;

/// What is asked about the layers of one image.
pub(super) struct Early<'a> {
    pub(super) remote: &'a Remote<'a>,
    pub(super) registry: &'a str,
    pub(super) repository: &'a str,
    /// The image's manifest, if what refers to it may be believed.
    pub(super) subject: Option<Digest>,
    /// Our own indexes, by the blobs that they are about.
    indexes: OnceCell<HashMap<Digest, Descriptor>>,
    pub(super) progress: &'a dyn Progress,
}

impl<'a> Early<'a> {
    pub(super) fn new(
        remote: &'a Remote<'a>,
        (registry, repository): (&'a str, &'a str),
        subject: Option<Digest>,
        progress: &'a dyn Progress,
    ) -> Early<'a> {
        Early { remote, registry, repository, subject, indexes: OnceCell::new(), progress }
    }

    /// Makes a layer in `folder` of what is told of it beforehand; `None` if nothing usable is. Failures of the disk
    /// alone are errors: the layer can still be fetched as a whole.
    pub(super) fn describe(
        &self,
        layer: &Descriptor,
        diff_id: DiffId,
        folder: PathBuf,
    ) -> Result<Option<NewLayer>, RegistryError> {
        if layer.size < SMALLEST {
            return Ok(None);
        }
        make_folder(&folder).map_err(StoreError::from)?;
        let lazy = folder.join(LAZY);
        let content = LazyFolder::create(&lazy).map_err(StoreError::from)?;
        let outline = match self.outline(layer, diff_id, &content) {
            Ok(Some(outline)) => outline,
            Ok(None) => {
                std::fs::remove_dir_all(&folder).on_disk("remove", &folder).map_err(StoreError::from)?;
                return Ok(None);
            }
            Err(EarlyError::Outline(OutlineError::Write(source))) if source.raw_os_error().is_some() => {
                return Err(StoreError::from(crate::disk::DiskError { action: "write", path: lazy, source }).into());
            }
            Err(error) => {
                tell(self.progress, layer.digest, &error);
                std::fs::remove_dir_all(&folder).on_disk("remove", &folder).map_err(StoreError::from)?;
                return Ok(None);
            }
        };
        let source = Source { registry: self.registry.to_owned(), repository: self.repository.to_owned() };
        LazyFolder::describe(&lazy, &content, &outline.map, &source).map_err(StoreError::from)?;
        let path = folder.join(INDEX);
        let written = create_new(&path).and_then(|file| file.write_all_at(&outline.index, 0).on_disk("write", &path));
        written.map_err(StoreError::from)?;
        Ok(Some(NewLayer { folder, diff_id, tar_size: outline.map.size, blob: layer.digest, blob_size: layer.size }))
    }

    fn outline(&self, layer: &Descriptor, diff_id: DiffId, content: &File) -> Result<Option<Outline>, EarlyError> {
        let mut write = |offset: u64, bytes: &[u8]| content.write_all_at(bytes, offset);
        let piece = |range: (u64, u64)| {
            let blob = (layer.digest, layer.size);
            self.remote.blob_range_patiently(self.repository, blob, range, self.progress)
        };
        if let Some(tables) = chunked::tables(layer) {
            let (contents, tar_split) = (piece(tables.contents)?, piece(tables.tar_split)?);
            return Ok(Some(chunked::outline(layer, diff_id, &tables, &contents, &tar_split, &mut write)?));
        }
        if let Some(digest) = stargz::contents_digest(layer)
            && layer.size > stargz::FOOTER
        {
            let footer = piece((layer.size - stargz::FOOTER, stargz::FOOTER))?;
            let offset = stargz::contents_offset(&footer).filter(|offset| *offset < layer.size - stargz::FOOTER);
            let offset = offset.ok_or(OutlineError::Malformed("the footer says nothing of a table of contents"))?;
            let length = layer.size - stargz::FOOTER - offset;
            if length > MAX_TABLE {
                return Err(OutlineError::Malformed("the table of contents is too large").into());
            }
            let member = piece((offset, length))?;
            return Ok(Some(stargz::outline(layer, diff_id, digest, offset, &member, &mut write)?));
        }
        let Some(index) = self.indexes().get(&layer.digest) else { return Ok(None) };
        let bytes = self.remote.small_blob(self.repository, index, MAX_TABLE, self.progress)?;
        Ok(Some(artifact::outline(layer, diff_id, &bytes)?))
    }

    /// Returns our indexes that refer to the image.
    fn indexes(&self) -> &HashMap<Digest, Descriptor> {
        self.indexes.get_or_init(|| {
            let Some(subject) = self.subject else { return HashMap::new() };
            // That nothing is found, for whatever reason, only means that the layers are fetched as a whole.
            self.find_indexes(subject).unwrap_or_default()
        })
    }

    fn find_indexes(&self, subject: Digest) -> Result<HashMap<Digest, Descriptor>, RegistryError> {
        let mut found = HashMap::new();
        for artifact in self.remote.referrers(self.repository, subject, Some(ARTIFACT_TYPE))? {
            let fetched = self.remote.manifest_by_digest(self.repository, artifact.digest)?;
            let Ok(Document::Manifest(manifest)) = fetched.parse() else { continue };
            for index in manifest.layers {
                let of = index.annotations.get(artifact::OF_BLOB).and_then(|text| text.parse().ok());
                if let (Some(of), artifact::BLOB_TYPE) = (of, index.media_type.as_str()) {
                    found.insert(of, index);
                }
            }
        }
        Ok(found)
    }
}

/// Why nothing is known of a layer beforehand.
#[derive(Debug, thiserror::Error)]
enum EarlyError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Outline(#[from] OutlineError),
}

fn tell(progress: &dyn Progress, layer: Digest, error: &EarlyError) {
    let reason = error.to_string();
    progress.report(crate::progress::Event::NotEarly { layer: &layer.to_string(), reason: &reason });
}

/// A smaller layer is fetched as quickly as its tables.
const SMALLEST: u64 = 64 << 10;
const MAX_TABLE: u64 = 64 << 20;
