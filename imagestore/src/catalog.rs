//! The catalog: which images there are, and what they are called.
//!
//! It is one small file, written aside and renamed. So a change of several names and images is one step that happens
//! or not, whatever dies when, and a reader gets a consistent state without taking a lock. Its first line has the
//! digest of the rest. Changing it, and everything that must not change while somebody looks (taking holds, sweeping),
//! happens under the lock file beside it, never for long.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};
use strata_layer::{DiffId, Digest};

use crate::disk::{DiskError, Lock, OnDisk, Sharing, exists, names_in, read_if_present, sync_folder, write_durably};
use crate::image_id::ImageId;
use crate::layout::Layout;
use crate::model::parse_own_json;
use crate::reference::ImageRef;
use crate::work::WorkDir;

/// All images and names of a store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub(crate) images: BTreeMap<ImageId, ImageRecord>,
    pub(crate) names: BTreeMap<ImageRef, NameRecord>,
}

/// What the catalog knows of an image: enough to keep everything the image needs without reading any other file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// The digest of the manifest.
    #[serde(with = "text")]
    pub(crate) manifest: Digest,
    /// The layers, bottom first.
    #[serde(with = "texts")]
    pub(crate) layers: Vec<DiffId>,
    /// When the image was stored or last got a name, in seconds since 1970.
    pub(crate) tagged: u64,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(crate) image: ImageId,
}

impl Catalog {
    /// Reads the catalog of a store. A new store has none yet; one that has layers has lost it.
    pub(crate) fn read(layout: &Layout) -> Result<Catalog, CatalogError> {
        match read_if_present(&layout.catalog())? {
            Some(bytes) => Catalog::from_bytes(&bytes),
            None if has_layers(layout)? => Err(CatalogError::Damaged),
            None => Ok(Catalog::default()),
        }
    }

    /// Gives a new store its catalog: afterwards it cannot be missing rightly.
    pub(crate) fn establish(layout: &Layout) -> Result<(), DiskError> {
        if exists(&layout.catalog())? {
            return Ok(());
        }
        let guard = CatalogGuard::lock(layout)?;
        // Raced with another process that has opened the new store.
        if exists(&layout.catalog())? || has_layers(layout)? {
            return Ok(());
        }
        guard.write(&Catalog::default())
    }

    /// Returns the names of an image.
    pub(crate) fn names_of(&self, image: ImageId) -> impl Iterator<Item = &ImageRef> {
        self.names.iter().filter(move |(_, record)| record.image == image).map(|(name, _)| name)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Catalog, CatalogError> {
        let line_end = bytes.iter().position(|byte| *byte == b'\n').ok_or(CatalogError::Damaged)?;
        let (head, body) = (&bytes[..line_end], &bytes[line_end + 1..]);
        let head = std::str::from_utf8(head).map_err(|_| CatalogError::Damaged)?;
        let digest = head.strip_prefix(HEAD).ok_or(CatalogError::Damaged)?;
        if digest.parse() != Ok(Digest::of(body)) {
            return Err(CatalogError::Damaged);
        }
        let stored: Stored = parse_own_json(body).map_err(|_| CatalogError::Damaged)?;
        let mut names = BTreeMap::new();
        for (name, record) in stored.names {
            names.insert(name.parse().map_err(|_| CatalogError::Damaged)?, record);
        }
        Ok(Catalog { images: stored.images, names })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let stored = Stored {
            images: self.images.clone(),
            names: self.names.iter().map(|(name, record)| (name.to_string(), record.clone())).collect(),
        };
        let body = serde_json::to_vec(&stored).expect("the catalog has only string keys");
        let mut bytes = format!("{HEAD}{}\n", Digest::of(&body)).into_bytes();
        bytes.extend(body);
        bytes
    }
}

/// Returns whether there are layers, which only a store with a catalog gets.
fn has_layers(layout: &Layout) -> Result<bool, DiskError> {
    let layers = layout.layers();
    Ok(exists(&layers)? && !names_in(&layers)?.is_empty())
}

/// The lock of the catalog, held exclusively.
#[derive(Debug)]
pub(crate) struct CatalogGuard<'a> {
    layout: &'a Layout,
    _lock: Lock,
}

impl<'a> CatalogGuard<'a> {
    /// Waits until nobody else changes or relies on the catalog.
    pub(crate) fn lock(layout: &'a Layout) -> Result<CatalogGuard<'a>, DiskError> {
        let lock = Lock::wait_on_file(&layout.catalog_lock(), Sharing::Exclusive)?;
        Ok(CatalogGuard { layout, _lock: lock })
    }

    /// Waits until nobody changes the catalog; others may have it locked in the same way.
    pub(crate) fn share(layout: &Layout) -> Result<Lock, DiskError> {
        Lock::wait_on_file(&layout.catalog_lock(), Sharing::Shared)
    }

    /// Reads the catalog.
    pub(crate) fn read(&self) -> Result<Catalog, CatalogError> {
        Catalog::read(self.layout)
    }

    /// Replaces the catalog. When this returns, the new one is on the disk.
    pub(crate) fn write(&self, catalog: &Catalog) -> Result<(), DiskError> {
        let work = WorkDir::create(self.layout)?;
        let aside = work.path().join("catalog");
        write_durably(&aside, &catalog.to_bytes())?;
        let path = self.layout.catalog();
        fs::rename(&aside, &path).on_disk("rename", &path)?;
        sync_folder(&self.layout.refs())
    }
}

/// Why the catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file could not be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is not what was written, or is missing.
    #[error("the list of images (refs/catalog) is damaged or missing")]
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    images: BTreeMap<ImageId, ImageRecord>,
    names: BTreeMap<String, NameRecord>,
}

mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use strata_layer::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod texts {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use strata_layer::DiffId;

    pub(super) fn serialize<S: Serializer>(ids: &[DiffId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(DiffId::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DiffId>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.into_iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

/// The start of the file; the number is the version of what follows.
const HEAD: &str = "strata catalog 1 ";

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Catalog {
        let id = ImageId(Digest::of(b"config"));
        let record =
            ImageRecord { manifest: Digest::of(b"m"), layers: vec![DiffId(Digest::of(b"1"))], tagged: 1_700_000_000 };
        let name = "debian:12".parse().unwrap();
        Catalog { images: [(id, record)].into(), names: [(name, NameRecord { image: id })].into() }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Catalog::from_bytes(&sample().to_bytes()).unwrap(), sample());
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let bytes = sample().to_bytes();
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert!(Catalog::from_bytes(&damaged).is_err(), "flipped {position}");
            assert!(Catalog::from_bytes(&bytes[..position]).is_err(), "cut at {position}");
        }
    }
}
