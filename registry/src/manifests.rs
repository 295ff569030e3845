//! Manifests by tag and digest, and what refers to them.

use std::io::Read;

use serde_json::{Value, json};

use crate::api::Call;
use crate::blobs::invalid_digest;
use crate::fault::Misbehaviour;
use crate::http::Body;
use crate::name::{Algorithm, BlobDigest, is_tag};
use crate::response::{Content, Response};
use crate::storage::StoredManifest;

/// Answers with a manifest.
pub(crate) fn get(call: &Call<'_>, reference: &str) -> Response {
    let storage = &call.shared.storage;
    let digest = match BlobDigest::parse(reference) {
        Some(digest) => Ok(Some(digest)),
        None if is_tag(reference) => storage.tag(&call.name, reference),
        None => return invalid_digest(),
    };
    let found = digest.and_then(|digest| match digest {
        Some(digest) => storage.manifest(&call.name, &digest).map(|found| found.map(|found| (digest, found))),
        None => Ok(None),
    });
    match found {
        Err(error) => Response::internal(&error),
        Ok(None) => unknown(),
        Ok(Some((digest, StoredManifest { bytes, media_type })))
            if call.faults.contains(&Misbehaviour::Reserialize) =>
        {
            let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let bytes = serde_json::to_vec_pretty(&document).unwrap_or(bytes);
            Response { content: Content::Bytes(bytes), ..Response::new(200) }
                .with("Content-Type", media_type)
                .with("Docker-Content-Digest", digest.to_string())
        }
        Ok(Some((digest, manifest))) => Response { content: Content::Bytes(manifest.bytes), ..Response::new(200) }
            .with("Content-Type", manifest.media_type)
            .with("Docker-Content-Digest", digest.to_string()),
    }
}

/// Takes a manifest.
pub(crate) fn put(call: &Call<'_>, reference: &str, body: &mut Body<'_>) -> Response {
    let mut bytes = Vec::new();
    match body.take(MAX_MANIFEST + 1).read_to_end(&mut bytes) {
        Err(error) => return Response::internal(&error),
        Ok(_) if bytes.len() as u64 > MAX_MANIFEST => {
            return Response::error(413, "SIZE_INVALID", "the manifest is larger than 4 MiB");
        }
        Ok(_) => {}
    }
    let invalid = |message: &str| Response::error(400, "MANIFEST_INVALID", message);
    let Ok(document) = serde_json::from_slice::<Value>(&bytes) else { return invalid("the manifest is not JSON") };
    let stated = call.head.header("content-type").unwrap_or("");
    let media_type = match document["mediaType"].as_str() {
        Some(own) if !stated.is_empty() && own != stated => {
            return invalid("the manifest's mediaType is not that of the request");
        }
        Some(own) => own.to_owned(),
        None if stated.is_empty() => return invalid("the manifest has no media type"),
        None => stated.to_owned(),
    };
    let asked = BlobDigest::parse(reference);
    let algorithm = asked.as_ref().map_or(Algorithm::Sha256, BlobDigest::algorithm);
    let digest = BlobDigest::of(algorithm, &bytes);
    match &asked {
        Some(asked) if *asked != digest => return invalid_digest(),
        None if !is_tag(reference) => return Response::error(400, "TAG_INVALID", "invalid tag"),
        _ => {}
    }
    if let Some(missing) = missing_blob(call, &document) {
        return Response::error(404, "MANIFEST_BLOB_UNKNOWN", format!("blob unknown to registry: {missing}"));
    }
    store(call, reference, asked.is_some(), &digest, &media_type, &bytes, &document)
}

fn store(
    call: &Call<'_>,
    reference: &str,
    by_digest: bool,
    digest: &BlobDigest,
    media_type: &str,
    bytes: &[u8],
    document: &Value,
) -> Response {
    let storage = &call.shared.storage;
    let subject = document["subject"]["digest"].as_str().and_then(BlobDigest::parse);
    let stored = storage.put_manifest(&call.name, digest, media_type, bytes).and_then(|()| {
        if let Some(subject) = &subject {
            let descriptor = descriptor_of(document, digest, media_type, bytes.len());
            storage.add_referrer(&call.name, subject, digest, &descriptor)?;
        }
        if !by_digest {
            storage.set_tag(&call.name, reference, digest)?;
        }
        // A manifest that is pushed by its digest may be given tags at once.
        for tag in call.head.parameters("tag").into_iter().filter(|tag| is_tag(tag)) {
            storage.set_tag(&call.name, tag, digest)?;
        }
        Ok(())
    });
    if let Err(error) = stored {
        return Response::internal(&error);
    }
    let mut response = Response::new(201)
        .with("Location", format!("/v2/{}/manifests/{digest}", call.name.as_str()))
        .with("Docker-Content-Digest", digest.to_string());
    for tag in call.head.parameters("tag").into_iter().filter(|tag| is_tag(tag)) {
        response = response.with("OCI-Tag", tag);
    }
    match subject {
        Some(subject) => response.with("OCI-Subject", subject.to_string()),
        None => response,
    }
}

/// Returns the first blob that an image needs and the repository lacks.
fn missing_blob(call: &Call<'_>, document: &Value) -> Option<String> {
    let layers = document["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let distributed = |layer: &&Value| {
        let media_type = layer["mediaType"].as_str().unwrap_or("");
        !media_type.contains("nondistributable") && !media_type.contains("foreign")
    };
    let needed = document.get("config").into_iter().chain(layers.iter().filter(distributed));
    for descriptor in needed {
        let text = descriptor["digest"].as_str().unwrap_or("");
        let found = BlobDigest::parse(text)
            .and_then(|digest| call.shared.storage.blob(&call.name, &digest).ok().flatten())
            .is_some();
        if !found {
            return Some(text.to_owned());
        }
    }
    None
}

fn descriptor_of(document: &Value, digest: &BlobDigest, media_type: &str, size: usize) -> Value {
    let mut descriptor = json!({"mediaType": media_type, "digest": digest.to_string(), "size": size});
    let own = document["artifactType"].as_str().filter(|text| !text.is_empty());
    if let Some(kind) = own.or_else(|| document["config"]["mediaType"].as_str()) {
        descriptor["artifactType"] = json!(kind);
    }
    if let Some(annotations) = document.get("annotations").filter(|value| value.is_object()) {
        descriptor["annotations"] = annotations.clone();
    }
    descriptor
}

/// Takes a manifest or a tag from a repository.
pub(crate) fn delete(call: &Call<'_>, reference: &str) -> Response {
    let storage = &call.shared.storage;
    let deleted = match BlobDigest::parse(reference) {
        Some(digest) => storage.delete_manifest(&call.name, &digest),
        None if is_tag(reference) => storage.delete_tag(&call.name, reference),
        None => return invalid_digest(),
    };
    match deleted {
        Err(error) => Response::internal(&error),
        Ok(true) => Response::new(202),
        Ok(false) => unknown(),
    }
}

/// Lists what refers to a manifest, which need not be there.
pub(crate) fn referrers(call: &Call<'_>, digest: &str) -> Response {
    let Some(digest) = BlobDigest::parse(digest) else { return invalid_digest() };
    let mut manifests = match call.shared.storage.referrers(&call.name, &digest) {
        Err(error) => return Response::internal(&error),
        Ok(manifests) => manifests,
    };
    let filter = call.head.parameter("artifactType");
    if let Some(kind) = filter {
        manifests.retain(|descriptor| descriptor["artifactType"] == kind);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let response = Response { content: Content::Bytes(index.to_string().into_bytes()), ..Response::new(200) }
        .with("Content-Type", INDEX);
    if filter.is_some() { response.with("OCI-Filters-Applied", "artifactType") } else { response }
}

fn unknown() -> Response {
    Response::error(404, "MANIFEST_UNKNOWN", "manifest unknown")
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MAX_MANIFEST: u64 = 4 << 20;
