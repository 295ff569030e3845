//! OCI image layouts: `index.json` points to manifests and nested indexes by digest.

use std::collections::{BTreeMap, HashSet};

use strata_layer::Digest;

use super::LoadError;
use super::archive::Archive;
use super::plan::{Expected, OCI_INDEX, PlannedImage, blob_member, pair_layers, read_blob};
use crate::model::{Descriptor, Document, Index, MAX_CONFIG, MAX_MANIFEST, Manifest, Platform, parse_json};
use crate::reference::ImageRef;

/// A manifest with its exact bytes.
#[derive(Debug)]
pub(super) struct StoredManifest {
    pub(super) bytes: Vec<u8>,
    pub(super) manifest: Manifest,
}

/// Reads all images of a layout: of each name, and of each entry without a name, the one for this machine.
pub(super) fn plan(archive: &Archive, machine: &Platform) -> Result<Vec<PlannedImage>, LoadError> {
    check_layout(archive)?;
    let index = read_index(archive)?;
    let mut groups: BTreeMap<Option<&str>, Vec<&Descriptor>> = BTreeMap::new();
    for descriptor in index.manifests.iter().filter(|descriptor| descriptor.may_be_image()) {
        groups.entry(name_of(descriptor)).or_default().push(descriptor);
    }
    let mut images = Vec::new();
    for (name, descriptors) in groups {
        let names = name.map(parse_name).transpose()?.flatten();
        let (for_platforms, for_any): (Vec<_>, Vec<_>) = descriptors.into_iter().partition(|d| d.platform.is_some());
        let chosen = choose(&for_platforms, machine);
        let chosen = match (chosen, for_platforms.is_empty()) {
            (None, false) => return Err(no_platform(&for_platforms, machine)),
            (chosen, _) => chosen,
        };
        for descriptor in for_any.into_iter().chain(chosen) {
            let mut visited = HashSet::new();
            let stored = descend(archive, descriptor, machine, &mut visited)?;
            images.push(plan_image(archive, stored, names.clone().into_iter().collect())?);
        }
    }
    Ok(images)
}

/// Reads the manifests that a layout really holds; what its indexes only mention is left out, as `docker save` writes
/// the complete index of an image and the blobs of one platform.
pub(super) fn present_manifests(archive: &Archive) -> Result<Vec<StoredManifest>, LoadError> {
    let mut found = Vec::new();
    let mut visited = HashSet::new();
    let mut level = read_index(archive)?.manifests;
    for _ in 0..=MAX_NESTING {
        let mut below = Vec::new();
        for descriptor in level {
            let is_new = visited.insert(descriptor.digest);
            if !is_new || !descriptor.may_be_image() || !archive.has(&blob_member(descriptor.digest)) {
                continue;
            }
            match read_document(archive, &descriptor)? {
                (bytes, Document::Manifest(manifest)) => found.push(StoredManifest { bytes, manifest }),
                (_, Document::Index(index)) => below.extend(index.manifests),
            }
        }
        level = below;
    }
    Ok(found)
}

fn check_layout(archive: &Archive) -> Result<(), LoadError> {
    if !archive.has(LAYOUT) {
        return Ok(());
    }
    let bytes = archive.document(LAYOUT, MAX_MANIFEST)?;
    let layout: Layout =
        parse_json(&bytes, MAX_MANIFEST).map_err(|source| LoadError::Document { member: LAYOUT.to_owned(), source })?;
    match layout.version.as_str() {
        "1.0.0" => Ok(()),
        _ => Err(LoadError::LayoutVersion { version: layout.version }),
    }
}

fn read_index(archive: &Archive) -> Result<Index, LoadError> {
    let bytes = archive.document(OCI_INDEX, MAX_MANIFEST)?;
    let document = |source| LoadError::Document { member: OCI_INDEX.to_owned(), source };
    match Document::parse(&bytes, "").map_err(document)? {
        Document::Index(index) => Ok(index),
        Document::Manifest(_) => Err(LoadError::NotAnIndex),
    }
}

fn read_document(archive: &Archive, descriptor: &Descriptor) -> Result<(Vec<u8>, Document), LoadError> {
    let bytes = read_blob(archive, descriptor, MAX_MANIFEST)?;
    let document = Document::parse(&bytes, &descriptor.media_type)
        .map_err(|source| LoadError::Document { member: blob_member(descriptor.digest), source })?;
    Ok((bytes, document))
}

/// Follows a descriptor through nested indexes to the manifest for `machine`.
fn descend(
    archive: &Archive,
    descriptor: &Descriptor,
    machine: &Platform,
    visited: &mut HashSet<Digest>,
) -> Result<StoredManifest, LoadError> {
    let mut next = descriptor.clone();
    for _ in 0..=MAX_NESTING {
        if !visited.insert(next.digest) {
            return Err(LoadError::Loop { digest: next.digest });
        }
        match read_document(archive, &next)? {
            (bytes, Document::Manifest(manifest)) => {
                let document = |source| LoadError::Document { member: blob_member(next.digest), source };
                manifest.check_is_image().map_err(document)?;
                return Ok(StoredManifest { bytes, manifest });
            }
            (_, Document::Index(index)) => {
                let offered: Vec<&Descriptor> = index.manifests.iter().filter(|d| d.may_be_image()).collect();
                next = choose(&offered, machine).ok_or_else(|| no_platform(&offered, machine))?.clone();
            }
        }
    }
    Err(LoadError::Nesting)
}

/// Chooses the image that runs best on `machine`. A single image is taken even if it is for another one: loading it
/// is harmless, and it may be meant for emulation.
fn choose<'a>(offered: &[&'a Descriptor], machine: &Platform) -> Option<&'a Descriptor> {
    if let [only] = offered {
        return Some(only);
    }
    machine.choose(offered)
}

fn no_platform(offered: &[&Descriptor], machine: &Platform) -> LoadError {
    let offered =
        offered.iter().filter_map(|descriptor| descriptor.platform.as_ref()).map(Platform::to_string).collect();
    LoadError::NoPlatform { wanted: machine.to_string(), offered }
}

fn plan_image(archive: &Archive, stored: StoredManifest, names: Vec<ImageRef>) -> Result<PlannedImage, LoadError> {
    let config = read_blob(archive, &stored.manifest.config, MAX_CONFIG)?;
    let mut members = Vec::with_capacity(stored.manifest.layers.len());
    for layer in &stored.manifest.layers {
        let member = blob_member(layer.digest);
        if layer.is_foreign() && !archive.has(&member) {
            return Err(LoadError::ForeignLayer { digest: layer.digest });
        }
        members.push((member, Some(Expected { digest: layer.digest, size: Some(layer.size) })));
    }
    let layers = pair_layers(&blob_member(stored.manifest.config.digest), &config, members)?;
    Ok(PlannedImage { config, manifest: Some(stored.bytes), layers, names })
}

/// Returns the name that an entry of the layout has, as text.
fn name_of(descriptor: &Descriptor) -> Option<&str> {
    [CONTAINERD_NAME, REF_NAME].iter().find_map(|key| descriptor.annotations.get(*key)).map(String::as_str)
}

/// Understands the name of an entry. A bare word is the entry's name within the layout, often a tag, and not the name
/// of an image.
fn parse_name(text: &str) -> Result<Option<ImageRef>, LoadError> {
    if !text.contains([':', '/']) {
        return Ok(None);
    }
    let name: ImageRef = text.parse().map_err(|source| LoadError::Name { text: text.to_owned(), source })?;
    // A name by digest says nothing that the digest does not say.
    Ok(Some(name).filter(|name| name.digest().is_none()))
}

#[derive(serde::Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

const LAYOUT: &str = "oci-layout";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How many indexes may lie between `index.json` and a manifest.
const MAX_NESTING: usize = 4;
