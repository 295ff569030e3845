//! Fetching documents: manifests, indexes, configurations, lists of tags.

use std::collections::HashSet;

use strata_layer::Digest;

use super::client::{RegistryClient, Remote};
use super::error::RegistryError;
use super::pull::{as_manifest, explain};
use super::url::Url;
use crate::model::{Descriptor, Document, ImageConfig, MAX_CONFIG, MAX_MANIFEST, Manifest, Platform};
use crate::progress::Progress;
use crate::reference::ImageRef;

/// A manifest or index as it came, with its digest.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    /// What the server says it is.
    pub(super) media_type: String,
}

impl Fetched {
    /// Parses it. What the server says and what the document says must agree, where the server says something definite.
    pub(super) fn parse(&self) -> Result<Document, RegistryError> {
        let stated = self.media_type.split(';').next().unwrap_or("").trim();
        let stated = if stated.starts_with("application/vnd.") { stated } else { "" };
        Document::parse(&self.bytes, stated)
            .map_err(|source| RegistryError::Document { what: format!("manifest {}", self.digest), source })
    }
}

impl Remote<'_> {
    fn url(&self, target: String) -> Url {
        Url::new(self.endpoint.origin.clone(), target)
    }

    /// Fetches what a reference points to.
    pub(super) fn manifest(&self, repository: &str, reference: &ImageRef) -> Result<Fetched, RegistryError> {
        match reference.digest() {
            Some(digest) => self.manifest_by_digest(repository, digest),
            None => self.fetch(repository, reference.tag().unwrap_or(""), None),
        }
    }

    /// Fetches a manifest that is what its digest says.
    pub(super) fn manifest_by_digest(&self, repository: &str, digest: Digest) -> Result<Fetched, RegistryError> {
        self.fetch(repository, &digest.to_string(), Some(digest))
    }

    /// Fetches what a tag points to.
    pub(super) fn manifest_by_tag(&self, repository: &str, tag: &str) -> Result<Fetched, RegistryError> {
        self.fetch(repository, tag, None)
    }

    fn fetch(&self, repository: &str, name: &str, expected: Option<Digest>) -> Result<Fetched, RegistryError> {
        let url = self.url(format!("/v2/{repository}/manifests/{name}"));
        let accept = [("Accept", ACCEPTED.join(", "))];
        let response = self.call(&url, "GET", &accept, None)?;
        let media_type = response.header("content-type").unwrap_or("").to_owned();
        let stated = response.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let bytes = response.read_all(MAX_MANIFEST)?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = expected.or(stated).filter(|expected| *expected != digest) {
            let what = format!("manifest {name}");
            return Err(RegistryError::Digest { what, expected, found: digest });
        }
        Ok(Fetched { bytes, digest, media_type })
    }

    /// Follows indexes to the manifest for a machine.
    pub(super) fn choose(
        &self,
        repository: &str,
        top: Fetched,
        wanted: &Platform,
    ) -> Result<(Fetched, Manifest), RegistryError> {
        let mut at = top;
        let mut visited = HashSet::new();
        for _ in 0..=MAX_NESTING {
            if !visited.insert(at.digest) {
                break;
            }
            let offered = match as_manifest(at.parse()?) {
                Ok(manifest) => return Ok((at, manifest)),
                Err(offered) => offered,
            };
            let images: Vec<&Descriptor> = offered.iter().filter(|descriptor| descriptor.may_be_image()).collect();
            let Some(chosen) = wanted.choose(&images) else {
                let offered = images.iter().filter_map(|descriptor| descriptor.platform.as_ref());
                let offered = offered.map(Platform::to_string).collect();
                return Err(RegistryError::NoPlatform { wanted: wanted.to_string(), offered });
            };
            at = self.manifest_by_digest(repository, chosen.digest)?;
            if !chosen.media_type.is_empty() && at.media_type.starts_with("application/vnd.") {
                at.media_type.clone_from(&chosen.media_type);
            }
            check_size(chosen, at.bytes.len() as u64)?;
        }
        Err(RegistryError::Nesting { digest: at.digest })
    }

    /// Fetches a blob that is small enough for memory, and checks it.
    pub(super) fn small_blob(
        &self,
        repository: &str,
        descriptor: &Descriptor,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<Vec<u8>, RegistryError> {
        let what = || format!("blob {}", descriptor.digest);
        if descriptor.size > limit {
            return Err(RegistryError::TooLarge { what: what(), size: descriptor.size, limit });
        }
        let url = self.url(format!("/v2/{repository}/blobs/{}", descriptor.digest));
        let mut bytes = Vec::new();
        let mut failures = 0;
        loop {
            let before = bytes.len();
            match self.rest_of_blob(&url, descriptor, &mut bytes) {
                Ok(()) => break,
                Err(error) => {
                    if self.endpoint.is_mirror {
                        return Err(error);
                    }
                    failures = if bytes.len() > before { 1 } else { failures + 1 };
                    self.client.pause(progress, &descriptor.digest.to_string(), failures, error)?;
                }
            }
        }
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            return Err(RegistryError::Digest { what: what(), expected: descriptor.digest, found });
        }
        Ok(bytes)
    }

    /// Fetches what is missing of a blob. What had come before an error is kept.
    fn rest_of_blob(&self, url: &Url, descriptor: &Descriptor, bytes: &mut Vec<u8>) -> Result<(), RegistryError> {
        let mut headers = Vec::new();
        if !bytes.is_empty() {
            headers.push(("Range", format!("bytes={}-{}", bytes.len(), descriptor.size.saturating_sub(1))));
        }
        let mut response = self.call(url, "GET", &headers, None)?;
        if response.status != 206 {
            bytes.clear();
        }
        let wanted = descriptor.size.saturating_sub(bytes.len() as u64);
        let wrong = |received| RegistryError::Length { url: url.shown(), expected: descriptor.size, received };
        if let Some(length) = response.body.length().filter(|length| *length != wanted) {
            return Err(wrong(length + bytes.len() as u64));
        }
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = response.body.read(&mut buffer)?;
            if count == 0 {
                return check_size(descriptor, bytes.len() as u64);
            }
            bytes.extend_from_slice(&buffer[..count]);
            if bytes.len() as u64 > descriptor.size {
                return Err(wrong(bytes.len() as u64));
            }
        }
    }
}

fn check_size(descriptor: &Descriptor, received: u64) -> Result<(), RegistryError> {
    if descriptor.size == received {
        return Ok(());
    }
    Err(RegistryError::Length { url: descriptor.digest.to_string(), expected: descriptor.size, received })
}

impl RegistryClient {
    /// Lists the tags of a repository.
    pub fn tags(&self, reference: &ImageRef, progress: &dyn Progress) -> Result<Vec<String>, RegistryError> {
        self.read(reference, progress, |remote, repository| {
            let first = remote.url(format!("/v2/{repository}/tags/list"));
            remote.pages(&first, "tags")
        })
    }

    /// Returns a manifest or index as the registry has it: its media type and bytes.
    pub fn manifest(
        &self,
        reference: &ImageRef,
        progress: &dyn Progress,
    ) -> Result<(String, Digest, Vec<u8>), RegistryError> {
        let fetched = self.read(reference, progress, |remote, repository| remote.manifest(repository, reference))?;
        fetched.parse()?;
        Ok((fetched.media_type, fetched.digest, fetched.bytes))
    }

    /// Returns what kind of machine an image of this manifest is for, as its configuration says; `None` for an index, and for what
    /// is no image.
    pub fn platform_of(
        &self,
        reference: &ImageRef,
        manifest: &[u8],
        progress: &dyn Progress,
    ) -> Result<Option<Platform>, RegistryError> {
        let fetched = Fetched { bytes: manifest.to_vec(), digest: Digest::of(manifest), media_type: String::new() };
        let Ok(manifest) = as_manifest(fetched.parse()?) else { return Ok(None) };
        let config = self.read(reference, progress, |remote, repository| {
            remote.small_blob(repository, &manifest.config, MAX_CONFIG, progress)
        })?;
        let Ok(config) = ImageConfig::parse(&config) else { return Ok(None) };
        Ok(Some(Platform { architecture: config.architecture, os: config.os, variant: config.variant }))
    }

    /// Asks the places of a repository for something to read, one after the other.
    fn read<T>(
        &self,
        reference: &ImageRef,
        progress: &dyn Progress,
        mut ask: impl FnMut(&Remote<'_>, &str) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let repository = reference.path();
        let endpoints = self.endpoints(reference.host(), true);
        let found = self.patiently_first_of(&endpoints, (progress, repository), |endpoint| {
            let scopes = vec![format!("repository:{repository}:pull")];
            ask(&Remote { client: self, endpoint: endpoint.clone(), scopes, login: None }, repository)
        });
        found.map_err(|error| explain(error, reference))
    }
}

impl Remote<'_> {
    /// Reads a list that comes in pages.
    pub(super) fn pages(&self, first: &Url, key: &str) -> Result<Vec<String>, RegistryError> {
        let mut entries = Vec::new();
        let mut next = Some(first.clone());
        for _ in 0..MAX_PAGES {
            let Some(url) = next else { return Ok(entries) };
            let response = self.call(&url, "GET", &[], None)?;
            let link = response.header("link").and_then(next_link).map(str::to_owned);
            let document: serde_json::Value = serde_json::from_slice(&response.read_all(MAX_LIST)?)
                .map_err(|_| RegistryError::Malformed { url: url.shown(), reason: "it is not JSON" })?;
            let page = document.get(key).and_then(serde_json::Value::as_array);
            entries.extend(page.into_iter().flatten().filter_map(|entry| entry.as_str().map(str::to_owned)));
            next = match link {
                None => None,
                Some(link) => {
                    let joined = url.join(&link);
                    let joined = joined.map_err(|source| RegistryError::Location { url: url.shown(), source })?;
                    // A list is in one place; and a page that names itself as the next would never end.
                    (joined.origin == url.origin && joined != url).then_some(joined)
                }
            };
        }
        Ok(entries)
    }
}

/// Returns the address in `<address>; rel="next"`.
pub(super) fn next_link(text: &str) -> Option<&str> {
    let (address, relation) = text.trim().strip_prefix('<')?.split_once('>')?;
    relation.contains("next").then_some(address)
}

const ACCEPTED: [&str; 6] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1",
    "*/*;q=0.05",
];
const MAX_NESTING: usize = 4;
const MAX_PAGES: usize = 10_000;
const MAX_LIST: u64 = 16 << 20;
