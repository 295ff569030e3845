//! The registry client: pull, push, logins, lists.
//!
//! What talks to the network is blocking code on plain threads: a pull has a handful of connections and spends its time
//! on digests and decompression, so there is nothing that an asynchronous runtime would make faster. Why HTTP is written
//! here, over `httparse` and `rustls`, is in `docs/design/registry-client.md`.
//!
//! What must stay true:
//!
//! - Nothing that a server sends is believed: sizes, digests and media types are compared with what the document above
//!   says, from the reference down.
//! - Credentials are sent to the registry and to its token service, never to where a redirect leads, never unencrypted
//!   unless the registry was declared insecure.
//! - What comes is bounded: documents by size, layers by the size in their descriptor, patience by time.

mod challenge;
mod client;
mod connect;
mod credentials;
mod dns;
mod download;
mod early;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod manifests;
mod open;
mod pull;
mod push;
mod push_index;
mod push_source;
mod ranges;
mod referrers;
mod search;
mod settings;
mod tls;
mod upload;
mod url;

pub use client::RegistryClient;
pub use credentials::{Login, Secret, Stored};
pub(crate) use download::remove_abandoned;
pub use error::RegistryError;
pub(crate) use pull::FetchedAgain;
pub use pull::{PullOptions, Pulled, Start};
pub use push::{PushOptions, Pushed};
pub(crate) use ranges::BlobPlace;
pub use search::FoundRepository;
pub use settings::{Proxies, Settings, SettingsError, Timeouts};
pub use url::InvalidUrl;
