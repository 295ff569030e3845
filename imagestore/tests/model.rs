//! Random sequences of operations on a store and on a model of it: what is needed is never lost, what is not is freed.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use proptest::prelude::*;
use strata_imagestore::{CommitOptions, ImageId, ImageRef, RemoveOptions, Stack, Store, Timestamp};
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
        Step::Collect => {
            store.gc().unwrap();
        }
        Step::Reopen => *store = Store::open(store.root()).unwrap(),
    }
}

fn compare(store: &Store, model: &Model, step: &Step) {
    let found: BTreeMap<ImageId, Vec<ImageRef>> =
        store.images().unwrap().into_iter().map(|image| (image.id, image.names)).collect();
    let expected: BTreeMap<ImageId, Vec<ImageRef>> = model.images.keys().map(|id| (*id, model.names_of(*id))).collect();
    assert_eq!(found, expected);
    let present: BTreeSet<DiffId> = std::fs::read_dir(store.root().join("layers"))
        .unwrap()
        .map(|entry| DiffId(Digest::from_hex(entry.unwrap().file_name().to_str().unwrap()).unwrap()))
        .collect();
    let live = model.live_layers();
    assert!(present.is_superset(&live));
    if matches!(step, Step::Collect) {
        assert_eq!(present, live);
    }
    for (layers, stack) in &model.held {
        assert!(stack.index.exists());
        for (paths, layer) in stack.layers.iter().zip(layers) {
            assert_eq!(Digest::of(&std::fs::read(&paths.tar).unwrap()), layer.0);
        }
    }
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
