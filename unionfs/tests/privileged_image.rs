//! Mounts of images: what is shown is what the index says, with passthrough and without.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::image::{Image, image};
use common::{TestMount, options, privileged};
use strata_layer::listing::{Options as Listing, list_directory, list_index};
use strata_unionfs::{MountSpec, Options, Passthrough, Upper};

/// Makes two layers out of folders: files of all kinds, and changes to them.
fn tars(dir: &Path) -> Vec<PathBuf> {
    let pack = |name: &str, root: &Path| {
        let tar = dir.join(name);
        let status = std::process::Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=pax", "--sparse", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(root)
            .arg(".")
            .status()
            .unwrap();
        assert!(status.success());
        tar
    };
    let base = dir.join("base");
    for path in ["etc", "usr/bin", "var/empty", "gone/deep"] {
        fs::create_dir_all(base.join(path)).unwrap();
    }
    fs::write(base.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(base.join("etc/empty"), "").unwrap();
    fs::write(base.join("gone/deep/file"), "x").unwrap();
    fs::write(base.join("large"), vec![b'l'; 3 << 20]).unwrap();
    fs::copy("/bin/true", base.join("usr/bin/true")).unwrap();
    fs::set_permissions(base.join("usr/bin/true"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(base.join("etc/hosts"), base.join("etc/hosts2")).unwrap();
    std::os::unix::fs::symlink("etc/hosts", base.join("link")).unwrap();
    let sparse = File::create(base.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(b"data", 20 << 20).unwrap();
    fs::write(base.join("n".repeat(255)), "long").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, base.join("fifo"), rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    rustix::fs::setxattr(base.join("etc/hosts"), "user.note", b"hi", rustix::fs::XattrFlags::empty()).unwrap();

    let top = dir.join("top");
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::write(top.join("etc/.wh.empty"), "").unwrap();
    fs::write(top.join(".wh.gone"), "").unwrap();
    fs::write(top.join("etc/new"), "new").unwrap();
    vec![pack("base.tar", &base), pack("top.tar", &top)]
}

fn expected(image: &Image) -> String {
    let tars: Vec<File> = image.tars.iter().map(|tar| File::open(tar).unwrap()).collect();
    list_index(&image.merged, &tars, &Listing::default()).unwrap()
}

fn spec(image: &Image, passthrough: Passthrough, upper: Option<&Path>) -> MountSpec {
    let upper = upper.map(|dir| {
        let upper = Upper { dir: dir.join("upper"), work: dir.join("work") };
        fs::create_dir_all(&upper.dir).unwrap();
        fs::create_dir_all(&upper.work).unwrap();
        upper
    });
    MountSpec { lower: image.lower.clone(), upper, options: Options { passthrough, ..options() } }
}

#[test]
fn an_image_is_shown_as_its_index_says() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &tars(temp.path()));
    let place = temp.path().join("mnt");
    fs::create_dir(&place).unwrap();
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        for upper in [None, Some(temp.path())] {
            let mount = TestMount::new(&spec(&image, passthrough, upper), &place);
            assert_eq!(mount.report.passthrough, passthrough == Passthrough::Auto);
            assert_eq!(
                list_directory(&place, &Listing::default()).unwrap(),
                expected(&image),
                "{passthrough:?} {upper:?}"
            );
            assert!(std::process::Command::new(place.join("usr/bin/true")).status().unwrap().success());
            mount.unmount();
        }
    }
}

#[test]
fn changes_stay_over_a_remount_and_out_of_the_image() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &tars(temp.path()));
    let place = temp.path().join("mnt");
    fs::create_dir(&place).unwrap();
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let dir = temp.path().join(format!("{passthrough:?}"));
        let spec = spec(&image, passthrough, Some(&dir));
        let mount = TestMount::new(&spec, &place);
        let before = fs::metadata(place.join("etc/hosts")).unwrap().ino();
        File::options().append(true).open(place.join("etc/hosts2")).unwrap().write_all(b"::1 localhost\n").unwrap();
        assert_eq!(fs::read_to_string(place.join("etc/hosts")).unwrap(), "127.0.0.1 localhost\n::1 localhost\n");
        fs::rename(place.join("etc"), place.join("var/empty/etc")).unwrap();
        fs::remove_file(place.join("large")).unwrap();
        let mut sparse = File::options().read(true).write(true).open(place.join("sparse")).unwrap();
        sparse.write_all(b"start").unwrap();
        assert!(sparse.metadata().unwrap().blocks() < 100, "holes are kept");
        let mut data = [0; 4];
        sparse.seek(SeekFrom::Start(20 << 20)).unwrap();
        sparse.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"data");
        drop(sparse);
        let listing = list_directory(&place, &Listing::default()).unwrap();
        mount.unmount();

        let mount = TestMount::new(&spec, &place);
        assert_eq!(list_directory(&place, &Listing::default()).unwrap(), listing);
        let hosts = fs::metadata(place.join("var/empty/etc/hosts")).unwrap();
        assert_eq!((hosts.ino(), hosts.nlink()), (before, 2));
        mount.unmount();

        let read_only = MountSpec { upper: None, ..spec };
        let mount = TestMount::new(&read_only, &place);
        assert_eq!(list_directory(&place, &Listing::default()).unwrap(), expected(&image));
        mount.unmount();
    }
}

#[test]
fn a_tar_that_was_cut_gives_errors_and_nothing_worse() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let tars = tars(temp.path());
    let image = image(temp.path(), &tars);
    let place = temp.path().join("mnt");
    fs::create_dir(&place).unwrap();
    let length = fs::metadata(&tars[0]).unwrap().len();
    File::options().write(true).open(&tars[0]).unwrap().set_len(length / 2).unwrap();
    let mount = TestMount::new(&spec(&image, Passthrough::Off, None), &place);
    let mut failed = 0;
    for name in ["etc/hosts", "large", "sparse", "usr/bin/true"] {
        failed += usize::from(fs::read(place.join(name)).is_err());
    }
    assert!(failed > 0);
    assert_eq!(fs::read_to_string(place.join("etc/new")).unwrap(), "new", "the other layer is whole");
    mount.unmount();
}

/// The objects of an image cannot be opened so, and the kernel would say EIO for it.
#[test]
fn files_of_an_image_are_read_past_the_page_cache() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path(), &tars(temp.path()));
    let root = temp.path().join("mnt");
    fs::create_dir(&root).unwrap();
    for (passthrough, upper) in [(Passthrough::Off, false), (Passthrough::Auto, false), (Passthrough::Auto, true)] {
        let upper = upper.then(|| temp.path().join("rw"));
        let mount = TestMount::new(&spec(&image, passthrough, upper.as_deref()), &root);
        let direct = |name: &str| {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECT;
            rustix::fs::open(root.join(name), flags, rustix::fs::Mode::empty())
        };
        for name in ["large", "etc/hosts", "usr/bin/true"] {
            let expected = fs::read(root.join(name)).unwrap();
            let mut content = Vec::new();
            File::from(alone(|| direct(name)).unwrap()).read_to_end(&mut content).unwrap();
            assert!(content == expected, "{name} of {} bytes, passthrough {passthrough:?}", content.len());
            let beside = File::open(root.join(name)).unwrap();
            // Where the kernel reads an object for others, programs are told to do without, as EROFS tells them.
            let joined = direct(name).map(drop);
            assert!(matches!(joined, Ok(()) | Err(rustix::io::Errno::INVAL)), "{name}: {joined:?}");
            drop(beside);
        }
        mount.unmount();
    }
}

/// Opens a file that was just closed, again while it is still in use: the kernel tells of a close after it returned.
fn alone(open: impl Fn() -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    let started = Instant::now();
    loop {
        match open() {
            Err(rustix::io::Errno::INVAL) if started.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}
