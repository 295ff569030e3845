//! What is kept of nodes and open, which users see too late or not at all.

use std::fs;
use std::os::fd::AsFd as _;

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;
use strata_sys::file_flags;

use super::{Access, Caller, New, RenameMode, SetAttributes, SetGroupId, Tree};
use crate::node::Ino;
use crate::spec::{Lower, MountSpec, Options, Upper};

const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const NO_DUMP: u32 = 0x40;
const APPEND_ONLY: u32 = 0x20;

/// A lower with files named by numbers in the directory `dir`.
struct Layers {
    temp: tempfile::TempDir,
    tree: Tree,
}

impl Layers {
    fn new() -> Layers {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for dir in ["lower/dir", "upper", "work"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        (0..10).for_each(|number| fs::write(at(&format!("lower/dir/{number}")), "text").unwrap());
        let spec = MountSpec {
            lower: Lower::Folders(vec![at("lower")]),
            upper: Some(Upper { dir: at("upper"), work: at("work") }),
            options: Options::default(),
        };
        let tree = Tree::open(&spec).unwrap();
        Layers { temp, tree }
    }

    fn dir(&self) -> Ino {
        self.tree.lookup(Ino::ROOT, b"dir").unwrap().ino
    }

    /// Lets the directory of the upper only be appended to, or lifts that. Returns whether that can be done here.
    fn append_only(&self, on: bool) -> bool {
        let dir = fs::File::open(self.temp.path().join("upper/dir")).unwrap();
        let set = || {
            let flags = file_flags::flags(dir.as_fd())?;
            file_flags::set_flags(dir.as_fd(), if on { flags | APPEND_ONLY } else { flags & !APPEND_ONLY })
        };
        set().inspect_err(|error: &std::io::Error| println!("SKIPPED: no directory to append to only: {error}")).is_ok()
    }
}

/// A clock may tell a copy and the change after it not apart.
#[test]
fn a_change_of_a_directory_ends_what_a_copy_lets_it_show() {
    let layers = Layers::new();
    let tree = &layers.tree;
    let dir = layers.dir();
    let owner = fs::metadata(layers.temp.path()).map(|found| std::os::unix::fs::MetadataExt::uid(&found)).unwrap();
    let name = b"user.test";
    let set = |change| tree.set_attributes(dir, &change).map(drop);
    let flag = |flag| tree.flags(dir).and_then(|flags| tree.set_flags(dir, flags ^ flag));
    let changes: [(&str, &dyn Fn() -> crate::Result<()>); 6] = [
        ("chmod", &|| set(SetAttributes { permissions: Some(0o700), ..SetAttributes::default() })),
        ("chown", &|| set(SetAttributes { uid: Some(owner), ..SetAttributes::default() })),
        ("setxattr", &|| tree.set_xattr(dir, name, b"value", XattrFlags::empty(), SetGroupId::Keep)),
        ("removexattr", &|| tree.remove_xattr(dir, name)),
        ("chattr", &|| flag(NO_DUMP)),
        ("rename", &|| tree.rename(Ino::ROOT, b"dir", Ino::ROOT, b"moved", RenameMode::Replace)),
    ];
    for (number, (what, change)) in changes.iter().enumerate() {
        let file = tree.lookup(dir, number.to_string().as_bytes()).unwrap().ino;
        let mode = SetAttributes { permissions: Some(0o600), ..SetAttributes::default() };
        tree.set_attributes(file, &mode).unwrap();
        let object = tree.objects.get(dir).unwrap();
        assert!(object.state().unmoved.is_some(), "{what}");
        match change() {
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => println!("SKIPPED: {what} is not possible here"),
            result => {
                result.unwrap();
                assert!(object.state().unmoved.is_none(), "{what}");
            }
        }
    }
}

/// The time of its last modification cannot be set back.
#[test]
fn a_copy_in_a_directory_to_append_to_is_noted() {
    let layers = Layers::new();
    let tree = &layers.tree;
    let dir = layers.dir();
    let mode = |permissions| SetAttributes { permissions: Some(permissions), ..SetAttributes::default() };
    tree.set_attributes(dir, &mode(0o700)).unwrap();
    let file = tree.lookup(dir, b"0").unwrap().ino;
    if !layers.append_only(true) {
        return;
    }
    let changed = [0o600, 0o640].map(|permissions| tree.set_attributes(file, &mode(permissions)));
    let (shown, outdated) = (tree.stat(dir), tree.take_outdated());
    assert!(layers.append_only(false));
    assert_eq!(changed.map(|stat| stat.unwrap().permissions), [0o600, 0o640]);
    let on_disk = std::os::unix::fs::MetadataExt::ctime_nsec;
    let below = fs::metadata(layers.temp.path().join("upper/dir/0")).unwrap();
    assert_eq!(i64::from(tree.stat(file).unwrap().ctime.nanoseconds), on_disk(&below));
    assert!(shown.is_ok() && outdated.contains(&dir));
}

#[test]
fn what_could_not_be_removed_is_not_kept_open() {
    let layers = Layers::new();
    let tree = &layers.tree;
    let dir = layers.dir();
    let make = |dir, name: &[u8], new| tree.create(dir, name, new, 0o755, 0, &ROOT_USER).unwrap().ino;
    let (file, folder) = (make(dir, b"file", New::File { open: false }), make(dir, b"folder", New::Directory));
    let moved = make(Ino::ROOT, b"moved", New::File { open: false });
    let copied = tree.lookup(dir, b"0").unwrap().ino;
    let mode = SetAttributes { permissions: Some(0o600), ..SetAttributes::default() };
    tree.set_attributes(copied, &mode).unwrap();
    if !layers.append_only(true) {
        return;
    }
    let refused = [
        tree.unlink(dir, b"file"),
        tree.unlink(dir, b"0"),
        tree.rmdir(dir, b"folder"),
        tree.rename(Ino::ROOT, b"moved", dir, b"file", RenameMode::Replace),
    ];
    assert!(layers.append_only(false));
    assert_eq!(refused, [Err(Errno::PERM); 4]);
    for ino in [file, folder, moved, copied] {
        assert!(tree.objects.get(ino).unwrap().state().pinned.is_none(), "{ino:?}");
    }
    tree.unlink(dir, b"file").unwrap();
    assert!(tree.objects.get(file).unwrap().state().pinned.is_some());
}

/// A filesystem with a file that is open for writing cannot be made read-only.
#[test]
fn nothing_stays_open_for_writing() {
    let layers = Layers::new();
    let tree = &layers.tree;
    let dir = layers.dir();
    let made = tree.create(dir, b"made", New::File { open: true }, 0o644, 0, &ROOT_USER).unwrap().ino;
    tree.unlink(dir, b"made").unwrap();
    let unnamed = tree.create_unnamed(dir, 0o644, 0, &ROOT_USER).unwrap().ino;
    let held = tree.create_unnamed(dir, 0o644, 0, &ROOT_USER).unwrap().ino;
    tree.link(unnamed, dir, b"named").unwrap();
    for ino in [made, unnamed, held] {
        let open = tree.backing_file(ino).unwrap();
        assert!(rustix::fs::fcntl_getfl(&*open).unwrap().contains(OFlags::RDWR), "{ino:?}");
        drop(open);
        tree.release(ino);
        let kept = tree.upper_file(&tree.objects.get(ino).unwrap()).unwrap();
        assert!(rustix::fs::fcntl_getfl(&*kept).unwrap().contains(OFlags::PATH), "{ino:?}");
        // It can be opened again.
        let _ = tree.open_file(ino, Access { write: true, ..Access::default() }).unwrap();
        assert_eq!(tree.write(ino, b"data", 0, false).unwrap(), 4);
        tree.release(ino);
    }
}
