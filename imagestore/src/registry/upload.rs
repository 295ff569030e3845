//! Bringing blobs and manifests to a registry.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use strata_layer::Digest;

use super::client::Remote;
use super::error::RegistryError;
use super::http::{Payload, Response};
use super::url::Url;
use crate::progress::Progress;

/// A blob that can be read again from any place: an upload that was cut off goes on where the registry has lost it.
pub(super) trait BlobSource {
    /// Returns a reader of what comes from an offset on.
    fn read_from(&mut self, offset: u64) -> io::Result<Box<dyn Read + Send + '_>>;

    /// Returns how long the blob is, if that is known.
    fn size(&self) -> Option<u64>;
}

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

    /// Uploads what is made while it is sent; returns its digest and size. What the registry has of it after a cut is not
    /// sent again.
    pub(super) fn upload_stream(
        &self,
        repository: &str,
        source: &mut dyn BlobSource,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<(Digest, u64), RegistryError> {
        let headers = [("Content-Type", "application/octet-stream".to_owned())];
        let mut location = self.start_upload(repository)?;
        let mut hashed = Hashed::default();
        let mut offset = 0;
        let (mut failures, mut furthest) = (0, 0);
        loop {
            let error = match self.send_from(&location, &headers, source, offset, &mut hashed) {
                Ok(next) => {
                    location = next;
                    break;
                }
                Err(error) => error,
            };
            self.client.pause(progress, name, failures + 1, error)?;
            // What was received is held in the server's favour, as long as it is more each time.
            match self.upload_status(&location) {
                Ok((next, received)) => {
                    failures = if received > furthest { 0 } else { failures + 1 };
                    (location, offset, furthest) = (next, received, received.max(furthest));
                }
                Err(error) if error.is_transient() => failures += 1,
                // It has forgotten the upload.
                Err(_) => {
                    failures += 1;
                    (location, offset, hashed) = (self.start_upload(repository)?, 0, Hashed::default());
                }
            }
        }
        let (digest, bytes) = (Digest::from_bytes(hashed.hash.finalize().into()), hashed.bytes);
        let url = location.with_parameter("digest", &digest.to_string());
        self.client.patiently(progress, name, || {
            let response = match self.call(&url, "PUT", &headers, None) {
                // An answer was lost, and the upload is over.
                Err(RegistryError::Status { status: 404, .. }) if self.has_blob(repository, digest)? => return Ok(()),
                result => result?,
            };
            check_digest(&response, digest)?;
            response.body.drain();
            Ok(())
        })?;
        Ok((digest, bytes))
    }

    /// Sends what comes from an offset on; returns where the upload goes on.
    fn send_from(
        &self,
        location: &Url,
        headers: &[(&'static str, String)],
        source: &mut dyn BlobSource,
        offset: u64,
        hashed: &mut Hashed,
    ) -> Result<Url, RegistryError> {
        let mut headers = headers.to_vec();
        let length = source.size().map(|size| size.saturating_sub(offset));
        if let (Some(length @ 1..), 1..) = (length, offset) {
            headers.push(("Content-Range", format!("{offset}-{}", offset + length - 1)));
        }
        let reader = source.read_from(offset).map_err(|source| RegistryError::Read { source })?;
        let mut counted = Counted { reader, position: offset, hashed };
        let payload = match length {
            Some(length) => Payload::Sized(&mut counted, length),
            None => Payload::Stream(&mut counted),
        };
        let response = self.send_stream(location, "PATCH", &headers, payload)?;
        let next = self.location_of(&response)?;
        response.body.drain();
        Ok(next)
    }

    /// Asks how much of an upload has arrived; returns where it goes on, too.
    fn upload_status(&self, location: &Url) -> Result<(Url, u64), RegistryError> {
        let response = self.call(location, "GET", &[], None)?;
        let next = self.location_of(&response).unwrap_or_else(|_| location.clone());
        let range = response.header("range").and_then(|range| range.rsplit_once('-')?.1.trim().parse::<u64>().ok());
        let malformed =
            || RegistryError::Malformed { url: response.url.shown(), reason: "it does not say how much it has" };
        // Of nothing the last byte is the first, so one byte is as good as none: it is sent again.
        let received = range.map(|last| if last == 0 { 0 } else { last + 1 }).ok_or_else(malformed)?;
        response.body.drain();
        Ok((next, received))
    }

    /// Returns where the server wants the upload.
    fn location_of(&self, response: &Response) -> Result<Url, RegistryError> {
        let Some(location) = response.header("location") else {
            let url = response.url.shown();
            return Err(RegistryError::Malformed { url, reason: "it does not say where to send the upload" });
        };
        self.led_to(&response.url, location)
    }

    /// Uploads a manifest under a tag or its digest; returns whether the registry says that it knows of its subject.
    pub(super) fn put_manifest(
        &self,
        repository: &str,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<bool, RegistryError> {
        let url = Url::new(self.endpoint.origin.clone(), format!("/v2/{repository}/manifests/{name}"));
        let response = self.call(&url, "PUT", &[("Content-Type", media_type.to_owned())], Some(bytes))?;
        check_digest(&response, Digest::of(bytes))?;
        let knows_subject = response.header("oci-subject").is_some();
        response.body.drain();
        Ok(knows_subject)
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

/// The digest of what was read so far, each byte counted once.
#[derive(Default)]
struct Hashed {
    hash: Sha256,
    bytes: u64,
}

/// Computes the digest of what is read.
struct Counted<'a> {
    reader: Box<dyn Read + Send + 'a>,
    position: u64,
    hashed: &'a mut Hashed,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        // After a cut some of it is read for a second time.
        let known = self.hashed.bytes.saturating_sub(self.position);
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(count);
        self.hashed.hash.update(&buffer[known..count]);
        self.hashed.bytes += (count - known) as u64;
        self.position += count as u64;
        Ok(count)
    }
}
