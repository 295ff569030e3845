//! zstd:chunked, as containers/storage writes it: each file's data in frames of its own, a table of contents and the
//! rest of the tar (in the form of tar-split) in skippable frames at the end, and annotations that say where.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use strata_layer::index::Layer;
use strata_layer::ingest::LayerIngest;
use strata_layer::tar::Limits;
use strata_layer::{DiffId, Digest};

use super::{Chunk, ChunkMap, Gaps, Layout, Outline, OutlineError};
use crate::decompress::Bounded;
use crate::model::Descriptor;

/// Where a blob has its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tables {
    /// Offset and length of the compressed table of contents.
    pub(crate) contents: (u64, u64),
    checksum: Digest,
    /// Offset and length of the rest of the tar, compressed.
    pub(crate) tar_split: (u64, u64),
}

/// Tells where the tables are, if the descriptor of a layer says so.
pub(crate) fn tables(layer: &Descriptor) -> Option<Tables> {
    let annotation = |name: &str| annotation(&layer.annotations, name);
    let checksum = annotation("manifest-checksum")?.parse().ok()?;
    let numbers = |text: &str| text.split(':').map(|number| number.parse().ok()).collect::<Option<Vec<u64>>>();
    let contents = numbers(annotation("manifest-position")?)?;
    let tar_split = numbers(annotation("tarsplit-position")?)?;
    let ([offset, length, _, CONTENTS_KIND], [split_offset, split_length, _]) = (&contents[..], &tar_split[..]) else {
        return None;
    };
    let tables = Tables { contents: (*offset, *length), checksum, tar_split: (*split_offset, *split_length) };
    let fits = |(offset, length): (u64, u64)| {
        (1..=MAX_TABLE).contains(&length) && offset.checked_add(length).is_some_and(|end| end <= layer.size)
    };
    (fits(tables.contents) && fits(tables.tar_split)).then_some(tables)
}

fn annotation<'a>(annotations: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    annotations.get(&format!("io.github.containers.zstd-chunked.{name}")).map(String::as_str)
}

/// Makes the outline of a layer of its tables. What of the tar is in them is written to `content` at its place, one
/// piece after the other.
pub(crate) fn outline(
    layer: &Descriptor,
    diff_id: DiffId,
    tables: &Tables,
    contents: &[u8],
    tar_split: &[u8],
    content: &mut dyn FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> Result<Outline, OutlineError> {
    if Digest::of(contents) != tables.checksum {
        return Err(OutlineError::Malformed("the table of contents has another digest"));
    }
    let contents: Contents = serde_json::from_reader(bounded(contents, MAX_CONTENTS)?)?;
    if contents.tar_split_digest.as_deref() != Some(&Digest::of(tar_split).to_string()) {
        return Err(OutlineError::Malformed("the rest of the tar has another digest, or none is stated"));
    }
    let mut files = contents.files();
    let mut ingest = LayerIngest::outline(Limits::default());
    let mut chunks = Vec::new();
    let zeros = vec![0; 1 << 20];
    let mut lines = BufReader::new(bounded(tar_split, MAX_SPLIT)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(OutlineError::Write)?;
        if count == 0 {
            break;
        }
        if line.last() != Some(&b'\n') && count as u64 == MAX_LINE {
            return Err(OutlineError::Malformed("a piece of the tar is too long"));
        }
        let piece: Piece = serde_json::from_slice(&line)?;
        let at = ingest.tar_size();
        match piece.kind {
            SEGMENT => {
                let bytes = STANDARD.decode(piece.payload.unwrap_or_default());
                let bytes = bytes.map_err(|_| OutlineError::Malformed("a piece of the tar is not base64"))?;
                ingest.push(&bytes)?;
                content(at, &bytes).map_err(OutlineError::Write)?;
            }
            FILE if piece.size > 0 => {
                if at.checked_add(piece.size).is_none_or(|end| end > MAX_TAR) {
                    return Err(OutlineError::Malformed("the layer is too large"));
                }
                let file = files.next().ok_or(OutlineError::Malformed("the table of contents lacks a file"))?;
                add_chunks(&file, at, piece.size, &mut chunks)?;
                let mut left = piece.size;
                while left > 0 {
                    let step = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    ingest.push(&zeros[..step])?;
                    left -= step as u64;
                }
            }
            FILE => {}
            _ => return Err(OutlineError::Malformed("a piece of the tar is of unknown kind")),
        }
        if ingest.tar_size() > MAX_TAR {
            return Err(OutlineError::Malformed("the layer is too large"));
        }
    }
    let size = ingest.tar_size();
    let map = ChunkMap { blob: layer.digest, blob_size: layer.size, size, layout: Layout::Tar, chunks };
    map.check(Gaps::Allowed)?;
    Ok(Outline { index: ingest.finish_outline(Layer { diff_id, tar_size: size })?, map })
}

/// Adds the chunks of a file that lies at an offset of the tar. They have all of it.
fn add_chunks(file: &[&Entry], at: u64, size: u64, chunks: &mut Vec<Chunk>) -> Result<(), OutlineError> {
    let malformed = || OutlineError::Malformed("the chunks of a file do not fit it");
    let Some(first) = file.first() else { return Err(malformed()) };
    if first.size != size {
        return Err(malformed());
    }
    let mut covered = 0;
    for (number, entry) in file.iter().enumerate() {
        let is_last = number + 1 == file.len();
        let end = if is_last { first.end_offset } else { file[number + 1].offset };
        let length = if is_last { size.checked_sub(covered) } else { Some(entry.chunk_size) };
        let digest = if file.len() == 1 { &entry.digest } else { &entry.chunk_digest };
        let digest = digest.parse().map_err(|_| malformed())?;
        let (Some(blob_length), Some(length)) = (end.checked_sub(entry.offset), length) else {
            return Err(malformed());
        };
        if entry.chunk_offset != covered || (file.len() > 1 && entry.chunk_size != length) {
            return Err(malformed());
        }
        let offset = at.checked_add(covered).ok_or_else(malformed)?;
        chunks.push(Chunk { blob_offset: entry.offset, blob_length, offset, length, digest });
        covered = covered.checked_add(length).ok_or_else(malformed)?;
    }
    if covered == size { Ok(()) } else { Err(malformed()) }
}

/// Reads what is compressed, up to a limit.
fn bounded(bytes: &[u8], limit: u64) -> Result<impl Read, OutlineError> {
    let source = zstd::stream::read::Decoder::new(bytes).map_err(OutlineError::Write)?;
    Ok(Bounded { source, left: limit })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Contents {
    #[serde(default, deserialize_with = "super::bounded_list")]
    entries: Vec<Entry>,
    #[serde(default)]
    tar_split_digest: Option<String>,
}

/// What is needed of an entry; everything else is in the tar's own headers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Entry {
    r#type: String,
    size: u64,
    digest: String,
    offset: u64,
    end_offset: u64,
    chunk_size: u64,
    chunk_offset: u64,
    chunk_digest: String,
}

impl Contents {
    /// Returns the entries of each file that has data: its own, and those of its further chunks.
    fn files(&self) -> impl Iterator<Item = Vec<&Entry>> {
        let mut rest = self.entries.iter().peekable();
        std::iter::from_fn(move || {
            let first = rest.by_ref().find(|entry| entry.r#type == "reg" && entry.size > 0)?;
            let mut file = vec![first];
            while let Some(chunk) = rest.next_if(|entry| entry.r#type == "chunk") {
                file.push(chunk);
            }
            Some(file)
        })
    }
}

/// A line of tar-split: bytes of the tar, or the place of a file's data.
#[derive(Deserialize)]
struct Piece {
    #[serde(rename = "type")]
    kind: u32,
    #[serde(default)]
    payload: Option<String>,
    #[serde(default)]
    size: u64,
}

/// The kind of table that this is.
const CONTENTS_KIND: u64 = 1;
const FILE: u32 = 1;
const SEGMENT: u32 = 2;
const MAX_TABLE: u64 = 64 << 20;
/// The table of contents is in memory as a whole, the rest of the tar piece by piece.
const MAX_CONTENTS: u64 = 128 << 20;
const MAX_SPLIT: u64 = 1 << 30;
/// A piece has the headers of an entry, which are less than some MiB, in base64.
const MAX_LINE: u64 = 16 << 20;
const MAX_TAR: u64 = 64 << 30;
