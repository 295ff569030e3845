//! `push`: an image of the store into a registry.
//!
//! The image keeps the manifest that it was pulled with, and so its digest, as long as the registry has its blobs, can
//! take them from another of its repositories, or they can be made here: layers that were kept compressed, that are not
//! compressed at all, or that compress to the same bytes again. A layer for which none of this holds is compressed
//! anew, and the manifest then says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use strata_layer::{DiffId, Digest};

use super::client::{RegistryClient, Remote};
use super::error::RegistryError;
use super::push_index::{Subject, push_index};
use super::push_source::{Kept, Packed};
use crate::compress::CompressionFormat;
use crate::disk::{DiskError, OnDisk, create_new, open_if_present, read_if_present};
use crate::images::Image;
use crate::layout::{COMPRESSED, FORMS, TAR};
use crate::model::{Descriptor, Document};
use crate::progress::{Event, Progress, Upload};
use crate::publish::NewImage;
use crate::reference::ImageRef;
use crate::store::{Store, StoreError};
use crate::work::WorkDir;

/// How to push.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// How all layers are to be compressed; as they came, and gzip for those that are not compressed, if `None`.
    pub format: Option<CompressionFormat>,
    /// Whether our index of the layers is put beside the image, so that it can start before it is pulled.
    pub with_index: bool,
}

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The name.
    pub reference: ImageRef,
    /// The digest that the registry knows it by.
    pub digest: Digest,
    /// The size of the manifest.
    pub size: u64,
}

/// One layer on its way.
struct Job<'a> {
    diff_id: DiffId,
    descriptor: &'a Descriptor,
}

/// How a layer is described once the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// `None` where the descriptor is right as it is.
    format: Option<CompressionFormat>,
    /// Where the pieces end that it was compressed in, if that was now.
    pub(super) ends: Option<Vec<u64>>,
}

impl Store {
    /// Pushes an image under one of its names.
    pub fn push(
        &self,
        client: &RegistryClient,
        reference: &ImageRef,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Pushed, RegistryError> {
        if reference.digest().is_some() {
            return Err(RegistryError::PushDigest);
        }
        let catalog = self.catalog().map_err(StoreError::from)?;
        let Some(record) = catalog.names.get(reference) else {
            return Err(RegistryError::NotLocal { repository: reference.familiar_repository().into_owned() });
        };
        let image = self.image(&record.image)?;
        let work = WorkDir::create(&self.layout).map_err(StoreError::from)?;
        // Nobody removes them meanwhile.
        self.pin_present(&work, &image.layers)?;
        let what = || format!("manifest {}", image.manifest);
        let document = Document::parse(&image.raw_manifest, "");
        let Ok(manifest) =
            super::pull::as_manifest(document.map_err(|source| RegistryError::Document { what: what(), source })?)
        else {
            return Err(RegistryError::Nesting { digest: image.manifest });
        };
        let jobs: Vec<Job> = image
            .layers
            .iter()
            .zip(&manifest.layers)
            .map(|(diff_id, descriptor)| Job { diff_id: *diff_id, descriptor })
            .collect();
        for job in &jobs {
            progress.report(Event::Waiting { layer: &job.diff_id.to_string() });
        }
        let sources = self.sources(reference, &image.layers)?;
        let repository = reference.path();
        let mut scopes = vec![format!("repository:{repository}:pull,push")];
        let others: BTreeSet<&String> = sources.values().flatten().collect();
        scopes.extend(others.iter().take(MAX_SOURCES).map(|name| format!("repository:{name}:pull")));
        // Its mirrors have what the registry has, not the other way round.
        client.first_of(&client.endpoints(reference.host(), false), |endpoint| {
            let remote = Remote { client, endpoint: endpoint.clone(), scopes: scopes.clone(), login: None };
            let pushing = Pushing { store: self, remote, repository, sources: &sources, options, progress };
            let sent = pushing.send_layers(&jobs)?;
            pushing.send_config(&image, &manifest.config)?;
            let bytes = rewrite(&image.raw_manifest, &sent)?;
            let media_type = media_type_of(&bytes);
            client.patiently(progress, "manifest", || {
                pushing.remote.put_manifest(repository, reference.tag().unwrap_or(""), &media_type, &bytes)
            })?;
            let digest = Digest::of(&bytes);
            let size = bytes.len() as u64;
            if options.with_index {
                let layers: Vec<_> = image.layers.iter().copied().zip(sent).collect();
                let subject = Subject { media_type: &media_type, digest, size };
                push_index(self, &pushing.remote, repository, &layers, &subject, progress)?;
            }
            self.note_pushed(&work, &image, reference.with_digest(digest), bytes)?;
            let labels = image.config.config.labels.clone().unwrap_or_default();
            self.note("push", &reference.familiar(), &reference.familiar_repository(), labels);
            Ok(Pushed { reference: reference.clone(), digest, size })
        })
    }

    /// Finds, for each layer, other repositories of the same registry that should have it.
    fn sources(&self, reference: &ImageRef, layers: &[DiffId]) -> Result<BTreeMap<DiffId, Vec<String>>, RegistryError> {
        let catalog = self.catalog().map_err(StoreError::from)?;
        let mut sources: BTreeMap<DiffId, Vec<String>> = BTreeMap::new();
        // Only what came from a registry, or went there, has a name with a digest.
        let known = catalog.names.iter().filter(|(name, _)| name.digest().is_some() && name.host() == reference.host());
        for (name, record) in known {
            let Some(image) = catalog.images.get(&record.image) else { continue };
            for layer in image.layers.iter().filter(|layer| layers.contains(layer)) {
                let of_layer = sources.entry(*layer).or_default();
                if name.path() != reference.path() && !of_layer.iter().any(|known| known == name.path()) {
                    of_layer.push(name.path().to_owned());
                }
            }
        }
        Ok(sources)
    }

    /// Remembers under which digest the registry has an image now.
    fn note_pushed(
        &self,
        work: &WorkDir,
        image: &Image,
        name: ImageRef,
        manifest: Vec<u8>,
    ) -> Result<(), RegistryError> {
        let catalog = self.catalog().map_err(StoreError::from)?;
        let known = catalog.names.get(&name).is_some_and(|record| record.image == image.id);
        if known && Digest::of(&manifest) == image.manifest {
            return Ok(());
        }
        let pushed = NewImage {
            config: image.raw_config.clone(),
            manifest,
            layers: image.layers.clone(),
            names: vec![name],
            replaces_manifest: true,
        };
        self.publish(work, &BTreeMap::new(), &[], std::slice::from_ref(&pushed))?;
        Ok(())
    }

    /// Returns what a layer compressed to the last time, so that nothing is compressed to ask whether it is there.
    fn known_form(&self, layer: DiffId, format: CompressionFormat) -> Result<Option<(Digest, u64)>, DiskError> {
        let Some(bytes) = read_if_present(&self.layout.layer(layer).join(FORMS))? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        let find = |line: &str| {
            let mut words = line.split(' ');
            let (name, digest, size) = (words.next()?, words.next()?, words.next()?);
            (name == format.name()).then_some((digest.parse().ok()?, size.parse().ok()?))
        };
        Ok(text.lines().find_map(find))
    }

    /// Notes what a layer compressed to. The note is a convenience: if it cannot be kept, nothing is lost.
    fn note_form(&self, layer: DiffId, format: CompressionFormat, form: (Digest, u64)) -> Result<(), DiskError> {
        if self.known_form(layer, format)?.is_some() {
            return Ok(());
        }
        let path = self.layout.layer(layer).join(FORMS);
        let mut text = read_if_present(&path)?.unwrap_or_default();
        text.extend(format!("{} {} {}\n", format.name(), form.0, form.1).bytes());
        let work = WorkDir::create(&self.layout)?;
        let aside = work.path().join(FORMS);
        std::io::Write::write_all(&mut create_new(&aside)?, &text).on_disk("write", &aside)?;
        std::fs::rename(&aside, &path).on_disk("rename", &path)
    }
}

/// Everything that sending the blobs of one image needs.
struct Pushing<'a> {
    store: &'a Store,
    remote: Remote<'a>,
    repository: &'a str,
    sources: &'a BTreeMap<DiffId, Vec<String>>,
    options: &'a PushOptions,
    progress: &'a dyn Progress,
}

impl Pushing<'_> {
    /// Sends the layers, several at once; returns how they are described now.
    fn send_layers(&self, jobs: &[Job<'_>]) -> Result<Vec<Sent>, RegistryError> {
        let mut unique: Vec<&Job> = Vec::new();
        for job in jobs {
            if !unique.iter().any(|other| other.diff_id == job.diff_id) {
                unique.push(job);
            }
        }
        let threads = self.remote.client.settings().max_uploads.min(unique.len());
        let queue = Mutex::new(unique);
        let done: Mutex<Result<BTreeMap<DiffId, Sent>, RegistryError>> = Mutex::new(Ok(BTreeMap::new()));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                        let Some(job) = next else { return };
                        let name = job.diff_id.to_string();
                        let client = self.remote.client;
                        let sent = client.patiently(self.progress, &name, || self.send_layer(job));
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        match (&mut *done, sent) {
                            (Ok(all), Ok(sent)) => {
                                all.insert(job.diff_id, sent);
                            }
                            (Ok(_), Err(error)) => {
                                *done = Err(error);
                                queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                            }
                            // The first error is the one that is told.
                            (Err(_), _) => {}
                        }
                    }
                });
            }
        });
        let all = done.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Ok(jobs.iter().filter_map(|job| all.get(&job.diff_id).cloned()).collect())
    }

    /// Makes sure that the registry has a layer.
    fn send_layer(&self, job: &Job<'_>) -> Result<Sent, RegistryError> {
        let plain = job.descriptor.digest == job.diff_id.0;
        let is_zstd = job.descriptor.media_type.ends_with("zstd");
        let format = self.options.format.unwrap_or_default();
        let keeps = match self.options.format {
            None => !plain,
            Some(CompressionFormat::None) => plain,
            Some(CompressionFormat::Gzip) => !plain && !is_zstd,
            Some(CompressionFormat::Zstd) => !plain && is_zstd,
        };
        let as_it_is = Sent { digest: job.descriptor.digest, size: job.descriptor.size, format: None, ends: None };
        let done = |sent: Sent, how: Upload<'_>| {
            self.progress.report(Event::Uploaded { layer: &job.diff_id.to_string(), how });
            Ok(sent)
        };
        // What is as it should be goes as it came, if that can be had.
        if keeps {
            if let Some(how) = self.offer(job.diff_id, as_it_is.digest)? {
                return done(as_it_is, how.as_event());
            }
            let kept = self.store.layout.layer(job.diff_id).join(if plain { TAR } else { COMPRESSED });
            if let Some(file) = open_if_present(&kept).map_err(StoreError::from)?
                && file.metadata().is_ok_and(|metadata| metadata.len() == as_it_is.size)
            {
                let name = job.diff_id.to_string();
                let mut source = Kept { file, size: as_it_is.size, layer: name.clone(), progress: self.progress };
                let (found, _) = self.remote.upload_stream(self.repository, &mut source, &name, self.progress)?;
                if found != as_it_is.digest {
                    let what = format!("layer {name} in the store");
                    return Err(RegistryError::Digest { what, expected: as_it_is.digest, found });
                }
                return done(as_it_is, Upload::Sent);
            }
        }
        if let Some((digest, size)) = self.store.known_form(job.diff_id, format).map_err(StoreError::from)?
            && let Some(how) = self.offer(job.diff_id, digest)?
        {
            return done(Sent { digest, size, format: Some(format), ends: None }, how.as_event());
        }
        let path = self.store.layout.layer(job.diff_id).join(TAR);
        let tar = File::open(&path).on_disk("open", &path).map_err(StoreError::from)?;
        let name = job.diff_id.to_string();
        let ends = Mutex::default();
        let mut source = Packed { tar, format, ends, layer: name.clone(), progress: self.progress };
        let form = self.remote.upload_stream(self.repository, &mut source, &name, self.progress)?;
        self.store.note_form(job.diff_id, format, form).map_err(StoreError::from)?;
        // It may be just what the manifest says, when it was compressed here in the first place.
        let format = (form != (as_it_is.digest, as_it_is.size)).then_some(format);
        let ends = source.ends.into_inner().unwrap_or_else(PoisonError::into_inner);
        done(Sent { digest: form.0, size: form.1, format, ends: Some(ends) }, Upload::Sent)
    }

    /// Asks whether the registry has a blob, here or in another repository.
    fn offer(&self, layer: DiffId, digest: Digest) -> Result<Option<Had>, RegistryError> {
        if self.remote.has_blob(self.repository, digest)? {
            return Ok(Some(Had::Here));
        }
        for from in self.sources.get(&layer).into_iter().flatten().take(MAX_SOURCES) {
            match self.remote.mount(self.repository, digest, from) {
                Ok(true) => return Ok(Some(Had::In(from.clone()))),
                Ok(false) | Err(RegistryError::Status { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn send_config(&self, image: &Image, config: &Descriptor) -> Result<(), RegistryError> {
        self.remote.client.patiently(self.progress, "configuration", || {
            if self.remote.has_blob(self.repository, config.digest)? {
                return Ok(());
            }
            let location = self.remote.start_upload(self.repository)?;
            let size = image.raw_config.len() as u64;
            self.remote.upload_known(&location, config.digest, size, &mut &image.raw_config[..])
        })
    }
}

/// Where the registry had a blob already.
enum Had {
    Here,
    In(String),
}

impl Had {
    fn as_event(&self) -> Upload<'_> {
        match self {
            Had::Here => Upload::Present,
            Had::In(repository) => Upload::Mounted { repository },
        }
    }
}

/// Puts layers that are compressed otherwise now into a manifest. Without such layers its bytes stay as they are.
fn rewrite(manifest: &[u8], sent: &[Sent]) -> Result<Vec<u8>, RegistryError> {
    if sent.iter().all(|sent| sent.format.is_none()) {
        return Ok(manifest.to_vec());
    }
    let malformed = || RegistryError::Malformed { url: "the image's manifest".to_owned(), reason: "it has no layers" };
    let mut document: Value = serde_json::from_slice(manifest).map_err(|_| malformed())?;
    let docker = document["mediaType"].as_str().is_some_and(|kind| kind.contains(".docker."));
    let zstd = sent.iter().any(|sent| sent.format == Some(CompressionFormat::Zstd));
    let layers = document.get_mut("layers").and_then(Value::as_array_mut).ok_or_else(malformed)?;
    for (layer, sent) in layers.iter_mut().zip(sent) {
        if let Some(format) = sent.format {
            let media_type = match format {
                CompressionFormat::Gzip if docker && !zstd => DOCKER_GZIP,
                CompressionFormat::None if docker && !zstd => DOCKER_PLAIN,
                CompressionFormat::Gzip => OCI_GZIP,
                CompressionFormat::Zstd => OCI_ZSTD,
                CompressionFormat::None => OCI_PLAIN,
            };
            *layer = json!({"mediaType": media_type, "digest": sent.digest.to_string(), "size": sent.size});
        } else if docker && zstd && layer["mediaType"] == DOCKER_GZIP {
            layer["mediaType"] = json!(OCI_GZIP);
        }
    }
    if docker && zstd {
        // Docker's own documents know no zstd.
        document["mediaType"] = json!(OCI_MANIFEST);
        document["config"]["mediaType"] = json!(OCI_CONFIG);
    }
    Ok(document.to_string().into_bytes())
}

fn media_type_of(manifest: &[u8]) -> String {
    let document: Value = serde_json::from_slice(manifest).unwrap_or_default();
    document["mediaType"].as_str().unwrap_or(OCI_MANIFEST).to_owned()
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER_PLAIN: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// How many other repositories are asked for a layer.
const MAX_SOURCES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_changes_only_where_a_layer_did() {
        let old = |text: &str, size: u64| Sent { digest: Digest::of(text.as_bytes()), size, format: None, ends: None };
        let layer = |kind: &str, text: &str| json!({"mediaType": kind, "digest": Digest::of(text.as_bytes()).to_string(), "size": 1});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json"},
            "layers": [layer(DOCKER_GZIP, "a"), layer(DOCKER_PLAIN, "b")],
        })
        .to_string();
        assert_eq!(rewrite(manifest.as_bytes(), &[old("a", 1), old("b", 1)]).unwrap(), manifest.as_bytes());
        let new = Sent { format: Some(CompressionFormat::Gzip), ..old("c", 7) };
        let value: Value =
            serde_json::from_slice(&rewrite(manifest.as_bytes(), &[old("a", 1), new.clone()]).unwrap()).unwrap();
        assert_eq!(value["layers"][0], layer(DOCKER_GZIP, "a"));
        assert_eq!(
            (value["layers"][1]["mediaType"].as_str(), value["layers"][1]["size"].as_u64()),
            (Some(DOCKER_GZIP), Some(7))
        );
        let zstd = Sent { format: Some(CompressionFormat::Zstd), ..new };
        let value: Value =
            serde_json::from_slice(&rewrite(manifest.as_bytes(), &[old("a", 1), zstd]).unwrap()).unwrap();
        let kinds: Vec<&str> = [&value, &value["config"], &value["layers"][0], &value["layers"][1]]
            .iter()
            .map(|value| value["mediaType"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, [OCI_MANIFEST, OCI_CONFIG, OCI_GZIP, OCI_ZSTD]);
    }
}
