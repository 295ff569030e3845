//! Tables of contents, out of memory, for fuzz targets: nothing may panic, and what is accepted makes sense. Each says whether
//! it was accepted.
#![cfg_attr(not(feature = "fuzzing"), expect(unreachable_pub, reason = "only fuzz targets see it, and its own test"))]

use std::io::Write;

use strata_layer::index::{Extent, Index};
use strata_layer::{DiffId, Digest};

use super::{ChunkMap, Outline, OutlineError, chunked, stargz};
use crate::model::Descriptor;

/// Reads the table of contents of an eStargz layer, a JSON document.
pub fn stargz(table: &[u8]) -> bool {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut header = [0; 512];
    header[..17].copy_from_slice(b"stargz.index.json");
    header[124..135].copy_from_slice(format!("{:011o}", table.len()).as_bytes());
    let written = encoder.write_all(&header).and_then(|()| encoder.write_all(table)).and_then(|()| encoder.finish());
    let member = written.expect("memory does not fail");
    let layer = descriptor();
    let diff_id = DiffId(layer.digest);
    check(stargz::outline(&layer, diff_id, Digest::of(table), 1 << 19, &member, &mut |_, _| Ok(())))
}

/// Reads the footer of an eStargz blob.
pub fn stargz_footer(footer: &[u8]) -> bool {
    stargz::contents_offset(footer).is_some()
}

/// Reads the two tables of a zstd:chunked layer: a JSON object, and the lines of tar-split after the first NUL.
pub fn chunked(tables: &[u8]) -> bool {
    let middle = tables.iter().position(|byte| *byte == 0).unwrap_or(tables.len());
    let (contents, split) = (&tables[..middle], tables.get(middle + 1..).unwrap_or_default());
    let Some(contents) = contents.strip_prefix(b"{") else { return false };
    let compress = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("memory does not fail");
    let split = compress(split);
    let begin = format!("{{\"tarSplitDigest\":\"{}\",", Digest::of(&split));
    let contents = compress(&[begin.as_bytes(), contents].concat());
    let mut layer = descriptor();
    let mut annotate = |name: &str, value: String| {
        layer.annotations.insert(format!("io.github.containers.zstd-chunked.{name}"), value);
    };
    annotate("manifest-checksum", Digest::of(&contents).to_string());
    annotate("manifest-position", format!("0:{}:0:1", contents.len()));
    annotate("tarsplit-position", format!("0:{}:0", split.len()));
    let Some(tables) = chunked::tables(&layer) else { return false };
    check(chunked::outline(&layer, DiffId(layer.digest), &tables, &contents, &split, &mut |_, _| Ok(())))
}

fn descriptor() -> Descriptor {
    let text = format!(
        "{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"{}\",\"size\":{}}}",
        Digest::of(b"blob"),
        1 << 20
    );
    serde_json::from_str(&text).expect("a descriptor")
}

/// Whatever is accepted leads nowhere but into the layer.
fn check(outline: Result<Outline, OutlineError>) -> bool {
    let Ok(Outline { map, index }) = outline else { return false };
    let index = Index::from_bytes(index).expect("an index that was just built can be read");
    index.verify().expect("and is whole");
    let size = index.layer(0).expect("a layer").tar_size;
    for node in index.nodes() {
        for Extent { source, length, .. } in index.extents(node) {
            assert!(source.checked_add(length).is_some_and(|end| end <= size), "an extent beyond the layer");
        }
    }
    assert_eq!(ChunkMap::from_bytes(&map.to_bytes()).as_ref(), Some(&map));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzz target begins with is accepted, so that it is more than refusals that are tried.
    #[test]
    fn the_seeds_are_accepted() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/lazy");
        let mut accepted = [0; 3];
        for seed in std::fs::read_dir(seeds).unwrap() {
            let path = seed.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let (kind, bytes) = bytes.split_first().unwrap();
            let kind = usize::from(kind % 3);
            assert!([stargz, chunked, stargz_footer][kind](bytes), "{path:?}");
            accepted[kind] += 1;
        }
        assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
    }
}
