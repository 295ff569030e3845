//! What programs rely on, on a real mount: each case with passthrough and without.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{TestMount, options, privileged};
use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use strata_unionfs::{Lower, MountSpec, Options, Passthrough, Upper};

/// Runs `test` in the root of a mount whose lower `prepare` has filled.
fn each_mode(prepare: fn(&Path), test: fn(&Path)) {
    if !privileged() {
        return;
    }
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| temp.path().join(name);
        for dir in ["lower", "upper", "work", "mnt"] {
            fs::create_dir(at(dir)).unwrap();
        }
        prepare(&at("lower"));
        let before = tree(&at("lower"));
        let spec = MountSpec {
            lower: Lower::Folders(vec![at("lower")]),
            upper: Some(Upper { dir: at("upper"), work: at("work") }),
            options: Options { passthrough, ..options() },
        };
        let mount = TestMount::new(&spec, &at("mnt"));
        test(&at("mnt"));
        mount.unmount();
        assert_eq!(tree(&at("lower")), before, "the lower is as it was");
    }
}

fn tree(dir: &Path) -> String {
    strata_layer::listing::list_directory(dir, &strata_layer::listing::Options::default()).unwrap()
}

fn nothing(_: &Path) {}

fn permissions(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Runs a shell script as a user without rights, in `dir`.
fn as_nobody(dir: &Path, script: &str) {
    let status = Command::new("sh").args(["-c", script]).current_dir(dir).uid(65534).gid(65534).status().unwrap();
    assert!(status.success(), "{script}");
}

fn shell(dir: &Path, script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap().success(), "{script}");
}

#[test]
fn new_files_obey_the_umask_of_who_makes_them() {
    each_mode(nothing, |root| {
        shell(root, "umask 077; : > file; mkdir dir; mkfifo fifo; mknod null c 1 3");
        for (name, mode) in [("file", 0o600), ("dir", 0o700), ("fifo", 0o600), ("null", 0o600)] {
            assert_eq!(permissions(root.join(name)), mode, "{name}");
        }
        shell(root, "umask 002; : > group");
        assert_eq!(permissions(root.join("group")), 0o664);
    });
}

#[test]
fn a_default_acl_counts_instead_of_the_umask() {
    each_mode(nothing, |root| {
        fs::create_dir(root.join("dir")).unwrap();
        // Version 2; owner rwx, user 1234 rwx, group r-x, mask rwx, others r-x.
        let mut acl = vec![2, 0, 0, 0];
        for (tag, rights, id) in
            [(1_u16, 7_u16, u32::MAX), (2, 7, 1234), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
        {
            acl.extend_from_slice(&tag.to_le_bytes());
            acl.extend_from_slice(&rights.to_le_bytes());
            acl.extend_from_slice(&id.to_le_bytes());
        }
        rustix::fs::setxattr(root.join("dir"), "system.posix_acl_default", &acl, XattrFlags::empty()).unwrap();
        shell(root, "umask 077; : > dir/file; mkdir dir/sub; rm dir/file; : > dir/file");
        assert_eq!(permissions(root.join("dir/file")), 0o664);
        let mut value = [0; 100];
        let inherited = rustix::fs::getxattr(root.join("dir/sub"), "system.posix_acl_default", &mut value[..]).unwrap();
        assert_eq!(value[..inherited], acl);
    });
}

#[test]
fn a_default_acl_is_inherited_over_a_whiteout() {
    fn prepare(lower: &Path) {
        fs::create_dir(lower.join("dir")).unwrap();
        fs::write(lower.join("dir/file"), "").unwrap();
        shell(lower, "setfacl -d -m u:1234:rwx dir");
    }
    if Command::new("setfacl").arg("--version").output().is_err() {
        println!("SKIPPED: needs setfacl");
        return;
    }
    each_mode(prepare, |root| {
        shell(root, "rm dir/file; umask 077; : > dir/file");
        let mut value = [0; 200];
        assert!(rustix::fs::getxattr(root.join("dir/file"), "system.posix_acl_access", &mut value[..]).unwrap() > 4);
        assert_eq!(permissions(root.join("dir/file")), 0o664);
    });
}

#[test]
fn a_deleted_file_that_is_open_is_fully_served() {
    fn prepare(lower: &Path) {
        fs::write(lower.join("file"), "lower").unwrap();
    }
    each_mode(prepare, |root| {
        let path = root.join("file");
        let lower = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(lower.metadata().unwrap().nlink(), 0);
        lower.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(lower.metadata().unwrap().mode() & 0o777, 0o640);
        let mut data = [0; 5];
        lower.read_exact_at(&mut data, 0).unwrap();
        assert_eq!(&data, b"lower");

        let upper = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        upper.write_all_at(b"hello", 0).unwrap();
        fs::remove_file(&path).unwrap();
        let metadata = upper.metadata().unwrap();
        assert_eq!((metadata.nlink(), metadata.len()), (0, 5));
        upper.set_len(3).unwrap();
        assert_eq!(upper.metadata().unwrap().len(), 3);
        rustix::fs::fsetxattr(&upper, "user.a", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(rustix::fs::seek(&upper, rustix::fs::SeekFrom::End(0)).unwrap(), 3);
        let again = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", upper.as_raw_fd())).unwrap();
        again.write_all_at(b"J", 0).unwrap();
        upper.read_exact_at(&mut data[..3], 0).unwrap();
        assert_eq!(&data[..3], b"Jel");
    });
}

#[test]
fn a_removed_directory_that_is_open_takes_attributes_and_no_names() {
    fn prepare(lower: &Path) {
        fs::create_dir(lower.join("lower")).unwrap();
    }
    each_mode(prepare, |root| {
        for name in ["lower", "upper"] {
            let path = root.join(name);
            let _ = fs::create_dir(&path);
            let dir = File::open(&path).unwrap();
            fs::remove_dir(&path).unwrap();
            assert_eq!(dir.metadata().unwrap().nlink(), 0);
            let made = rustix::fs::openat(&dir, "x", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
            assert_eq!(made.unwrap_err(), Errno::NOENT);
            assert_eq!(fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())).unwrap().count(), 0);
            fs::create_dir(&path).unwrap();
            dir.set_permissions(fs::Permissions::from_mode(0o711)).unwrap();
            std::os::unix::fs::fchown(&dir, Some(3), Some(4)).unwrap();
            rustix::fs::fsetxattr(&dir, "user.a", b"1", XattrFlags::empty()).unwrap();
            let mut value = [0; 2];
            assert_eq!(rustix::fs::fgetxattr(&dir, "user.a", &mut value).unwrap(), 1);
            let found = dir.metadata().unwrap();
            assert_eq!((found.mode() & 0o777, found.uid(), found.gid(), found.nlink()), (0o711, 3, 4, 0));
            assert_ne!(permissions(&path), 0o711, "another one");
        }
    });
}

#[test]
fn what_others_write_loses_its_privileges() {
    fn prepare(lower: &Path) {
        fs::write(lower.join("lower"), "lower").unwrap();
        fs::set_permissions(lower.join("lower"), fs::Permissions::from_mode(0o6777)).unwrap();
    }
    each_mode(prepare, |root| {
        as_nobody(root, "echo x >> lower");
        assert_eq!(permissions(root.join("lower")), 0o777);
        let path = root.join("file");
        fs::write(&path, "content").unwrap();
        for script in [
            "echo x >> file",
            "echo x > file",
            "truncate -s 3 file",
            "dd if=/dev/zero of=file bs=1 count=1 conv=notrunc status=none",
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
            as_nobody(root, script);
            assert_eq!(permissions(&path), 0o777, "{script}");
        }
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(&path, "security.capability", &capability, XattrFlags::empty()).unwrap();
        as_nobody(root, "echo x >> file");
        let gone = rustix::fs::getxattr(&path, "security.capability", &mut [0; 32][..]);
        assert_eq!(gone.unwrap_err(), Errno::NODATA);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"r", 0).unwrap();
        assert_eq!(permissions(&path), 0o6777, "root keeps them");
        std::os::unix::fs::chown(&path, Some(5), Some(5)).unwrap();
        assert_eq!(permissions(&path), 0o777, "not over chown");
    });
}

#[test]
fn set_group_id_of_a_directory_is_inherited() {
    each_mode(nothing, |root| {
        fs::create_dir(root.join("dir")).unwrap();
        std::os::unix::fs::chown(root.join("dir"), None, Some(77)).unwrap();
        fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o2775)).unwrap();
        shell(root, ": > dir/file; mkdir dir/sub; ln -s x dir/link");
        for name in ["file", "sub", "link"] {
            assert_eq!(fs::symlink_metadata(root.join("dir").join(name)).unwrap().gid(), 77, "{name}");
        }
        assert_eq!(permissions(root.join("dir/sub")) & 0o2000, 0o2000);
    });
}

#[test]
fn no_name_is_reserved_and_long_ones_work() {
    fn prepare(lower: &Path) {
        fs::write(lower.join("L".repeat(255)), "long").unwrap();
        fs::write(lower.join(".wh.lower"), "ordinary").unwrap();
    }
    each_mode(prepare, |root| {
        let long = root.join("L".repeat(255));
        let mut file = OpenOptions::new().append(true).open(&long).unwrap();
        std::io::Write::write_all(&mut file, b"er").unwrap();
        assert_eq!(fs::read_to_string(&long).unwrap(), "longer");
        fs::remove_file(&long).unwrap();
        assert!(!long.exists());
        fs::create_dir(&long).unwrap();
        fs::rename(&long, root.join("M".repeat(255))).unwrap();
        assert_eq!(fs::File::create(root.join("N".repeat(256))).unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
        assert_eq!(fs::read_to_string(root.join(".wh.lower")).unwrap(), "ordinary");
        fs::write(root.join(".wh..wh..opq"), "also").unwrap();
        assert!(root.join(".wh..wh..opq").exists());
    });
}

/// In the upper this device would mean "deleted".
#[test]
fn the_character_device_0_0_is_a_device() {
    each_mode(nothing, |root| {
        shell(root, "mknod c c 0 0; mkdir dir; mknod dir/c c 0 0; : > dir/file");
        for name in ["c", "dir/c"] {
            let found = fs::symlink_metadata(root.join(name)).unwrap();
            assert_eq!(found.mode() & libc::S_IFMT, libc::S_IFCHR, "{name}");
            assert_eq!((found.rdev(), found.size()), (0, 0), "{name}");
        }
        assert_eq!(File::open(root.join("c")).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        shell(root, "chmod 640 c; chown 3:4 c; mv c dir/d; ln dir/d e; touch -d @1000 e; test -c e -a -c dir/d");
        let found = fs::symlink_metadata(root.join("e")).unwrap();
        assert_eq!((found.nlink(), found.uid(), found.mtime(), permissions(root.join("e"))), (2, 3, 1000, 0o640));
        let kinds = fs::read_dir(root.join("dir")).unwrap().map(|entry| entry.unwrap().file_type().unwrap().is_file());
        assert_eq!(kinds.filter(|file| *file).count(), 1);
        shell(root, "rm e dir/c dir/d; rm dir/file; rmdir dir; mknod again c 0 0; rm again");
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    });
}

#[test]
fn emptying_a_file_copies_nothing_and_holes_are_kept() {
    fn prepare(lower: &Path) {
        for name in ["emptied", "holes"] {
            let file = File::create(lower.join(name)).unwrap();
            file.set_len(1 << 26).unwrap();
            file.write_all_at(b"data", 1 << 20).unwrap();
        }
    }
    each_mode(prepare, |root| {
        File::create(root.join("emptied")).unwrap();
        assert_eq!(fs::metadata(root.join("emptied")).unwrap().len(), 0);
        let file = OpenOptions::new().read(true).write(true).open(root.join("holes")).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        assert!(file.metadata().unwrap().blocks() < 1000);
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(1 << 16)).unwrap(), 1 << 20);
        let mut data = [0; 4];
        file.read_exact_at(&mut data, 1 << 20).unwrap();
        assert_eq!(&data, b"data");
    });
}

#[test]
fn a_reader_sees_what_is_written_after_copy_up() {
    fn prepare(lower: &Path) {
        fs::write(lower.join("file"), "old").unwrap();
    }
    each_mode(prepare, |root| {
        let path = root.join("file");
        let reader = File::open(&path).unwrap();
        let number = reader.metadata().unwrap().ino();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"NEW", 0).unwrap();
        let mut data = [0; 3];
        reader.read_exact_at(&mut data, 0).unwrap();
        assert_eq!(&data, b"NEW");
        assert_eq!(writer.metadata().unwrap().ino(), number);
        rustix::fs::flock(&reader, FlockOperation::LockExclusive).unwrap();
        let refused = rustix::fs::flock(&writer, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused.unwrap_err(), Errno::WOULDBLOCK);
    });
}

#[test]
fn a_writer_beside_readers_of_a_program_gets_a_file_of_the_same_number() {
    fn prepare(lower: &Path) {
        for name in ["written", "cut"] {
            fs::write(lower.join(name), [b"\x7fELF", vec![b'p'; 10_000].as_slice()].concat()).unwrap();
        }
    }
    each_mode(prepare, |root| {
        let path = root.join("written");
        let reader = File::open(&path).unwrap();
        let number = reader.metadata().unwrap().ino();
        let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        writer.write_all_at(b"new", 0).unwrap();
        for file in [&reader, &writer] {
            assert_eq!(file.metadata().unwrap().ino(), number);
        }
        assert_eq!(fs::metadata(&path).unwrap().ino(), number);
        assert!(fs::read(&path).unwrap().starts_with(b"newF"));
        let mut old = [0; 4];
        reader.read_exact_at(&mut old, 0).unwrap();
        assert!(&old == b"\x7fELF" || &old == b"newF");
        assert!(File::open(format!("/proc/self/fd/{}", reader.as_raw_fd())).is_ok());
        fs::rename(&path, root.join("moved")).unwrap();
        fs::remove_file(root.join("moved")).unwrap();
        assert_eq!(reader.metadata().unwrap().nlink(), 0);

        let path = root.join("cut");
        let _reader = File::open(&path).unwrap();
        // By name, with no descriptor: `truncate(1)` would open it.
        shell(root, "python3 -c \"import os; os.truncate('cut', 100)\" || truncate -s 100 cut");
        assert_eq!(fs::read(&path).unwrap().len(), 100);
        let mut more = OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut more, b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 101);
    });
}

/// The kernel asks for the file to be emptied before it looks whether that is allowed.
#[test]
fn a_running_program_is_not_emptied() {
    fn prepare(lower: &Path) {
        for name in ["lower", "changed"] {
            fs::copy("/bin/sleep", lower.join(name)).unwrap();
        }
    }
    each_mode(prepare, |root| {
        fs::copy(root.join("lower"), root.join("upper")).unwrap();
        fs::set_permissions(root.join("changed"), fs::Permissions::from_mode(0o700)).unwrap();
        for name in ["lower", "changed", "upper"] {
            let path = root.join(name);
            let length = fs::metadata(&path).unwrap().len();
            let mut running = Command::new(&path).arg("60").spawn().unwrap();
            let empty = || rustix::fs::open(&path, OFlags::RDONLY | OFlags::TRUNC, Mode::empty());
            assert_eq!(empty().unwrap_err(), Errno::TXTBSY, "{name}");
            assert_eq!(fs::metadata(&path).unwrap().len(), length, "{name}");
            running.kill().unwrap();
            running.wait().unwrap();
            // Nobody waits for the kernel to say that it is closed.
            let mut tries = (0..500).map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                empty()
            });
            assert!(tries.any(|opened| opened.is_ok()), "{name}");
            assert_eq!(fs::metadata(&path).unwrap().len(), 0, "{name}");
        }
    });
}

/// Whatever the mix, nobody gets an error and the bytes of a writer are what the next reader sees.
#[test]
fn many_open_the_same_files_at_once() {
    fn prepare(lower: &Path) {
        for number in 0..12 {
            let head: &[u8] = if number % 2 == 0 { b"\x7fELF" } else { b"text" };
            fs::write(lower.join(number.to_string()), [head, vec![b'.'; 5000].as_slice()].concat()).unwrap();
        }
    }
    each_mode(prepare, |root| {
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                scope.spawn(move || {
                    for round in 0..60_usize {
                        let path = root.join(((thread * 7 + round * 5) % 12).to_string());
                        let write = (thread + round) % 5 == 0;
                        let file = OpenOptions::new().read(true).write(write).open(&path).unwrap();
                        if write {
                            file.write_all_at(b"w", 100 + thread as u64).unwrap();
                        }
                        let mut data = [0; 1];
                        file.read_exact_at(&mut data, 5000).unwrap();
                        assert_eq!(&data, b".");
                    }
                });
            }
        });
        for number in 0..12 {
            assert_eq!(fs::read(root.join(number.to_string())).unwrap().len(), 5004);
        }
    });
}

/// Programs are passed through: each first writer has to be sent away from readers, once and not twice, whoever opens,
/// closes or replaces the file meanwhile.
#[test]
fn writers_beside_readers_of_programs_get_no_error() {
    const THREADS: usize = 6;
    fn files() -> usize {
        std::env::var("STRATA_SPLIT_FILES").ok().and_then(|count| count.parse().ok()).unwrap_or(150)
    }
    fn prepare(lower: &Path) {
        for number in 0..files() {
            for name in [format!("{number}"), format!("other{number}")] {
                fs::write(lower.join(name), [b"\x7fELF", vec![b'.'; 3000].as_slice()].concat()).unwrap();
            }
            fs::hard_link(lower.join(number.to_string()), lower.join(format!("link{number}"))).unwrap();
        }
    }
    each_mode(prepare, |root| {
        let together = std::sync::Barrier::new(THREADS);
        // Whoever panics would leave the others waiting.
        let failed = std::sync::Mutex::new(Vec::new());
        let (together, failed) = (&together, &failed);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for number in 0..files() {
                        let path = root.join(number.to_string());
                        let link = root.join(format!("link{number}"));
                        together.wait();
                        for round in 0..6 {
                            let (write, path) = match (thread + number + round) % 6 {
                                0 | 3 => (true, &path),
                                1 => (true, &link),
                                2 => (false, &link),
                                _ => (false, &path),
                            };
                            let mut data = [0; 1];
                            let mut step = "open";
                            let opened = OpenOptions::new().read(true).write(write).open(path).and_then(|file| {
                                step = "write";
                                if write {
                                    file.write_all_at(b"w", 100 + thread as u64)?;
                                }
                                step = "read";
                                file.read_exact_at(&mut data, 3000)
                            });
                            if opened.is_err() || &data != b"." {
                                failed
                                    .lock()
                                    .unwrap()
                                    .push(format!("{step} {path:?} in round {round}, write {write}: {opened:?}"));
                            }
                            if thread == 5 && round == number % 6 {
                                let other = root.join(format!("other{number}"));
                                let _reader = File::open(&other).unwrap();
                                fs::rename(&other, root.join(number.to_string())).unwrap();
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(*failed.lock().unwrap(), Vec::<String>::new());
        for number in 0..files() {
            assert_eq!(fs::read(root.join(format!("link{number}"))).unwrap().len(), 3004);
        }
    });
}

/// The kernel opens a backing file again with the flags of a client: a wrong answer of the server must not be able to
/// change a lower.
#[test]
fn the_file_behind_a_lower_node_cannot_be_opened_for_writing() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    for dir in ["lower", "upper", "work"] {
        fs::create_dir(at(dir)).unwrap();
    }
    fs::write(at("lower/file"), "lower").unwrap();
    let spec = MountSpec {
        lower: Lower::Folders(vec![at("lower")]),
        upper: Some(Upper { dir: at("upper"), work: at("work") }),
        options: options(),
    };
    let tree = strata_unionfs::Tree::open(&spec).unwrap();
    let found = tree.lookup(strata_unionfs::Ino::ROOT, b"file").unwrap();
    let file = tree.backing_file(found.ino).unwrap();
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    for write in
        [OpenOptions::new().write(true), OpenOptions::new().append(true), OpenOptions::new().write(true).truncate(true)]
    {
        assert_eq!(write.open(&again).unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    assert_eq!(fs::read_to_string(at("lower/file")).unwrap(), "lower");
}

/// `tar` compares the times of the last change before and after it reads: a copy-up must not show first old ones, then new
/// ones.
#[test]
fn times_do_not_move_while_nobody_changes_anything() {
    fn prepare(lower: &Path) {
        shell(lower, "mkdir -p dir/sub; echo text > dir/file; echo other > dir/other; echo deep > dir/sub/deep");
    }
    each_mode(prepare, |root| {
        let times = |name: &str| {
            let found = fs::metadata(root.join(name)).unwrap();
            (found.ctime(), found.ctime_nsec(), found.mtime(), found.mtime_nsec(), found.size(), found.blocks())
        };
        let names = ["", "dir", "dir/file", "dir/other", "dir/sub", "dir/sub/deep"];
        let _first = names.map(times);
        for change in [
            "chmod 700 dir/sub",
            ": >> dir/file",
            "chmod 600 dir/other",
            "mv dir/sub/deep dir/sub/d; mv dir/sub/d dir/sub/deep",
            ": >> dir/other",
        ] {
            shell(root, change);
            let before = names.map(times);
            // Reading moves access times, and with them the kernel asks for all of them again.
            shell(root, "cat dir/file dir/other dir/sub/deep; ls -R . > /dev/null; find . -ls");
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert_eq!(names.map(times), before, "{change}");
        }
    });
}

/// A copy-up is no change of the directory to users: the kernel goes on with what it knows of that, which stays right.
#[test]
fn copies_are_no_reason_to_ask_for_their_directory() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    for dir in ["lower", "lower/dir", "upper", "work", "mount"] {
        fs::create_dir(at(dir)).unwrap();
    }
    (0..=20).for_each(|number| fs::write(at(&format!("lower/dir/{number}")), "text").unwrap());
    let spec = MountSpec {
        lower: Lower::Folders(vec![at("lower")]),
        upper: Some(Upper { dir: at("upper"), work: at("work") }),
        options: options(),
    };
    let mount = TestMount::new(&spec, &at("mount"));
    let look = |how| {
        let flags = rustix::fs::StatxFlags::BASIC_STATS;
        let found = rustix::fs::statx(rustix::fs::CWD, at("mount/dir"), how, flags).unwrap();
        let [changed, modified] = [found.stx_ctime, found.stx_mtime].map(|time| (time.tv_sec, time.tv_nsec));
        (changed, modified, found.stx_size, found.stx_blocks, found.stx_nlink)
    };
    let kept = || look(rustix::fs::AtFlags::empty());
    let told = || look(rustix::fs::AtFlags::STATX_FORCE_SYNC);
    let asked = || mount.counts.list().iter().find(|(kind, _)| *kind == "GETATTR").map_or(0, |(_, count)| *count);
    let on_disk = || {
        let found = fs::metadata(at("upper/dir")).unwrap();
        (found.ctime(), u32::try_from(found.ctime_nsec()).unwrap())
    };
    let change = |number: u32| {
        fs::set_permissions(at(&format!("mount/dir/{number}")), fs::Permissions::from_mode(0o600)).unwrap();
    };
    // The directory itself is copied with the first.
    change(0);
    let (before, times) = (kept(), asked());
    (1..20).for_each(change);
    assert_eq!(asked(), times);
    assert_eq!((kept(), told()), (before, before));
    // A change of its attributes is seen, however soon after a copy.
    fs::set_permissions(at("mount/dir"), fs::Permissions::from_mode(0o711)).unwrap();
    let before = kept();
    assert_eq!((before, before.0), (told(), on_disk()));
    change(20);
    assert_eq!((kept(), told()), (before, before));
    // What users do there is seen, and so are copies after that.
    fs::write(at("mount/dir/new"), "").unwrap();
    assert_ne!(kept().0, before.0);
    fs::set_permissions(at("mount/dir"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(kept(), told());
    mount.unmount();
}

#[test]
fn a_reader_of_a_directory_sees_each_survivor_once() {
    fn prepare(lower: &Path) {
        fs::create_dir(lower.join("dir")).unwrap();
        for number in 0..1500 {
            fs::write(lower.join(format!("dir/l{number}")), "").unwrap();
        }
    }
    each_mode(prepare, |root| {
        let dir = root.join("dir");
        for number in 0..1500 {
            fs::write(dir.join(format!("u{number}")), "").unwrap();
        }
        let mut seen = HashSet::new();
        for entry in fs::read_dir(&dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(seen.insert(name.clone()), "{name} twice");
            if let Some(number) = name[1..].parse::<u32>().ok().filter(|number| number % 3 == 0) {
                let _ = fs::remove_file(dir.join(format!("l{number}")));
                let _ = fs::remove_file(dir.join(format!("u{number}")));
                fs::write(dir.join(format!("x{number}")), "").unwrap();
            }
        }
        for number in (0..1500).filter(|number| number % 3 != 0) {
            assert!(seen.contains(&format!("l{number}")) && seen.contains(&format!("u{number}")), "{number}");
        }
    });
}

/// The backing filesystem gives numbers of deleted files away at once.
#[test]
fn reused_numbers_do_not_show() {
    each_mode(nothing, |root| {
        let (a, b) = (root.join("a"), root.join("b"));
        for round in 0..200 {
            fs::write(&a, round.to_string()).unwrap();
            fs::create_dir(&b).unwrap();
            assert_eq!(fs::read_to_string(&a).unwrap(), round.to_string());
            fs::remove_file(&a).unwrap();
            fs::create_dir(&a).unwrap();
            fs::remove_dir(&b).unwrap();
            fs::write(&b, "file").unwrap();
            assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
            fs::remove_dir(&a).unwrap();
            fs::remove_file(&b).unwrap();
        }
    });
}

#[test]
fn marks_are_hidden_and_those_of_a_nested_union_are_not() {
    fn prepare(lower: &Path) {
        fs::create_dir(lower.join("dir")).unwrap();
        fs::write(lower.join("dir/file"), "").unwrap();
    }
    each_mode(prepare, |root| {
        let dir = root.join("dir");
        fs::remove_file(dir.join("file")).unwrap();
        fs::remove_dir(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        let mut list = [0_u8; 1000];
        let length = rustix::fs::listxattr(&dir, &mut list[..]).unwrap();
        assert!(!String::from_utf8_lossy(&list[..length]).contains("overlay"));
        rustix::fs::setxattr(&dir, "trusted.overlay.opaque", b"x", XattrFlags::empty()).unwrap();
        let length = rustix::fs::listxattr(&dir, &mut list[..]).unwrap();
        assert!(String::from_utf8_lossy(&list[..length]).contains("trusted.overlay.opaque\0"));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "it stays opaque");
        rustix::fs::removexattr(&dir, "trusted.overlay.opaque").unwrap();
    });
}

#[test]
fn stores_through_a_mapping_move_the_time() {
    each_mode(nothing, |root| {
        let script = "import mmap,os,sys\n\
            fd=os.open('f',os.O_RDWR|os.O_CREAT); os.write(fd,b'a'*4096); os.utime('f',(1,1))\n\
            m=mmap.mmap(fd,4096); m[0:1]=b'b'; m.flush()\n\
            sys.exit(os.stat('f').st_mtime<2 or open('f').read(1)!='b')";
        match Command::new("python3").args(["-c", script]).current_dir(root).status() {
            Ok(status) => assert!(status.success()),
            Err(_) => println!("SKIPPED: needs python3"),
        }
    });
}

#[test]
fn very_deep_trees_work() {
    each_mode(nothing, |root| {
        let mut dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let name = "d".repeat(120);
        for _ in 0..600 {
            rustix::fs::mkdirat(&dir, name.as_str(), Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, name.as_str(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let leaf = rustix::fs::openat(&dir, "leaf", OFlags::CREATE | OFlags::RDWR, Mode::RUSR | Mode::WUSR).unwrap();
        rustix::io::write(&leaf, b"leaf").unwrap();
        drop((leaf, dir));
        shell(root, "rm -rf d*");
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    });
}

#[test]
fn copying_up_special_files_changes_only_what_was_asked() {
    fn prepare(lower: &Path) {
        shell(lower, "mkfifo fifo; mknod dev c 1 3; ln -s target link; mkdir dir; : > dir/file; touch -d @1000 dir");
        std::os::unix::net::UnixListener::bind(lower.join("socket")).unwrap();
    }
    each_mode(prepare, |root| {
        shell(root, "chmod 601 fifo dev; chown -h 3:4 link; chmod 600 dir/file");
        assert_eq!(fs::read_link(root.join("link")).unwrap(), PathBuf::from("target"));
        assert_eq!(fs::symlink_metadata(root.join("link")).unwrap().uid(), 3);
        assert_eq!(permissions(root.join("fifo")), 0o601);
        assert_eq!(fs::metadata(root.join("dir")).unwrap().mtime(), 1000, "a copy-up inside does not show");
        fs::set_permissions(root.join("socket"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut null = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(root.join("dev")).unwrap();
        assert_eq!(null.read(&mut [0; 1]).unwrap(), 0);
    });
}

/// All of this file again, over each transport that is not the default.
#[test]
fn the_same_over_every_transport() {
    if !privileged() {
        return;
    }
    let this = std::env::current_exe().unwrap();
    for transport in ["device", "ring", "fuser"] {
        if transport == "ring" && !Path::new("/sys/module/fuse/parameters/enable_uring").exists() {
            println!("SKIPPED: the kernel has no FUSE over io_uring");
            continue;
        }
        let mut command = Command::new(&this);
        // The last is about what the tree does, and long.
        let skipped = ["the_same_over_every_transport", "a_reader_of_a_directory_sees"];
        command.args(skipped.iter().flat_map(|name| ["--skip", name])).env("STRATA_TEST_TRANSPORT", transport);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{transport}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_copy_that_finds_no_room_leaves_the_file_as_it_was() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| temp.path().join(name);
    fs::create_dir(at("lower")).unwrap();
    fs::create_dir(at("small")).unwrap();
    fs::write(at("lower/file"), vec![7; 4 << 20]).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "small"]).arg(at("small")).status();
    assert!(mounted.unwrap().success());
    fs::create_dir(at("small/upper")).unwrap();
    fs::create_dir(at("small/work")).unwrap();
    let spec = MountSpec {
        lower: Lower::Folders(vec![at("lower")]),
        upper: Some(Upper { dir: at("small/upper"), work: at("small/work") }),
        options: options(),
    };
    let tree = strata_unionfs::Tree::open(&spec).unwrap();
    let ino = tree.lookup(strata_unionfs::Ino::ROOT, b"file").unwrap().ino;
    // Version 2: CAP_NET_RAW is permitted.
    let capability = [&[1, 0, 0, 2, 0, 0x20, 0, 0][..], &[0; 12]].concat();
    let name = b"security.capability";
    tree.set_xattr(ino, name, &capability, XattrFlags::empty(), strata_unionfs::SetGroupId::Keep).unwrap();
    let before = fs::metadata(at("small/upper/file")).unwrap();
    let write = strata_unionfs::Access { write: true, truncate: false, kill_privileges: false };
    assert_eq!(tree.open_file(ino, write).unwrap_err(), Errno::NOSPC);
    let after = fs::metadata(at("small/upper/file")).unwrap();
    assert_eq!(tree.xattr(ino, name).unwrap(), capability);
    assert_eq!((after.blocks(), after.len()), (0, 4 << 20));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    let mut data = [0; 3];
    assert_eq!(tree.read(ino, &mut data, (4 << 20) - 3), Ok(3));
    assert_eq!(data, [7; 3]);
    drop(tree);
    assert!(Command::new("umount").arg("-l").arg(at("small")).status().unwrap().success());
}
