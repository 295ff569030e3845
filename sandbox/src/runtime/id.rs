//! Names of containers.

use std::fmt;
use std::str::FromStr;

use super::RuntimeError;

/// The name of a container, which is also that of its folder: letters, digits, `_`, `+`, `-` and `.`, as in runc.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = RuntimeError;

    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        // A folder's name can have 255 bytes.
        let valid = !text.is_empty() && text.len() <= 255 && !matches!(text, "." | "..") && text.bytes().all(allowed);
        if valid { Ok(Self(text.to_owned())) } else { Err(RuntimeError::InvalidId(text.to_owned())) }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_harmless_component_of_a_path() {
        for good in ["a", "A.b_c+d-9", "...", "-x"] {
            assert!(good.parse::<ContainerId>().is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "../a", "a b", "a\0", "ä", &"x".repeat(256)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }
}
