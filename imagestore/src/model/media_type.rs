//! Media types of manifests, indexes and layers, OCI's and Docker's.

/// The kinds of layer media types that are understood.
///
/// How a layer is compressed is not asked here: its content says so, and what the media type claims has often been wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerMediaType {
    /// A tar, compressed or not.
    Tar,
    /// A tar that is not distributed with the image, but may be present.
    Foreign,
}

impl LayerMediaType {
    /// Parses a layer's media type; `None` if this is not a file-system layer.
    pub fn parse(text: &str) -> Option<LayerMediaType> {
        let base = ["+gzip", "+zstd", ".gzip", ".zstd"].iter().find_map(|end| text.strip_suffix(end)).unwrap_or(text);
        match base {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.container.image.rootfs.diff+x-gtar" => Some(LayerMediaType::Tar),
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Some(LayerMediaType::Foreign),
            _ => None,
        }
    }
}

pub(super) fn is_manifest(text: &str) -> bool {
    matches!(text, OCI_MANIFEST | DOCKER_MANIFEST)
}

pub(super) fn is_index(text: &str) -> bool {
    matches!(text, OCI_INDEX | DOCKER_INDEX)
}

pub(super) fn is_image_config(text: &str) -> bool {
    matches!(text, OCI_CONFIG | DOCKER_CONFIG)
}

pub(super) fn is_schema1(text: &str) -> bool {
    matches!(text, "application/vnd.docker.distribution.manifest.v1+json")
        || text == "application/vnd.docker.distribution.manifest.v1+prettyjws"
}

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_media_types() {
        for (text, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(LayerMediaType::Tar)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(LayerMediaType::Tar)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(LayerMediaType::Tar)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(LayerMediaType::Tar)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(LayerMediaType::Tar)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(LayerMediaType::Foreign)),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.in-toto+json", None),
            ("", None),
        ] {
            assert_eq!(LayerMediaType::parse(text), expected, "{text}");
        }
    }
}
