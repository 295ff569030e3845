//! Reading what an address leads to: `import` of a file from the web.

use std::io::{self, Read};

use super::client::{Endpoint, RegistryClient, Remote, accepted};
use super::error::RegistryError;
use super::http::Response;
use super::tls::Proof;
use super::url::{Scheme, Url};

impl RegistryClient {
    /// Opens what is at an address; redirects are followed, logins are not sent.
    pub fn open(&self, url: &str) -> Result<Box<dyn Read + Send>, RegistryError> {
        let parsed: Url = url.parse().map_err(|source| RegistryError::Location { url: url.to_owned(), source })?;
        let insecure = parsed.origin.scheme == Scheme::Http;
        let proof = if insecure { Proof::Waived } else { Proof::Required };
        let registry = parsed.origin.authority();
        let origin = parsed.origin.clone();
        let endpoint = Endpoint { origin, proof, registry, is_fallback: false, is_mirror: false, insecure };
        let remote = Remote { client: self, endpoint, scopes: Vec::new(), login: None };
        let response = accepted(remote.follow(&parsed, "GET", &[], None, None)?)?;
        Ok(Box::new(BodyReader { response }))
    }
}

/// The body of an answer as a reader.
struct BodyReader {
    response: Response,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.response.body.read(buffer).map_err(io::Error::other)
    }
}
