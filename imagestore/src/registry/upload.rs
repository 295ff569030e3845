//! Bringing blobs and manifests to a registry.

use std::io::Read;

use sha2::{Digest as _, Sha256};
use strata_layer::Digest;

use super::client::Remote;
use super::error::RegistryError;
use super::http::{Payload, Response};
use super::url::Url;

impl Remote<'_> {
    fn blob_url(&self, repository: &str, rest: &str) -> Url {
        Url::new(self.endpoint.origin.clone(), format!("/v2/{repository}/blobs/{rest}"))
    }

    /// Returns how large a blob is, if the repository has it.
    pub(super) fn has_blob(&self, repository: &str, digest: Digest) -> Result<bool, RegistryError> {
        let url = self.blob_url(repository, &digest.to_string());
        match self.call(&url, "HEAD", &[], None) {
            Ok(_) => Ok(true),
            Err(RegistryError::Status { status: 404, .. }) => Ok(false),
            // Some registries know no HEAD. A blob that is uploaded once more does no harm.
            Err(RegistryError::Status { status: 400 | 405, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for a blob of another repository of the same registry; returns whether it was taken over. Where it was not, the
    /// registry has begun an upload, which it will forget.
    pub(super) fn mount(&self, repository: &str, digest: Digest, from: &str) -> Result<bool, RegistryError> {
        let url = self.blob_url(repository, "uploads/");
        let url = url.with_parameter("mount", &digest.to_string()).with_parameter("from", from);
        let response = self.call(&url, "POST", &[], None)?;
        let mounted = response.status == 201;
        response.body.drain();
        Ok(mounted)
    }

    /// Begins an upload; returns where to send it.
    pub(super) fn start_upload(&self, repository: &str) -> Result<Url, RegistryError> {
        let url = self.blob_url(repository, "uploads/");
        let response = self.call(&url, "POST", &[], None)?;
        let location = self.location_of(&response)?;
        response.body.drain();
        Ok(location)
    }

    /// Uploads a blob whose size and digest are known.
    pub(super) fn upload_known(
        &self,
        location: &Url,
        digest: Digest,
        size: u64,
        source: &mut (dyn Read + Send),
    ) -> Result<(), RegistryError> {
        let url = location.clone().with_parameter("digest", &digest.to_string());
        let headers = [("Content-Type", "application/octet-stream".to_owned())];
        let response = self.send_stream(&url, "PUT", &headers, Payload::Sized(source, size))?;
        check_digest(&response, digest)?;
        response.body.drain();
        Ok(())
    }

    /// Uploads what is made while it is sent; returns its digest and size.
    pub(super) fn upload_stream(
        &self,
        location: &Url,
        source: &mut (dyn Read + Send),
    ) -> Result<(Digest, u64), RegistryError> {
        let headers = [("Content-Type", "application/octet-stream".to_owned())];
        let mut counted = Counted { source, hash: Sha256::new(), bytes: 0 };
        let response = self.send_stream(location, "PATCH", &headers, Payload::Stream(&mut counted))?;
        let next = self.location_of(&response)?;
        response.body.drain();
        let (digest, bytes) = (Digest::from_bytes(counted.hash.finalize().into()), counted.bytes);
        let url = next.with_parameter("digest", &digest.to_string());
        let response = self.call(&url, "PUT", &headers, None)?;
        check_digest(&response, digest)?;
        response.body.drain();
        Ok((digest, bytes))
    }

    /// Returns where the server wants the upload.
    fn location_of(&self, response: &Response) -> Result<Url, RegistryError> {
        let Some(location) = response.header("location") else {
            let url = response.url.shown();
            return Err(RegistryError::Malformed { url, reason: "it does not say where to send the upload" });
        };
        self.led_to(&response.url, location)
    }

    /// Uploads a manifest under a tag or its digest.
    pub(super) fn put_manifest(
        &self,
        repository: &str,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let url = Url::new(self.endpoint.origin.clone(), format!("/v2/{repository}/manifests/{name}"));
        let response = self.call(&url, "PUT", &[("Content-Type", media_type.to_owned())], Some(bytes))?;
        check_digest(&response, Digest::of(bytes))?;
        response.body.drain();
        Ok(())
    }
}

/// The server may say what it has stored.
fn check_digest(response: &Response, expected: Digest) -> Result<(), RegistryError> {
    let stated = response.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
    match stated.filter(|found| *found != expected) {
        None => Ok(()),
        Some(found) => Err(RegistryError::Digest { what: response.url.shown(), expected, found }),
    }
}

/// Computes the digest of what is read.
struct Counted<'a> {
    source: &'a mut (dyn Read + Send),
    hash: Sha256,
    bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}
