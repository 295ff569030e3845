//! Several processes work on one store, are killed, and begin again, while another collects without end: what somebody
//! needs is never freed, and what nobody needs is, in the end.
//!
//! `STRATA_GC_SECONDS` asks for a long run; it says how many steps there were.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use strata_imagestore::{
    CommitOptions, Depth, FsckOptions, ImageId, ImageRef, Input, Mend, RemoveOptions, Stack, Store, Timestamp, Unused,
};
use strata_layer::{DiffId, Digest};

use crate::support::*;

const WORKERS: u64 = 3;
/// Archives that all processes load, of layers that they share.
const ARCHIVES: u64 = 8;

/// Numbers that look random and are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).unwrap()
    }
}

/// What one process knows to be its own.
struct Worker {
    store: Store,
    folder: std::path::PathBuf,
    number: u64,
    random: Random,
    names: BTreeMap<ImageRef, ImageId>,
    held: Vec<(Vec<DiffId>, Stack)>,
    leases: BTreeMap<u64, Vec<DiffId>>,
}

impl Worker {
    fn name(&self, number: u64) -> ImageRef {
        format!("worker{}:{number}", self.number).parse().unwrap()
    }

    fn layers_of(&self, id: &ImageId) -> Vec<DiffId> {
        self.store.image(id).unwrap().layers
    }

    fn some_image(&mut self) -> Option<ImageId> {
        let count = self.names.len();
        (count > 0).then(|| *self.names.values().nth(self.random.pick(count)).unwrap())
    }

    fn step(&mut self) {
        let (kind, tag) = (self.random.below(12), self.random.below(4));
        let name = self.name(tag);
        match kind {
            0..3 => {
                let archive = self.folder.join(format!("{}.tar", self.random.below(ARCHIVES)));
                let load = if kind == 0 {
                    Input::Path(archive)
                } else {
                    Input::Stream(Box::new(File::open(archive).unwrap()))
                };
                // The archive's own name is everybody's, so it may be gone or another's at once; the image may not.
                let id =
                    self.store.load(load, &options(), &()).unwrap_or_else(|error| panic!("{}", chain(&error)))[0].id;
                match self.store.tag(&id.to_string(), &name) {
                    Ok(()) => drop(self.names.insert(name, id)),
                    Err(error) => assert!(error.is_not_found(), "{}", chain(&error)),
                }
            }
            3 => {
                let Some(id) = self.some_image() else { return };
                self.store.tag(&id.to_string(), &name).unwrap();
                self.names.insert(name, id);
            }
            4..6 => {
                if self.names.remove(&name).is_some() {
                    self.store.remove(&name.to_string(), &RemoveOptions::default()).unwrap();
                }
            }
            6 => {
                let Some(id) = self.some_image() else { return };
                let layers = self.layers_of(&id);
                self.held.push((layers, self.store.stack(&id).unwrap_or_else(|error| panic!("{}", chain(&error)))));
            }
            7 => {
                if !self.held.is_empty() {
                    let number = self.random.pick(self.held.len());
                    drop(self.held.swap_remove(number));
                }
            }
            8 => {
                let Some(id) = self.some_image() else { return };
                self.store.lease(&format!("worker{}-{tag}", self.number), &id).unwrap();
                let layers = self.layers_of(&id);
                self.leases.insert(tag, layers);
            }
            9 => {
                self.store.release(&format!("worker{}-{tag}", self.number)).unwrap();
                self.leases.remove(&tag);
            }
            10 => {
                let Some(base) = self.some_image() else { return };
                if self.layers_of(&base).len() > 6 {
                    return;
                }
                let top = layer(&[("top", &self.random.below(3).to_string())]);
                let options = CommitOptions {
                    created: Some(Timestamp { seconds: 1, nanoseconds: 0 }),
                    reference: Some(name.clone()),
                    ..Default::default()
                };
                let id = self.store.commit_layer(Some(&base), |out: &mut dyn Write| out.write_all(&top), &options);
                self.names.insert(name, id.unwrap_or_else(|error| panic!("{}", chain(&error))));
            }
            _ => drop(self.store.gc().unwrap()),
        }
    }

    /// Everything that is this process's own is there.
    fn check(&mut self) {
        for (name, id) in &self.names {
            assert_eq!(self.store.resolve(&name.to_string()).unwrap(), *id, "{name}");
        }
        if let Some(id) = self.some_image() {
            let stack = self.store.stack(&id).unwrap_or_else(|error| panic!("{}", chain(&error)));
            stack.layers.iter().for_each(|paths| whole(&paths.tar, paths.diff_id));
        }
        for (layers, stack) in &self.held {
            assert!(stack.index.exists());
            stack.layers.iter().zip(layers).for_each(|(paths, layer)| whole(&paths.tar, *layer));
        }
        let leases: Vec<u64> = self.leases.keys().copied().collect();
        for lease in leases {
            let stack = self.store.leased_stack(&format!("worker{}-{lease}", self.number));
            let stack = stack.unwrap_or_else(|error| panic!("{}", chain(&error)));
            stack.layers.iter().for_each(|paths| whole(&paths.tar, paths.diff_id));
        }
    }
}

fn whole(tar: &Path, layer: DiffId) {
    assert_eq!(Digest::of(&fs::read(tar).unwrap()), layer.0, "{tar:?}");
}

#[test]
#[ignore = "the child of many_processes_never_lose_what_one_needs"]
fn child_that_shares_a_store() {
    let value = |name| std::env::var(name).unwrap();
    let folder = std::path::PathBuf::from(value("STRATA_TEST_FOLDER"));
    let store = Store::open(&folder.join("store")).unwrap();
    let number: u64 = value("STRATA_TEST_WORKER").parse().unwrap();
    let mut steps = OpenOptions::new().append(true).create(true).open(folder.join(format!("steps{number}"))).unwrap();
    let seed = value("STRATA_TEST_SEED").parse().unwrap();
    let mut worker = Worker {
        store,
        folder,
        number,
        random: Random(seed),
        names: BTreeMap::new(),
        held: Vec::new(),
        leases: BTreeMap::new(),
    };
    // What an earlier one, which was killed, has left is this one's.
    for tag in 0..4 {
        let name = worker.name(tag);
        match worker.store.resolve(&name.to_string()) {
            Ok(id) => drop(worker.names.insert(name, id)),
            Err(error) => assert!(error.is_not_found(), "{}", chain(&error)),
        }
        let lease = worker.store.leased_stack(&format!("worker{number}-{tag}"));
        if let Ok(stack) = lease {
            worker.leases.insert(tag, stack.layers.iter().map(|paths| paths.diff_id).collect());
        }
    }
    worker.check();
    loop {
        worker.step();
        if worker.random.below(4) == 0 {
            worker.check();
        }
        steps.write_all(b".").unwrap();
    }
}

fn start(folder: &Path, worker: u64, seed: u64) -> Child {
    let log = OpenOptions::new().append(true).create(true).open(folder.join(format!("log{worker}"))).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shared::child_that_shares_a_store", "--ignored", "--nocapture"])
        .env("STRATA_TEST_FOLDER", folder)
        .env("STRATA_TEST_WORKER", worker.to_string())
        .env("STRATA_TEST_SEED", seed.to_string())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
fn many_processes_never_lose_what_one_needs() {
    let folder = fast_folder();
    let store = open(&folder);
    for number in 0..ARCHIVES {
        let layers: Vec<Vec<u8>> = (0..4).filter(|bit| (number + 1) & (1 << bit) != 0).map(sized).collect();
        let archive = docker_old(&layers, &["everybody:1"]).tar();
        fs::write(folder.path().join(format!("{number}.tar")), archive).unwrap();
    }
    let seconds = std::env::var("STRATA_GC_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut workers: Vec<Child> = (0..WORKERS).map(|worker| start(folder.path(), worker, worker + 1)).collect();
    let mut kills = 0;
    while Instant::now() < end {
        match random.below(8) {
            0 => {
                let number = random.pick(workers.len());
                // One that has ended by itself has found something.
                let ended = workers[number].try_wait().unwrap();
                assert!(ended.is_none(), "{}", fs::read_to_string(folder.path().join(format!("log{number}"))).unwrap());
                workers[number].kill().unwrap();
                workers[number].wait().unwrap();
                kills += 1;
                workers[number] = start(folder.path(), number as u64, 1000 + kills);
            }
            1 => drop(store.prune(Unused::Untagged, |_| true, &[]).unwrap()),
            2 => {
                let report = store.fsck(&FsckOptions { depth: Depth::Whole, mend: Mend::Nothing }, &()).unwrap();
                assert!(report.findings.is_empty(), "{:#?}", report.findings);
            }
            _ => drop(store.gc().unwrap()),
        }
        std::thread::sleep(Duration::from_millis(random.below(30)));
    }
    for (number, worker) in workers.iter_mut().enumerate() {
        let ended = worker.try_wait().unwrap();
        assert!(ended.is_none(), "{}", fs::read_to_string(folder.path().join(format!("log{number}"))).unwrap());
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    let steps: u64 = (0..WORKERS)
        .map(|worker| fs::metadata(folder.path().join(format!("steps{worker}"))).map_or(0, |m| m.len()))
        .sum();
    println!("{steps} steps, {kills} kills");
    assert!(steps > 20, "{steps} steps");
    // Nobody needs anything any more.
    for lease in store.leases().unwrap() {
        store.release(&lease).unwrap();
    }
    store.prune(Unused::All, |_| true, &[]).unwrap();
    check_whole(&store);
    assert!(fs::read_dir(store.root().join("layers")).unwrap().next().is_none());
}

/// A layer that all archives with it share.
fn sized(bit: u64) -> Vec<u8> {
    layer(&[(&format!("file{bit}"), &"x".repeat(700 * usize::try_from(bit).unwrap()))])
}
