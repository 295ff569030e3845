//! pjdfstest: what POSIX says of every system call on names, on the union and on ext4.
//!
//! `pjdfstest` comes from crates.io; `./test packages` installs it beside the test images. The union may fail nothing
//! that ext4 passes, but for what `pjdfstest-expected-failures.txt` lists, and everything in there must fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use strata_tests::strata::{Finished, User, finish};
use strata_tests::tier::{Need, Suite};
use strata_tests::union::{self, Server, Union};
use strata_tests::{plain_user, tools};

pub(crate) fn register(suite: &mut Suite) {
    let needs = [Need::Fuse, Need::Tool("pjdfstest"), Need::Server(Server::Ext4)];
    suite.add("pjdfstest::privileged_in_the_upper", &needs, in_the_upper);
    suite.add("pjdfstest::privileged_in_a_folder_of_the_lower", &needs, in_a_folder_of_the_lower);
    suite.add("pjdfstest::privileged_without_passthrough", &needs, without_passthrough);
    suite.add("pjdfstest::rootless_in_a_user_namespace", &needs, in_a_user_namespace);
    let needs = [&needs[1..], &[Need::Server(Server::Overlayfs)]].concat();
    suite.add("pjdfstest::privileged_overlayfs_for_comparison", &needs, overlayfs);
}

/// Which test cases did what.
#[derive(Debug, Default)]
struct Results {
    passed: BTreeSet<String>,
    /// With what it said.
    failed: BTreeMap<String, String>,
}

fn in_the_upper() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    union.mount()?;
    compare(&union, &union.point())
}

fn in_a_folder_of_the_lower() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    let inside = union.bottom().join("below/folder");
    fs::create_dir_all(&inside)?;
    fs::write(inside.join("file"), "of the lower")?;
    union.mount()?;
    compare(&union, &union.point().join("below/folder"))
}

fn without_passthrough() -> Result<()> {
    let union = Union::new(Server::Strata)?.with_options("passthrough=off");
    union.mount()?;
    compare(&union, &union.point())
}

fn overlayfs() -> Result<()> {
    let union = Union::new(Server::Overlayfs)?;
    union.mount()?;
    let results = run(&union, &union.point(), "")?;
    // It makes no device 0:0, which half a hundred cases want.
    let other: Vec<_> = results.failed.iter().filter(|(case, _)| !case.ends_with("::char")).collect();
    ensure!(other.is_empty(), "overlayfs fails {other:#?}");
    Ok(())
}

fn compare(union: &Union, place: &Path) -> Result<()> {
    let ours = run(union, place, "")?;
    let reference = Union::new(Server::Ext4)?;
    let ext4 = run(&reference, &reference.point(), "")?;
    ours.expect_as_good_as(&ext4)
}

/// Both in a user namespace with the plain user's ranges of numbers: as its root, on folders that it owns.
fn in_a_user_namespace() -> Result<()> {
    let union = Union::of(Server::Strata, User::Plain)?;
    let place = union.strata().make_folder("plain")?;
    let mount = union.strata().command(["mount", "--lower", "lower0", "--upper", "upper0", "--work", "work0", "mnt"]);
    let words = std::iter::once(mount.get_program()).chain(mount.get_args()).map(|word| word.display().to_string());
    let before = words.collect::<Vec<_>>().join(" ") + " &&";
    let ours = run(&union, &union.point(), &before)?;
    let without = run(&union, &place, "true &&")?;
    ours.expect_as_good_as(&without)
}

/// Runs all of it in a folder; with `before`, in a user namespace after that command.
fn run(union: &Union, place: &Path, before: &str) -> Result<Results> {
    let program = tools::program("pjdfstest").context("no pjdfstest")?;
    let other = other_filesystem()?;
    if before.is_empty() {
        let path = format!("{}:{}", plain_mount(union.folder())?.display(), std::env::var("PATH")?);
        let mut results = Results::default();
        // Apart: a case that fails may leave a file open, and then nothing can be remounted read-only.
        for (pattern, may_remount) in [(None, false), (Some("erofs"), true)] {
            let configuration = union.folder().join("pjdfstest.toml");
            fs::write(&configuration, configuration_text(may_remount))?;
            let mut command = Command::new(&program);
            command.arg("-c").arg(&configuration).arg("-p").arg(place).arg("-s").arg(other.path()).args(pattern);
            results.read(&finish(command.env("PATH", &path).current_dir(union.folder()))?);
        }
        return results.checked();
    }
    fs::write(union.folder().join("pjdfstest.toml"), configuration_text(false))?;
    fs::copy(program, union.folder().join("pjdfstest"))?;
    let script = format!("{before} ./pjdfstest -c pjdfstest.toml -p {}", place.display());
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-auto", "--map-root-user", "--mount", "sh", "-c", &script]);
    plain_user::demote(&mut command);
    let mut results = Results::default();
    results.read(&finish(command.env("HOME", union.folder()).current_dir(union.folder()))?);
    results.checked()
}

/// A folder on another filesystem, for renames and links that must fail.
fn other_filesystem() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in("/dev/shm")?)
}

/// A folder with a `mount` that asks no helper: one may be missing here, and what it does is not the question.
fn plain_mount(folder: &Path) -> Result<PathBuf> {
    let real = union::on_path("mount").context("no mount")?;
    let programs = folder.join("programs");
    fs::create_dir(&programs)?;
    fs::write(programs.join("mount"), format!("#!/bin/sh\nexec {} -i \"$@\"\n", real.display()))?;
    fs::set_permissions(programs.join("mount"), fs::Permissions::from_mode(0o755))?;
    Ok(programs)
}

fn configuration_text(may_remount: bool) -> String {
    format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutimensat = {{}}\nutime_now = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = {may_remount}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"{0}\", \"{0}\"]]\n",
        plain_user::NAME
    )
}

impl Results {
    fn read(&mut self, finished: &Finished) {
        let mut lines = finished.stdout.lines().map(without_colours);
        while let Some(line) = lines.next() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some(case), Some("ok"), None) => drop(self.passed.insert(case.to_owned())),
                (Some(case), Some("FAILED"), None) => {
                    let reason = lines.next().unwrap_or_default().trim().to_owned();
                    self.failed.insert(case.to_owned(), reason);
                }
                _ => {}
            }
        }
    }

    /// A run that lost its way and said nothing must not pass.
    fn checked(self) -> Result<Results> {
        ensure!(self.passed.len() > 250, "only {} cases passed; failed: {:#?}", self.passed.len(), self.failed);
        Ok(self)
    }

    fn expect_as_good_as(&self, reference: &Results) -> Result<()> {
        let expected = Expected::read();
        let known = |case: &String| expected.always.contains(case) || expected.sometimes.contains(case);
        let counts = |case: &String| reference.passed.contains(case) && !known(case);
        let worse: Vec<_> = self.failed.iter().filter(|(case, _)| counts(case)).collect();
        ensure!(worse.is_empty(), "{} cases pass on ext4 and fail here: {worse:#?}", worse.len());
        let missing: Vec<_> = reference.passed.difference(&self.passed).filter(|case| counts(case)).collect();
        ensure!(missing.is_empty(), "passed on ext4 and did not run here: {missing:#?}");
        let better: Vec<_> = expected.always.intersection(&self.passed).collect();
        ensure!(better.is_empty(), "no failures any more, take them off the list: {better:#?}");
        Ok(())
    }
}

/// What is known to be worse than ext4.
struct Expected {
    always: BTreeSet<String>,
    /// With a question mark: a race decides.
    sometimes: BTreeSet<String>,
}

impl Expected {
    fn read() -> Expected {
        let text = include_str!("pjdfstest-expected-failures.txt");
        let cases = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (sometimes, always): (Vec<_>, Vec<_>) = cases.partition(|case| case.ends_with('?'));
        Expected {
            always: always.into_iter().map(str::to_owned).collect(),
            sometimes: sometimes.into_iter().map(|case| case.trim_end_matches('?').to_owned()).collect(),
        }
    }
}

fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}
