//! Container identifiers: 64 hexadecimal digits, as Docker's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names one container for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// A text that is not a full container identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a container id: {0:?}")]
pub struct InvalidContainerId(String);

impl ContainerId {
    /// Draws a new identifier from the kernel's random source.
    pub fn random() -> Result<ContainerId, rustix::io::Errno> {
        let bytes = random_bytes::<32>()?;
        Ok(ContainerId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The whole identifier.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as tables show it.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// Fills an array from the kernel's random source.
pub(crate) fn random_bytes<const LENGTH: usize>() -> Result<[u8; LENGTH], rustix::io::Errno> {
    let mut bytes = [0_u8; LENGTH];
    let mut filled = 0;
    while filled < LENGTH {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

impl fmt::Display for ContainerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = InvalidContainerId;

    fn from_str(text: &str) -> Result<ContainerId, InvalidContainerId> {
        let valid = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(ContainerId(text.to_owned())) } else { Err(InvalidContainerId(text.to_owned())) }
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidContainerId;

    fn try_from(text: String) -> Result<ContainerId, InvalidContainerId> {
        text.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> String {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_identifiers_are_valid_and_differ() {
        let one = ContainerId::random().unwrap();
        let other = ContainerId::random().unwrap();
        assert_ne!(one, other);
        assert_eq!(one.as_str().parse::<ContainerId>().unwrap(), one);
        assert_eq!(one.short().len(), 12);
    }

    #[test]
    fn only_64_lower_case_digits_are_an_identifier() {
        for text in ["", "abc", &"A".repeat(64), &"0".repeat(63), &"0".repeat(65), &"../".repeat(22)[..64]] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }
}
