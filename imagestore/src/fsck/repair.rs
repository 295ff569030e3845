//! Making good what is damaged and no cache.
//!
//! Damaged files are not overwritten but put aside, in `quarantine/`: what is in use goes on as it was, and what a person
//! may still need of them is there until the store is pruned.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use strata_layer::{DiffId, Digest};

use super::{Check, Finding, Mend, Outcome, Subject, with_causes};
use crate::catalog::{Catalog, CatalogGuard, ImageRecord};
use crate::disk::{DiskError, OnDisk, make_folder, names_in, sync_file_system, sync_folder, write_durably};
use crate::image_id::ImageId;
use crate::images::ImageError;
use crate::ingest::{NewLayer, ingest_layer};
use crate::layout::{COMPRESSED, Layout};
use crate::model::{Document, ImageConfig, Manifest};
use crate::progress::Progress;
use crate::reference::ImageRef;
use crate::registry::RegistryClient;
use crate::stack::StackError;
use crate::store::{Store, StoreError};
use crate::timestamp::Timestamp;
use crate::work::WorkDir;

/// Mends everything that can be, and says of each finding what became of it.
pub(super) fn repair(
    store: &Store,
    catalog: &Catalog,
    findings: &mut [Finding],
    client: Option<&RegistryClient>,
    work: &WorkDir,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let mut repair = Repair { store, catalog, client, work, progress, numbers: 0 };
    let open: Vec<Subject> =
        findings.iter().filter(|finding| finding.outcome == Outcome::Left).map(|f| f.subject).collect();
    let mut outcomes: BTreeMap<Subject, Outcome> = BTreeMap::new();
    let mut layers: BTreeSet<DiffId> = BTreeSet::new();
    let mut documents: BTreeSet<Digest> = BTreeSet::new();
    for subject in open {
        match subject {
            Subject::Layer(layer) => match repair.decompress(layer)? {
                true => {
                    outcomes.insert(subject, Outcome::Repaired("made again from its compressed form".to_owned()));
                }
                false => {
                    layers.insert(layer);
                }
            },
            Subject::Config(digest) | Subject::Manifest(digest) => {
                documents.insert(digest);
            }
            Subject::Record(image) => {
                repair.record(ImageId(image))?;
                outcomes.insert(subject, Outcome::Repaired("taken from the configuration".to_owned()));
            }
            Subject::Lease(_) => {
                let why = "only its owner knows what it keeps: remove it below leases/ if nobody needs it".to_owned();
                outcomes.insert(subject, Outcome::Lost(why));
            }
            _ => {}
        }
    }
    repair.ask_registries(layers, documents, &mut outcomes)?;
    for finding in findings {
        if let Some(outcome) = outcomes.remove(&finding.subject) {
            finding.outcome = outcome;
        }
    }
    Ok(())
}

struct Repair<'r> {
    store: &'r Store,
    catalog: &'r Catalog,
    client: Option<&'r RegistryClient>,
    work: &'r WorkDir,
    progress: &'r dyn Progress,
    numbers: usize,
}

impl Repair<'_> {
    /// Decompresses the form of a layer that came over the network, where it was kept and is whole.
    fn decompress(&mut self, layer: DiffId) -> Result<bool, StoreError> {
        let folder = self.store.layout.layer(layer);
        let Ok(compressed) = File::open(folder.join(COMPRESSED)) else { return Ok(false) };
        self.numbers += 1;
        let place = self.work.path().join(format!("again-{}", self.numbers));
        let Ok(new) = ingest_layer(compressed, place, u64::MAX, Some(layer), &mut |_| ()) else { return Ok(false) };
        if new.diff_id != layer {
            return Ok(false);
        }
        fs::rename(folder.join(COMPRESSED), new.folder.join(COMPRESSED)).on_disk("rename", &folder)?;
        self.replace_layer(layer, &new)?;
        Ok(true)
    }

    /// Fetches what is damaged from the registries that images are known to be in; what cannot be had is put aside.
    fn ask_registries(
        &mut self,
        mut layers: BTreeSet<DiffId>,
        mut documents: BTreeSet<Digest>,
        outcomes: &mut BTreeMap<Subject, Outcome>,
    ) -> Result<(), StoreError> {
        // A disk that failed to read something may not do so again; then nothing needs to be replaced.
        documents.retain(|digest| {
            let damaged = !self.is_sound(*digest);
            if !damaged {
                outcomes.insert(Subject::Config(*digest), Outcome::Repaired(READ_AGAIN.to_owned()));
                outcomes.insert(Subject::Manifest(*digest), Outcome::Repaired(READ_AGAIN.to_owned()));
            }
            damaged
        });
        let mut failures: BTreeMap<ImageId, String> = BTreeMap::new();
        for (id, record) in &self.catalog.images {
            let damaged: BTreeSet<DiffId> =
                record.layers.iter().copied().filter(|layer| layers.contains(layer)).collect();
            let needed = [id.0, record.manifest].iter().any(|digest| documents.contains(digest));
            if damaged.is_empty() && !needed {
                continue;
            }
            let failure = match self.fetch(*id, &damaged) {
                Err(why) => why,
                Ok((reference, fetched)) => {
                    for (layer, new) in &fetched.layers {
                        self.replace_layer(*layer, new)?;
                        layers.remove(layer);
                        let how = format!("fetched again from {}", reference.familiar());
                        outcomes.insert(Subject::Layer(*layer), Outcome::Repaired(how));
                    }
                    for bytes in [&fetched.config, &fetched.manifest] {
                        let digest = Digest::of(bytes);
                        if documents.remove(&digest) {
                            self.replace_blob(digest, bytes)?;
                            let how = Outcome::Repaired(format!("fetched again from {}", reference.familiar()));
                            outcomes.insert(Subject::Config(digest), how.clone());
                            outcomes.insert(Subject::Manifest(digest), how);
                        }
                    }
                    // The registry's manifest is another one than that of the image.
                    if !documents.contains(&record.manifest) {
                        continue;
                    }
                    format!("{} has another manifest", reference.familiar())
                }
            };
            if documents.contains(&record.manifest) && self.plain_manifest(*id, record)? {
                documents.remove(&record.manifest);
                let how = "written anew for the layers as they are; the registry's digest of the image is lost";
                outcomes.insert(Subject::Manifest(record.manifest), Outcome::Repaired(how.to_owned()));
            }
            failures.insert(*id, failure);
        }
        let why = |needs: &dyn Fn(&ImageId, &ImageRecord) -> bool| {
            let images = self.catalog.images.iter().filter(|(id, record)| needs(id, record));
            let why: Vec<&str> = images.filter_map(|(id, _)| failures.get(id)).map(String::as_str).collect();
            why.first().map_or("no image needs it", |why| why).to_owned()
        };
        // What cannot be had elsewhere is put aside if it is wrong, and stays if the disk fails to read it.
        for layer in layers {
            let outcome = match self.store.read_layer_again(layer, None, &mut |_| ()) {
                Ok(_) => Outcome::Repaired(READ_AGAIN.to_owned()),
                Err(error) => {
                    if !matches!(error, StackError::Store(_)) {
                        put_aside(&self.store.layout, &self.store.layout.layer(layer))?;
                    }
                    Outcome::Lost(why(&|_, record| record.layers.contains(&layer)))
                }
            };
            outcomes.insert(Subject::Layer(layer), outcome);
        }
        for digest in documents {
            if !matches!(self.store.blob(digest), Err(ImageError::Store(_))) {
                put_aside(&self.store.layout, &self.store.layout.blob(digest))?;
            }
            let outcome = Outcome::Lost(why(&|id, record| id.0 == digest || record.manifest == digest));
            outcomes.insert(Subject::Config(digest), outcome.clone());
            outcomes.insert(Subject::Manifest(digest), outcome);
        }
        Ok(())
    }

    /// Returns whether a document can be read, and is what the images that have it need.
    fn is_sound(&self, digest: Digest) -> bool {
        let Ok(bytes) = self.store.blob(digest) else { return false };
        self.catalog.images.iter().all(|(id, record)| {
            let config = id.0 != digest || ImageConfig::parse(&bytes).is_ok();
            let fits =
                |manifest: &Manifest| manifest.config.digest == id.0 && manifest.layers.len() == record.layers.len();
            let manifest = record.manifest != digest
                || matches!(Document::parse(&bytes, ""), Ok(Document::Manifest(manifest)) if fits(&manifest));
            config && manifest
        })
    }

    /// Fetches what is damaged of one image from the first repository that has it; else says why that failed.
    fn fetch(
        &mut self,
        id: ImageId,
        damaged: &BTreeSet<DiffId>,
    ) -> Result<(ImageRef, crate::registry::FetchedAgain), String> {
        let client = self.client.ok_or("registries are not asked")?;
        let sources: Vec<ImageRef> =
            self.catalog.names_of(id).filter(|name| name.digest().is_some()).cloned().collect();
        let mut why = "no registry is known to have the image: load or build it again".to_owned();
        let platform = self.store.blob(id.0).ok().and_then(|bytes| ImageConfig::parse(&bytes).ok());
        let platform = platform.map(|config| config.platform()).filter(|platform| !platform.architecture.is_empty());
        for source in sources {
            let image = (&source, id);
            match self.store.fetch_again(client, image, platform.clone(), damaged, self.work, self.progress) {
                Ok(fetched) => return Ok((source, fetched)),
                Err(error) => why = format!("{}: {}", source.familiar(), with_causes(&error)),
            }
        }
        Err(why)
    }

    /// Writes the manifest of an image's layers as plain tars, which says the same but for the compressed forms.
    fn plain_manifest(&self, id: ImageId, record: &ImageRecord) -> Result<bool, StoreError> {
        let Ok(config) = self.store.blob(id.0) else { return Ok(false) };
        let mut layers = Vec::with_capacity(record.layers.len());
        for layer in &record.layers {
            let Ok(size) = self.store.tar_size(*layer) else { return Ok(false) };
            layers.push((*layer, size));
        }
        let manifest = Manifest::of_plain_layers((id.0, config.len() as u64), &layers);
        let digest = Digest::of(&manifest);
        put_aside(&self.store.layout, &self.store.layout.blob(record.manifest))?;
        self.replace_blob(digest, &manifest)?;
        self.change(|catalog| {
            if let Some(found) = catalog.images.get_mut(&id) {
                found.manifest = digest;
            }
        })?;
        Ok(true)
    }

    /// Makes the record of an image what its configuration says.
    fn record(&self, id: ImageId) -> Result<(), StoreError> {
        let Some(config) = self.store.blob(id.0).ok().and_then(|bytes| ImageConfig::parse(&bytes).ok()) else {
            return Ok(());
        };
        self.change(|catalog| {
            if let Some(found) = catalog.images.get_mut(&id) {
                found.layers.clone_from(&config.rootfs.diff_ids);
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Catalog)) -> Result<(), StoreError> {
        let guard = CatalogGuard::lock(&self.store.layout)?;
        let mut catalog = guard.read()?;
        change(&mut catalog);
        Ok(guard.write(&catalog)?)
    }

    /// Puts a whole layer in the place of a damaged one.
    fn replace_layer(&self, layer: DiffId, new: &NewLayer) -> Result<(), StoreError> {
        sync_file_system(&new.folder)?;
        let _guard = CatalogGuard::lock(&self.store.layout)?;
        let place = self.store.layout.layer(layer);
        put_aside(&self.store.layout, &place)?;
        fs::rename(&new.folder, &place).on_disk("rename", &place)?;
        Ok(sync_folder(&self.store.layout.layers())?)
    }

    fn replace_blob(&self, digest: Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let place = self.store.layout.blob(digest);
        put_aside(&self.store.layout, &place)?;
        let aside = self.work.path().join(digest.hex());
        write_durably(&aside, bytes)?;
        fs::rename(&aside, &place).on_disk("rename", &place)?;
        Ok(sync_folder(&self.store.layout.blobs())?)
    }
}

impl Check<'_> {
    /// Deals with a list of images that cannot be read; returns the one to go on with.
    pub(super) fn damaged_catalog(&mut self) -> Result<Catalog, StoreError> {
        self.found(Subject::Catalog, "its digest is wrong: no image can be used, and nothing is collected");
        if !matches!(self.options.mend, Mend::Everything(_)) {
            return Ok(Catalog::default());
        }
        let guard = CatalogGuard::lock(&self.store.layout)?;
        let catalog = match guard.read() {
            // Raced with somebody who has repaired it.
            Ok(catalog) => return Ok(catalog),
            Err(_) => self.store.images_by_documents()?,
        };
        // The old one stays in its place until the new one is there: without any, everything would count as unneeded.
        keep_copy(&self.store.layout, &self.store.layout.catalog())?;
        guard.write(&catalog)?;
        if let Some(finding) = self.report.findings.last_mut() {
            let how = format!("{} images found again by their documents; their names are lost", catalog.images.len());
            finding.outcome = Outcome::Repaired(how);
        }
        Ok(catalog)
    }
}

impl Store {
    /// Finds the images by their documents. Those that lack something are among them, so that the rest of them is kept, and
    /// what is missing is found by whoever checks them.
    fn images_by_documents(&self) -> Result<Catalog, StoreError> {
        let mut catalog = Catalog::default();
        let now = u64::try_from(Timestamp::now().seconds).unwrap_or(0);
        let by_blob = self.layers_by_blob()?;
        let mut configs = Vec::new();
        for name in names_in(&self.layout.blobs())? {
            let Ok(digest) = Digest::from_hex(&name) else { continue };
            let Ok(bytes) = self.blob(digest) else { continue };
            let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, "") else {
                let config = ImageConfig::parse(&bytes).ok().filter(|config| !config.rootfs.diff_ids.is_empty());
                configs.extend(config.map(|config| (ImageId(digest), config.rootfs.diff_ids)));
                continue;
            };
            let config = self.blob(manifest.config.digest).ok().and_then(|bytes| ImageConfig::parse(&bytes).ok());
            let layers = match config {
                Some(config) if config.rootfs.diff_ids.len() == manifest.layers.len() => config.rootfs.diff_ids,
                Some(_) => continue,
                // The blobs tell which layers these are; a layer that is stored as it came has the digest of its tar.
                None => {
                    let layer = |blob: Digest| by_blob.get(&blob).copied().unwrap_or(DiffId(blob));
                    manifest.layers.iter().map(|descriptor| layer(descriptor.digest)).collect()
                }
            };
            let record = ImageRecord { manifest: digest, layers, tagged: now };
            catalog.images.insert(ImageId(manifest.config.digest), record);
        }
        for (id, layers) in configs {
            // The digest of a manifest that nobody has: a check finds it missing, and a repair writes another.
            let manifest = Digest::of(format!("manifest of {id}").as_bytes());
            catalog.images.entry(id).or_insert(ImageRecord { manifest, layers, tagged: now });
        }
        Ok(catalog)
    }
}

/// Returns a free place for something damaged.
fn aside(layout: &Layout, path: &Path) -> Result<PathBuf, DiskError> {
    make_folder(&layout.quarantine())?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let free = |place: &PathBuf| !place.exists();
    let numbered = |number: usize| layout.quarantine().join(format!("{name}.{number}"));
    Ok((1..).map(numbered).find(free).unwrap_or_else(|| numbered(0)))
}

/// Keeps a damaged file that is about to be replaced. What is not there needs no keeping.
fn keep_copy(layout: &Layout, path: &Path) -> Result<(), DiskError> {
    let place = aside(layout, path)?;
    // Where there are no hard links, a copy does.
    match fs::hard_link(path, &place).or_else(|_| fs::copy(path, &place).map(drop)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.on_disk("copy", path),
    }
}

/// Moves something damaged out of the way. What is not there needs no moving.
fn put_aside(layout: &Layout, path: &Path) -> Result<(), DiskError> {
    let place = aside(layout, path)?;
    match fs::rename(path, &place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.on_disk("rename", path),
    }
}

/// Removes what was put aside. Returns how many bytes it took.
pub(crate) fn empty_quarantine(layout: &Layout) -> Result<u64, DiskError> {
    let folder = layout.quarantine();
    let bytes = crate::usage::disk_space(&folder)?;
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on_disk("remove", &folder),
        _ => Ok(bytes),
    }
}

const READ_AGAIN: &str = "the disk has read it without an error this time";
