//! Two arbitrary layers merged: the names are those that a naive reading of the whiteout rules leaves.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use strata_fuzz::{check, ingest, repair};
use strata_layer::index::{Child, Index, Kind, NodeId};
use strata_layer::merge::merge;

fuzz_target!(|data: &[u8]| {
    let Some((&blocks, tars)) = data.split_first() else { return };
    let (lower, upper) = tars.split_at((usize::from(blocks) * 512).min(tars.len()));
    let (Ok(lower), Ok(upper)) = (ingest([&repair(lower)[..]]), ingest([&repair(upper)[..]])) else { return };
    let lower = Index::from_bytes(lower.index).expect("built");
    let upper = Index::from_bytes(upper.index).expect("built");
    let Ok(merged) = merge(&[&lower, &upper]) else { return };
    assert_eq!(merge(&[&lower, &upper]).expect("merged before"), merged, "the same layers give the same bytes");
    let merged = Index::from_bytes(merged).expect("merged");
    check(&merged);

    let mut expected = Names::new();
    apply(&lower, NodeId::ROOT, b"", &mut expected);
    apply(&upper, NodeId::ROOT, b"", &mut expected);
    let mut found = Names::new();
    apply(&merged, NodeId::ROOT, b"", &mut found);
    assert_eq!(found, expected);
});

/// Paths, and whether each is a folder.
type Names = BTreeMap<Vec<u8>, bool>;

/// Puts a folder of a layer over what is there.
fn apply(layer: &Index, folder: NodeId, path: &[u8], names: &mut Names) {
    if layer.is_opaque(folder) {
        remove_below(path, names);
    }
    for child in layer.children(folder) {
        let below = [path, b"/", child.name].concat();
        // Markers speak of what is there; they make no folder and hide no file.
        if is_bare(layer, &child) && names.get(&below) != Some(&true) {
            continue;
        }
        if child.whiteout || child.kind != Kind::Directory || names.get(&below) == Some(&false) {
            remove_below(&below, names);
            names.remove(&below);
        }
        if child.whiteout {
            continue;
        }
        names.insert(below.clone(), child.kind == Kind::Directory);
        if child.kind == Kind::Directory {
            apply(layer, child.node, &below, names);
        }
    }
}

/// Whether a folder is in the layer only because of markers below it.
fn is_bare(layer: &Index, child: &Child<'_>) -> bool {
    !child.whiteout
        && child.kind == Kind::Directory
        && layer.is_implicit(child.node)
        && layer.children(child.node).all(|child| child.whiteout || is_bare(layer, &child))
}

fn remove_below(path: &[u8], names: &mut Names) {
    let prefix = [path, b"/"].concat();
    names.retain(|name, _| !name.starts_with(&prefix));
}
