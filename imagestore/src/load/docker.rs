//! Archives of `docker save`: `manifest.json` names a configuration and the layers of each image.
//!
//! Old ones have a folder for each layer (`<id>/layer.tar`, possibly a symbolic link to another), newer ones are an
//! OCI layout at the same time. Then the OCI manifest that belongs to an image is kept, so that its digest stays.

use strata_layer::Digest;

use super::LoadError;
use super::archive::Archive;
use super::oci::{self, StoredManifest};
use super::plan::{DOCKER_MANIFEST, Expected, OCI_INDEX, PlannedImage, check_bytes, digest_in_name, pair_layers};
use crate::model::{ArchivedImage, MAX_CONFIG, MAX_MANIFEST, parse_docker_manifest};
use crate::reference::ImageRef;

pub(super) fn plan(archive: &Archive) -> Result<Vec<PlannedImage>, LoadError> {
    let bytes = archive.document(DOCKER_MANIFEST, MAX_MANIFEST)?;
    let images = parse_docker_manifest(&bytes)
        .map_err(|source| LoadError::Document { member: DOCKER_MANIFEST.to_owned(), source })?;
    let manifests = if archive.has(OCI_INDEX) { oci::present_manifests(archive)? } else { Vec::new() };
    images.into_iter().map(|image| plan_image(archive, image, &manifests)).collect()
}

fn plan_image(
    archive: &Archive,
    image: ArchivedImage,
    manifests: &[StoredManifest],
) -> Result<PlannedImage, LoadError> {
    let config = archive.document(&image.config, MAX_CONFIG)?;
    if let Some(digest) = digest_in_config_name(&image.config) {
        check_bytes(&image.config, &config, Expected { digest, size: None })?;
    }
    let mut names = Vec::with_capacity(image.repo_tags.len());
    for text in image.repo_tags {
        let name: ImageRef = text.parse().map_err(|source| LoadError::Name { text: text.clone(), source })?;
        if name.digest().is_some() {
            return Err(LoadError::NameWithDigest { text });
        }
        names.push(name);
    }
    let expected = |member: &String| digest_in_name(member).map(|digest| Expected { digest, size: None });
    let manifest = manifests.iter().find(|stored| belongs_to(stored, Digest::of(&config), &image.layers));
    let members: Vec<_> = match manifest {
        Some(stored) => {
            let expected =
                stored.manifest.layers.iter().map(|layer| Expected { digest: layer.digest, size: Some(layer.size) });
            image.layers.into_iter().zip(expected.map(Some)).collect()
        }
        None => image.layers.into_iter().map(|member| (member.clone(), expected(&member))).collect(),
    };
    let layers = pair_layers(&image.config, &config, members)?;
    Ok(PlannedImage { config, manifest: manifest.map(|stored| stored.bytes.clone()), layers, names })
}

/// Returns whether an OCI manifest describes the very same configuration and members.
fn belongs_to(stored: &StoredManifest, config: Digest, layers: &[String]) -> bool {
    let digests = stored.manifest.layers.iter().map(|layer| Some(layer.digest));
    stored.manifest.config.digest == config && digests.eq(layers.iter().map(|member| digest_in_name(member)))
}

/// Returns the digest in `<hex>.json` or `blobs/sha256/<hex>`.
fn digest_in_config_name(member: &str) -> Option<Digest> {
    let name = member.rsplit('/').next().unwrap_or(member);
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name)).ok()
}
