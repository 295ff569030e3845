//! Power cuts: what a command has reported done is there afterwards, whatever the disk had not written yet.
//!
//! Commands run on a file system on a recording disk. Then the disk is made again as it was at each flush, and with a part
//! of what was written after it; the file system is mounted, repairs itself, and the store is looked at. A sample of the
//! moments is tried; `STRATA_POWER_CUTS=all` tries every flush, and three tears after each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::random::Random;
use strata_tests::recorder::{Content, Event, Recorder};
use strata_tests::strata::{Finished, Strata, finish, program};
use strata_tests::tier::{Need, Suite};

use crate::registry::{Serving, pushed};

pub(crate) fn register(suite: &mut Suite) {
    let needs = |mkfs| [Need::Fuse, Need::Busybox, Need::Program("losetup"), Need::Program(mkfs)];
    suite.add("power_cut::privileged_ext4", &needs("mkfs.ext4"), || power_cuts(&EXT4));
    suite.add("power_cut::privileged_xfs", &needs("mkfs.xfs"), || power_cuts(&XFS));
    suite.add("power_cut::privileged_btrfs", &needs("mkfs.btrfs"), || power_cuts(&BTRFS));
}

/// A file system to try.
pub(crate) struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    options: &'static str,
    pub(crate) size: u64,
}

pub(crate) const EXT4: Kind = Kind {
    name: "ext4",
    make: &["mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-O", "verity"],
    options: "nodiscard",
    size: 96 << 20,
};
const XFS: Kind =
    Kind { name: "xfs", make: &["mkfs.xfs", "-q", "-f", "-K"], options: "nouuid,nodiscard", size: 320 << 20 };
const BTRFS: Kind =
    Kind { name: "btrfs", make: &["mkfs.btrfs", "-q", "-f", "-K"], options: "nodiscard", size: 256 << 20 };

/// A loop device and what is mounted from it.
pub(crate) struct Mounted {
    device: String,
    point: PathBuf,
}

impl Mounted {
    pub(crate) fn new(file: &Path, point: &Path, kind: &Kind, format: bool) -> Result<Mounted> {
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file))?.trim().to_owned();
        let mounted = Mounted { device, point: point.to_owned() };
        if format {
            run(Command::new(kind.make[0]).args(&kind.make[1..]).arg(&mounted.device))?;
        }
        run(Command::new("mount").args(["-t", kind.name, "-o", kind.options, &mounted.device]).arg(point))?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.point).status();
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn run(command: &mut Command) -> Result<String> {
    let finished = finish(command)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(finished.stdout)
}

/// The command on the store of a mounted disk.
pub(crate) fn strata(point: &Path, arguments: &[&str]) -> Result<Finished> {
    let program = program().context("no strata binary")?;
    let mut command = Command::new(program);
    command.arg("--root").arg(point.join("root")).args(arguments).env_remove("STRATA_ROOT").env("NO_COLOR", "1");
    finish(&mut command)
}

pub(crate) fn ok(point: &Path, arguments: &[&str]) -> Result<String> {
    let finished = strata(point, arguments)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(finished.stdout)
}

/// What a user sees: the images with their names, the containers with theirs.
fn state(point: &Path) -> Result<BTreeSet<String>> {
    let images = ok(point, &["images", "--no-trunc", "--format", "image {{.Repository}}:{{.Tag}} {{.ID}}"])?;
    let containers = ok(point, &["ps", "-a", "--no-trunc", "--format", "container {{.Names}} {{.ID}} {{.State}}"])?;
    Ok(images.lines().chain(containers.lines()).map(str::to_owned).collect())
}

/// A command that was run: the events when it began and when it had reported success, and what there was then.
struct Done {
    line: String,
    began: usize,
    ended: usize,
    state: BTreeSet<String>,
}

fn power_cuts(kind: &Kind) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("strata-test-").tempdir_in("/var/tmp")?;
    let place = |name: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    };
    let point = place("mounted")?;
    let (events, done) = {
        let recorder = Recorder::start(&place("recorder")?, kind.size)?;
        let mounted = Mounted::new(&recorder.file(), &point, kind, true)?;
        let done = work(&recorder, &point)?;
        drop(mounted);
        (recorder.events(), done)
    };
    let (first, last) = (done[0].ended, done.last().context("commands were run")?.ended);
    let flushes: Vec<usize> = (first..last)
        .filter(|position| matches!(events[*position], Event::Flush))
        .map(|position| position + 1)
        .collect();
    ensure!(flushes.len() > 20, "only {} flushes", flushes.len());
    let all = std::env::var_os("STRATA_POWER_CUTS").is_some_and(|value| value == "all");
    let (stride, tears) = if all { (1, 3) } else { (flushes.len().div_ceil(6), 1) };
    let mut random = Random::new(u64::try_from(flushes.len())?);

    // In memory where there is any: each moment is written anew.
    let images = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let image = images.path().join("disk");
    let mut content = Content::of_size(kind.size);
    let mut applied = 0;
    let mut tried = 0;
    for (number, flush) in flushes.iter().enumerate() {
        if number % stride != 0 {
            continue;
        }
        events[applied..*flush].iter().for_each(|event| content.apply(event));
        applied = *flush;
        let next = flushes.get(number + 1).copied().unwrap_or(last);
        for tear in 0..=tears {
            let mut cut = content.clone();
            let mut written = *flush;
            if tear > 0 {
                // Some of what came later, in part: as disks with a cache do.
                for event in &events[*flush..next] {
                    match random.below(4) {
                        0 => {}
                        1 => cut.apply_torn(event, &mut random),
                        _ => cut.apply(event),
                    }
                }
                written = next;
            }
            cut.save(&image)?;
            look(&image, &point, kind, &done, *flush, written)
                .with_context(|| format!("{}: cut at flush {number} of {}, tear {tear}", kind.name, flushes.len()))?;
            tried += 1;
        }
    }
    ensure!(tried >= 10, "{tried} cuts");
    Ok(())
}

/// Runs commands of every kind that changes a store.
fn work(recorder: &Recorder, point: &Path) -> Result<Vec<Done>> {
    let archive = |form: Form| -> Result<String> {
        Ok(busybox::folder()?.join(form.file_name()).to_str().context("a path in UTF-8")?.to_owned())
    };
    let helper = Strata::new()?;
    let serving = Serving::start(&helper, &[])?;
    let pulled = pushed(&helper, &serving)?;
    let plain = archive(Form::DockerNew)?;
    let compressed = archive(Form::OciGzip)?;
    let image = busybox::REFERENCE;
    let lines: [&[&str]; 14] = [
        &["images"],
        &["load", "-q", "-i", &plain],
        &["tag", image, "second:1"],
        &["create", "--name", "one", image, "true"],
        &["commit", "one", "made:1"],
        &["import", &plain, "imported:1"],
        &["rmi", "made:1"],
        &["tag", "imported:1", "second:1"],
        &["rm", "one"],
        &["image", "prune", "-f"],
        &["rmi", image],
        &["pull", "-q", &pulled],
        &["load", "-q", "-i", &compressed],
        &["system", "prune", "-a", "-f"],
    ];
    let mut done = Vec::new();
    for line in lines {
        let began = recorder.position();
        ok(point, line)?;
        done.push(Done { line: line.join(" "), began, ended: recorder.position(), state: state(point)? });
    }
    Ok(done)
}

/// Looks at a disk as it was after a power cut. All events up to `flushed` are on it, and some of those up to `written`.
fn look(image: &Path, point: &Path, kind: &Kind, done: &[Done], flushed: usize, written: usize) -> Result<()> {
    let mounted = Mounted::new(image, point, kind, false)?;
    let found = state(point)?;
    let acknowledged = done.iter().rposition(|done| done.ended <= flushed).context("the first command is done")?;
    let begun = done.iter().rposition(|done| done.began < written).context("the first command has begun")?;
    if !done[acknowledged..=begun].iter().any(|done| done.state == found) {
        bail!(
            "after {:?} was reported done, there was {found:#?} instead of {:#?}",
            done[acknowledged].line,
            done[acknowledged].state
        );
    }
    let checked = strata(point, &["fsck", "--format", "json"])?;
    ensure!(checked.code() == 0, "after {:?}: {checked}", done[acknowledged].line);
    ok(point, &["system", "prune", "-a", "-f"])?;
    drop(mounted);
    Ok(())
}
