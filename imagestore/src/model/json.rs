//! JSON from strangers, within limits.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

/// How deep objects and arrays may nest.
const MAX_DEPTH: usize = 64;

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The document has too many bytes.
    #[error("document has {size} bytes, at most {limit} are accepted")]
    TooLarge {
        /// The size of the document.
        size: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// The document is not JSON of the form expected.
    #[error("invalid document")]
    Json(#[source] serde_json::Error),
    /// The document is both an index and a manifest.
    #[error("ambiguous document: it has both layers and manifests")]
    Ambiguous,
    /// The document says that it is something else than its descriptor or content says.
    #[error("document claims the media type {claimed:?}, expected {expected}")]
    MediaType {
        /// What `mediaType` says.
        claimed: String,
        /// What the document is.
        expected: &'static str,
    },
    /// The manifest is of Docker's schema 1.
    #[error(
        "manifest has schema version 1, which is obsolete and not verifiable; push the image again with a current tool"
    )]
    Schema1,
    /// The document has a schema version that does not exist.
    #[error("unknown schema version {version}")]
    SchemaVersion {
        /// What `schemaVersion` says.
        version: i64,
    },
    /// The document is neither an index nor a manifest.
    #[error("document is neither an image manifest nor an image index")]
    Unknown,
    /// The image has too many layers.
    #[error("image has {count} layers, at most {} are accepted", super::MAX_LAYERS)]
    TooManyLayers {
        /// How many layers it has.
        count: usize,
    },
    /// A layer is of a kind that cannot be used.
    #[error("layer {digest} has the unsupported media type {media_type:?}")]
    LayerMediaType {
        /// The layer's digest.
        digest: String,
        /// Its media type.
        media_type: String,
    },
    /// The manifest describes something else than an image to run.
    #[error("this is an artifact of type {media_type:?}, not an image")]
    Artifact {
        /// The type of its configuration.
        media_type: String,
    },
}

/// Parses at most `limit` bytes of JSON.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], limit: u64) -> Result<T, DocumentError> {
    let size = bytes.len() as u64;
    if size > limit {
        return Err(DocumentError::TooLarge { size, limit });
    }
    parse_unbounded(bytes)
}

/// Parses JSON that is known to be of a sane size.
pub(crate) fn parse_unbounded<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DocumentError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let depth = Cell::new(0);
    Shape { depth: &depth }.deserialize(&mut deserializer).map_err(DocumentError::Json)?;
    deserializer.end().map_err(DocumentError::Json)?;
    serde_json::from_slice(bytes).map_err(DocumentError::Json)
}

/// Walks any JSON value, builds nothing, and checks depth and repeated keys.
struct Shape<'a> {
    depth: &'a Cell<usize>,
}

impl Shape<'_> {
    fn enter<E: serde::de::Error>(&self) -> Result<(), E> {
        self.depth.set(self.depth.get() + 1);
        if self.depth.get() > MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }

    fn leave(&self) {
        self.depth.set(self.depth.get() - 1);
    }
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.enter()?;
        while items.next_element_seed(Shape { depth: self.depth })?.is_some() {}
        self.leave();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.enter()?;
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value_seed(Shape { depth: self.depth })?;
            if let Some(key) = seen.replace(key) {
                return Err(A::Error::custom(format_args!("key {key:?} appears twice")));
            }
        }
        self.leave();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn error(text: &str) -> String {
        match parse::<Value>(text.as_bytes(), 1 << 20).unwrap_err() {
            DocumentError::Json(source) => source.to_string(),
            other => other.to_string(),
        }
    }

    #[test]
    fn ordinary_documents_pass() {
        let text = r#"{"a": [1, -2, 3.5, null, true, "x", {"a": {}}], "b": {"a": 1}}"#;
        assert_eq!(parse::<Value>(text.as_bytes(), 100).unwrap()["b"]["a"], 1);
    }

    #[test]
    fn repeated_keys_depth_size_and_trailing_text_are_refused() {
        assert!(error(r#"{"layers": [], "layers": [1]}"#).contains("key \"layers\" appears twice"));
        assert!(error(r#"[{"x": {"y": 1, "y": 1}}]"#).contains("key \"y\" appears twice"));
        assert!(error(&format!("{}{}", "[".repeat(65), "]".repeat(65))).contains("nested deeper than 64"));
        assert!(error(&"[".repeat(1_000_000)).contains("nested deeper than 64"));
        assert!(error("{} {}").contains("trailing characters"));
        assert!(error("").contains("EOF"));
        let too_large = parse::<Value>(b"[1, 2]", 5).unwrap_err();
        assert_eq!(too_large.to_string(), "document has 6 bytes, at most 5 are accepted");
    }
}
