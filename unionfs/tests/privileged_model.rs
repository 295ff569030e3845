//! Random operations on a mount of ours and on the kernel's overlayfs: the same answers and the same tree, and what one
//! of them has written the other can mount.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;
#[allow(dead_code, reason = "the others are for the test without a mount")]
mod model;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{TestMount, options, privileged};
use model::path::Dir;
use model::{Filesystem, HardLinks, Operation, cases, lower_content, operations};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::io::Errno;
use strata_unionfs::{Lower, MountSpec, Options, Passthrough, Upper, UserXattr};

/// Sets of layers beside each other, for us and for the kernel.
struct Bench {
    temp: tempfile::TempDir,
    rotations: Cell<usize>,
}

impl Bench {
    fn new(links: HardLinks) -> Bench {
        // Not in memory: what counts is what real disks do.
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for who in ["ours", "kernel"] {
            for dir in ["upper0", "work0", "mnt"] {
                std::fs::create_dir_all(temp.path().join(who).join(dir)).unwrap();
            }
            for (number, content) in lower_content(links).iter().enumerate() {
                let root = temp.path().join(who).join(format!("lower{number}"));
                std::fs::create_dir(&root).unwrap();
                let mut dir = Dir { root };
                content.iter().for_each(|operation| dir.apply(operation).unwrap());
            }
        }
        Bench { temp, rotations: Cell::new(0) }
    }

    fn at(&self, who: &str, what: &str) -> PathBuf {
        self.temp.path().join(who).join(what)
    }

    /// Makes the uppers, of what is not mounted, the topmost lowers.
    fn rotate(&self) {
        let rotations = self.rotations.get() + 1;
        for who in ["ours", "kernel"] {
            std::fs::create_dir(self.at(who, &format!("upper{rotations}"))).unwrap();
            std::fs::create_dir(self.at(who, &format!("work{rotations}"))).unwrap();
        }
        self.rotations.set(rotations);
    }

    /// Returns the lowers, topmost first.
    fn lowers(&self, who: &str) -> Vec<PathBuf> {
        let uppers = (0..self.rotations.get()).rev().map(|number| format!("upper{number}"));
        uppers.chain(["lower1".to_owned(), "lower0".to_owned()]).map(|name| self.at(who, &name)).collect()
    }

    fn upper(&self, who: &str) -> Upper {
        let at = |what| self.at(who, &format!("{what}{}", self.rotations.get()));
        Upper { dir: at("upper"), work: at("work") }
    }

    fn mount_ours(&self, who: &str, passthrough: Passthrough) -> TestMount {
        self.mount_ours_with(who, Options { passthrough, ..options() })
    }

    fn mount_ours_with(&self, who: &str, options: Options) -> TestMount {
        let spec = MountSpec { lower: Lower::Folders(self.lowers(who)), upper: Some(self.upper(who)), options };
        TestMount::new(&spec, &self.at(who, "mnt"))
    }

    fn mount_kernel(&self, who: &str) -> KernelMount {
        self.mount_kernel_with(who, "redirect_dir=on,index=on,xino=on,metacopy=on")
    }

    fn mount_kernel_with(&self, who: &str, options: &str) -> KernelMount {
        let lowers: Vec<String> = self.lowers(who).iter().map(|lower| lower.display().to_string()).collect();
        let upper = self.upper(who);
        let (dir, work) = (upper.dir.display(), upper.work.display());
        let layers = format!("lowerdir={},upperdir={dir},workdir={work}", lowers.join(":"));
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

fn sequences(count: u32, length: usize, seed: u8, links: HardLinks) -> Vec<Vec<Operation>> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = operations(length, links);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// What happens to the layers when they are mounted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layers {
    Stay,
    /// The upper becomes the topmost lower.
    Rotate,
}

fn compare(sequence: &[Operation], passthrough: Passthrough, layers: Layers, number: usize) {
    let links = if layers == Layers::Rotate { HardLinks::None } else { HardLinks::Some };
    let bench = Bench::new(links);
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
            if layers == Layers::Rotate {
                bench.rotate();
            }
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
    if links == HardLinks::Some && sequence.iter().any(touches_links) {
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

fn run(count: u32, passthrough: Passthrough, layers: Layers, seed: u8) {
    if !privileged() {
        return;
    }
    let links = if layers == Layers::Rotate { HardLinks::None } else { HardLinks::Some };
    for (number, sequence) in sequences(cases(count), 60, seed, links).iter().enumerate() {
        compare(sequence, passthrough, layers, number);
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
    let bench = Bench::new(HardLinks::Some);
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
    run(40, Passthrough::Auto, Layers::Stay, 1);
}

#[test]
fn same_as_overlayfs_without_passthrough() {
    run(40, Passthrough::Off, Layers::Stay, 2);
}

#[test]
fn same_as_overlayfs_while_layers_rotate() {
    run(40, Passthrough::Auto, Layers::Rotate, 3);
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
        let bench = Bench::new(HardLinks::Some);
        let mount = bench.mount_ours("ours", passthrough);
        let root = bench.at("ours", "mnt");
        std::thread::scope(|scope| {
            for sequence in (0..6).map(|seed| sequences(15, 200, 10 + seed, HardLinks::Some).concat()) {
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
