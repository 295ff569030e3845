//! containerd's shim with us as its runc binary, driven by `ctr`.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use strata_tests::image::busybox;
use strata_tests::strata::{Finished, Strata, finish, program};
use strata_tests::tier::{Need, Suite};

use super::bundle::wait_for;

pub(super) fn register(suite: &mut Suite) {
    let needs = [
        Need::Busybox,
        Need::Program("containerd"),
        Need::Program("ctr"),
        Need::Program("containerd-shim-runc-v2"),
        Need::Program("nsenter"),
    ];
    suite.add("runtime::privileged_containerd_runs_its_containers", &needs, containers);
}

/// A containerd with everything in a folder of its own, in a mount namespace in which the places that it does not let go
/// of are empty.
pub(super) struct Containerd {
    pub(super) strata: Strata,
    process: Child,
}

impl Containerd {
    pub(super) fn start() -> Result<Containerd> {
        let strata = Strata::new()?;
        let folder = strata.folder().to_owned();
        let root = folder.display();
        // Snapshots on a filesystem that overlayfs can stand on are not a given: the native one copies.
        let config = format!(
            "version = 2\nroot = \"{root}/c-root\"\nstate = \"{root}/c-state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.devmapper\"]\n[grpc]\naddress = \"{root}/c.sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{root}/c-opt\"\n"
        );
        fs::write(folder.join("containerd.toml"), config)?;
        std::os::unix::fs::symlink(program().unwrap_or_default(), folder.join("runc"))?;
        let script = "mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", "containerd", "--config"]);
        command.arg(folder.join("containerd.toml")).stdin(Stdio::null());
        let log = fs::File::create(folder.join("containerd.log"))?;
        let process = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let containerd = Containerd { strata, process };
        let socket = folder.join("c.sock");
        wait_for(|| Ok(socket.exists().then_some(()))).with_context(|| containerd.log("containerd"))?;
        Ok(containerd)
    }

    /// A command in the mount namespace of containerd.
    pub(super) fn beside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", "nsenter", "--mount", "--target", &self.process.id().to_string()]);
        command.args(words).stdin(Stdio::null());
        command
    }

    pub(super) fn runtime(&self) -> PathBuf {
        self.strata.folder().join("runc")
    }

    pub(super) fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.strata.folder().join(format!("{name}.log"))).unwrap_or_default();
        text.lines().rev().take(15).collect::<Vec<_>>().join("\n")
    }

    fn ctr(&self, words: &[&str]) -> Result<Finished> {
        let socket = self.strata.folder().join("c.sock").display().to_string();
        finish(&mut self.beside(&[&["ctr", "--address", &socket], words].concat()))
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let finished = self.ctr(words)?;
        ensure!(finished.status.success(), "{finished}\n{}", self.log("containerd"));
        Ok(finished.stdout)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Each fails when it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn containers() -> Result<()> {
    let containerd = Containerd::start()?;
    let archive = busybox::folder()?.join("docker.tar").display().to_string();
    containerd.ok(&["images", "import", "--snapshotter", "native", &archive])?;
    let images = containerd.ok(&["images", "ls", "-q"])?;
    let image = images.lines().next().context("no image")?;
    let runtime = containerd.runtime().display().to_string();
    let group = format!("/strata-test/containerd-{}", std::process::id());
    let run = |id: &str, options: &[&str], words: &[&str]| -> Result<Finished> {
        let cgroup = format!("{group}-{id}");
        let base = ["run", "--snapshotter", "native", "--runc-binary", &runtime, "--cgroup", &cgroup];
        containerd.ctr(&[&base[..], options, &[image, id], words].concat())
    };
    let finished = run("short", &["--rm"], &["sh", "-c", "echo out; exit 42"])?;
    ensure!(finished.code() == 42 && finished.stdout == "out\n", "{finished}\n{}", containerd.log("containerd"));
    let finished = run("missing", &["--rm"], &["missing-program"])?;
    ensure!(!finished.status.success() && finished.stderr.contains("executable file not found in $PATH"), "{finished}");

    let finished = run("long", &["--detach", "--memory-limit", "67108864"], &["sleep", "1000"])?;
    ensure!(finished.status.success(), "{finished}\n{}", containerd.log("containerd"));
    let status = |containerd: &Containerd| -> Result<String> {
        let list = containerd.ok(&["tasks", "ls"])?;
        let line = list.lines().find(|line| line.starts_with("long")).unwrap_or_default().to_owned();
        Ok(line.split_whitespace().nth(2).unwrap_or_default().to_owned())
    };
    ensure!(status(&containerd)? == "RUNNING");
    let finished = containerd.ctr(&["tasks", "exec", "--exec-id", "e", "long", "sh", "-c", "echo in; exit 3"])?;
    ensure!(finished.code() == 3 && finished.stdout == "in\n", "{finished}");
    containerd.ok(&["tasks", "pause", "long"])?;
    ensure!(status(&containerd)? == "PAUSED");
    containerd.ok(&["tasks", "resume", "long"])?;
    ensure!(containerd.ok(&["tasks", "ps", "long"])?.lines().count() >= 2);
    containerd.ok(&["tasks", "metrics", "long"])?;
    containerd.ok(&["tasks", "kill", "--signal", "KILL", "long"])?;
    wait_for(|| Ok((status(&containerd)? == "STOPPED").then_some(())))?;
    containerd.ok(&["tasks", "rm", "long"]).or_else(|error| {
        // It tells the exit code of the process by its own.
        if error.to_string().contains("137") { Ok(String::new()) } else { Err(error) }
    })?;
    containerd.ok(&["containers", "rm", "long"])?;
    Ok(())
}
