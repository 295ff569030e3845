//! Uppers and lowers that somebody has tampered with: errors at most, never a crash, never a way outside.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::HashSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use strata_unionfs::{
    Access, Caller, Ino, Kind, Lower, MountSpec, New, Options, RenameMode, SetAttributes, Tree, Upper, UserXattr,
};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

fn fixture() -> (tempfile::TempDir, MountSpec) {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    for dir in
        ["secret", "lower/a/b", "lower/c", "upper/a", "upper/c", "upper/d/e", "work/strata-links", "work/work/#1/x"]
    {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for file in
        ["secret/key", "lower/a/file", "lower/a/b/deep", "lower/c/file", "upper/a/file", "upper/d/file", "upper/d/e/f"]
    {
        fs::write(at(file), file).unwrap();
    }
    symlink("../secret/key", at("lower/c/link")).unwrap();
    let spec = MountSpec {
        lower: Lower::Folders(vec![at("lower")]),
        upper: Some(Upper { dir: at("upper"), work: at("work") }),
        options: Options { userxattr: UserXattr::On, ..Options::default() },
    };
    (temp, spec)
}

fn mark(path: PathBuf, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, format!("user.overlay.{name}"), value, XattrFlags::empty()).unwrap();
}

/// Lists everything, reads everything, and tries to change it; returns the contents that were seen.
fn exercise(tree: &Tree) -> HashSet<Vec<u8>> {
    let mut seen = HashSet::new();
    let mut todo = vec![(Ino::ROOT, 0)];
    while let Some((dir, depth)) = todo.pop() {
        assert!(depth < 50, "a circle");
        let mut names = Vec::new();
        let _ = tree.read_dir(dir, 0, false, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                names.push(entry.name.to_vec());
            }
            ControlFlow::Continue(())
        });
        let _ = tree.create(dir, b"made", New::Directory, 0o755, 0, &CALLER);
        for name in names {
            let Ok(stat) = tree.lookup(dir, &name) else { continue };
            match stat.kind {
                Kind::Directory => todo.push((stat.ino, depth + 1)),
                Kind::Regular => {
                    let mut data = vec![0; 4096];
                    if let Ok(read) = tree.read(stat.ino, &mut data, 0) {
                        seen.insert(data[..read].to_vec());
                    }
                    if tree.open_file(stat.ino, Access { write: true, truncate: false, ..Access::default() }).is_ok() {
                        let _ = tree.write(stat.ino, b"written", 0, true);
                        tree.release(stat.ino);
                    }
                }
                _ => {
                    let _ = tree.read_link(stat.ino);
                }
            }
            let change = SetAttributes { permissions: Some(0o700), ..SetAttributes::default() };
            if stat.kind != Kind::Symlink {
                let _ = tree.set_attributes(stat.ino, &change);
            }
            let _ = tree.rename(dir, &name, dir, b"moved", RenameMode::NoReplace);
        }
    }
    seen
}

/// Names that a kernel would never pass.
#[test]
fn names_that_lead_elsewhere_are_refused() {
    let (temp, spec) = fixture();
    let tree = Tree::open(&spec).unwrap();
    for name in ["../secret", "a/file", "", "/etc", "a\0b"] {
        assert_eq!(tree.lookup(Ino::ROOT, name.as_bytes()).unwrap_err(), Errno::INVAL, "{name:?}");
        assert!(tree.create(Ino::ROOT, name.as_bytes(), New::File { open: false }, 0o644, 0, &CALLER).is_err());
        assert!(tree.unlink(Ino::ROOT, name.as_bytes()).is_err());
        assert!(tree.rename(Ino::ROOT, b"a", Ino::ROOT, name.as_bytes(), RenameMode::Replace).is_err());
    }
    for name in [b".".as_slice(), b".."] {
        assert!(tree.rmdir(Ino::ROOT, name).is_err());
        assert!(tree.rename(Ino::ROOT, name, Ino::ROOT, b"x", RenameMode::Replace).is_err());
    }
    assert_eq!(fs::read_to_string(temp.path().join("secret/key")).unwrap(), "secret/key");
}

#[test]
fn redirects_lead_to_the_lowers_or_nowhere() {
    let outside = std::env::temp_dir();
    let absolute = outside.to_str().unwrap();
    for target in ["/../secret", "..", "../secret", "/a/../../secret", absolute, "/", "//", "/a/file", "", "/d"] {
        let (temp, spec) = fixture();
        for dir in ["upper/a", "upper/d", "upper/d/e"] {
            mark(temp.path().join(dir), "redirect", target.as_bytes());
        }
        let seen = exercise(&Tree::open(&spec).unwrap());
        assert!(!seen.contains(b"secret/key".as_slice()), "{target}");
        assert_eq!(fs::read_to_string(temp.path().join("secret/key")).unwrap(), "secret/key");
    }
}

#[test]
fn two_directories_cannot_both_show_one_of_the_lowers() {
    let (temp, spec) = fixture();
    for dir in ["upper/c", "upper/d"] {
        mark(temp.path().join(dir), "redirect", b"/a");
    }
    let tree = Tree::open(&spec).unwrap();
    let (c, d) = (tree.lookup(Ino::ROOT, b"c").unwrap(), tree.lookup(Ino::ROOT, b"d").unwrap());
    assert_ne!(c.ino, d.ino);
    assert!(tree.lookup(c.ino, b"b").is_ok());
    assert_eq!(tree.lookup(d.ino, b"b").unwrap_err(), Errno::NOENT);
}

#[test]
fn numbers_that_are_claimed_twice_do_not_join_files() {
    let (temp, spec) = fixture();
    for file in ["upper/a/file", "upper/d/file", "upper/d/e/f"] {
        mark(temp.path().join(file), "strata.ino", &77_u64.to_le_bytes());
    }
    let tree = Tree::open(&spec).unwrap();
    let read = |dir: Ino, name: &[u8]| {
        let ino = tree.lookup(dir, name).unwrap().ino;
        let mut data = vec![0; 100];
        let length = tree.read(ino, &mut data, 0).unwrap();
        String::from_utf8(data[..length].to_vec()).unwrap()
    };
    let (a, d) = (tree.lookup(Ino::ROOT, b"a").unwrap().ino, tree.lookup(Ino::ROOT, b"d").unwrap().ino);
    assert_eq!(read(a, b"file"), "upper/a/file");
    assert_eq!(read(d, b"file"), "upper/d/file");
    assert_eq!(read(a, b"file"), "upper/a/file");
}

#[test]
fn an_upper_changed_behind_the_mount_gives_errors_at_most() {
    let (temp, spec) = fixture();
    let tree = Tree::open(&spec).unwrap();
    let d = tree.lookup(Ino::ROOT, b"d").unwrap().ino;
    let file = tree.lookup(d, b"file").unwrap().ino;
    fs::remove_dir_all(temp.path().join("upper/d")).unwrap();
    symlink(temp.path().join("secret"), temp.path().join("upper/d")).unwrap();
    for _ in 0..2 {
        let _ = tree.lookup(d, b"key");
        let _ = tree.stat(file);
        let _ = tree
            .open_file(file, Access { write: true, truncate: true, ..Access::default() })
            .map(|_| tree.release(file));
        let _ = tree.create(d, b"planted", New::File { open: false }, 0o644, 0, &CALLER);
    }
    assert_eq!(fs::read_dir(temp.path().join("secret")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(temp.path().join("secret/key")).unwrap(), "secret/key");
}

#[test]
fn what_nobody_holds_is_forgotten() {
    let (temp, spec) = fixture();
    for number in 0..500 {
        fs::write(temp.path().join(format!("upper/d/n{number}")), "").unwrap();
    }
    let tree = Tree::open(&spec).unwrap();
    let at_first = tree.object_count();
    let mut held = vec![tree.lookup(Ino::ROOT, b"d").unwrap().ino];
    tree.read_dir(held[0], 0, true, &mut |entry| {
        if entry.name != b"." && entry.name != b".." {
            held.push(entry.ino);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(tree.object_count() > 500);
    held.iter().for_each(|ino| tree.forget(*ino, 1));
    assert_eq!(tree.object_count(), at_first);
}

fn garbage() -> impl Strategy<Value = (&'static str, &'static str, Vec<u8>)> {
    let place = prop_oneof![
        Just("upper"),
        Just("upper/a"),
        Just("upper/d"),
        Just("upper/d/e"),
        Just("upper/a/file"),
        Just("upper/d/e/f"),
        Just("lower/a"),
        Just("lower/a/b"),
        Just("lower/c/file"),
    ];
    let name = prop_oneof![
        Just("opaque"),
        Just("redirect"),
        Just("origin"),
        Just("metacopy"),
        Just("whiteout"),
        Just("strata.ino"),
        Just("impure"),
    ];
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(b"y".to_vec()),
        Just(b"x".to_vec()),
        Just(b"/a".to_vec()),
        Just(b"b".to_vec()),
        (0_u64..40).prop_map(|number| number.to_le_bytes().to_vec()),
    ];
    (place, name, value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn garbage_in_marks_and_links_is_survived(
        marks in proptest::collection::vec(garbage(), 0..12),
        links in proptest::collection::vec("[0-9a-f]{1,3}(\\.names)?", 0..4),
    ) {
        let (temp, spec) = fixture();
        for (place, name, value) in &marks {
            mark(temp.path().join(place), name, value);
        }
        for name in &links {
            let path: &Path = &temp.path().join("work/strata-links").join(name);
            let _ = if name.len() % 2 == 0 { symlink("1-of-2", path) } else { fs::write(path, "link") };
        }
        for _ in 0..2 {
            let tree = Tree::open(&spec).unwrap();
            prop_assert!(!exercise(&tree).contains(b"secret/key".as_slice()));
            drop(tree);
            let _ = strata_unionfs::changes(&spec);
        }
        prop_assert_eq!(fs::read_to_string(temp.path().join("secret/key")).unwrap(), "secret/key");
    }
}
