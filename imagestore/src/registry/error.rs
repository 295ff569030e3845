//! Why talking to a registry failed.

use std::io;

use strata_layer::{DiffId, Digest};

use super::url::InvalidUrl;
use crate::images::ImageError;
use crate::ingest::IngestError;
use crate::model::{ConfigError, DocumentError};
use crate::publish::PublishError;
use crate::reference::InvalidReference;
use crate::stack::StackError;
use crate::store::StoreError;

/// Why talking to a registry failed. The store is as it was before; what was downloaded and is not yet verified is only
/// kept aside, to go on from there.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name of a host leads to no address.
    #[error("lookup {host}")]
    Resolve {
        /// The host.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// What a reader waits for did not come in time.
    #[error("nothing of layer {layer} came in time")]
    Deadline {
        /// The layer.
        layer: DiffId,
    },
    /// It is not known where the rest of a layer is to be had.
    #[error("where layer {layer} comes from is not known any more")]
    NoSource {
        /// The layer.
        layer: DiffId,
    },
    /// What is to be sent cannot be read.
    #[error("read what is to be sent")]
    Read {
        /// Why.
        source: io::Error,
    },
    /// No connection was made.
    #[error("dial tcp {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The other side cannot prove who it is, or does not encrypt at all.
    #[error("{address}: tls: {reason}")]
    Tls {
        /// Host and port.
        address: String,
        /// Why.
        reason: String,
    },
    /// A certificate or key of ours cannot be used.
    #[error("certificate {path}: {reason}")]
    Certificate {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A proxy does not let us through.
    #[error("proxy {proxy} answers with {status}")]
    Proxy {
        /// The proxy.
        proxy: String,
        /// The status.
        status: u16,
    },
    /// What is set as a proxy is none that can be used.
    #[error("{proxy:?} is not the address of an HTTP proxy")]
    InvalidProxy {
        /// What is set.
        proxy: String,
    },
    /// The connection ended or failed.
    #[error("{url}: connection broken")]
    Broken {
        /// What was asked for.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// Nothing came for too long.
    #[error("{url}: nothing received for {seconds} s")]
    Stalled {
        /// What was asked for.
        url: String,
        /// How long.
        seconds: u64,
    },
    /// Bytes came, but too few.
    #[error("{url}: transfer slower than {bytes} bytes in {seconds} s")]
    TooSlow {
        /// What was asked for.
        url: String,
        /// How many bytes would have been enough.
        bytes: u64,
        /// How long.
        seconds: u64,
    },
    /// The answer is not HTTP, or none that can be understood.
    #[error("{url}: malformed answer: {reason}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Fewer or more bytes came than there should be.
    #[error("{url}: {received} bytes received where {expected} were expected")]
    Length {
        /// What was asked for.
        url: String,
        /// How many there should be.
        expected: u64,
        /// How many came, or would have come.
        received: u64,
    },
    /// The server sends another part than was asked for.
    #[error("{url}: asked for bytes {wanted} and got {got:?}")]
    Range {
        /// What was asked for.
        url: String,
        /// The part.
        wanted: String,
        /// What the server says it sends.
        got: String,
    },
    /// The body is encoded in a way that was not asked for.
    #[error("{url}: unexpected content encoding {encoding:?}")]
    Encoding {
        /// What was asked for.
        url: String,
        /// The encoding.
        encoding: String,
    },
    /// The server sends us from one address to the next without end.
    #[error("{url}: too many redirects")]
    TooManyRedirects {
        /// Where it began.
        url: String,
    },
    /// The server sends us from an encrypted address to a plain one.
    #[error("{url}: refusing to follow it to the unencrypted {to}")]
    Downgrade {
        /// Where it began.
        url: String,
        /// Where it leads.
        to: String,
    },
    /// The server sends an address that is none.
    #[error("{url}: unusable address in the answer")]
    Location {
        /// What was asked for.
        url: String,
        /// Why.
        source: InvalidUrl,
    },
    /// The server does not do what was asked. The text is the server's own where it gives one.
    #[error("{message}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
        /// The codes of the server's errors, such as `MANIFEST_UNKNOWN`.
        codes: Vec<String>,
        /// The server's message, as Docker shows it.
        message: String,
        /// How many seconds to wait, if the server says so.
        retry_after: Option<u64>,
    },
    /// There is no such image.
    #[error("manifest for {reference} not found")]
    NotFound {
        /// The image.
        reference: String,
        /// What the registry said.
        source: Box<RegistryError>,
    },
    /// The repository does not exist or may not be read.
    #[error("pull access denied for {repository}, repository does not exist or may require 'strata login'")]
    Denied {
        /// The repository.
        repository: String,
        /// What the registry said.
        source: Box<RegistryError>,
    },
    /// The registry asks for authentication in a way that is not understood.
    #[error("{url}: unsupported authentication challenge {challenge:?}")]
    Challenge {
        /// What was asked for.
        url: String,
        /// The challenge.
        challenge: String,
    },
    /// The token service is somewhere where passwords must not be sent.
    #[error("{url}: refusing to authenticate at the unencrypted {realm}")]
    Realm {
        /// What was asked for.
        url: String,
        /// The token service.
        realm: String,
    },
    /// The token service gives no token.
    #[error("token service {realm}: no token in the answer")]
    NoToken {
        /// The token service.
        realm: String,
    },
    /// The user's file of credentials cannot be used.
    #[error("credentials: {reason}")]
    Credentials {
        /// What is wrong.
        reason: String,
    },
    /// A document has another digest than what refers to it says.
    #[error("{what}: digest is {found}, expected {expected}")]
    Digest {
        /// The document or blob.
        what: String,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A document is larger than is accepted.
    #[error("{what} has {size} bytes; at most {limit} are accepted")]
    TooLarge {
        /// The document.
        what: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A manifest or index cannot be used.
    #[error("{what}")]
    Document {
        /// The document.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// A configuration cannot be used.
    #[error("configuration {digest}")]
    Config {
        /// The configuration.
        digest: Digest,
        /// Why.
        source: Box<ConfigError>,
    },
    /// Manifest and configuration do not fit.
    #[error("the manifest has {manifest} layers and the configuration {config}")]
    LayerCount {
        /// Layers in the manifest.
        manifest: usize,
        /// Layers in the configuration.
        config: usize,
    },
    /// A layer is not what the configuration says.
    #[error("layer {blob}: its tar is {found}, expected {expected}")]
    DiffId {
        /// The layer's blob.
        blob: Digest,
        /// What it should be.
        expected: DiffId,
        /// What it is.
        found: DiffId,
    },
    /// A layer is not distributed with the image.
    #[error("layer {digest} is not distributed by the registry")]
    ForeignLayer {
        /// The layer.
        digest: Digest,
    },
    /// No image of an index fits this machine.
    #[error("no matching manifest for {wanted} in the manifest list entries{}", list_of(.offered))]
    NoPlatform {
        /// What was wanted.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// The image is for another kind of machine than was asked for.
    #[error("image {reference} was found but its platform ({found}) does not match the specified platform ({wanted})")]
    PlatformMismatch {
        /// The image.
        reference: String,
        /// What it is for.
        found: String,
        /// What was wanted.
        wanted: String,
    },
    /// Indexes within indexes without end.
    #[error("index {digest} leads back to itself or too deep")]
    Nesting {
        /// The index.
        digest: Digest,
    },
    /// No image of this name is in the store.
    #[error("An image does not exist locally with the tag: {repository}")]
    NotLocal {
        /// The name.
        repository: String,
    },
    /// A name by digest was to be pushed.
    #[error("cannot push a digest reference")]
    PushDigest,
    /// A name from a registry is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A layer was not taken in.
    #[error("layer {blob}")]
    Layer {
        /// The layer's blob.
        blob: Digest,
        /// Why.
        source: IngestError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image in the store cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The layers do not fit on each other.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The image could not be made visible.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl RegistryError {
    /// Returns whether the same request may well succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            RegistryError::Connect { .. }
            | RegistryError::Broken { .. }
            | RegistryError::Stalled { .. }
            | RegistryError::TooSlow { .. }
            | RegistryError::Length { .. } => true,
            RegistryError::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            RegistryError::Resolve { source, .. } => source.kind() != io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Returns whether it may pass while somebody waits for it, be it that the network or the registry is away.
    pub(crate) fn is_worth_waiting(&self) -> bool {
        self.is_transient() || matches!(self, RegistryError::Resolve { .. } | RegistryError::Proxy { .. })
    }

    /// Returns whether another place that has the same may be asked.
    pub(super) fn is_of_this_server(&self) -> bool {
        self.is_transient()
            || matches!(
                self,
                RegistryError::Status { .. }
                    | RegistryError::NotFound { .. }
                    | RegistryError::Denied { .. }
                    | RegistryError::Resolve { .. }
                    | RegistryError::Tls { .. }
                    | RegistryError::Proxy { .. }
                    | RegistryError::Malformed { .. }
                    | RegistryError::TooManyRedirects { .. }
                    | RegistryError::Downgrade { .. }
                    | RegistryError::Location { .. }
                    | RegistryError::Challenge { .. }
                    | RegistryError::Realm { .. }
                    | RegistryError::NoToken { .. }
                    | RegistryError::Range { .. }
                    | RegistryError::Encoding { .. }
                    | RegistryError::Digest { .. }
            )
    }

    /// Returns the status that a server answered with, if it did.
    pub fn status(&self) -> Option<u16> {
        match self {
            RegistryError::Status { status, .. } => Some(*status),
            RegistryError::NotFound { source, .. } | RegistryError::Denied { source, .. } => source.status(),
            _ => None,
        }
    }
}

fn list_of(offered: &[String]) -> String {
    if offered.is_empty() { String::new() } else { format!(" (there are {})", offered.join(", ")) }
}
