//! Our own table of contents: a layer's index and its chunks, as an artifact that refers to the image.
//!
//! It can be made for layers that are not compressed, or in pieces, as [`Compressing`] does. Nothing in the image leads to
//! its digest: whoever may push to the repository may say what it has. So it is used only for images that are named by a
//! tag, which is as good as that person's word.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use strata_layer::index::{Index, Layer};
use strata_layer::{DiffId, Digest};

use super::{Chunk, ChunkMap, Gaps, Layout, Outline, OutlineError};
use crate::compress::PIECE;
use crate::decompress::Bounded;
use crate::model::Descriptor;

/// What kind of artifact it is.
pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.strata.layer-index.v1";
/// What the blobs in it are.
pub(crate) const BLOB_TYPE: &str = "application/vnd.strata.layer-index.v1+zstd";
/// The annotation of such a blob that names the layer's blob.
pub(crate) const OF_BLOB: &str = "vnd.strata.layer.blob";

/// Describes a layer whose blob is made of pieces that end at `ends`: one after the other, they are the tar.
pub(crate) fn describe(tar: &File, index: &[u8], blob: Digest, ends: &[u64]) -> io::Result<Vec<u8>> {
    let size = tar.metadata()?.len();
    let mut chunks = Vec::with_capacity(ends.len());
    let mut piece = vec![0; PIECE];
    let mut begin = 0;
    for (number, end) in ends.iter().enumerate() {
        let offset = (number * PIECE) as u64;
        let length = size.saturating_sub(offset).min(PIECE as u64);
        let content = &mut piece[..usize::try_from(length).unwrap_or(PIECE)];
        tar.read_exact_at(content, offset)?;
        let digest = Digest::of(content);
        chunks.push(Chunk { blob_offset: begin, blob_length: end - begin, offset, length, digest });
        begin = *end;
    }
    let map = ChunkMap { blob, blob_size: begin, size, layout: Layout::Tar, chunks };
    map.check(Gaps::None).map_err(io::Error::other)?;
    let map = map.to_bytes();
    let bytes = [&(map.len() as u64).to_le_bytes(), &map[..], index].concat();
    zstd::encode_all(&bytes[..], LEVEL)
}

/// Where the pieces of a blob that is not compressed end.
pub(crate) fn plain_ends(size: u64) -> Vec<u64> {
    (1..=size.div_ceil(PIECE as u64)).map(|number| size.min(number * PIECE as u64)).collect()
}

/// Reads what was written by [`describe`] about a layer.
pub(crate) fn outline(layer: &Descriptor, diff_id: DiffId, bytes: &[u8]) -> Result<Outline, OutlineError> {
    let malformed = OutlineError::Malformed;
    let source = zstd::stream::read::Decoder::new(bytes).map_err(OutlineError::Write)?;
    let mut all = Vec::new();
    Bounded { source, left: MAX_DECOMPRESSED }.read_to_end(&mut all).map_err(OutlineError::Write)?;
    let (length, rest) = all.split_first_chunk::<8>().ok_or(malformed("it is cut off"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (map, index) = rest.split_at_checked(length).ok_or(malformed("it is cut off"))?;
    let map = ChunkMap::from_bytes(map).ok_or(malformed("its map is damaged or of another version"))?;
    map.check(Gaps::None)?;
    if (map.blob, map.blob_size, map.layout) != (layer.digest, layer.size, Layout::Tar) {
        return Err(malformed("it is about another layer"));
    }
    let parsed = Index::from_bytes(index.to_vec()).map_err(|_| malformed("its index is of another version"))?;
    parsed.verify().map_err(|_| malformed("its index is damaged"))?;
    if parsed.layer_count() != 1 || parsed.layer(0) != Some(Layer { diff_id, tar_size: map.size }) {
        return Err(malformed("its index is of another layer"));
    }
    Ok(Outline { index: index.to_vec(), map })
}

const LEVEL: i32 = 9;
const MAX_DECOMPRESSED: u64 = 1 << 30;
