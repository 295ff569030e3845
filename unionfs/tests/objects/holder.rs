//! A process that holds a mount and answers questions about it, one line each.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use strata_unionfs::objects::{ObjectMount, Origin};

use crate::digest_of;
use crate::fixture::{Layer, nid_in, paths_in};

pub(crate) struct Holder {
    child: Child,
    answers: BufReader<ChildStdout>,
    pub(crate) origin: String,
}

impl Holder {
    pub(crate) fn start(layer: &Layer) -> Result<Holder> {
        Holder::spawn(layer)?.wait_ready()
    }

    pub(crate) fn spawn(layer: &Layer) -> Result<Holder> {
        Holder::spawn_with(Command::new(std::env::current_exe()?), layer)
    }

    fn spawn_with(mut command: Command, layer: &Layer) -> Result<Holder> {
        command.env("ROLE", layer.folder()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Holder { child, answers, origin: String::new() })
    }

    pub(crate) fn wait_ready(mut self) -> Result<Holder> {
        self.origin = self.line()?;
        ensure!(matches!(&self.origin[..], "mounted" | "shared"), "{}", self.origin);
        Ok(self)
    }

    /// Device and inode number of a file.
    pub(crate) fn stat(&mut self, name: &str) -> Result<String> {
        self.ask("stat", name)
    }

    /// Digest of a file.
    pub(crate) fn read(&mut self, name: &str) -> Result<String> {
        self.ask("read", name)
    }

    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn leave(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        ensure!(self.child.wait()?.success());
        Ok(())
    }

    /// What a holder in a user namespace of its own says.
    pub(crate) fn refusal_in_user_namespace(layer: &Layer) -> Result<String> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]).arg(std::env::current_exe()?);
        let mut holder = Holder::spawn_with(command, layer)?;
        holder.line()
    }

    fn ask(&mut self, question: &str, name: &str) -> Result<String> {
        writeln!(self.child.stdin.as_mut().context("no stdin")?, "{question} {name}")?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.to_owned()),
            None => bail!("the holder has gone"),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side: opens the layer in the folder `role` and answers.
pub(crate) fn play(role: &OsStr) -> ExitCode {
    let folder = Path::new(role);
    let mount = match ObjectMount::open(&paths_in(folder)) {
        Ok(mount) => mount,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match mount.origin() {
        Origin::Mounted => println!("mounted"),
        Origin::Shared => println!("shared"),
    }
    for line in std::io::stdin().lines() {
        let answer = line.context("read a question").and_then(|line| {
            let (question, name) = line.split_once(' ').context("two words")?;
            let file = mount.open_object(nid_in(folder, name)?.context("no object")?)?;
            match question {
                "read" => digest_of(file),
                _ => {
                    let metadata = File::from(file).metadata()?;
                    Ok(format!("{}:{}", metadata.dev(), metadata.ino()))
                }
            }
        });
        println!("{}", answer.unwrap_or_else(|error| format!("{error:?}")));
    }
    drop(mount);
    ExitCode::SUCCESS
}

/// Says whether this process cannot mount EROFS at all.
pub(crate) fn missing_privilege() -> bool {
    use rustix::mount::{FsOpenFlags, fsopen};
    fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).is_err()
}
