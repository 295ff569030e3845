//! Image manifests and indexes, OCI's and Docker's schema 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use strata_layer::{DiffId, Digest};

use super::json::{DocumentError, parse};
use super::media_type::{self, LayerMediaType};
use super::{MAX_LAYERS, MAX_MANIFEST};

/// Points to a blob: what it is, its digest and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is. Docker's documents leave it out in places.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the blob's bytes.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// How many bytes the blob has.
    pub size: u64,
    /// The machine that an image is for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free-form notes.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What kind of artifact the manifest is, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// A kind of machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The processor, in Go's words.
    #[serde(default)]
    pub architecture: String,
    /// The operating system, in Go's words.
    #[serde(default)]
    pub os: String,
    /// The variant of the processor, such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A manifest: one image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// An index: several manifests, usually one for each platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The manifests and nested indexes.
    pub manifests: Vec<Descriptor>,
}

/// Either of the two documents that a reference can point to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An image for one platform.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

impl Document {
    /// Parses a manifest or an index; which one is told by its content.
    ///
    /// `expected` is the media type that the descriptor pointing here gives, empty if there is none.
    pub fn parse(bytes: &[u8], expected: &str) -> Result<Document, DocumentError> {
        let raw: RawDocument = parse(bytes, MAX_MANIFEST)?;
        let claimed = raw.media_type.unwrap_or_default();
        if raw.schema_version == Some(1) || media_type::is_schema1(&claimed) || media_type::is_schema1(expected) {
            return Err(DocumentError::Schema1);
        }
        if raw.schema_version != Some(2) {
            return Err(match raw.schema_version {
                Some(version) => DocumentError::SchemaVersion { version },
                None => DocumentError::Unknown,
            });
        }
        if raw.fs_layers.is_some() {
            return Err(DocumentError::Ambiguous);
        }
        let check = |name: &'static str, accepts: fn(&str) -> bool| match [claimed.as_str(), expected]
            .into_iter()
            .find(|text| !text.is_empty() && !accepts(text))
        {
            Some(text) => Err(DocumentError::MediaType { claimed: text.to_owned(), expected: name }),
            None => Ok(()),
        };
        match raw {
            RawDocument { config: Some(config), layers, manifests: None, .. } => {
                check("an image manifest", media_type::is_manifest)?;
                let layers = layers.unwrap_or_default();
                if layers.len() > MAX_LAYERS {
                    return Err(DocumentError::TooManyLayers { count: layers.len() });
                }
                Ok(Document::Manifest(Manifest { config, layers }))
            }
            RawDocument { config: None, layers: None, manifests: Some(manifests), .. } => {
                check("an image index", media_type::is_index)?;
                Ok(Document::Index(Index { manifests }))
            }
            RawDocument { config: None, layers: None, manifests: None, .. } => Err(DocumentError::Unknown),
            RawDocument { manifests: Some(_), .. } => Err(DocumentError::Ambiguous),
            RawDocument { .. } => Err(DocumentError::Unknown),
        }
    }
}

impl Manifest {
    /// Checks that this describes an image that can be run: a known configuration and only file-system layers.
    pub fn check_is_image(&self) -> Result<(), DocumentError> {
        let config_type = &self.config.media_type;
        if !config_type.is_empty() && !media_type::is_image_config(config_type) {
            return Err(DocumentError::Artifact { media_type: config_type.clone() });
        }
        for layer in &self.layers {
            if LayerMediaType::parse(&layer.media_type).is_none() {
                let (digest, media_type) = (layer.digest.to_string(), layer.media_type.clone());
                return Err(DocumentError::LayerMediaType { digest, media_type });
            }
        }
        Ok(())
    }

    /// Writes the manifest of an image whose layers are plain tars. The same image gives the same bytes.
    pub fn of_plain_layers(config: (Digest, u64), layers: &[(DiffId, u64)]) -> Vec<u8> {
        let descriptor = |media_type: &str, digest: Digest, size| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
        };
        let manifest = WrittenManifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST,
            config: descriptor(media_type::OCI_CONFIG, config.0, config.1),
            layers: layers.iter().map(|(id, size)| descriptor(media_type::OCI_LAYER, id.0, *size)).collect(),
        };
        serde_json::to_vec(&manifest).expect("a manifest has only string keys")
    }
}

impl Descriptor {
    /// Returns whether this points to an index and not to a manifest, as far as its media type says.
    pub fn is_index(&self) -> bool {
        media_type::is_index(&self.media_type)
    }

    /// Returns whether this points to a layer that is not distributed with the image.
    pub fn is_foreign(&self) -> bool {
        LayerMediaType::parse(&self.media_type) == Some(LayerMediaType::Foreign)
    }

    /// Returns whether this points to what may be an image for some machine: not to an attestation, a signature or
    /// another artifact that lives beside images.
    pub fn may_be_image(&self) -> bool {
        let is_attestation =
            self.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest");
        let known = self.media_type.is_empty()
            || media_type::is_manifest(&self.media_type)
            || media_type::is_index(&self.media_type)
            || media_type::is_schema1(&self.media_type);
        known && !is_attestation && self.artifact_type.as_deref().is_none_or(media_type::is_image_config)
    }
}

impl Platform {
    /// Returns the platform of this machine.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Platform {
            architecture: architecture.to_owned(),
            os: std::env::consts::OS.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Chooses the image that runs best on this machine; of equals the first, which is what an index lists for old clients.
    pub fn choose<'a>(&self, offered: &[&'a Descriptor]) -> Option<&'a Descriptor> {
        let fitness = |descriptor: &Descriptor| match &descriptor.platform {
            Some(platform) => platform.fitness(self),
            None => Some(0),
        };
        let mut best: Option<(u32, &Descriptor)> = None;
        for descriptor in offered {
            match fitness(descriptor) {
                Some(fitness) if best.is_none_or(|(other, _)| fitness > other) => best = Some((fitness, descriptor)),
                _ => {}
            }
        }
        best.map(|(_, descriptor)| descriptor)
    }

    /// Returns how well an image for `self` runs on `machine`: higher is better, `None` is not at all.
    pub fn fitness(&self, machine: &Platform) -> Option<u32> {
        if self.os != machine.os || self.architecture != machine.architecture {
            return None;
        }
        let level = |variant: &Option<String>, default| match variant.as_deref() {
            None | Some("") => Some(default),
            Some(text) => text.strip_prefix('v').and_then(|digits| digits.parse::<u32>().ok()),
        };
        let default = match self.architecture.as_str() {
            "arm" => 7,
            "arm64" => 8,
            _ => 1,
        };
        // A processor runs what was made for its own variant and for lower ones.
        let (own, offered) = (level(&machine.variant, default)?, level(&self.variant, default)?);
        (offered <= own).then_some(offered + 1)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(formatter, "/{variant}"),
        }
    }
}

impl std::str::FromStr for Platform {
    type Err = InvalidPlatform;

    /// Parses `os/architecture[/variant]`.
    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(InvalidPlatform { text: text.to_owned() }),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(InvalidPlatform { text: text.to_owned() });
        }
        Ok(Platform { architecture: architecture.to_owned(), os: os.to_owned(), variant })
    }
}

/// The text is not `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is an invalid platform, expected os/architecture[/variant]")]
pub struct InvalidPlatform {
    text: String,
}

/// What both documents may hold; the combination decides.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<i64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenManifest {
    schema_version: u8,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Go writes empty maps and lists as `null`.
pub(super) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

mod digest_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use strata_layer::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format_args!("digest {text:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(b"x").to_string(), "size": 1})
    }

    fn parse_value(value: &Value, expected: &str) -> Result<Document, DocumentError> {
        Document::parse(value.to_string().as_bytes(), expected)
    }

    #[test]
    fn manifests_and_indexes_are_told_apart_by_content() {
        let manifest = json!({"schemaVersion": 2, "config": descriptor(media_type::OCI_CONFIG), "layers": [descriptor(media_type::OCI_LAYER)]});
        assert!(matches!(parse_value(&manifest, "").unwrap(), Document::Manifest(m) if m.layers.len() == 1));
        let index =
            json!({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [descriptor(media_type::OCI_MANIFEST)]});
        assert!(matches!(parse_value(&index, DOCKER_INDEX).unwrap(), Document::Index(i) if i.manifests.len() == 1));
    }

    #[test]
    fn ambiguous_obsolete_and_mislabelled_documents_are_refused() {
        let config = descriptor(media_type::OCI_CONFIG);
        for (document, expected, message) in [
            (json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []}), "", "ambiguous"),
            (json!({"schemaVersion": 2, "layers": [], "manifests": []}), "", "ambiguous"),
            (json!({"schemaVersion": 2, "config": config, "layers": [], "fsLayers": []}), "", "ambiguous"),
            (json!({"schemaVersion": 1, "fsLayers": []}), "", "schema version 1"),
            (json!({"schemaVersion": 3, "config": config, "layers": []}), "", "unknown schema version 3"),
            (json!({"schemaVersion": 2}), "", "neither"),
            (json!({"config": config, "layers": []}), "", "neither"),
            (json!({"schemaVersion": 2, "layers": []}), "", "neither"),
            (
                json!({"schemaVersion": 2, "config": config, "layers": []}),
                media_type::OCI_INDEX,
                "claims the media type",
            ),
            (json!({"schemaVersion": 2, "manifests": []}), media_type::OCI_MANIFEST, "claims the media type"),
            (
                json!({"schemaVersion": 2, "mediaType": "a/b", "config": config, "layers": []}),
                "",
                "claims the media type",
            ),
            (json!({"schemaVersion": 2, "config": config, "layers": vec![config.clone(); 513]}), "", "513 layers"),
        ] {
            let error = parse_value(&document, expected).unwrap_err().to_string();
            assert!(error.contains(message), "{document}: {error}");
        }
        let negative =
            json!({"schemaVersion": 2, "config": {"mediaType": "", "digest": Digest::of(b"").to_string(), "size": -1}});
        assert!(matches!(parse_value(&negative, "").unwrap_err(), DocumentError::Json(_)));
    }

    #[test]
    fn written_manifest_reads_back_and_is_stable() {
        let layers = [(DiffId(Digest::of(b"1")), 10), (DiffId(Digest::of(b"2")), 20)];
        let bytes = Manifest::of_plain_layers((Digest::of(b"c"), 5), &layers);
        assert_eq!(bytes, Manifest::of_plain_layers((Digest::of(b"c"), 5), &layers));
        let Document::Manifest(manifest) = Document::parse(&bytes, media_type::OCI_MANIFEST).unwrap() else {
            panic!("not a manifest")
        };
        manifest.check_is_image().unwrap();
        assert_eq!(manifest.layers[1].size, 20);
        assert_eq!(manifest.config.digest, Digest::of(b"c"));
    }

    #[test]
    fn platform_choice_prefers_the_nearest_lower_variant() {
        let platform = |architecture: &str, variant: Option<&str>| Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        };
        let machine = platform("arm", Some("v7"));
        assert_eq!(platform("arm", Some("v8")).fitness(&machine), None);
        assert!(platform("arm", Some("v7")).fitness(&machine) > platform("arm", Some("v6")).fitness(&machine));
        assert_eq!(platform("arm", None).fitness(&machine), platform("arm", Some("v7")).fitness(&machine));
        assert_eq!(platform("amd64", None).fitness(&machine), None);
        assert!(platform("arm64", Some("v8")).fitness(&platform("arm64", None)).is_some());
        assert!(platform("amd64", Some("v3")).fitness(&platform("amd64", None)).is_none());
    }

    const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
}
