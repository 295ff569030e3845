//! Random sequences of operations on a store and on a model of it: what is needed is never lost, what is not is freed.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use proptest::prelude::*;
use strata_imagestore::{CommitOptions, ImageId, ImageRef, RemoveOptions, Stack, Store, Timestamp, Unused};
use strata_layer::{DiffId, Digest};
use support::*;

#[derive(Clone, Debug)]
enum Step {
    Load { layers: Vec<u8>, name: u8, stream: bool },
    Tag { from: u8, to: u8 },
    RemoveName { name: u8 },
    RemoveId { image: usize, force: bool },
    Hold { image: usize },
    DropHold { hold: usize },
    Lease { lease: u8, image: usize },
    Release { lease: u8 },
    Commit { image: usize, layer: u8 },
    Prune { all: bool },
    Collect,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (proptest::collection::vec(0..5_u8, 0..4), 0..6_u8, any::<bool>())
            .prop_map(|(layers, name, stream)| Step::Load { layers, name, stream }),
        2 => (0..6_u8, 0..6_u8).prop_map(|(from, to)| Step::Tag { from, to }),
        2 => (0..6_u8).prop_map(|name| Step::RemoveName { name }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(image, force)| Step::RemoveId { image, force }),
        2 => any::<usize>().prop_map(|image| Step::Hold { image }),
        1 => any::<usize>().prop_map(|hold| Step::DropHold { hold }),
        1 => (0..2_u8, any::<usize>()).prop_map(|(lease, image)| Step::Lease { lease, image }),
        1 => (0..2_u8).prop_map(|lease| Step::Release { lease }),
        2 => (any::<usize>(), 0..5_u8).prop_map(|(image, layer)| Step::Commit { image, layer }),
        1 => any::<bool>().prop_map(|all| Step::Prune { all }),
        2 => Just(Step::Collect),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What a store should hold.
#[derive(Default)]
struct Model {
    images: BTreeMap<ImageId, Vec<DiffId>>,
    names: BTreeMap<ImageRef, ImageId>,
    held: Vec<(Vec<DiffId>, Stack)>,
    leases: BTreeMap<u8, Vec<DiffId>>,
}

impl Model {
    fn pick(&self, number: usize) -> Option<ImageId> {
        self.images.keys().nth(number % self.images.len().max(1)).copied()
    }

    fn names_of(&self, image: ImageId) -> Vec<ImageRef> {
        self.names.iter().filter(|(_, id)| **id == image).map(|(name, _)| name.clone()).collect()
    }

    fn live_layers(&self) -> BTreeSet<DiffId> {
        let held = self.held.iter().map(|(layers, _)| layers);
        self.images.values().chain(held).chain(self.leases.values()).flatten().copied().collect()
    }

    /// Removes an image, which frees what only it needed.
    fn remove(&mut self, image: ImageId) {
        self.images.remove(&image);
        self.names.retain(|_, id| *id != image);
    }
}

fn name(number: u8) -> ImageRef {
    // Two repositories of three tags.
    format!("repository{}:{}", number % 2, number / 2).parse().unwrap()
}

fn tar(number: u8) -> Vec<u8> {
    layer(&[(&format!("file{number}"), &"x".repeat(usize::from(number)))])
}

fn ids(layers: &[Vec<u8>]) -> Vec<DiffId> {
    layers.iter().map(|layer| DiffId(Digest::of(layer))).collect()
}

fn apply(store: &mut Store, model: &mut Model, step: &Step) {
    match step {
        Step::Load { layers, name: number, stream } => {
            let layers: Vec<Vec<u8>> = layers.iter().map(|number| tar(*number)).collect();
            let archive = docker_old(&layers, &[&name(*number).familiar()]).tar();
            let load = if *stream { load_stream } else { load_file };
            let id = load(store, &archive).unwrap_or_else(|error| panic!("{}", chain(&error)))[0].id;
            model.images.insert(id, ids(&layers));
            model.names.insert(name(*number), id);
        }
        Step::Tag { from, to } => {
            let result = store.tag(&name(*from).to_string(), &name(*to));
            match model.names.get(&name(*from)).copied() {
                Some(id) => {
                    result.unwrap();
                    model.names.insert(name(*to), id);
                }
                None => assert!(result.unwrap_err().is_not_found()),
            }
        }
        Step::RemoveName { name: number } => {
            let result = store.remove(&name(*number).familiar(), &RemoveOptions::default());
            match model.names.remove(&name(*number)) {
                Some(id) => {
                    result.unwrap();
                    if model.names_of(id).is_empty() {
                        model.remove(id);
                    }
                }
                None => assert!(result.is_err()),
            }
        }
        Step::RemoveId { image, force } => {
            let Some(id) = model.pick(*image) else { return };
            let options = RemoveOptions { force: *force, ..Default::default() };
            let result = store.remove(&id.to_string(), &options);
            if *force || model.names_of(id).len() <= 1 {
                result.unwrap();
                model.remove(id);
            } else {
                assert!(result.unwrap_err().to_string().contains("is referenced in multiple repositories"));
            }
        }
        Step::Hold { image } => {
            let Some(id) = model.pick(*image) else { return };
            model.held.push((model.images[&id].clone(), store.stack(&id).unwrap()));
        }
        Step::DropHold { hold } => {
            if !model.held.is_empty() {
                let number = hold % model.held.len();
                drop(model.held.swap_remove(number));
            }
        }
        Step::Lease { lease, image } => {
            let Some(id) = model.pick(*image) else { return };
            store.lease(&format!("lease{lease}"), &id).unwrap();
            model.leases.insert(*lease, model.images[&id].clone());
        }
        Step::Release { lease } => {
            store.release(&format!("lease{lease}")).unwrap();
            model.leases.remove(lease);
        }
        Step::Commit { image, layer } => {
            let Some(base) = model.pick(*image) else { return };
            let top = tar(*layer);
            let options =
                CommitOptions { created: Some(Timestamp { seconds: 1, nanoseconds: 0 }), ..Default::default() };
            let id = store.commit_layer(Some(&base), |out: &mut dyn Write| out.write_all(&top), &options).unwrap();
            let layers = [model.images[&base].clone(), ids(&[top])].concat();
            model.images.insert(id, layers);
        }
        Step::Prune { all } => {
            let unused = if *all { Unused::All } else { Unused::Untagged };
            store.prune(unused, |_| true, &[]).unwrap();
            let goes: Vec<ImageId> =
                model.images.keys().filter(|id| *all || model.names_of(**id).is_empty()).copied().collect();
            goes.into_iter().for_each(|id| model.remove(id));
        }
        Step::Collect => {
            store.gc().unwrap();
        }
        Step::Reopen => *store = Store::open(store.root()).unwrap(),
    }
}

/// Compares what there is of layers, and nothing else: this is done millions of times.
fn compare_layers(store: &Store, model: &Model, step: &Step) {
    let present: BTreeSet<DiffId> = std::fs::read_dir(store.root().join("layers"))
        .unwrap()
        .map(|entry| DiffId(Digest::from_hex(entry.unwrap().file_name().to_str().unwrap()).unwrap()))
        .collect();
    let live = model.live_layers();
    assert!(present.is_superset(&live), "a live layer is gone");
    if matches!(step, Step::Collect) {
        assert_eq!(present, live);
    }
}

/// Checks that everything of a held stack is there and what it was.
fn compare_held((layers, stack): &(Vec<DiffId>, Stack)) {
    assert!(stack.index.exists());
    for (paths, layer) in stack.layers.iter().zip(layers) {
        assert_eq!(Digest::of(&std::fs::read(&paths.tar).unwrap()), layer.0);
    }
}

fn compare(store: &Store, model: &Model, step: &Step) {
    let found: BTreeMap<ImageId, Vec<ImageRef>> =
        store.images().unwrap().into_iter().map(|image| (image.id, image.names)).collect();
    let expected: BTreeMap<ImageId, Vec<ImageRef>> = model.images.keys().map(|id| (*id, model.names_of(*id))).collect();
    assert_eq!(found, expected);
    compare_layers(store, model, step);
    model.held.iter().for_each(compare_held);
    for (lease, layers) in &model.leases {
        let stack = store.leased_stack(&format!("lease{lease}")).unwrap();
        assert_eq!(&stack.layers.iter().map(|paths| paths.diff_id).collect::<Vec<_>>(), layers);
    }
}

/// `PROPTEST_CASES` asks for a long run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 300, ..Default::default() })]

    #[test]
    fn a_store_keeps_what_is_needed_and_frees_the_rest(steps in steps()) {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut store = open(&folder);
        let mut model = Model::default();
        for step in &steps {
            apply(&mut store, &mut model, step);
            compare(&store, &model, step);
        }
        model.held.clear();
        model.leases.keys().for_each(|lease| store.release(&format!("lease{lease}")).unwrap());
        model.leases.clear();
        apply(&mut store, &mut model, &Step::Collect);
        compare(&store, &model, &Step::Collect);
        let findings = verify(&store);
        prop_assert!(findings.is_empty(), "{findings:?}");
        for id in model.images.keys() {
            merged_paths(&store, id);
        }
    }
}

/// Random numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound
    }

    fn byte(&mut self, bound: usize) -> u8 {
        u8::try_from(self.below(bound)).unwrap()
    }
}

/// A step that keeps the store small: of what there is much, something goes.
fn small_step(random: &mut Random, model: &Model) -> Step {
    if model.images.len() > 12 {
        return Step::RemoveId { image: random.below(1000), force: true };
    }
    if model.held.len() > 5 {
        return Step::DropHold { hold: random.below(1000) };
    }
    match random.below(24) {
        0..4 => {
            let layers = (0..random.below(4)).map(|_| random.byte(5)).collect();
            Step::Load { layers, name: random.byte(6), stream: random.below(2) == 0 }
        }
        4..7 => Step::Tag { from: random.byte(6), to: random.byte(6) },
        7..9 => Step::RemoveName { name: random.byte(6) },
        9..11 => Step::RemoveId { image: random.below(1000), force: random.below(2) == 0 },
        11..14 => Step::Hold { image: random.below(1000) },
        14..16 => Step::DropHold { hold: random.below(1000) },
        16 => Step::Lease { lease: random.byte(2), image: random.below(1000) },
        17 => Step::Release { lease: random.byte(2) },
        18..20 => match model.images.values().map(Vec::len).max() {
            Some(depth) if depth > 6 => Step::Prune { all: true },
            _ => Step::Commit { image: random.below(1000), layer: random.byte(5) },
        },
        20 => Step::Prune { all: random.below(8) == 0 },
        21 => Step::Reopen,
        _ => Step::Collect,
    }
}

/// Tells where a walk failed.
struct Walk {
    seed: u64,
    number: u64,
    last: std::collections::VecDeque<Step>,
}

impl Drop for Walk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Walk { seed, number, last } = self;
            let _ = writeln!(std::io::stderr(), "STRATA_SEED={seed} failed at step {number}, after {last:#?}");
        }
    }
}

/// `STRATA_GC_STEPS` asks for a long walk, `STRATA_SEED` for another one.
#[test]
fn a_long_walk_never_frees_what_is_live() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (steps, seed) = (number("STRATA_GC_STEPS").unwrap_or(1500), number("STRATA_SEED").unwrap_or(1));
    let folder = fast_folder();
    // Two that know nothing of each other, as two processes.
    let mut stores = [open(&folder), open(&folder)];
    let mut model = Model::default();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut walk = Walk { seed, number: 0, last: Default::default() };
    while walk.number < steps {
        let step = small_step(&mut random, &model);
        walk.number += 1;
        walk.last.truncate(40);
        walk.last.push_front(step.clone());
        let store = &mut stores[random.below(2)];
        apply(store, &mut model, &step);
        compare_layers(store, &model, &step);
        if !model.held.is_empty() {
            compare_held(&model.held[random.below(model.held.len())]);
        }
        if walk.number.is_multiple_of(64) {
            compare(store, &model, &step);
        }
        if walk.number.is_multiple_of(100_000) {
            println!("{} of {steps}", walk.number);
        }
    }
    assert!(verify(&stores[0]).is_empty());
}
