//! Mounts with other options: mapped ids, few descriptors, mounts without a place.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{TestMount, mount, options, privileged};
use rustix::process::{Resource, Rlimit, setrlimit};
use strata_unionfs::{IdMap, IdRange, Lower, MountSpec, Options, Passthrough, Target, Upper};

fn spec(root: &Path, options: Options) -> MountSpec {
    for dir in ["lower", "upper", "work", "mnt"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    MountSpec {
        lower: Lower::Folders(vec![root.join("lower")]),
        upper: Some(Upper { dir: root.join("upper"), work: root.join("work") }),
        options,
    }
}

#[test]
fn ids_are_the_containers_on_disk_and_the_hosts_in_the_mount() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let map = Some(IdMap(vec![IdRange { container: 0, host: 100_000, count: 1000 }]));
    let spec = spec(temp.path(), Options { uid_map: map.clone(), gid_map: map, ..options() });
    let place = temp.path().join("mnt");
    for (name, owner) in [("root", 0), ("seven", 7), ("beyond", 5000)] {
        fs::write(temp.path().join("lower").join(name), "lower").unwrap();
        chown(temp.path().join("lower").join(name), Some(owner), Some(owner)).unwrap();
    }
    let mount = TestMount::new(&spec, &place);
    let owner = |name: &str| fs::metadata(place.join(name)).map(|file| (file.uid(), file.gid())).unwrap();
    assert_eq!(owner("root"), (100_000, 100_000));
    assert_eq!(owner("seven"), (100_007, 100_007));
    assert_eq!(owner("beyond"), (65534, 65534));
    // Copy-up keeps what is on disk.
    OpenOptions::new().append(true).open(place.join("seven")).unwrap().write_all(b"!").unwrap();
    chown(place.join("root"), Some(100_009), None).unwrap();
    assert!(chown(place.join("root"), Some(5), None).is_err(), "nobody in the container");
    let status = Command::new("setpriv")
        .args(["--reuid=100003", "--regid=100004", "--clear-groups", "sh", "-c", "echo x > /proc/self/cwd/new"])
        .current_dir(&place)
        .status();
    let made = status.is_ok_and(|status| status.success());
    assert!(!made, "the root folder is root's");
    fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let status = Command::new("setpriv")
        .args(["--reuid=100003", "--regid=100004", "--clear-groups", "sh", "-c", "echo x > new"])
        .current_dir(&place)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(owner("new"), (100_003, 100_004));
    mount.unmount();
    let on_disk =
        |name: &str| fs::metadata(temp.path().join("upper").join(name)).map(|file| (file.uid(), file.gid())).unwrap();
    assert_eq!(on_disk("new"), (3, 4));
    assert_eq!(on_disk("seven"), (7, 7));
    assert_eq!(on_disk("root"), (9, 0));
}

#[test]
fn few_descriptors_are_enough_for_many_files() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let spec = spec(temp.path(), Options { volatile: true, ..options() });
    let place = temp.path().join("mnt");
    for (layer, dirs) in [("lower", 600), ("upper", 600)] {
        for dir in 0..dirs {
            let dir = temp.path().join(layer).join(format!("{}/{dir}", if dir % 2 == 0 { "shared" } else { layer }));
            fs::create_dir_all(&dir).unwrap();
            for file in 0..8 {
                fs::write(dir.join(format!("{layer}{file}")), "x").unwrap();
            }
        }
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: Some(256) }).unwrap();
    let mount = TestMount::new(&spec, &place);
    let count = |dir: &Path| {
        let output = Command::new("find").arg(dir).args(["-type", "f", "-size", "-2"]).output().unwrap();
        assert!(output.status.success());
        output.stdout.split(|byte| *byte == b'\n').count() - 1
    };
    assert_eq!(count(&place), 9600);
    let script = "for d in lower/* shared/* upper/*; do for f in $d/*; do echo y >> $f; done; done";
    assert!(Command::new("sh").args(["-ec", script]).current_dir(&place).status().unwrap().success());
    assert_eq!(count(&place), 9600);
    mount.unmount();
}

#[test]
fn a_mount_without_a_place_ends_with_its_last_reference() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let spec = spec(temp.path(), Options { passthrough: Passthrough::Off, ..options() });
    fs::write(temp.path().join("lower/file"), "content").unwrap();
    let mounted = mount(&spec, &Target::Detached);
    let reference = mounted.mount_fd().unwrap().try_clone_to_owned().unwrap();
    let server = std::thread::spawn(move || mounted.serve());
    let file = rustix::fs::openat(&reference, "file", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let mut data = [0; 7];
    rustix::io::read(&file, &mut data).unwrap();
    assert_eq!(&data, b"content");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(temp.path().to_str().unwrap()));
    drop((file.as_fd(), reference));
    drop(file);
    let started = Instant::now();
    while !server.is_finished() {
        assert!(started.elapsed() < Duration::from_secs(20), "it goes on without a reference");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.join().unwrap().unwrap();
}

#[test]
fn whiteouts_by_name_count_where_they_are_believed() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    for dir in
        ["bottom/kept/below", "bottom/emptied", "bottom/gone", "middle/emptied", "middle/kept", "upper/old", "work"]
    {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for file in
        ["bottom/file", "bottom/kept/below/file", "bottom/kept/deleted", "bottom/emptied/hidden", "bottom/gone/x"]
    {
        fs::write(at(file), file).unwrap();
    }
    fs::create_dir(at("bottom/old")).unwrap();
    for file in
        ["middle/.wh.file", "middle/kept/.wh.deleted", "middle/emptied/.wh..wh..opq", "middle/.wh.gone", "bottom/old/x"]
    {
        fs::write(at(file), "").unwrap();
    }
    // As fuse-overlayfs leaves a folder that it made where one was deleted.
    fs::write(at("upper/old/.wh..wh..opq"), "").unwrap();
    fs::write(at("middle/emptied/new"), "new").unwrap();
    let mut spec = spec(temp.path(), Options { named_whiteouts: true, ..options() });
    spec.lower = Lower::Folders(vec![at("middle"), at("bottom")]);
    let mount = TestMount::new(&spec, &at("mnt"));
    let names = |dir: &str| {
        let mut names: Vec<_> = fs::read_dir(at(dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // Looked up before anything is listed, and after.
    for _ in 0..2 {
        for hidden in
            ["file", "kept/deleted", "emptied/hidden", "gone", "gone/x", ".wh.file", "kept/.wh.deleted", "old/x"]
        {
            assert!(!at("mnt").join(hidden).exists(), "{hidden}");
        }
        assert!(at("mnt/kept/below/file").exists() && at("mnt/emptied/new").exists());
        assert_eq!(names("mnt"), ["emptied", "kept", "old"]);
        assert_eq!(names("mnt/kept"), ["below"]);
        assert_eq!(names("mnt/emptied"), ["new"]);
        assert!(names("mnt/old").is_empty());
    }
    assert_eq!(fs::write(at("mnt/.wh.new"), "").unwrap_err().raw_os_error(), Some(libc::EINVAL));
    fs::write(at("mnt/file"), "again").unwrap();
    assert!(fs::rename(at("mnt/file"), at("mnt/.wh.file")).is_err());
    fs::remove_dir(at("mnt/old")).unwrap();
    fs::create_dir(at("mnt/gone")).unwrap();
    assert!(names("mnt/gone").is_empty());
    mount.unmount();
    spec.options.named_whiteouts = false;
    let mount = TestMount::new(&spec, &at("mnt"));
    assert!(at("mnt/.wh.gone").exists() && at("mnt/kept/deleted").exists(), "elsewhere they are names");
    mount.unmount();
}
