//! Images that are used before they are here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use strata_imagestore::{EventsFrom, Fetcher, ImageId, LazyLayer, Start};
use strata_layer::index::{Index, Kind, NodeId};
use strata_layer::{DiffId, Digest};

use super::*;
use crate::lazy_blobs::{Blob, chunked, stargz, varied_tar};

/// Pushes an image of these blobs by hand.
fn put_image(scene: &Scene, blobs: &[Blob]) -> ImageId {
    let image = scene.team_app().put_image("1", blobs);
    scene.server.exchanges();
    image
}

fn pull_early(scene: &Scene, store: &Store) -> Result<Pulled, RegistryError> {
    let options = PullOptions { start: Start::Early, ..PullOptions::default() };
    store.pull(&scene.client(), &scene.name("team/app:1"), &options, &())
}

/// Puts an image and pulls it early.
fn early(scene: &Scene, blobs: &[Blob]) -> (ImageId, Store) {
    let image = put_image(scene, blobs);
    let store = scene.store("early");
    pull_early(scene, &store).unwrap();
    (image, store)
}

/// Fetches in a thread of this process, which the test does not wait for.
fn fetch(scene: &Scene, store: &Store) {
    let (store, client) = (Store::open(store.root()).unwrap(), scene.client());
    std::thread::spawn(move || Fetcher::new(store, client).run());
}

fn open_layer(store: &Store, layer: DiffId) -> Option<LazyLayer> {
    // Whoever reads starts the process that fetches: not in a test.
    LazyLayer::open(store.root(), layer, |_| Ok(())).unwrap().map(|layer| layer.with_deadline(Duration::from_secs(10)))
}

/// Every file of an image with its content, read through what stands in for the tars.
fn contents(store: &Store, image: &ImageId) -> Vec<(String, Vec<u8>)> {
    let stack = store.stack(image).unwrap();
    let index = Index::open(&std::fs::File::open(&stack.index).unwrap()).unwrap();
    let sources: Vec<_> = stack.layers.iter().map(|layer| open_layer(store, layer.diff_id)).collect();
    let mut found = Vec::new();
    let mut folders = vec![(NodeId::ROOT, String::new())];
    while let Some((folder, path)) = folders.pop() {
        for child in index.children(folder) {
            let path = format!("{path}/{}", String::from_utf8_lossy(child.name));
            let mut bytes = Vec::new();
            for extent in index.extents(child.node) {
                let mut piece = vec![0; usize::try_from(extent.length).unwrap()];
                let number = usize::from(extent.layer);
                match &sources[number] {
                    Some(source) => source.read_exact_at(&mut piece, extent.source).unwrap(),
                    None => {
                        let tar = std::fs::File::open(&stack.layers[number].tar).unwrap();
                        std::os::unix::fs::FileExt::read_exact_at(&tar, &mut piece, extent.source).unwrap();
                    }
                }
                bytes.extend(piece);
            }
            if child.kind == Kind::Directory {
                folders.push((child.node, path.clone()));
            }
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

fn wait_until_whole(store: &Store, image: &ImageId) {
    let layers = store.image(image).unwrap().layers;
    let end = Instant::now() + Duration::from_secs(30);
    let settled = || layers.iter().all(|layer| !store.root().join("layers").join(layer.0.hex()).join("lazy").exists());
    while !settled() {
        let progress = store.lazy_progress(&layers).unwrap();
        assert!(Instant::now() < end, "{progress:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The two kinds of blob with a table of contents, of one layer.
fn blobs(seed: u64) -> [Blob; 2] {
    let tar = varied_tar(seed, 40);
    [stargz(&tar, 1 << 16), chunked(&tar, 1 << 16)]
}

#[test]
fn layers_with_tables_of_contents_are_read_before_they_are_here_and_become_ordinary() {
    for blob in blobs(5) {
        let scene = Scene::new(&sample_layers());
        let base = Blob {
            bytes: compress(&layer(&[("base", "small")]), "gzip"),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
            annotations: Default::default(),
            tar: layer(&[("base", "small")]),
        };
        let (size, tar) = (blob.bytes.len() as u64, blob.tar.clone());
        let kind = blob.media_type;
        let image = put_image(&scene, &[base, blob]);
        let whole = scene.store("whole");
        scene.pull(&whole).unwrap();
        let expected = contents(&whole, &image);
        scene.server.exchanges();

        let store = scene.store("early");
        let pulled = pull_early(&scene, &store).unwrap();
        assert!(pulled.early && pulled.id == image, "{kind}");
        let sent: u64 = scene.blob_requests().iter().map(|exchange| exchange.sent).sum();
        assert!(sent < size / 4, "{kind}: {sent} of {size}");
        assert!(store.images().unwrap()[0].lazy.is_some());
        assert!(check_store(&store).is_empty());
        fetch(&scene, &store);
        assert!(contents(&store, &image) == expected, "{kind}: other contents");
        wait_until_whole(&store, &image);
        let layers = store.image(&image).unwrap().layers;
        let path = store.root().join("layers").join(layers[1].0.hex()).join("tar");
        assert!(std::fs::read(path).unwrap() == tar, "{kind}: another tar");
        assert!(store.images().unwrap()[0].lazy.is_none());
        check_whole(&store);
        scene.misbehave("GET /v2/* reset");
        assert!(contents(&store, &image) == expected, "{kind}: the registry is gone");
    }
}

/// Where a file of `varied_tar` lies that has some chunks.
fn some_file(store: &Store, image: &ImageId) -> strata_layer::index::Extent {
    let stack = store.stack(image).unwrap();
    let index = Index::open(&std::fs::File::open(&stack.index).unwrap()).unwrap();
    let etc = index.lookup(NodeId::ROOT, b"etc").unwrap();
    index.extents(index.lookup(etc, b"13").unwrap()).next().unwrap()
}

fn check_store(store: &Store) -> Vec<strata_imagestore::Finding> {
    store.gc().unwrap();
    verify(store)
}

#[test]
fn our_index_is_found_as_a_referrer_with_and_without_the_api() {
    for (format, api) in
        [(CompressionFormat::Gzip, true), (CompressionFormat::Zstd, false), (CompressionFormat::None, true)]
    {
        let scene = Scene::new(&[varied_tar(9, 40), large_layer("data", 5 << 20)]);
        if !api {
            scene.misbehave("GET /v2/*/referrers/* status=404");
            scene.misbehave("PUT /v2/*/manifests/* without=oci-subject");
        }
        let name = scene.name("team/app:1");
        let options = PushOptions { format: Some(format), with_index: true };
        let pushed = scene.source.push(&scene.client(), &name, &options, &()).unwrap();
        let found = scene.client().referrers(&name, None, &()).unwrap();
        assert_eq!(found.len(), 1, "{format:?}");
        // Once more, with everything there already: the same index is not listed twice.
        scene.source.push(&scene.client(), &name, &options, &()).unwrap();
        assert_eq!(scene.client().referrers(&name, None, &()).unwrap(), found);
        let nothing = scene.client().referrers(&name, Some("application/x-other"), &()).unwrap();
        assert!(nothing.is_empty());

        let store = scene.store("early");
        let pulled = pull_early(&scene, &store).unwrap();
        assert!(pulled.early, "{format:?}");
        fetch(&scene, &store);
        assert!(contents(&store, &pulled.id) == contents(&scene.source, &pulled.id), "{format:?}");
        wait_until_whole(&store, &pulled.id);
        check_whole(&store);
        // Whoever named a digest did not mean what others say about it.
        let by_digest = name.with_digest(pushed.digest);
        let options = PullOptions { start: Start::Early, ..PullOptions::default() };
        let store = scene.store("by-digest");
        assert!(!store.pull(&scene.client(), &by_digest, &options, &()).unwrap().early);
    }
}

#[test]
fn what_comes_wrong_or_not_at_all_is_an_error_and_nothing_is_kept_of_it() {
    for blob in blobs(21) {
        let scene = Scene::new(&sample_layers());
        let (image, store) = early(&scene, &[blob]);
        let layers = store.image(&image).unwrap().layers;
        scene.misbehave("GET /v2/*/blobs/* flip=100");
        fetch(&scene, &store);
        let extent = some_file(&store, &image);
        let layer = open_layer(&store, layers[0]).unwrap();
        let mut bytes = vec![0; usize::try_from(extent.length).unwrap()];
        let error = layer.read_exact_at(&mut bytes, extent.source).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        let progress = store.lazy_progress(&layers).unwrap().unwrap();
        assert!(progress.failure.is_some_and(|failure| failure.contains("digest") || failure.contains("decompress")));
        // Silence is not for ever, either.
        scene.server.behave();
        scene.misbehave("GET /v2/*/blobs/* stall=0:30");
        let layer = layer.with_deadline(Duration::from_millis(300));
        let begun = Instant::now();
        let result = layer.read_exact_at(&mut bytes, extent.source);
        assert!(result.is_err() || layer.is_here(extent.source, extent.length));
        assert!(begun.elapsed() < Duration::from_secs(5));
        // And then all is well again.
        scene.server.behave();
        let layer = layer.with_deadline(Duration::from_secs(20));
        layer.read_exact_at(&mut bytes, extent.source).unwrap();
        wait_until_whole(&store, &image);
        check_whole(&store);
    }
}

#[test]
fn a_failure_is_told_once_whoever_fetches() {
    let told = |store: &Store| {
        let events = store.events(EventsFrom::Beginning).unwrap().read().unwrap();
        events.iter().filter(|event| event.action == "fetch_failed").count()
    };
    let [blob, _] = blobs(62);
    let scene = Scene::new(&sample_layers());
    let (_, store) = early(&scene, &[blob]);
    scene.misbehave("GET /v2/*/blobs/* flip=100");
    fetch(&scene, &store);
    let end = Instant::now() + Duration::from_secs(20);
    while told(&store) == 0 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(20));
    }
    let copy = scene.folder.path().join("copy");
    copy_folder(store.root(), &copy);
    std::fs::remove_dir_all(copy.join("fetcher")).unwrap();
    let copy = Store::open(&copy).unwrap();
    fetch(&scene, &copy);
    let failures = || std::fs::read_to_string(copy.root().join("fetcher/log")).unwrap_or_default().lines().count();
    while failures() < 2 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(told(&copy), 1);
}

#[test]
fn a_table_that_lies_is_found_out_and_nothing_is_served_any_more() {
    // The blob of one layer with the diff_id of another.
    for mut blob in blobs(33) {
        let scene = Scene::new(&sample_layers());
        let at = blob.tar.len() - 1;
        blob.tar[at] ^= 1;
        let (image, store) = early(&scene, &[blob]);
        let extent = some_file(&store, &image);
        fetch(&scene, &store);
        let layers = store.image(&image).unwrap().layers;
        let end = Instant::now() + Duration::from_secs(20);
        let failure = loop {
            let failure = store.lazy_progress(&layers).unwrap().and_then(|progress| progress.failure);
            if let Some(failure) = failure {
                break failure;
            }
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(failure.contains("turned out to have the digest"), "{failure}");
        let layer = open_layer(&store, layers[0]).unwrap();
        assert!(!layer.is_whole());
        assert!(layer.read_exact_at(&mut [0], extent.source).is_err());
        assert!(!store.root().join("layers").join(layers[0].0.hex()).join("tar").exists());
        assert!(store.lazy_progress(&layers).unwrap().unwrap().refused);
        // Nobody has to find it out again.
        assert!(store.stack(&image).unwrap_err().to_string().contains("is not what its table of contents said"));
        assert!(verify(&store)[0].problem.contains("is not what its table of contents said"));
        let copy = scene.folder.path().join("copy");
        copy_folder(store.root(), &copy);
        let copy = Store::open(&copy).unwrap();
        fetch(&scene, &copy);
        let layer = open_layer(&copy, layers[0]).unwrap().with_deadline(Duration::from_secs(3));
        assert!(layer.read_exact_at(&mut [0], extent.source).is_err());
        // The next pull takes the whole layer, which is another one here.
        let error = pull_early(&scene, &store).unwrap_err();
        assert!(matches!(error, RegistryError::DiffId { .. }), "{error:?}");
    }
}

#[test]
fn a_layer_that_is_removed_and_pulled_again_is_another_one() {
    for blob in blobs(57) {
        let scene = Scene::new(&sample_layers());
        let image = put_image(&scene, &[blob]);
        let whole = scene.store("whole");
        scene.pull(&whole).unwrap();
        let expected = contents(&whole, &image);
        let store = scene.store("early");
        pull_early(&scene, &store).unwrap();
        let layers = store.image(&image).unwrap().layers;
        let extent = some_file(&store, &image);
        let before = open_layer(&store, layers[0]).unwrap();
        scene.misbehave("GET /v2/*/blobs/* skip=1 reset");
        fetch(&scene, &store);
        let end = Instant::now() + Duration::from_secs(20);
        while store.lazy_progress(&layers).unwrap().unwrap().here == 0 {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        store.remove(&scene.name("team/app:1").to_string(), &Default::default()).unwrap();
        scene.server.behave();
        pull_early(&scene, &store).unwrap();
        assert!(contents(&store, &image) == expected);
        wait_until_whole(&store, &image);
        check_whole(&store);
        assert!(contents(&store, &image) == expected);
        // What was opened before has what came before, and no zeros.
        let mut bytes = vec![0; usize::try_from(extent.length).unwrap()];
        let mut after = bytes.clone();
        if before.read_exact_at(&mut bytes, extent.source).is_ok() && extent.source < 1 << 56 {
            let tar = std::fs::File::open(store.stack(&image).unwrap().layers[0].tar.clone()).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&tar, &mut after, extent.source).unwrap();
            assert!(bytes == after);
        }
    }
}

#[test]
fn what_a_power_cut_has_left_is_compared_before_it_is_served() {
    for blob in blobs(58) {
        let scene = Scene::new(&sample_layers());
        let image = put_image(&scene, &[blob]);
        let whole = scene.store("whole");
        scene.pull(&whole).unwrap();
        let store = scene.store("early");
        pull_early(&scene, &store).unwrap();
        // The chunks count as being there, and none has reached the disk.
        let layer = store.image(&image).unwrap().layers[0];
        let lazy = store.root().join("layers").join(layer.0.hex()).join("lazy");
        let count = std::fs::metadata(lazy.join("have")).unwrap().len();
        std::fs::write(lazy.join("have"), vec![1; usize::try_from(count).unwrap()]).unwrap();
        std::fs::write(lazy.join("boot"), "another").unwrap();
        fetch(&scene, &store);
        assert!(contents(&store, &image) == contents(&whole, &image));
        wait_until_whole(&store, &image);
        check_whole(&store);
    }
}

#[test]
fn an_index_that_a_kill_has_left_beside_is_no_damage_and_put_in_place() {
    let [blob, _] = blobs(60);
    let scene = Scene::new(&sample_layers());
    let (image, store) = early(&scene, &[blob]);
    let layer = store.root().join("layers").join(store.image(&image).unwrap().layers[0].0.hex());
    let before = std::fs::read(layer.join("index")).unwrap();
    fetch(&scene, &store);
    wait_until_whole(&store, &image);
    let after = std::fs::read(layer.join("index")).unwrap();
    assert!(before != after);
    std::fs::rename(layer.join("index"), layer.join("index.next")).unwrap();
    std::fs::write(layer.join("index"), before).unwrap();
    for depth in [strata_imagestore::Depth::Whole, strata_imagestore::Depth::Quick] {
        let options = strata_imagestore::FsckOptions { depth, mend: strata_imagestore::Mend::Nothing };
        let findings = store.fsck(&options, &()).unwrap().findings;
        assert!(findings.is_empty(), "{findings:?}");
    }
    // One that is damaged is made again where it lies.
    let mut damaged = after.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(layer.join("index.next"), damaged).unwrap();
    let (depth, mend) = (strata_imagestore::Depth::Quick, strata_imagestore::Mend::Caches);
    let report = store.fsck(&strata_imagestore::FsckOptions { depth, mend }, &()).unwrap();
    assert!(report.findings.len() == 1 && report.is_whole(), "{report:?}");
    assert!(std::fs::read(layer.join("index.next")).unwrap() == after);
    drop(store.stack(&image).unwrap());
    assert!(std::fs::read(layer.join("index")).unwrap() == after && !layer.join("index.next").exists());
    check_whole(&store);
}

#[test]
fn an_index_without_its_tar_takes_nothing_away() {
    let [blob, _] = blobs(61);
    let scene = Scene::new(&sample_layers());
    let (image, store) = early(&scene, &[blob]);
    let layer = store.root().join("layers").join(store.image(&image).unwrap().layers[0].0.hex());
    // As a kill leaves it that comes before the tar is in its place.
    std::fs::copy(layer.join("index"), layer.join("index.next")).unwrap();
    drop(store.stack(&image).unwrap());
    assert!(layer.join("lazy/map").exists() && layer.join("index").exists());
    fetch(&scene, &store);
    wait_until_whole(&store, &image);
    check_whole(&store);
}

#[test]
fn a_damaged_map_is_no_whole_layer() {
    let [blob, _] = blobs(59);
    let scene = Scene::new(&sample_layers());
    let (image, store) = early(&scene, &[blob]);
    let layer = store.image(&image).unwrap().layers[0];
    let map = store.root().join("layers").join(layer.0.hex()).join("lazy/map");
    let mut bytes = std::fs::read(&map).unwrap();
    bytes[80] ^= 1;
    std::fs::write(&map, bytes).unwrap();
    assert!(LazyLayer::open(store.root(), layer, |_| Ok(())).is_err());
    assert!(store.images().unwrap()[0].lazy.as_ref().unwrap().refused);
    let findings = verify(&store);
    assert!(findings.len() == 1 && findings[0].problem.contains("map"), "{findings:?}");
    let mend = strata_imagestore::Mend::Everything(Some(&scene.client()));
    let options = strata_imagestore::FsckOptions { depth: strata_imagestore::Depth::Whole, mend };
    assert!(store.fsck(&options, &()).unwrap().is_whole());
    check_whole(&store);
    assert!(store.images().unwrap()[0].lazy.is_none());
}

#[test]
fn tables_that_make_no_sense_are_passed_over() {
    let tar = varied_tar(3, 20);
    let spoil = |blob: Blob, name: &str, value: &str| {
        let mut blob = blob;
        blob.annotations.insert(name.to_owned(), value.to_owned());
        blob
    };
    let other = Digest::of(b"other").to_string();
    let prefix = "io.github.containers.zstd-chunked";
    for blob in [
        spoil(stargz(&tar, 1 << 16), "containerd.io/snapshot/stargz/toc.digest", &other),
        spoil(chunked(&tar, 1 << 16), &format!("{prefix}.manifest-checksum"), &other),
        spoil(chunked(&tar, 1 << 16), &format!("{prefix}.manifest-position"), "0:100:100:1"),
        spoil(chunked(&tar, 1 << 16), &format!("{prefix}.tarsplit-position"), "10:99999999999:1"),
    ] {
        let scene = Scene::new(&sample_layers());
        put_image(&scene, &[blob]);
        let store = scene.store("early");
        assert!(!pull_early(&scene, &store).unwrap().early);
        check_whole(&store);
    }
}

#[test]
fn a_fetcher_that_is_started_again_fetches_only_the_rest() {
    for blob in blobs(77) {
        let scene = Scene::new(&sample_layers());
        let size = blob.bytes.len() as u64;
        let (image, store) = early(&scene, &[blob]);
        scene.server.exchanges();
        let layers = store.image(&image).unwrap().layers;
        // What was here, and its state on the disk, is taken over by another store at another place.
        scene.misbehave("GET /v2/*/blobs/* skip=1 reset");
        fetch(&scene, &store);
        let end = Instant::now() + Duration::from_secs(20);
        while store.lazy_progress(&layers).unwrap().unwrap().here < size / 100 {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(20));
        }
        let before: u64 = scene.blob_requests().iter().map(|exchange| exchange.sent).sum();
        let copy = scene.folder.path().join("copy");
        copy_folder(store.root(), &copy);
        std::fs::remove_dir_all(copy.join("fetcher")).unwrap();
        let copy = Store::open(&copy).unwrap();
        scene.server.behave();
        scene.server.misbehave("GET /v2/*/manifests/* reset".parse::<Fault>().unwrap());
        // The first one goes on as well: only the second one's image counts here.
        fetch(&scene, &copy);
        wait_until_whole(&copy, &image);
        assert!(before < size, "{before} of {size} had come before");
        check_whole(&copy);
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy_folder(&entry.path(), &target),
            kind if kind.is_file() => drop(std::fs::copy(entry.path(), &target).unwrap()),
            _ => {}
        }
    }
}

#[test]
fn one_fetcher_serves_all_readers_of_a_store_and_no_byte_comes_twice() {
    let blob = chunked(&varied_tar(50, 60), 1 << 15);
    let scene = Scene::new(&sample_layers());
    let size = blob.bytes.len() as u64;
    let (image, store) = early(&scene, &[blob]);
    scene.server.exchanges();
    for _ in 0..3 {
        fetch(&scene, &store);
    }
    let store = Arc::new(store);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| contents(&store, &image));
        }
    });
    wait_until_whole(&store, &image);
    let sent: u64 = scene.blob_requests().iter().map(|exchange| exchange.sent).sum();
    assert!(sent < size + size / 10, "{sent} of {size}");
}
