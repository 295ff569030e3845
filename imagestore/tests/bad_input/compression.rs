//! Blobs that are compressed otherwise than they say, or to do harm.

use serde_json::json;

use super::*;

/// An image of one layer with these bytes as its blob.
fn with_blob(tar: &[u8], media_type: &str, blob: &[u8]) -> Members {
    let mut members = Members::default();
    let config = members.blob(CONFIG, config_of(&[tar.to_vec()]).to_string().as_bytes());
    let layer = members.blob(media_type, blob);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = members.blob(MANIFEST, manifest.to_string().as_bytes());
    oci_layout(members, &[named(manifest, "a:1")])
}

fn accepted(members: &Members, context: &str) {
    for (way, load) in WAYS {
        let (_folder, store) = store_with_image();
        let loaded = load(&store, &members.tar());
        let loaded = loaded.unwrap_or_else(|error| panic!("{context} {way}: {}", chain(&error)));
        assert!(verify(&store).is_empty(), "{context} {way}");
        assert_eq!(merged_paths(&store, &loaded[0].id).len(), 1, "{context} {way}");
    }
}

#[test]
fn the_first_bytes_tell_the_compression_and_not_the_media_type() {
    let tar = layer(&[("file", "x")]);
    for declared in ["tar", "tar+gzip", "tar+zstd"] {
        for actual in ["", "gzip", "zstd"] {
            let media_type = format!("application/vnd.oci.image.layer.v1.{declared}");
            accepted(&with_blob(&tar, &media_type, &compress(&tar, actual)), &format!("{declared} {actual}"));
        }
    }
}

#[test]
fn what_is_compressed_twice_is_no_layer() {
    let tar = layer(&[("file", "x")]);
    for (outer, inner) in [("gzip", "gzip"), ("zstd", "gzip"), ("gzip", "zstd")] {
        let blob = compress(&compress(&tar, inner), outer);
        refused(&with_blob(&tar, "application/vnd.oci.image.layer.v1.tar+gzip", &blob), "layer");
    }
}

#[test]
fn a_blob_of_many_members_is_one_layer() {
    let tar = layer(&[("file", &"x".repeat(20_000))]);
    let blob: Vec<u8> = tar.chunks(3).flat_map(|piece| compress(piece, "gzip")).collect();
    accepted(&with_blob(&tar, "application/vnd.oci.image.layer.v1.tar+gzip", &blob), "gzip");
    let frames: Vec<u8> = tar.chunks(3).flat_map(|piece| zstd::encode_all(piece, 1).unwrap()).collect();
    accepted(&with_blob(&tar, "application/vnd.oci.image.layer.v1.tar+zstd", &frames), "zstd");
}

#[test]
fn garbage_after_the_end_is_refused() {
    let tar = layer(&[("file", "x")]);
    for kind in ["gzip", "zstd"] {
        let blob = [compress(&tar, kind), b"garbage".to_vec()].concat();
        refused(&with_blob(&tar, "application/vnd.oci.image.layer.v1.tar+gzip", &blob), "decompress the layer");
    }
}

#[test]
fn a_window_larger_than_128_mib_is_refused() {
    let tar = layer(&[("file", "x")]);
    // A frame of one block that is stored as it is. The window is 2^(10 + exponent).
    let frame = |exponent: u8| {
        let size = u32::try_from(tar.len()).unwrap();
        let block = (size << 3 | 1).to_le_bytes();
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3][..], &block[..3], &tar].concat()
    };
    accepted(&with_blob(&tar, "application/vnd.oci.image.layer.v1.tar+zstd", &frame(17)), "128 MiB");
    for exponent in [18, 21, 31] {
        let members = with_blob(&tar, "application/vnd.oci.image.layer.v1.tar+zstd", &frame(exponent));
        refused(&members, "decompress the layer");
    }
}
