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
use strata_unionfs::{IdMap, IdRange, Lower, MountSpec, Options, Passthrough, Target, Upper, XattrPermissions};

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

/// Runs a shell in the mount; fails with what it printed.
fn shell(folder: &Path, script: &str) {
    // A command before `&&` that fails would not end the script.
    let script = &script.replace(" && ", "\n");
    let output = Command::new("bash").args(["-euxo", "pipefail", "-c", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn ids_in_acls_and_capabilities_follow_the_map() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ranges = [(0, 100_000, 10), (10, 200_000, 1000)];
    let range = |(container, host, count)| IdRange { container, host, count };
    let map = Some(IdMap(ranges.map(range).to_vec()));
    let spec = spec(temp.path(), Options { uid_map: map.clone(), gid_map: map, ..options() });
    let (place, upper) = (temp.path().join("mnt"), temp.path().join("upper"));
    let lower = temp.path().join("lower");
    shell(
        &lower,
        "cp /bin/true program && setcap cap_net_raw+ep program && touch listed && setfacl -m u:12:r,g:5:rw,u:9999:r listed",
    );
    let mount = TestMount::new(&spec, &place);
    // Of the namespace whose root is 100000, and so in force for whoever is root there.
    shell(&place, "getcap -n program | grep 'cap_net_raw.*rootid=100000'");
    shell(&place, "getfacl -n listed | grep -x 'user:200002:r--' && getfacl -n listed | grep -x 'group:100005:rw-'");
    shell(&place, "getfacl -n listed | grep -x 'user:65534:r--'");
    shell(
        &place,
        "chmod 777 . && setpriv --reuid=100001 --regid=100001 --clear-groups touch made && setfacl -m u:100003:rwx,g:200005:r made && getfacl -n made | grep -x 'user:100003:rwx'",
    );
    shell(&place, "if setfacl -m u:7:r made; then exit 1; fi");
    shell(&place, "mv program moved && getcap -n moved | grep rootid=100000 && echo >> listed");
    mount.unmount();
    shell(&upper, "getfacl -n made | grep -x 'user:3:rwx' && getfacl -n made | grep -x 'group:15:r--'");
    shell(&upper, "getcap -n moved | grep cap_net_raw && if getcap -n moved | grep rootid; then exit 1; fi");
    shell(&upper, "getfacl -n listed | grep -x 'user:12:r--' && getfacl -n listed | grep -x 'user:9999:r--'");
}

#[test]
fn squashed_files_have_one_owner_whatever_is_done() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = spec(temp.path(), Options { squash_uid: Some(77), squash_gid: Some(88), ..options() });
    let place = temp.path().join("mnt");
    shell(&temp.path().join("lower"), "touch low && chown 5:6 low && mkdir dir");
    let mount = TestMount::new(&spec, &place);
    let script = "touch new && mkdir made && ln -s x link && chown 9:9 new low && echo x >> low
        for name in . low dir new made link; do test \"$(stat -c %u:%g $name)\" = 77:88; done";
    shell(&place, script);
    mount.unmount();
    shell(&temp.path().join("upper"), "test \"$(stat -c %u:%g new)\" = 9:9");
}

#[test]
fn owners_types_and_permissions_can_lie_in_an_attribute() {
    if !privileged() {
        return;
    }
    for (mode, attribute) in [
        (XattrPermissions::User, "user.containers.override_stat"),
        (XattrPermissions::Privileged, "security.fuseoverlayfs.override_stat"),
    ] {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut spec = spec(temp.path(), Options { xattr_permissions: mode, ..options() });
        let (place, upper) = (temp.path().join("mnt"), temp.path().join("upper"));
        shell(&temp.path().join("lower"), "echo low > low && chown 5:6 low && chmod 640 low && mknod null c 1 3");
        let mount = TestMount::new(&spec, &place);
        let shown = "test \"$(stat -c '%u:%g %a' new)\" = '1234:5678 4755'
            test \"$(stat -c '%u:%g %a' low)\" = '5:7 600' && test \"$(stat -c '%u:%g %a' dir)\" = '42:43 1700'
            test \"$(stat -c '%F %t:%T %a %u' null)\" = 'character special file 1:3 600 9'
            test \"$(stat -c '%F %t:%T' block)\" = 'block special file 7:2c' && test -p fifo && echo x > null";
        shell(
            &place,
            "umask 022 && echo x > new && chown 1234:5678 new && chmod 4755 new && chgrp 7 low && chmod 600 low
            mkdir dir && chown 42:43 dir && chmod 1700 dir && mknod block b 7 44 && mkfifo fifo && chown 9 null && chmod 600 null",
        );
        shell(&place, shown);
        shell(
            &place,
            &format!(
                "if getfattr -n {attribute} new; then exit 1; fi; if getfattr -d -m - new | grep override; then exit 1; fi"
            ),
        );
        shell(&place, &format!("if setfattr -n {attribute} -v 0:0:0777 new; then exit 1; fi"));
        // Who may what is decided by what is shown.
        shell(&place, "setpriv --reuid=1234 --regid=1 --clear-groups bash -c 'echo y >> new'");
        shell(&place, "if setpriv --reuid=5 --regid=1 --clear-groups cat dir/x 2>&1 | grep -v denied; then exit 1; fi");
        // A foreign write takes the set-user-id bit away.
        shell(&place, "test \"$(stat -c %a new)\" = 755 && chmod 4755 new");
        mount.unmount();
        shell(
            &upper,
            "test \"$(stat -c '%u:%g %F' new)\" = '0:0 regular file' && test -f null && test -f fifo && test ! -u new",
        );
        shell(&upper, &format!("getfattr --only-values -n {attribute} null | grep -x '9:0:0600:char-1-3'"));
        let mount = TestMount::new(&spec, &place);
        shell(&place, shown);
        mount.unmount();
        // The same layer below another one: it says by itself that it is of this form. What anybody could have written is
        // believed where it was asked for.
        spec.lower = Lower::Folders(vec![upper.clone(), temp.path().join("lower")]);
        spec.upper = None;
        let mount = TestMount::new(&spec, &place);
        shell(&place, shown);
        mount.unmount();
        spec.options.xattr_permissions = XattrPermissions::Off;
        let mount = TestMount::new(&spec, &place);
        let believed = mode == XattrPermissions::Privileged;
        shell(&place, if believed { shown } else { "test \"$(stat -c '%u:%g' new)\" = 0:0 && test -f null" });
        mount.unmount();
    }
}

#[test]
fn acls_attributes_links_and_moves_can_be_switched_off() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let place = temp.path().join("mnt");
    let plain = spec(temp.path(), options());
    shell(
        &temp.path().join("lower"),
        "mkdir -p dir/sub && touch file && setfacl -m u:5:rw file && setfattr -n user.a -v b file",
    );
    let with = |options: Options| MountSpec { options, ..plain.clone() };
    let mount = TestMount::new(&with(Options { noacl: true, ..options() }), &place);
    shell(
        &place,
        "if getfacl file | grep user:5; then exit 1; fi; if setfacl -m u:6:r file; then exit 1; fi; getfattr -n user.a file",
    );
    mount.unmount();
    let mount = TestMount::new(&with(Options { noxattrs: true, ..options() }), &place);
    shell(
        &place,
        "if getfattr -n user.a file; then exit 1; fi; if setfattr -n user.b -v c file; then exit 1; fi; cat file",
    );
    mount.unmount();
    let mount = TestMount::new(&with(Options { static_nlink: true, ..options() }), &place);
    shell(&place, "mkdir -p made/a made/b && test \"$(stat -c %h made)\" = 1 && test \"$(stat -c %h dir)\" = 1");
    mount.unmount();
    let mount = TestMount::new(&with(Options { noredirect: true, ..options() }), &place);
    assert_eq!(fs::rename(place.join("dir"), place.join("moved")).unwrap_err().raw_os_error(), Some(libc::EXDEV));
    shell(&place, "mv dir moved && test -d moved/sub && mv made elsewhere");
    mount.unmount();
    let mount = TestMount::new(
        &with(Options { nodev: true, noexec: true, nosuid: true, nosymfollow: true, ..options() }),
        &place,
    );
    shell(
        &place,
        "findmnt -n -o OPTIONS \"$PWD\" | grep -w nodev | grep -w noexec | grep -w nosuid | grep -w nosymfollow",
    );
    shell(
        &place,
        "cp /bin/true program && if ./program; then exit 1; fi; mknod null c 1 3 && if cat null; then exit 1; fi",
    );
    mount.unmount();
}
