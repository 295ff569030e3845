//! What refers to a manifest: by the referrers API, or by the tag that stands in for it where there is none.

use serde_json::{Value, json};
use strata_layer::Digest;

use super::client::{RegistryClient, Remote};
use super::error::RegistryError;
use super::manifests::Fetched;
use super::pull::explain;
use super::url::Url;
use crate::model::{Descriptor, Document, MAX_MANIFEST};
use crate::progress::Progress;
use crate::reference::ImageRef;

impl RegistryClient {
    /// Lists what refers to the manifest of a reference, as descriptors; of one kind of artifact if `artifact_type` is
    /// given.
    pub fn referrers(
        &self,
        reference: &ImageRef,
        artifact_type: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let repository = reference.path();
        let endpoints = self.endpoints(reference.host(), true);
        let found = self.patiently_first_of(&endpoints, (progress, repository), |endpoint| {
            let scopes = vec![format!("repository:{repository}:pull")];
            let remote = Remote { client: self, endpoint: endpoint.clone(), scopes, login: None };
            let subject = match reference.digest() {
                Some(digest) => digest,
                None => remote.manifest(repository, reference)?.digest,
            };
            remote.referrers(repository, subject, artifact_type)
        });
        found.map_err(|error| explain(error, reference))
    }
}

impl Remote<'_> {
    /// Lists what refers to a manifest.
    pub(super) fn referrers(
        &self,
        repository: &str,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut found = match self.referrers_by_api(repository, subject, artifact_type)? {
            Some(found) => found,
            None => self.referrers_by_tag(repository, subject)?.map(|(_, found)| found).unwrap_or_default(),
        };
        // A registry need not filter.
        if let Some(kind) = artifact_type {
            found.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(kind));
        }
        Ok(found)
    }

    /// Asks the referrers API; `None` where there is none.
    fn referrers_by_api(
        &self,
        repository: &str,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let mut url = Url::new(self.endpoint.origin.clone(), format!("/v2/{repository}/referrers/{subject}"));
        if let Some(kind) = artifact_type {
            url = url.with_parameter("artifactType", kind);
        }
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let response = match self.call(&url, "GET", &[], None) {
                Ok(response) => response,
                // A registry that has it answers an empty list for what it does not know.
                Err(RegistryError::Status { status: 400 | 404 | 405, .. }) if found.is_empty() => return Ok(None),
                Err(error) => return Err(error),
            };
            let next = response.header("link").and_then(super::manifests::next_link).map(str::to_owned);
            let shown = url.shown();
            match Document::parse(&response.read_all(MAX_MANIFEST)?, "") {
                Ok(Document::Index(index)) => found.extend(index.manifests),
                // Some servers answer everything with a page of theirs.
                _ if found.is_empty() => return Ok(None),
                _ => return Err(RegistryError::Malformed { url: shown, reason: "it is no list of referrers" }),
            }
            let Some(next) = next else { return Ok(Some(found)) };
            let joined = url.join(&next).map_err(|source| RegistryError::Location { url: url.shown(), source })?;
            if joined.origin != url.origin || joined == url {
                return Ok(Some(found));
            }
            url = joined;
        }
        Ok(Some(found))
    }

    /// Reads the index under the tag that stands in for the API, with its bytes.
    fn referrers_by_tag(
        &self,
        repository: &str,
        subject: Digest,
    ) -> Result<Option<(Fetched, Vec<Descriptor>)>, RegistryError> {
        let fetched = match self.manifest_by_tag(repository, &referrers_tag(subject)) {
            Ok(fetched) => fetched,
            Err(RegistryError::Status { status: 404, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match fetched.parse() {
            Ok(Document::Index(index)) => Ok(Some((fetched, index.manifests))),
            // An image that happens to be called so.
            _ => Ok(None),
        }
    }

    /// Uploads a manifest that refers to another, and makes sure that it is found as a referrer.
    pub(super) fn put_referrer(
        &self,
        repository: &str,
        subject: Digest,
        media_type: &str,
        bytes: &[u8],
        artifact_type: &str,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(bytes);
        if self.put_manifest(repository, &digest.to_string(), media_type, bytes)? {
            return Ok(digest);
        }
        // The registry knows nothing of subjects: the list under the tag is kept by its clients.
        let listed = self.referrers_by_tag(repository, subject)?;
        let mut index: Value = match &listed {
            Some((fetched, _)) => serde_json::from_slice(&fetched.bytes).unwrap_or_default(),
            None => json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
        };
        let entry = json!({
            "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len(), "artifactType": artifact_type,
        });
        let known = listed.is_some_and(|(_, found)| found.iter().any(|descriptor| descriptor.digest == digest));
        if !known && let Some(manifests) = index["manifests"].as_array_mut() {
            manifests.push(entry);
            let bytes = index.to_string().into_bytes();
            self.put_manifest(repository, &referrers_tag(subject), OCI_INDEX, &bytes)?;
        }
        Ok(digest)
    }
}

/// The tag that stands in for the API.
fn referrers_tag(subject: Digest) -> String {
    subject.to_string().replacen(':', "-", 1)
}

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MAX_PAGES: usize = 100;
