//! `save`: images as an archive that every engine loads.
//!
//! One tar that is two things at once, as `docker save` writes it since version 25: an OCI layout (`index.json`,
//! `oci-layout`, `blobs/`) and an archive of Docker's (`manifest.json`, whose paths lead into the same `blobs/`). Layers
//! are the plain tars of the store, copied by the kernel. The configuration is in it byte for byte, so an image has the
//! same ID wherever the archive is loaded. The same images give the same archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};

use serde_json::{Value, json};
use strata_layer::{DiffId, Digest};

use crate::disk::{DiskError, OnDisk};
use crate::image_id::ImageId;
use crate::images::{Image, ImageError, find};
use crate::layout::TAR;
use crate::model::{Document, Manifest, Platform};
use crate::publish::PublishError;
use crate::reference::ImageRef;
use crate::store::{Store, StoreError};
use crate::work::WorkDir;

/// Why images were not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image was not found or cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A layer is gone.
    #[error(transparent)]
    Gone(#[from] PublishError),
    /// An image is for another machine than was asked for. The wording is Docker's.
    #[error("image with reference {name} was found but does not provide the specified platform ({wanted})")]
    Platform {
        /// The image.
        name: String,
        /// What was asked for.
        wanted: String,
    },
    /// The archive could not be written.
    #[error("write the archive")]
    Write(#[source] io::Error),
}

/// An image to save, under these names.
struct Chosen {
    image: Image,
    names: BTreeSet<ImageRef>,
}

impl Store {
    /// Writes images as an archive. A name without a tag stands for all tags of its repository, an ID for the image
    /// without names. Images of other machines than `platform`, if it is given, are refused.
    pub fn save(&self, names: &[&str], platform: Option<&Platform>, out: &mut File) -> Result<(), SaveError> {
        let mut chosen: BTreeMap<ImageId, Chosen> = BTreeMap::new();
        for text in names {
            for (id, name) in self.chosen_by(text)? {
                if let Some(wanted) = platform {
                    let found = self.image(&id)?.config.platform();
                    if !found.architecture.is_empty() && found.fitness(wanted).is_none() {
                        let name = (*text).to_owned();
                        return Err(SaveError::Platform { name, wanted: wanted.to_string() });
                    }
                }
                let entry = match chosen.entry(id) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(Chosen { image: self.image(&id)?, names: BTreeSet::new() })
                    }
                };
                entry.names.extend(name);
            }
        }
        let work = WorkDir::create(&self.layout).map_err(StoreError::from)?;
        for Chosen { image, .. } in chosen.values() {
            let present = self.pin_present(&work, &image.layers)?;
            if let Some(layer) = image.layers.iter().find(|layer| !present.contains(layer)) {
                return Err(PublishError::LayerGone { layer: *layer }.into());
            }
        }
        let mut archive = Archive { out };
        self.write_documents(&chosen, &mut archive)?;
        let layers: BTreeSet<DiffId> = chosen.values().flat_map(|chosen| chosen.image.layers.iter().copied()).collect();
        for layer in layers {
            let path = self.layout.layer(layer).join(TAR);
            let mut tar = File::open(&path).on_disk("open", &path).map_err(StoreError::from)?;
            archive.copy(&blob(layer.0), &mut tar)?;
        }
        archive.finish()?;
        for id in chosen.keys() {
            self.note_image("save", *id, &id.to_string());
        }
        Ok(())
    }

    /// Finds what a word on the command line stands for.
    fn chosen_by(&self, text: &str) -> Result<Vec<(ImageId, Option<ImageRef>)>, SaveError> {
        let catalog = self.catalog().map_err(StoreError::from)?;
        let without_tag = !text.rsplit('/').next().unwrap_or("").contains([':', '@']);
        if let Some(reference) = text.parse::<ImageRef>().ok().filter(|_| without_tag) {
            let all: Vec<_> = catalog
                .names
                .iter()
                .filter(|(name, _)| name.tag().is_some() && name.same_repository(&reference))
                .map(|(name, record)| (record.image, Some(name.clone())))
                .collect();
            if !all.is_empty() {
                return Ok(all);
            }
        }
        let id = find(&catalog, text)?;
        let name = text
            .parse::<ImageRef>()
            .ok()
            .filter(|name| name.digest().is_none() && catalog.names.get(name).is_some_and(|record| record.image == id));
        Ok(vec![(id, name)])
    }

    /// Writes everything but the layers.
    fn write_documents(&self, chosen: &BTreeMap<ImageId, Chosen>, archive: &mut Archive<'_>) -> Result<(), SaveError> {
        let mut documents: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
        let (mut index, mut docker, mut repositories) = (Vec::new(), Vec::new(), BTreeMap::new());
        for Chosen { image, names } in chosen.values() {
            let manifest = self.plain_manifest(image)?;
            let digest = Digest::of(&manifest);
            let mut descriptor = json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": manifest.len()});
            let config = &image.config;
            if !config.architecture.is_empty() {
                descriptor["platform"] = json!({"architecture": config.architecture, "os": config.os});
                if let Some(variant) = &config.variant {
                    descriptor["platform"]["variant"] = json!(variant);
                }
            }
            if names.is_empty() {
                index.push(descriptor.clone());
            }
            for name in names {
                let tag = name.tag().unwrap_or("");
                let mut named = descriptor.clone();
                named["annotations"] = json!({
                    "io.containerd.image.name": name.to_string(),
                    "org.opencontainers.image.ref.name": tag,
                });
                index.push(named);
                let repository = name.familiar_repository().into_owned();
                let top = image.layers.last().map(|layer| layer.0.hex()).unwrap_or_default();
                repositories.entry(repository).or_insert_with(BTreeMap::new).insert(tag.to_owned(), top);
            }
            docker.push(json!({
                "Config": blob(image.id.0),
                "RepoTags": names.iter().map(ImageRef::familiar).collect::<Vec<_>>(),
                "Layers": image.layers.iter().map(|layer| blob(layer.0)).collect::<Vec<_>>(),
            }));
            documents.insert(image.id.0, image.raw_config.clone());
            documents.insert(digest, manifest);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": index});
        archive.document("manifest.json", Value::Array(docker).to_string().as_bytes())?;
        archive.document("index.json", index.to_string().as_bytes())?;
        archive.document("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
        // What was before version 1.10, and some tools still look for.
        archive.document("repositories", json!(repositories).to_string().as_bytes())?;
        archive.folder("blobs/")?;
        archive.folder("blobs/sha256/")?;
        for (digest, bytes) in documents {
            archive.document(&blob(digest), &bytes)?;
        }
        Ok(())
    }

    /// Returns the manifest of an image whose layers are plain tars: its own, if it says so.
    fn plain_manifest(&self, image: &Image) -> Result<Vec<u8>, SaveError> {
        if let Ok(Document::Manifest(manifest)) = Document::parse(&image.raw_manifest, MANIFEST) {
            let digests = manifest.layers.iter().map(|layer| layer.digest);
            if digests.eq(image.layers.iter().map(|layer| layer.0)) {
                return Ok(image.raw_manifest.clone());
            }
        }
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            layers.push((*layer, self.tar_size(*layer)?));
        }
        Ok(Manifest::of_plain_layers((image.id.0, image.raw_config.len() as u64), &layers))
    }
}

/// The archive on its way out.
struct Archive<'a> {
    out: &'a mut File,
}

impl Archive<'_> {
    fn folder(&mut self, name: &str) -> Result<(), SaveError> {
        self.out.write_all(&header(name, 0, b'5', 0o755)).map_err(SaveError::Write)
    }

    fn document(&mut self, name: &str, bytes: &[u8]) -> Result<(), SaveError> {
        let padding = bytes.len().next_multiple_of(BLOCK) - bytes.len();
        let whole = [&header(name, bytes.len() as u64, b'0', 0o644)[..], bytes, &vec![0; padding]].concat();
        self.out.write_all(&whole).map_err(SaveError::Write)
    }

    fn copy(&mut self, name: &str, file: &mut File) -> Result<(), SaveError> {
        let examine =
            |source| SaveError::Store(StoreError::from(DiskError { action: "read", path: name.into(), source }));
        let size = file.metadata().map_err(examine)?.len();
        self.out.write_all(&header(name, size, b'0', 0o644)).map_err(SaveError::Write)?;
        let copied = io::copy(file, self.out).map_err(SaveError::Write)?;
        if copied != size {
            return Err(examine(io::ErrorKind::UnexpectedEof.into()));
        }
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.out.write_all(&vec![0; padding]).map_err(SaveError::Write)
    }

    fn finish(self) -> Result<(), SaveError> {
        self.out.write_all(&[0; 2 * BLOCK]).map_err(SaveError::Write)
    }
}

/// Writes a ustar header. Names here are short and sizes may be beyond its eight GiB, which all tars then write in
/// base 256.
fn header(name: &str, size: u64, kind: u8, mode: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    if size < 1 << 33 {
        put(124, format!("{size:011o}").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// Returns where a blob is in the archive.
fn blob(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

const BLOCK: usize = 512;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_by_another_reader() {
        for size in [0, 5, (1 << 33) - 1, 1 << 33, 1 << 40] {
            let block = header("blobs/x", size, b'0', 0o644);
            let parsed = tar::Header::from_byte_slice(&block);
            assert_eq!(parsed.entry_size().unwrap(), size);
            let sum: u32 = parsed.cksum().unwrap();
            let mut blank = block;
            blank[148..156].fill(b' ');
            assert_eq!(sum, blank.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        }
    }
}
