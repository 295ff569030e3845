//! Devices of the host in a container, in Docker's words.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `--device`: a device of the host, or all of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// On the host, absolute.
    pub host: PathBuf,
    /// In the container, absolute.
    pub container: PathBuf,
    /// What may be done with it: letters of `rwm`.
    pub access: String,
}

/// `--device-cgroup-rule`: what a container may do with devices for which it has, or makes, a node of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceRule {
    /// `a`, `b` or `c`: any, block or character devices.
    pub kind: char,
    /// The major number; any when absent.
    pub major: Option<u32>,
    /// The minor number; any when absent.
    pub minor: Option<u32>,
    /// What may be done: letters of `rwm`.
    pub access: String,
}

/// A text that is no device, or no rule about devices. The texts are Docker's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDevice {
    /// It has too many parts, or none.
    #[error("invalid device specification: {0}")]
    Specification(String),
    /// A path is relative.
    #[error("{0} is not an absolute path")]
    Relative(String),
    /// A rule is none.
    #[error("invalid device cgroup format '{0}'")]
    Rule(String),
}

impl FromStr for Device {
    type Err = InvalidDevice;

    /// Reads `HOST[:CONTAINER][:ACCESS]`.
    fn from_str(text: &str) -> Result<Device, InvalidDevice> {
        let invalid = || InvalidDevice::Specification(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        let (host, container, access) = match parts[..] {
            [host] => (host, host, "rwm"),
            [host, access] if is_access(access) => (host, host, access),
            [host, container] => (host, container, "rwm"),
            [host, container, access] if is_access(access) => (host, container, access),
            _ => return Err(invalid()),
        };
        if host.is_empty() || container.is_empty() {
            return Err(invalid());
        }
        if let Some(path) = [host, container].into_iter().find(|path| !path.starts_with('/')) {
            return Err(InvalidDevice::Relative(path.to_owned()));
        }
        Ok(Device { host: host.into(), container: container.into(), access: access.to_owned() })
    }
}

impl FromStr for DeviceRule {
    type Err = InvalidDevice;

    /// Reads `KIND MAJOR:MINOR ACCESS`, where `*` is any number.
    fn from_str(text: &str) -> Result<DeviceRule, InvalidDevice> {
        let invalid = || InvalidDevice::Rule(text.to_owned());
        let number = |text: &str| match text {
            "*" => Ok(None),
            text => text.parse().map(Some).map_err(|_| invalid()),
        };
        let parts: Vec<&str> = text.split(' ').collect();
        let [kind @ ("a" | "b" | "c"), numbers, access] = parts[..] else { return Err(invalid()) };
        let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
        if !is_access(access) {
            return Err(invalid());
        }
        let kind = kind.chars().next().ok_or_else(invalid)?;
        Ok(DeviceRule { kind, major: number(major)?, minor: number(minor)?, access: access.to_owned() })
    }
}

impl std::fmt::Display for DeviceRule {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        write!(formatter, "{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access)
    }
}

impl TryFrom<String> for DeviceRule {
    type Error = InvalidDevice;

    fn try_from(text: String) -> Result<DeviceRule, InvalidDevice> {
        text.parse()
    }
}

impl From<DeviceRule> for String {
    fn from(rule: DeviceRule) -> String {
        rule.to_string()
    }
}

/// Some of the letters `r`, `w` and `m`, each once.
fn is_access(text: &str) -> bool {
    let once = |letter: char| text.matches(letter).count() == 1;
    !text.is_empty() && text.chars().all(|letter| "rwm".contains(letter) && once(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_a_place_and_letters() {
        let device = |host: &str, container: &str, access: &str| Device {
            host: host.into(),
            container: container.into(),
            access: access.to_owned(),
        };
        for (text, expected) in [
            ("/dev/fuse", device("/dev/fuse", "/dev/fuse", "rwm")),
            ("/dev/fuse:r", device("/dev/fuse", "/dev/fuse", "r")),
            ("/dev/fuse:/dev/f", device("/dev/fuse", "/dev/f", "rwm")),
            ("/dev/fuse:/dev/f:rw", device("/dev/fuse", "/dev/f", "rw")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", ":", "/a:/b:x", "/a:/b:rr", "/a:/b:", "/a:/b:r:w", "fuse", "/dev/fuse:f", "vendor/kind=all"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[test]
    fn rules_are_read_and_written() {
        for text in ["c 1:3 rwm", "b *:* r", "a 8:* m"] {
            assert_eq!(text.parse::<DeviceRule>().unwrap().to_string(), text);
        }
        for text in ["", "c 1:3", "d 1:3 r", "c 1 r", "c 1:3 x", "c -1:3 r", "c 1:3  r", "cc 1:3 r"] {
            assert!(text.parse::<DeviceRule>().is_err(), "{text}");
        }
    }
}
