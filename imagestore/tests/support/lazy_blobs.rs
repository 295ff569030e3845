//! Blobs with tables of contents, written as other tools do.

use std::collections::BTreeMap;
use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use strata_layer::Digest;

/// A layer as a registry has it.
pub(crate) struct Blob {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) annotations: BTreeMap<String, String>,
    /// The tar that it decompresses to.
    pub(crate) tar: Vec<u8>,
}

/// An entry of a tar: what of the table of contents comes from its header, and where its data is.
struct Entry {
    about: Value,
    data: std::ops::Range<usize>,
}

fn entries(tar: &[u8]) -> Vec<Entry> {
    let mut archive = tar::Archive::new(tar);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        let kind = header.entry_type();
        let link = entry.link_name().unwrap().map(|link| link.to_string_lossy().into_owned());
        let mut xattrs = serde_json::Map::new();
        for extension in entry.pax_extensions().unwrap().into_iter().flatten().flatten() {
            if let Some(name) = extension.key().unwrap().strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), json!(STANDARD.encode(extension.value_bytes())));
            }
        }
        let name = match kind {
            tar::EntryType::Directory => "dir",
            tar::EntryType::Symlink => "symlink",
            tar::EntryType::Link => "hardlink",
            tar::EntryType::Char => "char",
            tar::EntryType::Fifo => "fifo",
            _ => "reg",
        };
        let seconds = i64::try_from(header.mtime().unwrap()).unwrap();
        let time = strata_imagestore::Timestamp { seconds, nanoseconds: 0 }.to_string();
        let start = usize::try_from(entry.raw_file_position()).unwrap();
        let size = if kind.is_file() { usize::try_from(entry.size()).unwrap() } else { 0 };
        let about = json!({
            "name": String::from_utf8_lossy(&entry.path_bytes()), "type": name, "size": size, "linkName": link.unwrap_or_default(),
            "mode": header.mode().unwrap(), "uid": header.uid().unwrap(), "gid": header.gid().unwrap(), "modtime": time,
            "devMajor": header.device_major().ok().flatten().unwrap_or(0), "devMinor": header.device_minor().ok().flatten().unwrap_or(0),
            "xattrs": xattrs,
        });
        Entry { about, data: start..start + size }
    };
    archive.entries().unwrap().map(read).collect()
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes an eStargz blob of a tar, as `estargz.Writer` does, with chunks of so many bytes.
pub(crate) fn stargz(tar: &[u8], chunk_size: usize) -> Blob {
    let entries = entries(tar);
    // Where the data of chunks begins, each of which begins a member.
    let mut starts = vec![0];
    let chunks_of = |data: &std::ops::Range<usize>| data.clone().step_by(chunk_size).collect::<Vec<_>>();
    starts.extend(entries.iter().flat_map(|entry| chunks_of(&entry.data)));
    // What ends the archive comes behind the table.
    let last = entries.last().map_or(0, |entry| entry.data.end.next_multiple_of(512));
    let mut bytes = Vec::new();
    let mut offsets = BTreeMap::new();
    for (number, start) in starts.iter().enumerate() {
        let end = starts.get(number + 1).copied().unwrap_or(last);
        offsets.insert(*start, bytes.len());
        bytes.extend(gzip(&tar[*start..end]));
    }
    let mut table = Vec::new();
    for entry in &entries {
        let mut about = entry.about.clone();
        if about["type"] == "reg" {
            about["digest"] = json!(digest(&tar[entry.data.clone()]));
        }
        let chunks = chunks_of(&entry.data);
        for (number, start) in chunks.iter().enumerate() {
            let end = entry.data.end.min(start + chunk_size);
            if number > 0 {
                about = json!({"name": entry.about["name"], "type": "chunk", "chunkOffset": start - entry.data.start});
            }
            about["offset"] = json!(offsets[start]);
            if chunks.len() > 1 && end < entry.data.end {
                about["chunkSize"] = json!(end - start);
            }
            about["chunkDigest"] = json!(digest(&tar[*start..end]));
            table.push(about.clone());
        }
        if chunks.is_empty() {
            table.push(about);
        }
    }
    let table = json!({"version": 1, "entries": table}).to_string().into_bytes();
    let mut end = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(table.len() as u64);
    header.set_mode(0);
    end.append_data(&mut header, "stargz.index.json", &table[..]).unwrap();
    let end = end.into_inner().unwrap();
    let place = bytes.len();
    bytes.extend(gzip(&end));
    // An empty member of stored data whose header says where the table is.
    let extra = format!("{place:016x}STARGZ");
    let field = [b"SG", &u16::try_from(extra.len()).unwrap().to_le_bytes()[..], extra.as_bytes()].concat();
    bytes.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255]);
    bytes.extend(u16::try_from(field.len()).unwrap().to_le_bytes());
    bytes.extend(field);
    bytes.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let annotations = [("containerd.io/snapshot/stargz/toc.digest".to_owned(), digest(&table))].into();
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    Blob { bytes, media_type, annotations, tar: [&tar[..last], &end[..]].concat() }
}

/// Writes a zstd:chunked blob of a tar, as containers/storage does, with chunks of so many bytes.
pub(crate) fn chunked(tar: &[u8], chunk_size: usize) -> Blob {
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let skippable = |bytes: &[u8]| {
        [&[0x50, 0x2a, 0x4d, 0x18], &u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
    };
    let (mut bytes, mut table, mut split, mut done) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for entry in entries(tar) {
        // What lies before the data is part of no chunk.
        let segment = &tar[done..entry.data.start];
        bytes.extend(frame(segment));
        split.push(json!({"type": 2, "payload": STANDARD.encode(segment), "position": split.len()}));
        let name = entry.about["name"].clone();
        split.push(json!({"type": 1, "name": name, "size": entry.data.len(), "payload": "", "position": split.len()}));
        done = entry.data.end;
        let mut about = entry.about;
        if entry.data.is_empty() {
            table.push(about);
            continue;
        }
        let mut chunks = Vec::new();
        for piece in tar[entry.data.clone()].chunks(chunk_size) {
            chunks.push((bytes.len(), piece));
            bytes.extend(frame(piece));
        }
        about["digest"] = json!(digest(&tar[entry.data.clone()]));
        about["endOffset"] = json!(bytes.len());
        for (number, (offset, piece)) in chunks.iter().enumerate() {
            if number > 0 {
                about = json!({"name": name, "type": "chunk"});
            }
            about["offset"] = json!(offset);
            if chunks.len() > 1 {
                about["chunkOffset"] = json!(number * chunk_size);
                about["chunkSize"] = json!(piece.len());
                about["chunkDigest"] = json!(digest(piece));
            }
            table.push(about.clone());
        }
    }
    bytes.extend(frame(&tar[done..]));
    split.push(json!({"type": 2, "payload": STANDARD.encode(&tar[done..]), "position": split.len()}));
    let split: String = split.iter().map(|line| format!("{line}\n")).collect();
    let packed_split = frame(split.as_bytes());
    let table = json!({"version": 1, "entries": table, "tarSplitDigest": digest(&packed_split)}).to_string();
    let packed_table = frame(table.as_bytes());
    let table_at = bytes.len() + 8;
    bytes.extend(skippable(&packed_table));
    let split_at = bytes.len() + 8;
    bytes.extend(skippable(&packed_split));
    bytes.extend(skippable(&[0; 64]));
    let annotation = |name: &str, value: String| (format!("io.github.containers.zstd-chunked.{name}"), value);
    let annotations = [
        annotation("manifest-checksum", digest(&packed_table)),
        annotation("manifest-position", format!("{table_at}:{}:{}:1", packed_table.len(), table.len())),
        annotation("tarsplit-position", format!("{split_at}:{}:{}", packed_split.len(), split.len())),
    ];
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    Blob { bytes, media_type, annotations: annotations.into(), tar: tar.to_vec() }
}

/// A tar with everything that layers have.
pub(crate) fn varied_tar(seed: u64, files: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, size: u64, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header
    };
    builder.append_data(&mut header(tar::EntryType::Directory, 0, 0o755), "etc", &b""[..]).unwrap();
    for number in 0..files {
        let size = match number % 5 {
            0 => 0,
            1 => 1 + random() % 511,
            2 => 512 * (1 + random() % 8),
            3 => 200_000 + random() % 100_000,
            _ => 4000 + random() % 4000,
        };
        let mut content = vec![0; usize::try_from(size).unwrap()];
        content.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random().to_le_bytes()[..chunk.len()]));
        let long = if number % 7 == 0 { "a-long-name-".repeat(12) } else { String::new() };
        builder
            .append_data(&mut header(tar::EntryType::Regular, size, 0o644), format!("etc/{long}{number}"), &content[..])
            .unwrap();
    }
    let mut link = header(tar::EntryType::Symlink, 0, 0o777);
    builder.append_link(&mut link, "etc/link", "3").unwrap();
    let mut hard = header(tar::EntryType::Link, 0, 0o644);
    builder.append_link(&mut hard, "etc/hard", "etc/3").unwrap();
    builder.append_pax_extensions([("SCHILY.xattr.user.note", &b"value"[..])]).unwrap();
    builder.append_data(&mut header(tar::EntryType::Regular, 4, 0o4755), "etc/with-attribute", &b"text"[..]).unwrap();
    builder.append_data(&mut header(tar::EntryType::Regular, 0, 0o644), ".wh.gone", &b""[..]).unwrap();
    builder.into_inner().unwrap()
}
