//! One upper, two drivers: what we wrote the kernel's overlayfs mounts and shows the same, and the other way round, while
//! uppers become lowers under new uppers.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{TestMount, options, privileged};
use strata_unionfs::{Lower, Metacopy, MountSpec, Options, Upper, UserXattr};

/// Who mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Ours,
    Kernel,
}

/// Which marks are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marks {
    Trusted,
    User,
}

/// Layers on a disk, of which the last one is written.
struct Stack {
    temp: tempfile::TempDir,
    marks: Marks,
    /// Lowers, topmost first.
    lowers: Vec<PathBuf>,
    uppers: usize,
}

impl Stack {
    fn new(marks: Marks) -> Stack {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| temp.path().join(name);
        for dir in ["mnt", "base", "second"] {
            fs::create_dir(at(dir)).unwrap();
        }
        shell(
            &at("base"),
            "mkdir -p dir other tree/sub/deep gone/old acl
             for name in a b c d e f g h i; do echo base $name > dir/$name; done
             for name in x y z; do echo base $name > tree/sub/$name; echo deep $name > tree/sub/deep/$name; done
             echo old > gone/old/file; ln -s ../dir/a dir/link; mkfifo dir/fifo; chmod 4755 dir/h
             for name in big big2 big3 big4; do
               head -c 300000 /dev/urandom > dir/$name; truncate -s 900000 dir/$name; echo end >> dir/$name
             done",
        );
        shell(
            &at("second"),
            "mkdir -p dir tree; echo second i > dir/i; echo second > tree/top; echo only > dir/second",
        );
        let lowers = vec![at("second"), at("base")];
        let stack = Stack { temp, marks, lowers, uppers: 0 };
        stack.make_upper();
        stack
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn mnt(&self) -> PathBuf {
        self.at("mnt")
    }

    fn make_upper(&self) {
        for kind in ["upper", "work"] {
            fs::create_dir(self.at(&format!("{kind}{}", self.uppers))).unwrap();
        }
    }

    /// Makes the upper a lower, under a new upper.
    fn rotate(&mut self) {
        self.lowers.insert(0, self.at(&format!("upper{}", self.uppers)));
        self.uppers += 1;
        self.make_upper();
    }

    fn upper(&self) -> Upper {
        Upper { dir: self.at(&format!("upper{}", self.uppers)), work: self.at(&format!("work{}", self.uppers)) }
    }

    /// Runs `action` while the stack is mounted.
    fn mounted<T>(&self, driver: Driver, action: impl FnOnce(&Path) -> T) -> T {
        match driver {
            Driver::Ours => {
                let userxattr = if self.marks == Marks::User { UserXattr::On } else { UserXattr::Off };
                let spec = MountSpec {
                    lower: Lower::Folders(self.lowers.clone()),
                    upper: Some(self.upper()),
                    options: Options { userxattr, ..options() },
                };
                let mount = TestMount::new(&spec, &self.mnt());
                let result = action(&self.mnt());
                mount.unmount();
                result
            }
            Driver::Kernel => {
                let mount = KernelMount::new(self);
                let result = action(&self.mnt());
                drop(mount);
                result
            }
        }
    }

    /// Checks that both drivers show the same, and returns it.
    fn compare(&self, when: &str) -> String {
        let ours = self.mounted(Driver::Ours, listing);
        let kernels = self.mounted(Driver::Kernel, listing);
        assert_same(&ours, &kernels, &format!("ours and the kernel's, {when}"));
        ours
    }
}

struct KernelMount(PathBuf);

impl KernelMount {
    fn new(stack: &Stack) -> KernelMount {
        let lowers: Vec<String> = stack.lowers.iter().map(|path| path.display().to_string()).collect();
        let Upper { dir, work } = stack.upper();
        let features = match stack.marks {
            Marks::Trusted => "redirect_dir=on,metacopy=on,index=off,xino=on",
            Marks::User => "userxattr",
        };
        let options =
            format!("lowerdir={},upperdir={},workdir={},{features}", lowers.join(":"), dir.display(), work.display());
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "-o", &options, "overlay"]).arg(stack.mnt());
        assert!(mount.status().unwrap().success(), "{options}");
        KernelMount(stack.mnt())
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        let lazy = if std::thread::panicking() { "-l" } else { "-n" };
        let _ = Command::new("umount").arg(lazy).arg(&self.0).status();
    }
}

fn shell(dir: &Path, script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap().success(), "{script}");
}

/// Lists all but the root, whose times are those of the upper's own.
fn listing(dir: &Path) -> String {
    let text = strata_layer::listing::list_directory(dir, &strata_layer::listing::Options::default()).unwrap();
    text.split_once('\n').unwrap().1.to_owned()
}

/// Fails with the lines that only one of two listings has.
fn assert_same(got: &str, expected: &str, when: &str) {
    let only = |a: &str, b: &str| -> String {
        let others: std::collections::HashSet<&str> = b.lines().collect();
        a.lines().filter(|line| !others.contains(line)).map(|line| format!("\n  {line}")).collect()
    };
    assert!(got == expected, "{when}\ngot: {}\nexpected: {}", only(got, expected), only(expected, got));
}

/// Returns the inode number of every path, which must be that of its directory entry.
fn numbers(dir: &Path) -> BTreeMap<PathBuf, u64> {
    use std::os::unix::fs::DirEntryExt as _;
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(current) = todo.pop() {
        for entry in fs::read_dir(current).unwrap() {
            let entry = entry.unwrap();
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(metadata.ino(), entry.ino(), "{:?}", entry.path());
            found.insert(entry.path(), metadata.ino());
            if metadata.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found
}

/// What is done to each upper. Only the first step works on plain lowers; later ones work on what earlier ones left.
///
/// Lower files with several names are left alone: here they stay one file, and under the kernel without `index` they do
/// not.
const STEPS: [&str; 5] = [
    "chmod 600 dir/a; chown 5:6 dir/b; touch -d @1000.5 dir/c; ln dir/e dir/e2; mv dir/f dir/f2
     mv dir/g other/g; mv tree moved; chmod 700 moved/sub/x; echo more >> moved/sub/y; mv moved/sub/z z
     rm -r gone; mkdir gone; echo new > gone/new; mv dir/link other/link; mv dir/fifo other; chmod 640 other/fifo
     chmod 600 dir/big dir/big2 dir/big3; truncate -s 100 dir/big2; : > dir/big3; mv dir/big4 other/big4
     chown 7:8 dir/h; chmod 644 dir/second; mkdir -p new/deep; echo born > new/deep/file",
    "chmod 640 dir/a; echo add >> dir/b; mv moved again; mv again/sub up; chmod 711 up/x
     rm dir/c; echo anew > dir/c; mv other/g dir/gg; echo add >> other/big4; chmod 640 dir/big; mv dir/i dir/j
     mv new/deep shallow; chmod 600 shallow/file; rm other/fifo; mkdir other/fifo; mv z up/deep/z2",
    "mv up moved-up; echo add >> moved-up/x; chmod 644 dir/gg; ln dir/gg dir/ggg; rm -r again; mkdir again
     mv moved-up/deep again/deeper; rm again/deeper/x; echo anew > again/deeper/x; mv dir/big big
     rm -r gone; mkdir -p gone/old; mv shallow/file dir/born",
    "mv dir dir2; chmod 600 dir2/j; mv dir2/a a; mv again/deeper dir2/deepest
     chown 9:9 dir2 dir2/second dir2/h; mv moved-up tree; mkdir moved-up; touch moved-up/nothing; chmod 600 big",
    "chmod u+x dir2/[ahjs]*; for file in dir2/*; do test -d $file || cat $file > /dev/null; done; mv dir2/deepest .
     rm -r tree; mkdir -p tree/sub; echo x > a; mv big dir2/large; echo end >> dir2/large",
];

fn run(writers: [Driver; 2], marks: Marks, steps: &[&str]) {
    let mut stack = Stack::new(marks);
    for (round, script) in steps.iter().enumerate() {
        let writer = writers[round % 2];
        let (shown, before) = stack.mounted(writer, |root| {
            shell(root, script);
            (listing(root), numbers(root))
        });
        let when = format!("step {round} by {writer:?}");
        assert_same(&stack.compare(&when), &shown, &format!("mounted again after {when}"));
        if writer == Driver::Ours {
            assert_eq!(stack.mounted(Driver::Ours, numbers), before, "numbers after {when}");
        }
        stack.rotate();
        let rotated = format!("rotated after {when}");
        assert_same(&stack.compare(&rotated), &shown, &rotated);
        if writers == [Driver::Ours; 2] {
            assert_eq!(stack.mounted(Driver::Ours, numbers), before, "numbers, rotated after {when}");
        }
    }
}

#[test]
fn uppers_of_ours_mount_in_overlayfs_and_rotate() {
    if privileged() {
        run([Driver::Ours; 2], Marks::Trusted, &STEPS);
    }
}

#[test]
fn uppers_of_overlayfs_mount_here_and_rotate() {
    if privileged() {
        run([Driver::Kernel; 2], Marks::Trusted, &STEPS);
    }
}

#[test]
fn both_write_to_one_stack_in_turns() {
    if privileged() {
        run([Driver::Ours, Driver::Kernel], Marks::Trusted, &STEPS);
        run([Driver::Kernel, Driver::Ours], Marks::Trusted, &STEPS);
    }
}

/// With `userxattr` the kernel follows no redirects and no files without data, so no folder of a lower is moved.
const USER_STEPS: [&str; 3] = [
    "chmod 600 dir/a; chown 0:0 dir/b; touch -d @1000.5 dir/c; mv dir/f dir/f2; mv dir/g other/g
     rm -r gone; mkdir gone; echo new > gone/new; rm tree/sub/x; chmod 700 tree/sub/y; mv dir/link other/link
     rm -r tree/sub/deep; mkdir -p tree/sub/deep; echo x > tree/sub/deep/new; truncate -s 100 dir/big2; : > dir/big3",
    "chmod 640 dir/a; echo add >> dir/b; rm dir/c; echo anew > dir/c; mv other/g dir/gg
     rm -r gone; mkdir -p gone/old; chmod 600 tree/sub/deep/new; mkdir born; echo born > born/file",
    "rm dir/gg; mkdir dir/gg; rm -r tree; mkdir -p tree/sub/deep; echo add >> dir/big2; mv born/file dir/born",
];

#[test]
fn uppers_with_user_marks_mount_in_both_and_rotate() {
    if privileged() {
        run([Driver::Ours; 2], Marks::User, &USER_STEPS);
        run([Driver::Kernel; 2], Marks::User, &USER_STEPS);
        run([Driver::Ours, Driver::Kernel], Marks::User, &USER_STEPS);
    }
}

/// The same where `userxattr` is meant for: in a user namespace, where nobody may set `trusted.` attributes.
#[test]
fn uppers_with_user_marks_mount_in_both_in_a_user_namespace() {
    const INSIDE: &str = "STRATA_TEST_IN_USER_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        run([Driver::Ours, Driver::Kernel], Marks::User, &USER_STEPS);
        run([Driver::Kernel, Driver::Ours], Marks::User, &USER_STEPS);
        return;
    }
    if !privileged() {
        return;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "uppers_with_user_marks_mount_in_both_in_a_user_namespace", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn inode_numbers_stay_when_overlayfs_mounts_what_we_copied_up() {
    if !privileged() {
        return;
    }
    for marks in [Marks::Trusted, Marks::User] {
        let stack = Stack::new(marks);
        let before = stack.mounted(Driver::Kernel, numbers);
        let ours = stack.mounted(Driver::Ours, |root| {
            let ours = numbers(root);
            shell(root, "chmod 600 dir/a dir/big; echo more >> dir/b; echo more >> tree/sub/x; chown -h 3:4 dir/link");
            shell(root, "mv dir/c dir/c2; mv dir/d tree/sub/d; chmod 600 dir/fifo");
            ours
        });
        let after = stack.mounted(Driver::Kernel, numbers);
        let number = |numbers: &BTreeMap<PathBuf, u64>, name: &str| numbers.get(&stack.mnt().join(name)).copied();
        let moved = [("dir/c", "dir/c2"), ("dir/d", "tree/sub/d")];
        let stayed = ["dir/a", "dir/b", "tree/sub/x", "dir/big", "dir/link", "dir/fifo"].map(|name| (name, name));
        // With the other marks overlayfs believes only in filesystems that have a UUID.
        for (name, moved) in moved.into_iter().chain(stayed).filter(|_| marks == Marks::Trusted) {
            assert!(number(&before, name).is_some(), "{name}");
            assert_eq!(number(&after, moved), number(&before, name), "{name}");
        }
        // And what overlayfs copies up keeps its number here.
        stack.mounted(Driver::Kernel, |root| shell(root, "echo more >> dir/e; chmod 600 dir/f"));
        let again = stack.mounted(Driver::Ours, numbers);
        for name in ["dir/a", "dir/b", "dir/e", "dir/f", "tree/sub/x"] {
            assert_eq!(number(&again, name), number(&ours, name), "{name} with {marks:?}");
        }
    }
}

/// A tree of large files changes its owner at the cost of its names.
#[test]
fn changing_attributes_copies_no_data() {
    if !privileged() {
        return;
    }
    let stack = Stack::new(Marks::Trusted);
    let upper = stack.upper().dir;
    let used = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let all = ["dir/big", "dir/big2", "dir/big3", "dir/big4"];
    let before = stack.mounted(Driver::Ours, |root| {
        let before = all.map(|name| (fs::read(root.join(name)).unwrap(), used(&root.join(name))));
        shell(root, "chown -R 3:3 dir; chmod -R o-r dir; touch -c dir/*; ln dir/big dir/hard; mv dir/big2 dir/moved");
        for name in ["dir/big", "dir/moved", "dir/big3", "dir/big4"] {
            // A block for the marks, where the filesystem needs one.
            assert!(used(&upper.join(name)) <= 4096, "{name} is copied");
        }
        assert_eq!(used(&root.join("dir/big")), before[0].1, "what is shown as used");
        // The first change of the data brings it.
        shell(root, "printf X | dd of=dir/hard bs=1 seek=5 conv=notrunc status=none");
        assert!(used(&upper.join("dir/big")) >= 300_000 && used(&upper.join("dir/big")) < 600_000, "holes are kept");
        before
    });
    stack.compare("after metadata changes");
    stack.mounted(Driver::Kernel, |root| {
        let mut expected = before[0].0.clone();
        expected[5] = b'X';
        assert_eq!(fs::read(root.join("dir/hard")).unwrap(), expected);
        assert_eq!(fs::read(root.join("dir/moved")).unwrap(), before[1].0);
    });
}

/// Where asked for, no such file is made, but those that are there are read.
#[test]
fn metacopy_can_be_switched_off() {
    if !privileged() {
        return;
    }
    let stack = Stack::new(Marks::Trusted);
    stack.mounted(Driver::Kernel, |root| shell(root, "chmod 600 dir/big"));
    let spec = MountSpec {
        lower: Lower::Folders(stack.lowers.clone()),
        upper: Some(stack.upper()),
        options: Options { metacopy: Metacopy::Off, userxattr: UserXattr::Off, ..options() },
    };
    let mount = TestMount::new(&spec, &stack.mnt());
    shell(&stack.mnt(), "chmod 600 dir/big2; cmp dir/big ../base/dir/big");
    let blocks = |name: &str| fs::metadata(stack.upper().dir.join(name)).unwrap().blocks();
    assert!(blocks("dir/big") < 100 && blocks("dir/big2") > 100);
    mount.unmount();
}

/// Large files are read by the kernel itself, from the lower, also when their attributes are in the upper.
#[test]
fn files_without_data_are_passed_through() {
    if !privileged() {
        return;
    }
    let stack = Stack::new(Marks::Trusted);
    fs::write(stack.at("base/dir/large"), vec![7; 3 << 20]).unwrap();
    let spec = MountSpec {
        lower: Lower::Folders(stack.lowers.clone()),
        upper: Some(stack.upper()),
        options: Options { userxattr: UserXattr::Off, ..options() },
    };
    let mount = TestMount::new(&spec, &stack.mnt());
    let reads = || mount.counts.list().iter().find(|(kind, _)| *kind == "READ").map_or(0, |(_, count)| *count);
    shell(&stack.mnt(), "chmod 600 dir/large; mv dir/large dir/big");
    let before = reads();
    assert_eq!(fs::read(stack.mnt().join("dir/big")).unwrap(), vec![7; 3 << 20]);
    assert!(blocks(&stack.upper().dir.join("dir/big")) <= 8);
    if mount.report.passthrough {
        assert_eq!(reads(), before);
    } else {
        println!("SKIPPED: the kernel passes nothing through here");
    }
    mount.unmount();
}

fn blocks(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().blocks()
}

/// A file handle leads to its file whatever happened to that and however little the kernel remembers.
#[test]
fn file_handles_outlive_copy_up_moves_and_the_kernel_s_memory() {
    use rustix::fs::{AtFlags, OFlags};
    use std::os::fd::AsFd as _;
    use strata_sys::file_handle::{name_to_handle_at, open_by_handle_at};

    if !privileged() {
        return;
    }
    let stack = Stack::new(Marks::Trusted);
    stack.mounted(Driver::Ours, |root| {
        shell(root, "echo born > other/born; echo more >> dir/b");
        let mount = fs::File::open(root).unwrap();
        let handle = |path: &str| {
            let path = std::ffi::CString::new(path).unwrap();
            name_to_handle_at(mount.as_fd(), &path, AtFlags::empty()).unwrap()
        };
        let number = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().ino();
        // Its path now, its path later.
        let files = [
            ("dir/a", "dir/a"),
            ("dir/b", "dir/b"),
            ("dir/c", "dir/c"),
            ("dir/d", "other/moved"),
            ("other/born", "dir/born"),
            ("tree/sub/deep/x", "tree2/sub/deep/x"),
            ("tree/sub", "tree2/sub"),
            ("other", "other"),
        ];
        let held: Vec<_> = files.iter().map(|(path, _)| (handle(path), number(path))).collect();
        let gone = [handle("dir/e"), handle("gone/old")];
        shell(
            root,
            "echo more >> dir/c; mv dir/d other/moved; mv other/born dir/born; mv tree tree2; rm -r dir/e gone
             sync; echo 2 > /proc/sys/vm/drop_caches",
        );
        for ((_, path), (handle, number)) in files.iter().zip(&held) {
            let opened = open_by_handle_at(mount.as_fd(), handle, OFlags::PATH);
            let opened = fs::File::from(opened.unwrap_or_else(|error| panic!("{path}: {error}")));
            let expected = fs::symlink_metadata(root.join(path)).unwrap();
            let found = opened.metadata().unwrap();
            assert_eq!(
                (found.ino(), found.len(), found.mtime()),
                (*number, expected.len(), expected.mtime()),
                "{path}"
            );
            assert_eq!(expected.ino(), *number, "{path}");
        }
        for handle in &gone {
            let error = open_by_handle_at(mount.as_fd(), handle, OFlags::PATH).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
        }
    });
}

/// A file handle does not lead to a later file that was given the number of its own.
#[test]
fn file_handles_of_deleted_files_lead_nowhere_once_the_number_is_another_s() {
    use rustix::fs::{AtFlags, OFlags};
    use std::os::fd::AsFd as _;
    use strata_sys::file_handle::{name_to_handle_at, open_by_handle_at};

    if !privileged() {
        return;
    }
    let stack = Stack::new(Marks::Trusted);
    stack.mounted(Driver::Ours, |root| {
        let mount = fs::File::open(root).unwrap();
        let mut reused = false;
        for round in 0..50 {
            let path = root.join("other").join(format!("old{round}"));
            fs::write(&path, "old").unwrap();
            let number = fs::symlink_metadata(&path).unwrap().ino();
            let name = std::ffi::CString::new(format!("other/old{round}")).unwrap();
            let handle = name_to_handle_at(mount.as_fd(), &name, AtFlags::empty()).unwrap();
            let opened = open_by_handle_at(mount.as_fd(), &handle, OFlags::PATH);
            assert_eq!(fs::File::from(opened.unwrap()).metadata().unwrap().ino(), number);
            fs::remove_file(&path).unwrap();
            // Files that are made within one tick of the clock cannot be told from each other.
            std::thread::sleep(std::time::Duration::from_millis(20));
            let path = root.join("other").join(format!("new{round}"));
            fs::write(&path, "new").unwrap();
            shell(root, "sync; echo 2 > /proc/sys/vm/drop_caches");
            reused |= fs::symlink_metadata(&path).unwrap().ino() == number;
            let error = open_by_handle_at(mount.as_fd(), &handle, OFlags::PATH).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "round {round}");
            if reused {
                break;
            }
        }
        if !reused {
            eprintln!("skipped: this filesystem does not give numbers again");
        }
    });
}
