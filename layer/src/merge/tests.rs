use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::index::{BuildError, Builder, Content, Extent, Layer, Metadata};
use crate::objects::Segment;
use crate::{DiffId, Digest};

/// One line of a layer: what is added, at which path.
#[derive(Clone, Debug)]
enum Step {
    /// A file; the number tells it from all others.
    File(String, u32),
    Directory(String, u32),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

use Step::{Directory, File, Link, Opaque, Whiteout};

fn apply(builder: &mut Builder, step: &Step) -> Result<(), BuildError> {
    let metadata = |uid: u32| Metadata { permissions: 0o700, uid, ..Metadata::default() };
    match step {
        File(path, uid) => {
            let segments = [Segment { offset: 0, length: 1, source: 512 * u64::from(*uid) }];
            builder.add(path.as_bytes(), metadata(*uid), Content::Regular { size: 1, segments: &segments })
        }
        Directory(path, uid) => builder.add(path.as_bytes(), metadata(*uid), Content::Directory),
        Link(path, target) => builder.hard_link(path.as_bytes(), target.as_bytes()),
        Whiteout(path) => builder.whiteout(path.as_bytes()),
        Opaque(path) => builder.opaque(path.as_bytes()),
    }
}

fn finish(builder: Builder, number: usize) -> Index {
    let diff_id = DiffId(Digest::of(&number.to_le_bytes()));
    let bytes = builder.finish(Layer { diff_id, tar_size: 1 << 40 }).unwrap().into_bytes().unwrap();
    let index = Index::from_bytes(bytes).unwrap();
    index.verify().unwrap();
    index
}

fn layer(steps: &[Step]) -> Index {
    let mut builder = Builder::new();
    steps.iter().for_each(|step| apply(&mut builder, step).unwrap());
    finish(builder, steps.len())
}

fn merged(layers: &[Index]) -> Result<Index, MergeError> {
    let layers: Vec<&Index> = layers.iter().collect();
    let bytes = merge(&layers)?;
    // Making the files takes longer than merging, so it is done now and then.
    static TURN: AtomicUsize = AtomicUsize::new(0);
    if TURN.fetch_add(1, Ordering::Relaxed).is_multiple_of(20) {
        let through_files = merge_index(&layers, Some(&crate::table::tiny_scratch()))?;
        assert!(bytes == through_files.into_bytes().unwrap());
    }
    let index = Index::from_bytes(bytes).unwrap();
    index.verify().unwrap();
    Ok(index)
}

/// One line for each path: kind, owner, link count and, for a file with several names, the first of them.
fn listing(index: &Index) -> Vec<String> {
    let mut lines = BTreeMap::new();
    let mut names: BTreeMap<NodeId, BTreeSet<String>> = BTreeMap::new();
    let mut directories = vec![(NodeId::ROOT, String::new())];
    while let Some((directory, path)) = directories.pop() {
        lines.insert(path.clone(), directory);
        for child in index.children(directory) {
            let path = format!("{path}/{}", String::from_utf8_lossy(child.name));
            assert!(!child.whiteout);
            if child.kind == Kind::Directory {
                assert!(!index.is_implicit(child.node) && !index.is_opaque(child.node));
                directories.push((child.node, path));
            } else {
                lines.insert(path.clone(), child.node);
                names.entry(child.node).or_default().insert(path);
            }
        }
    }
    let line = |(path, node): (String, NodeId)| {
        let attributes = index.attributes(node).unwrap();
        let (uid, nlink) = (attributes.uid, attributes.nlink);
        match names.get(&node) {
            None => format!("{path} d {uid} {nlink}"),
            Some(names) => format!("{path} f {uid} {nlink} {}", names.first().unwrap()),
        }
    };
    lines.into_iter().map(line).collect()
}

fn s(text: &str) -> String {
    text.to_owned()
}

#[test]
fn nothing_and_one_layer_are_stacks() {
    assert_eq!(listing(&merged(&[]).unwrap()), [" d 0 2"]);
    let single = layer(&[File(s("d/a"), 1), Whiteout(s("x")), Whiteout(s("y/z")), Opaque(s("d"))]);
    assert_eq!(listing(&merged(&[single]).unwrap()), [" d 0 3", "/d d 0 2", "/d/a f 1 1 /d/a"]);
}

#[test]
fn whiteouts_hide_files_and_whole_directories() {
    let lower = layer(&[File(s("a"), 1), File(s("d/b"), 2), File(s("e/f/c"), 3)]);
    let upper = layer(&[Whiteout(s("a")), Whiteout(s("d")), Whiteout(s("e/f"))]);
    let top = layer(&[File(s("d/new"), 4)]);
    assert_eq!(
        listing(&merged(&[lower, upper, top]).unwrap()),
        [" d 0 4", "/d d 0 2", "/d/new f 4 1 /d/new", "/e d 0 2"]
    );
}

#[test]
fn markers_of_a_layer_do_not_touch_the_layer_itself() {
    let lower = layer(&[Directory(s("d"), 1), File(s("d/old"), 2), File(s("f"), 3)]);
    for steps in [
        [File(s("d/new"), 5), Whiteout(s("d")), Whiteout(s("f")), File(s("f"), 6)],
        [File(s("f"), 6), Whiteout(s("f")), Whiteout(s("d")), File(s("d/new"), 5)],
    ] {
        let merged = merged(&[lower.clone(), layer(&steps)]).unwrap();
        assert_eq!(listing(&merged), [" d 0 3", "/d d 0 2", "/d/new f 5 1 /d/new", "/f f 6 1 /f"]);
    }
}

#[test]
fn an_opaque_directory_keeps_its_attributes_if_it_has_no_entry() {
    let lower = layer(&[Directory(s("d"), 1), File(s("d/old"), 2)]);
    let upper = layer(&[File(s("d/new"), 3), Opaque(s("d"))]);
    assert_eq!(listing(&merged(&[lower.clone(), upper]).unwrap())[1..], ["/d d 1 2", "/d/new f 3 1 /d/new"]);
    let upper = layer(&[Directory(s("d"), 7), Opaque(s("d"))]);
    assert_eq!(listing(&merged(&[lower.clone(), upper]).unwrap())[1..], ["/d d 7 2"]);
    let root = layer(&[Opaque(s(".")), File(s("x"), 4)]);
    assert_eq!(listing(&merged(&[lower, root]).unwrap()), [" d 0 2", "/x f 4 1 /x"]);
}

#[test]
fn implicit_directories_take_the_attributes_below() {
    let bottom = layer(&[Directory(s("."), 9), Directory(s("d"), 1), File(s("f"), 2)]);
    let middle = layer(&[File(s("d/a"), 3), File(s("f/b"), 4)]);
    let top = layer(&[File(s("d/c"), 5)]);
    assert_eq!(
        listing(&merged(&[bottom, middle, top]).unwrap()),
        [" d 9 4", "/d d 1 2", "/d/a f 3 1 /d/a", "/d/c f 5 1 /d/c", "/f d 0 2", "/f/b f 4 1 /f/b"]
    );
}

#[test]
fn markers_alone_make_nothing() {
    let lower = layer(&[File(s("f"), 1), Directory(s("d"), 2), File(s("d/x"), 3)]);
    let upper = layer(&[Whiteout(s("f/x")), Opaque(s("d")), Whiteout(s("gone/x")), Opaque(s("away"))]);
    assert_eq!(listing(&merged(&[lower, upper]).unwrap())[1..], ["/d d 2 2", "/f f 1 1 /f"]);
}

#[test]
fn files_and_directories_replace_each_other() {
    let lower = layer(&[File(s("a"), 1), Directory(s("b"), 2), File(s("b/c"), 3)]);
    let upper = layer(&[Directory(s("a"), 4), File(s("b"), 5)]);
    let top = layer(&[Directory(s("b"), 6)]);
    assert_eq!(listing(&merged(&[lower.clone(), upper.clone()]).unwrap())[1..], ["/a d 4 2", "/b f 5 1 /b"]);
    assert_eq!(listing(&merged(&[lower, upper, top]).unwrap())[1..], ["/a d 4 2", "/b d 6 2"]);
}

#[test]
fn a_path_through_a_lower_link_is_not_followed() {
    let mut lower = Builder::new();
    for (path, target) in [(&b"a"[..], &b"/etc"[..]), (b"b", b"../..")] {
        lower.add(path, Metadata::default(), Content::Symlink { target }).unwrap();
    }
    let lower = finish(lower, 1);
    let upper = layer(&[File(s("a/passwd"), 5), File(s("b/c"), 6)]);
    let merged = merged(&[lower, upper]).unwrap();
    let names = ["a", "b"].map(|name| merged.lookup(NodeId::ROOT, name.as_bytes()).unwrap());
    assert!(names.iter().all(|node| merged.attributes(*node).unwrap().kind == Kind::Directory));
    assert!(merged.lookup(names[0], b"passwd").is_some() && merged.lookup(names[1], b"c").is_some());
    assert!(merged.lookup(NodeId::ROOT, b"etc").is_none());
}

#[test]
fn links_to_lower_files_are_further_names_of_them() {
    let bottom = layer(&[File(s("a"), 1), File(s("d/b"), 2), Link(s("c"), s("d/b"))]);
    let middle = layer(&[Link(s("e"), s("a")), Link(s("f"), s("d/b")), Whiteout(s("a"))]);
    // Through a link of a link, after the name is gone, and to a name that this layer changes afterwards.
    let top = layer(&[Link(s("g"), s("e")), File(s("e"), 7), Whiteout(s("d"))]);
    let merged = merged(&[bottom, middle, top]).unwrap();
    assert_eq!(listing(&merged)[1..], ["/c f 2 2 /c", "/e f 7 1 /e", "/f f 2 2 /c", "/g f 1 1 /g"]);
    let node = merged.lookup(NodeId::ROOT, b"g").unwrap();
    let extents: Vec<_> = merged.extents(node).collect();
    assert_eq!(extents, [Extent { offset: 0, length: 1, layer: 0, source: 512 }]);
}

#[test]
fn links_to_nothing_are_refused() {
    let bottom = layer(&[Directory(s("d"), 1), File(s("f"), 2)]);
    for target in ["absent", "d", "f/x", "d/x"] {
        let upper = layer(&[Link(s("x/link"), s(target))]);
        let error = merged(&[bottom.clone(), upper]).unwrap_err();
        let expected =
            MergeError::LinkTarget { layer: 1, entry: b"x/link".to_vec(), target: target.as_bytes().to_vec() };
        assert_eq!(error, expected);
    }
    let alone = layer(&[Link(s("link"), s("a"))]);
    let error = merged(&[alone]).unwrap_err();
    assert_eq!(error.to_string(), "layer 0: target \"a\" of the hard link \"link\" does not exist");
}

#[test]
fn data_and_attributes_come_along() {
    let sparse = [Segment { offset: 512, length: 512, source: 1024 }];
    let xattrs = vec![(b"user.a".to_vec(), b"b".to_vec())];
    let metadata = Metadata { permissions: 0o4755, uid: 1, gid: 2, xattrs, ..Metadata::default() };
    let mut builder = Builder::new();
    builder.add(b"sparse", metadata.clone(), Content::Regular { size: 4096, segments: &sparse }).unwrap();
    builder.add(b"link", metadata, Content::Symlink { target: b"sparse" }).unwrap();
    let merged = merged(&[layer(&[]), finish(builder, 1)]).unwrap();
    let node = |name: &[u8]| merged.lookup(NodeId::ROOT, name).unwrap();
    assert_eq!(merged.symlink_target(node(b"link")), Some(&b"sparse"[..]));
    assert_eq!(merged.xattrs(node(b"link")).collect::<Vec<_>>(), [(&b"user.a"[..], &b"b"[..])]);
    let extents: Vec<_> = merged.extents(node(b"sparse")).collect();
    assert_eq!(extents, [Extent { offset: 512, length: 512, layer: 1, source: 1024 }]);
    assert_eq!(merged.object(node(b"sparse")).map(|object| object.layer), Some(1));
    assert_eq!(merged.layer_count(), 2);
    assert_eq!(merged.layer(1).map(|layer| layer.diff_id), Some(DiffId(Digest::of(&1usize.to_le_bytes()))));
}

#[test]
fn a_deep_tree_needs_no_stack() {
    let path = "d/".repeat(2047) + "f";
    let lower = layer(&[File(path.clone(), 1)]);
    let upper = layer(&[File(path.clone(), 2)]);
    let merged = merged(&[lower, upper]).unwrap();
    assert_eq!(merged.inode_count(), 2049);
    let file = path::components(path.as_bytes())
        .try_fold(NodeId::ROOT, |directory, name| merged.lookup(directory, name))
        .unwrap();
    assert_eq!(merged.attributes(file).unwrap().uid, 2);
    assert_eq!(merged.path_of(file), Some(path.into_bytes()));
}

/// The same rules, told in the plainest way: a map from paths to what is there.
#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<String, Node>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    Directory {
        uid: u32,
    },
    /// Files with the same identity are hard links of each other.
    File {
        uid: u32,
        identity: usize,
    },
}

/// What a layer has, path by path.
#[derive(Clone, Debug, Default)]
struct ModelLayer {
    entries: BTreeMap<String, ModelEntry>,
    /// Paths that the layer says are gone.
    gone: BTreeSet<String>,
    /// Directories whose contents the layer says are gone.
    emptied: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum ModelEntry {
    Directory(u32),
    File { uid: u32, identity: usize },
    Foreign(String),
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect()
}

fn is_below(path: &str, directory: &str) -> bool {
    directory == "." || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

impl ModelLayer {
    /// Adds a step unless it is invalid; says whether it was.
    fn add(&mut self, step: &Step, identity: usize) -> bool {
        let path = match step {
            File(path, _) | Directory(path, _) | Link(path, _) | Whiteout(path) | Opaque(path) => path,
        };
        let is_file = |path: &String| !matches!(self.entries.get(path), None | Some(ModelEntry::Directory(_)));
        if parents(path).iter().any(is_file) || matches!(step, Opaque(_)) && is_file(path) {
            return false;
        }
        match step {
            File(_, uid) => self.put(path, ModelEntry::File { uid: *uid, identity }),
            Directory(_, uid) => {
                if is_file(path) {
                    self.emptied.insert(path.clone());
                }
                self.entries.insert(path.clone(), ModelEntry::Directory(*uid));
            }
            Link(_, target) => {
                let has_below = self.entries.keys().any(|other| is_below(other, target));
                // Directories on the way to a marker are there for a link, too.
                let has_markers = self.gone.iter().any(|other| is_below(other, target))
                    || self.emptied.iter().any(|other| other == target || is_below(other, target));
                match self.entries.get(target).cloned() {
                    _ if path == target => return false,
                    Some(ModelEntry::Directory(_)) => return false,
                    Some(entry) => self.put(path, entry),
                    None if has_below || has_markers => return false,
                    None => self.put(path, ModelEntry::Foreign(target.clone())),
                }
            }
            Whiteout(_) => {
                self.gone.insert(path.clone());
            }
            Opaque(_) => {
                self.emptied.insert(path.clone());
            }
        }
        true
    }

    fn put(&mut self, path: &str, entry: ModelEntry) {
        for set in [&mut self.gone, &mut self.emptied] {
            set.retain(|other| !is_below(other, path));
        }
        self.emptied.remove(path);
        self.entries.retain(|other, _| !is_below(other, path));
        self.entries.insert(path.to_owned(), entry);
    }
}

impl Model {
    fn stack(&mut self, layer: &ModelLayer) -> Result<(), ()> {
        let below = self.clone();
        let directory_below = |path: &String| matches!(below.0.get(path), Some(Node::Directory { .. }));
        // Markers speak about what is below, and only where the layers below have directories on the way.
        for gone in layer.gone.iter().filter(|path| parents(path).iter().all(directory_below)) {
            self.0.retain(|path, _| path != gone && !is_below(path, gone));
        }
        for emptied in layer.emptied.iter().filter(|path| *path == "." || directory_below(path)) {
            self.0.retain(|path, _| !is_below(path, emptied));
        }
        for (path, entry) in &layer.entries {
            for parent in parents(path) {
                if !matches!(self.0.get(&parent), Some(Node::Directory { .. })) {
                    self.0.insert(parent, Node::Directory { uid: 0 });
                }
            }
            let node = match entry {
                ModelEntry::Directory(uid) => Node::Directory { uid: *uid },
                ModelEntry::File { uid, identity } => Node::File { uid: *uid, identity: *identity },
                ModelEntry::Foreign(target) => {
                    *below.0.get(target).filter(|node| matches!(node, Node::File { .. })).ok_or(())?
                }
            };
            if let Node::File { .. } = node {
                self.0.retain(|other, _| !is_below(other, path));
            }
            self.0.insert(path.clone(), node);
        }
        Ok(())
    }

    fn listing(&self) -> Vec<String> {
        let subdirectories = |path: &str| {
            let inside = |other: &&String| match other.rsplit_once('/') {
                Some((parent, _)) => parent == path,
                None => path.is_empty(),
            };
            let directories = self.0.iter().filter(|(_, node)| matches!(node, Node::Directory { .. }));
            directories.filter(|(other, _)| inside(other)).count()
        };
        let mut lines = vec![(String::new(), format!(" d 0 {}", 2 + subdirectories("")))];
        for (path, node) in &self.0 {
            let line = match node {
                Node::Directory { uid } => format!("/{path} d {uid} {}", 2 + subdirectories(path)),
                Node::File { uid, identity } => {
                    let same = |other: &&Node| matches!(other, Node::File { identity: i, .. } if i == identity);
                    let first = self.0.iter().find(|(_, node)| same(node)).unwrap().0;
                    format!("/{path} f {uid} {} /{first}", self.0.values().filter(same).count())
                }
            };
            lines.push((format!("/{path}"), line));
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (a_path(), 1..1000u32).prop_map(|(path, uid)| File(path, uid)),
        3 => (a_path(), 1..1000u32).prop_map(|(path, uid)| Directory(path, uid)),
        2 => (a_path(), a_path()).prop_map(|(path, target)| Link(path, target)),
        2 => a_path().prop_map(Whiteout),
        1 => prop_oneof![9 => a_path(), 1 => Just(".".to_owned())].prop_map(Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
    #[test]
    fn merging_is_applying_layer_after_layer(
        layers in prop::collection::vec(prop::collection::vec(a_step(), 0..12), 1..5)
    ) {
        let mut model = Model::default();
        let mut indexes = Vec::new();
        let mut identity = 0;
        for steps in &layers {
            let mut builder = Builder::new();
            let mut model_layer = ModelLayer::default();
            for step in steps {
                identity += 1;
                let accepted = model_layer.add(step, identity);
                prop_assert_eq!(apply(&mut builder, step).is_ok(), accepted, "{:?}", step);
            }
            indexes.push(finish(builder, indexes.len()));
            let whole = merged(&indexes);
            match model.stack(&model_layer) {
                Err(()) => {
                    prop_assert!(matches!(whole, Err(MergeError::LinkTarget { .. })), "{:?}", whole.map(|i| listing(&i)));
                    return Ok(());
                }
                Ok(()) => prop_assert_eq!(listing(&whole.unwrap()), model.listing()),
            }
        }
        // A merged index can stand for its layers; even the bytes are the same.
        let half = indexes.len() / 2;
        let lower = merged(&indexes[..half]).unwrap();
        let again = merge(&std::iter::once(&lower).chain(&indexes[half..]).collect::<Vec<_>>()).unwrap();
        prop_assert_eq!(again, merge(&indexes.iter().collect::<Vec<_>>()).unwrap());
    }
}

#[test]
fn damage_is_an_error_or_a_wrong_answer() {
    let lower = layer(&[File(s("d/a"), 1), File(s("d/e/b"), 2), File(s("f/c"), 3)]);
    let upper = layer(&[Link(s("g"), s("d/a")), File(s("d/e/x"), 4), Whiteout(s("f")), Opaque(s("d/e"))]);
    let bytes = upper.as_bytes().to_vec();
    for position in 0..bytes.len() {
        for value in [0, 1, 0x40, 0xff] {
            let mut damaged = bytes.clone();
            damaged[position] = value;
            if let Ok(index) = Index::from_bytes(damaged) {
                let _ = merge(&[&lower, &index]).map(|bytes| Index::from_bytes(bytes).unwrap());
                let _ = merge(&[&index, &lower]).map(|bytes| Index::from_bytes(bytes).unwrap());
            }
        }
    }
}

/// Layers that have many links and names, so that merging them needs every table.
fn wide(number: u32, names: u32) -> Index {
    let mut builder = Builder::new();
    for name in 0..names {
        let path = format!("{}/{name}-{}", name % 7, if name % 3 == 0 { number } else { 0 });
        apply(&mut builder, &File(path.clone(), name)).unwrap();
        if name % 5 == 0 {
            apply(&mut builder, &Link(format!("links/{name}-{number}"), path)).unwrap();
        }
    }
    finish(builder, number as usize)
}

#[test]
fn temporary_files_that_cannot_be_had_or_written_are_an_error() {
    static NONE: crate::Memory = crate::Memory::new(0);
    let layers: Vec<Index> = (0..3).map(|number| wide(number, 40_000)).collect();
    let layers: Vec<&Index> = layers.iter().collect();
    let expected = merge(&layers).unwrap();
    let merged = |scratch: &crate::Scratch| -> Result<Vec<u8>, MergeError> {
        Ok(merge_index(&layers, Some(scratch))?.into_bytes()?)
    };
    for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::NOSPC] {
        let (mut failed, mut nth) = (0, 0);
        loop {
            let made = std::sync::Arc::new(AtomicUsize::new(0));
            let count = std::sync::Arc::clone(&made);
            let scratch = crate::Scratch::new(&NONE, move || match count.fetch_add(1, Ordering::Relaxed) == nth {
                false => tempfile::tempfile(),
                true if errno == rustix::io::Errno::MFILE => Err(errno.into()),
                // Whatever is written there finds no space.
                true => std::fs::File::options().read(true).write(true).open("/dev/full"),
            });
            match merged(&scratch) {
                Err(MergeError::Table(TableError::Scratch(error))) => {
                    assert_eq!(error.to_io().raw_os_error(), Some(errno.raw_os_error()), "{errno} at file {nth}");
                    failed += 1;
                }
                // It needs not so many, or did not have to write what is in this one.
                result => assert!(result.unwrap() == expected, "{errno} at file {nth}"),
            }
            nth += 1;
            if made.load(Ordering::Relaxed) < nth {
                break;
            }
        }
        assert!(failed >= 3, "{errno}: {failed} of {nth}");
    }
}

#[test]
fn as_many_layers_as_there_may_be_need_few_files() {
    static NONE: crate::Memory = crate::Memory::new(0);
    let layers: Vec<Index> = (0..512).map(|number| wide(number, 30)).collect();
    let layers: Vec<&Index> = layers.iter().collect();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let most = std::sync::Arc::new(AtomicUsize::new(0));
    let seen = std::sync::Arc::clone(&most);
    let scratch = crate::Scratch::new(&NONE, move || {
        let file = tempfile::tempfile()?;
        seen.fetch_max(open(), Ordering::Relaxed);
        Ok(file)
    });
    let through_files = merge_index(&layers, Some(&scratch)).unwrap().into_bytes().unwrap();
    assert!(through_files == merge(&layers).unwrap());
    // A process may have 1024 open, among them those of the layers themselves, if they are not closed once mapped.
    let most = most.load(Ordering::Relaxed) - before;
    assert!((256..600).contains(&most), "{most} files at a time");
}
