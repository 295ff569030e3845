//! What a container changed: the list and the layer. No mount is needed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use strata_layer::index::Index;
use strata_layer::ingest::LayerIngest;
use strata_layer::tar::Limits;
use strata_layer::tar_writer::TarWriter;
use strata_unionfs::{
    Access, Caller, ChangeKind, Ino, Lower, Metacopy, MountPoints, MountSpec, New, Options, RenameMode, SetAttributes,
    Tree, Upper, UpperError, changes, write_changes, write_merged,
};

const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

struct Fixture {
    temp: tempfile::TempDir,
    spec: MountSpec,
}

impl Fixture {
    fn new() -> Fixture {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["lower/etc/conf.d", "lower/usr/share", "lower/old/deep/er", "upper", "work"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        for file in ["etc/passwd", "etc/conf.d/a", "usr/share/b", "old/x", "old/deep/er/y", "linked"] {
            fs::write(temp.path().join("lower").join(file), file).unwrap();
        }
        fs::hard_link(temp.path().join("lower/linked"), temp.path().join("lower/usr/linked")).unwrap();
        let spec = MountSpec {
            lower: Lower::Folders(vec![temp.path().join("lower")]),
            upper: Some(Upper { dir: temp.path().join("upper"), work: temp.path().join("work") }),
            options: Options::default(),
        };
        Fixture { temp, spec }
    }

    fn tree(&self) -> Tree {
        Tree::open(&self.spec).unwrap()
    }

    fn changes(&self) -> Vec<String> {
        let letter = |kind| match kind {
            ChangeKind::Modified => 'C',
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
        };
        let found = changes(&self.spec, &mount_points()).unwrap();
        found
            .iter()
            .map(|change| format!("{} {}", letter(change.kind), String::from_utf8_lossy(&change.path)))
            .collect()
    }

    /// The names in the layer, with the type flag of each.
    fn layer(&self) -> Vec<String> {
        let mut out = TarWriter::new(Vec::new());
        write_changes(&self.spec, &mount_points(), &mut out).unwrap();
        entries(&out.finish().unwrap().0)
    }
}

fn mount_points() -> MountPoints {
    MountPoints::new(["/dev", "/etc/hosts", "/made/for/it"])
}

fn entries(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let name = |entry: &tar::Entry<'_, &[u8]>| {
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        match entry.link_name().unwrap() {
            Some(target) => format!("{path} -> {}", target.display()),
            None => path,
        }
    };
    archive.entries().unwrap().map(|entry| name(&entry.unwrap())).collect()
}

fn find(tree: &Tree, path: &str) -> Ino {
    path.split('/').filter(|part| !part.is_empty()).fold(Ino::ROOT, |dir, part| {
        tree.lookup(dir, part.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}")).ino
    })
}

fn write(tree: &Tree, path: &str, data: &str) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = find(tree, dir);
    let ino = match tree.lookup(dir, name.as_bytes()) {
        Ok(stat) => stat.ino,
        Err(_) => tree.create(dir, name.as_bytes(), New::File { open: false }, 0o644, 0o022, &ROOT_USER).unwrap().ino,
    };
    let _ = tree.open_file(ino, Access { write: true, truncate: true, ..Access::default() }).unwrap();
    tree.write(ino, data.as_bytes(), 0, false).unwrap();
    tree.release(ino);
}

#[test]
fn a_layer_has_one_server() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    assert!(matches!(Tree::open(&fixture.spec), Err(strata_unionfs::OpenError::Upper(UpperError::InUse { .. }))));
    drop(tree);
    fixture.tree();
}

#[test]
fn nothing_done_is_nothing_changed() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    tree.read(find(&tree, "etc/passwd"), &mut [0; 10], 0).unwrap();
    assert_eq!(fixture.changes(), [""; 0]);
    assert_eq!(fixture.layer(), [""; 0]);
}

#[test]
fn unused_mount_points_that_were_made_for_a_container_are_no_changes() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    for path in ["dev", "made", "made/for"] {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        tree.create(find(&tree, parent), name.as_bytes(), New::Directory, 0o755, 0, &ROOT_USER).unwrap();
    }
    write(&tree, "etc/hosts", "");
    write(&tree, "made/for/it", "");
    drop(tree);
    assert_eq!((fixture.changes(), fixture.layer()), (Vec::new(), Vec::new()));
    let untouched = MountSpec { upper: None, ..fixture.spec.clone() };
    let mut tell = |difference: strata_unionfs::Difference| panic!("{difference:?} is told");
    let none = MountPoints::default();
    let sides = [(&untouched, &none), (&fixture.spec, &mount_points())];
    strata_unionfs::compare(sides, &mut tell).unwrap();
    // Of two images nothing is passed over.
    let mut told = Vec::new();
    let mut tell = |difference: strata_unionfs::Difference| {
        told.push(String::from_utf8(difference.path).unwrap());
        Ok(())
    };
    strata_unionfs::compare(sides.map(|(spec, _)| (spec, &none)), &mut tell).unwrap();
    assert!(["/dev", "/etc/hosts", "/made"].iter().all(|path| told.iter().any(|told| told == path)), "{told:?}");
    // What somebody has put something in is a change, with all above it.
    let tree = fixture.tree();
    write(&tree, "dev/used", "");
    write(&tree, "etc/hosts", "127.0.0.1 here");
    write(&tree, "made/for/other", "");
    drop(tree);
    assert_eq!(
        fixture.changes(),
        ["A /dev", "A /dev/used", "C /etc", "A /etc/hosts", "A /made", "A /made/for", "A /made/for/other"]
    );
    assert_eq!(fixture.layer(), ["dev/", "dev/used", "etc/", "etc/hosts", "made/", "made/for/", "made/for/other"]);
}

#[test]
fn each_kind_of_change_is_listed_with_the_folders_above() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    write(&tree, "etc/passwd", "changed");
    write(&tree, "etc/conf.d/new", "new");
    tree.unlink(find(&tree, "usr/share"), b"b").unwrap();
    tree.create(Ino::ROOT, b"dir", New::Directory, 0o755, 0, &ROOT_USER).unwrap();
    write(&tree, "dir/file", "x");
    let all = [
        "A /dir",
        "A /dir/file",
        "C /etc",
        "A /etc/conf.d/new",
        "C /etc/passwd",
        "C /usr",
        "C /usr/share",
        "D /usr/share/b",
    ];
    let mut expected: Vec<&str> = all.to_vec();
    expected.insert(3, "C /etc/conf.d");
    assert_eq!(fixture.changes(), expected);
    assert_eq!(
        fixture.layer(),
        [
            "dir/",
            "dir/file",
            "etc/",
            "etc/conf.d/",
            "etc/conf.d/new",
            "etc/passwd",
            "usr/",
            "usr/share/",
            "usr/share/.wh.b"
        ]
    );
}

#[test]
fn a_file_that_was_copied_up_and_is_the_same_is_not_in_the_layer() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let ino = find(&tree, "etc/passwd");
    let _ = tree.open_file(ino, Access { write: true, truncate: false, ..Access::default() }).unwrap();
    tree.release(ino);
    assert!(fixture.temp.path().join("upper/etc/passwd").exists());
    assert_eq!(fixture.changes(), [""; 0]);
    assert_eq!(fixture.layer(), [""; 0]);
}

#[test]
fn other_content_of_the_same_size_and_time_is_in_the_layer() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let ino = find(&tree, "etc/passwd");
    let before = tree.stat(ino).unwrap();
    write(&tree, "etc/passwd", "ETC/PASSWD");
    let change = SetAttributes { mtime: Some(strata_unionfs::SetTime::At(before.mtime)), ..Default::default() };
    tree.set_attributes(ino, &change).unwrap();
    assert_eq!(fixture.layer(), ["etc/", "etc/passwd"]);
}

#[test]
fn a_directory_made_where_one_was_deleted_hides_it_in_the_layer() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    tree.unlink(find(&tree, "old/deep/er"), b"y").unwrap();
    tree.rmdir(find(&tree, "old/deep"), b"er").unwrap();
    tree.rmdir(find(&tree, "old"), b"deep").unwrap();
    tree.unlink(find(&tree, "old"), b"x").unwrap();
    tree.rmdir(Ino::ROOT, b"old").unwrap();
    assert_eq!(fixture.changes(), ["D /old"]);
    tree.create(Ino::ROOT, b"old", New::Directory, 0o755, 0, &ROOT_USER).unwrap();
    write(&tree, "old/x", "again");
    assert_eq!(fixture.changes(), ["C /old", "D /old/deep", "C /old/x"]);
    assert_eq!(fixture.layer(), ["old/", "old/.wh..wh..opq", "old/x"]);
}

#[test]
fn a_renamed_directory_is_whole_in_the_layer() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    tree.rename(Ino::ROOT, b"old", find(&tree, "usr"), b"moved", RenameMode::Replace).unwrap();
    assert_eq!(
        fixture.changes(),
        [
            "D /old",
            "C /usr",
            "A /usr/moved",
            "A /usr/moved/deep",
            "A /usr/moved/deep/er",
            "A /usr/moved/deep/er/y",
            "A /usr/moved/x"
        ]
    );
    assert_eq!(
        fixture.layer(),
        [
            ".wh.old",
            "usr/",
            "usr/moved/",
            "usr/moved/deep/",
            "usr/moved/deep/er/",
            "usr/moved/deep/er/y",
            "usr/moved/x"
        ]
    );
}

#[test]
fn a_change_of_a_linked_file_is_in_the_layer_under_every_name() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    write(&tree, "linked", "new");
    drop(tree);
    assert_eq!(fixture.changes(), ["C /linked", "C /usr", "C /usr/linked"]);
    assert_eq!(fixture.layer(), ["linked", "usr/", "usr/linked -> linked"]);
    let tree = fixture.tree();
    let (a, b) = (tree.lookup(Ino::ROOT, b"linked").unwrap(), tree.stat(find(&tree, "usr/linked")).unwrap());
    assert_eq!(a, b);
    assert_eq!(a.nlink, 2);
}

#[test]
fn the_layer_on_top_of_the_lowers_is_the_merged_tree() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    write(&tree, "etc/passwd", "changed");
    write(&tree, "etc/conf.d/new", "new");
    tree.rename(Ino::ROOT, b"old", find(&tree, "usr"), b"moved", RenameMode::Replace).unwrap();
    tree.unlink(find(&tree, "usr/share"), b"b").unwrap();
    drop(tree);
    let merged = merged_listing(&fixture.spec);
    let mut lower = fixture.spec.clone();
    lower.upper = None;
    let mut base = TarWriter::new(Vec::new());
    write_merged(&lower, &mut base).unwrap();
    let mut layer = TarWriter::new(Vec::new());
    write_changes(&fixture.spec, &MountPoints::default(), &mut layer).unwrap();
    let indexes: Vec<Index> = [base, layer].map(|out| index(&out.finish().unwrap().0)).into_iter().collect();
    let references: Vec<&Index> = indexes.iter().collect();
    let stacked = Index::from_bytes(strata_layer::merge::merge(&references).unwrap()).unwrap();
    assert_eq!(names(&stacked), merged);
}

fn index(tar: &[u8]) -> Index {
    let mut ingest = LayerIngest::new(Limits::default());
    ingest.push(tar).unwrap();
    Index::from_bytes(ingest.finish().unwrap().index).unwrap()
}

fn merged_listing(spec: &MountSpec) -> Vec<String> {
    let mut out = TarWriter::new(Vec::new());
    write_merged(spec, &mut out).unwrap();
    names(&index(&out.finish().unwrap().0))
}

fn names(index: &Index) -> Vec<String> {
    fn walk(index: &Index, dir: strata_layer::index::NodeId, path: &Path, out: &mut Vec<String>) {
        for child in index.children(dir) {
            let path = path.join(String::from_utf8_lossy(child.name).as_ref());
            let attributes = index.attributes(child.node).unwrap();
            out.push(format!(
                "{} {:?} {:o} {} {}",
                path.display(),
                attributes.kind,
                attributes.permissions,
                attributes.size,
                attributes.nlink
            ));
            if attributes.kind == strata_layer::index::Kind::Directory {
                walk(index, child.node, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(index, strata_layer::index::NodeId::ROOT, Path::new("/"), &mut out);
    out
}

/// The data of such files is in the lower; what is written out is whole.
#[test]
fn files_of_which_only_attributes_changed_are_written_with_their_data() {
    let mut fixture = Fixture::new();
    fixture.spec.options.metacopy = Metacopy::On;
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(fixture.temp.path().join("lower/etc/data"), &data).unwrap();
    let tree = fixture.tree();
    let chmod = SetAttributes { permissions: Some(0o600), ..Default::default() };
    for path in ["etc/data", "old/x"] {
        tree.set_attributes(find(&tree, path), &chmod).unwrap();
    }
    tree.rename(find(&tree, "etc"), b"data", find(&tree, "usr"), b"moved", RenameMode::Replace).unwrap();
    assert!(fs::symlink_metadata(fixture.temp.path().join("upper/usr/moved")).unwrap().blocks() <= 8);
    assert_eq!(fixture.changes(), ["C /etc", "D /etc/data", "C /old", "C /old/x", "C /usr", "A /usr/moved"]);
    let mut layer = TarWriter::new(Vec::new());
    write_changes(&fixture.spec, &MountPoints::default(), &mut layer).unwrap();
    let mut merged = TarWriter::new(Vec::new());
    write_merged(&fixture.spec, &mut merged).unwrap();
    for tar in [layer, merged].map(|writer| writer.finish().unwrap().0) {
        let mut found = 0;
        for entry in tar::Archive::new(&*tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let expected = match &*entry.path_bytes() {
                b"usr/moved" => &data[..],
                b"old/x" => b"old/x",
                _ => continue,
            };
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(content == expected, "{:?}", entry.path());
            assert_eq!(entry.header().mode().unwrap() & 0o7777, 0o600);
            found += 1;
        }
        assert_eq!(found, 2);
    }
}
