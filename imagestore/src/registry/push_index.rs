//! `push --with-index`: our index of an image's layers beside the image, so that it can start before it is pulled.

use std::fs::File;
use std::io;

use serde_json::json;
use strata_layer::{DiffId, Digest};

use super::client::Remote;
use super::error::RegistryError;
use super::push::Sent;
use crate::compress::{Compressing, CompressionFormat};
use crate::disk::OnDisk;
use crate::layout::{INDEX, TAR};
use crate::lazy::artifact;
use crate::progress::{Event, Progress};
use crate::store::{Store, StoreError};

/// The manifest that the index is beside.
pub(super) struct Subject<'a> {
    pub(super) media_type: &'a str,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Uploads the indexes of an image's layers. Those whose blobs cannot be read in pieces are left out, which is told.
pub(super) fn push_index(
    store: &Store,
    remote: &Remote<'_>,
    repository: &str,
    layers: &[(DiffId, Sent)],
    subject: &Subject<'_>,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    let mut blobs = Vec::new();
    for (number, (diff_id, sent)) in layers.iter().enumerate() {
        if layers[..number].iter().any(|(before, _)| before == diff_id) {
            continue;
        }
        let path = store.layout.layer(*diff_id).join(TAR);
        let tar = File::open(&path).on_disk("open", &path).map_err(StoreError::from)?;
        let size = tar.metadata().on_disk("examine", &path).map_err(StoreError::from)?.len();
        let ends = match &sent.ends {
            Some(ends) => Some(ends.clone()),
            None if sent.digest == diff_id.0 => Some(artifact::plain_ends(size)),
            None => ends_of(&path, sent).on_disk("read", &path).map_err(StoreError::from)?,
        };
        let Some(ends) = ends else {
            let reason = "it was not compressed here, and so not in pieces; --compression-format does that";
            progress.report(Event::NotEarly { layer: &sent.digest.to_string(), reason });
            continue;
        };
        // The index is checked, and made if it is missing.
        store.layer_index(*diff_id)?;
        let index_path = store.layout.layer(*diff_id).join(INDEX);
        let index = std::fs::read(&index_path).on_disk("read", &index_path).map_err(StoreError::from)?;
        let bytes = artifact::describe(&tar, &index, sent.digest, &ends);
        let bytes = bytes.on_disk("read", &path).map_err(StoreError::from)?;
        send(remote, repository, &bytes, progress)?;
        blobs.push(json!({
            "mediaType": artifact::BLOB_TYPE, "digest": Digest::of(&bytes).to_string(), "size": bytes.len(),
            "annotations": {artifact::OF_BLOB: sent.digest.to_string()},
        }));
    }
    if blobs.is_empty() {
        return Ok(());
    }
    send(remote, repository, EMPTY, progress)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact::ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": Digest::of(EMPTY).to_string(), "size": EMPTY.len()},
        "layers": blobs,
        "subject": {
            "mediaType": subject.media_type, "digest": subject.digest.to_string(), "size": subject.size,
        },
    });
    let bytes = manifest.to_string().into_bytes();
    remote.client.patiently(progress, "index", || {
        remote.put_referrer(repository, subject.digest, OCI_MANIFEST, &bytes, artifact::ARTIFACT_TYPE)
    })?;
    Ok(())
}

/// Uploads a small blob unless it is there.
fn send(remote: &Remote<'_>, repository: &str, bytes: &[u8], progress: &dyn Progress) -> Result<(), RegistryError> {
    let digest = Digest::of(bytes);
    remote.client.patiently(progress, "index", || {
        if remote.has_blob(repository, digest)? {
            return Ok(());
        }
        let location = remote.start_upload(repository)?;
        remote.upload_known(&location, digest, bytes.len() as u64, &mut &bytes[..])
    })
}

/// Finds out where the pieces of a blob end that the registry had already: compresses the layer again. `None` if that
/// gives another blob.
fn ends_of(tar: &std::path::Path, sent: &Sent) -> io::Result<Option<Vec<u64>>> {
    for format in [CompressionFormat::Gzip, CompressionFormat::Zstd] {
        let mut pieces = Compressing::new(File::open(tar)?, format)?;
        let mut ends = Vec::new();
        let mut hash = Hash::default();
        let mut end = 0;
        while let Some(piece) = pieces.next_piece()? {
            end += piece.len() as u64;
            ends.push(end);
            hash.update(&piece);
            if end > sent.size {
                break;
            }
        }
        if end == sent.size && hash.finish() == sent.digest {
            return Ok(Some(ends));
        }
    }
    Ok(None)
}

/// The digest of pieces.
#[derive(Default)]
struct Hash(sha2::Sha256);

impl Hash {
    fn update(&mut self, bytes: &[u8]) {
        sha2::Digest::update(&mut self.0, bytes);
    }

    fn finish(self) -> Digest {
        Digest::from_bytes(sha2::Digest::finalize(self.0).into())
    }
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
