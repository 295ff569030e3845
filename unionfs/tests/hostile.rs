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

/// A number that a layer of this very stack is said to have.
fn recorded(spec: &MountSpec, number: u64) -> Vec<u8> {
    let tree = Tree::open(spec).unwrap();
    let c = tree.lookup(Ino::ROOT, b"c").unwrap().ino;
    let file = tree.lookup(c, b"link").unwrap().ino;
    tree.rename(c, b"file", c, b"renamed", RenameMode::Replace).unwrap();
    tree.forget(file, 1);
    drop(tree);
    let Upper { dir, .. } = spec.upper.as_ref().unwrap();
    let mut value = [0; 64];
    let path = dir.join("c/renamed");
    let length = rustix::fs::getxattr(&path, "user.overlay.strata.ino", &mut value[..]).unwrap();
    fs::remove_file(&path).unwrap();
    fs::remove_file(dir.join("c/file")).unwrap();
    value[..8].copy_from_slice(&number.to_le_bytes());
    value[..length].to_vec()
}

fn content(tree: &Tree, ino: Ino) -> Result<String, Errno> {
    let mut data = vec![0; 100];
    let length = tree.read(ino, &mut data, 0)?;
    Ok(String::from_utf8_lossy(&data[..length]).into_owned())
}

#[test]
fn believable_numbers_that_are_claimed_twice_do_not_join_files() {
    let (temp, spec) = fixture();
    let number = recorded(&spec, 1 << 40);
    for file in ["upper/a/file", "upper/d/file", "upper/d/e/f"] {
        mark(temp.path().join(file), "strata.ino", &number);
    }
    let tree = Tree::open(&spec).unwrap();
    let (a, d) = (tree.lookup(Ino::ROOT, b"a").unwrap().ino, tree.lookup(Ino::ROOT, b"d").unwrap().ino);
    let first = tree.lookup(a, b"file").unwrap().ino;
    assert_eq!(first, Ino(1 << 40), "the first is believed");
    let second = tree.lookup(d, b"file").unwrap().ino;
    assert_eq!(content(&tree, first).unwrap(), "upper/a/file");
    assert_eq!(content(&tree, second).unwrap(), "upper/d/file");
}

#[test]
fn a_file_that_claims_a_directory_s_number_is_no_directory() {
    let (temp, spec) = fixture();
    let b = fs::metadata(temp.path().join("lower/a/b")).unwrap();
    let number = recorded(&spec, std::os::unix::fs::MetadataExt::ino(&b));
    mark(temp.path().join("upper/d/file"), "strata.ino", &number);
    for first in ["a", "d"] {
        let tree = Tree::open(&spec).unwrap();
        tree.lookup(Ino::ROOT, first.as_bytes()).unwrap();
        let seen = exercise(&tree);
        assert!(!seen.contains(b"secret/key".as_slice()));
    }
}

#[test]
fn files_whose_data_is_nowhere_can_be_seen_and_removed_but_not_read() {
    let absolute = std::env::temp_dir();
    let targets: [&[u8]; 9] = [
        b"/nothing",
        b"nothing",
        b"/a",
        b"/c/link",
        b"/../secret/key",
        b"..",
        b"/d/e/f",
        b"/a/file/x",
        absolute.as_os_str().as_encoded_bytes(),
    ];
    for target in targets {
        let (temp, spec) = fixture();
        let path = temp.path().join("upper/d/file");
        fs::write(&path, "").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
        mark(path.clone(), "metacopy", b"");
        mark(path, "redirect", target);
        let tree = Tree::open(&spec).unwrap();
        let d = tree.lookup(Ino::ROOT, b"d").unwrap().ino;
        let file = tree.lookup(d, b"file").unwrap();
        assert_eq!((file.kind, file.size), (Kind::Regular, 1000));
        let write = Access { write: true, truncate: false, ..Access::default() };
        assert_eq!(content(&tree, file.ino), Err(Errno::IO), "{target:?}");
        assert_eq!(tree.open_file(file.ino, write).unwrap_err(), Errno::IO);
        assert_eq!(tree.seek(file.ino, 0, true), Err(Errno::IO));
        let change = SetAttributes { permissions: Some(0o700), ..SetAttributes::default() };
        tree.set_attributes(file.ino, &change).unwrap();
        tree.rename(d, b"file", d, b"moved", RenameMode::Replace).unwrap();
        // Emptied, it is as good as new.
        let _ = tree.open_file(file.ino, Access { truncate: true, ..write }).unwrap();
        tree.write(file.ino, b"new", 0, false).unwrap();
        assert_eq!(content(&tree, file.ino).unwrap(), "new");
        tree.release(file.ino);
        tree.unlink(d, b"moved").unwrap();
        assert!(strata_unionfs::changes(&spec, &strata_unionfs::MountPoints::default()).is_ok());
    }
}

/// Two files of the upper may have their data in one of the lower; they are two all the same.
#[test]
fn one_lower_file_can_be_the_data_of_several() {
    let (temp, spec) = fixture();
    for name in ["file", "e/f"] {
        let path = temp.path().join("upper/d").join(name);
        fs::write(&path, "").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(12).unwrap();
        mark(path.clone(), "metacopy", b"");
        mark(path, "redirect", b"/a/b/deep");
    }
    let tree = Tree::open(&spec).unwrap();
    let d = tree.lookup(Ino::ROOT, b"d").unwrap().ino;
    let e = tree.lookup(d, b"e").unwrap().ino;
    let (one, two) = (tree.lookup(d, b"file").unwrap().ino, tree.lookup(e, b"f").unwrap().ino);
    let a = tree.lookup(Ino::ROOT, b"a").unwrap().ino;
    let b = tree.lookup(a, b"b").unwrap().ino;
    let source = tree.lookup(b, b"deep").unwrap().ino;
    assert_eq!(HashSet::from([one, two]).len(), 2);
    let write = Access { write: true, truncate: false, ..Access::default() };
    let _ = tree.open_file(two, write).unwrap();
    tree.write(two, b"LOWER", 0, false).unwrap();
    tree.release(two);
    assert_eq!(content(&tree, one).unwrap(), "lower/a/b/de");
    assert_eq!(content(&tree, two).unwrap(), "LOWER/a/b/de");
    let _ = content(&tree, source);
    for (dir, name) in [(d, &b"file"[..]), (e, b"f")] {
        tree.unlink(dir, name).unwrap();
    }
    for ino in [one, two, source, b, a, e, d] {
        tree.forget(ino, 9);
    }
    assert_eq!(tree.object_count(), 1);
    assert_eq!(fs::read_to_string(temp.path().join("lower/a/b/deep")).unwrap(), "lower/a/b/deep");
}

/// Redirects on every directory, each leading through all the others. If they were followed one within the other, this
/// would not end.
#[test]
fn redirects_do_not_multiply() {
    let temp = tempfile::tempdir().unwrap();
    let path = vec!["d"; 40].join("/");
    let mut lowers = Vec::new();
    for layer in 0..30 {
        let root = temp.path().join(format!("layer{layer}"));
        fs::create_dir_all(root.join(&path)).unwrap();
        let mut dir = root.clone();
        for _ in 0..40 {
            dir.push("d");
            mark(dir.clone(), "redirect", format!("/{path}").as_bytes());
        }
        lowers.push(root);
    }
    for dir in ["upper", "work"] {
        fs::create_dir(temp.path().join(dir)).unwrap();
    }
    let spec = MountSpec {
        lower: Lower::Folders(lowers),
        upper: Some(Upper { dir: temp.path().join("upper"), work: temp.path().join("work") }),
        options: Options { userxattr: UserXattr::On, ..Options::default() },
    };
    let tree = Tree::open(&spec).unwrap();
    let mut dir = Ino::ROOT;
    for _ in 0..10 {
        let Ok(stat) = tree.lookup(dir, b"d") else { break };
        dir = stat.ino;
        let _ = tree.read_dir(dir, 0, true, &mut |_| ControlFlow::Continue(()));
    }
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
        Just("second/a"),
        Just("second/a/file"),
        Just("second/new"),
    ];
    let name = prop_oneof![
        Just("opaque"),
        Just("redirect"),
        Just("origin"),
        Just("metacopy"),
        Just("whiteout"),
        Just("strata.ino"),
        Just("strata.device"),
        Just("impure"),
    ];
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(b"y".to_vec()),
        Just(b"x".to_vec()),
        Just(b"/a".to_vec()),
        Just(b"b".to_vec()),
        Just(b"/c/file".to_vec()),
        Just(b"/a/b/deep".to_vec()),
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
        let (temp, mut spec) = fixture();
        for dir in ["second/a", "second/new"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        fs::write(temp.path().join("second/a/file"), "").unwrap();
        spec.lower = Lower::Folders(vec![temp.path().join("second"), temp.path().join("lower")]);
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
            let _ = strata_unionfs::changes(&spec, &strata_unionfs::MountPoints::default());
        }
        prop_assert_eq!(fs::read_to_string(temp.path().join("secret/key")).unwrap(), "secret/key");
    }
}

/// What somebody mounts on a folder of a layer while that is in use is no part of the layer.
#[test]
fn privileged_folders_that_are_mounted_over_are_closed() {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
    let (temp, spec) = fixture();
    // In a mount namespace of this thread only.
    std::thread::spawn(move || {
        let unshared = strata_sys::clone::unshare(u64::from((libc::CLONE_NEWNS | libc::CLONE_FS).unsigned_abs()));
        if unshared.is_err() || mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_err()
        {
            println!("SKIPPED: needs the right to mount");
            return;
        }
        let at = |path: &str| temp.path().join(path);
        for early in [true, false] {
            let mut tree = None;
            if early {
                tree = Some(Tree::open(&spec).unwrap());
            }
            for dir in ["upper/d", "lower/a/b"] {
                mount_bind(at("secret"), at(dir)).unwrap();
            }
            let tree = tree.unwrap_or_else(|| Tree::open(&spec).unwrap());
            assert_eq!(tree.lookup(Ino::ROOT, b"d").unwrap_err(), Errno::XDEV);
            assert!(tree.rmdir(Ino::ROOT, b"d").is_err());
            assert!(tree.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", RenameMode::Replace).is_err());
            assert!(!exercise(&tree).contains(b"secret/key".as_slice()));
            for dir in ["upper/d", "lower/a/b"] {
                unmount(at(dir), UnmountFlags::DETACH).unwrap();
            }
            assert_eq!(fs::read_to_string(at("secret/key")).unwrap(), "secret/key");
            assert_eq!(fs::read_dir(at("secret")).unwrap().count(), 1);
        }
    })
    .join()
    .unwrap();
}
