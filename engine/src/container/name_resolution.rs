//! What a container is told of other hosts, beside what it would be told anyway.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What its `/etc/hosts` and `/etc/resolv.conf` say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NameResolution {
    /// Lines of `/etc/hosts`.
    pub hosts: Vec<ExtraHost>,
    /// Servers, in place of the host's.
    pub servers: Vec<IpAddr>,
    /// Domains in which short names are looked for, in place of the host's; `.` alone for none.
    pub search: Vec<String>,
    /// Options of the resolver, in place of the host's (`resolv.conf(5)`).
    pub options: Vec<String>,
}

impl NameResolution {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `--add-host`: a name and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// A text that is no name with an address. The texts are Docker's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidExtraHost {
    /// A part is missing, or the name cannot stand in the file.
    #[error("bad format for add-host: {0:?}")]
    Format(String),
    /// The address is none.
    #[error("invalid IP address in add-host: {0:?}")]
    Address(String),
    /// There is no bridge whose address could be meant.
    #[error("add-host {0:?}: host-gateway is the host's address on a bridge network, and there is none")]
    Gateway(String),
}

impl std::str::FromStr for ExtraHost {
    type Err = InvalidExtraHost;

    /// Reads `NAME:ADDRESS` or `NAME=ADDRESS`; an address of version 6 may be in brackets.
    fn from_str(text: &str) -> Result<ExtraHost, InvalidExtraHost> {
        let format = || InvalidExtraHost::Format(text.to_owned());
        let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(format)?;
        let splits_line = |letter: char| letter.is_whitespace() || letter.is_control() || letter == '#';
        if name.is_empty() || name.contains(splits_line) {
            return Err(format());
        }
        if address == "host-gateway" {
            return Err(InvalidExtraHost::Gateway(text.to_owned()));
        }
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let address = bare.parse().map_err(|_| InvalidExtraHost::Address(address.to_owned()))?;
        Ok(ExtraHost { name: name.to_owned(), address })
    }
}

impl std::fmt::Display for ExtraHost {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.name, self.address)
    }
}

impl TryFrom<String> for ExtraHost {
    type Error = InvalidExtraHost;

    fn try_from(text: String) -> Result<ExtraHost, InvalidExtraHost> {
        text.parse()
    }
}

impl From<ExtraHost> for String {
    fn from(host: ExtraHost) -> String {
        host.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_written() {
        for (text, written) in [
            ("db:10.0.0.1", "db:10.0.0.1"),
            ("db=10.0.0.1", "db:10.0.0.1"),
            ("db:::1", "db:::1"),
            ("db:[fe80::1]", "db:fe80::1"),
        ] {
            assert_eq!(text.parse::<ExtraHost>().unwrap().to_string(), written, "{text}");
        }
        for text in ["", "db", ":1.2.3.4", "db:", "db:1.2.3", "a b:1.2.3.4", "a\nb:1.2.3.4", "db:host-gateway"] {
            assert!(text.parse::<ExtraHost>().is_err(), "{text}");
        }
    }
}
