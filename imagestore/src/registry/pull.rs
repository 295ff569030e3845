//! `pull`: an image of a registry into the store.
//!
//! The manifest says what the layers are compressed, the configuration what they are uncompressed. Both must come true
//! while the bytes stream from the network through the decompressor into tar and index; nothing is visible before.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use strata_layer::{DiffId, Digest};

use super::client::{Endpoint, RegistryClient, Remote};
use super::download::{Download, Downloader, remotes};
use super::early::Early;
use super::error::RegistryError;
use super::manifests::Fetched;
use crate::image_id::ImageId;
use crate::ingest::{NewLayer, ingest_layer};
use crate::layout::COMPRESSED;
use crate::lazy::is_refused;
use crate::model::{Descriptor, Document, ImageConfig, MAX_CONFIG, Manifest, Platform};
use crate::progress::{Event, Progress};
use crate::publish::NewImage;
use crate::reference::ImageRef;
use crate::store::{Store, StoreError};
use crate::work::WorkDir;

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The machine to choose an image for; this one if `None`.
    pub platform: Option<Platform>,
    /// The most bytes that one layer may have uncompressed.
    pub max_layer_size: u64,
    /// Whether layers that are told of beforehand need not be here yet. Somebody has to fetch them then: see
    /// [`Fetcher`](crate::Fetcher).
    pub start: Start,
}

/// What of an image must be here before it can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Everything.
    #[default]
    Whole,
    /// Of layers with a table of contents, no more than that.
    Early,
}

impl Default for PullOptions {
    fn default() -> Self {
        PullOptions { platform: None, max_layer_size: 64 << 30, start: Start::Whole }
    }
}

/// An image that is in the store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its name.
    pub reference: ImageRef,
    /// The image.
    pub id: ImageId,
    /// The digest that the registry knows it by: of its index, where it has one.
    pub digest: Digest,
    /// Whether all of it, and its name, was there before.
    pub up_to_date: bool,
    /// Whether some of its layers are not whole.
    pub early: bool,
}

/// What was fetched again of an image.
pub(crate) struct FetchedAgain {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) layers: BTreeMap<DiffId, NewLayer>,
}

/// What was found out about an image before any layer is fetched.
struct Found<'c> {
    remote: Remote<'c>,
    digest: Digest,
    manifest: Fetched,
    layers: Vec<Descriptor>,
    config: Vec<u8>,
    diff_ids: Vec<DiffId>,
}

impl Store {
    /// Pulls an image.
    pub fn pull(
        &self,
        client: &RegistryClient,
        reference: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, RegistryError> {
        self.check_writable()?;
        let repository = reference.path();
        let tag = reference.digest().map_or_else(|| reference.tag().unwrap_or("").to_owned(), |d| d.to_string());
        let endpoints = client.endpoints(reference.host(), true);
        let found = client.patiently_first_of(&endpoints, (progress, &tag), |endpoint| {
            let scopes = vec![format!("repository:{repository}:pull")];
            let remote = Remote { client, endpoint: endpoint.clone(), scopes, login: None };
            self.find(&remote, reference, options, progress)
        });
        let found = found.map_err(|error| explain(error, reference))?;
        progress.report(Event::Pulling { tag: &tag, repository });
        let pulled = match self.pull_found(&endpoints, &found, reference, options, progress) {
            // What was left of an earlier download, and is now discarded, may be to blame.
            Err(Failed { resumed: true, .. }) => self.pull_found(&endpoints, &found, reference, options, progress),
            result => result,
        };
        let pulled = pulled.map_err(|failed| failed.error)?;
        self.note("pull", &reference.familiar(), &reference.familiar_repository(), self.labels_of(pulled.id));
        Ok(pulled)
    }

    /// Fetches of an image what is damaged, from where it was pulled.
    ///
    /// `reference` is the name by the digest that the registry knows it by; `platform` the machine that it is for.
    pub(crate) fn fetch_again(
        &self,
        client: &RegistryClient,
        (reference, image): (&ImageRef, ImageId),
        platform: Option<Platform>,
        damaged: &BTreeSet<DiffId>,
        work: &WorkDir,
        progress: &dyn Progress,
    ) -> Result<FetchedAgain, RegistryError> {
        let options = PullOptions { platform, ..PullOptions::default() };
        let endpoints = client.endpoints(reference.host(), true);
        let found = client.patiently_first_of(&endpoints, (progress, "manifest"), |endpoint| {
            let scopes = vec![format!("repository:{}:pull", reference.path())];
            let remote = Remote { client, endpoint: endpoint.clone(), scopes, login: None };
            self.find(&remote, reference, &options, progress)
        });
        let found = found.map_err(|error| explain(error, reference))?;
        if Digest::of(&found.config) != image.0 {
            let (what, found) = (format!("the configuration of {}", reference.familiar()), Digest::of(&found.config));
            return Err(RegistryError::Digest { what, expected: image.0, found });
        }
        let mut jobs = Vec::new();
        let mut seen = BTreeSet::new();
        let mut wanted: Vec<_> = found.layers.iter().zip(&found.diff_ids).collect();
        // In the order of their digests, as whoever pulls takes them.
        wanted.sort_by_key(|(layer, _)| layer.digest);
        for (layer, diff_id) in wanted {
            if damaged.contains(diff_id) && seen.insert(*diff_id) {
                let download = Download::open(&self.layout, layer.digest, layer.size).map_err(StoreError::from)?;
                jobs.push(Job { download: Arc::new(download), diff_id: *diff_id });
            }
        }
        let layers = take_layers(&jobs, &endpoints, &found, reference, work, &options, progress)
            .map_err(|failed| failed.error)?;
        jobs.iter().for_each(|job| job.download.discard());
        Ok(FetchedAgain { config: found.config, manifest: found.manifest.bytes, layers })
    }

    /// Fetches the documents of an image.
    fn find<'c>(
        &self,
        remote: &Remote<'c>,
        reference: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Found<'c>, RegistryError> {
        let repository = reference.path();
        let wanted = options.platform.clone().unwrap_or_else(Platform::host);
        let top = remote.manifest(repository, reference)?;
        let digest = top.digest;
        let (manifest, parsed) = remote.choose(repository, top, &wanted)?;
        let what = || format!("manifest {}", manifest.digest);
        parsed.check_is_image().map_err(|source| RegistryError::Document { what: what(), source })?;
        if let Some(layer) = parsed.layers.iter().find(|layer| layer.is_foreign()) {
            return Err(RegistryError::ForeignLayer { digest: layer.digest });
        }
        let config = self.fetch_config(remote, repository, &parsed, progress)?;
        let document = ImageConfig::parse(&config)
            .map_err(|source| RegistryError::Config { digest: parsed.config.digest, source: Box::new(source) })?;
        check_platform(reference, options, &document)?;
        let diff_ids = document.rootfs.diff_ids;
        if diff_ids.len() != parsed.layers.len() {
            return Err(RegistryError::LayerCount { manifest: parsed.layers.len(), config: diff_ids.len() });
        }
        Ok(Found { remote: remote.clone(), digest, manifest, layers: parsed.layers, config, diff_ids })
    }

    /// Returns an image's configuration, which is not fetched if it is here.
    fn fetch_config(
        &self,
        remote: &Remote<'_>,
        repository: &str,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<Vec<u8>, RegistryError> {
        match self.blob(manifest.config.digest) {
            Ok(bytes) => Ok(bytes),
            Err(_) => remote.small_blob(repository, &manifest.config, MAX_CONFIG, progress),
        }
    }

    fn pull_found(
        &self,
        endpoints: &[Endpoint],
        found: &Found<'_>,
        reference: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, Failed> {
        let image = NewImage {
            config: found.config.clone(),
            manifest: found.manifest.bytes.clone(),
            layers: found.diff_ids.clone(),
            names: names_for(reference, found.digest),
            replaces_manifest: true,
        };
        let work = WorkDir::create(&self.layout).map_err(StoreError::from)?;
        let mut wanted: BTreeMap<Digest, (u64, DiffId)> = BTreeMap::new();
        let mut order = Vec::new();
        let present: BTreeSet<DiffId> = self.pin_present(&work, &found.diff_ids)?.into_iter().collect();
        if found.diff_ids.iter().all(|diff_id| present.contains(diff_id)) && self.has_names(&image)? {
            let early = !self.absent_layers(&image.layers).map_err(StoreError::from)?.is_empty();
            let (reference, id) = (reference.clone(), image.id());
            return Ok(Pulled { reference, id, digest: found.digest, up_to_date: true, early });
        }
        for (layer, diff_id) in found.layers.iter().zip(&found.diff_ids) {
            let name = layer.digest.to_string();
            if present.contains(diff_id) {
                progress.report(Event::Present { layer: &name });
                continue;
            }
            match wanted.insert(layer.digest, (layer.size, *diff_id)) {
                // The same blob cannot be two different tars.
                Some((_, other)) if other != *diff_id => {
                    let (blob, expected) = (layer.digest, *diff_id);
                    return Err(RegistryError::DiffId { blob, expected, found: other }.into());
                }
                Some(_) => {}
                None => {
                    progress.report(Event::Waiting { layer: &name });
                    order.push(layer.digest);
                }
            }
        }
        let mut early = BTreeMap::new();
        if options.start == Start::Early {
            let by_tag = reference.digest().is_none();
            let place = (reference.host(), reference.path());
            let describer = Early::new(&found.remote, place, by_tag.then_some(found.manifest.digest), progress);
            for layer in &found.layers {
                let Some((_, diff_id)) = wanted.get(&layer.digest) else { continue };
                if is_refused(&self.layout.layer(*diff_id)).map_err(StoreError::from)? {
                    // What was told of it beforehand was wrong once.
                    continue;
                }
                let folder = work.path().join(format!("early-{}", early.len()));
                if let Some(new) = describer.describe(layer, *diff_id, folder)? {
                    progress.report(Event::Early { layer: &layer.digest.to_string() });
                    early.insert(*diff_id, new);
                    wanted.remove(&layer.digest);
                    order.retain(|digest| *digest != layer.digest);
                }
            }
        }
        // In the order of their digests, so that two processes never wait for each other in a circle.
        let mut downloads = HashMap::new();
        for (digest, (size, _)) in &wanted {
            let download = Download::open(&self.layout, *digest, *size).map_err(StoreError::from)?;
            downloads.insert(*digest, Arc::new(download));
        }
        // Another process may have stored some while we waited.
        let missing: Vec<DiffId> = wanted.values().map(|(_, diff_id)| *diff_id).collect();
        let arrived: BTreeSet<DiffId> = self.pin_present(&work, &missing)?.into_iter().collect();
        let jobs: Vec<Job> = order
            .iter()
            .map(|digest| Job { download: Arc::clone(&downloads[digest]), diff_id: wanted[digest].1 })
            .filter(|job| !arrived.contains(&job.diff_id))
            .collect();
        let mut taken = take_layers(&jobs, endpoints, found, reference, &work, options, progress)?;

        taken.append(&mut early);
        let images = std::slice::from_ref(&image);
        let stacks = self.merge_new_stacks(&work, &taken, images)?;
        self.publish(&work, &taken, &stacks, images)?;
        for download in downloads.values() {
            download.discard();
        }
        let early = !self.absent_layers(&image.layers).map_err(StoreError::from)?.is_empty();
        Ok(Pulled { reference: reference.clone(), id: image.id(), digest: found.digest, up_to_date: false, early })
    }

    /// Returns whether an image is here under all of its names.
    fn has_names(&self, image: &NewImage) -> Result<bool, RegistryError> {
        let catalog = self.catalog().map_err(StoreError::from)?;
        let id = image.id();
        let manifest = Digest::of(&image.manifest);
        let named = |name: &ImageRef| catalog.names.get(name).is_some_and(|record| record.image == id);
        let same = catalog.images.get(&id).is_some_and(|record| record.manifest == manifest);
        Ok(same && image.names.iter().all(named))
    }
}

/// The names that a pulled image gets: as it was asked for, and by its digest.
pub(super) fn names_for(reference: &ImageRef, digest: Digest) -> Vec<ImageRef> {
    let by_digest = reference.with_digest(digest);
    // A tag beside a digest is only what people read.
    let by_tag = reference.digest().is_none().then(|| reference.clone());
    by_tag.into_iter().chain([by_digest]).collect()
}

/// A layer to fetch and take in.
struct Job {
    download: Arc<Download>,
    diff_id: DiffId,
}

/// A pull that failed, and whether old parts of downloads may be to blame.
struct Failed {
    error: RegistryError,
    resumed: bool,
}

impl<E: Into<RegistryError>> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed { error: error.into(), resumed: false }
    }
}

/// Downloads and takes in all layers, several at once.
fn take_layers(
    jobs: &[Job],
    endpoints: &[Endpoint],
    found: &Found<'_>,
    reference: &ImageRef,
    work: &WorkDir,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<BTreeMap<DiffId, NewLayer>, Failed> {
    let downloads: Vec<Arc<Download>> = jobs.iter().map(|job| Arc::clone(&job.download)).collect();
    let settings = found.remote.client.settings();
    let downloader = Downloader { remotes: remotes(&found.remote, endpoints), path: reference.path(), progress };
    let failed: Mutex<Option<Failed>> = Mutex::new(None);
    let taken = Mutex::new(BTreeMap::new());
    let queue: Mutex<VecDeque<(usize, &Job)>> = Mutex::new(jobs.iter().enumerate().collect());
    let fail = |failure: Failed| {
        if failure.resumed {
            // One was damaged, so none that is as old is worth trusting.
            downloads.iter().filter(|download| download.resumed).for_each(|download| download.discard());
        }
        // The first error is the one that is told; the others follow from it.
        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
        downloads.iter().for_each(|download| download.fail());
    };
    let takers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MAX_TAKERS).min(jobs.len());
    let connections = settings
        .max_downloads
        .min(downloads.iter().map(|d| d.size.div_ceil(1 << 24).max(1)).sum::<u64>().try_into().unwrap_or(usize::MAX));
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                if let Err(error) = downloader.run(&downloads) {
                    fail(error.into());
                }
            });
        }
        for _ in 0..takers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((number, job)) = next else { return };
                    match take_layer(job, number, work, options, settings.keep_blobs, progress) {
                        Ok(new) => {
                            taken.lock().unwrap_or_else(PoisonError::into_inner).insert(job.diff_id, new);
                        }
                        Err(failure) => return fail(failure),
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(taken.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// Takes one layer in while it is downloaded, and checks that it is what both documents say.
fn take_layer(
    job: &Job,
    number: usize,
    work: &WorkDir,
    options: &PullOptions,
    keep_blob: bool,
    progress: &dyn Progress,
) -> Result<NewLayer, Failed> {
    let Job { download, diff_id } = job;
    let name = download.digest.to_string();
    progress.report(Event::Started { layer: &name, bytes: Some(download.size) });
    let folder = work.path().join(format!("layer-{number}"));
    let taken = ingest_layer(download.reader(), folder, options.max_layer_size, Some(*diff_id), &mut |_| ());
    let checked = match taken {
        Err(source) if !source.is_content() => {
            return Err(RegistryError::Layer { blob: download.digest, source }.into());
        }
        Err(source) => Err(RegistryError::Layer { blob: download.digest, source }),
        Ok(new) if new.blob != download.digest => {
            let what = format!("layer {}", download.digest);
            Err(RegistryError::Digest { what, expected: download.digest, found: new.blob })
        }
        Ok(new) if new.diff_id != *diff_id => {
            Err(RegistryError::DiffId { blob: download.digest, expected: *diff_id, found: new.diff_id })
        }
        Ok(new) => Ok(new),
    };
    match checked {
        Ok(new) => {
            if keep_blob && new.blob != new.diff_id.0 {
                download.keep_as(&new.folder.join(COMPRESSED)).map_err(StoreError::from)?;
            }
            progress.report(Event::Finished { layer: &name });
            Ok(new)
        }
        Err(error) => {
            // It is wrong, so nobody should go on from there.
            download.discard();
            Err(Failed { error, resumed: download.resumed })
        }
    }
}

fn check_platform(reference: &ImageRef, options: &PullOptions, config: &ImageConfig) -> Result<(), RegistryError> {
    let Some(wanted) = &options.platform else { return Ok(()) };
    let found = config.platform();
    if found.architecture.is_empty() || found.fitness(wanted).is_some() {
        return Ok(());
    }
    let (found, wanted) = (found.to_string(), wanted.to_string());
    Err(RegistryError::PlatformMismatch { reference: reference.familiar(), found, wanted })
}

/// Says in Docker's words what a refusal means.
pub(super) fn explain(error: RegistryError, reference: &ImageRef) -> RegistryError {
    let RegistryError::Status { status, ref codes, .. } = error else { return error };
    let unknown_name = codes.iter().any(|code| code == "NAME_UNKNOWN");
    let source = Box::new(error);
    match status {
        401 | 403 => RegistryError::Denied { repository: reference.familiar_repository().into_owned(), source },
        404 if unknown_name => {
            RegistryError::Denied { repository: reference.familiar_repository().into_owned(), source }
        }
        404 => RegistryError::NotFound { reference: reference.familiar(), source },
        _ => *source,
    }
}

/// Returns the document as a manifest, if it is one.
pub(super) fn as_manifest(document: Document) -> Result<Manifest, Vec<Descriptor>> {
    match document {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(index) => Err(index.manifests),
    }
}

/// More threads than CPUs do not make decompression faster, and each takes memory.
const MAX_TAKERS: usize = 4;
