//! `manifest.json` of `docker save` archives.

use serde::Deserialize;

use super::json::{DocumentError, parse};
use super::manifest::null_as_default;
use super::{MAX_LAYERS, MAX_MANIFEST};

/// One image of a `docker save` archive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ArchivedImage {
    /// The member that holds the image's configuration.
    pub config: String,
    /// The names of the image, such as `debian:12`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub repo_tags: Vec<String>,
    /// The members that hold the layers, bottom first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<String>,
}

/// Parses the `manifest.json` of a `docker save` archive.
pub fn parse_docker_manifest(bytes: &[u8]) -> Result<Vec<ArchivedImage>, DocumentError> {
    let images: Vec<ArchivedImage> = parse(bytes, MAX_MANIFEST)?;
    match images.iter().map(|image| image.layers.len()).find(|count| *count > MAX_LAYERS) {
        Some(count) => Err(DocumentError::TooManyLayers { count }),
        None => Ok(images),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_manifest_reads_nulls_and_unknown_fields() {
        let text = br#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar"],"LayerSources":{}}]"#;
        let images = parse_docker_manifest(text).unwrap();
        assert_eq!(images[0].config, "c.json");
        assert!(images[0].repo_tags.is_empty());
        assert_eq!(images[0].layers, ["a/layer.tar"]);
        assert!(parse_docker_manifest(br#"{"Config":"c"}"#).is_err());
    }
}
