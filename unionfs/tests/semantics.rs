//! The union's own rules, asked of the tree without a mount.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use strata_unionfs::{
    Access, Caller, Ino, Lower, MountSpec, New, Options, RenameMode, SetAttributes, Stat, Tree, Upper,
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
