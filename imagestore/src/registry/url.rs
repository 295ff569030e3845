//! Addresses of HTTP resources, as far as registries use them.

use std::fmt;
use std::str::FromStr;

/// How a resource is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// The part of an address that says with whom one talks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Origin {
    pub(super) scheme: Scheme,
    /// A name or an address, without brackets, in lower case.
    pub(super) host: String,
    pub(super) port: u16,
}

/// An absolute address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Url {
    pub(super) origin: Origin,
    /// Path and query as they are sent, beginning with a slash.
    pub(super) target: String,
    /// `name:password` before the host, decoded; only proxies are given this way.
    pub(super) user: Option<String>,
}

/// A text is no address that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address {text:?}")]
pub struct InvalidUrl {
    pub(super) text: String,
}

impl Origin {
    /// Parses `host[:port]`.
    pub(super) fn parse(scheme: Scheme, text: &str) -> Option<Origin> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                let valid = !host.is_empty()
                    && host.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
                (Some(host).filter(|_| valid)?, rest)
            }
            None => {
                let (host, rest) = text.find(':').map_or((text, ""), |colon| text.split_at(colon));
                let valid = !host.is_empty()
                    && host.len() <= 253
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
                (Some(host).filter(|_| valid)?, rest)
            }
        };
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0)?
            }
            None if port.is_empty() => scheme.default_port(),
            _ => return None,
        };
        Some(Origin { scheme, host: host.to_ascii_lowercase(), port })
    }

    /// Returns host and port as a `Host` header has them.
    pub(super) fn authority(&self) -> String {
        match self.port == self.scheme.default_port() {
            true => self.bracketed(),
            false => self.authority_with_port(),
        }
    }

    /// Returns host and port, also where that is the usual one.
    pub(super) fn authority_with_port(&self) -> String {
        format!("{}:{}", self.bracketed(), self.port)
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme.name(), self.authority())
    }
}

impl Url {
    pub(super) fn new(origin: Origin, target: impl Into<String>) -> Url {
        Url { origin, target: target.into(), user: None }
    }

    /// Resolves what a `Location` header says.
    pub(super) fn join(&self, location: &str) -> Result<Url, InvalidUrl> {
        let invalid = || InvalidUrl { text: location.to_owned() };
        if location.contains("://") && !location.starts_with('/') {
            return location.parse();
        }
        if let Some(rest) = location.strip_prefix("//") {
            return format!("{}://{rest}", self.origin.scheme.name()).parse();
        }
        let location = location.split('#').next().unwrap_or("");
        let path = self.target.split('?').next().unwrap_or("/");
        let target = match location.chars().next() {
            None => return Err(invalid()),
            Some('/') => location.to_owned(),
            Some('?') => format!("{path}{location}"),
            Some(_) => format!("{}/{location}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
        };
        if !is_target(&target) {
            return Err(invalid());
        }
        Ok(Url { origin: self.origin.clone(), target, user: None })
    }

    /// Adds a parameter to the query.
    pub(super) fn with_parameter(mut self, name: &str, value: &str) -> Url {
        self.target.push(if self.target.contains('?') { '&' } else { '?' });
        self.target.push_str(&format!("{name}={}", escape(value)));
        self
    }

    /// Returns the address without its query, which may hold secrets.
    pub(super) fn shown(&self) -> String {
        format!("{}{}", self.origin, self.target.split('?').next().unwrap_or(""))
    }
}

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Url, InvalidUrl> {
        let parse = || {
            let (scheme, rest) = text.split_once("://")?;
            let scheme = match scheme.to_ascii_lowercase().as_str() {
                "http" => Scheme::Http,
                "https" => Scheme::Https,
                _ => return None,
            };
            let rest = rest.split('#').next()?;
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, target) = rest.split_at(end);
            let (user, authority) = match authority.rsplit_once('@') {
                Some((user, authority)) => (Some(unescape(user)?), authority),
                None => (None, authority),
            };
            let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
            let origin = Origin::parse(scheme, authority)?;
            is_target(&target).then_some(Url { origin, target, user })
        };
        parse().ok_or_else(|| InvalidUrl { text: text.to_owned() })
    }
}

/// What may stand in a request line: nothing that ends it.
fn is_target(target: &str) -> bool {
    target.len() <= MAX_TARGET && target.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Writes text so that it is one value in a query.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

const MAX_TARGET: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, shown) in [
            ("https://Quay.io/v2/a?x=1#y", "https://quay.io/v2/a"),
            ("http://localhost:5000", "http://localhost:5000/"),
            ("https://h:443/x", "https://h/x"),
            ("http://[::1]:5000/x", "http://[::1]:5000/x"),
            ("http://u:p%40@proxy:3128", "http://proxy:3128/"),
        ] {
            assert_eq!(text.parse::<Url>().unwrap().shown(), shown);
        }
        assert_eq!("http://u:p%40@proxy".parse::<Url>().unwrap().user.as_deref(), Some("u:p@"));
        for text in [
            "",
            "h/x",
            "ftp://h/x",
            "http://",
            "http://h:0/",
            "http://h:99999/",
            "http://h:x/",
            "http://a b/",
            "http://h/a b",
            "http://h/\r\nX: y",
            "http://[::1/",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn locations_are_resolved() {
        let base: Url = "https://h:8443/v2/a/blobs/x?q=1".parse().unwrap();
        for (location, expected) in [
            ("/v2/b?y=2", "https://h:8443/v2/b?y=2"),
            ("http://other/z", "http://other/z"),
            ("//other/z", "https://other/z"),
            ("y?z", "https://h:8443/v2/a/blobs/y?z"),
            ("?z", "https://h:8443/v2/a/blobs/x?z"),
        ] {
            let url = base.join(location).unwrap();
            assert_eq!(format!("{}{}", url.origin, url.target), expected);
        }
        for location in ["", "javascript://x", "/a\r\nb"] {
            assert!(base.join(location).is_err(), "{location:?}");
        }
    }
}
