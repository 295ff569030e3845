//! eStargz: a gzip blob in which each chunk of a file's data begins a member, and whose last members are a table of
//! contents and a footer that says where that is.
//!
//! The table has names and attributes but not the tar's headers, so a layer's place in its tar is not known before all
//! of it is here: the content is the files' data alone ([`Layout::Files`]), and what else a member has is its tail.

use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use strata_layer::index::{Device, Layer, Timestamp as FileTime};
use strata_layer::ingest::LayerIngest;
use strata_layer::tar::{Entry as TarEntry, EntryKind, Limits};
use strata_layer::{DiffId, Digest};

use super::{Chunk, ChunkMap, FILES_BASE, Gaps, Layout, Outline, OutlineError};
use crate::decompress::Bounded;
use crate::model::Descriptor;
use crate::timestamp::Timestamp;

/// Tells the digest of a layer's table of contents, if its descriptor states one. Without, nothing of the table could be
/// believed.
pub(crate) fn contents_digest(layer: &Descriptor) -> Option<Digest> {
    layer.annotations.get("containerd.io/snapshot/stargz/toc.digest")?.parse().ok()
}

/// How many bytes at the end of a blob have the footer.
pub(crate) const FOOTER: u64 = 51;

/// Reads where in the blob the table of contents is from its last bytes.
pub(crate) fn contents_offset(footer: &[u8]) -> Option<u64> {
    // An empty member whose extra field, of the kind "SG", is the offset in hexadecimal digits and a word.
    let extra = footer.strip_prefix(&[0x1f, 0x8b, 8, 4])?.get(6..)?;
    let (length, rest) = extra.split_first_chunk::<2>()?;
    let extra = rest.get(..usize::from(u16::from_le_bytes(*length)))?;
    let field = extra.strip_prefix(b"SG")?.get(2..)?;
    let digits = field.strip_suffix(b"STARGZ")?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Makes the outline of a layer of its table of contents: what of the blob lies between `offset` and the footer.
pub(crate) fn outline(
    layer: &Descriptor,
    diff_id: DiffId,
    digest: Digest,
    offset: u64,
    member: &[u8],
    content: &mut dyn FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> Result<Outline, OutlineError> {
    let table = read_table(member)?;
    if Digest::of(&table) != digest {
        return Err(OutlineError::Malformed("the table of contents has another digest"));
    }
    let contents: Contents = serde_json::from_slice(&table)?;
    if contents.version != 1 {
        return Err(OutlineError::Malformed("the table of contents is of another version"));
    }
    let mut draft = Draft { ingest: LayerIngest::outline(Limits::default()), files: Vec::new(), size: 0 };
    let mut entries = contents.entries.into_iter().peekable();
    while let Some(entry) = entries.next() {
        let mut chunks = Vec::new();
        while let Some(chunk) = entries.next_if(|entry| entry.r#type == "chunk") {
            chunks.push(chunk);
        }
        draft.add(entry, chunks)?;
    }
    // The table is a file of the layer itself, and the one whose data is here.
    let place = draft.size;
    content(place, &table).map_err(OutlineError::Write)?;
    draft.ingest.describe(table_entry(place, table.len() as u64))?;
    draft.size += table.len() as u64;

    let chunks = draft.chunks(offset, layer.size - FOOTER)?;
    let map = ChunkMap { blob: layer.digest, blob_size: layer.size, size: draft.size, layout: Layout::Files, chunks };
    map.check(Gaps::Allowed)?;
    let tar_size = FILES_BASE + map.size;
    Ok(Outline { index: draft.ingest.finish_outline(Layer { diff_id, tar_size })?, map })
}

/// Reads the table out of its member, which is a tar of one file.
fn read_table(member: &[u8]) -> Result<Vec<u8>, OutlineError> {
    let malformed = || OutlineError::Malformed("the table of contents is not where the footer says");
    let source = flate2::bufread::GzDecoder::new(member);
    let mut reader = Bounded { source, left: MAX_TABLE };
    let mut header = [0; 512];
    reader.read_exact(&mut header).map_err(|_| malformed())?;
    let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    let size = std::str::from_utf8(&header[124..135]).ok().and_then(|text| u64::from_str_radix(text.trim(), 8).ok());
    let size = size.filter(|size| name == TABLE_NAME && *size < MAX_TABLE).ok_or_else(malformed)?;
    let mut table = Vec::new();
    reader.take(size).read_to_end(&mut table).map_err(|_| malformed())?;
    if table.len() as u64 == size { Ok(table) } else { Err(malformed()) }
}

/// What becomes of the table while it is read.
struct Draft {
    ingest: LayerIngest,
    /// The chunks of all files: place in the blob, place in the content, length, digest.
    files: Vec<(u64, u64, u64, Digest)>,
    size: u64,
}

impl Draft {
    fn add(&mut self, entry: Entry, further: Vec<Entry>) -> Result<(), OutlineError> {
        let kind = match entry.r#type.as_str() {
            "dir" => EntryKind::Directory,
            "reg" => EntryKind::Regular,
            "symlink" => EntryKind::Symlink { target: entry.link_name.clone().into_bytes() },
            "hardlink" => EntryKind::HardLink { target: entry.link_name.clone().into_bytes() },
            "char" => EntryKind::CharDevice(entry.device()),
            "block" => EntryKind::BlockDevice(entry.device()),
            "fifo" => EntryKind::Fifo,
            _ => return Err(OutlineError::Malformed("an entry of the table of contents is of unknown type")),
        };
        let is_file = kind == EntryKind::Regular;
        if entry.name.is_empty() || (!is_file && !further.is_empty()) {
            return Err(OutlineError::Malformed("an entry of the table of contents makes no sense"));
        }
        let size = if is_file { entry.size } else { 0 };
        let start = self.size;
        if size > 0 {
            self.add_data(&entry, &further, size)?;
        }
        let mut xattrs = Vec::new();
        for (name, value) in entry.xattrs {
            let value =
                STANDARD.decode(value).map_err(|_| OutlineError::Malformed("an attribute's value is not base64"))?;
            xattrs.push((name.into_bytes(), value));
        }
        let time = entry.mod_time.parse::<Timestamp>().ok();
        self.ingest.describe(TarEntry {
            path: entry.name.into_bytes(),
            kind,
            permissions: permissions(entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            mtime: time
                .map_or(FileTime::default(), |time| FileTime { seconds: time.seconds, nanoseconds: time.nanoseconds }),
            xattrs,
            size,
            data: FILES_BASE + start..FILES_BASE + self.size,
            sparse: None,
            offset: 0,
        })?;
        Ok(())
    }

    fn add_data(&mut self, entry: &Entry, further: &[Entry], size: u64) -> Result<(), OutlineError> {
        let malformed = || OutlineError::Malformed("the chunks of a file do not fit it");
        let mut covered = 0;
        for (number, chunk) in std::iter::once(entry).chain(further).enumerate() {
            if chunk.chunk_offset != covered || chunk.inner_offset != 0 {
                return Err(malformed());
            }
            let rest = size.checked_sub(covered).filter(|rest| *rest > 0).ok_or_else(malformed)?;
            let length = if chunk.chunk_size == 0 { rest } else { chunk.chunk_size };
            let whole = number == 0 && further.is_empty();
            let digest = if chunk.chunk_digest.is_empty() && whole { &chunk.digest } else { &chunk.chunk_digest };
            let digest = digest.parse().map_err(|_| malformed())?;
            self.files.push((chunk.offset, self.size, length, digest));
            self.size = self.size.checked_add(length).filter(|size| *size < FILES_BASE).ok_or_else(malformed)?;
            covered += length;
        }
        if covered == size { Ok(()) } else { Err(malformed()) }
    }

    /// Makes chunks that together have the whole blob but the footer: each ends where the next begins.
    fn chunks(&mut self, table: u64, end: u64) -> Result<Vec<Chunk>, OutlineError> {
        if !self.files.is_sorted_by_key(|(blob_offset, ..)| *blob_offset) {
            return Err(OutlineError::Malformed("the chunks are not in the order of the blob"));
        }
        let nothing = Digest::of(b"");
        // What comes before the first file's data, and the table with the end of the tar.
        let head = (0, 0, 0, nothing);
        let files = self.files.iter().copied();
        let starts: Vec<_> = std::iter::once(head).chain(files).chain([(table, self.size, 0, nothing)]).collect();
        let ends = starts.iter().skip(1).map(|(blob_offset, ..)| *blob_offset).chain([end]);
        let mut chunks = Vec::with_capacity(starts.len());
        for ((blob_offset, offset, length, digest), end) in starts.iter().copied().zip(ends) {
            let blob_length = end.checked_sub(blob_offset);
            let malformed = OutlineError::Malformed("a chunk has no place in the blob");
            let blob_length = blob_length.ok_or(malformed)?;
            if blob_length > 0 {
                chunks.push(Chunk { blob_offset, blob_length, offset, length, digest });
            } else if length > 0 {
                return Err(OutlineError::Malformed("two chunks are at one place of the blob"));
            }
        }
        Ok(chunks)
    }
}

fn table_entry(start: u64, size: u64) -> TarEntry {
    TarEntry {
        path: TABLE_NAME.to_vec(),
        kind: EntryKind::Regular,
        permissions: 0,
        uid: 0,
        gid: 0,
        mtime: FileTime::default(),
        xattrs: Vec::new(),
        size,
        data: FILES_BASE + start..FILES_BASE + start + size,
        sparse: None,
        offset: 0,
    }
}

/// The mode is as tar has it, but some writers put Go's bits for set-user-id and the like into it.
fn permissions(mode: i64) -> u16 {
    let bits = mode & 0o7777
        | [(23, 0o4000), (22, 0o2000), (20, 0o1000)]
            .iter()
            .filter(|(go, _)| mode >> go & 1 == 1)
            .fold(0, |bits, (_, unix)| bits | unix);
    u16::try_from(bits).expect("twelve bits")
}

#[derive(Deserialize)]
struct Contents {
    version: u32,
    #[serde(default, deserialize_with = "super::bounded_list")]
    entries: Vec<Entry>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Entry {
    name: String,
    r#type: String,
    size: u64,
    #[serde(rename = "modtime")]
    mod_time: String,
    link_name: String,
    mode: i64,
    uid: u32,
    gid: u32,
    offset: u64,
    inner_offset: u64,
    dev_major: u32,
    dev_minor: u32,
    xattrs: BTreeMap<String, String>,
    digest: String,
    chunk_offset: u64,
    chunk_size: u64,
    chunk_digest: String,
}

impl Entry {
    fn device(&self) -> Device {
        Device { major: self.dev_major, minor: self.dev_minor }
    }
}

const TABLE_NAME: &[u8] = b"stargz.index.json";
/// A table has some hundred bytes for a file, and is in memory as a whole.
const MAX_TABLE: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_says_where_the_table_is() {
        let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
        footer.extend_from_slice(b"00000000000012abSTARGZ");
        footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(footer.len() as u64, FOOTER);
        assert_eq!(contents_offset(&footer), Some(0x12ab));
        for at in [0, 12, 16, 33] {
            let mut damaged = footer.clone();
            damaged[at] = b'?';
            assert_eq!(contents_offset(&damaged), None, "{at}");
        }
        assert_eq!(contents_offset(&footer[..20]), None);
    }

    #[test]
    fn modes_of_both_kinds_are_understood() {
        assert_eq!(permissions(0o4755), 0o4755);
        assert_eq!(permissions(0o755 | 1 << 23), 0o4755);
        assert_eq!(permissions(0o777 | 1 << 20), 0o1777);
    }
}
