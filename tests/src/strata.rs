//! Runs the command under test with a state folder of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::image::archive::Form;
use crate::image::busybox;
use crate::{plain_user, tree};

/// A state folder, and who uses it. Dropped, it ends its containers, unmounts what is still mounted below and removes everything.
#[derive(Debug)]
pub struct Strata {
    program: PathBuf,
    folder: TempDir,
    user: User,
}

/// Who runs the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Caller,
    /// Somebody without privileges.
    Plain,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Strata {
    /// An empty state folder of whoever runs the tests.
    pub fn new() -> Result<Strata> {
        Strata::of(User::Caller)
    }

    /// An empty state folder of `user`.
    pub fn of(user: User) -> Result<Strata> {
        // Not the temporary folder: it may be in memory, where a store cannot have everything.
        let folder = tempfile::Builder::new().prefix("strata-test-").tempdir_in("/var/tmp")?;
        let program = program().context("no strata binary")?;
        let program = match user {
            User::Caller => program,
            User::Plain => {
                // The build folder may be closed to others.
                plain_user::own(folder.path())?;
                let copy = folder.path().join("strata");
                fs::copy(&program, &copy)?;
                copy
            }
        };
        Ok(Strata { program, folder, user })
    }

    /// A state folder of `user` with the image around busybox.
    pub fn with_busybox(user: User) -> Result<Strata> {
        let strata = Strata::of(user)?;
        strata.load(&busybox::folder()?.join(Form::DockerNew.file_name()))?;
        Ok(strata)
    }

    /// A second state folder of the same user, which must know nothing of the first.
    pub fn another(&self) -> Result<Strata> {
        Strata::of(self.user)
    }

    /// A place for the test's own files, owned by the user.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new folder of the user below [`Strata::folder`].
    pub fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        fs::create_dir(&path)?;
        if self.user == User::Plain {
            plain_user::own(&path)?;
        }
        Ok(path)
    }

    /// The state folder itself.
    pub fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// The command with these arguments, to be started by the caller. It is ended after five minutes.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", LIMIT]).arg(&self.program).arg("--root").arg(self.state()).args(arguments);
        command.current_dir(self.folder()).env_remove("STRATA_ROOT").env("NO_COLOR", "1").stdin(Stdio::null());
        if self.user == User::Plain {
            plain_user::demote(&mut command);
            command.env("HOME", self.folder());
        }
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Finished> {
        finish(&mut self.command(arguments))
    }

    /// Runs a command with a file as standard input.
    pub fn run_with_input<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: File,
    ) -> Result<Finished> {
        finish(self.command(arguments).stdin(input))
    }

    /// Runs a command that must succeed; returns its output.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let finished = self.run(arguments)?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    }

    /// Runs a command that must end with this exit code.
    pub fn exits<S: AsRef<OsStr>>(&self, code: i32, arguments: impl IntoIterator<Item = S>) -> Result<Finished> {
        let finished = self.run(arguments)?;
        ensure!(finished.status.code() == Some(code), "exit code {code} expected:\n{finished}");
        Ok(finished)
    }

    /// Loads an archive through standard input, so that it may lie where only the caller can read.
    pub fn load(&self, archive: &Path) -> Result<String> {
        let file = File::open(archive).with_context(|| format!("open {archive:?}"))?;
        let finished = self.run_with_input(["load"], file)?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    }

    /// Starts a command that goes on, with its output in files below [`Strata::folder`].
    pub fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Child> {
        let output = File::create(self.folder().join("started.log"))?;
        let mut command = self.command(arguments);
        Ok(command.stdout(output.try_clone()?).stderr(output).spawn()?)
    }

    /// Everything in the state folder but the journal of events: path to kind and digest. Empty folders and times do not count.
    pub fn state_listing(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut found = BTreeMap::new();
        let mut pending = vec![self.state()];
        let journal = self.state().join("events");
        while let Some(folder) = pending.pop() {
            let Ok(children) = fs::read_dir(&folder) else { continue };
            for child in children {
                let path = child?.path();
                let kind = path.symlink_metadata()?.file_type();
                if path == journal {
                    continue;
                }
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_symlink() {
                    found.insert(path.clone(), format!("-> {}", path.read_link()?.display()));
                } else {
                    let digest = if kind.is_file() { tree::digest_of(&path)? } else { "special".to_owned() };
                    found.insert(path, digest);
                }
            }
        }
        Ok(found)
    }
}

impl Strata {
    /// Removes the containers that a test left, with their processes and cgroups, which nobody would find without their
    /// records.
    fn remove_containers(&self) {
        let containers = fs::read_dir(self.state().join("containers")).into_iter().flatten().flatten();
        if !containers.into_iter().any(|entry| entry.file_name() != "names") {
            return;
        }
        // This also deals with those whose monitors were killed. What fails here failed in the test as well.
        let Ok(listed) = self.run(["ps", "-aq", "--no-trunc"]) else { return };
        let ids: Vec<&str> = listed.stdout.lines().collect();
        if !ids.is_empty() {
            let _ = self.run(["rm", "-f"].iter().chain(&ids));
        }
    }
}

impl Drop for Strata {
    fn drop(&mut self) {
        self.remove_containers();
        unmount_below(self.folder.path());
    }
}

impl Finished {
    /// The exit code as a shell would show it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\n{}\n{}{}", self.line, self.status, self.stdout, self.stderr)
    }
}

/// Runs any command to its end. Output goes through files: a pipe would wait for whatever the command left behind.
pub fn finish(command: &mut Command) -> Result<Finished> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let line = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy());
    let line = line.collect::<Vec<_>>().join(" ");
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let status = command.status().with_context(|| format!("start {line}"))?;
    let read = |file: &mut File| -> Result<String> {
        let mut bytes = Vec::new();
        std::io::Seek::rewind(file)?;
        std::io::Read::read_to_end(file, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Finished { line, status, stdout: read(&mut stdout)?, stderr: read(&mut stderr)? })
}

/// The binary under test: `$STRATA_BIN`, or the one of the same build.
pub fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("STRATA_BIN") {
        return Some(PathBuf::from(named)).filter(|path| path.is_file());
    }
    let own = std::env::current_exe().ok()?;
    let folders = own.ancestors().skip(1).take(2).map(|folder| folder.join("strata"));
    folders.into_iter().find(|path| path.is_file())
}

/// Mount points of this process's namespace below a folder, innermost first.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(point.replace("\\040", " ")));
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    below.sort();
    below.reverse();
    below
}

/// Unmounts everything below a folder, as far as that is allowed.
pub fn unmount_below(folder: &Path) {
    for point in mounts_below(folder) {
        if rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).is_err() {
            // A plain user's mount needs the helper; if that fails too, removing the folder reports it.
            let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(&point).status();
        }
    }
}

const LIMIT: &str = "300";
