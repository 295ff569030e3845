//! Random operations on the union and on a reference in memory: the same answers and the same tree, over remounts.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "the mounted kinds are for another test")]
mod model;

use std::path::PathBuf;

use model::memory::Memory;
use model::path::Dir;
use model::union::Union;
use model::{Filesystem, HardLinks, Operation, cases, lower_content, operations};
use proptest::prelude::*;
use strata_unionfs::{Lower, MountSpec, Options, Tree, Upper};

/// What happens to the layers when the union is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layers {
    Stay,
    /// The upper becomes the topmost lower.
    Rotate,
}

/// The layers on disk.
struct Stack {
    temp: tempfile::TempDir,
    /// Topmost first.
    lowers: Vec<PathBuf>,
    uppers: usize,
}

impl Stack {
    /// Makes the lowers, in the reference as well.
    fn new(reference: &mut Memory, links: HardLinks) -> Stack {
        let temp = tempfile::tempdir().unwrap();
        let mut lowers = Vec::new();
        for (number, content) in lower_content(links).iter().enumerate() {
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
            lowers.insert(0, root);
        }
        let stack = Stack { temp, lowers, uppers: 0 };
        stack.make_upper();
        stack
    }

    fn at(&self, what: &str) -> PathBuf {
        self.temp.path().join(format!("{what}{}", self.uppers))
    }

    fn make_upper(&self) {
        std::fs::create_dir(self.at("upper")).unwrap();
        std::fs::create_dir(self.at("work")).unwrap();
    }

    fn rotate(&mut self) {
        self.lowers.insert(0, self.at("upper"));
        self.uppers += 1;
        self.make_upper();
    }

    fn open(&self) -> Union {
        let spec = MountSpec {
            lower: Lower::Folders(self.lowers.clone()),
            upper: Some(Upper { dir: self.at("upper"), work: self.at("work") }),
            options: Options::default(),
        };
        Union { tree: Tree::open(&spec).unwrap() }
    }
}

fn check(sequence: &[Operation], reopen_every: usize, layers: Layers) {
    let mut reference = Memory::new();
    let mut stack = Stack::new(&mut reference, HardLinks::Some);
    let mut union = stack.open();
    assert_eq!(union.listing(), reference.listing(), "at the start");
    for (number, operation) in sequence.iter().enumerate() {
        let (ours, expected) = (union.apply(operation), reference.apply(operation));
        assert_eq!(ours, expected, "{operation:?}, number {number}");
        if (number + 1) % reopen_every == 0 {
            let (ours, expected) = (seen(&union.listing(), layers), seen(&reference.listing(), layers));
            assert_eq!(ours, expected, "after {operation:?}, number {number}");
            drop(union);
            if layers == Layers::Rotate && stack.lowers.len() < 12 {
                stack.rotate();
            }
            union = stack.open();
            let (ours, expected) = (seen(&union.listing(), layers), seen(&reference.listing(), layers));
            assert_eq!(ours, expected, "opened again after {operation:?}, number {number}");
        }
    }
    assert_eq!(seen(&union.listing(), layers), seen(&reference.listing(), layers), "at the end");
    drop(union);
    let mut union = stack.open();
    assert_eq!(seen(&union.listing(), layers), seen(&reference.listing(), layers), "opened again at the end");
}

/// A listing as it must be. Of a file that was never copied up the count of its links is that of its layer, whichever of
/// its names were deleted in a layer above, as in overlayfs: it is left out where layers rotate.
fn seen(listing: &str, layers: Layers) -> String {
    let line = |line: &str| {
        let mut words: Vec<&str> = line.split(' ').collect();
        match words.get(1) {
            Some(&"f") if layers == Layers::Rotate => drop(words.remove(3)),
            Some(&"l") if layers == Layers::Rotate => drop(words.remove(2)),
            _ => {}
        }
        words.join(" ") + "\n"
    };
    listing.lines().map(line).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(300), max_shrink_iters: 3000, ..ProptestConfig::default() })]

    #[test]
    fn the_union_behaves_like_one_filesystem(
        sequence in operations(40, HardLinks::Some),
        reopen in 1_usize..20,
    ) {
        check(&sequence, reopen, Layers::Stay);
    }

    #[test]
    fn the_union_behaves_like_one_filesystem_while_its_layers_rotate(
        sequence in operations(40, HardLinks::Some),
        reopen in 1_usize..20,
    ) {
        check(&sequence, reopen, Layers::Rotate);
    }
}

#[test]
fn deleted_content_does_not_come_back() {
    use Operation::{Create, Mkdir, RemoveAll};
    let s = str::to_owned;
    let sequence = [
        RemoveAll(s("a")),
        Mkdir(s("a")),
        Mkdir(s("a/b")),
        Create(s("a/b/a")),
        RemoveAll(s("a")),
        Mkdir(s("a")),
        Mkdir(s("a/b")),
    ];
    check(&sequence, 1, Layers::Stay);
    check(&sequence, 1, Layers::Rotate);
}
