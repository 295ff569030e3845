//! Uploading blobs: at once, as a stream, in chunks, continued after a cut; or by mounting what is there.

use std::io::{self, Read};

use crate::access::Action;
use crate::api::Call;
use crate::blobs::{invalid_digest, unknown};
use crate::fault::Misbehaviour;
use crate::http::Body;
use crate::name::{BlobDigest, Repository};
use crate::response::Response;

/// Begins an upload, mounts a blob, or takes a whole one.
pub(crate) fn start(call: &Call<'_>, body: &mut Body<'_>) -> Response {
    if let Some(mount) = call.head.parameter("mount") {
        let Some(digest) = BlobDigest::parse(mount) else { return invalid_digest() };
        match mount_blob(call, &digest) {
            Err(error) => return Response::internal(&error),
            Ok(true) => return created(call, &digest),
            // As if it had not been asked for.
            Ok(false) => {}
        }
    }
    let id = match call.shared.storage.start_upload() {
        Err(error) => return Response::internal(&error),
        Ok(id) => id,
    };
    if call.head.parameter("digest").is_some() {
        return finish(call, &id, body);
    }
    progress(call, 202, &id, 0)
}

/// Mounts a blob of another repository, which the client must be allowed to read: of the one that it names, else of any.
fn mount_blob(call: &Call<'_>, digest: &BlobDigest) -> io::Result<bool> {
    if call.faults.contains(&Misbehaviour::RefuseMount) {
        return Ok(false);
    }
    let storage = &call.shared.storage;
    let origin = call.shared.origin(call.head);
    let is_readable = |from: &Repository| -> io::Result<bool> {
        let allowed = call.shared.access.check(call.head, &origin, from.as_str(), Action::Pull).is_ok();
        Ok(allowed && storage.blob(from, digest)?.is_some())
    };
    let readable = match call.head.parameter("from").map(Repository::parse) {
        Some(Some(from)) => is_readable(&from)?,
        Some(None) => false,
        None if !storage.has_anywhere(digest) => false,
        None => {
            let names = storage.names_of_all()?;
            let mut repositories = names.iter().filter_map(|name| Repository::parse(name));
            repositories.try_fold(false, |found, from| if found { Ok(true) } else { is_readable(&from) })?
        }
    };
    Ok(readable && storage.mount(&call.name, digest)?)
}

/// Tells how much has arrived.
pub(crate) fn status(call: &Call<'_>, id: &str) -> Response {
    match call.shared.storage.upload_length(id) {
        Err(error) => Response::internal(&error),
        Ok(None) => unknown_upload(),
        Ok(Some(length)) => progress(call, 204, id, length),
    }
}

/// Takes the next part.
pub(crate) fn append(call: &Call<'_>, id: &str, body: &mut Body<'_>) -> Response {
    match take(call, id, body) {
        Err(response) => response,
        Ok(length) => progress(call, 202, id, length),
    }
}

fn take(call: &Call<'_>, id: &str, body: &mut Body<'_>) -> Result<u64, Response> {
    let storage = &call.shared.storage;
    let length = match storage.upload_length(id) {
        Err(error) => return Err(Response::internal(&error)),
        Ok(None) => return Err(unknown_upload()),
        Ok(Some(length)) => length,
    };
    if let Some(range) = call.head.header("content-range") {
        let range = range.strip_prefix("bytes ").unwrap_or(range);
        let parsed = range.split_once('-').and_then(|(first, last)| {
            Some((first.trim().parse::<u64>().ok()?, last.split('/').next()?.trim().parse::<u64>().ok()?))
        });
        let fits = parsed.is_some_and(|(first, last)| {
            first == length && body.length().is_none_or(|count| last.checked_sub(first) == count.checked_sub(1))
        });
        if !fits {
            return Err(progress(call, 416, id, length));
        }
    }
    if call.faults.contains(&Misbehaviour::LoseUpload) {
        let lost = io::copy(body, &mut io::sink()).unwrap_or(0);
        return Ok(length + lost);
    }
    let cut = call.faults.iter().find_map(|fault| match fault {
        Misbehaviour::CutUpload(after) => Some(*after),
        _ => None,
    });
    match storage.append(id, length, &mut body.take(cut.unwrap_or(u64::MAX))) {
        Err(error) => Err(Response::internal(&error)),
        Ok(None) => Err(progress(call, 416, id, length)),
        Ok(Some(length)) => Ok(length),
    }
}

/// Takes the last part and makes it a blob.
pub(crate) fn finish(call: &Call<'_>, id: &str, body: &mut Body<'_>) -> Response {
    let Some(digest) = call.head.parameter("digest").and_then(BlobDigest::parse) else { return invalid_digest() };
    if let Err(response) = take(call, id, body) {
        return response;
    }
    match call.shared.storage.finish_upload(id, &call.name, &digest) {
        Err(error) => Response::internal(&error),
        Ok(true) => created(call, &digest),
        Ok(false) => match call.shared.storage.cancel_upload(id) {
            Err(error) => Response::internal(&error),
            Ok(_) => Response::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content"),
        },
    }
}

/// Drops an upload.
pub(crate) fn cancel(call: &Call<'_>, id: &str) -> Response {
    match call.shared.storage.cancel_upload(id) {
        Err(error) => Response::internal(&error),
        Ok(true) => Response::new(204),
        Ok(false) => unknown_upload(),
    }
}

fn created(call: &Call<'_>, digest: &BlobDigest) -> Response {
    Response::new(201)
        .with("Location", format!("/v2/{}/blobs/{digest}", call.name.as_str()))
        .with("Docker-Content-Digest", digest.to_string())
}

fn progress(call: &Call<'_>, status: u16, id: &str, length: u64) -> Response {
    Response::new(status)
        .with("Location", format!("/v2/{}/blobs/uploads/{id}", call.name.as_str()))
        .with("Docker-Upload-UUID", id)
        // Of nothing the last byte is the first, as everybody does.
        .with("Range", format!("0-{}", length.saturating_sub(1)))
}

fn unknown_upload() -> Response {
    Response { status: 404, ..unknown() }
}
