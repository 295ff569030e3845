//! Random operations on a mount of ours and on the kernel's overlayfs: the same answers and the same tree, and what one
//! of them has written the other can mount.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;
#[allow(dead_code, reason = "the others are for the test without a mount")]
mod model;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{TestMount, options, privileged};
use model::path::Dir;
use model::{Filesystem, Operation, lower_content, operations};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::io::Errno;
use strata_unionfs::{Lower, MountSpec, Options, Passthrough, Upper, UserXattr};

/// Sets of layers beside each other, for us and for the kernel.
struct Bench {
    temp: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let temp = tempfile::tempdir().unwrap();
        for who in ["ours", "kernel"] {
            for dir in ["upper", "work", "mnt"] {
                std::fs::create_dir_all(temp.path().join(who).join(dir)).unwrap();
            }
            for (number, content) in lower_content().iter().enumerate() {
                let root = temp.path().join(who).join(format!("lower{number}"));
                std::fs::create_dir(&root).unwrap();
                let mut dir = Dir { root };
                content.iter().for_each(|operation| dir.apply(operation).unwrap());
            }
        }
        Bench { temp }
    }

    fn at(&self, who: &str, what: &str) -> PathBuf {
        self.temp.path().join(who).join(what)
    }

    fn mount_ours(&self, who: &str, passthrough: Passthrough) -> TestMount {
        self.mount_ours_with(who, Options { passthrough, ..options() })
    }

    fn mount_ours_with(&self, who: &str, options: Options) -> TestMount {
        let spec = MountSpec {
            lower: Lower::Folders(vec![self.at(who, "lower1"), self.at(who, "lower0")]),
            upper: Some(Upper { dir: self.at(who, "upper"), work: self.at(who, "work") }),
            options,
        };
        TestMount::new(&spec, &self.at(who, "mnt"))
    }

    fn mount_kernel(&self, who: &str) -> KernelMount {
        self.mount_kernel_with(who, "redirect_dir=on,index=on,xino=on")
    }

    fn mount_kernel_with(&self, who: &str, options: &str) -> KernelMount {
        let at = |what| self.at(who, what).display().to_string();
        let layers =
            format!("lowerdir={}:{},upperdir={},workdir={}", at("lower1"), at("lower0"), at("upper"), at("work"));
        // Mount namespaces of others may keep the last one alive for a moment.
        let mounted = (0..100).any(|attempt| {
            std::thread::sleep(Duration::from_millis(20 * u64::from(attempt > 0)));
            Command::new("mount")
                .args(["-t", "overlay", "-o", &format!("{layers},{options}"), "overlay"])
                .arg(self.at(who, "mnt"))
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        });
        assert!(mounted);
        KernelMount(self.at(who, "mnt"))
    }
}

struct KernelMount(PathBuf);

impl Drop for KernelMount {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
    }
}

fn listing(dir: &Path) -> String {
    Dir { root: dir.to_owned() }.listing()
}

fn sequences(count: usize, length: usize, seed: u8) -> Vec<Vec<Operation>> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = operations(length);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

fn compare(sequence: &[Operation], passthrough: Passthrough, number: usize) {
    let bench = Bench::new();
    let mut kernel_mount = Some(bench.mount_kernel("kernel"));
    let mut our_mount = Some(bench.mount_ours("ours", passthrough));
    let mut kernel = Dir { root: bench.at("kernel", "mnt") };
    let mut ours = Dir { root: bench.at("ours", "mnt") };
    for (step, operation) in sequence.iter().enumerate() {
        let (got, expected) = (ours.apply(operation), kernel.apply(operation));
        assert_eq!(got, expected, "sequence {number}, step {step}, {operation:?}");
        if step % 13 == 12 {
            assert_eq!(ours.listing(), kernel.listing(), "sequence {number}, step {step}, {operation:?}");
            let numbers = ours.numbers();
            our_mount = None;
            kernel_mount = None;
            drop((our_mount.take(), kernel_mount.take()));
            our_mount = Some(bench.mount_ours("ours", passthrough));
            kernel_mount = Some(bench.mount_kernel("kernel"));
            assert_eq!(ours.listing(), kernel.listing(), "mounted again after step {step} of sequence {number}");
            assert_eq!(ours.numbers(), numbers, "numbers after step {step} of sequence {number}");
        }
    }
    let tree = ours.listing();
    assert_eq!(tree, kernel.listing(), "at the end of sequence {number}");
    drop((our_mount, kernel_mount));
    // The one's upper under the other.
    if sequence.iter().any(touches_links) {
        return;
    }
    {
        let _mount = bench.mount_ours("kernel", passthrough);
        assert_eq!(listing(&bench.at("kernel", "mnt")), tree, "the kernel's upper, sequence {number}");
    }
    let _mount = bench.mount_kernel("ours");
    assert_eq!(listing(&bench.at("ours", "mnt")), tree, "our upper, sequence {number}");
}

/// How links of lower files are kept together is not part of the common form.
fn touches_links(operation: &Operation) -> bool {
    let text = format!("{operation:?}");
    ["\"b", "b/c", "a/d", "\"a\""].iter().any(|part| text.contains(part))
}

fn run(count: usize, passthrough: Passthrough, seed: u8) {
    if !privileged() {
        return;
    }
    for (number, sequence) in sequences(count, 60, seed).iter().enumerate() {
        compare(sequence, passthrough, number);
    }
}

/// With `userxattr` the kernel takes no redirects, so nothing here moves a directory of the lowers.
#[test]
fn overlayfs_and_we_mount_each_others_uppers_with_user_marks() {
    if !privileged() {
        return;
    }
    let changes = [
        Operation::RemoveAll("a/b".to_owned()),
        Operation::Mkdir("a/b".to_owned()),
        Operation::Create("a/b/new".to_owned()),
        Operation::Unlink("a/c".to_owned()),
        Operation::RemoveAll("d".to_owned()),
        Operation::Mkdir("d".to_owned()),
        Operation::Mkdir("d/b".to_owned()),
        Operation::Write("b/a/a".to_owned(), 3, "text".to_owned()),
        Operation::Rename("b/a/a".to_owned(), "d/moved".to_owned()),
        Operation::Chmod("b".to_owned(), 0o700),
    ];
    let bench = Bench::new();
    let our_options = || Options { userxattr: UserXattr::On, ..options() };
    let apply = |who: &str| {
        let mut dir = Dir { root: bench.at(who, "mnt") };
        changes.iter().for_each(|change| dir.apply(change).unwrap());
        dir.listing()
    };
    let ours = {
        let _mount = bench.mount_ours_with("ours", our_options());
        apply("ours")
    };
    let kernels = {
        let _mount = bench.mount_kernel_with("kernel", "userxattr");
        apply("kernel")
    };
    assert_eq!(ours, kernels);
    {
        let _mount = bench.mount_kernel_with("ours", "userxattr");
        assert_eq!(listing(&bench.at("ours", "mnt")), ours, "our upper under the kernel");
    }
    let _mount = bench.mount_ours_with("kernel", our_options());
    assert_eq!(listing(&bench.at("kernel", "mnt")), kernels, "the kernel's upper under us");
}

#[test]
fn same_as_overlayfs_with_passthrough() {
    run(60, Passthrough::Auto, 1);
}

#[test]
fn same_as_overlayfs_without_passthrough() {
    run(60, Passthrough::Off, 2);
}

/// Whatever happens at once, answers are those of a filesystem, and what is there at the end is what is on disk.
#[test]
fn many_at_once_leave_a_tree_that_mounts_again() {
    if !privileged() {
        return;
    }
    // Races between one path's operation and another's give these; nothing gives EIO, ESTALE, EBADF or ETXTBSY.
    let expected = [
        Errno::NOENT,
        Errno::EXIST,
        Errno::NOTEMPTY,
        Errno::ISDIR,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::INVAL,
        Errno::PERM,
        Errno::NODATA,
    ];
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let bench = Bench::new();
        let mount = bench.mount_ours("ours", passthrough);
        let root = bench.at("ours", "mnt");
        std::thread::scope(|scope| {
            for sequence in (0..6).map(|seed| sequences(15, 200, 10 + seed).concat()) {
                let mut dir = Dir { root: root.clone() };
                scope.spawn(move || {
                    for operation in &sequence {
                        if let Err(error) = dir.apply(operation) {
                            assert!(expected.contains(&error), "{operation:?}: {error:?}");
                        }
                    }
                });
            }
        });
        let mut dir = Dir { root: root.clone() };
        let (tree, numbers) = (dir.listing(), dir.numbers());
        mount.unmount();
        let _mount = bench.mount_ours("ours", passthrough);
        assert_eq!(dir.listing(), tree);
        assert_eq!(dir.numbers(), numbers);
    }
}
