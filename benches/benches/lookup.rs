//! Looking names up in a stack of layers, in process: the merged index against asking each layer in turn.
//!
//! One tree of 16,000 files in 1,600 folders is spread over 1, 8, 32 and 128 layers. A hit walks the three components of
//! a file's path; a miss ends in a name that no layer has; a readdir lists one folder. The merged index should cost the
//! same for any number of layers. The probing stack asks the layers from the top until one has the name, as a union
//! without a merged index must; it has the same hash tables, so the difference is the number of questions alone.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use strata_layer::index::{Builder, Content, Index, Layer, Metadata, NodeId};
use strata_layer::merge::merge;
use strata_layer::objects::Segment;
use strata_layer::{DiffId, Digest};

const LAYERS: [usize; 4] = [1, 8, 32, 128];
const FOLDERS: usize = 1600;
const FILES: usize = 10;

fn lookup(criterion: &mut Criterion) {
    let stacks: Vec<(usize, Vec<Index>)> = LAYERS.iter().map(|&layers| (layers, spread(layers))).collect();
    let merged: Vec<(usize, Index)> = stacks.iter().map(|(layers, stack)| (*layers, merge_all(stack))).collect();
    let (hits, misses) = (paths("file"), paths("none"));

    for (name, paths) in [("hit", &hits), ("miss", &misses)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        for (layers, index) in &merged {
            let mut next = paths.iter().cycle();
            group.bench_function(BenchmarkId::new("merged", layers), |bencher| {
                bencher.iter(|| next.next().map(|path| black_box(in_index(index, path))));
            });
        }
        for (layers, stack) in &stacks {
            let mut next = paths.iter().cycle();
            group.bench_function(BenchmarkId::new("probing", layers), |bencher| {
                bencher.iter(|| next.next().map(|path| black_box(in_stack(stack, path))));
            });
        }
        group.finish();
    }

    let mut group = criterion.benchmark_group("readdir");
    group.throughput(Throughput::Elements(FILES as u64));
    for (layers, index) in &merged {
        let folders: Vec<NodeId> = (0..FOLDERS).filter_map(|folder| in_index(index, &folder_path(folder))).collect();
        let mut next = folders.iter().cycle();
        group.bench_function(BenchmarkId::new("merged", layers), |bencher| {
            bencher.iter(|| {
                next.next()
                    .map(|folder| black_box(index.children(*folder).map(|child| child.name.len()).sum::<usize>()))
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("merge");
    group.sample_size(10);
    for (layers, stack) in &stacks {
        group.bench_function(BenchmarkId::new("build", layers), |bencher| bencher.iter(|| black_box(merge_all(stack))));
    }
    group.finish();
}

/// Walks from the root of one index.
fn in_index(index: &Index, path: &[Vec<u8>]) -> Option<NodeId> {
    path.iter().try_fold(NodeId::ROOT, |folder, name| index.lookup(folder, name))
}

/// Walks all layers at once: a folder is what every layer has under that name, a file what the topmost has.
fn in_stack(stack: &[Index], path: &[Vec<u8>]) -> Option<NodeId> {
    let mut folders: Vec<(&Index, NodeId)> = stack.iter().rev().map(|index| (index, NodeId::ROOT)).collect();
    let (last, parents) = path.split_last()?;
    for name in parents {
        folders.retain_mut(|(index, folder)| match index.lookup(*folder, name) {
            Some(node) => {
                *folder = node;
                true
            }
            None => false,
        });
    }
    folders.iter().find_map(|(index, folder)| index.lookup(*folder, last))
}

fn paths(kind: &str) -> Vec<Vec<Vec<u8>>> {
    // Far apart one after the other, so that neighbours do not warm the cache for each other.
    let numbers = (0..FOLDERS * FILES).map(|number| number * 7919 % (FOLDERS * FILES));
    let path = |number: usize| {
        let mut path = folder_path(number / FILES);
        path.push(format!("{kind}-{}.txt", number % FILES).into_bytes());
        path
    };
    numbers.map(path).collect()
}

fn folder_path(folder: usize) -> Vec<Vec<u8>> {
    vec![format!("d{:02}", folder / 40).into_bytes(), format!("sub-{:02}", folder % 40).into_bytes()]
}

/// The layers' indexes, bottom first: file by file to the layers in turn.
fn spread(layers: usize) -> Vec<Index> {
    let mut builders: Vec<Builder> = (0..layers).map(|_| Builder::new()).collect();
    for folder in 0..FOLDERS {
        for file in 0..FILES {
            let layer = (folder * 31 + file * 17) % layers;
            let mut path = folder_path(folder);
            path.push(format!("file-{file}.txt").into_bytes());
            let segments = [Segment { offset: 0, length: 100, source: 512 }];
            let content = Content::Regular { size: 100, segments: &segments };
            let added = builders[layer].add(&path.join(&b'/'), Metadata::default(), content);
            added.expect("an honest entry");
        }
    }
    let finish = |(number, builder): (usize, Builder)| {
        let layer = Layer { diff_id: DiffId(Digest::of(&number.to_le_bytes())), tar_size: 1 << 20 };
        Index::from_bytes(builder.finish(layer).and_then(|index| Ok(index.into_bytes()?)).expect("a small layer"))
            .expect("an index just built")
    };
    builders.into_iter().enumerate().map(finish).collect()
}

fn merge_all(stack: &[Index]) -> Index {
    let merged = merge(&stack.iter().collect::<Vec<_>>()).expect("layers without conflict");
    Index::from_bytes(merged).expect("an index just merged")
}

criterion_group!(benches, lookup);
criterion_main!(benches);
