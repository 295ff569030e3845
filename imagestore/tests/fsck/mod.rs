//! Damage is found, named, and made good: caches from what they were made of, all else from the registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strata_imagestore::{
    CompressionFormat, Depth, Finding, FsckOptions, FsckReport, Leftovers, Mend, Outcome, PullOptions, RegistryClient,
    RegistrySettings, RemoveOptions, Store,
};
use strata_layer::objects;

use super::Scene;
use crate::support::*;

fn fsck(store: &Store, depth: Depth, mend: Mend<'_>) -> FsckReport {
    store.fsck(&FsckOptions { depth, mend }, &()).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn flip(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 4;
    // Another file, as a mount may have the old one mapped.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A store with a pulled image, all caches made, and what lies in it.
struct Pulled {
    scene: Scene,
    store: Store,
    tars: Vec<PathBuf>,
    merged: PathBuf,
}

fn pulled() -> Pulled {
    let scene = Scene::new(&sample_layers());
    scene.push_as(CompressionFormat::Gzip);
    let store = scene.store("other");
    let id = scene.pull(&store).unwrap().id;
    let stack = store.stack(&id).unwrap();
    let tars = stack.layers.iter().map(|layer| layer.tar.clone()).collect();
    let merged = stack.index.clone();
    drop(stack);
    let pulled = Pulled { scene, store, tars, merged };
    pulled.make_caches();
    pulled
}

impl Pulled {
    /// Makes what only users of passthrough make, and what only a pull writes.
    fn make_caches(&self) {
        for layer in 0..self.tars.len() {
            let file = fs::File::open(self.beside_tar(layer, "index")).unwrap();
            let index = strata_layer::index::Index::open(&file).unwrap();
            fs::write(self.beside_tar(layer, "objects"), objects::table_of(&index).unwrap()).unwrap();
        }
    }

    /// Everything that lies in the store, without what only says when it was looked at.
    fn content(&self) -> Vec<(String, strata_layer::Digest)> {
        let ignored = |name: &str| name.ends_with("/checked") || name.starts_with("quarantine/");
        snapshot(&self.store).into_iter().filter(|(name, _)| !ignored(name)).collect()
    }

    fn beside_tar(&self, layer: usize, name: &str) -> PathBuf {
        self.tars[layer].with_file_name(name)
    }

    fn blobs_of(&self, image: &strata_imagestore::ImageId) -> PathBuf {
        self.store.root().join("blobs/sha256").join(image.0.hex())
    }

    fn blobs(&self) -> (PathBuf, PathBuf) {
        let image = &self.store.images().unwrap()[0];
        let blob = |digest: strata_layer::Digest| self.store.root().join("blobs/sha256").join(digest.hex());
        (blob(image.id.0), blob(image.manifest))
    }
}

fn only(report: &FsckReport) -> &Finding {
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    &report.findings[0]
}

/// A kind of damage: its name, the file, how it is damaged, and what is said of it.
type Damage<'a> = (&'a str, PathBuf, &'a dyn Fn(&Path), &'a [&'a str]);

#[test]
fn every_kind_of_damage_is_found_named_and_repaired() {
    let pulled = pulled();
    let store = &pulled.store;
    let client = pulled.scene.client();
    let before = pulled.content();
    let report = fsck(store, Depth::Whole, Mend::Nothing);
    assert!(report.findings.is_empty() && report.layers == 3 && report.read == 3, "{report:#?}");
    let (config, manifest) = pulled.blobs();
    let chain_list = pulled.merged.with_file_name("layers");
    let cases: [Damage<'_>; 12] = [
        ("layer", pulled.tars[0].clone(), &|tar| flip(tar, 600), &["its tar has the digest"]),
        ("layer", pulled.tars[1].clone(), &|tar| flip(tar, 3), &["its tar is no layer any more", "has the digest"]),
        ("layer", pulled.tars[2].clone(), &|tar| fs::remove_file(tar).unwrap(), &["its tar is missing"]),
        ("layer", pulled.tars[0].clone(), &|tar| fs::write(tar, "").unwrap(), &["its tar has the digest"]),
        ("config", config.clone(), &|blob| flip(blob, 9), &["is damaged on disk"]),
        ("config", config, &|blob| fs::remove_file(blob).unwrap(), &["is missing from the store"]),
        ("manifest", manifest, &|blob| flip(blob, 20), &["is damaged on disk"]),
        ("layer-index", pulled.beside_tar(0, "index"), &|index| flip(index, 250), &["it is not what the tar gives"]),
        ("merged-index", pulled.merged.clone(), &|index| flip(index, 250), &["it is not what the layers give"]),
        ("objects", pulled.beside_tar(0, "objects"), &|table| flip(table, 1700), &["it is not what the index gives"]),
        ("notes", pulled.beside_tar(0, "blob"), &|note| fs::write(note, "x").unwrap(), &["cannot be read"]),
        ("stack-list", chain_list, &|list| fs::write(list, "").unwrap(), &["it lists other layers"]),
    ];
    for (kind, path, damage, problems) in cases {
        pulled.make_caches();
        damage(&path);
        let damaged = snapshot(store);
        let report = fsck(store, Depth::Whole, Mend::Nothing);
        let finding = only(&report);
        assert_eq!(finding.subject.kind(), kind);
        assert!(problems.iter().any(|problem| finding.problem.contains(problem)), "{kind}: {finding:?}");
        assert!(finding.images.iter().any(|name| name.ends_with("/team/app:1")), "{finding:?}");
        assert_eq!(finding.outcome, Outcome::Left);
        let same: Vec<_> = snapshot(store).into_iter().filter(|(name, _)| !name.ends_with("/checked")).collect();
        let damaged: Vec<_> = damaged.into_iter().filter(|(name, _)| !name.ends_with("/checked")).collect();
        assert_eq!(same, damaged, "{kind}: a check that may not change anything did");

        let report = fsck(store, Depth::Whole, Mend::Everything(Some(&client)));
        assert!(only(&report).is_repaired(), "{:?}", report.findings);
        assert!(report.is_whole());
        let report = fsck(store, Depth::Whole, Mend::Nothing);
        assert!(report.findings.is_empty(), "{kind}: {:#?}", report.findings);
        // What is a cache may be left to whoever needs it.
        let cache = |name: &String| name.ends_with("/objects") || name.ends_with("/blob");
        let is: Vec<_> = pulled.content().into_iter().filter(|(name, _)| !cache(name)).collect();
        let was: Vec<_> = before.iter().filter(|(name, _)| !cache(name)).cloned().collect();
        assert_eq!(is, was, "{kind}");
        let id = store.images().unwrap()[0].id;
        drop(store.stack(&id).unwrap());
    }
    let quarantine = || fs::read_dir(store.root().join("quarantine")).map_or(0, Iterator::count);
    assert!(quarantine() >= 5);
    store.gc().unwrap();
    assert!(quarantine() >= 5);
    store.gc_with(Leftovers::All).unwrap();
    assert_eq!(quarantine(), 0);
}

#[test]
fn a_quick_check_reads_no_tar_and_finds_everything_else() {
    let pulled = pulled();
    let store = &pulled.store;
    flip(&pulled.tars[0], 600);
    let report = fsck(store, Depth::Quick, Mend::Nothing);
    assert!(report.findings.is_empty() && report.read == 0, "{report:#?}");
    fs::write(&pulled.tars[0], "short").unwrap();
    let report = fsck(store, Depth::Quick, Mend::Nothing);
    assert!(only(&report).problem.starts_with("its tar has 5 bytes instead of"), "{report:#?}");
    fsck(store, Depth::Quick, Mend::Everything(Some(&pulled.scene.client())));
    flip(&pulled.beside_tar(1, "index"), 220);
    let report = fsck(store, Depth::Quick, Mend::Caches);
    assert!(only(&report).is_repaired(), "{report:#?}");
    assert!(fsck(store, Depth::Whole, Mend::Nothing).findings.is_empty());
}

#[test]
fn layers_are_read_again_when_their_time_has_come() {
    let pulled = pulled();
    let hour = Depth::NotCheckedFor(Duration::from_secs(3600));
    assert_eq!(fsck(&pulled.store, hour, Mend::Nothing).read, 3);
    assert_eq!(fsck(&pulled.store, hour, Mend::Nothing).read, 0);
    let marker = fs::File::options().write(true).open(pulled.beside_tar(1, "checked")).unwrap();
    marker.set_modified(std::time::SystemTime::now() - Duration::from_secs(4000)).unwrap();
    assert_eq!(fsck(&pulled.store, hour, Mend::Nothing).read, 1);
}

#[test]
fn what_no_registry_has_is_put_aside_and_comes_back_with_a_pull() {
    let pulled = pulled();
    let store = &pulled.store;
    flip(&pulled.tars[0], 600);
    let nobody =
        RegistryClient::new(RegistrySettings { timeouts: pulled.scene.settings().timeouts, ..Default::default() });
    pulled.scene.misbehave("GET /v2/*/blobs/* status=404");
    let report = fsck(store, Depth::Whole, Mend::Everything(Some(&nobody)));
    assert!(matches!(&only(&report).outcome, Outcome::Lost(why) if why.contains("team/app@sha256:")), "{report:#?}");
    assert!(!report.is_whole());
    // Nothing of it is served, and it is still known what is missing.
    let id = store.images().unwrap()[0].id;
    assert!(store.stack(&id).unwrap_err().to_string().contains("is missing from the store"));
    assert_eq!(only(&fsck(store, Depth::Whole, Mend::Nothing)).problem, "its tar is missing");
    pulled.scene.server.behave();
    let name = pulled.scene.name("team/app:1");
    store.pull(&pulled.scene.client(), &name, &PullOptions::default(), &()).unwrap();
    drop(store.stack(&id).unwrap());
    assert!(fsck(store, Depth::Whole, Mend::Nothing).findings.is_empty());
}

#[test]
fn an_image_that_no_registry_is_known_to_have_says_so() {
    let folder = fast_folder();
    let store = open(&folder);
    let id = load_stream(&store, &docker_new(&sample_layers(), "own:1").tar()).unwrap()[0].id;
    let image = store.image(&id).unwrap();
    let manifest = store.root().join("blobs/sha256").join(image.manifest.hex());
    fs::write(&manifest, "{}").unwrap();
    let client = RegistryClient::new(RegistrySettings::default());
    let report = fsck(&store, Depth::Whole, Mend::Everything(Some(&client)));
    assert!(matches!(&only(&report).outcome, Outcome::Repaired(how) if how.starts_with("written anew")), "{report:#?}");
    assert_eq!(merged_paths(&store, &id).len(), 3);
    check_whole(&store);
    flip(&store.stack(&id).unwrap().layers[0].tar, 600);
    let report = fsck(&store, Depth::Whole, Mend::Everything(Some(&client)));
    assert!(
        matches!(&only(&report).outcome, Outcome::Lost(why) if why.starts_with("no registry is known")),
        "{report:#?}"
    );
    load_stream(&store, &docker_new(&sample_layers(), "own:1").tar()).unwrap();
    assert!(fsck(&store, Depth::Whole, Mend::Nothing).findings.is_empty());
}

#[test]
fn a_kept_blob_repairs_its_layer() {
    let scene = Scene::new(&sample_layers());
    scene.push_as(CompressionFormat::Zstd);
    let store = scene.store("other");
    let client = RegistryClient::new(RegistrySettings { keep_blobs: true, ..scene.settings() });
    let id = store.pull(&client, &scene.name("team/app:1"), &PullOptions::default(), &()).unwrap().id;
    let tar = store.stack(&id).unwrap().layers[0].tar.clone();
    flip(&tar, 600);
    let report = fsck(&store, Depth::Whole, Mend::Everything(None));
    assert!(matches!(&only(&report).outcome, Outcome::Repaired(how) if how.contains("compressed form")), "{report:#?}");
    flip(&tar.with_file_name("compressed"), 30);
    let report = fsck(&store, Depth::Whole, Mend::Everything(None));
    assert_eq!(only(&report).problem, "the compressed form is not the one that came");
    assert!(fsck(&store, Depth::Whole, Mend::Nothing).findings.is_empty());
}

#[test]
fn a_damaged_list_of_images_is_made_again() {
    let pulled = pulled();
    let store = &pulled.store;
    let id = store.images().unwrap()[0].id;
    flip(&store.root().join("refs/catalog"), 120);
    let report = fsck(store, Depth::Whole, Mend::Nothing);
    assert_eq!(only(&report).subject.kind(), "catalog");
    assert!(store.gc().is_err());
    let report = fsck(store, Depth::Whole, Mend::Everything(None));
    assert!(only(&report).is_repaired(), "{report:#?}");
    let images = store.images().unwrap();
    assert!(images.len() == 1 && images[0].id == id && images[0].names.is_empty());
    check_whole(store);
    assert!(fs::read_dir(store.root().join("quarantine")).unwrap().count() == 1);
}

#[test]
fn a_list_of_images_that_is_missing_is_no_empty_one() {
    let pulled = pulled();
    let store = &pulled.store;
    let id = store.images().unwrap()[0].id;
    fs::remove_file(store.root().join("refs/catalog")).unwrap();
    assert!(store.images().is_err() && store.gc().is_err());
    assert!(Store::open(store.root()).unwrap().images().is_err());
    // What an image has lost is no reason to lose the rest of it.
    fs::remove_file(&pulled.tars[0]).unwrap();
    fs::remove_file(pulled.blobs_of(&id)).unwrap();
    let report = fsck(store, Depth::Whole, Mend::Everything(None));
    let kinds: Vec<&str> = report.findings.iter().map(|finding| finding.subject.kind()).collect();
    assert_eq!(kinds, ["catalog", "config", "layer"], "{report:#?}");
    store.gc().unwrap();
    assert_eq!(store.images().map(|images| images.len()).unwrap_or(1), 1);
    assert!(pulled.tars[1].exists() && pulled.tars[2].exists());
}

#[test]
fn a_damaged_lease_is_named_and_left_to_its_owner() {
    let pulled = pulled();
    let id = pulled.store.images().unwrap()[0].id;
    pulled.store.lease("container-1", &id).unwrap();
    fs::write(pulled.store.root().join("leases/container-1"), "{").unwrap();
    let report = fsck(&pulled.store, Depth::Quick, Mend::Everything(None));
    assert!(only(&report).problem.starts_with("\"container-1\""), "{report:#?}");
    assert!(matches!(only(&report).outcome, Outcome::Lost(_)));
}

#[test]
fn images_that_go_during_a_check_are_no_damage() {
    let folder = fast_folder();
    let store = open(&folder);
    let archive = docker_old(&sample_layers(), &["a:1"]).tar();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            for _ in 0..60 {
                load_stream(&store, &archive).unwrap();
                store.remove("a:1", &RemoveOptions::default()).unwrap();
            }
        });
        while !worker.is_finished() {
            let report = fsck(&store, Depth::Whole, Mend::Nothing);
            assert!(report.findings.is_empty(), "{report:#?}");
        }
    });
}
