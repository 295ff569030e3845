//! Random operations on the union and on a reference in memory: the same answers and the same tree, over remounts.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "the mounted kinds are for another test")]
mod model;

use std::path::PathBuf;

use model::memory::Memory;
use model::path::Dir;
use model::union::Union;
use model::{Filesystem, Operation, lower_content, operations};
use proptest::prelude::*;
use strata_unionfs::{Lower, MountSpec, Options, Tree, Upper};

fn check(sequence: &[Operation], reopen_every: usize) {
    let temp = tempfile::tempdir().unwrap();
    let mut reference = Memory::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    for (number, content) in lower_content().iter().enumerate() {
        let root = temp.path().join(format!("lower{number}"));
        std::fs::create_dir(&root).unwrap();
        let mut dir = Dir { root: root.clone() };
        for operation in content {
            dir.apply(operation).unwrap();
            match reference.apply(operation) {
                // Directories of several layers are one.
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => panic!("{operation:?}: {error}"),
            }
        }
        folders.insert(0, root);
    }
    let spec = MountSpec {
        lower: Lower::Folders(folders),
        upper: Some(Upper { dir: temp.path().join("upper"), work: temp.path().join("work") }),
        options: Options::default(),
    };
    std::fs::create_dir(temp.path().join("upper")).unwrap();
    std::fs::create_dir(temp.path().join("work")).unwrap();
    let mut union = Union { tree: Tree::open(&spec).unwrap() };
    assert_eq!(union.listing(), reference.listing(), "at the start");
    for (number, operation) in sequence.iter().enumerate() {
        let (ours, expected) = (union.apply(operation), reference.apply(operation));
        assert_eq!(ours, expected, "{operation:?}, number {number}");
        if (number + 1) % reopen_every == 0 {
            assert_eq!(union.listing(), reference.listing(), "after {operation:?}, number {number}");
            drop(union);
            union = Union { tree: Tree::open(&spec).unwrap() };
            assert_eq!(union.listing(), reference.listing(), "opened again after {operation:?}, number {number}");
        }
    }
    assert_eq!(union.listing(), reference.listing(), "at the end");
    drop(union);
    let mut union = Union { tree: Tree::open(&spec).unwrap() };
    assert_eq!(union.listing(), reference.listing(), "opened again at the end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_union_behaves_like_one_filesystem(sequence in operations(40), reopen in 1_usize..20) {
        check(&sequence, reopen);
    }
}

#[test]
fn deleted_content_does_not_come_back() {
    use Operation::{Create, Mkdir, RemoveAll};
    let s = str::to_owned;
    check(
        &[
            RemoveAll(s("a")),
            Mkdir(s("a")),
            Mkdir(s("a/b")),
            Create(s("a/b/a")),
            RemoveAll(s("a")),
            Mkdir(s("a")),
            Mkdir(s("a/b")),
        ],
        1,
    );
}
