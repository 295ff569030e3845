//! Loading every kind of archive, from files, folders and streams.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io::Cursor;

use serde_json::json;
use strata_imagestore::{ImageId, Input, Store};
use strata_layer::Digest;
use support::*;

fn expected_id(layers: &[Vec<u8>]) -> ImageId {
    ImageId(Digest::of(config_of(layers).to_string().as_bytes()))
}

fn check(store: &Store, layers: &[Vec<u8>], how: &str) {
    let id = store.resolve("debian:12").unwrap_or_else(|error| panic!("{how}: {error}"));
    assert_eq!(id, expected_id(layers), "{how}");
    let image = store.image(&id).unwrap();
    assert_eq!(image.raw_config, config_of(layers).to_string().as_bytes());
    assert_eq!(Digest::of(&image.raw_manifest), image.manifest);
    let stack = store.stack(&id).unwrap();
    for (paths, layer) in stack.layers.iter().zip(layers) {
        assert_eq!(&std::fs::read(&paths.tar).unwrap(), layer, "{how}");
    }
    assert_eq!(merged_paths(store, &id), ["/bin/tool", "/etc/passwd", "/srv/app"], "{how}");
    assert!(verify(store).is_empty());
    // Nothing is left behind.
    assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "{how}");
}

#[test]
fn every_form_gives_the_same_image() {
    let layers = sample_layers();
    let forms = [
        ("docker old", docker_old(&layers, &["debian:12"])),
        ("docker new", docker_new(&layers, "debian:12")),
        ("oci plain", oci(&layers, "", "debian:12")),
        ("oci gzip", oci(&layers, "gzip", "debian:12")),
        ("oci zstd", oci(&layers, "zstd", "docker.io/library/debian:12")),
    ];
    for (form, members) in forms {
        let tar = members.tar();
        for outer in ["", "gzip", "zstd"] {
            let archive = compress(&tar, outer);
            for stream in [false, true] {
                let how = format!("{form} {outer} stream={stream}");
                let folder = tempfile::tempdir().unwrap();
                let store = open(&folder);
                let load = if stream { load_stream } else { load_file };
                let loaded = load(&store, &archive).unwrap_or_else(|error| panic!("{how}: {}", chain(&error)));
                assert_eq!(loaded[0].to_string(), "Loaded image: debian:12");
                check(&store, &layers, &how);
            }
        }
        if form.starts_with("oci") || form == "docker new" {
            let folder = tempfile::tempdir().unwrap();
            let store = open(&folder);
            let layout = members.folder();
            store.load(Input::Path(layout.path().to_owned()), &options(), &()).unwrap();
            check(&store, &layers, &format!("{form} folder"));
        }
    }
}

#[test]
fn documents_before_layers_and_after_are_the_same() {
    let layers = sample_layers();
    let mut members = docker_old(&layers, &["debian:12"]);
    members.0.reverse();
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    load_stream(&store, &members.tar()).unwrap();
    check(&store, &layers, "reversed");
}

#[test]
fn layers_that_repeat_are_links_in_the_archive() {
    let mut layers = sample_layers();
    layers.push(layers[2].clone());
    for load in [load_file, load_stream] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        load(&store, &docker_old(&layers, &["debian:12"]).tar()).unwrap();
        check(&store, &layers, "linked");
    }
}

#[test]
fn an_image_without_name_is_reported_by_id() {
    let layers = sample_layers();
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let loaded = load_file(&store, &docker_old(&layers, &[]).tar()).unwrap();
    assert_eq!(loaded[0].to_string(), format!("Loaded image ID: {}", expected_id(&layers)));
    // A bare word is the name of an entry of the layout and not of the image.
    let loaded = load_file(&store, &oci(&layers, "gzip", "latest").tar()).unwrap();
    assert_eq!(loaded[0].reference, None);
    assert_eq!(store.images().unwrap().len(), 1);
}

#[test]
fn a_name_moves_to_the_image_that_is_loaded_last() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let layers = sample_layers();
    load_file(&store, &docker_old(&layers[..1], &["a:1", "b:1"]).tar()).unwrap();
    let loaded = load_file(&store, &docker_old(&layers, &["a:1"]).tar()).unwrap();
    assert_eq!(loaded[0].replaced, Some(expected_id(&layers[..1])));
    assert_eq!(store.resolve("a:1").unwrap(), expected_id(&layers));
    assert_eq!(store.resolve("b:1").unwrap(), expected_id(&layers[..1]));
    let again = load_file(&store, &docker_old(&layers, &["a:1"]).tar()).unwrap();
    assert_eq!(again[0].replaced, None);
}

#[test]
fn several_images_share_layers() {
    let layers = sample_layers();
    let mut members = Members::default();
    let small = oci_image(&mut members, &layers[..2], "gzip");
    let large = oci_image(&mut members, &layers, "gzip");
    let archive = oci_layout(members, &[named(small, "small:1"), named(large, "large:1")]).tar();
    for load in [load_file, load_stream] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let mut lines: Vec<_> = load(&store, &archive).unwrap().iter().map(ToString::to_string).collect();
        lines.sort();
        assert_eq!(lines, ["Loaded image: large:1", "Loaded image: small:1"]);
        assert_eq!(std::fs::read_dir(store.root().join("layers")).unwrap().count(), 3);
    }
}

#[test]
fn an_index_is_searched_for_this_machine() {
    let layers = sample_layers();
    let mut members = Members::default();
    let for_platform = |members: &mut Members, layers: &[Vec<u8>], architecture: &str, os: &str| {
        let mut descriptor = oci_image(members, layers, "gzip");
        descriptor["platform"] = json!({"architecture": architecture, "os": os});
        descriptor
    };
    let arm = for_platform(&mut members, &layers[..1], "arm64", "linux");
    let windows = for_platform(&mut members, &layers[1..2], "amd64", "windows");
    let amd = for_platform(&mut members, &layers, "amd64", "linux");
    let mut attestation = for_platform(&mut members, &layers[2..], "unknown", "unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [arm, windows, attestation, amd]});
    let mut nested = members.blob(INDEX, index.to_string().as_bytes());
    for _ in 0..2 {
        let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [nested]});
        nested = members.blob(INDEX, outer.to_string().as_bytes());
    }
    let archive = oci_layout(members, &[named(nested, "debian:12")]);
    for load in [load_file, load_stream] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        load(&store, &archive.tar()).unwrap();
        check(&store, &layers, "nested");
        assert_eq!(std::fs::read_dir(store.root().join("layers")).unwrap().count(), 3);
    }

    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let riscv = strata_imagestore::LoadOptions { platform: Some("linux/riscv64".parse().unwrap()), ..options() };
    let error = store.load(Input::Stream(Box::new(Cursor::new(archive.tar()))), &riscv, &()).unwrap_err();
    assert_eq!(
        chain(&error),
        "no image for linux/riscv64; there are images for: linux/arm64, windows/amd64, linux/amd64"
    );
}

#[test]
fn what_is_present_is_not_written_again() {
    use std::os::unix::fs::MetadataExt;
    let layers = sample_layers();
    for kind in ["", "gzip", "zstd"] {
        let archive = oci(&layers, kind, "debian:12").tar();
        for load in [load_file, load_stream] {
            let folder = tempfile::tempdir().unwrap();
            let store = open(&folder);
            load(&store, &archive).unwrap();
            let inode = |store: &Store| {
                let stack = store.stack(&store.resolve("debian:12").unwrap()).unwrap();
                stack.layers.iter().map(|layer| std::fs::metadata(&layer.tar).unwrap().ino()).collect::<Vec<_>>()
            };
            let before = inode(&store);
            let recorder = Recorder::default();
            let input = Input::Stream(Box::new(Cursor::new(archive.clone())));
            store.load(input, &options(), &recorder).unwrap();
            assert_eq!(inode(&store), before);
            let events = recorder.0.into_inner().unwrap();
            assert!(events.iter().all(|event| event.starts_with("present")), "{kind}: {events:?}");
            check(&store, &layers, "again");
        }
    }
}

#[test]
fn progress_tells_how_far_each_layer_is() {
    let layers = vec![large_layer("big", 5 << 20)];
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let recorder = Recorder::default();
    let input = Input::Stream(Box::new(Cursor::new(oci(&layers, "gzip", "a:1").tar())));
    store.load(input, &options(), &recorder).unwrap();
    let events = recorder.0.into_inner().unwrap();
    assert!(events[0].starts_with("started"), "{events:?}");
    assert!(events.len() >= 6, "{events:?}");
    assert!(events.last().unwrap().starts_with("finished"));
}

#[derive(Default)]
struct Recorder(std::sync::Mutex<Vec<String>>);

impl strata_imagestore::Progress for Recorder {
    fn report(&self, event: strata_imagestore::Event<'_>) {
        use strata_imagestore::Event;
        let line = match event {
            Event::Started { layer, bytes } => format!("started {layer} {bytes:?}"),
            Event::Advanced { layer, bytes } => format!("advanced {layer} {bytes}"),
            Event::Finished { layer } => format!("finished {layer}"),
            Event::Present { layer } => format!("present {layer}"),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().push(line);
    }
}
