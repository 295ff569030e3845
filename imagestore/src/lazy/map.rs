//! How a compressed blob maps to the bytes of its layer: chunks that can be fetched, decompressed and checked alone.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use strata_layer::Digest;

use crate::decompress::{Bounded, Compression, Decompressor};

/// The map of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkMap {
    /// The compressed blob.
    pub(crate) blob: Digest,
    /// Its size.
    pub(crate) blob_size: u64,
    /// The length of the content: of the tar, or of what stands in its place.
    pub(crate) size: u64,
    /// What the content is.
    pub(crate) layout: Layout,
    /// Sorted by offset, without overlaps.
    pub(crate) chunks: Vec<Chunk>,
}

/// What the content of a layer is while it is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The layer's tar, of which some is there: chunk by chunk, and what lies between them from the beginning.
    Tar,
    /// The data of the files in the order of the tar, without headers, which come as tails of the chunks: where they
    /// are in the tar is not known before. Addresses in the index begin at [`FILES_BASE`].
    Files,
}

/// A piece of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Where it begins in the blob.
    pub(crate) blob_offset: u64,
    /// How long it is there.
    pub(crate) blob_length: u64,
    /// Where it begins in the content.
    pub(crate) offset: u64,
    /// How long it is there. What else the piece of the blob decompresses to is its tail.
    pub(crate) length: u64,
    /// The digest of those bytes.
    pub(crate) digest: Digest,
}

/// Why a map, or a chunk that was fetched by it, is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It says what cannot be.
    #[error("the table of contents of blob {blob} is not usable: {reason}")]
    Map {
        /// The blob.
        blob: Digest,
        /// What is wrong.
        reason: &'static str,
    },
    /// What was fetched cannot be decompressed.
    #[error("decompress bytes {offset}+{length} of blob {blob}")]
    Decompress {
        /// The blob.
        blob: Digest,
        /// Where the piece begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// Why.
        source: io::Error,
    },
    /// What was fetched is not what the table of contents says.
    #[error("bytes {offset}+{length} of blob {blob} have the digest {found}, expected {expected}")]
    Digest {
        /// The blob.
        blob: Digest,
        /// Where the piece begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// What they should have.
        expected: Digest,
        /// What they have.
        found: Digest,
    },
}

impl ChunkMap {
    /// Checks that the chunks are in order, within the blob and the content, and small enough for memory.
    ///
    /// `gaps` says whether the content may have bytes that no chunk has.
    pub(crate) fn check(&self, gaps: Gaps) -> Result<(), MapError> {
        let refuse = |reason| Err(MapError::Map { blob: self.blob, reason });
        if self.size > MAX_CONTENT {
            return refuse("it is of too large a layer");
        }
        let mut end = 0;
        for chunk in &self.chunks {
            if chunk.length > MAX_CHUNK || chunk.blob_length > MAX_CHUNK || chunk.blob_length == 0 {
                return refuse("a chunk is empty or too large");
            }
            if chunk.blob_offset.checked_add(chunk.blob_length).is_none_or(|end| end > self.blob_size) {
                return refuse("a chunk lies outside of the blob");
            }
            if chunk.offset < end || (gaps == Gaps::None && chunk.offset != end) {
                return refuse("chunks overlap or leave something out");
            }
            let Some(next) = chunk.offset.checked_add(chunk.length) else { return refuse("a chunk is too large") };
            end = next;
        }
        if end > self.size || (gaps == Gaps::None && end != self.size) {
            return refuse("the chunks are not of the layer's size");
        }
        Ok(())
    }

    /// Returns the numbers of the chunks that have any of these bytes of the content.
    pub(crate) fn covering(&self, offset: u64, length: u64) -> std::ops::Range<usize> {
        let end = offset.saturating_add(length);
        let first = self.chunks.partition_point(|chunk| chunk.offset + chunk.length <= offset);
        let last = self.chunks.partition_point(|chunk| chunk.offset < end);
        first..last.max(first)
    }

    /// Decompresses and checks a chunk; returns its content and its tail.
    pub(crate) fn open_chunk(&self, number: usize, piece: &[u8]) -> Result<(Vec<u8>, Vec<u8>), MapError> {
        let chunk = self.chunks[number];
        let (blob, offset, length) = (self.blob, chunk.blob_offset, chunk.blob_length);
        let failed = |source| MapError::Decompress { blob, offset, length, source };
        let compression = match Compression::of(piece) {
            // A plain blob may have anything at the beginning of a piece.
            _ if chunk.length == chunk.blob_length && Digest::of(piece) == chunk.digest => {
                return Ok((piece.to_vec(), Vec::new()));
            }
            compression => compression,
        };
        let source = Decompressor::new(piece, compression).map_err(failed)?;
        let mut reader = Bounded { source, left: chunk.length + MAX_TAIL };
        // No more is reserved than a hostile length may ask for: `check` has bounded it.
        let mut content = vec![0; usize::try_from(chunk.length).unwrap_or(usize::MAX)];
        reader.read_exact(&mut content).map_err(failed)?;
        let found = Digest::from_bytes(Sha256::digest(&content).into());
        if found != chunk.digest {
            return Err(MapError::Digest { blob, offset, length, expected: chunk.digest, found });
        }
        let mut tail = Vec::new();
        reader.read_to_end(&mut tail).map_err(failed)?;
        if self.layout == Layout::Tar && !tail.is_empty() {
            return Err(MapError::Map { blob, reason: "a chunk is longer than it says" });
        }
        Ok((content, tail))
    }

    /// Writes the map as it is kept beside the content.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.chunks.len() * RECORD + 32);
        bytes.extend_from_slice(MAGIC);
        let layout: u32 = match self.layout {
            Layout::Tar => 0,
            Layout::Files => 1,
        };
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&layout.to_le_bytes());
        bytes.extend_from_slice(self.blob.as_bytes());
        for number in [self.blob_size, self.size, self.chunks.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for chunk in &self.chunks {
            for number in [chunk.blob_offset, chunk.blob_length, chunk.offset, chunk.length] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(chunk.digest.as_bytes());
        }
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }

    /// Reads a map; `None` if it is damaged or of another version.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<ChunkMap> {
        let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Digest::of(body).as_bytes() != digest {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (layout, rest) = rest.split_first_chunk::<4>()?;
        let (blob, mut rest) = rest.split_first_chunk::<32>()?;
        let layout = match (u32::from_le_bytes(*version), u32::from_le_bytes(*layout)) {
            (VERSION, 0) => Layout::Tar,
            (VERSION, 1) => Layout::Files,
            _ => return None,
        };
        let mut number = || {
            let (number, tail) = rest.split_first_chunk::<8>()?;
            rest = tail;
            Some(u64::from_le_bytes(*number))
        };
        let (blob_size, size, count) = (number()?, number()?, number()?);
        let (records, []) = rest.as_chunks::<RECORD>() else { return None };
        if records.len() as u64 != count {
            return None;
        }
        let chunk = |record: &[u8; RECORD]| {
            let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
            let digest = record[32..].try_into().expect("the rest of a record are 32 bytes");
            Chunk {
                blob_offset: number(0),
                blob_length: number(8),
                offset: number(16),
                length: number(24),
                digest: Digest::from_bytes(digest),
            }
        };
        let chunks = records.iter().map(chunk).collect();
        let map = ChunkMap { blob: Digest::from_bytes(*blob), blob_size, size, layout, chunks };
        map.check(Gaps::Allowed).is_ok().then_some(map)
    }
}

/// Whether every byte of the content must be in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gaps {
    None,
    Allowed,
}

const MAGIC: &[u8] = b"STRCHUNK";
const VERSION: u32 = 1;
const HEADER: usize = 72;
const RECORD: usize = 64;
/// The largest piece, compressed or not: one is held in memory for each connection.
const MAX_CHUNK: u64 = 64 << 20;
/// The most that may follow a chunk's content: headers of entries without data.
const MAX_TAIL: u64 = 128 << 20;
/// As for layers that are read as a whole.
const MAX_CONTENT: u64 = 64 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(blob_offset: u64, blob_length: u64, offset: u64, content: &[u8]) -> Chunk {
        Chunk { blob_offset, blob_length, offset, length: content.len() as u64, digest: Digest::of(content) }
    }

    fn map(chunks: Vec<Chunk>) -> ChunkMap {
        ChunkMap { blob: Digest::of(b"blob"), blob_size: 100, size: 20, layout: Layout::Tar, chunks }
    }

    #[test]
    fn a_map_survives_the_disk_and_damage_is_found() {
        let map = map(vec![chunk(0, 10, 0, b"0123456789"), chunk(10, 90, 10, b"abcdefghij")]);
        let bytes = map.to_bytes();
        assert_eq!(ChunkMap::from_bytes(&bytes).unwrap(), map);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(ChunkMap::from_bytes(&damaged), None, "{at}");
            assert_eq!(ChunkMap::from_bytes(&bytes[..at]), None, "{at}");
        }
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let (first, second) = (chunk(0, 10, 0, b"0123456789"), chunk(10, 90, 10, b"abcdefghij"));
        assert!(map(vec![first, second]).check(Gaps::None).is_ok());
        assert!(map(vec![second]).check(Gaps::Allowed).is_ok());
        for chunks in [
            vec![second],
            vec![first],
            vec![second, first],
            vec![first, Chunk { blob_length: 91, ..second }],
            vec![first, Chunk { blob_length: 0, ..second }],
            vec![first, Chunk { offset: 9, ..second }],
            vec![first, Chunk { length: 11, ..second }],
            vec![first, Chunk { length: u64::MAX, ..second }],
            vec![first, Chunk { blob_offset: u64::MAX, ..second }],
        ] {
            assert!(map(chunks.clone()).check(Gaps::None).is_err(), "{chunks:?}");
        }
    }

    #[test]
    fn bytes_are_found_in_their_chunks() {
        let map = map(vec![chunk(0, 10, 2, b"01234567"), chunk(10, 90, 10, b"abcdefghij")]);
        for (offset, length, expected) in
            [(0, 2, 0..0), (0, 3, 0..1), (9, 1, 0..1), (9, 2, 0..2), (10, 1, 1..2), (19, 5, 1..2), (20, 5, 2..2)]
        {
            assert_eq!(map.covering(offset, length), expected, "{offset}+{length}");
        }
    }

    #[test]
    fn only_the_bytes_that_were_promised_come_out_of_a_chunk() {
        let content = b"0123456789".repeat(2);
        let pieces = [content.clone(), zstd::encode_all(&content[..], 3).unwrap()];
        for piece in pieces {
            let chunks = vec![chunk(0, piece.len() as u64, 0, &content)];
            let mut map = map(chunks);
            assert_eq!(map.open_chunk(0, &piece).unwrap(), (content.clone(), Vec::new()));
            map.chunks[0].length -= 1;
            map.chunks[0].digest = Digest::of(&content[1..]);
            assert!(map.open_chunk(0, &piece).is_err());
            map.chunks[0].digest = Digest::of(&content[..19]);
            assert!(map.open_chunk(0, &piece).is_err(), "a tail in a tar");
            map.layout = Layout::Files;
            let opened = map.open_chunk(0, &piece);
            assert!(opened.is_err() || opened.unwrap() == (content[..19].to_vec(), b"9".to_vec()));
        }
    }
}
