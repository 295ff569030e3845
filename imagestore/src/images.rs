//! Looking at images: lists, details, history, and finding one by what people call it.

use std::collections::{BTreeMap, HashMap};

use strata_layer::{ChainId, DiffId, Digest};

use crate::catalog::{Catalog, ImageRecord};
use crate::disk::{OnDisk, exists, read_if_present};
use crate::image_id::ImageId;
use crate::layout::TAR;
use crate::lazy::LazyProgress;
use crate::model::{ConfigError, ImageConfig};
use crate::reference::{ImageRef, InvalidReference};
use crate::stack::{chain_of, open_index};
use crate::store::{Store, StoreError};
use crate::timestamp::Timestamp;

/// A line of the list of images.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSummary {
    /// The image.
    pub id: ImageId,
    /// Its names; empty for an image that has lost its last name.
    pub names: Vec<ImageRef>,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// When it was made, if its configuration says so.
    pub created: Option<Timestamp>,
    /// The bytes of the files in its layers.
    pub size: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its configuration cannot be read, so that the image cannot be used and the above is not known.
    pub damaged: bool,
    /// How much of it is here; `None` if it is whole.
    pub lazy: Option<LazyProgress>,
}

/// Everything about one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The image.
    pub id: ImageId,
    /// Its names.
    pub names: Vec<ImageRef>,
    /// Its configuration.
    pub config: ImageConfig,
    /// The exact bytes of the configuration.
    pub raw_config: Vec<u8>,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The exact bytes of the manifest.
    pub raw_manifest: Vec<u8>,
    /// Its layers, bottom first.
    pub layers: Vec<DiffId>,
    /// The identity of the stack of its layers.
    pub chain: ChainId,
    /// The bytes of the files in each layer, bottom first.
    pub layer_sizes: Vec<u64>,
    /// The bytes of the files in all layers.
    pub size: u64,
    /// When the image was stored or last got a name, in seconds since 1970.
    pub tagged: u64,
}

/// A line of an image's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryLine {
    /// The image, on the newest line.
    pub id: Option<ImageId>,
    /// When.
    pub created: Option<Timestamp>,
    /// The command.
    pub created_by: String,
    /// The message.
    pub comment: String,
    /// The bytes of the files that the step added.
    pub size: u64,
    /// The layer that the step made, if it made one.
    pub layer: Option<DiffId>,
    /// The names of the image, on the newest line.
    pub names: Vec<ImageRef>,
}

impl Store {
    /// Lists all images, the newest first.
    pub fn images(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let Catalog { images, names } = self.catalog().map_err(StoreError::from)?;
        let mut names_of: HashMap<ImageId, Vec<ImageRef>> = HashMap::new();
        for (name, record) in names {
            names_of.entry(record.image).or_default().push(name);
        }
        let mut list = Vec::with_capacity(images.len());
        for (id, record) in images {
            let (config, damaged) = match self.config(id) {
                Ok((config, _)) => (config, false),
                Err(ImageError::Store(error)) => return Err(error.into()),
                // Removed since the catalog was read.
                Err(_) if !self.catalog().map_err(StoreError::from)?.images.contains_key(&id) => continue,
                Err(_) => (ImageConfig::default(), true),
            };
            list.push(ImageSummary {
                id,
                names: names_of.remove(&id).unwrap_or_default(),
                manifest: record.manifest,
                created: created(config.created.as_deref()),
                size: self.layer_sizes(&record)?.iter().sum(),
                labels: config.config.labels.unwrap_or_default(),
                damaged,
                lazy: self.lazy_progress(&record.layers)?,
            });
        }
        list.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.names.cmp(&b.names)));
        Ok(list)
    }

    /// Returns everything about one image.
    pub fn image(&self, id: &ImageId) -> Result<Image, ImageError> {
        let catalog = self.catalog().map_err(StoreError::from)?;
        let record = catalog.images.get(id).ok_or_else(|| ImageError::NoSuchImage { name: id.to_string() })?;
        let (config, raw_config) = self.config(*id)?;
        let layer_sizes = self.layer_sizes(record)?;
        Ok(Image {
            id: *id,
            names: catalog.names_of(*id).cloned().collect(),
            config,
            raw_config,
            manifest: record.manifest,
            raw_manifest: self.blob(record.manifest)?,
            chain: chain_of(&record.layers),
            layers: record.layers.clone(),
            size: layer_sizes.iter().sum(),
            layer_sizes,
            tagged: record.tagged,
        })
    }

    /// Returns the history of an image, the newest step first.
    pub fn history(&self, id: &ImageId) -> Result<Vec<HistoryLine>, ImageError> {
        let image = self.image(id)?;
        let mut layers = image.layers.iter().copied().zip(image.layer_sizes.iter().copied());
        let mut lines: Vec<HistoryLine> = Vec::with_capacity(image.config.history.len());
        for entry in &image.config.history {
            let layer = if entry.empty_layer { None } else { layers.next() };
            lines.push(HistoryLine {
                id: None,
                created: created(entry.created.as_deref()),
                created_by: entry.created_by.clone().unwrap_or_default(),
                comment: entry.comment.clone().unwrap_or_default(),
                size: layer.map_or(0, |(_, size)| size),
                layer: layer.map(|(id, _)| id),
                names: Vec::new(),
            });
        }
        // Layers that the history does not tell of, because there is no history.
        lines.extend(layers.map(|(layer, size)| HistoryLine {
            id: None,
            created: None,
            created_by: String::new(),
            comment: String::new(),
            size,
            layer: Some(layer),
            names: Vec::new(),
        }));
        lines.reverse();
        if let Some(newest) = lines.first_mut() {
            newest.id = Some(image.id);
            newest.names = image.names;
        }
        Ok(lines)
    }

    /// Finds an image by name, by name and digest, by ID, or by the unique start of an ID.
    pub fn resolve(&self, text: &str) -> Result<ImageId, ImageError> {
        let catalog = self.catalog().map_err(StoreError::from)?;
        find(&catalog, text)
    }

    /// Gives the image that `source` names another name, taking that name from whichever image had it.
    pub fn tag(&self, source: &str, target: &ImageRef) -> Result<(), ImageError> {
        self.check_writable()?;
        if target.digest().is_some() {
            return Err(ImageError::TagWithDigest);
        }
        if target.familiar_repository() == "sha256" {
            return Err(ImageError::AmbiguousTag);
        }
        let guard = crate::catalog::CatalogGuard::lock(&self.layout).map_err(StoreError::from)?;
        let mut catalog = guard.read().map_err(StoreError::from)?;
        let image = find(&catalog, source)?;
        catalog.name(target.clone(), image, Timestamp::now());
        guard.write(&catalog).map_err(StoreError::from)?;
        drop(guard);
        self.note_image("tag", image, &target.familiar());
        Ok(())
    }

    /// Reads a blob and checks its digest.
    pub(crate) fn blob(&self, digest: Digest) -> Result<Vec<u8>, ImageError> {
        let bytes = read_if_present(&self.layout.blob(digest)).map_err(StoreError::from)?;
        let bytes = bytes.ok_or(ImageError::Missing { digest })?;
        if Digest::of(&bytes) != digest {
            return Err(ImageError::Damaged { digest });
        }
        Ok(bytes)
    }

    pub(crate) fn config(&self, id: ImageId) -> Result<(ImageConfig, Vec<u8>), ImageError> {
        let bytes = self.blob(id.0)?;
        let config = ImageConfig::parse(&bytes).map_err(|source| ImageError::Config { id, source })?;
        Ok((config, bytes))
    }

    fn layer_sizes(&self, record: &ImageRecord) -> Result<Vec<u64>, StoreError> {
        record.layers.iter().map(|layer| self.layer_size(*layer)).collect()
    }

    /// Returns the bytes of the files in a layer; where its index is missing, the size of its tar comes near.
    pub(crate) fn layer_size(&self, layer: DiffId) -> Result<u64, StoreError> {
        let folder = self.layout.layer(layer);
        if let Some(index) = open_index(&folder.join(crate::layout::INDEX))? {
            return Ok(index.total_size());
        }
        if exists(&folder.join(TAR))? { self.tar_size(layer) } else { Ok(0) }
    }

    /// Returns the size of a layer's tar.
    pub(crate) fn tar_size(&self, layer: DiffId) -> Result<u64, StoreError> {
        let tar = self.layout.layer(layer).join(TAR);
        Ok(std::fs::metadata(&tar).on_disk("examine", &tar)?.len())
    }
}

impl Catalog {
    /// Gives an image a name; returns the image that had it.
    pub(crate) fn name(&mut self, name: ImageRef, image: ImageId, now: Timestamp) -> Option<ImageId> {
        self.touch(image, now);
        let before = self.names.insert(name, crate::catalog::NameRecord { image });
        before.map(|record| record.image).filter(|before| *before != image)
    }

    /// Notes that an image was stored or named now.
    pub(crate) fn touch(&mut self, image: ImageId, now: Timestamp) {
        if let Some(record) = self.images.get_mut(&image) {
            record.tagged = u64::try_from(now.seconds).unwrap_or(0);
        }
    }
}

/// Finds an image as Docker does: a name comes before the start of an ID that reads the same.
pub(crate) fn find(catalog: &Catalog, text: &str) -> Result<ImageId, ImageError> {
    let no_such = |name: String| ImageError::NoSuchImage { name };
    let is_id = |hex: &str| hex.len() == 64 && Digest::from_hex(hex).is_ok();
    if is_id(text.strip_prefix("sha256:").unwrap_or(text)) {
        let id = catalog.images.keys().find(|id| id.has_prefix(text)).copied();
        return id.ok_or_else(|| {
            no_such(if text.starts_with("sha256:") { text.to_owned() } else { format!("sha256:{text}") })
        });
    }
    let reference = match text.parse::<ImageRef>() {
        Ok(reference) => reference,
        // `sha256:` and a part of an ID is not a reference of any image, but it is the start of an ID.
        Err(error) => return find_by_prefix(catalog, text)?.ok_or(ImageError::Reference(error)),
    };
    if let Some(record) = catalog.names.get(&reference) {
        return Ok(record.image);
    }
    if let Some(digest) = reference.digest() {
        return find_by_digest(catalog, &reference, digest).ok_or_else(|| no_such(reference.familiar()));
    }
    find_by_prefix(catalog, text)?.ok_or_else(|| no_such(reference.familiar()))
}

/// Finds the image of a repository that has a manifest, or an ID, of this digest.
fn find_by_digest(catalog: &Catalog, reference: &ImageRef, digest: Digest) -> Option<ImageId> {
    let named = |id: ImageId| catalog.names_of(id).any(|name| name.same_repository(reference));
    let matches =
        |(id, record): &(&ImageId, &ImageRecord)| (record.manifest == digest || id.0 == digest) && named(**id);
    catalog.images.iter().find(matches).map(|(id, _)| *id)
}

fn find_by_prefix(catalog: &Catalog, text: &str) -> Result<Option<ImageId>, ImageError> {
    let mut found = catalog.images.keys().filter(|id| id.has_prefix(text));
    let first = found.next().copied();
    match found.next() {
        Some(_) => Err(ImageError::AmbiguousId { text: text.to_owned() }),
        None => Ok(first),
    }
}

pub(crate) fn created(text: Option<&str>) -> Option<Timestamp> {
    text.and_then(|text| text.parse().ok())
}

/// Why an image could not be found or read. The wording is Docker's where Docker has the case.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such image.
    #[error("No such image: {name}")]
    NoSuchImage {
        /// What was asked for, completed.
        name: String,
    },
    /// What was asked for is no reference.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// Several images have IDs that start like this.
    #[error("image ID prefix {text} is ambiguous")]
    AmbiguousId {
        /// What was asked for.
        text: String,
    },
    /// A name with a digest cannot be given.
    #[error("refusing to create a tag with a digest reference")]
    TagWithDigest,
    /// A name that reads as the beginning of an ID.
    #[error("refusing to create an ambiguous tag using digest algorithm as name")]
    AmbiguousTag,
    /// A document of an image is not there.
    #[error("blob {digest} is missing from the store")]
    Missing {
        /// The document.
        digest: Digest,
    },
    /// A document of an image is not what was stored.
    #[error("blob {digest} is damaged on disk")]
    Damaged {
        /// The document.
        digest: Digest,
    },
    /// An image's configuration cannot be understood.
    #[error("configuration of image {id}")]
    Config {
        /// The image.
        id: ImageId,
        /// Why.
        source: ConfigError,
    },
}

impl ImageError {
    /// Returns whether the reason is that there is no such image.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ImageError::NoSuchImage { .. })
    }
}
