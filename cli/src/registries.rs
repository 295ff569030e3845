//! What files and variables say about registries.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use strata_engine::{Proxies, RegistryClient, RegistrySettings};

use crate::configuration::{self, configuration_folders, variable};

/// Makes the client of registries, as `daemon.json`, the folders of certificates and the user's logins say.
pub(crate) fn client() -> anyhow::Result<RegistryClient> {
    let mut settings = RegistrySettings {
        proxies: Proxies::from_environment(),
        certificate_folders: certificate_folders(),
        credentials: credentials(),
        ..RegistrySettings::default()
    };
    read_daemon_json(&mut settings)?;
    Ok(RegistryClient::new(settings))
}

/// Returns how long a read of what an image that is not whole lacks may wait, where that is said: by the variable or in
/// `daemon.json`. One that cannot be read says nothing here; commands that use registries complain of it.
pub(crate) fn fetch_deadline() -> Option<Duration> {
    let seconds = std::env::var("STRATA_FETCH_DEADLINE").ok().and_then(|text| text.parse().ok());
    seconds.map(Duration::from_secs).or_else(|| {
        let mut settings = RegistrySettings::default();
        read_daemon_json(&mut settings).ok()?;
        settings.fetch_deadline
    })
}

fn read_daemon_json(settings: &mut RegistrySettings) -> anyhow::Result<()> {
    let Some((path, bytes)) = configuration::daemon_json()? else { return Ok(()) };
    settings.read_daemon_json(&bytes).with_context(|| path.display().to_string())
}

/// All folders of certificates; what is found in several adds up.
fn certificate_folders() -> Vec<PathBuf> {
    let named = variable("STRATA_CERTS").into_iter();
    named.chain(configuration_folders().into_iter().map(|folder| folder.join("certs.d"))).collect()
}

/// Where docker keeps its logins, so that a login of one is one of the other.
fn credentials() -> Option<PathBuf> {
    let folder = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")))?;
    Some(folder.join("config.json"))
}
