//! The identity of an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use strata_layer::Digest;

/// The ID of an image: the digest of its configuration, as Docker's classic store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(pub Digest);

impl ImageId {
    /// Returns the first twelve digits, the form that tables and messages show.
    pub fn short(&self) -> String {
        let mut hex = self.0.hex();
        hex.truncate(SHORT);
        hex
    }

    /// Returns whether `text` is the start of this ID, with or without `sha256:`.
    pub fn has_prefix(&self, text: &str) -> bool {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        !digits.is_empty() && self.0.hex().starts_with(digits)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for ImageId {
    type Err = strata_layer::InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(ImageId)
    }
}

impl TryFrom<String> for ImageId {
    type Error = strata_layer::InvalidDigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.to_string()
    }
}

const SHORT: usize = 12;
