//! The configuration of an image: what to run, and of which layers it consists.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use strata_layer::DiffId;

use super::json::{DocumentError, parse};
use super::manifest::{Platform, null_as_default};
use super::{MAX_CONFIG, MAX_LAYERS};

/// An image's configuration. Fields that are not known here are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The processor it is for, in Go's words.
    #[serde(default)]
    pub architecture: String,
    /// The variant of the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The operating system, in Go's words.
    #[serde(default)]
    pub os: String,
    /// A message of whoever committed the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// What containers of the image start with.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: ContainerConfig,
    /// The layers.
    pub rootfs: RootFs,
    /// How the image came to be, oldest first. Some tools write no history or one that does not fit the layers, which
    /// does no harm.
    #[serde(default, deserialize_with = "null_as_default")]
    pub history: Vec<HistoryEntry>,
    /// Everything else that the document has.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What containers of an image start with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// The user, `name|uid[:group|gid]`; empty is root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports that the program listens on, such as `80/tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Value>>,
    /// Environment variables, `NAME=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// The program that arguments are given to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The default arguments, or the program where there is no entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Folders that become volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Value>>,
    /// The folder to start in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The signal that asks the program to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Everything else: health check, shell, build triggers and what other tools note here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests of the uncompressed layers, bottom first.
    #[serde(default, with = "diff_ids")]
    pub diff_ids: Vec<DiffId>,
}

/// One step of an image's making.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step changed no file and has no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Parses an image's configuration and checks that it fits itself.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, ConfigError> {
        let config: ImageConfig = parse(bytes, MAX_CONFIG)?;
        if config.rootfs.kind != "layers" {
            return Err(ConfigError::RootFs { kind: config.rootfs.kind });
        }
        let layers = config.rootfs.diff_ids.len();
        if layers > MAX_LAYERS {
            return Err(DocumentError::TooManyLayers { count: layers }.into());
        }
        Ok(config)
    }

    /// Writes the configuration. The same configuration gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a configuration has only string keys")
    }

    /// Returns the machine that the image is for.
    pub fn platform(&self) -> Platform {
        Platform { architecture: self.architecture.clone(), os: self.os.clone(), variant: self.variant.clone() }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not a document of this form.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// It does not consist of layers.
    #[error("root file system of unknown type {kind:?}")]
    RootFs {
        /// The type it has.
        kind: String,
    },
}

mod diff_ids {
    use serde::{Deserialize, Deserializer, Serializer};
    use strata_layer::DiffId;

    pub(super) fn serialize<S: Serializer>(ids: &[DiffId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(|id| id.0.to_string()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DiffId>, D::Error> {
        let texts: Vec<String> = Option::deserialize(deserializer)?.unwrap_or_default();
        let parse = |text: String| match text.parse() {
            Ok(digest) => Ok(DiffId(digest)),
            Err(error) => Err(serde::de::Error::custom(format_args!("digest {text:?}: {error}"))),
        };
        texts.into_iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use strata_layer::Digest;

    use super::*;

    #[test]
    fn unknown_fields_survive_reading_and_writing() {
        let value = json!({
            "architecture": "amd64", "os": "linux", "os.version": "1", "created": "2024-01-01T00:00:00Z",
            "config": {"Env": ["A=1"], "Healthcheck": {"Test": ["NONE"]}, "Entrypoint": [], "ArgsEscaped": true},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"1").to_string()]},
            "history": [{"created_by": "x"}, {"created_by": "y", "empty_layer": true}],
            "moby.buildkit.cache": {"a": [1]},
        });
        let config = ImageConfig::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(config.config.entrypoint, Some(vec![]));
        assert_eq!(config.rootfs.diff_ids, [DiffId(Digest::of(b"1"))]);
        assert_eq!(serde_json::from_slice::<Value>(&config.to_bytes()).unwrap(), value);
    }

    #[test]
    fn nulls_of_go_programs_are_empty() {
        let text = br#"{"architecture":"amd64","os":"linux","config":null,"rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config = ImageConfig::parse(text).unwrap();
        assert!(config.rootfs.diff_ids.is_empty() && config.history.is_empty() && config.config.env.is_none());
    }

    #[test]
    fn contradictions_are_refused() {
        let id = Digest::of(b"1").to_string();
        for (value, message) in [
            (json!({"rootfs": {"type": "squash", "diff_ids": []}}), "unknown type \"squash\""),
            (json!({"rootfs": {"type": "layers", "diff_ids": vec![id.clone(); 513]}}), "513 layers"),
        ] {
            let error = ImageConfig::parse(value.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(ImageConfig::parse(br#"{"rootfs":{"type":"layers","diff_ids":["sha256:x"]}}"#).is_err());
        assert!(ImageConfig::parse(b"{}").is_err());
    }
}
