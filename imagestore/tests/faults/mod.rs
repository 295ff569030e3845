//! Every operation with one system call that fails, or at which the process is killed: each in turn.
//!
//! Whatever happens at whichever call, an operation is done or not done, an error is told, the next command works, nothing is
//! left over after a collection, and a check finds nothing. A sample is tried; `STRATA_FAULTS=all` tries every call.

mod inject;
mod lazy;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use strata_imagestore::{
    CommitOptions, Depth, FsckOptions, ImageId, Input, Mend, PullOptions, PushOptions, RegistryClient,
    RegistrySettings, RemoveOptions, Start, Store, Timeouts, Timestamp, Unused,
};
use strata_registry::{Options, Server};

use self::inject::{Failure, Injection};
use crate::lazy_blobs::{chunked, stargz, varied_tar};
use crate::put::Repository;
use crate::support::*;

/// What an operation works with.
#[derive(Clone, Debug)]
struct Scene {
    /// Where archives lie and are written.
    folder: PathBuf,
    /// The address of a registry that has `app:1`.
    registry: String,
    /// How long somebody who reads waits for what is fetched.
    patience: Duration,
}

type Operation = (&'static str, fn(&Store, &Scene) -> Result<(), String>);

fn told(error: &dyn std::error::Error) -> String {
    chain(error)
}

const OPERATIONS: [Operation; 19] = [
    ("load", |store, scene| {
        let loaded = store.load(Input::Path(scene.folder.join("new.tar")), &options(), &());
        loaded.map(drop).map_err(|error| told(&error))
    }),
    ("load-stream", |store, scene| {
        let stream = File::open(scene.folder.join("gzip.tar")).map_err(|error| told(&error))?;
        store.load(Input::Stream(Box::new(stream)), &options(), &()).map(drop).map_err(|error| told(&error))
    }),
    ("pull", |store, scene| {
        let name = format!("{}/app:1", scene.registry).parse().unwrap();
        store.pull(&scene.client(), &name, &PullOptions::default(), &()).map(drop).map_err(|error| told(&error))
    }),
    ("push", |store, scene| {
        let name = format!("{}/base:1", scene.registry).parse().unwrap();
        store.push(&scene.client(), &name, &PushOptions::default(), &()).map(drop).map_err(|error| told(&error))
    }),
    ("commit", |store, _| {
        let base = store.resolve("base:1").map_err(|error| told(&error))?;
        let top = layer(&[("top", "x")]);
        let options = CommitOptions {
            created: Some(Timestamp { seconds: 1, nanoseconds: 0 }),
            reference: Some("committed:1".parse().unwrap()),
            ..Default::default()
        };
        let id = store.commit_layer(Some(&base), |out: &mut dyn Write| out.write_all(&top), &options);
        id.map(drop).map_err(|error| told(&error))
    }),
    ("import", |store, scene| {
        let options = CommitOptions {
            created: Some(Timestamp { seconds: 1, nanoseconds: 0 }),
            reference: Some("imported:1".parse().unwrap()),
            ..Default::default()
        };
        let id = store.import(Input::Path(scene.folder.join("root.tar")), &options, &());
        id.map(drop).map_err(|error| told(&error))
    }),
    ("tag", |store, _| store.tag("base:1", &"tagged:1".parse().unwrap()).map_err(|error| told(&error))),
    ("rmi", |store, _| match store.remove("old:1", &RemoveOptions::default()) {
        Err(error) if error.to_string().contains("No such image") => Ok(()),
        result => result.map(drop).map_err(|error| told(&error)),
    }),
    ("prune", |store, _| store.prune(Unused::All, |_| true, &[]).map(drop).map_err(|error| told(&error))),
    ("save", |store, scene| {
        let mut out = File::create(scene.folder.join("saved.tar")).map_err(|error| told(&error))?;
        store.save(&["base:1"], None, &mut out).map_err(|error| told(&error))
    }),
    ("mount", |store, _| {
        // All caches are gone, as after a power cut.
        let id = store.resolve("base:1").map_err(|error| told(&error))?;
        store.stack(&id).map(drop).map_err(|error| told(&error))
    }),
    ("lease", |store, _| {
        let id = store.resolve("base:1").map_err(|error| told(&error))?;
        store.lease("container-1", &id).map_err(|error| told(&error))?;
        store.release("container-1").map_err(|error| told(&error))
    }),
    ("gc", |store, _| store.gc().map(drop).map_err(|error| told(&error))),
    ("fsck", |store, _| {
        let report = store.fsck(&FsckOptions { depth: Depth::Whole, mend: Mend::Everything(None) }, &());
        report.map(drop).map_err(|error| told(&error))
    }),
    ("pull-early", |store, scene| {
        let name = format!("{}/stargz:1", scene.registry).parse().unwrap();
        let options = PullOptions { start: Start::Early, ..PullOptions::default() };
        store.pull(&scene.client(), &name, &options, &()).map(drop).map_err(|error| told(&error))
    }),
    ("lazy-gc", |store, _| store.gc().map(drop).map_err(|error| told(&error))),
    ("lazy-usage", |store, _| store.disk_usage().map(drop).map_err(|error| told(&error))),
    ("lazy-stargz", |store, scene| lazy::complete(store, scene, "stargz:1")),
    ("lazy-chunked", |store, scene| lazy::complete(store, scene, "chunked:1")),
];

impl Scene {
    fn client(&self) -> RegistryClient {
        let timeouts = Timeouts { retry_delay: Duration::from_millis(1), ..Timeouts::default() };
        RegistryClient::new(RegistrySettings { timeouts, ..RegistrySettings::default() })
    }
}

/// A store as operations find it, the archives they read, and a registry.
struct Stage {
    server: Server,
    folder: tempfile::TempDir,
    scene: Scene,
}

impl Stage {
    fn new() -> Stage {
        let folder = fast_folder();
        let server = Server::start(Options::local(&folder.path().join("registry"))).unwrap();
        let registry = format!("127.0.0.1:{}", server.address().port());
        let scene = Scene { folder: folder.path().to_owned(), registry: registry.clone(), patience: PATIENCE };
        let template = Store::open(&folder.path().join("template")).unwrap();
        let layers = sample_layers();
        load_stream(&template, &docker_new(&layers, "base:1").tar()).unwrap();
        template.tag("base:1", &format!("{registry}/base:1").parse().unwrap()).unwrap();
        load_stream(&template, &docker_new(&[layers[0].clone(), layer(&[("old", "x")])], "old:1").tar()).unwrap();
        // A layer that nothing needs.
        let lost = template.root().join("layers").join("0".repeat(64));
        fs::create_dir(&lost).unwrap();
        fs::write(lost.join("tar"), "x").unwrap();

        let source = Store::open(&folder.path().join("source")).unwrap();
        let name = format!("{registry}/app:1");
        let app = [layers[0].clone(), large_layer("app", 200_000)];
        load_stream(&source, &docker_new(&app, &name).tar()).unwrap();
        source.push(&scene.client(), &name.parse().unwrap(), &PushOptions::default(), &()).unwrap();

        let new = [layers[0].clone(), layer(&[("new", "1")]), large_layer("large", 1_300_000)];
        fs::write(folder.path().join("new.tar"), docker_new(&new, "new:1").tar()).unwrap();
        fs::write(folder.path().join("gzip.tar"), oci(&new[1..], "gzip", "gzip:1").tar()).unwrap();
        fs::write(folder.path().join("root.tar"), &layers[0]).unwrap();

        let lazy = Store::open(&folder.path().join("lazy")).unwrap();
        let tar = varied_tar(1, 10);
        fs::write(folder.path().join("lazy.tar"), &tar).unwrap();
        for (name, blob) in [("stargz", stargz(&tar, 1 << 17)), ("chunked", chunked(&tar, 1 << 17))] {
            Repository { address: server.address(), name }.put_image("1", &[blob]);
            let name = format!("{registry}/{name}:1").parse().unwrap();
            let options = PullOptions { start: Start::Early, ..PullOptions::default() };
            assert!(lazy.pull(&scene.client(), &name, &options, &()).unwrap().early);
        }
        Stage { server, folder, scene }
    }

    /// A copy of the store for one try.
    fn store(&self, name: &str, operation: &str) -> PathBuf {
        let root = self.folder.path().join(name);
        let _ = fs::remove_dir_all(&root);
        let template = if operation.starts_with("lazy") { "lazy" } else { "template" };
        copy(&self.folder.path().join(template), &root);
        if operation == "mount" || operation == "fsck" {
            for folder in fs::read_dir(root.join("images")).unwrap() {
                let _ = fs::remove_file(folder.unwrap().path().join("index"));
            }
        }
        if operation == "mount" {
            for folder in fs::read_dir(root.join("layers")).unwrap() {
                let _ = fs::remove_file(folder.unwrap().path().join("index"));
            }
        }
        root
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// The names and what they stand for, and the images without names.
fn state(store: &Store) -> BTreeSet<(String, ImageId)> {
    let images = store.images().unwrap();
    let unnamed = images.iter().filter(|image| image.names.is_empty()).map(|image| (String::new(), image.id));
    unnamed.chain(names(store)).collect()
}

/// What lies in a store, by name, without caches and without what is put aside for a full disk. Layers that are not whole
/// count as those that are: whether something is known of a layer beforehand depends on what failed.
fn files(store: &Store) -> BTreeSet<String> {
    let cache = |name: &String| {
        let last = name.rsplit('/').next().unwrap_or("");
        matches!(last, "index" | "objects" | "forms" | "checked" | "reserve" | "blob")
            || ["fetcher/", "events/"].iter().any(|folder| name.starts_with(folder))
    };
    let whole = |name: String| name.split_once("/lazy/").map(|(layer, _)| format!("{layer}/tar")).unwrap_or(name);
    snapshot(store).into_keys().filter(|name| !cache(name)).map(whole).collect()
}

/// Checks that a try left the store before or after the operation, and that the next command does it.
fn check(stage: &Stage, (name, operation): Operation, root: &Path, expected: &Expected, done: bool, context: &str) {
    let store = Store::open(root).unwrap_or_else(|error| panic!("{context}: {}", chain(&error)));
    let found = state(&store);
    assert!(found == expected.after || (!done && found == expected.before), "{context}: {found:#?}");
    let report = store.fsck(&FsckOptions { depth: Depth::Whole, mend: Mend::Nothing }, &()).unwrap();
    assert!(report.findings.is_empty(), "{context}: {:#?}", report.findings);
    operation(&store, &stage.scene).unwrap_or_else(|error| panic!("{context}: the next {name}: {error}"));
    assert_eq!(state(&store), expected.after, "{context}");
    check_whole(&store);
    assert_eq!(files(&store), expected.files, "{context}: leaked or lost");
}

/// What an operation that is not disturbed makes of the store.
struct Expected {
    before: BTreeSet<(String, ImageId)>,
    after: BTreeSet<(String, ImageId)>,
    files: BTreeSet<String>,
}

fn expected(stage: &Stage, (name, operation): Operation) -> Expected {
    let store = Store::open(&stage.store("expected", name)).unwrap();
    let before = state(&store);
    operation(&store, &stage.scene).unwrap_or_else(|error| panic!("{name}: {error}"));
    let after = state(&store);
    check_whole(&store);
    Expected { before, after, files: files(&store) }
}

/// How many calls lie between those that are tried.
fn stride(operation: &str) -> usize {
    match std::env::var_os("STRATA_FAULTS").is_some_and(|value| value == "all") {
        true => 1,
        // Takes half a second each time.
        false if lazy::is_slow(operation) => 211,
        false => 29,
    }
}

/// The operations that are tried: all, or those whose names begin with `STRATA_FAULTS_OF`.
fn operations() -> impl Iterator<Item = (usize, Operation)> {
    let wanted = std::env::var("STRATA_FAULTS_OF").unwrap_or_default();
    OPERATIONS.into_iter().enumerate().filter(move |(_, (name, _))| name.starts_with(&wanted))
}

/// How many tries there must be at least: of some operations alone, any number will do.
fn least(number: usize) -> usize {
    if std::env::var_os("STRATA_FAULTS_OF").is_some() { 0 } else { number }
}

/// More than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs an ignored test of this module in a process of its own.
fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("faults::{name}"), "--ignored", "--nocapture"]);
    command
}

#[test]
fn privileged_every_call_may_fail() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: filters without no_new_privs need root");
        return;
    }
    // What other tests of this process open meanwhile would look like descriptors that leak.
    let folder = tempfile::tempdir().unwrap();
    let tried = folder.path().join("tried");
    let status = child("child_whose_calls_fail").env(TRIED, &tried).status().unwrap();
    assert!(status.success(), "{status}");
    let tried = fs::read_to_string(tried).unwrap_or_default();
    assert!(tried.parse::<usize>().is_ok_and(|tried| tried >= least(1)), "{tried:?} calls were tried");
}

/// Names the file in which the child says how much it tried: a test runner without a test succeeds as well.
const TRIED: &str = "STRATA_FAULTS_TRIED";

#[test]
#[ignore = "the child of privileged_every_call_may_fail"]
fn child_whose_calls_fail() {
    let stage = Stage::new();
    let mut tried = 0;
    for (number, operation) in operations() {
        let before_all = tried;
        let (expected, stride) = (expected(&stage, operation), stride(operation.0));
        // Whoever fetches may have ended by the failure, and then nothing comes.
        let hurried = Scene { patience: Duration::from_secs(2), ..stage.scene.clone() };
        for failure in [Failure::Io, Failure::NoSpace, Failure::NoDescriptor] {
            let mut nth = 1 + number % stride;
            loop {
                let root = stage.store("try", operation.0);
                let before = descriptors();
                let outcome = inject::run(Injection::Fail(failure), nth, || {
                    let store = Store::open(&root).map_err(|error| told(&error))?;
                    (operation.1)(&store, &hurried)
                });
                let context = format!("{} with {failure:?} at call {nth}, {:?}", operation.0, outcome.hit);
                let Some(result) = outcome.result else { panic!("{context}: panicked") };
                let Some(call) = outcome.hit else { break };
                tried += 1;
                // Without space what makes space is tried again, with what was put aside.
                let synced =
                    failure == Failure::Io && [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs].contains(&call);
                // The process that fetches tries again by itself.
                let synced = synced && !lazy::is_slow(operation.0);
                assert!(!(synced && result.is_ok()), "{context}: what is not on the disk was reported done");
                check(&stage, operation, &root, &expected, result.is_ok(), &format!("{context}: {result:?}"));
                // The registry's connections may come and go, and threads end a little later.
                let settled = operation.0.starts_with("pu") || lazy::is_slow(operation.0);
                assert!(settled || descriptors() <= before, "{context}: descriptors leak");
                nth += stride;
            }
        }
        println!("{}: {} calls failed in turn", operation.0, tried - before_all);
    }
    assert!(tried > least(30), "{tried}");
    if let Some(file) = std::env::var_os(TRIED) {
        fs::write(file, tried.to_string()).unwrap();
    }
    stage.server.behave();
}

#[test]
#[ignore = "the child of privileged_killed_at_every_call"]
fn child_that_is_killed_at_a_call() {
    let value = |name| std::env::var(name).unwrap();
    let root = PathBuf::from(value("STRATA_TEST_STORE"));
    let (folder, registry) = (value("STRATA_TEST_FOLDER").into(), value("STRATA_TEST_REGISTRY"));
    let scene = Scene { folder, registry, patience: PATIENCE };
    let name = value("STRATA_TEST_OPERATION");
    let operation = OPERATIONS.into_iter().find(|(other, _)| *other == name).unwrap().1;
    let outcome = inject::run(Injection::Kill, value("STRATA_TEST_NTH").parse().unwrap(), || {
        let store = Store::open(&root).map_err(|error| told(&error))?;
        operation(&store, &scene)
    });
    outcome.result.unwrap().unwrap();
}

#[test]
fn privileged_killed_at_every_call() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: filters without no_new_privs need root");
        return;
    }
    let stage = Stage::new();
    let mut killed = 0;
    for (number, operation) in operations() {
        let before_all = killed;
        let (expected, stride) = (expected(&stage, operation), stride(operation.0));
        let mut nth = 1 + number % stride;
        loop {
            let root = stage.store("try", operation.0);
            let status = child("child_that_is_killed_at_a_call")
                .env("STRATA_TEST_STORE", &root)
                .env("STRATA_TEST_FOLDER", stage.folder.path())
                .env("STRATA_TEST_REGISTRY", &stage.scene.registry)
                .env("STRATA_TEST_OPERATION", operation.0)
                .env("STRATA_TEST_NTH", nth.to_string())
                .stdout(Stdio::null())
                .status()
                .unwrap();
            let context = format!("{} killed at call {nth}", operation.0);
            check(&stage, operation, &root, &expected, status.success(), &context);
            if status.success() {
                break;
            }
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{context}: {status}");
            killed += 1;
            nth += stride;
        }
        println!("{}: killed at {} calls in turn", operation.0, killed - before_all);
    }
    assert!(killed > least(10), "{killed}");
}
