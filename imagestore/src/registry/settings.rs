//! What the administrator and the environment say about registries.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::error::RegistryError;
use super::url::{Origin, Scheme, Url};
use crate::model::DocumentError;
use crate::model::parse_json;

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mirrors by registry, such as `docker.io`; they are asked first, in this order.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries that may be without proof of who they are, or without encryption: names, addresses, networks.
    pub insecure: Vec<String>,
    /// Proxies.
    pub proxies: Proxies,
    /// Folders with certificates, `HOST[:PORT]/*.crt`, `*.cert`, `*.key`.
    pub certificate_folders: Vec<PathBuf>,
    /// Docker's `config.json` with credentials.
    pub credentials: Option<PathBuf>,
    /// Whether the compressed form of layers is kept, so that a push anywhere keeps the image's digest.
    pub keep_blobs: bool,
    /// How many connections download at once.
    pub max_downloads: usize,
    /// How many layers are uploaded at once.
    pub max_uploads: usize,
    /// How long a read of what an image that is not whole lacks may wait; the reader's own limit if `None`.
    pub fetch_deadline: Option<Duration>,
    /// When to lose patience.
    pub timeouts: Timeouts,
}

/// When to lose patience.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For a connection to be made.
    pub connect: Duration,
    /// Without any byte.
    pub stall: Duration,
    /// The least number of bytes of a body in the time of a stall; a body that ends sooner may be shorter.
    pub slow: u64,
    /// How often the same request is tried again without any progress.
    pub retries: u32,
    /// Before the first time; doubled each time.
    pub retry_delay: Duration,
    /// The longest time that a server may ask us to wait.
    pub longest_wait: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            slow: 4 << 10,
            retries: 5,
            retry_delay: Duration::from_millis(300),
            longest_wait: Duration::from_secs(120),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            proxies: Proxies::default(),
            certificate_folders: Vec::new(),
            credentials: None,
            keep_blobs: false,
            max_downloads: 6,
            max_uploads: 5,
            fetch_deadline: None,
            timeouts: Timeouts::default(),
        }
    }
}

impl Settings {
    /// Takes over the keys of a `daemon.json` that are about registries. Its other keys are somebody else's.
    pub fn read_daemon_json(&mut self, bytes: &[u8]) -> Result<(), SettingsError> {
        let keys: DaemonKeys = parse_json(bytes, MAX_FILE)?;
        for mirror in keys.registry_mirrors.iter().chain(keys.mirrors.values().flatten()) {
            check_mirror(mirror)?;
        }
        if !keys.registry_mirrors.is_empty() {
            self.mirrors.insert(DOCKER_HUB.to_owned(), keys.registry_mirrors);
        }
        self.mirrors.extend(keys.mirrors);
        self.insecure.extend(keys.insecure_registries);
        let Proxies { http, https, no_proxy } = keys.proxies.into();
        if http.is_some() {
            self.proxies.http = http;
        }
        if https.is_some() {
            self.proxies.https = https;
        }
        if no_proxy.is_some() {
            self.proxies.no_proxy = no_proxy;
        }
        self.keep_blobs |= keys.keep_blobs;
        if let Some(count) = keys.max_concurrent_downloads.filter(|count| *count > 0) {
            self.max_downloads = count;
        }
        if let Some(count) = keys.max_concurrent_uploads.filter(|count| *count > 0) {
            self.max_uploads = count;
        }
        self.fetch_deadline = keys.fetch_deadline.map(Duration::from_secs).or(self.fetch_deadline);
        Ok(())
    }

    /// Returns whether a registry may be used without proof of who it is, by what it is called. This machine itself always
    /// may, as in Docker.
    pub(super) fn is_insecure(&self, host: &str, port: u16) -> bool {
        if host == "localhost" {
            return true;
        }
        let name = |entry: &str| {
            let entry = entry.split_once("://").map_or(entry, |(_, rest)| rest).trim_end_matches('/');
            let Some(listed) = Origin::parse(Scheme::Https, entry) else { return false };
            let any_port = !entry.rsplit(']').next().is_some_and(|end| end.contains(':'));
            listed.host == host && (any_port || listed.port == port)
        };
        self.insecure.iter().any(|entry| name(entry))
            || host.parse().is_ok_and(|address| self.is_insecure_address(address))
    }

    /// Returns whether there are addresses, other than this machine's own, where registries may be used without proof.
    pub(super) fn has_insecure_addresses(&self) -> bool {
        self.insecure.iter().any(|entry| entry.contains('/') || entry.parse::<IpAddr>().is_ok())
    }

    /// Returns whether whoever is at an address may be used without proof: this machine, and the networks that are listed.
    pub(super) fn is_insecure_address(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.insecure.iter().any(|entry| is_in_network(address, entry))
    }
}

/// Why a `daemon.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is not the JSON that it should be.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A mirror is none.
    #[error("invalid mirror {mirror:?}: expected http:// or https:// with a host and no path, user or query")]
    Mirror {
        /// What is in the file.
        mirror: String,
    },
}

fn check_mirror(mirror: &str) -> Result<(), SettingsError> {
    let authority = match mirror.split_once("://") {
        Some(("http" | "https", rest)) => Some(rest),
        Some(_) => None,
        None => Some(mirror),
    };
    let valid = authority.is_some_and(|rest| Origin::parse(Scheme::Https, rest.trim_end_matches('/')).is_some());
    if valid { Ok(()) } else { Err(SettingsError::Mirror { mirror: mirror.to_owned() }) }
}

/// Which proxy leads where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain connections.
    pub http: Option<String>,
    /// For encrypted connections.
    pub https: Option<String>,
    /// What is reached without a proxy: names, names with a dot in front, addresses, networks, `*`.
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// Reads the variables that all programs know.
    pub fn from_environment() -> Proxies {
        let variable =
            |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok()).filter(|value| !value.is_empty());
        Proxies {
            http: variable(["HTTP_PROXY", "http_proxy"]),
            https: variable(["HTTPS_PROXY", "https_proxy"]),
            no_proxy: variable(["NO_PROXY", "no_proxy"]),
        }
    }

    /// Returns the proxy for an origin. This machine itself is never reached through one.
    ///
    /// # Errors
    /// What is set is not the address of a proxy; going past it would not be what was asked for.
    pub(super) fn of(&self, origin: &Origin) -> Result<Option<Url>, RegistryError> {
        let proxy = match origin.scheme {
            Scheme::Http => self.http.as_deref(),
            Scheme::Https => self.https.as_deref(),
        };
        let Some(proxy) = proxy.filter(|_| !self.is_excluded(origin)) else { return Ok(None) };
        // Without a scheme, as Go's programs take it.
        let text = if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") };
        // It may hold a password, which is not shown.
        let shown = || text.rsplit_once('@').map_or(text.as_str(), |(_, rest)| rest).to_owned();
        text.parse().map(Some).map_err(|_| RegistryError::InvalidProxy { proxy: shown() })
    }

    fn is_excluded(&self, origin: &Origin) -> bool {
        let address = origin.host.parse::<IpAddr>().ok();
        if origin.host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let excluded = |entry: &str| {
            let entry = entry.trim();
            let (name, port) = match entry.rsplit_once(':') {
                Some((name, port)) if !name.contains(':') => (name, port.parse::<u16>().ok()),
                _ => (entry, None),
            };
            if port.is_some_and(|port| port != origin.port) || name.is_empty() {
                return false;
            }
            if name == "*" || address.is_some_and(|address| is_in_network(address, name)) {
                return true;
            }
            let name = name.to_ascii_lowercase();
            let suffix = name.trim_start_matches('*');
            match suffix.strip_prefix('.') {
                Some(_) => origin.host.ends_with(suffix),
                None => origin.host == name || origin.host.ends_with(&format!(".{name}")),
            }
        };
        self.no_proxy.as_deref().unwrap_or("").split(',').any(excluded)
    }
}

/// Returns whether an address is another one or lies in a network, `10.0.0.0/8`.
fn is_in_network(address: IpAddr, network: &str) -> bool {
    let (base, length) = match network.split_once('/') {
        Some((base, length)) => (base, length.parse::<u32>().ok()),
        None => (network, Some(128)),
    };
    match (address, base.parse::<IpAddr>(), length) {
        (IpAddr::V4(address), Ok(IpAddr::V4(base)), Some(length)) => {
            let shift = 32_u32.saturating_sub(length);
            let bits = |address: std::net::Ipv4Addr| u64::from(u32::from(address)) >> shift;
            bits(address) == bits(base)
        }
        (IpAddr::V6(address), Ok(IpAddr::V6(base)), Some(length)) => {
            let shift = 128_u32.saturating_sub(length);
            let bits = |address: std::net::Ipv6Addr| u128::from(address).checked_shr(shift).unwrap_or(0);
            bits(address) == bits(base)
        }
        _ => false,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct DaemonKeys {
    #[serde(default)]
    registry_mirrors: Vec<String>,
    #[serde(default)]
    mirrors: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    insecure_registries: Vec<String>,
    #[serde(default)]
    proxies: DaemonProxies,
    #[serde(default)]
    keep_blobs: bool,
    max_concurrent_downloads: Option<usize>,
    max_concurrent_uploads: Option<usize>,
    /// In seconds.
    fetch_deadline: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct DaemonProxies {
    http_proxy: Option<String>,
    https_proxy: Option<String>,
    no_proxy: Option<String>,
}

impl From<DaemonProxies> for Proxies {
    fn from(keys: DaemonProxies) -> Proxies {
        Proxies { http: keys.http_proxy, https: keys.https_proxy, no_proxy: keys.no_proxy }
    }
}

pub(super) const DOCKER_HUB: &str = "docker.io";
const MAX_FILE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        text.parse::<Url>().unwrap().origin
    }

    #[test]
    fn keys_of_daemon_json_are_taken_over() {
        let mut settings = Settings::default();
        let text = br#"{"registry-mirrors": ["https://m"], "mirrors": {"quay.io": ["http://q"]}, "debug": true,
            "insecure-registries": ["10.0.0.0/8", "reg:5000"], "proxies": {"https-proxy": "http://p:1"},
            "max-concurrent-downloads": 2, "keep-blobs": true, "fetch-deadline": 7}"#;
        settings.read_daemon_json(text).unwrap();
        assert_eq!(settings.mirrors["docker.io"], ["https://m"]);
        assert_eq!(settings.mirrors["quay.io"], ["http://q"]);
        assert_eq!((settings.max_downloads, settings.max_uploads, settings.keep_blobs), (2, 5, true));
        assert_eq!(settings.proxies.https.as_deref(), Some("http://p:1"));
        assert_eq!(settings.fetch_deadline, Some(Duration::from_secs(7)));
        assert!(settings.read_daemon_json(b"{").is_err());
        for mirror in ["https://m/path", "ftp://m", "https://u:p@m", "", "https://"] {
            let text = serde_json::json!({"registry-mirrors": [mirror]}).to_string();
            assert!(settings.read_daemon_json(text.as_bytes()).is_err(), "{mirror}");
        }
    }

    #[test]
    fn insecure_registries_are_names_addresses_and_networks() {
        let insecure = [
            "reg.example",
            "Other:5000",
            "10.1.0.0/16",
            "http://old/",
            "fd00::/8",
            "fe80::2",
            "[fe80::3]:5000",
            "default:443",
        ];
        let settings = Settings { insecure: insecure.map(str::to_owned).to_vec(), ..Settings::default() };
        for (host, port, expected) in [
            ("reg.example", 1, true),
            ("other", 5000, true),
            ("other", 5001, false),
            ("10.1.2.3", 443, true),
            ("10.2.2.3", 443, false),
            ("old", 443, true),
            ("fd12::1", 443, true),
            ("fe80::1", 443, false),
            ("fe80::2", 443, true),
            ("fe80::3", 5000, true),
            ("fe80::3", 5001, false),
            ("127.1.2.3", 5000, true),
            ("localhost", 5000, true),
            ("default", 443, true),
            ("default", 80, false),
            ("quay.io", 443, false),
        ] {
            assert_eq!(settings.is_insecure(host, port), expected, "{host} {port}");
        }
    }

    #[test]
    fn proxies_are_left_out_where_asked() {
        let proxies = Proxies {
            http: Some("proxy:3128".to_owned()),
            https: Some("http://u:p@secure:1".to_owned()),
            no_proxy: Some("direct, .dotted.example,10.0.0.0/8,port:5000, *.star".to_owned()),
        };
        for (url, expected) in [
            ("http://far/", Some("http://proxy:3128/")),
            ("https://far/", Some("http://secure:1/")),
            ("https://direct/", None),
            ("https://sub.direct/", None),
            ("https://dotted.example/", Some("http://secure:1/")),
            ("https://a.dotted.example/", None),
            ("https://10.9.9.9/", None),
            ("https://port:5000/", None),
            ("https://port:5001/", Some("http://secure:1/")),
            ("https://x.star/", None),
            ("http://localhost:5000/", None),
            ("http://127.0.0.2:5000/", None),
        ] {
            let proxy = proxies.of(&origin(url)).unwrap();
            assert_eq!(proxy.map(|proxy| proxy.shown()).as_deref(), expected, "{url}");
        }
        let all = Proxies { no_proxy: Some("*".to_owned()), ..proxies };
        assert_eq!(all.of(&origin("http://far/")).unwrap(), None);
        let unknown = Proxies { http: Some("socks5://u:p@proxy:1".to_owned()), ..Proxies::default() };
        let refused = unknown.of(&origin("http://far/")).unwrap_err().to_string();
        assert!(refused.contains("proxy:1") && !refused.contains("u:p"), "{refused}");
        assert_eq!(unknown.of(&origin("http://127.0.0.1/")).unwrap(), None);
    }
}
