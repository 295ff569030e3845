//! What is done with images once they are there.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use strata_imagestore::{
    Change, CommitLayerError, CommitOptions, ContainerUse, ImageId, Input, RemoveOptions, Removed, Store, Timestamp,
};
use strata_layer::{DiffId, Digest};
use support::*;

fn count(store: &Store, folder: &str) -> usize {
    fs::read_dir(store.root().join(folder)).unwrap().count()
}

fn loaded(layers: &[Vec<u8>], tags: &[&str]) -> (tempfile::TempDir, Store, ImageId) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let id = load_file(&store, &docker_old(layers, tags).tar()).unwrap()[0].id;
    (folder, store, id)
}

#[test]
fn images_are_found_by_name_digest_and_start_of_id() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12", "quay.io/a/b:c"]);
    let manifest = store.image(&id).unwrap().manifest;
    let hex = id.0.hex();
    for text in [
        "debian:12",
        "docker.io/library/debian:12",
        "quay.io/a/b:c",
        &hex,
        &hex[..12],
        &hex[..1],
        &id.to_string(),
        &format!("sha256:{}", &hex[..7]),
        &format!("debian@{manifest}"),
        &format!("quay.io/a/b@{manifest}"),
    ] {
        assert_eq!(store.resolve(text).unwrap(), id, "{text}");
    }
    let absent = Digest::of(b"absent");
    for (text, message) in [
        ("debian", "No such image: debian:latest"),
        ("debian:11", "No such image: debian:11"),
        ("other/x", "No such image: other/x:latest"),
        (&absent.to_string(), &format!("No such image: {absent}")),
        (&absent.hex(), &format!("No such image: {absent}")),
        (&format!("debian@{absent}"), &format!("No such image: debian@{absent}")),
        (&format!("other@{manifest}"), &format!("No such image: other@{manifest}")),
        ("Debian", "invalid reference format: repository name (library/Debian) must be lowercase"),
        ("a b", "invalid reference format"),
        ("", "invalid reference format"),
    ] {
        let error = store.resolve(text).unwrap_err();
        assert_eq!(error.to_string(), message, "{text}");
        assert_eq!(error.is_not_found(), message.starts_with("No such image"));
    }
}

#[test]
fn a_name_comes_before_the_start_of_an_id() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let other = load_file(&store, &docker_old(&sample_layers()[..1], &["x:1"]).tar()).unwrap()[0].id;
    let start = &id.0.hex()[..6];
    store.tag("x:1", &start.parse().unwrap()).unwrap();
    assert_eq!(store.resolve(start).unwrap(), other);
}

#[test]
fn an_ambiguous_start_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let mut starts = std::collections::HashMap::new();
    for number in 0..40 {
        let layers = [layer(&[("number", &number.to_string())])];
        let id = load_file(&store, &docker_old(&layers, &[]).tar()).unwrap()[0].id;
        *starts.entry(id.0.hex()[..1].to_owned()).or_insert(0) += 1;
    }
    assert_eq!(store.images().unwrap().len(), 40);
    let (start, _) = starts.iter().find(|(_, count)| **count > 1).unwrap();
    assert_eq!(store.resolve(start).unwrap_err().to_string(), format!("image ID prefix {start} is ambiguous"));
}

#[test]
fn lists_details_and_history_tell_what_the_configuration_says() {
    let layers = sample_layers();
    let (_folder, store, id) = loaded(&layers, &["debian:12", "debian:latest"]);
    let list = store.images().unwrap();
    assert_eq!(list.len(), 1);
    let names: Vec<_> = list[0].names.iter().map(|name| name.familiar()).collect();
    assert_eq!(names, ["debian:12", "debian:latest"]);
    assert_eq!(list[0].created, Some("2024-01-02T03:04:05Z".parse().unwrap()));
    assert_eq!(list[0].labels["a"], "b");
    let contents = ["root:x:0:0::/:/bin/sh\n", "#!/bin/sh\n", "x", "root:x:0:0:changed:/:/bin/sh\n", "app"];
    assert_eq!(list[0].size, contents.iter().map(|text| text.len() as u64).sum::<u64>());

    let image = store.image(&id).unwrap();
    assert_eq!(image.layers, layers.iter().map(|layer| DiffId(Digest::of(layer))).collect::<Vec<_>>());
    assert_eq!(image.config.config.cmd.as_deref(), Some(&["/bin/tool".to_owned()][..]));

    let history = store.history(&id).unwrap();
    assert_eq!(history.len(), 3);
    assert_eq!((history[0].id, history[0].size), (Some(id), 3));
    assert_eq!((history[2].id, history[2].size), (None, 33));
    assert_eq!(history[2].layer, Some(image.layers[0]));
}

#[test]
fn tags_are_given_and_moved() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    store.tag("debian:12", &"localhost:5000/mine".parse().unwrap()).unwrap();
    store.tag(&id.short(), &"other:1".parse().unwrap()).unwrap();
    assert_eq!(store.resolve("localhost:5000/mine:latest").unwrap(), id);
    assert_eq!(store.tag("absent", &"x".parse().unwrap()).unwrap_err().to_string(), "No such image: absent:latest");
    let digest = format!("x@{}", Digest::of(b""));
    let error = store.tag("debian:12", &digest.parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "refusing to create a tag with a digest reference");
    // Another process sees it.
    assert_eq!(Store::open(store.root()).unwrap().resolve("other:1").unwrap(), id);
}

#[test]
fn removing_an_image_frees_what_no_other_needs() {
    let layers = sample_layers();
    let (_folder, store, large) = loaded(&layers, &["large:1"]);
    let small = load_file(&store, &docker_old(&layers[..1], &["small:1"]).tar()).unwrap()[0].id;
    assert_eq!((count(&store, "layers"), count(&store, "blobs/sha256"), count(&store, "images")), (3, 4, 2));

    let removed = store.remove("large:1", &RemoveOptions::default()).unwrap();
    assert_eq!(removed[..2], [Removed::Untagged("large:1".parse().unwrap()), Removed::Deleted(large)]);
    assert_eq!(removed.len(), 4, "{removed:?}");
    assert_eq!((count(&store, "layers"), count(&store, "blobs/sha256"), count(&store, "images")), (1, 2, 1));
    assert_eq!(store.images().unwrap()[0].id, small);
    assert!(verify(&store).is_empty());

    store.remove(&small.short(), &RemoveOptions::default()).unwrap();
    assert_eq!((count(&store, "layers"), count(&store, "blobs/sha256"), count(&store, "tmp")), (0, 0, 0));
}

#[test]
fn an_image_in_use_is_refused_in_dockers_words() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let user = ContainerUse { container: "0123456789abcdef".to_owned(), image: id, running: false };
    let options = RemoveOptions { force: false, containers: vec![user] };
    let error = store.remove("debian:12", &options).unwrap_err().to_string();
    let expected = format!(
        "conflict: unable to remove repository reference \"debian:12\" (must force) - \
         container 0123456789ab is using its referenced image {}",
        id.short()
    );
    assert_eq!(error, expected);
    let missing = store.remove("nothing", &options).unwrap_err();
    assert_eq!(missing.to_string(), "No such image: nothing:latest");
    assert_eq!(store.images().unwrap().len(), 1);
}

#[test]
fn a_held_stack_survives_removal_until_it_is_dropped() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let stack = store.stack(&id).unwrap();
    store.remove("debian:12", &RemoveOptions::default()).unwrap();
    assert_eq!((count(&store, "layers"), count(&store, "images")), (3, 1));
    assert!(stack.index.exists() && stack.layers.iter().all(|layer| layer.tar.exists()));
    assert_eq!(store.gc().unwrap().layers.len(), 0);
    drop(stack);
    let collected = store.gc().unwrap();
    assert_eq!(
        (collected.layers.len(), collected.stacks, count(&store, "layers"), count(&store, "images")),
        (3, 1, 0, 0)
    );
    assert!(collected.bytes > 3 * 1024);
}

#[test]
fn a_lease_survives_removal_and_the_process() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    store.lease("container-1", &id).unwrap();
    store.remove("debian:12", &RemoveOptions::default()).unwrap();
    let store = Store::open(store.root()).unwrap();
    store.gc().unwrap();
    let stack = store.leased_stack("container-1").unwrap();
    assert_eq!(stack.layers.len(), 3);
    drop(stack);
    store.release("container-1").unwrap();
    store.release("container-1").unwrap();
    assert_eq!(store.gc().unwrap().layers.len(), 3);
    assert_eq!(store.leased_stack("container-1").unwrap_err().to_string(), "no lease named \"container-1\"");
    assert!(store.lease("../x", &id).is_err());
    assert!(store.lease("x", &id).unwrap_err().to_string().starts_with("No such image"));
}

#[test]
fn a_damaged_lease_stops_the_collection() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    store.lease("c", &id).unwrap();
    fs::write(store.root().join("leases/c"), "{").unwrap();
    assert_eq!(store.gc().unwrap_err().to_string(), "lease \"c\" is damaged");
    store.remove("debian:12", &RemoveOptions::default()).unwrap();
    assert_eq!(count(&store, "layers"), 3);
}

/// Damages a file in several ways, one after the other, and calls `check` each time.
fn damage(path: &Path, check: impl Fn(&str)) {
    let good = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    check("absent");
    for (how, bytes) in [
        ("empty", vec![]),
        ("cut", good[..good.len() / 2].to_vec()),
        ("no index", vec![7; good.len()]),
        ("another version", [&good[..8], &[0xff; 8], &good[16..]].concat()),
    ] {
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
        check(how);
        assert_eq!(fs::read(path).unwrap(), good, "{how}");
    }
}

#[test]
fn indexes_are_made_again_from_the_tar() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let stack = store.stack(&id).unwrap();
    let expected = merged_paths(&store, &id);
    damage(&stack.index, |how| assert_eq!(merged_paths(&store, &id), expected, "merged {how}"));
    damage(&stack.layers[1].index, |how| {
        store.layer_index(stack.layers[1].diff_id).unwrap_or_else(|error| panic!("{how}: {error}"));
    });
    fs::remove_file(&stack.layers[0].index).unwrap();
    fs::remove_file(&stack.index).unwrap();
    assert_eq!(merged_paths(&store, &id), expected);
    assert!(stack.layers[0].index.exists());

    // The list that keeps the layers of a mount from being collected.
    let list = stack.index.with_file_name("layers");
    fs::write(&list, "").unwrap();
    let stack = store.stack(&id).unwrap();
    store.remove("debian:12", &RemoveOptions::default()).unwrap();
    assert!(stack.layers.iter().all(|layer| layer.tar.exists()));
}

#[test]
fn a_damaged_tar_is_found_when_its_index_is_made_again_and_by_verify() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let stack = store.stack(&id).unwrap();
    let tar = &stack.layers[0].tar;
    let good = fs::read(tar).unwrap();
    for position in [0, 300, 515, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[position] ^= 4;
        fs::write(tar, &bytes).unwrap();
        let findings = verify(&store);
        assert_eq!(findings.len(), 1, "{position}: {findings:?}");
        assert!(!findings[0].is_repaired());
        fs::remove_file(&stack.layers[0].index).unwrap();
        fs::remove_file(&stack.index).unwrap();
        let error = store.stack(&id).unwrap_err().to_string();
        assert!(error.starts_with(&format!("layer {} is damaged on disk", stack.layers[0].diff_id)), "{error}");
        fs::write(tar, &good).unwrap();
        drop(store.stack(&id).unwrap());
    }
    // What is missing or cut off is noticed without reading it.
    fs::write(tar, &good[..good.len() - 1]).unwrap();
    assert!(store.stack(&id).unwrap_err().to_string().contains("is damaged on disk"));
    fs::remove_file(tar).unwrap();
    assert!(store.stack(&id).unwrap_err().to_string().contains("is missing from the store"));
    assert_eq!(verify(&store).len(), 1);
}

#[test]
fn a_damaged_layer_index_does_not_get_into_the_merged_one() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let stack = store.stack(&id).unwrap();
    let expected = fs::read(&stack.index).unwrap();
    let path = &stack.layers[0].index;
    let good = fs::read(path).unwrap();
    for position in (0..good.len()).step_by(29) {
        let mut bytes = good.clone();
        bytes[position] ^= 8;
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
        fs::remove_file(&stack.index).unwrap();
        drop(store.stack(&id).unwrap());
        assert_eq!(fs::read(&stack.index).unwrap(), expected, "flipped at {position}");
        assert_eq!(fs::read(path).unwrap(), good, "flipped at {position}");
    }
}

#[test]
fn verify_finds_and_repairs_every_flipped_byte_of_an_index() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let stack = store.stack(&id).unwrap();
    for path in [&stack.index, &stack.layers[0].index] {
        let good = fs::read(path).unwrap();
        for position in (0..good.len()).step_by(37) {
            let mut bytes = good.clone();
            bytes[position] ^= 16;
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
            let findings = verify(&store);
            assert!(findings.len() == 1 && findings[0].is_repaired(), "{position}: {findings:?}");
            drop(store.stack(&id).unwrap());
            assert_eq!(fs::read(path).unwrap(), good);
        }
    }
}

#[test]
fn verify_finds_damaged_documents() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let image = store.image(&id).unwrap();
    for digest in [id.0, image.manifest] {
        let path = store.root().join("blobs/sha256").join(digest.hex());
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[1..]).unwrap();
        assert_eq!(verify(&store).len(), 1);
        assert_eq!(store.images().unwrap()[0].damaged, digest == id.0);
        assert!(store.image(&id).unwrap_err().to_string().contains("is damaged on disk"));
        fs::write(&path, good).unwrap();
    }
    assert!(verify(&store).is_empty());
}

#[test]
fn a_reload_brings_back_a_missing_layer() {
    let layers = sample_layers();
    let (_folder, store, id) = loaded(&layers, &["debian:12"]);
    let folder = store.root().join("layers").join(Digest::of(&layers[1]).hex());
    for lose in [|folder: &Path| fs::remove_dir_all(folder), |folder: &Path| fs::remove_file(folder.join("tar"))] {
        lose(&folder).unwrap();
        assert!(store.stack(&id).unwrap_err().to_string().contains("is missing from the store"));
        load_file(&store, &docker_old(&layers, &["debian:12"]).tar()).unwrap();
        assert_eq!(merged_paths(&store, &id), ["/bin/tool", "/etc/passwd", "/srv/app"]);
        fs::remove_dir_all(store.root().join("images")).unwrap();
        fs::create_dir(store.root().join("images")).unwrap();
    }
}

#[test]
fn the_merged_index_is_there_after_the_load() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let index = store.root().join("images").join(store.image(&id).unwrap().chain.0.hex()).join("index");
    let modified = fs::metadata(&index).unwrap().modified().unwrap();
    let stack = store.stack(&id).unwrap();
    assert_eq!(stack.index, index);
    assert_eq!(fs::metadata(&index).unwrap().modified().unwrap(), modified, "it was made once");
}

#[test]
fn import_makes_an_image_of_a_root_file_system() {
    let tar = layer(&[("etc/hostname", "h\n"), ("bin/sh", "x")]);
    for kind in ["", "gzip", "zstd"] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let options = CommitOptions {
            reference: Some("mine:1".parse().unwrap()),
            changes: vec!["CMD [\"/bin/sh\"]".parse().unwrap(), "ENV A=1".parse().unwrap()],
            message: Some("hello".to_owned()),
            created: Some("2024-05-06T07:08:09Z".parse().unwrap()),
            platform: Some("linux/amd64".parse().unwrap()),
            ..Default::default()
        };
        let import = || store.import(Input::Stream(Box::new(Cursor::new(compress(&tar, kind)))), &options, &());
        let id = import().unwrap();
        assert_eq!(import().unwrap(), id);
        assert_eq!(store.resolve("mine:1").unwrap(), id);
        let image = store.image(&id).unwrap();
        assert_eq!(image.layers, [DiffId(Digest::of(&tar))]);
        assert_eq!(image.config.config.cmd, Some(vec!["/bin/sh".to_owned()]));
        assert_eq!(image.config.created.as_deref(), Some("2024-05-06T07:08:09Z"));
        let history = store.history(&id).unwrap();
        assert_eq!((history.len(), history[0].comment.as_str(), history[0].size), (1, "hello", 3));
        assert_eq!(merged_paths(&store, &id), ["/bin/sh", "/etc/hostname"]);
        assert_eq!(count(&store, "tmp"), 0);
    }
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let before = snapshot(&store);
    for bad in [b"no tar at all".to_vec(), tar[..700].to_vec(), compress(&tar, "gzip")[..100].to_vec()] {
        store.import(Input::Stream(Box::new(Cursor::new(bad))), &CommitOptions::default(), &()).unwrap_err();
        assert_eq!(snapshot(&store), before);
    }
}

#[test]
fn commit_puts_one_layer_on_an_image() {
    let layers = sample_layers();
    let (_folder, store, base) = loaded(&layers, &["debian:12"]);
    let top = layer(&[("new", "new"), ("srv/.wh.app", "")]);
    let options = CommitOptions {
        reference: Some("mine:2".parse().unwrap()),
        changes: vec![Change::User("daemon".to_owned())],
        author: Some("me".to_owned()),
        created_by: Some("touch new".to_owned()),
        created: Some(Timestamp { seconds: 1, nanoseconds: 0 }),
        ..Default::default()
    };
    let commit = || store.commit_layer(Some(&base), |out: &mut dyn Write| out.write_all(&top), &options);
    let id = commit().unwrap();
    assert_eq!(commit().unwrap(), id, "the same files give the same image");
    let image = store.image(&id).unwrap();
    assert_eq!(image.layers.len(), 4);
    assert_eq!(image.layers[3], DiffId(Digest::of(&top)));
    assert_eq!((image.config.config.user.as_str(), image.config.author.as_deref()), ("daemon", Some("me")));
    assert_eq!(image.config.config.env, store.image(&base).unwrap().config.config.env);
    assert_eq!(store.history(&id).unwrap()[0].created_by, "touch new");
    assert_eq!(merged_paths(&store, &id), ["/bin/tool", "/etc/passwd", "/new"]);
    assert_eq!(merged_paths(&store, &base), ["/bin/tool", "/etc/passwd", "/srv/app"]);

    // A base that is removed takes nothing with it that the new image needs.
    store.remove("debian:12", &RemoveOptions::default()).unwrap();
    assert_eq!(count(&store, "layers"), 4);
    assert!(verify(&store).is_empty());
}

#[test]
fn commit_of_a_writer_that_fails_changes_nothing() {
    let (_folder, store, base) = loaded(&sample_layers(), &["debian:12"]);
    let before = snapshot(&store);
    for size in [0, 10, 3 << 20] {
        let data = &large_layer("x", 4 << 20)[..size];
        let result = store.commit_layer(
            Some(&base),
            |out: &mut dyn Write| {
                out.write_all(data).map_err(|_| "gone")?;
                Err("upper cannot be read")
            },
            &CommitOptions::default(),
        );
        assert!(matches!(result, Err(CommitLayerError::Write("upper cannot be read"))), "{result:?}");
        assert_eq!(snapshot(&store), before);
    }
    let nonsense =
        store.commit_layer(Some(&base), |out: &mut dyn Write| out.write_all(&[7; 8 << 20]), &CommitOptions::default());
    assert!(matches!(&nonsense, Err(CommitLayerError::Commit(_))), "{nonsense:?}");
    assert_eq!(snapshot(&store), before);
}

#[test]
fn commit_on_nothing_makes_a_first_layer() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let top = large_layer("big", 3 << 20);
    let id = store.commit_layer(None, |out: &mut dyn Write| out.write_all(&top), &CommitOptions::default()).unwrap();
    assert_eq!(store.image(&id).unwrap().layers, [DiffId(Digest::of(&top))]);
    let summary = &store.images().unwrap()[0];
    assert!(summary.names.is_empty());
    assert_eq!(summary.size, 3 << 20);
}

#[test]
fn an_image_without_layers_has_an_empty_tree() {
    let (_folder, store, id) = loaded(&[], &["scratch:1"]);
    assert!(merged_paths(&store, &id).is_empty());
    store.gc().unwrap();
    assert_eq!(count(&store, "images"), 1);
    store.remove("scratch:1", &RemoveOptions::default()).unwrap();
    assert_eq!(count(&store, "images"), 0);
}

#[test]
fn a_store_of_the_future_is_read_only_or_refused() {
    let (_folder, store, id) = loaded(&sample_layers(), &["debian:12"]);
    let format = store.root().join("format.json");
    fs::write(&format, r#"{"version":1,"features":{"read-only":["packs"]}}"#).unwrap();
    let store = Store::open(store.root()).unwrap();
    assert_eq!(store.resolve("debian:12").unwrap(), id);
    let error = store.tag("debian:12", &"x:1".parse().unwrap()).unwrap_err().to_string();
    assert_eq!(error, "the store is read-only: it has features of a newer version");
    assert!(store.gc().is_err());
    assert!(load_file(&store, &docker_old(&[], &[]).tar()).is_err());
    assert!(store.remove("debian:12", &RemoveOptions::default()).is_err());
    fs::write(&format, r#"{"version":1,"features":{"refuse":["packs"]}}"#).unwrap();
    let error = Store::open(store.root()).unwrap_err().to_string();
    assert_eq!(error, "the store has features that this program does not know: packs");
}

#[test]
fn the_root_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a/b/store");
    fs::create_dir_all(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&root).unwrap();
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);

    // But a folder that is in use for something else is not taken from its users.
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "").unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&shared).unwrap();
    assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o755);
    for private in ["blobs", "layers", "images", "refs", "leases", "tmp"] {
        assert_eq!(fs::metadata(shared.join(private)).unwrap().permissions().mode() & 0o777, 0o700, "{private}");
    }
}

#[test]
fn a_damaged_list_of_images_is_named() {
    let (_folder, store, _) = loaded(&sample_layers(), &["debian:12"]);
    let path = store.root().join("refs/catalog");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let message = "the list of images (refs/catalog) is damaged or missing";
    assert_eq!(store.images().unwrap_err().to_string(), message);
    assert_eq!(store.gc().unwrap_err().to_string(), message);
    assert_eq!(count(&store, "layers"), 3);
}
