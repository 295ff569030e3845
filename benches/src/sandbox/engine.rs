//! `run --rm` of the engines: an image that is mounted, a container that is written down, and both gone afterwards.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;

use crate::load::{first_line, remove_engine_folder};
use crate::measure::{self, Cost};
use crate::report::{Report, row, spread};
use crate::walk;

/// Prints the table.
pub(super) fn figures(strata: &Path, work: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    report.say(format!(
        "start to exit of `run --rm` of `true` in a busybox image that is there; network namespace without interfaces;\n\
         {rounds} times after one unmeasured (podman {PODMAN_ROUNDS})"
    ));
    let archive = busybox::folder()?.join(Form::DockerNew.file_name());
    let mut rows = vec![row(["", "median ms", "min ms", "max ms", "CPU ms", "peak MiB"])];
    let mut add = |name: &str, costs: Result<Vec<Cost>>| match costs {
        Ok(costs) => rows.push(spread(name, &costs)),
        Err(error) => rows.push(vec![name.to_owned(), format!("not measured: {}", first_line(&error))]),
    };
    add("strata run --rm", by_strata(strata, work, &archive, rounds));
    add("podman run --rm", by_podman(work, &archive, PODMAN_ROUNDS));
    report.table(&rows);
    Ok(())
}

fn repeat(rounds: usize, mut once: impl FnMut() -> Result<Cost>) -> Result<Vec<Cost>> {
    once()?;
    (0..rounds).map(|_| once()).collect()
}

fn by_strata(strata: &Path, work: &Path, archive: &Path, rounds: usize) -> Result<Vec<Cost>> {
    let root = work.join("run-strata");
    let command = || {
        let mut command = Command::new(strata);
        command.arg("--root").arg(&root);
        command
    };
    walk::run(command().arg("load").arg("-i").arg(archive))?;
    let costs = repeat(rounds, || measure::time(command().args(["run", "--rm", busybox::REFERENCE, "true"])));
    fs::remove_dir_all(&root)?;
    costs
}

fn by_podman(work: &Path, archive: &Path, rounds: usize) -> Result<Vec<Cost>> {
    let root = work.join("run-podman");
    fs::create_dir_all(&root)?;
    let command = || {
        let mut command = Command::new("podman");
        command.args(podman_options(&root));
        command
    };
    let costs = walk::run(command().arg("load").arg("-i").arg(archive)).and_then(|()| {
        let image = format!("docker.io/library/{}", busybox::REFERENCE);
        let image = if command().args(["image", "exists", &image]).status()?.success() {
            image
        } else {
            busybox::REFERENCE.to_owned()
        };
        repeat(rounds, || {
            let mut run = command();
            // Its default limits are higher than a root without CAP_SYS_RESOURCE may set.
            run.args(["run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]);
            measure::time(run.args([&image, "true"]))
        })
    });
    remove_engine_folder(&root)?;
    costs
}

/// Options that keep a podman to itself.
pub(crate) fn podman_options(root: &Path) -> Vec<String> {
    let at = |name: &str| root.join(name).to_string_lossy().into_owned();
    ["--root", &at("root"), "--runroot", &at("run"), "--tmpdir", &at("tmp")]
        .map(str::to_owned)
        .into_iter()
        .chain(["--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--events-backend=none"].map(str::to_owned))
        .collect()
}

/// It takes ten times as long as the others.
const PODMAN_ROUNDS: usize = 5;
