//! Disks that are full. Needs to mount one; where that is not allowed, the tests are reported as ignored, with the reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;

use libtest_mimic::{Arguments, Trial};
use strata_imagestore::{OpenError, RemoveOptions, Store};
use support::*;

fn main() {
    let missing = SmallDisk::mount(1 << 20).err().map(|error| format!("needs to mount a tmpfs: {error}"));
    let trial = |name, test: fn()| {
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        match &missing {
            Some(reason) => trial.with_ignored_flag(true).with_kind(reason.clone()),
            None => trial,
        }
    };
    let trials = vec![
        trial("privileged_full_disk_leaves_the_store_as_it_was", privileged_full_disk_leaves_the_store_as_it_was),
        trial("privileged_images_can_be_removed_from_a_full_disk", privileged_images_can_be_removed_from_a_full_disk),
        trial(
            "privileged_a_full_disk_is_named_when_a_store_is_made",
            privileged_a_full_disk_is_named_when_a_store_is_made,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A small file system in memory, unmounted on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: usize) -> rustix::io::Result<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(format!("size={size}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", flags, Some(data.as_c_str()))?;
        Ok(SmallDisk(folder))
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Fills the disk until `left` bytes are free.
    fn fill(&self, left: u64) {
        let path = self.0.path().join("ballast");
        let _ = fs::remove_file(&path);
        let size = self.free() - left;
        fs::write(&path, vec![1; usize::try_from(size).unwrap()]).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.0.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn privileged_full_disk_leaves_the_store_as_it_was() {
    let disk = SmallDisk::mount(8 << 20).unwrap();
    let store = Store::open(&disk.0.path().join("store")).unwrap();
    load_file(&store, &docker_old(&sample_layers(), &["kept:1"]).tar()).unwrap();
    let layers = [large_layer("big", 700_000), large_layer("more", 300_000), layer(&[("small", "x")])];
    for (form, archive) in
        [("docker", docker_old(&layers, &["new:1"]).tar()), ("oci gzip", oci(&layers, "gzip", "new:1").tar())]
    {
        let before = snapshot(&store);
        let (mut failed, mut loaded) = (0, 0);
        for left in (0..1_400_000_u64).step_by(13_000) {
            disk.fill(left);
            let free = disk.free();
            let load = if left % 2 == 0 { load_file } else { load_stream };
            match load(&store, &archive) {
                Err(error) => {
                    assert!(chain(&error).contains("No space left on device"), "{form} {left}: {}", chain(&error));
                    assert!(error.is_full());
                    assert_eq!(disk.free(), free, "{form} {left}");
                    assert_eq!(names(&store).len(), 1);
                    failed += 1;
                    disk.empty();
                }
                Ok(_) => {
                    loaded += 1;
                    assert!(verify(&store).is_empty());
                    disk.empty();
                    store.remove("new:1", &RemoveOptions::default()).unwrap();
                }
            }
            if failed == 1 {
                assert_eq!(snapshot(&store), before);
            }
        }
        assert!(failed > 20 && loaded > 2, "{form}: {failed} failed, {loaded} loaded");
        check_whole(&store);
    }
}

fn privileged_images_can_be_removed_from_a_full_disk() {
    let disk = SmallDisk::mount(4 << 20).unwrap();
    let store = Store::open(&disk.0.path().join("store")).unwrap();
    load_file(&store, &docker_old(&sample_layers(), &["a:1"]).tar()).unwrap();
    load_file(&store, &docker_old(&[large_layer("big", 500_000)], &["b:1"]).tar()).unwrap();
    disk.fill(0);
    assert_eq!(disk.free(), 0);
    assert!(store.tag("a:1", &"c:1".parse().unwrap()).is_err());
    store.remove("b:1", &RemoveOptions::default()).unwrap();
    assert!(disk.free() > 200_000);
    check_whole(&store);
    disk.fill(0);
    store.remove("a:1", &RemoveOptions::default()).unwrap();
    assert_eq!(store.images().unwrap().len(), 0);
}

fn privileged_a_full_disk_is_named_when_a_store_is_made() {
    let disk = SmallDisk::mount(1 << 20).unwrap();
    disk.fill(0);
    let error = Store::open(&disk.0.path().join("store")).unwrap_err();
    assert!(matches!(error, OpenError::Format(_) | OpenError::Disk(_)));
    assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
}
