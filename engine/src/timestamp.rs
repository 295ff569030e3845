//! Moments in state files: RFC 3339, as in the documents of images.

/// For `#[serde(with = "...")]` on a [`Timestamp`](strata_imagestore::Timestamp).
pub(crate) mod text {
    use serde::{Deserialize, Deserializer, Serializer};
    use strata_imagestore::Timestamp;

    pub(crate) fn serialize<S: Serializer>(timestamp: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(timestamp)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| serde::de::Error::custom(format_args!("not a time: {text:?}")))
    }
}
