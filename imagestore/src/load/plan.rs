//! What an archive holds, found out from its documents before any layer is stored.

use strata_layer::{DiffId, Digest};

use super::LoadError;
use super::archive::Archive;
use super::{docker, oci};
use crate::model::{Descriptor, ImageConfig, Platform};
use crate::reference::ImageRef;

/// An image of an archive.
#[derive(Debug)]
pub(super) struct PlannedImage {
    /// The exact bytes of the configuration.
    pub(super) config: Vec<u8>,
    /// The exact bytes of the manifest, where the archive has one.
    pub(super) manifest: Option<Vec<u8>>,
    /// The layers, bottom first.
    pub(super) layers: Vec<PlannedLayer>,
    /// The names that the archive gives the image.
    pub(super) names: Vec<ImageRef>,
}

/// A layer of an image of an archive.
#[derive(Clone, Debug)]
pub(super) struct PlannedLayer {
    /// What its tar must be.
    pub(super) diff_id: DiffId,
    /// The member that holds it.
    pub(super) member: String,
    /// What the member must be, where a document says so.
    pub(super) blob: Option<Expected>,
}

/// The digest, and possibly the size, that a member must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) digest: Digest,
    pub(super) size: Option<u64>,
}

/// Tells by its documents what kind of archive this is, and reads what is in it.
pub(super) fn plan(archive: &Archive, machine: &Platform) -> Result<Vec<PlannedImage>, LoadError> {
    let images = if archive.has(DOCKER_MANIFEST) {
        docker::plan(archive)?
    } else if archive.has(OCI_INDEX) {
        oci::plan(archive, machine)?
    } else if archive.has("repositories") {
        return Err(LoadError::BeforeManifests);
    } else {
        return Err(LoadError::NotAnImageArchive);
    };
    if images.is_empty() { Err(LoadError::NoImages) } else { Ok(images) }
}

/// Checks that an image is for a machine, as far as it says for which it is.
pub(super) fn check_platform(image: &PlannedImage, wanted: &Platform) -> Result<(), LoadError> {
    let Ok(config) = ImageConfig::parse(&image.config) else { return Ok(()) };
    let found = config.platform();
    if found.architecture.is_empty() || found.fitness(wanted).is_some() {
        return Ok(());
    }
    let name = image.names.first().map_or_else(|| Digest::of(&image.config).to_string(), ImageRef::familiar);
    Err(LoadError::Platform { name, found: found.to_string(), wanted: wanted.to_string() })
}

/// Reads a configuration and pairs its layers with the members that hold them.
pub(super) fn pair_layers(
    member: &str,
    config: &[u8],
    members: Vec<(String, Option<Expected>)>,
) -> Result<Vec<PlannedLayer>, LoadError> {
    let parsed = ImageConfig::parse(config)
        .map_err(|source| LoadError::Config { member: member.to_owned(), source: Box::new(source) })?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != members.len() {
        return Err(LoadError::LayerCount {
            member: member.to_owned(),
            config: diff_ids.len(),
            archive: members.len(),
        });
    }
    let pair = |(diff_id, (member, blob))| PlannedLayer { diff_id, member, blob };
    Ok(diff_ids.into_iter().zip(members).map(pair).collect())
}

/// Reads the member that a descriptor points to and checks that it is that.
pub(super) fn read_blob(archive: &Archive, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, LoadError> {
    let member = blob_member(descriptor.digest);
    if descriptor.size > limit {
        return Err(LoadError::DocumentTooLarge { member, size: descriptor.size, limit });
    }
    let bytes = archive.document(&member, limit)?;
    check_bytes(&member, &bytes, Expected { digest: descriptor.digest, size: Some(descriptor.size) })?;
    Ok(bytes)
}

pub(super) fn check_bytes(member: &str, bytes: &[u8], expected: Expected) -> Result<(), LoadError> {
    check(member, expected, Digest::of(bytes), bytes.len() as u64)
}

pub(super) fn check(member: &str, expected: Expected, digest: Digest, size: u64) -> Result<(), LoadError> {
    match expected.size {
        Some(expected) if expected != size => {
            return Err(LoadError::Size { member: member.to_owned(), expected, found: size });
        }
        _ => {}
    }
    if expected.digest != digest {
        return Err(LoadError::Digest { member: member.to_owned(), expected: expected.digest, found: digest });
    }
    Ok(())
}

/// Returns where an OCI layout keeps a blob.
pub(super) fn blob_member(digest: Digest) -> String {
    format!("{BLOBS}{}", digest.hex())
}

/// Returns what a member's name says that its digest is, if it says so.
pub(super) fn digest_in_name(member: &str) -> Option<Digest> {
    Digest::from_hex(member.strip_prefix(BLOBS)?).ok()
}

pub(super) const DOCKER_MANIFEST: &str = "manifest.json";
pub(super) const OCI_INDEX: &str = "index.json";
const BLOBS: &str = "blobs/sha256/";
