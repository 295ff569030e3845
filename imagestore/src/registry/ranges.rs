//! Pieces of blobs, for layers that are used before they are here.

use std::time::{Duration, Instant};

use strata_layer::Digest;

use super::client::{RegistryClient, Remote};
use super::download::range_fits;
use super::error::RegistryError;
use super::url::Url;
use crate::progress::Progress;

/// Where a blob is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobPlace<'a> {
    /// The registry.
    pub(crate) registry: &'a str,
    /// The repository.
    pub(crate) repository: &'a str,
    /// The blob.
    pub(crate) digest: Digest,
    /// Its size.
    pub(crate) size: u64,
}

impl RegistryClient {
    /// Fetches a piece of a blob, from wherever it can be had. What comes is not verified.
    pub(crate) fn blob_range(&self, place: &BlobPlace<'_>, offset: u64, length: u64) -> Result<Vec<u8>, RegistryError> {
        self.first_of(&self.endpoints(place.registry, true), |endpoint| {
            let scopes = vec![format!("repository:{}:pull", place.repository)];
            let remote = Remote { client: self, endpoint: endpoint.clone(), scopes, login: None };
            remote.blob_range(place.repository, (place.digest, place.size), offset, length)
        })
    }
}

impl Remote<'_> {
    /// Fetches a piece of a blob. A server that knows no ranges is an error: the whole blob is not what is wanted.
    pub(super) fn blob_range(
        &self,
        repository: &str,
        (digest, size): (Digest, u64),
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        let url = Url::new(self.endpoint.origin.clone(), format!("/v2/{repository}/blobs/{digest}"));
        let end = Instant::now() + LONGEST;
        loop {
            let before = bytes.len();
            match self.rest_of_range(&url, size, offset, length, &mut bytes) {
                Ok(()) => return Ok(bytes),
                // A cut after some progress: the rest is fetched at once.
                Err(error) if bytes.len() > before && error.is_transient() && Instant::now() < end => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn rest_of_range(
        &self,
        url: &Url,
        size: u64,
        offset: u64,
        length: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<(), RegistryError> {
        let (from, last) = (offset + bytes.len() as u64, offset + length - 1);
        let mut response = self.call(url, "GET", &[("Range", format!("bytes={from}-{last}"))], None)?;
        let got = response.header("content-range").unwrap_or("").to_owned();
        if response.status != 206 || !range_fits(&got, from, last, size) {
            return Err(RegistryError::Range { url: url.shown(), wanted: format!("{from}-{last}"), got });
        }
        let mut buffer = vec![0; 64 << 10];
        while (bytes.len() as u64) < length {
            let left = usize::try_from(length - bytes.len() as u64).unwrap_or(usize::MAX).min(buffer.len());
            let count = response.body.read(&mut buffer[..left])?;
            if count == 0 {
                let received = bytes.len() as u64;
                return Err(RegistryError::Length { url: url.shown(), expected: length, received });
            }
            bytes.extend_from_slice(&buffer[..count]);
        }
        response.body.drain();
        Ok(())
    }

    /// As [`Remote::blob_range`], with patience for what may pass.
    pub(super) fn blob_range_patiently(
        &self,
        repository: &str,
        blob: (Digest, u64),
        (offset, length): (u64, u64),
        progress: &dyn Progress,
    ) -> Result<Vec<u8>, RegistryError> {
        let name = blob.0.to_string();
        self.client.patiently(progress, &name, || self.blob_range(repository, blob, offset, length))
    }
}

/// How long cuts of one piece are borne.
const LONGEST: Duration = Duration::from_secs(30);
