//! Whole programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::data::Data;
use super::samples::Stopwatch;
use crate::walk::run;

/// tar, cp and rm on 1,600 files.
pub fn files(watch: &mut Stopwatch<'_>, data: &Data) -> Result<()> {
    let (from, to) = (watch.point.join("untarred"), watch.point.join("copied"));
    fs::create_dir(&from)?;
    let tar = data.tar()?;
    watch.time("untar", 1, || run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&from)))?;
    watch.time("cp -r", 1, || run(Command::new("cp").arg("-r").arg(&from).arg(&to)))?;
    watch.time("rm -rf", 1, || run(Command::new("rm").arg("-rf").arg(&from).arg(&to)))?;
    // And once what is in a layer.
    let lower = watch.point.join("repo");
    watch.time("rm -rf of a layer's files", 1, || run(Command::new("rm").arg("-rf").arg(&lower)))
}

/// git on a repository of 2,000 files that lies in a layer.
pub fn git(watch: &mut Stopwatch<'_>) -> Result<()> {
    let repository = watch.point.join("repo");
    let clone = watch.point.join("clone");
    watch.time("git status, first", 1, || run(git_in(&repository).args(["status", "--porcelain"])))?;
    watch.time("git status, repeated", 1, || run(git_in(&repository).args(["status", "--porcelain"])))?;
    let mut command = git_in(&watch.point);
    command.args(["clone", "-q", "--no-hardlinks"]).arg(&repository).arg(&clone);
    watch.time("git clone", 1, || run(&mut command))
}

/// dpkg unpacks and configures a package of 500 files into a root in a layer.
pub fn dpkg(watch: &mut Stopwatch<'_>, data: &Data) -> Result<()> {
    let (root, package) = (watch.point.join("root"), data.package()?);
    watch.time("dpkg -i", 1, || {
        let mut command = Command::new("dpkg");
        command.arg("--root").arg(&root).args(["--force-script-chrootless", "--log=/dev/null", "-i"]).arg(&package);
        run(&mut command)
    })
}

/// cargo builds a small crate, source and target in the mount.
pub fn cargo(watch: &mut Stopwatch<'_>) -> Result<()> {
    let folder = watch.point.join("crate");
    watch.time("cargo build", 1, || {
        let mut command = Command::new("cargo");
        command.args(["build", "--offline", "--quiet"]).current_dir(&folder);
        for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTFLAGS", "CARGO_MANIFEST_DIR"] {
            command.env_remove(name);
        }
        run(&mut command)
    })
}

fn git_in(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    command.args(["-c", "safe.directory=*", "-c", "gc.auto=0", "-C"]).arg(folder);
    command
}
