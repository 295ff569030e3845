//! Mounting an image of 1, 16 and 64 layers, and looking at every file of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use strata_tests::image::synthetic;
use strata_tests::oracle;

use crate::load::first_line;
use crate::measure::median_time;
use crate::report::{Report, millis, row};

/// What one fresh mount showed.
#[derive(Clone, Copy, Debug)]
struct Round {
    mount: Duration,
    first_ls: Duration,
    first_walk: Duration,
    second_walk: Duration,
    entries: u32,
}

/// Prints the table.
pub fn figures(strata: &Path, work: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    report.say(format!(
        "mount, first `ls`, then walk and stat of all entries; the same tree spread over the layers; fresh mount each\n\
         time, lower files warm, one reading thread, ordinary scheduling, median of {rounds}"
    ));
    let mut rows =
        vec![row(["", "layers", "entries", "mount ms", "ls ms", "first walk ms", "us/entry", "second walk ms"])];
    for layers in [1, 16, 64] {
        let folders = unpacked(layers, work)?;
        let root = work.join(format!("walk-{layers}"));
        let archive = synthetic::spread(layers)?;
        run(Command::new(strata).arg("--root").arg(&root).arg("load").arg("-i").arg(&archive))?;
        let point = work.join("point");
        fs::create_dir_all(&point)?;

        let empty = work.join("empty");
        fs::create_dir_all(&empty)?;
        let lower = || {
            // The kernel wants two lower layers at least.
            let beside = (layers == 1).then_some(&empty);
            let paths: Vec<String> =
                folders.iter().chain(beside).rev().map(|path| path.to_string_lossy().into_owned()).collect();
            format!("lowerdir={}", paths.join(":"))
        };
        let reference = synthetic::spread_reference(layers);
        let mut by_strata = Command::new(strata);
        by_strata.arg("--root").arg(&root).arg("mount").arg(&reference).arg(&point);
        let mut by_kernel = Command::new("mount");
        by_kernel.args(["-t", "overlay", "overlay", "-o", &lower()]).arg(&point);
        let mut by_fuse = Command::new("fuse-overlayfs");
        by_fuse.args(["-o", &lower()]).arg(&point);

        for (name, command) in
            [("strata", &mut by_strata), ("overlayfs", &mut by_kernel), ("fuse-overlayfs", &mut by_fuse)]
        {
            // Once unmeasured: files and folders below are warm for all alike, and caches that a first use writes exist.
            let measured = round(command, &point).and_then(|_| (0..rounds).map(|_| round(command, &point)).collect());
            rows.push(describe(name, layers, measured));
        }
        for folder in folders {
            fs::remove_dir_all(folder)?;
        }
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
    }
    report.table(&rows);
    Ok(())
}

fn describe(name: &str, layers: usize, measured: Result<Vec<Round>>) -> Vec<String> {
    let rounds = match measured {
        Ok(rounds) => rounds,
        Err(error) => return row([name, &layers.to_string(), &format!("not measured: {}", first_line(&error))]),
    };
    let of = |pick: fn(&Round) -> Duration| median_time(&rounds.iter().map(pick).collect::<Vec<_>>());
    let entries = rounds.first().map_or(1, |round| round.entries);
    let walk = of(|round| round.first_walk);
    row([
        name,
        &layers.to_string(),
        &entries.to_string(),
        &millis(of(|round| round.mount)),
        &millis(of(|round| round.first_ls)),
        &millis(walk),
        &format!("{:.1}", walk.as_secs_f64() * 1e6 / f64::from(entries)),
        &millis(of(|round| round.second_walk)),
    ])
}

fn round(mount: &mut Command, point: &Path) -> Result<Round> {
    let started = Instant::now();
    run(mount)?;
    let mounted = started.elapsed();
    let looked = look(point, mounted);
    unmount(point)?;
    looked
}

fn look(point: &Path, mount: Duration) -> Result<Round> {
    let started = Instant::now();
    run(Command::new("ls").arg(point))?;
    let first_ls = started.elapsed();
    let started = Instant::now();
    let entries = walk(point)?;
    let first_walk = started.elapsed();
    let started = Instant::now();
    ensure!(walk(point)? == entries);
    Ok(Round { mount, first_ls, first_walk, second_walk: started.elapsed(), entries })
}

/// Visits and stats everything; returns how many entries there are.
fn walk(root: &Path) -> Result<u32> {
    let (mut entries, mut bytes) = (0, 0);
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {folder:?}"))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            entries += 1;
            bytes += metadata.size();
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    ensure!(bytes > 0);
    Ok(entries)
}

fn unmount(point: &Path) -> Result<()> {
    run(Command::new("umount").arg(point))
}

/// The layers as folders, for those who need them so.
fn unpacked(layers: usize, work: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for (number, tar) in synthetic::spread_layers(layers)?.into_iter().enumerate() {
        // Short names: mount(2) takes a page of options.
        let folder = work.join(format!("l{number}"));
        fs::create_dir(&folder)?;
        oracle::extract(&[tar], &folder)?;
        folders.push(folder);
    }
    Ok(folders)
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let finished = strata_tests::strata::finish(command)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}
