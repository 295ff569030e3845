//! The union's own rules, asked of the tree without a mount.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use strata_unionfs::{
    Access, Caller, Ino, Kind, Limits, Lower, Metacopy, MountSpec, New, Opened, Options, RenameMode, SetAttributes,
    SetGroupId, Stat, Tree, Upper, UserXattr,
};

const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const WRITE: Access = Access { write: true, truncate: false, kill_privileges: false };

/// Layers in a temporary folder on a disk.
struct Layers {
    temp: tempfile::TempDir,
    lowers: Vec<PathBuf>,
}

impl Layers {
    /// One lower with the given files, each holding its own path.
    fn new(files: &[&str]) -> Layers {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(temp.path().join(dir)).unwrap();
        }
        for file in files {
            let path = temp.path().join("lower").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let lowers = vec![temp.path().join("lower")];
        Layers { temp, lowers }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    fn spec(&self) -> MountSpec {
        MountSpec {
            lower: Lower::Folders(self.lowers.clone()),
            upper: Some(Upper { dir: self.at("upper"), work: self.at("work") }),
            options: Options::default(),
        }
    }

    fn tree(&self) -> Tree {
        Tree::open(&self.spec()).unwrap()
    }

    /// Makes the upper the topmost lower.
    fn rotate(&mut self) {
        let lower = self.at(&format!("old{}", self.lowers.len()));
        fs::rename(self.at("upper"), &lower).unwrap();
        self.lowers.insert(0, lower);
        fs::create_dir(self.at("upper")).unwrap();
    }
}

fn find(tree: &Tree, path: &str) -> Stat {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.fold(tree.stat(Ino::ROOT).unwrap(), |dir, part| {
        tree.lookup(dir.ino, part.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"))
    })
}

fn write(tree: &Tree, ino: Ino, data: &str) {
    let _ = tree.open_file(ino, WRITE).unwrap();
    tree.write(ino, data.as_bytes(), 0, false).unwrap();
    tree.release(ino);
}

fn content(tree: &Tree, ino: Ino) -> String {
    let mut data = vec![0; 1 << 16];
    let length = tree.read(ino, &mut data, 0).unwrap();
    String::from_utf8_lossy(&data[..length]).into_owned()
}

fn names(tree: &Tree, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    tree.read_dir(dir, 0, false, &mut |entry| {
        names.push(String::from_utf8_lossy(entry.name).into_owned());
        ControlFlow::Continue(())
    })
    .unwrap();
    names.retain(|name| name != "." && name != "..");
    names
}

fn permissions(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_file_without_a_name_is_a_file_and_can_be_named_once_or_more() {
    let layers = Layers::new(&["dir/file"]);
    let tree = layers.tree();
    let dir = find(&tree, "dir").ino;
    let made = tree.create_unnamed(dir, 0o666, 0o027, &ROOT_USER).unwrap();
    assert_eq!((made.nlink, made.permissions, made.size), (0, 0o640, 0));
    tree.write(made.ino, b"text", 0, false).unwrap();
    let change = SetAttributes { permissions: Some(0o600), ..Default::default() };
    assert_eq!(tree.set_attributes(made.ino, &change).unwrap().permissions, 0o600);
    assert_eq!(fs::read_dir(layers.at("upper/dir")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(layers.at("work/work")).unwrap().count(), 0);

    assert_eq!(tree.link(made.ino, dir, b"file").unwrap_err(), Errno::EXIST);
    let named = tree.link(made.ino, dir, b"named").unwrap();
    assert_eq!((named.ino, named.nlink), (made.ino, 1));
    assert_eq!(tree.link(made.ino, Ino::ROOT, b"again").unwrap().nlink, 2);
    tree.release(made.ino);
    assert_eq!(find(&tree, "again").ino, made.ino);
    assert_eq!(fs::read(layers.at("upper/dir/named")).unwrap(), b"text");

    let lost = tree.create_unnamed(dir, 0o666, 0, &ROOT_USER).unwrap();
    tree.release(lost.ino);
    tree.forget(lost.ino, 1);
    assert_eq!(tree.stat(lost.ino).unwrap_err(), Errno::STALE);
}

#[test]
fn a_deleted_file_cannot_be_named_again() {
    let layers = Layers::new(&["file"]);
    let tree = layers.tree();
    let ino = find(&tree, "file").ino;
    tree.unlink(Ino::ROOT, b"file").unwrap();
    assert_eq!(tree.link(ino, Ino::ROOT, b"new").unwrap_err(), Errno::NOENT);
}

#[test]
fn privileges_are_dropped_when_the_kernel_says_so_and_only_then() {
    let layers = Layers::new(&["file"]);
    fs::set_permissions(layers.at("lower/file"), fs::Permissions::from_mode(0o6755)).unwrap();
    let tree = layers.tree();
    let ino = find(&tree, "file").ino;
    let nothing = SetAttributes::default();
    assert_eq!(tree.set_attributes(ino, &nothing).unwrap().permissions, 0o6755);
    assert!(!layers.at("upper/file").exists(), "nothing asked, nothing copied");
    let truncate = SetAttributes { size: Some(2), ..nothing };
    assert_eq!(tree.set_attributes(ino, &truncate).unwrap().permissions, 0o6755);
    let kill = SetAttributes { kill_privileges: true, ..nothing };
    assert_eq!(tree.set_attributes(ino, &kill).unwrap().permissions, 0o755);

    tree.set_attributes(ino, &SetAttributes { permissions: Some(0o4711), ..nothing }).unwrap();
    let _ = tree.open_file(ino, Access { truncate: true, ..WRITE }).unwrap();
    assert_eq!(permissions(&layers.at("upper/file")), 0o4711);
    let _ = tree.open_file(ino, Access { truncate: true, kill_privileges: true, ..WRITE }).unwrap();
    assert_eq!(permissions(&layers.at("upper/file")), 0o711);
}

#[test]
fn a_rename_that_leaves_a_whiteout_leaves_nothing_to_be_seen() {
    let layers = Layers::new(&["lower", "other"]);
    let tree = layers.tree();
    tree.create(Ino::ROOT, b"born", New::File { open: false }, 0o644, 0, &ROOT_USER).unwrap();
    for (old, new) in [("born", "a"), ("lower", "b")] {
        tree.rename(Ino::ROOT, old.as_bytes(), Ino::ROOT, new.as_bytes(), RenameMode::WhiteoutNoReplace).unwrap();
        assert_eq!(tree.lookup(Ino::ROOT, old.as_bytes()).unwrap_err(), Errno::NOENT);
        let kind = fs::symlink_metadata(layers.at("upper").join(old)).unwrap().file_type();
        assert!(std::os::unix::fs::FileTypeExt::is_char_device(&kind), "{old}");
        // The name is free.
        tree.create(Ino::ROOT, old.as_bytes(), New::File { open: false }, 0o644, 0, &ROOT_USER).unwrap();
    }
    let taken = tree.rename(Ino::ROOT, b"a", Ino::ROOT, b"other", RenameMode::WhiteoutNoReplace);
    assert_eq!(taken.unwrap_err(), Errno::EXIST);
    tree.rename(Ino::ROOT, b"a", Ino::ROOT, b"other", RenameMode::Whiteout).unwrap();
    assert_eq!(content(&tree, find(&tree, "other").ino), "");
}

#[test]
fn a_birth_time_is_known_where_the_filesystem_has_one() {
    let layers = Layers::new(&["file"]);
    let tree = layers.tree();
    let expected = fs::metadata(layers.at("lower/file")).unwrap().created().ok();
    let birth = find(&tree, "file").birth;
    assert_eq!(birth.is_some(), expected.is_some());
    let made = tree.create(Ino::ROOT, b"new", New::File { open: false }, 0o644, 0, &ROOT_USER).unwrap();
    assert!(made.birth >= birth);
}

#[test]
fn flags_are_those_of_the_file_on_disk() {
    const NO_DUMP: u32 = 0x40;
    let layers = Layers::new(&["file"]);
    let tree = layers.tree();
    let ino = find(&tree, "file").ino;
    let Ok(before) = tree.flags(ino) else {
        println!("SKIPPED: the filesystem of the tests has no flags");
        return;
    };
    tree.set_flags(ino, before).unwrap();
    assert!(!layers.at("upper/file").exists(), "nothing changed, nothing copied");
    if tree.set_flags(ino, before | NO_DUMP).is_ok() {
        assert_eq!(tree.flags(ino).unwrap(), before | NO_DUMP);
        assert_eq!(content(&tree, ino), "file");
        let mut extended = tree.fsxattr(ino).unwrap();
        assert_ne!(extended.flags & 0x80, 0);
        extended.flags &= !0x80;
        tree.set_fsxattr(ino, &extended).unwrap();
        assert_eq!(tree.flags(ino).unwrap(), before);
    }
}

#[test]
fn a_node_is_found_by_its_number_while_somebody_holds_it() {
    let layers = Layers::new(&["dir/file"]);
    let tree = layers.tree();
    let ino = find(&tree, "dir/file").ino;
    assert_eq!(tree.by_number(ino).unwrap().ino, ino);
    write(&tree, ino, "changed");
    assert_eq!(tree.by_number(ino).unwrap().size, 8);
    assert_eq!(tree.by_number(Ino::ROOT).unwrap().ino, Ino::ROOT);
    assert_eq!(tree.by_number(Ino(u64::MAX)).unwrap_err(), Errno::STALE);
}

fn attributes(permissions: u16) -> SetAttributes {
    SetAttributes { permissions: Some(permissions), ..Default::default() }
}

/// The blocks of a file that lies in the upper, in units of 512 bytes; a filesystem may need some for the marks.
fn blocks(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::symlink_metadata(path).unwrap())
}

/// Layers with the file `dir/big` of many blocks, and files without data switched on whoever runs the test.
fn with_big_file() -> (Layers, MountSpec, Vec<u8>) {
    let layers = Layers::new(&["dir/file"]);
    let data: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(layers.at("lower/dir/big"), &data).unwrap();
    let mut spec = layers.spec();
    spec.options.metacopy = Metacopy::On;
    (layers, spec, data)
}

fn read_all(tree: &Tree, ino: Ino) -> Vec<u8> {
    let mut data = vec![0; 1 << 20];
    let length = tree.read(ino, &mut data, 0).unwrap();
    data.truncate(length);
    data
}

#[test]
fn data_follows_its_attributes_with_the_first_change() {
    let (layers, spec, data) = with_big_file();
    let tree = Tree::open(&spec).unwrap();
    let before = find(&tree, "dir/big");
    let after = tree.set_attributes(before.ino, &attributes(0o600)).unwrap();
    assert_eq!(
        (after.ino, after.size, after.blocks, after.mtime),
        (before.ino, before.size, before.blocks, before.mtime)
    );
    let upper = layers.at("upper/dir/big");
    assert!(blocks(&upper) <= 8);
    assert_eq!(read_all(&tree, before.ino), data);
    assert_eq!(tree.open_file(before.ino, Access::default()).unwrap(), Opened::Lower);
    assert_eq!(tree.seek(before.ino, 0, true).unwrap(), 0);

    // A writer that writes nothing moves no time.
    let _ = tree.open_file(before.ino, WRITE).unwrap();
    assert!(blocks(&upper) >= before.blocks);
    assert_eq!(tree.stat(before.ino).unwrap().mtime, before.mtime);
    tree.write(before.ino, b"XY", 3, false).unwrap();
    let mut expected = data;
    expected[3..5].copy_from_slice(b"XY");
    assert_eq!(read_all(&tree, before.ino), expected);
    assert_eq!(fs::read(&upper).unwrap(), expected);
    tree.release(before.ino);
}

#[test]
fn truncating_brings_only_what_is_kept() {
    let (layers, spec, data) = with_big_file();
    let tree = Tree::open(&spec).unwrap();
    let ino = find(&tree, "dir/big").ino;
    tree.set_attributes(ino, &attributes(0o600)).unwrap();
    let cut = SetAttributes { size: Some(5000), ..Default::default() };
    assert_eq!(tree.set_attributes(ino, &cut).unwrap().size, 5000);
    assert_eq!(fs::read(layers.at("upper/dir/big")).unwrap(), data[..5000]);
    assert!(blocks(&layers.at("upper/dir/big")) < 100);
}

#[test]
fn a_file_without_data_is_found_after_moves_links_and_remounts() {
    let (layers, spec, data) = with_big_file();
    let tree = Tree::open(&spec).unwrap();
    let (dir, before) = (find(&tree, "dir").ino, find(&tree, "dir/big").ino);
    tree.rename(dir, b"big", Ino::ROOT, b"moved", RenameMode::Replace).unwrap();
    tree.link(before, dir, b"linked").unwrap();
    tree.rename(Ino::ROOT, b"dir", Ino::ROOT, b"dir2", RenameMode::Replace).unwrap();
    drop(tree);
    let tree = Tree::open(&spec).unwrap();
    for path in ["moved", "dir2/linked"] {
        let found = find(&tree, path);
        assert_eq!((found.ino, found.nlink), (before, 2), "{path}");
        assert_eq!(read_all(&tree, found.ino), data, "{path}");
    }
    assert!(blocks(&layers.at("upper/moved")) <= 8);
    // Its lower file is hidden, and that is all that is seen of it.
    assert_eq!(tree.lookup(find(&tree, "dir2").ino, b"big").unwrap_err(), Errno::NOENT);
    let _ = tree.open_file(before, WRITE).unwrap();
    tree.write(before, b"!", 0, false).unwrap();
    tree.release(before);
    assert_eq!(read_all(&tree, find(&tree, "dir2/linked").ino)[..2], [b'!', data[1]]);
}

#[test]
fn a_deleted_file_without_data_is_served_while_it_is_held() {
    let (_layers, spec, data) = with_big_file();
    let tree = Tree::open(&spec).unwrap();
    let (dir, ino) = (find(&tree, "dir").ino, find(&tree, "dir/big").ino);
    tree.set_attributes(ino, &attributes(0o600)).unwrap();
    tree.unlink(dir, b"big").unwrap();
    assert_eq!(tree.stat(ino).unwrap().nlink, 0);
    assert_eq!(read_all(&tree, ino), data);
    let _ = tree.open_file(ino, WRITE).unwrap();
    tree.write(ino, b"?", 1, false).unwrap();
    assert_eq!(read_all(&tree, ino)[..2], [data[0], b'?']);
    tree.release(ino);
}

#[test]
fn links_of_one_lower_file_share_attributes_and_data() {
    let (layers, spec, data) = with_big_file();
    fs::hard_link(layers.at("lower/dir/big"), layers.at("lower/other")).unwrap();
    for round in 0..2 {
        let tree = Tree::open(&spec).unwrap();
        let first = find(&tree, "dir/big").ino;
        if round == 0 {
            tree.set_attributes(first, &attributes(0o640)).unwrap();
        }
        let other = find(&tree, "other");
        assert_eq!((other.ino, other.permissions, other.nlink), (first, 0o640, 2));
        assert_eq!(read_all(&tree, other.ino), data);
        if round == 1 {
            write(&tree, other.ino, "new");
            tree.rename(Ino::ROOT, b"other", Ino::ROOT, b"third", RenameMode::Replace).unwrap();
            assert_eq!(read_all(&tree, find(&tree, "dir/big").ino)[..4], [b'n', b'e', b'w', data[3]]);
            assert_eq!(find(&tree, "third").nlink, 2);
        }
    }
}

#[test]
fn forgotten_nodes_are_found_by_number_until_they_are_deleted() {
    let layers = Layers::new(&["dir/sub/lower", "dir/sub/copied", "dir/sub/gone", "away/moved"]);
    let tree = layers.tree();
    let sub = find(&tree, "dir/sub").ino;
    let made = tree.create(sub, b"born", New::File { open: false }, 0o644, 0, &ROOT_USER).unwrap().ino;
    let copied = find(&tree, "dir/sub/copied").ino;
    write(&tree, copied, "new");
    let gone = find(&tree, "dir/sub/gone").ino;
    let (lower, moved) = (find(&tree, "dir/sub/lower").ino, find(&tree, "away/moved").ino);
    let away = find(&tree, "away").ino;
    tree.rename(away, b"moved", sub, b"here", RenameMode::Replace).unwrap();
    tree.unlink(sub, b"gone").unwrap();
    tree.rename(Ino::ROOT, b"dir", Ino::ROOT, b"dir2", RenameMode::Replace).unwrap();
    let dir = find(&tree, "dir2").ino;
    let all = [made, copied, gone, lower, moved, sub, dir, away];
    for ino in all {
        tree.forget(ino, 100);
    }
    assert_eq!(tree.object_count(), 1, "the root is left");
    for (ino, content) in [(made, ""), (copied, "new/sub/copied"), (lower, "dir/sub/lower"), (moved, "away/moved")] {
        assert_eq!(tree.by_number(ino).unwrap().ino, ino);
        assert_eq!(self::content(&tree, ino), content);
        tree.forget(ino, 1);
    }
    assert_eq!(tree.by_number(gone).unwrap_err(), Errno::STALE);
    assert_eq!(tree.lookup(sub, b".").unwrap().ino, sub);
    assert_eq!(tree.lookup(sub, b"..").unwrap().ino, dir);
    for (ino, count) in [(sub, 1), (dir, 1)] {
        tree.forget(ino, count);
    }
    assert_eq!(tree.object_count(), 1);
}

/// What was copied up keeps its number when its layer is put below another, and when that is done again.
#[test]
fn numbers_stay_while_uppers_become_lowers() {
    let mut layers = Layers::new(&["a", "b", "dir/c", "dir/sub/d", "tree/e"]);
    let paths = ["a", "b2", "moved/c", "moved/sub/d", "moved", "moved/sub", "tree", "tree/e", "born"];
    let numbers = |tree: &Tree| paths.map(|path| find(tree, path).ino);
    let tree = layers.tree();
    write(&tree, find(&tree, "a").ino, "new");
    tree.rename(Ino::ROOT, b"b", Ino::ROOT, b"b2", RenameMode::Replace).unwrap();
    tree.set_attributes(find(&tree, "dir/c").ino, &attributes(0o600)).unwrap();
    tree.rename(Ino::ROOT, b"dir", Ino::ROOT, b"moved", RenameMode::Replace).unwrap();
    tree.create(Ino::ROOT, b"born", New::File { open: false }, 0o644, 0, &ROOT_USER).unwrap();
    let expected = numbers(&tree);
    drop(tree);
    for (round, path) in paths[..4].iter().enumerate() {
        layers.rotate();
        let tree = layers.tree();
        assert_eq!(numbers(&tree), expected, "rotated {} times", round + 1);
        tree.set_attributes(find(&tree, path).ino, &attributes(0o711)).unwrap();
        tree.set_attributes(find(&tree, "born").ino, &attributes(if round % 2 == 0 { 0o700 } else { 0o750 })).unwrap();
        assert_eq!(numbers(&tree), expected);
    }
}

#[test]
fn folders_that_lie_in_each_other_are_refused_and_left_alone() {
    let layers = Layers::new(&["file"]);
    for dir in ["upper/in", "upper/work", "work/in"] {
        fs::create_dir(layers.at(dir)).unwrap();
    }
    fs::write(layers.at("upper/work/mine"), "mine").unwrap();
    std::os::unix::fs::symlink(layers.at("upper"), layers.at("elsewhere")).unwrap();
    let open = |lower: &str, dir: &str, work: &str| {
        let lower = Lower::Folders(vec![layers.at("lower"), layers.at(lower)]);
        let upper = Some(Upper { dir: layers.at(dir), work: layers.at(work) });
        Tree::open(&MountSpec { lower, upper, options: Options::default() })
            .map(drop)
            .map_err(|error| error.to_string())
    };
    for (lower, dir, work) in [
        ("lower", "upper", "upper"),
        ("lower", "upper", "upper/in"),
        ("lower", "work/in", "work"),
        ("lower", "upper", "elsewhere"),
        ("upper", "upper", "work"),
        ("upper/in", "elsewhere", "work"),
        ("work/in", "upper", "work"),
    ] {
        let refused = open(lower, dir, work).unwrap_err();
        assert!(refused.contains("must be apart"), "{lower} {dir} {work}: {refused}");
    }
    assert_eq!(fs::read(layers.at("upper/work/mine")).unwrap(), b"mine");
    open("", "upper", "work").unwrap();
}

/// Names of one file are names of one file, wherever the stack has its copy.
#[test]
fn links_stay_together_while_uppers_become_lowers() {
    for keeps_work in [true, false] {
        let mut layers = Layers::new(&["dir/a", "dir/other"]);
        for name in ["b", "dir/c", "d"] {
            fs::hard_link(layers.at("lower/dir/a"), layers.at("lower").join(name)).unwrap();
        }
        let names = ["dir/a", "b", "dir/c", "d"];
        let tree = layers.tree();
        let number = find(&tree, "b").ino;
        write(&tree, number, "FIRST");
        let check = |tree: &Tree, names: &[&str], text: &str, when: &str| {
            for name in names {
                let found = find(tree, name);
                let seen = (found.ino, found.nlink as usize, content(tree, found.ino));
                assert_eq!(seen, (number, names.len(), text.to_owned()), "{name} {when}, work kept: {keeps_work}");
            }
        };
        check(&tree, &names, "FIRST", "changed");
        drop(tree);
        let rotate = |layers: &mut Layers, round: u32| {
            let old = layers.at(&format!("old{round}"));
            fs::rename(layers.at("upper"), &old).unwrap();
            layers.lowers.insert(0, old);
            if keeps_work {
                fs::rename(layers.at("work"), layers.at(&format!("work{round}"))).unwrap();
            } else {
                fs::remove_dir_all(layers.at("work")).unwrap();
            }
            for dir in ["upper", "work"] {
                fs::create_dir(layers.at(dir)).unwrap();
            }
        };
        rotate(&mut layers, 0);
        for listed in [false, true] {
            let tree = layers.tree();
            if listed {
                // What is listed is found in another way.
                tree.read_dir(find(&tree, "dir").ino, 0, false, &mut |_| ControlFlow::Continue(())).unwrap();
            }
            check(&tree, &names, "FIRST", "rotated");
        }
        let tree = layers.tree();
        write(&tree, find(&tree, "dir/c").ino, "SECOND");
        tree.unlink(find(&tree, "dir").ino, b"a").unwrap();
        check(&tree, &names[1..], "SECOND", "changed again");
        drop(tree);
        check(&layers.tree(), &names[1..], "SECOND", "mounted again");
        rotate(&mut layers, 1);
        let tree = layers.tree();
        check(&tree, &names[1..], "SECOND", "rotated again");
        tree.set_attributes(find(&tree, "d").ino, &attributes(0o600)).unwrap();
        tree.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", RenameMode::Replace).unwrap();
        check(&tree, &["b", "dir/c", "e"], "SECOND", "moved");
        drop(tree);
        rotate(&mut layers, 2);
        check(&layers.tree(), &["b", "dir/c", "e"], "SECOND", "rotated once more");
        // The copy loses all names that it has in the upper, in three ways; nobody has looked at the others.
        let tree = layers.tree();
        write(&tree, find(&tree, "b").ino, "THIRD.");
        tree.unlink(Ino::ROOT, b"b").unwrap();
        drop(tree);
        rotate(&mut layers, 3);
        let tree = layers.tree();
        check(&tree, &["dir/c", "e"], "THIRD.", "removed");
        write(&tree, find(&tree, "e").ino, "FOURTH");
        drop(tree);
        let tree = layers.tree();
        tree.rename(find(&tree, "dir").ino, b"other", Ino::ROOT, b"e", RenameMode::Replace).unwrap();
        drop(tree);
        rotate(&mut layers, 4);
        let tree = layers.tree();
        check(&tree, &["dir/c"], "FOURTH", "replaced");
        assert_eq!(find(&tree, "e").nlink, 1);
    }
}

/// What is written to an open file without a name is seen under those that it has left, there and a layer further up.
#[test]
fn a_copy_of_what_was_removed_has_the_other_names() {
    let mut layers = Layers::new(&["dir/a"]);
    fs::hard_link(layers.at("lower/dir/a"), layers.at("lower/b")).unwrap();
    let tree = layers.tree();
    let held = find(&tree, "b");
    tree.unlink(Ino::ROOT, b"b").unwrap();
    write(&tree, held.ino, "new");
    tree.forget(held.ino, 1);
    drop(tree);
    fs::remove_dir_all(layers.at("work")).unwrap();
    fs::create_dir(layers.at("work")).unwrap();
    layers.rotate();
    let tree = layers.tree();
    let found = find(&tree, "dir/a");
    assert_eq!((found.ino, found.nlink, content(&tree, found.ino)), (held.ino, 1, "new/a".to_owned()));
}

/// A file is copied to a place that is still known, though the kernel has forgotten the directory of another.
#[test]
fn a_forgotten_directory_of_a_file_with_several_names_does_not_matter() {
    for forgotten in ["a", "b"] {
        let layers = Layers::new(&["a/file", "b/other"]);
        fs::hard_link(layers.at("lower/a/file"), layers.at("lower/b/file")).unwrap();
        let tree = layers.tree();
        let file = find(&tree, "a/file").ino;
        assert_eq!(find(&tree, "b/file").ino, file);
        tree.forget(file, 1);
        tree.forget(tree.lookup(Ino::ROOT, forgotten.as_bytes()).unwrap().ino, 2);
        write(&tree, file, "new...");
        for name in ["a/file", "b/file"] {
            assert_eq!(content(&tree, find(&tree, name).ino), "new...", "{name}, {forgotten} was forgotten");
        }
    }
}

/// Numbers that were recorded over other lowers are not believed: they may be anybody's here.
#[test]
fn numbers_of_other_lowers_mean_nothing() {
    let layers = Layers::new(&["a", "b", "c"]);
    let tree = layers.tree();
    for (name, new) in [(&b"a"[..], &b"a2"[..]), (b"b", b"b2")] {
        tree.rename(Ino::ROOT, name, Ino::ROOT, new, RenameMode::Replace).unwrap();
    }
    drop(tree);
    // A copy whose files have other numbers.
    fs::rename(layers.at("lower"), layers.at("old")).unwrap();
    fs::create_dir(layers.at("lower")).unwrap();
    for name in ["c", "x", "y", "b", "a"] {
        fs::write(layers.at("lower").join(name), name).unwrap();
    }
    let tree = layers.tree();
    let found: Vec<Stat> = ["a2", "b2", "c", "x", "y"].map(|path| find(&tree, path)).into();
    let unique: std::collections::HashSet<Ino> = found.iter().map(|stat| stat.ino).collect();
    assert_eq!(unique.len(), found.len());
    for (stat, content) in found.iter().zip(["a", "b", "c", "x", "y"]) {
        if stat.size > 0 {
            assert_eq!(self::content(&tree, stat.ino), content);
        }
    }
}

/// As a moved folder is met again on the way that another one's redirect leads.
#[test]
fn redirects_chain_over_layers() {
    let mut layers = Layers::new(&["d/s/g", "d/s/t/h"]);
    let steps: [[&str; 2]; 4] = [["d", "n"], ["n/s", "q"], ["q/t", "n/u"], ["n", "m"]];
    for (round, [from, to]) in steps.iter().enumerate() {
        let tree = layers.tree();
        let place = |path: &'static str| {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            (find(&tree, dir).ino, name.as_bytes())
        };
        let ((dir, name), (new_dir, new_name)) = (place(from), place(to));
        tree.rename(dir, name, new_dir, new_name, RenameMode::Replace).unwrap();
        drop(tree);
        let lower = layers.at(&format!("layer{round}"));
        fs::rename(layers.at("upper"), &lower).unwrap();
        layers.lowers.insert(0, lower);
        fs::create_dir(layers.at("upper")).unwrap();
    }
    let tree = layers.tree();
    assert_eq!(content(&tree, find(&tree, "q/g").ino), "d/s/g");
    assert_eq!(content(&tree, find(&tree, "m/u/h").ino), "d/s/t/h");
    for gone in ["d", "n"] {
        assert_eq!(tree.lookup(Ino::ROOT, gone.as_bytes()).unwrap_err(), Errno::NOENT);
    }
    assert_eq!(tree.lookup(find(&tree, "m").ino, b"s").unwrap_err(), Errno::NOENT);
}

#[test]
fn attributes_named_like_marks_are_stored_apart() {
    let layers = Layers::new(&["dir/file"]);
    let tree = layers.tree();
    let ino = find(&tree, "dir/file").ino;
    let names = [&b"user.overlay.opaque"[..], b"trusted.overlay.redirect", b"trusted.overlay.overlay.x"];
    let flags = rustix::fs::XattrFlags::empty();
    let allowed =
        |name: &&&[u8]| !matches!(tree.set_xattr(ino, name, b"value", flags, SetGroupId::Keep), Err(Errno::PERM));
    let names: Vec<&&[u8]> = names.iter().filter(allowed).collect();
    for name in &names {
        assert_eq!(tree.xattr(ino, name).unwrap(), b"value");
        assert!(tree.list_xattrs(ino, true).unwrap().split(|byte| *byte == 0).any(|listed| *listed == ***name));
    }
    let shown = tree.list_xattrs(ino, true).unwrap();
    assert_eq!(shown.split(|byte| *byte == 0).filter(|name| !name.is_empty()).count(), names.len(), "no mark is seen");
    // They come along when the layer is a lower.
    drop(tree);
    fs::rename(layers.at("upper"), layers.at("layer")).unwrap();
    fs::create_dir(layers.at("upper")).unwrap();
    let layers = Layers { lowers: vec![layers.at("layer"), layers.at("lower")], ..layers };
    let tree = layers.tree();
    let ino = find(&tree, "dir/file").ino;
    tree.set_attributes(ino, &attributes(0o600)).unwrap();
    for name in &names {
        assert_eq!(tree.xattr(ino, name).unwrap(), b"value");
        tree.remove_xattr(ino, name).unwrap();
        assert_eq!(tree.xattr(ino, name).unwrap_err(), Errno::NODATA);
    }
}

/// Walked once and dropped, a tree leaves nothing behind.
#[test]
fn nothing_is_kept_of_a_tree_that_was_walked() {
    let layers = Layers::new(&["dir/file"]);
    for dir in 0..20 {
        let path = layers.at(&format!("lower/many/{dir}"));
        fs::create_dir_all(&path).unwrap();
        (0..300).for_each(|file| fs::write(path.join(file.to_string()), "").unwrap());
    }
    let tree = layers.tree();
    let many = find(&tree, "many").ino;
    let mut held = Vec::new();
    let mut todo = vec![many];
    while let Some(dir) = todo.pop() {
        tree.read_dir(dir, 0, true, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                held.push(entry.ino);
                if entry.kind == Kind::Directory {
                    todo.push(entry.ino);
                }
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    }
    assert_eq!(held.len(), 20 * 301);
    held.iter().for_each(|ino| tree.forget(*ino, 1));
    tree.forget(many, 1);
    assert_eq!(tree.object_count(), 1);
    assert!(tree.lower_count() < 10, "{}", tree.lower_count());
}

/// Numbers and data of an image's files: by slot, out of the tar.
#[test]
fn files_of_an_image_keep_their_data_below_their_attributes() {
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |path: &str| temp.path().join(path);
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in [("dir/big", &data[..]), ("dir/small", b"small"), ("other/file", b"file")] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content).unwrap();
    }
    fs::write(at("layer.tar"), tar.into_inner().unwrap()).unwrap();
    for dir in ["store", "upper", "work"] {
        fs::create_dir(at(dir)).unwrap();
    }
    let spec = MountSpec {
        lower: common::image::image(&at("store"), &[at("layer.tar")]).lower,
        upper: Some(Upper { dir: at("upper"), work: at("work") }),
        options: Options { metacopy: Metacopy::On, ..Options::default() },
    };
    let tree = Tree::open(&spec).unwrap();
    let (dir, before) = (find(&tree, "dir").ino, find(&tree, "dir/big"));
    tree.set_attributes(before.ino, &attributes(0o600)).unwrap();
    tree.rename(dir, b"big", Ino::ROOT, b"moved", RenameMode::Replace).unwrap();
    tree.rename(Ino::ROOT, b"dir", Ino::ROOT, b"dir2", RenameMode::Replace).unwrap();
    assert!(blocks(&at("upper/moved")) <= 8);
    drop(tree);

    let tree = Tree::open(&spec).unwrap();
    // By number alone, before anything was looked up; what was moved away from where the image has it is not found.
    let file = (1..20).map(Ino).find(|ino| tree.by_number(*ino).is_ok_and(|stat| stat.size == 4)).unwrap();
    assert_eq!(content(&tree, file), "file");
    let moved = find(&tree, "moved");
    assert_eq!((moved.ino, moved.permissions, moved.blocks), (before.ino, 0o600, before.blocks));
    assert_eq!(read_all(&tree, moved.ino), data);
    assert_eq!(find(&tree, "dir2").ino, dir);
    let _ = tree.open_file(moved.ino, WRITE).unwrap();
    tree.write(moved.ino, b"new", 0, false).unwrap();
    tree.release(moved.ino);
    assert_eq!(fs::read(at("upper/moved")).unwrap()[3..], data[3..]);
}

#[test]
fn a_move_that_fails_leaves_the_emptied_target_as_it_was() {
    let layers = Layers::new(&["src/a", "dst/f"]);
    fs::set_permissions(layers.at("lower/dst"), fs::Permissions::from_mode(0o751)).unwrap();
    let mut spec = layers.spec();
    spec.options.noredirect = true;
    let tree = Tree::open(&spec).unwrap();
    let target = find(&tree, "dst");
    tree.unlink(target.ino, b"f").unwrap();
    let refused = tree.rename(Ino::ROOT, b"src", Ino::ROOT, b"dst", RenameMode::Replace);
    assert_eq!(refused.unwrap_err(), Errno::XDEV);
    let after = find(&tree, "dst");
    assert_eq!((after.ino, after.permissions), (target.ino, 0o751));
    let file = New::File { open: false };
    assert!(tree.create(target.ino, b"new", file, 0o644, 0, &ROOT_USER).is_ok());
    assert_eq!(names(&tree, after.ino), ["new"]);
}

/// All that a crash can leave of it before the move itself: nothing is seen of it, not even another inode number.
#[test]
fn a_move_over_an_emptied_directory_may_end_anywhere() {
    for step in 0..3 {
        let layers = Layers::new(&["src/a", "dst/f", "dst/g"]);
        let tree = layers.tree();
        let target = find(&tree, "dst");
        tree.unlink(target.ino, b"f").unwrap();
        tree.unlink(target.ino, b"g").unwrap();
        // A file of the same layer, for the name of that.
        tree.set_attributes(find(&tree, "src/a").ino, &attributes(0o600)).unwrap();
        drop(tree);
        let below = layers.at("upper/dst");
        if step > 0 {
            let mut number = mark(&layers.at("upper/src/a"), "strata.ino").unwrap();
            number[..8].copy_from_slice(&target.ino.0.to_le_bytes());
            set_mark(&below, "strata.ino", &number);
            set_mark(&below, "opaque", b"y");
        }
        if step > 1 {
            fs::remove_file(below.join("f")).unwrap();
        }
        let tree = layers.tree();
        let found = find(&tree, "dst");
        assert_eq!((found.ino, names(&tree, found.ino)), (target.ino, vec![]), "step {step}");
        tree.rename(Ino::ROOT, b"src", Ino::ROOT, b"dst", RenameMode::Replace).unwrap();
        assert_eq!(names(&tree, find(&tree, "dst").ino), ["a"], "step {step}");
        assert_eq!(tree.lookup(Ino::ROOT, b"src").unwrap_err(), Errno::NOENT);
    }
}

/// What the kernel keeps of a folder's links is what any later server would say.
#[test]
fn links_of_a_folder_do_not_depend_on_what_was_asked_before() {
    let layers = Layers::new(&["dir/a/x", "dir/b/x"]);
    let full = Options { limits: Limits { bytes: None, inodes: Some(1) }, ..Options::default() };
    let tree = Tree::open(&MountSpec { options: full, ..layers.spec() }).unwrap();
    let dir = find(&tree, "dir");
    let mode = SetAttributes { permissions: Some(0o700), ..SetAttributes::default() };
    assert_eq!(tree.set_attributes(dir.ino, &mode).unwrap_err(), Errno::NOSPC);
    assert_eq!((dir.nlink, tree.stat(dir.ino).unwrap().nlink), (4, 4));
    drop(tree);
    for round in ["changed", "opened again"] {
        let tree = layers.tree();
        let dir = find(&tree, "dir");
        tree.set_attributes(dir.ino, &mode).unwrap();
        assert_eq!(tree.stat(dir.ino).unwrap().nlink, 1, "{round}: as overlayfs says of what several layers have");
    }
}

/// Writing takes capabilities away, and copying the data of a file that had only attributes writes.
#[test]
fn a_copy_of_data_that_was_cut_off_loses_no_capability() {
    let layers = Layers::new(&["file"]);
    let tree = layers.tree();
    // Version 2: CAP_NET_RAW is permitted.
    let capability = [&[1, 0, 0, 2, 0, 0x20, 0, 0][..], &[0; 12]].concat();
    let name = b"security.capability";
    let ino = find(&tree, "file").ino;
    if tree.set_xattr(ino, name, &capability, XattrFlags::empty(), SetGroupId::Keep).is_err() {
        println!("SKIPPED: needs the right to give capabilities");
        return;
    }
    drop(tree);
    let below = layers.at("upper/file");
    assert!(mark(&below, "metacopy").is_some());
    for opened in [false, true] {
        set_mark(&below, "strata.capability", &capability);
        rustix::fs::removexattr(&below, "security.capability").unwrap();
        let tree = layers.tree();
        let found = find(&tree, "file");
        let ino = found.ino;
        // Giving it back is a change.
        assert_eq!(found.ctime, tree.stat(ino).unwrap().ctime);
        if opened {
            let _ = tree.open_file(ino, WRITE).unwrap();
            tree.release(ino);
            assert_eq!((content(&tree, ino).as_str(), mark(&below, "metacopy")), ("file", None));
        }
        assert_eq!(tree.xattr(ino, name).unwrap(), capability, "opened: {opened}");
        assert_eq!(mark(&below, "strata.capability"), None);
    }
}

/// The same, for who may not give them back: only looks, or has the layer as a lower.
#[test]
fn who_only_looks_sees_the_capabilities_that_a_copy_cut_off_has_taken_away() {
    let mut layers = Layers::new(&["file"]);
    let capability = [&[1, 0, 0, 2, 0, 0x20, 0, 0][..], &[0; 12]].concat();
    let name = b"security.capability";
    let tree = layers.tree();
    let ino = find(&tree, "file").ino;
    tree.set_xattr(ino, b"user.a", b"1", XattrFlags::empty(), SetGroupId::Keep).unwrap();
    drop(tree);
    let below = layers.at("upper/file");
    set_mark(&below, "strata.capability", &capability);
    let shown = |tree: &Tree| {
        let ino = find(tree, "file").ino;
        let list = tree.list_xattrs(ino, true).unwrap();
        assert!(list.split(|byte| *byte == 0).any(|listed| listed == name), "listed");
        tree.xattr(ino, name).unwrap()
    };
    assert_eq!(shown(&Tree::observe(&layers.spec()).unwrap()), capability);
    assert!(mark(&below, "strata.capability").is_some(), "nothing is changed by looking");

    layers.rotate();
    let tree = layers.tree();
    assert_eq!(shown(&tree), capability);
    if rustix::process::geteuid().is_root() {
        // And so does what is copied from there.
        let ino = find(&tree, "file").ino;
        tree.set_xattr(ino, b"user.b", b"1", XattrFlags::empty(), SetGroupId::Keep).unwrap();
        assert_eq!(shown(&tree), capability);
    }
}

/// Anybody may give a file of his a `user.` attribute.
#[test]
fn a_capability_that_an_owner_of_a_lower_file_notes_is_none() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: nobody is deceived by what he may do himself");
        return;
    }
    let layers = Layers::new(&["file"]);
    let capability = [&[1, 0, 0, 2, 0, 0x20, 0, 0][..], &[0; 12]].concat();
    let lower = layers.at("lower/file");
    rustix::fs::setxattr(&lower, "user.overlay.strata.capability", &capability, XattrFlags::empty()).unwrap();
    let options = Options { userxattr: UserXattr::On, ..Options::default() };
    let tree = Tree::open(&MountSpec { options, ..layers.spec() }).unwrap();
    let ino = find(&tree, "file").ino;
    let looks = |tree: &Tree| tree.xattr(ino, b"security.capability").unwrap_err();
    assert_eq!((looks(&tree), tree.list_xattrs(ino, true).unwrap()), (Errno::NODATA, vec![]));
    tree.set_attributes(ino, &attributes(0o600)).unwrap();
    assert_eq!(looks(&tree), Errno::NODATA);
}

/// Returns a mark of a file in the upper.
fn mark(path: &Path, name: &str) -> Option<Vec<u8>> {
    ["trusted", "user"].into_iter().find_map(|prefix| {
        let mut value = [0; 256];
        let length = rustix::fs::getxattr(path, format!("{prefix}.overlay.{name}"), &mut value[..]).ok()?;
        Some(value[..length].to_vec())
    })
}

/// Sets a mark of a file in the upper, in the namespace that an ordinary mount of this user would take.
fn set_mark(path: &Path, name: &str, value: &[u8]) {
    let set = |prefix| rustix::fs::setxattr(path, format!("{prefix}.overlay.{name}"), value, XattrFlags::empty());
    set("trusted").or_else(|_| set("user")).unwrap();
}

#[test]
fn a_directory_is_moved_over_one_whose_files_were_deleted() {
    for covered in [true, false] {
        let layers = Layers::new(&["src/a", "dst/f"]);
        let tree = layers.tree();
        let target = find(&tree, "dst");
        tree.unlink(target.ino, b"f").unwrap();
        let name: &[u8] = if covered { b"src" } else { b"made" };
        if !covered {
            let made = tree.create(Ino::ROOT, name, New::Directory, 0o755, 0, &ROOT_USER).unwrap();
            let _ = tree.create(made.ino, b"a", New::File { open: false }, 0o644, 0, &ROOT_USER).unwrap();
        }
        tree.rename(Ino::ROOT, name, Ino::ROOT, b"dst", RenameMode::Replace).unwrap();
        let check = |tree: Tree| {
            assert_eq!(names(&tree, find(&tree, "dst").ino), ["a"], "covered: {covered}");
            assert_eq!(tree.lookup(Ino::ROOT, name).unwrap_err(), Errno::NOENT);
        };
        check(tree);
        check(layers.tree());
        assert_eq!(fs::read_dir(layers.at("work/work")).unwrap().count(), 0);
    }
}

#[test]
fn set_group_id_goes_with_an_access_list_when_the_kernel_says_so() {
    let layers = Layers::new(&["file"]);
    let tree = layers.tree();
    let ino = find(&tree, "file").ino;
    let flags = rustix::fs::XattrFlags::empty();
    let stranger = Caller { uid: 7, gid: 7, pid: 0 };
    for (setgid, stays) in [(SetGroupId::Keep, true), (SetGroupId::Drop, false), (SetGroupId::Judge(stranger), false)] {
        let change = SetAttributes { permissions: Some(0o2755), ..SetAttributes::default() };
        let _ = tree.set_attributes(ino, &change).unwrap();
        tree.set_xattr(ino, b"user.a", b"value", flags, setgid).unwrap();
        assert_eq!(tree.stat(ino).unwrap().permissions, 0o2755);
        match tree.set_xattr(ino, b"system.posix_acl_access", &access_list(7), flags, setgid) {
            Err(Errno::OPNOTSUPP) => return eprintln!("skipped: no access lists here"),
            result => result.unwrap(),
        }
        assert_eq!(tree.stat(ino).unwrap().permissions & 0o2000 != 0, stays, "{setgid:?}");
    }
}

#[test]
fn access_lists_of_the_work_folder_are_not_passed_on() {
    let layers = Layers::new(&["file", "program"]);
    let default = "system.posix_acl_default";
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::setxattr(layers.at("work"), default, &access_list(7), flags) {
        Err(Errno::OPNOTSUPP) => return eprintln!("skipped: no access lists here"),
        result => result.unwrap(),
    }
    let tree = layers.tree();
    let ino = find(&tree, "file").ino;
    let change = SetAttributes { permissions: Some(0o640), ..SetAttributes::default() };
    let _ = tree.set_attributes(ino, &change).unwrap();
    tree.unlink(Ino::ROOT, b"program").unwrap();
    let _ = tree.create(Ino::ROOT, b"program", New::Directory, 0o755, 0, &ROOT_USER).unwrap();
    for path in ["work/work", "work/strata-links", "upper/file", "upper/program"] {
        for list in ["system.posix_acl_access", default] {
            let found = rustix::fs::getxattr(layers.at(path), list, &mut [0; 64]);
            assert_eq!(found, Err(Errno::NODATA), "{path} has {list}");
        }
    }
    assert_eq!(permissions(&layers.at("upper/file")), 0o640);
}

/// The bytes of an access list that lets one user more do everything.
fn access_list(user: u32) -> Vec<u8> {
    let nobody = u32::MAX;
    let entries = [(0x01_u16, 7_u16, nobody), (0x02, 7, user), (0x04, 5, nobody), (0x10, 7, nobody), (0x20, 5, nobody)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, allowed, id) in entries {
        bytes.extend([tag.to_le_bytes(), allowed.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
