//! Limits of the writable layer: exact, kept over remounts, and the same as a count of the files.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use common::{TestMount, mount, options, privileged};
use rustix::fs::FallocateFlags;
use strata_unionfs::{Limits, Lower, MountSpec, Options, Target, Upper};
use tempfile::TempDir;

const BLOCK: u64 = 4096;
const LIMIT: u64 = 8 << 20;
const TMPFS: i64 = 0x0102_1994;
/// What the filesystem of a disk may take or give back for finding data, after the mount has looked at a file for the
/// last time (`docs/design/quota.md`).
const METADATA: u64 = 8 * BLOCK;

/// Folders for a mount, on a disk: the build folder is on one.
struct Bed {
    temp: TempDir,
    spec: MountSpec,
}

impl Bed {
    fn new(limits: Limits) -> Bed {
        Bed::at(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), limits)
    }

    fn at(temp: TempDir, limits: Limits) -> Bed {
        for dir in ["lower", "upper", "work", "mnt"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        let spec = MountSpec {
            lower: Lower::Folders(vec![temp.path().join("lower")]),
            upper: Some(Upper { dir: temp.path().join("upper"), work: temp.path().join("work") }),
            options: Options { limits, ..options() },
        };
        Bed { temp, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn mount(&self) -> TestMount {
        TestMount::new(&self.spec, &self.path("mnt"))
    }

    /// Bytes and inodes that the mount says are used.
    fn used(&self) -> (u64, u64) {
        let space = rustix::fs::statvfs(self.path("mnt")).unwrap();
        ((space.f_blocks - space.f_bfree) * space.f_frsize, space.f_files - space.f_ffree)
    }

    /// The same, once the kernel has said of every deleted file that it forgot it, and no more than the tolerance is
    /// missing.
    fn settled_within(&self, tolerance: u64) -> (u64, u64) {
        let upper = File::open(self.path("upper")).unwrap();
        if rustix::fs::fstatfs(&upper).unwrap().f_type != TMPFS {
            // A disk's filesystem takes and gives back what it needs to find data when it writes that.
            rustix::fs::syncfs(&upper).unwrap();
            self.close_once_more();
        }
        let mut last = self.used();
        for _ in 0..200 {
            let counted = self.counted();
            if last.0.abs_diff(counted.0) <= tolerance && last.1 == counted.1 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            last = self.used();
        }
        last
    }

    /// Opens and closes each file with data, after which the mount looks at it again.
    fn close_once_more(&self) {
        let mut pending = vec![PathBuf::new()];
        while let Some(path) = pending.pop() {
            let below = self.path("upper").join(&path);
            let metadata = below.symlink_metadata().unwrap();
            if metadata.is_dir() {
                pending.extend(fs::read_dir(below).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
            } else if metadata.is_file() && metadata.blocks() > 0 {
                OpenOptions::new().write(true).open(self.path("mnt").join(path)).unwrap();
            }
        }
    }

    /// What may lie between the sums and a count of the files.
    fn tolerance(&self) -> u64 {
        let upper = File::open(self.path("upper")).unwrap();
        if rustix::fs::fstatfs(&upper).unwrap().f_type == TMPFS { 0 } else { METADATA }
    }

    /// Compares the sums with a count of the files.
    fn check(&self, step: &str) {
        let tolerance = self.tolerance();
        let (used, counted) = (self.settled_within(tolerance), self.counted());
        assert!(used.0.abs_diff(counted.0) <= tolerance && used.1 == counted.1, "{step}: {used:?} of {counted:?}");
    }

    /// Bytes and inodes in the upper, by walking it.
    fn counted(&self) -> (u64, u64) {
        let mut seen = HashSet::new();
        let (mut bytes, mut inodes) = (0, 0);
        let mut pending = vec![self.path("upper")];
        for entry in fs::read_dir(self.path("work/strata-links")).into_iter().flatten() {
            pending.push(entry.unwrap().path());
        }
        while let Some(path) = pending.pop() {
            let metadata = path.symlink_metadata().unwrap();
            if metadata.file_type().is_char_device() && metadata.rdev() == 0
                || path.extension().is_some_and(|extension| extension == "names")
                || !seen.insert(metadata.ino())
            {
                continue;
            }
            bytes += metadata.blocks() * 512;
            inodes += 1;
            if metadata.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        (bytes, inodes)
    }
}

fn bytes(limit: u64) -> Limits {
    Limits { bytes: Some(limit), inodes: Some(1000) }
}

/// Writes until there is no space and returns how much that was.
fn fill(file: &File, chunk: usize) -> u64 {
    let data = vec![7; chunk];
    let mut written = 0;
    loop {
        match file.write_at(&data, written) {
            Ok(0) => panic!("nothing was written, and no error"),
            Ok(length) => written += length as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                return written;
            }
        }
    }
}

#[test]
fn space_ends_within_a_block_of_the_limit() {
    if !privileged() {
        return;
    }
    for (chunk, folder) in [(1 << 20, env!("CARGO_TARGET_TMPDIR")), (100_000, "/var/tmp"), (4096, "/dev/shm")] {
        let Ok(temp) = tempfile::tempdir_in(folder) else { continue };
        let bed = Bed::at(temp, bytes(LIMIT));
        let mount = bed.mount();
        let before = bed.used().0;
        let space = rustix::fs::statvfs(bed.path("mnt")).unwrap();
        assert_eq!(space.f_blocks * space.f_frsize, LIMIT, "df shows the limit");
        let file = File::create(bed.path("mnt/file")).unwrap();
        let written = fill(&file, chunk);
        let room = LIMIT - before;
        // What the filesystem needs to find the blocks of a fragmented file is counted too.
        assert!(written <= room && written + 4 * BLOCK >= room, "{written} of {room} in {folder} by {chunk}");
        // Inside what is there, writing goes on.
        file.write_all_at(&[9; 10_000], 5).unwrap();
        assert_eq!(file.write_at(&[1], written + 10 * BLOCK).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(file.metadata().unwrap().len(), written, "a failed write adds nothing");
        assert_eq!(fs::create_dir(bed.path("mnt/dir")).unwrap_err().kind(), ErrorKind::StorageFull);
        bed.check(folder);
        // What is freed can be used again at once.
        file.set_len(written / 2).unwrap();
        let again = OpenOptions::new().append(true).open(bed.path("mnt/file")).unwrap();
        (&again).write_all(&vec![3; usize::try_from(written / 4).unwrap()]).unwrap();
        drop(again);
        drop(file);
        fs::remove_file(bed.path("mnt/file")).unwrap();
        let file = File::create(bed.path("mnt/other")).unwrap();
        assert!(fill(&file, chunk) + 4 * BLOCK >= room, "deleted files leave their space at once");
        drop(file);
        bed.check(folder);
        mount.unmount();
    }
}

#[test]
fn inodes_end_at_their_limit() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(Limits { bytes: None, inodes: Some(10) });
    fs::write(bed.path("lower/low"), "low").unwrap();
    let mount = bed.mount();
    assert_eq!(bed.used().1, 1, "the root");
    for number in 0..9 {
        File::create(bed.path("mnt").join(number.to_string())).unwrap();
    }
    let full = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    full(File::create(bed.path("mnt/more")).unwrap_err());
    full(fs::create_dir(bed.path("mnt/more")).unwrap_err());
    full(std::os::unix::fs::symlink("x", bed.path("mnt/more")).unwrap_err());
    full(OpenOptions::new().append(true).open(bed.path("mnt/low")).unwrap_err());
    // Another name is no inode, and to delete must always be possible.
    fs::hard_link(bed.path("mnt/0"), bed.path("mnt/link")).unwrap();
    fs::remove_file(bed.path("mnt/0")).unwrap();
    full(File::create(bed.path("mnt/more")).unwrap_err());
    fs::remove_file(bed.path("mnt/low")).unwrap();
    fs::remove_file(bed.path("mnt/link")).unwrap();
    // The kernel says in the background that it has forgotten it; on a busy machine that may take longer than we wait.
    assert_eq!(bed.settled_within(u64::MAX).1, bed.counted().1);
    File::create(bed.path("mnt/more")).unwrap();
    assert_eq!(bed.used().1, bed.counted().1);
    mount.unmount();
}

#[test]
fn the_count_is_that_of_the_files_whatever_happens() {
    if !privileged() {
        return;
    }
    // In memory to the byte.
    count_through_changes(Bed::new(bytes(64 << 20)));
    if let Ok(temp) = tempfile::tempdir_in("/dev/shm") {
        count_through_changes(Bed::at(temp, bytes(64 << 20)));
    }
}

fn count_through_changes(bed: Bed) {
    for name in ["a", "b", "linked"] {
        fs::write(bed.path("lower").join(name), vec![1; 300_000]).unwrap();
    }
    fs::hard_link(bed.path("lower/linked"), bed.path("lower/linked too")).unwrap();
    fs::create_dir_all(bed.path("lower/dir/below")).unwrap();
    fs::write(bed.path("lower/dir/below/file"), vec![1; 50_000]).unwrap();
    let at = |name: &str| bed.path("mnt").join(name);
    let same = |step: &str| bed.check(step);
    let mount = bed.mount();
    same("at the start");
    OpenOptions::new().append(true).open(at("a")).unwrap().write_all(&[1; 5000]).unwrap();
    same("copy-up");
    let file = OpenOptions::new().read(true).write(true).open(at("a")).unwrap();
    rustix::fs::fallocate(file.as_fd(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 100_000).unwrap();
    same("a hole");
    rustix::fs::fallocate(file.as_fd(), FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    same("allocated ahead");
    file.set_len(10).unwrap();
    same("truncated");
    file.write_all_at(&[1; 10], 40 << 20).unwrap();
    same("sparse");
    OpenOptions::new().write(true).truncate(true).open(at("b")).unwrap();
    same("emptied at opening");
    OpenOptions::new().append(true).open(at("linked")).unwrap().write_all(&[1; 5000]).unwrap();
    same("copy-up of one link");
    fs::remove_file(at("linked")).unwrap();
    same("its name deleted");
    fs::write(at("linked too"), vec![1; 400_000]).unwrap();
    same("written by the other name");
    fs::remove_file(at("linked too")).unwrap();
    same("the last name deleted");
    fs::write(at("new"), vec![1; 123_456]).unwrap();
    fs::rename(at("new"), at("a")).unwrap();
    drop(file);
    same("replaced by rename");
    fs::rename(at("dir"), at("moved")).unwrap();
    OpenOptions::new().append(true).open(at("moved/below/file")).unwrap().write_all(&[1; 5000]).unwrap();
    same("a moved folder");
    fs::remove_dir_all(at("moved")).unwrap();
    same("a removed folder");
    for number in 0..500 {
        fs::write(at(&format!("{number:0>200}")), "").unwrap();
    }
    same("a directory that grew");
    for number in 0..500 {
        fs::remove_file(at(&format!("{number:0>200}"))).unwrap();
    }
    std::os::unix::fs::symlink("x".repeat(2000), at("symlink")).unwrap();
    same("a long link");
    let source = File::open(at("a")).unwrap();
    let target = File::create(at("copy")).unwrap();
    rustix::fs::copy_file_range(&source, None, &target, None, 100_000).unwrap();
    same("copied inside");
    rustix::fs::fsetxattr(&target, "user.large", &[1; 3000], rustix::fs::XattrFlags::empty()).unwrap();
    same("an attribute of its own block");
    rustix::fs::fremovexattr(&target, "user.large").unwrap();
    same("and without");
    drop((source, target));
    let used = bed.settled_within(bed.tolerance());
    mount.unmount();
    assert!(bed.path("work/strata-usage").exists());
    let mount = bed.mount();
    assert!(!bed.path("work/strata-usage").exists(), "it says what is so only while nobody changes it");
    assert!(bed.used().0.abs_diff(used.0) <= bed.tolerance() && bed.used().1 == used.1, "after a remount");
    mount.unmount();
}

#[test]
fn a_file_without_a_name_counts_until_nobody_holds_it() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mount = bed.mount();
    let file = File::create(bed.path("mnt/file")).unwrap();
    let written = fill(&file, 1 << 16);
    fs::remove_file(bed.path("mnt/file")).unwrap();
    let error = fs::write(bed.path("mnt/other"), vec![0; 100_000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "it is still open");
    assert!(bed.used().0 >= written);
    drop(file);
    fs::write(bed.path("mnt/other"), vec![0; 100_000]).unwrap();
    let held = File::create(bed.path("mnt/held")).unwrap();
    held.write_all_at(&[1; 200_000], 0).unwrap();
    fs::remove_file(bed.path("mnt/held")).unwrap();
    let unnamed = rustix::fs::openat(
        rustix::fs::CWD,
        bed.path("mnt"),
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR,
    );
    if let Ok(unnamed) = unnamed {
        File::from(unnamed).write_all_at(&[1; 50_000], 0).unwrap();
    }
    drop(held);
    bed.check("at the end");
    mount.unmount();
    let mount = bed.mount();
    bed.check("after a remount");
    mount.unmount();
}

#[test]
fn after_an_unclean_end_the_layer_is_counted() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mount = bed.mount();
    fs::create_dir_all(bed.path("mnt/a/b/c")).unwrap();
    fs::write(bed.path("mnt/a/b/c/file"), vec![1; 100_000]).unwrap();
    fs::hard_link(bed.path("mnt/a/b/c/file"), bed.path("mnt/link")).unwrap();
    mount.unmount();
    fs::remove_file(bed.path("work/strata-usage")).unwrap();
    let mount = bed.mount();
    bed.check("after a remount");
    mount.unmount();
    // A mount without limits makes the kept sums wrong, so it takes them away.
    let unlimited = MountSpec { options: options(), ..bed.spec.clone() };
    let mounted = TestMount::new(&unlimited, &bed.path("mnt"));
    fs::write(bed.path("mnt/more"), vec![1; 100_000]).unwrap();
    mounted.unmount();
    let mount = bed.mount();
    bed.check("after a remount");
    mount.unmount();
    // As does another program that uses the folders.
    fs::write(bed.path("upper/behind"), vec![1; 50_000]).unwrap();
    fs::remove_dir(bed.path("work/work")).unwrap();
    fs::create_dir(bed.path("work/work")).unwrap();
    let mount = bed.mount();
    bed.check("after a remount");
    mount.unmount();
}

#[test]
fn copy_up_and_attributes_respect_the_limit() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    fs::write(bed.path("lower/large"), vec![1; 10 << 20]).unwrap();
    fs::write(bed.path("lower/small"), vec![1; 100_000]).unwrap();
    let mount = bed.mount();
    let at = |name: &str| bed.path("mnt").join(name);
    let full = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    full(OpenOptions::new().append(true).open(at("large")).unwrap_err());
    assert_eq!(fs::metadata(at("large")).unwrap().len(), 10 << 20);
    assert!(!bed.path("upper/large").exists());
    bed.check("a refused copy leaves nothing");
    // Emptying it needs no copy.
    OpenOptions::new().write(true).truncate(true).open(at("large")).unwrap();
    let file = File::create(at("file")).unwrap();
    let error = rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, LIMIT).unwrap_err();
    assert_eq!(error, rustix::io::Errno::NOSPC);
    rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, LIMIT - (1 << 20)).unwrap();
    // What is allocated can be written whatever else is full.
    let filler = File::create(at("filler")).unwrap();
    fill(&filler, 4096);
    file.write_all_at(&vec![5; 4 << 20], 1 << 20).unwrap();
    rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 4096, 1 << 20).unwrap();
    full(OpenOptions::new().append(true).open(at("small")).unwrap_err());
    let error = rustix::fs::fsetxattr(&file, "user.large", &[1; 3500], rustix::fs::XattrFlags::empty()).unwrap_err();
    assert_eq!(error, rustix::io::Errno::NOSPC);
    assert!(rustix::fs::fgetxattr(&file, "user.large", &mut [0_u8; 4000][..]).is_err());
    drop((file, filler));
    bed.check("at the end");
    mount.unmount();
}

#[test]
fn data_that_is_there_can_be_overwritten_whatever_the_filesystem_takes_later() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mount = bed.mount();
    // So scattered that the filesystem needs blocks to find it, which it takes when it writes.
    let scattered = OpenOptions::new().read(true).write(true).create_new(true).open(bed.path("mnt/scattered")).unwrap();
    let block = vec![5; usize::try_from(BLOCK).unwrap()];
    for number in 0..800 {
        scattered.write_all_at(&block, number * 2 * BLOCK).unwrap();
    }
    let filler = File::create(bed.path("mnt/filler")).unwrap();
    fill(&filler, 4096);
    File::open(bed.path("upper/scattered")).unwrap().sync_all().unwrap();
    scattered.write_all_at(&[6; 100], 10).unwrap();
    rustix::fs::fallocate(scattered.as_fd(), FallocateFlags::empty(), 2 * BLOCK, BLOCK).unwrap();
    let written = fs::read(bed.path("upper/scattered")).unwrap();
    let size = usize::try_from(BLOCK).unwrap();
    assert!(written[..10] == block[..10] && written[10..110] == [6; 100] && written[110..size] == block[110..]);
    assert!(written[2 * size..3 * size] == block, "what was allocated anyway");
    let error = scattered.write_at(&[1], BLOCK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "a hole between");
    assert!(fs::read(bed.path("upper/scattered")).unwrap() == written, "a failed write changes nothing");
    drop((scattered, filler));
    mount.unmount();
}

/// To say that one block of many has data now, a filesystem may need another block. That is not the writer's fault.
#[test]
fn what_was_allocated_can_be_written_in_any_order() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mount = bed.mount();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(bed.path("mnt/file")).unwrap();
    rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, 1600 * BLOCK).unwrap();
    let filler = File::create(bed.path("mnt/filler")).unwrap();
    fill(&filler, 4096);
    let below = File::open(bed.path("upper/file")).unwrap();
    let block = vec![5; usize::try_from(BLOCK).unwrap()];
    for number in 0..800 {
        file.write_all_at(&block, number * 2 * BLOCK).unwrap_or_else(|error| panic!("block {number}: {error}"));
        if number % 100 == 0 {
            below.sync_all().unwrap();
        }
    }
    let error = file.write_at(&[1], 1600 * BLOCK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "behind it");
    assert!(bed.used().0 <= LIMIT + METADATA);
    drop((file, filler));
    bed.check("at the end");
    mount.unmount();
}

#[test]
fn many_copies_stay_within_the_limit_together() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mount = bed.mount();
    fs::write(bed.path("mnt/source"), vec![1; 2 << 20]).unwrap();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (source, path) = (bed.path("mnt/source"), bed.path("mnt").join(number.to_string()));
            scope.spawn(move || {
                let (source, target) = (File::open(source).unwrap(), File::create(path).unwrap());
                while rustix::fs::copy_file_range(&source, None, &target, None, 4 << 20).is_ok_and(|copied| copied > 0)
                {
                }
            });
        }
    });
    let (used, _) = bed.used();
    assert!(used <= LIMIT + 8 * BLOCK && used + 16 * BLOCK >= LIMIT, "{used} of {LIMIT}");
    mount.unmount();
}

#[test]
fn many_writers_stay_within_the_limit_together() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mount = bed.mount();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let path = bed.path("mnt").join(number.to_string());
            scope.spawn(move || fill(&File::create(path).unwrap(), 50_000));
        }
    });
    let (used, _) = bed.used();
    assert!(used <= LIMIT + 4 * BLOCK && used + 8 * BLOCK >= LIMIT, "{used} of {LIMIT}");
    bed.check("at the end");
    mount.unmount();
}

#[test]
fn stores_through_a_mapping_report_the_end_of_space_when_synced() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mount = bed.mount();
    let script = "import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 32 << 20)
m = mmap.mmap(fd, 32 << 20)
for at in range(0, 32 << 20, 4096): m[at] = 1
try:
    m.flush()
    os.fsync(fd)
    print('no error')
except OSError as error:
    print(error.errno)
";
    let output = std::process::Command::new("python3").args(["-c", script]).arg(bed.path("mnt/file")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), libc::ENOSPC.to_string(), "{output:?}");
    assert!(bed.used().0 <= LIMIT + 4 * BLOCK);
    mount.unmount();
}

#[test]
fn what_is_mounted_nowhere_is_limited_too() {
    if !privileged() {
        return;
    }
    let bed = Bed::new(bytes(LIMIT));
    let mounted = mount(&bed.spec, &Target::Detached);
    let reference = mounted.mount_fd().unwrap().try_clone_to_owned().unwrap();
    let server = std::thread::spawn(move || mounted.serve());
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&reference, "file", flags, rustix::fs::Mode::RUSR).unwrap();
    let written = fill(&File::from(file), 1 << 16);
    assert!(written <= LIMIT && written + 8 * BLOCK >= LIMIT);
    drop(reference);
    server.join().unwrap().unwrap();
    assert!(bed.path("work/strata-usage").exists());
}
