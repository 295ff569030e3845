//! Reading and deleting blobs.

use std::ops::Range;

use crate::api::Call;
use crate::fault::Misbehaviour;
use crate::name::BlobDigest;
use crate::response::{Content, Response};

/// Answers with a blob or a range of it.
pub(crate) fn get(call: &Call<'_>, digest: &str) -> Response {
    let Some(digest) = BlobDigest::parse(digest) else { return invalid_digest() };
    let opened = call
        .shared
        .storage
        .blob(&call.name, &digest)
        .and_then(|file| file.map(|file| file.metadata().map(|metadata| (file, metadata.len()))).transpose());
    let (file, length) = match opened {
        Err(error) => return Response::internal(&error),
        Ok(None) => return unknown(),
        Ok(Some(opened)) => opened,
    };
    let range = call.head.header("range").filter(|_| !call.faults.contains(&Misbehaviour::IgnoreRange));
    let range = match range.map(|text| parse_range(text, length)) {
        Some(_) if call.faults.contains(&Misbehaviour::RefuseRange) => return refused_range(length),
        None | Some(Asked::All) => None,
        Some(Asked::Part(range)) => Some(range),
        Some(Asked::Nothing) => return refused_range(length),
    };
    let mut response = Response::new(if range.is_some() { 206 } else { 200 })
        .with("Content-Type", "application/octet-stream")
        .with("Docker-Content-Digest", digest.to_string())
        .with("Accept-Ranges", "bytes");
    if let Some(Range { start, end }) = &range {
        response = response.with("Content-Range", format!("bytes {start}-{}/{length}", end - 1));
    }
    let Range { start, end } = range.unwrap_or(0..length);
    response.content = Content::File { file, offset: start, length: end - start };
    response
}

fn refused_range(length: u64) -> Response {
    Response::error(416, "RANGE_INVALID", "no such range").with("Content-Range", format!("bytes */{length}"))
}

enum Asked {
    /// What is asked for is not understood, and then the whole is sent.
    All,
    Part(Range<u64>),
    Nothing,
}

/// Parses `bytes=A-B`, `bytes=A-` or `bytes=-N`.
fn parse_range(text: &str, length: u64) -> Asked {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::All;
    };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..length,
        (Err(_), Ok(count)) if first.trim().is_empty() => length.saturating_sub(count)..length,
        _ => return Asked::All,
    };
    if range.is_empty() { Asked::Nothing } else { Asked::Part(range) }
}

/// Takes a blob from a repository.
pub(crate) fn delete(call: &Call<'_>, digest: &str) -> Response {
    let Some(digest) = BlobDigest::parse(digest) else { return invalid_digest() };
    match call.shared.storage.delete_blob(&call.name, &digest) {
        Err(error) => Response::internal(&error),
        Ok(true) => Response::new(202),
        Ok(false) => unknown(),
    }
}

pub(crate) fn unknown() -> Response {
    Response::error(404, "BLOB_UNKNOWN", "blob unknown to registry")
}

pub(crate) fn invalid_digest() -> Response {
    Response::error(400, "DIGEST_INVALID", "provided digest is not valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |text: &str| match parse_range(text, 100) {
            Asked::All => "all".to_owned(),
            Asked::Nothing => "nothing".to_owned(),
            Asked::Part(range) => format!("{}..{}", range.start, range.end),
        };
        for (text, expected) in [
            ("bytes=0-9", "0..10"),
            ("bytes=10-", "10..100"),
            ("bytes=90-1000", "90..100"),
            ("bytes=-5", "95..100"),
            ("bytes=-500", "0..100"),
            ("bytes=100-", "nothing"),
            ("bytes=5-4", "nothing"),
            ("bytes=-0", "nothing"),
            ("bytes=a-b", "all"),
            ("lines=1-2", "all"),
        ] {
            assert_eq!(part(text), expected, "{text}");
        }
    }
}
