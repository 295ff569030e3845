//! Object tables on real mounts.
//!
//! These need root in the initial user namespace. Some need other processes that hold a mount; this binary plays them
//! when it is started with `ROLE` set.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod fixture;
mod holder;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use strata_layer::LayerIngest;
use strata_layer::index::{Index, Kind};
use strata_layer::tar::Limits;
use strata_unionfs::objects::{LazyObjectMount, ObjectMount, ObjectsUnavailable, Origin};

use self::fixture::{Layer, noise};
use self::holder::Holder;

fn main() -> ExitCode {
    if let Some(role) = std::env::var_os("ROLE") {
        return holder::play(&role);
    }
    let tests: [Test; 11] = [
        ("every_file_reads_back", every_file_reads_back),
        ("a_real_tar_reads_back", a_real_tar_reads_back),
        ("table_is_made_once_and_again_when_damaged", table_is_made_once_and_again_when_damaged),
        ("table_of_another_index_is_replaced", table_of_another_index_is_replaced),
        ("nothing_is_visible_and_nothing_stays", nothing_is_visible_and_nothing_stays),
        ("processes_share_one_mount", processes_share_one_mount),
        ("the_mount_outlives_who_made_it", the_mount_outlives_who_made_it),
        ("processes_that_start_together_share", processes_that_start_together_share),
        ("a_mount_of_another_layer_is_not_taken", a_mount_of_another_layer_is_not_taken),
        ("a_user_namespace_is_refused_by_name", a_user_namespace_is_refused_by_name),
        ("a_table_on_tmpfs_is_refused_by_name", a_table_on_tmpfs_is_refused_by_name),
    ];
    let missing = holder::missing_privilege();
    let trials = tests.map(|(name, body)| {
        let run = move || body().map_err(|error| Failed::from(format!("{error:?}")));
        Trial::test(format!("privileged_{name}"), run).with_ignored_flag(missing)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

/// Name without tier, and body.
type Test = (&'static str, fn() -> Result<()>);

fn every_file_reads_back() -> Result<()> {
    let mut layer = Layer::new()?;
    for size in [1, 511, 512, 513, 4095, 4096, 4097, 70_000, 3 << 20] {
        layer.add(&format!("size-{size}"), noise(size));
    }
    layer.add("empty", Vec::new());
    for number in 0..500 {
        layer.add(&format!("small-{number}"), format!("content {number}").into_bytes());
    }
    layer.add_sparse("sparse", 8 << 20, &[(1 << 20, noise(1 << 20)), (7 << 20, noise(1 << 20))]);
    layer.add_sparse("sparse-tail", (8 << 20) + 77, &[(4 << 20, noise((4 << 20) + 77))]);
    layer.add_sparse("hole", 3 << 40, &[]);
    layer.finish()?;
    let mount = ObjectMount::open(&layer.paths())?;
    let mut compared = 0;
    for (name, expected) in &layer.files {
        let Some(nid) = layer.nid(name)? else {
            ensure!(expected.is_empty(), "{name} has no object");
            continue;
        };
        let mut content = Vec::new();
        File::from(mount.open_object(nid)?).read_to_end(&mut content)?;
        ensure!(content == *expected, "{name} differs");
        compared += 1;
    }
    ensure!(compared == 511, "{compared}");
    let hole = File::from(mount.open_object(layer.nid("hole")?.context("no object")?)?);
    ensure!(hole.metadata()?.len() == 3 << 40);
    ensure!(mount.open_object(3).is_err() && mount.open_object(u64::MAX).is_err(), "no such objects");
    Ok(())
}

fn a_real_tar_reads_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let paths = fixture::paths_in(folder.path());
    let status = Command::new("tar")
        .args(["--create", "--directory=/", "--file"])
        .arg(&paths.tar)
        .args(["etc", "usr/sbin"])
        .status()?;
    ensure!(status.success(), "{status}");
    let mut ingest = LayerIngest::new(Limits::default());
    ingest.push(&std::fs::read(&paths.tar)?)?;
    std::fs::write(&paths.index, ingest.finish()?.index)?;
    let index = Index::open(&File::open(&paths.index)?)?;
    let tar = File::open(&paths.tar)?;
    let mount = ObjectMount::open(&paths)?;
    let (mut compared, mut empty) = (0, 0);
    for node in index.nodes() {
        let Some(attributes) = index.attributes(node).filter(|attributes| attributes.kind == Kind::Regular) else {
            continue;
        };
        let Some(object) = index.object(node) else {
            ensure!(attributes.size == 0);
            empty += 1;
            continue;
        };
        let extent = index.extents(node).next().context("no data")?;
        let mut expected = vec![0; usize::try_from(attributes.size)?];
        tar.read_exact_at(&mut expected, extent.source)?;
        let mut content = Vec::new();
        File::from(mount.open_object(object.nid)?).read_to_end(&mut content)?;
        ensure!(content == expected, "object {} differs", object.nid);
        compared += 1;
    }
    ensure!(compared > 100, "{compared} files, {empty} empty ones");
    Ok(())
}

fn table_is_made_once_and_again_when_damaged() -> Result<()> {
    let layer = Layer::small()?;
    let paths = layer.paths();
    drop(ObjectMount::open(&paths)?);
    let made = std::fs::metadata(&paths.objects)?;
    let original = std::fs::read(&paths.objects)?;
    drop(ObjectMount::open(&paths)?);
    ensure!(std::fs::metadata(&paths.objects)?.ino() == made.ino(), "an intact table is kept");
    for damage in [
        |table: &mut Vec<u8>| table[1600] ^= 1,
        |table: &mut Vec<u8>| table.truncate(1000),
        |table: &mut Vec<u8>| table.clear(),
    ] {
        let mut table = original.clone();
        damage(&mut table);
        std::fs::write(&paths.objects, &table)?;
        let mount = ObjectMount::open(&paths)?;
        layer.compare_all(&mount)?;
        ensure!(std::fs::read(&paths.objects)? == original, "the damaged table was replaced");
    }
    Ok(())
}

fn table_of_another_index_is_replaced() -> Result<()> {
    let (first, second) = (Layer::small()?, Layer::with_noise()?);
    drop(ObjectMount::open(&first.paths())?);
    std::fs::copy(first.paths().objects, second.paths().objects)?;
    let mount = ObjectMount::open(&second.paths())?;
    second.compare_all(&mount)
}

fn nothing_is_visible_and_nothing_stays() -> Result<()> {
    let layer = Layer::small()?;
    let mounts = || -> Result<String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(mounts.lines().filter(|line| line.contains(" - erofs ")).collect())
    };
    let before = mounts()?;
    let mount = LazyObjectMount::new(layer.paths());
    ensure!(!layer.paths().objects.exists(), "nothing happens before the first use");
    layer.compare_all(mount.get().map_err(|error| anyhow::anyhow!("{error}"))?)?;
    ensure!(before == mounts()?, "the mount is in the mount table");
    let file = File::from(mount.get().ok().context("gone")?.open_object(layer.nid("a")?.context("no object")?)?);
    ensure!(File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).is_err(), "writable");
    drop(mount);
    let mut names: Vec<_> = std::fs::read_dir(layer.folder())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    ensure!(names == ["index", "objects", "tar"], "{names:?}");
    // A file keeps working without the mount, as a backing file does that the kernel still holds.
    ensure!(std::io::read_to_string(file)? == "content of a");
    Ok(())
}

fn processes_share_one_mount() -> Result<()> {
    let layer = Layer::small()?;
    let mut first = Holder::start(&layer)?;
    let mut second = Holder::start(&layer)?;
    ensure!(first.origin == "mounted" && second.origin == "shared", "{} {}", first.origin, second.origin);
    let (a, b) = (first.stat("a")?, second.stat("a")?);
    ensure!(a == b, "one file of one superblock has one page cache: {a:?} {b:?}");
    ensure!(second.stat("b")? != b);
    Ok(())
}

fn the_mount_outlives_who_made_it() -> Result<()> {
    let layer = Layer::with_noise()?;
    let mut first = Holder::start(&layer)?;
    let origin = first.stat("a")?;
    let mut second = Holder::start(&layer)?;
    first.kill()?;
    ensure!(second.read("noise")? == layer.digest("noise"), "read after the first holder was killed");
    let mut third = Holder::start(&layer)?;
    ensure!(third.origin == "shared" && third.stat("a")? == origin, "{}", third.origin);
    second.kill()?;
    ensure!(third.read("noise")? == layer.digest("noise"));
    third.leave()?;
    ensure!(!layer.folder().join("objects.mount").exists(), "lines of the killed do not keep the record");
    Holder::start(&layer)?.kill()?;
    // All killed: the record is stale, and the next one starts anew.
    let mut fourth = Holder::start(&layer)?;
    ensure!(fourth.origin == "mounted", "{}", fourth.origin);
    ensure!(fourth.read("noise")? == layer.digest("noise"));
    fourth.leave()?;
    ensure!(!layer.folder().join("objects.mount").exists(), "the last one to leave removes the record");
    Ok(())
}

fn processes_that_start_together_share() -> Result<()> {
    let layer = Layer::with_noise()?;
    let starting = (0..8).map(|_| Holder::spawn(&layer)).collect::<Result<Vec<_>>>()?;
    let mut holders = starting.into_iter().map(Holder::wait_ready).collect::<Result<Vec<_>>>()?;
    let mounted = holders.iter().filter(|holder| holder.origin == "mounted").count();
    ensure!(mounted == 1, "{mounted} of them mounted");
    let first = holders[0].stat("a")?;
    for holder in &mut holders {
        ensure!(holder.stat("a")? == first);
    }
    Ok(())
}

fn a_mount_of_another_layer_is_not_taken() -> Result<()> {
    let (first, second) = (Layer::small()?, Layer::with_noise()?);
    let holder = Holder::start(&first)?;
    // A record that names a live process and a descriptor that is a mount, but of something else.
    std::fs::copy(first.folder().join("objects.mount"), second.folder().join("objects.mount"))?;
    let mount = ObjectMount::open(&second.paths())?;
    ensure!(matches!(mount.origin(), Origin::Mounted));
    second.compare_all(&mount)?;
    drop(holder);
    Ok(())
}

fn a_user_namespace_is_refused_by_name() -> Result<()> {
    let layer = Layer::small()?;
    let refusal = Holder::refusal_in_user_namespace(&layer)?;
    ensure!(refusal.contains("initial user namespace"), "{refusal}");
    Ok(())
}

fn a_table_on_tmpfs_is_refused_by_name() -> Result<()> {
    let mut layer = Layer::on(std::path::Path::new("/dev/shm"))?;
    layer.add("a", b"content of a".to_vec());
    layer.finish()?;
    match ObjectMount::open(&layer.paths()) {
        Err(ObjectsUnavailable::NotBackedByFile) => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// Digest of what can be read from a file.
fn digest_of(file: OwnedFd) -> Result<String> {
    let mut content = Vec::new();
    File::from(file).read_to_end(&mut content)?;
    Ok(strata_layer::Digest::of(&content).to_string())
}
