//! What files and variables say about registries.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use strata_engine::{Proxies, RegistryClient, RegistrySettings};

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
    let Some(path) = daemon_json() else { return Ok(()) };
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    settings.read_daemon_json(&bytes).with_context(|| path.display().to_string())
}

/// The first `daemon.json` that there is: the one that was named, strata's, Docker's; a plain user's own come first.
fn daemon_json() -> Option<PathBuf> {
    if let Some(named) = variable("STRATA_CONFIG") {
        return Some(named);
    }
    configuration_folders().into_iter().map(|folder| folder.join("daemon.json")).find(|path| path.is_file())
}

/// All folders of certificates; what is found in several adds up.
fn certificate_folders() -> Vec<PathBuf> {
    let named = variable("STRATA_CERTS").into_iter();
    named.chain(configuration_folders().into_iter().map(|folder| folder.join("certs.d"))).collect()
}

fn configuration_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if !is_root() {
        let own = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
        folders.extend(own.into_iter().flat_map(|own| [own.join("strata"), own.join("docker")]));
    }
    folders.extend(["/etc/strata", "/etc/docker"].map(|path| Path::new(path).to_owned()));
    folders
}

/// Where docker keeps its logins, so that a login of one is one of the other.
fn credentials() -> Option<PathBuf> {
    let folder = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")))?;
    Some(folder.join("config.json"))
}

/// Whether this is the machine's root, and not only that of a user namespace that a plain user's command has made.
fn is_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root() && whole
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
