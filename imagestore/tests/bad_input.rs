//! Archives that are damaged, incomplete or made to deceive: a clear error, and a store as it was before.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "bad_input/compression.rs"]
mod compression;
#[path = "bad_input/documents.rs"]
mod documents;
mod support;

use std::io::Cursor;

use serde_json::{Value, json};
use strata_imagestore::{Input, LoadError, Loaded, Store};
use strata_layer::Digest;
use support::*;

type Load = fn(&Store, &[u8]) -> Result<Vec<Loaded>, LoadError>;
const WAYS: [(&str, Load); 2] = [("file", load_file), ("stream", load_stream)];

/// A store that has an image already, on a file system without a disk where there is one.
fn store_with_image() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let store = open(&folder);
    load_file(&store, &docker_old(&[layer(&[("kept", "kept")])], &["kept:1"]).tar()).unwrap();
    (folder, store)
}

#[track_caller]
fn refused(members: &Members, message: &str) {
    refused_bytes(&members.tar(), message);
}

#[track_caller]
fn refused_bytes(archive: &[u8], message: &str) {
    let (_folder, store) = store_with_image();
    let before = snapshot(&store);
    for (way, load) in WAYS {
        let error = load(&store, archive).unwrap_err();
        let text = chain(&error);
        assert!(text.contains(message), "{way}: {text}");
        assert_eq!(snapshot(&store), before, "{way}");
    }
}

fn blob_name(content: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(content).hex())
}

#[test]
fn what_is_no_archive_is_told_so() {
    refused_bytes(b"", "not an image archive");
    refused_bytes(&[0; 10240], "not an image archive");
    refused_bytes(b"hello", "not an image archive");
    refused_bytes(&[7; 4096], "not an image archive");
    refused_bytes(&sample_layers()[0], "neither manifest.json nor index.json");
    refused_bytes(&compress(&[7; 4096], "gzip"), "not an image archive");
    let mut before_manifests = docker_old(&sample_layers(), &["a:1"]);
    before_manifests.remove("manifest.json");
    refused(&before_manifests, "written by Docker before 1.10");
    refused(&oci_layout(Members::default(), &[]), "archive has no image");
}

#[test]
fn every_cut_leaves_the_store_as_it_was() {
    let layers = sample_layers();
    let (_folder, store) = store_with_image();
    let before = snapshot(&store);
    for (form, archive) in [
        ("docker", docker_old(&layers, &["a:1"]).tar()),
        ("oci gzip", oci(&layers, "gzip", "a:1").tar()),
        ("outer gzip", compress(&oci(&layers, "", "a:1").tar(), "gzip")),
        ("outer zstd", compress(&oci(&layers, "zstd", "a:1").tar(), "zstd")),
    ] {
        // The two blocks at the end may be missing, and what fills up to the record.
        let content = archive.len() - if form.starts_with("outer") { 1 } else { 1024 };
        for cut in (0..content).step_by(97).chain([content - 1]) {
            for (way, load) in WAYS {
                assert!(load(&store, &archive[..cut]).is_err(), "{form} {way} cut at {cut}");
                assert_eq!(snapshot(&store), before, "{form} {way} cut at {cut}");
            }
        }
    }
}

#[test]
fn every_flipped_byte_is_noticed_or_harmless() {
    let layers = sample_layers();
    for (form, archive) in [
        ("docker", docker_old(&layers, &["a:1"]).tar()),
        ("docker new", docker_new(&layers, "a:1").tar()),
        ("oci gzip", oci(&layers, "gzip", "a:1").tar()),
        ("oci zstd", oci(&layers, "zstd", "a:1").tar()),
        ("outer gzip", compress(&oci(&layers, "gzip", "a:1").tar(), "gzip")),
    ] {
        let (folder, mut store) = store_with_image();
        let mut before = snapshot(&store);
        let expected = Digest::of(config_of(&layers).to_string().as_bytes());
        let mut refused = 0;
        let positions: Vec<usize> = (0..archive.len()).step_by(11).collect();
        for (count, position) in positions.iter().enumerate() {
            let mut damaged = archive.clone();
            damaged[*position] ^= 1 << (count % 8);
            let (way, load) = WAYS[count % 2];
            let context = format!("{form} {way} flipped at {position}");
            match load(&store, &damaged) {
                Err(_) => {
                    refused += 1;
                    assert_eq!(snapshot(&store), before, "{context}");
                }
                Ok(loaded) => {
                    // Padding, a member that no image needs, or a letter of the name: what was loaded is right.
                    assert_eq!(loaded[0].id.0, expected, "{context}");
                    assert!(verify(&store).is_empty(), "{context}");
                    drop(store);
                    std::fs::remove_dir_all(folder.path()).unwrap();
                    std::fs::create_dir(folder.path()).unwrap();
                    store = open(&folder);
                    load_file(&store, &docker_old(&[layer(&[("kept", "kept")])], &["kept:1"]).tar()).unwrap();
                    before = snapshot(&store);
                }
            }
        }
        assert!(refused * 3 > positions.len(), "{form}: only {refused} of {} were refused", positions.len());
    }
}

#[test]
fn missing_members_are_named() {
    let layers = sample_layers();
    let mut missing_layer = docker_old(&layers, &["a:1"]);
    let name = missing_layer.0.iter().find(|(name, _)| name.ends_with("layer.tar")).unwrap().0.clone();
    missing_layer.remove(&name);
    refused(&missing_layer, &format!("archive member {name:?} is missing"));

    let mut missing_blob = oci(&layers, "gzip", "a:1");
    let name = blob_name(&compress(&layers[1], "gzip"));
    missing_blob.remove(&name);
    refused(&missing_blob, &format!("archive member {name:?} is missing"));

    let mut missing_config = docker_old(&layers, &["a:1"]);
    let name = format!("{}.json", Digest::of(config_of(&layers).to_string().as_bytes()).hex());
    missing_config.remove(&name);
    refused(&missing_config, &format!("archive member {name:?} is missing"));

    let dangling = json!([{"Config": "../../etc/passwd", "RepoTags": [], "Layers": []}]);
    let mut escaping = Members::default();
    escaping.push("manifest.json", dangling.to_string());
    refused(&escaping, "archive member \"../../etc/passwd\" is missing");
}

#[test]
fn contents_must_be_what_documents_say() {
    let layers = sample_layers();

    // A layer that is a good tar, but another one.
    let mut other_layer = docker_old(&layers, &["a:1"]);
    let name = other_layer.0.iter().find(|(name, _)| name.ends_with("layer.tar")).unwrap().0.clone();
    *other_layer.get_mut(&name) = layer(&[("other", "other")]);
    refused(&other_layer, &format!("layer {name:?} has the diff_id sha256:"));

    // The same in an OCI layout: the blob does not have its name's digest.
    let mut other_blob = oci(&layers, "gzip", "a:1");
    let name = blob_name(&compress(&layers[0], "gzip"));
    *other_blob.get_mut(&name) = compress(&layer(&[("other", "other")]), "gzip");
    let archive = other_blob.tar();
    refused_bytes(&archive, &format!("archive member {name:?} has"));

    // A blob of the right name whose content is not what the configuration lists.
    let mut wrong_diff_id = Members::default();
    let config = config_of(&[layer(&[("expected", "x")])]);
    let image = oci_image_with_config(&mut wrong_diff_id, &[layer(&[("found", "y")])], "gzip", &config);
    refused(&oci_layout(wrong_diff_id, &[image]), "has the diff_id sha256:");

    // A descriptor with a wrong size.
    for change in [-1_i64, 1] {
        let mut members = Members::default();
        let blob = compress(&layers[0], "gzip");
        let mut descriptor = members.blob("application/vnd.oci.image.layer.v1.tar+gzip", &blob);
        descriptor["size"] = json!(i64::try_from(blob.len()).unwrap() + change);
        let config = members.blob(CONFIG, config_of(&layers[..1]).to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [descriptor]});
        let manifest = members.blob(MANIFEST, manifest.to_string().as_bytes());
        refused(&oci_layout(members, &[manifest]), &format!("bytes, expected {}", descriptor_size(&blob, change)));
    }

    // More or fewer layers than the configuration lists.
    let mut members = Members::default();
    let image = oci_image_with_config(&mut members, &layers[..2], "gzip", &config_of(&layers));
    refused(&oci_layout(members, &[image]), "lists 3 layers, the archive has 2");

    // A configuration that does not have the digest in its name.
    let mut renamed = docker_old(&layers, &["a:1"]);
    let name = format!("{}.json", Digest::of(config_of(&layers).to_string().as_bytes()).hex());
    renamed.get_mut(&name).push(b' ');
    refused(&renamed, &format!("archive member {name:?} has the digest"));
}

fn descriptor_size(blob: &[u8], change: i64) -> i64 {
    i64::try_from(blob.len()).unwrap() + change
}

#[test]
fn documents_that_deceive_are_refused() {
    let layers = sample_layers();
    let with_manifest = |edit: &dyn Fn(&mut Value)| {
        let mut members = Members::default();
        let config = members.blob(CONFIG, config_of(&layers[..1]).to_string().as_bytes());
        let layer = members.blob("application/vnd.oci.image.layer.v1.tar", &layers[0]);
        let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        edit(&mut manifest);
        let manifest = members.blob("", manifest.to_string().as_bytes());
        oci_layout(members, &[manifest])
    };
    assert!(load_file(&store_with_image().1, &with_manifest(&|_| ()).tar()).is_ok());
    for (edit, message) in [
        (json!({"manifests": []}), "ambiguous document: it has both layers and manifests"),
        (json!({"schemaVersion": 1}), "schema version 1"),
        (json!({"mediaType": INDEX}), "claims the media type"),
        (
            json!({"layers": [{"mediaType": "application/vnd.in-toto+json", "digest": Digest::of(b"").to_string(), "size": 0}]}),
            "unsupported media type",
        ),
        (
            json!({"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "digest": Digest::of(b"").to_string(), "size": 0}]}),
            "unsupported media type",
        ),
        (
            json!({"layers": [{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": Digest::of(b"").to_string(), "size": 0, "urls": ["http://x/"]}]}),
            "not distributable",
        ),
        (
            json!({"config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2}}),
            "artifact of type",
        ),
        (json!({"config": {"mediaType": CONFIG, "digest": "sha256:abc", "size": 2}}), "invalid checksum digest length"),
        (
            json!({"config": {"mediaType": CONFIG, "digest": Digest::of(b"").to_string(), "size": u64::MAX}}),
            "at most 8388608",
        ),
        (json!({"config": {"mediaType": CONFIG, "digest": Digest::of(b"").to_string(), "size": -5}}), "invalid value"),
    ] {
        let members = with_manifest(&|manifest| {
            for (key, value) in edit.as_object().unwrap() {
                manifest[key] = value.clone();
            }
        });
        refused(&members, message);
    }

    let mut twice = Members::default();
    twice.push("index.json", r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#);
    refused(&twice, "key \"manifests\" appears twice");

    let mut huge = Members::default();
    huge.push("manifest.json", vec![b' '; (4 << 20) + 1]);
    refused(&huge, "at most 4194304 are accepted");

    let mut version = oci(&layers, "", "a:1");
    *version.get_mut("oci-layout") = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec();
    refused(&version, "unknown version \"2.0.0\" of the OCI image layout");
}

#[test]
fn indexes_that_nest_too_deep_are_refused() {
    for (depth, message) in [(5, None), (6, Some("nested too deep"))] {
        let mut members = Members::default();
        let mut descriptor = oci_image(&mut members, &sample_layers(), "");
        for _ in 1..depth {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]});
            descriptor = members.blob(INDEX, index.to_string().as_bytes());
        }
        let members = oci_layout(members, &[descriptor]);
        match message {
            Some(message) => refused(&members, message),
            None => drop(load_file(&store_with_image().1, &members.tar()).unwrap()),
        }
    }
}

#[test]
fn hostile_members_are_refused() {
    let layers = sample_layers();
    let mut twice = docker_old(&layers, &["a:1"]);
    twice.push("manifest.json", "[]");
    refused(&twice, "archive has \"manifest.json\" twice");

    // The tar crate does not write such names, so they are put in by hand.
    let mut archive = docker_old(&layers, &["a:1"]);
    archive.push("xx/escape", "x");
    let mut bytes = archive.tar();
    let at = bytes.windows(9).position(|window| window == b"xx/escape").unwrap();
    bytes[at..at + 2].copy_from_slice(b"..");
    let header = &mut bytes[at..at + 512];
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    refused_bytes(&bytes, "archive member \"../escape\" has an invalid name");

    // Links lead nowhere else than to members, once.
    for (target, message) in
        [("/etc/passwd", "is not a file"), ("../../../etc/passwd", "is not a file"), ("other", "is not a file")]
    {
        let mut linked = docker_old(&layers[..1], &["a:1"]);
        let name = linked.0.iter().find(|(name, _)| name.ends_with("layer.tar")).unwrap().0.clone();
        *linked.get_mut(&name) = format!("-> {target}").into_bytes();
        let folder = name.rsplit_once('/').unwrap().0;
        linked.push(format!("{folder}/other"), "-> layer.tar");
        refused(&linked, message);
    }
}

#[test]
fn links_in_a_folder_do_not_lead_out_of_it() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let layout = oci(&sample_layers(), "", "a:1").folder();
    let content = std::fs::read(layout.path().join("index.json")).unwrap();
    std::fs::write(outside.path(), content).unwrap();
    std::fs::remove_file(layout.path().join("index.json")).unwrap();
    std::os::unix::fs::symlink(outside.path(), layout.path().join("index.json")).unwrap();
    let (_folder, store) = store_with_image();
    let error = store.load(Input::Path(layout.path().to_owned()), &options(), &()).unwrap_err();
    assert!(chain(&error).contains("not an image archive"), "{}", chain(&error));
}

#[test]
fn hostile_layers_are_refused_with_the_entry() {
    for (name, message) in [("../up", "\"../up\""), ("a/../../b", "\"a/../../b\""), (".wh.", "\".wh.\"")] {
        let mut bytes = layer(&[(&"x".repeat(name.len()), "x")]);
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let header = &mut bytes[..512];
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        for kind in ["", "gzip", "zstd"] {
            refused(&oci(&[bytes.clone()], kind, "a:1"), message);
        }
    }
}

#[test]
fn a_hard_link_to_a_file_of_no_layer_is_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    builder.append_link(&mut header, "dangling", "not/there").unwrap();
    let link = builder.into_inner().unwrap();
    refused(&docker_old(&[sample_layers()[0].clone(), link.clone()], &["a:1"]), "hard link \"dangling\"");

    // With the file in a layer below it is one more name of that.
    let (_folder, store) = store_with_image();
    load_file(&store, &docker_old(&[layer(&[("not/there", "x")]), link], &["a:1"]).tar()).unwrap();
}

#[test]
fn a_decompression_bomb_stops_at_the_limit() {
    let mut bomb = layer(&[("zeros", &"\0".repeat(1000))]);
    bomb.resize(8 << 20, 0);
    for kind in ["gzip", "zstd"] {
        let archive = oci(&[bomb.clone()], kind, "a:1").tar();
        let (_folder, store) = store_with_image();
        let before = snapshot(&store);
        for stream in [false, true] {
            let limited = strata_imagestore::LoadOptions { max_layer_size: 4 << 20, ..options() };
            let input = if stream {
                Input::Stream(Box::new(Cursor::new(archive.clone())))
            } else {
                let path = store.root().with_extension("tar");
                std::fs::write(&path, &archive).unwrap();
                Input::Path(path)
            };
            let error = store.load(input, &limited, &()).unwrap_err();
            assert!(chain(&error).contains("exceeds the limit"), "{}", chain(&error));
            assert_eq!(snapshot(&store), before);
        }
        load_stream(&store, &archive).unwrap();
    }
}

#[test]
fn a_stream_that_fails_is_not_taken_for_a_damaged_layer() {
    struct Failing(Cursor<Vec<u8>>);
    impl std::io::Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::Error::other("cable pulled")),
                count => Ok(count),
            }
        }
    }
    let archive = oci(&[large_layer("big", 3 << 20)], "gzip", "a:1").tar();
    let (_folder, store) = store_with_image();
    let before = snapshot(&store);
    for cut in [archive.len() / 2, archive.len() / 3, 700] {
        let input = Input::Stream(Box::new(Failing(Cursor::new(archive[..cut].to_vec()))));
        let error = store.load(input, &options(), &()).unwrap_err();
        assert_eq!(chain(&error), "read the archive: cable pulled", "cut at {cut}");
        assert_eq!(snapshot(&store), before);
    }
}

#[test]
fn extra_members_do_no_harm() {
    let layers = sample_layers();
    let mut members = oci(&layers, "gzip", "a:1");
    members.push("notes.tar.gz", compress(b"this is not a layer", "gzip"));
    members.push("broken.gz", [&[0x1f, 0x8b][..], &[9; 5000]].concat());
    members.push("README", "hello");
    members.push("big", vec![b'x'; 9 << 20]);
    for (way, load) in WAYS {
        let (_folder, store) = store_with_image();
        load(&store, &members.tar()).unwrap_or_else(|error| panic!("{way}: {}", chain(&error)));
        assert!(verify(&store).is_empty());
    }
}
