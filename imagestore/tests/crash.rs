//! Kills, and many processes at once.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod faults;
#[path = "support/lazy_blobs.rs"]
mod lazy_blobs;
#[path = "support/put.rs"]
mod put;
mod shared;
mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use strata_imagestore::{CommitOptions, ImageError, Input, RemoveError, RemoveOptions, StackError, Store};
use support::*;

fn spawn(test: &str, store: &Path, archive: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("STRATA_TEST_STORE", store)
        .env("STRATA_TEST_ARCHIVE", archive)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn child_paths() -> (PathBuf, PathBuf) {
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    (path("STRATA_TEST_STORE"), path("STRATA_TEST_ARCHIVE"))
}

#[test]
#[ignore = "the child of killed_load_is_all_or_nothing"]
fn child_that_loads() {
    let (store, archive) = child_paths();
    Store::open(&store).unwrap().load(Input::Path(archive), &options(), &()).unwrap();
}

#[test]
fn killed_load_is_all_or_nothing() {
    let folder = fast_folder();
    let store = open(&folder);
    load_file(&store, &docker_old(&sample_layers(), &["kept:1"]).tar()).unwrap();
    let mut members = Members::default();
    let mut images = Vec::new();
    for number in 0..4 {
        let layers = [large_layer(&format!("big{number}"), 3 << 20), layer(&[("small", &number.to_string())])];
        images.push(named(oci_image(&mut members, &layers, ""), &format!("new:{number}")));
    }
    let archive = folder.path().join("archive.tar");
    fs::write(&archive, oci_layout(members, &images).tar()).unwrap();

    let before = names(&store);
    let remove_new = |store: &Store| {
        for number in 0..4 {
            store.remove(&format!("new:{number}"), &RemoveOptions::default()).unwrap();
        }
    };
    // How long a load takes on this machine, today.
    let start = Instant::now();
    assert!(spawn("child_that_loads", store.root(), &archive).wait().unwrap().success());
    let whole = start.elapsed();
    let after = names(&store);
    assert_eq!(after.len(), before.len() + 4);
    remove_new(&store);

    let (mut killed, mut completed) = (0, 0);
    for step in 0..80 {
        let mut child = spawn("child_that_loads", store.root(), &archive);
        std::thread::sleep(whole.mul_f64(f64::from(step) / 70.0));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(store.root()).unwrap();
        let now = names(&store);
        if now == before {
            killed += 1;
        } else {
            assert_eq!(now, after, "a part of the images is visible");
            completed += 1;
            check_whole(&store);
            remove_new(&store);
        }
        check_whole(&store);
    }
    assert!(killed > 10, "{killed} killed, {completed} completed");
}

#[test]
#[ignore = "the child of killed_work_leaves_a_whole_store"]
fn child_that_works() {
    let (store, archive) = child_paths();
    let store = Store::open(&store).unwrap();
    for number in 0.. {
        let id = store.load(Input::Path(archive.clone()), &options(), &()).unwrap()[0].id;
        store.tag("work:1", &format!("tag{}:1", number % 3).parse().unwrap()).unwrap();
        drop(store.stack(&id).unwrap());
        let top = layer(&[("number", &number.to_string())]);
        let named = CommitOptions { reference: Some("commit:1".parse().unwrap()), ..Default::default() };
        let id = store.commit_layer(Some(&id), |out: &mut dyn Write| out.write_all(&top), &named).unwrap();
        drop(store.stack(&id).unwrap());
        for image in store.images().unwrap() {
            store.remove(&image.id.to_string(), &RemoveOptions { force: true, ..Default::default() }).unwrap();
        }
        store.gc().unwrap();
    }
}

#[test]
fn killed_work_leaves_a_whole_store() {
    let folder = fast_folder();
    let archive = folder.path().join("archive.tar");
    fs::write(&archive, oci(&sample_layers(), "gzip", "work:1").tar()).unwrap();
    let root = folder.path().join("store");
    for step in 0..60 {
        let mut child = spawn("child_that_works", &root, &archive);
        std::thread::sleep(Duration::from_micros(10_000 + 977 * step));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&root).unwrap();
        for image in store.images().unwrap() {
            drop(store.stack(&image.id).unwrap());
        }
        check_whole(&store);
    }
}

#[test]
fn many_at_once_never_lose_what_is_used() {
    let folder = fast_folder();
    let root = folder.path().join("store");
    let layers = sample_layers();
    let archives: Vec<PathBuf> = (1..=3)
        .map(|count| {
            let path = folder.path().join(format!("{count}.tar"));
            let kind = ["", "gzip", "zstd"][count - 1];
            fs::write(&path, oci(&layers[..count], kind, &format!("image{count}:1")).tar()).unwrap();
            path
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for archive in &archives {
            scope.spawn(|| {
                while Instant::now() < end {
                    let store = Store::open(&root).unwrap();
                    let loaded = store.load(Input::Path(archive.clone()), &options(), &());
                    loaded.unwrap_or_else(|error| panic!("{}", chain(&error)));
                }
            });
        }
        scope.spawn(|| {
            let store = Store::open(&root).unwrap();
            for number in (1..=3).cycle() {
                if Instant::now() > end {
                    return;
                }
                match store.remove(&format!("image{number}:1"), &RemoveOptions::default()) {
                    Ok(_) | Err(RemoveError::Image(ImageError::NoSuchImage { .. })) => {}
                    Err(error) => panic!("{}", chain(&error)),
                }
                store.gc().unwrap();
            }
        });
        for number in 2..=3 {
            let (root, layers) = (&root, &layers);
            scope.spawn(move || {
                let store = Store::open(root).unwrap();
                let mut mounted = 0;
                while Instant::now() < end {
                    let stack = match store.resolve(&format!("image{number}:1")).map(|id| store.stack(&id)) {
                        Err(ImageError::NoSuchImage { .. }) | Ok(Err(StackError::NoSuchImage { .. })) => continue,
                        result => result.unwrap().unwrap_or_else(|error| panic!("{}", chain(&error))),
                    };
                    for _ in 0..5 {
                        for (paths, layer) in stack.layers.iter().zip(layers) {
                            assert_eq!(&fs::read(&paths.tar).unwrap(), layer);
                            assert!(paths.index.exists() && stack.index.exists());
                        }
                        std::thread::yield_now();
                    }
                    mounted += 1;
                }
                assert!(mounted > 5);
            });
        }
    });
    check_whole(&Store::open(&root).unwrap());
}
