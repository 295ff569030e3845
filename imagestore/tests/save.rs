//! Saving images, and getting the same back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};

use strata_imagestore::{RemoveOptions, Store};
use support::*;

fn save(store: &Store, folder: &Path, names: &[&str]) -> PathBuf {
    let path = folder.join("saved.tar");
    store.save(names, None, &mut File::create(&path).unwrap()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    path
}

#[test]
fn images_have_the_same_identity_after_save_removal_and_load() {
    for kind in ["", "gzip", "zstd"] {
        let folder = fast_folder();
        let store = open(&folder);
        load_stream(&store, &oci(&sample_layers(), kind, "team/app:1").tar()).unwrap();
        store.tag("team/app:1", &"other:2".parse().unwrap()).unwrap();
        let before = names(&store);
        let path = save(&store, folder.path(), &["team/app:1", "other:2"]);
        let first = std::fs::read(&path).unwrap();
        for name in ["team/app:1", "other:2"] {
            store.remove(name, &RemoveOptions::default()).unwrap();
        }
        assert!(store.images().unwrap().is_empty());
        for stream in [false, true] {
            let loaded = if stream { load_stream(&store, &first) } else { load_file(&store, &first) };
            assert_eq!(loaded.unwrap_or_else(|error| panic!("{}", chain(&error))).len(), 2);
            assert_eq!(names(&store), before, "{kind}");
        }
        let second = std::fs::read(save(&store, folder.path(), &["other:2", "team/app:1"])).unwrap();
        assert!(first == second, "{kind}: the same images give another archive");
        check_whole(&store);
    }
}

#[test]
fn a_repository_an_identity_and_a_mistake() {
    let folder = fast_folder();
    let store = open(&folder);
    load_stream(&store, &docker_new(&sample_layers(), "app:1").tar()).unwrap();
    load_stream(&store, &docker_new(&[layer(&[("x", "y")])], "app:2").tar()).unwrap();
    let texts = |path: &Path| -> Vec<String> {
        let fresh = fast_folder();
        let loaded = load_file(&open(&fresh), &std::fs::read(path).unwrap()).unwrap();
        let mut lines: Vec<String> = loaded.iter().map(ToString::to_string).collect();
        lines.sort();
        lines
    };
    let all = save(&store, folder.path(), &["app"]);
    assert_eq!(texts(&all), ["Loaded image: app:1", "Loaded image: app:2"]);
    let id = store.resolve("app:1").unwrap();
    let by_id = save(&store, folder.path(), &[&id.to_string()]);
    assert_eq!(texts(&by_id), [format!("Loaded image ID: {id}")]);
    let error = store.save(&["app:3"], None, &mut File::create("/dev/null").unwrap()).unwrap_err();
    assert_eq!(chain(&error), "No such image: app:3");
}
