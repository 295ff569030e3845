//! Podman with `--runtime`: conmon calls us.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use strata_tests::image::busybox;
use strata_tests::strata::{Finished, Strata, finish, program};
use strata_tests::tier::{Need, Suite};

use crate::reaper::Reaper;

pub(super) fn register(suite: &mut Suite) {
    let needs = [Need::Busybox, Need::Program("podman"), Need::Program("conmon")];
    suite.add("runtime::privileged_podman_runs_its_containers", &needs, containers);
}

/// A private storage, and us as the runtime.
struct Podman {
    strata: Strata,
    runtime: PathBuf,
    _reaper: Reaper,
}

impl Podman {
    fn new() -> Result<Podman> {
        let strata = Strata::new()?;
        let folder = strata.folder();
        // By this name, Podman knows that errors come as JSON.
        let runtime = folder.join("runc");
        std::os::unix::fs::symlink(program().unwrap_or_default(), &runtime)?;
        let root = folder.display();
        let storage = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{root}/root\"\nrunroot = \"{root}/run\"\n");
        fs::write(folder.join("storage.conf"), storage)?;
        // The default limits are higher than a root without CAP_SYS_RESOURCE may set.
        let engine = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(folder.join("containers.conf"), engine)?;
        let podman = Podman { strata, runtime, _reaper: Reaper::start() };
        let image = fs::File::open(busybox::folder()?.join("docker.tar"))?;
        let loaded = finish(podman.command(&["load", "-q"]).stdin(image))?;
        ensure!(loaded.status.success(), "{loaded}");
        Ok(podman)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        let folder = self.strata.folder();
        command.args(["--kill-after=5", "60", "podman", "--runtime"]).arg(&self.runtime).arg("--tmpdir");
        command.arg(folder.join("tmp")).args(words).stdin(Stdio::null()).current_dir(folder);
        command.env("CONTAINERS_STORAGE_CONF", folder.join("storage.conf"));
        command.env("CONTAINERS_CONF", folder.join("containers.conf"));
        command
    }

    fn run(&self, words: &[&str]) -> Result<Finished> {
        finish(&mut self.command(words))
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let finished = self.run(words)?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // What a failed test has left running.
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
    }
}

fn containers() -> Result<()> {
    let podman = Podman::new()?;
    let image = busybox::REFERENCE;
    let run = ["run", "--rm", "--network", "none"];
    let finished = podman.run(&[&run[..], &[image, "sh", "-c", "echo out; echo err >&2; exit 42"]].concat())?;
    ensure!(finished.code() == 42 && finished.stdout == "out\n" && finished.stderr.contains("err"), "{finished}");
    let finished = podman.run(&[&run[..], &[image, "missing-program"]].concat())?;
    ensure!(finished.code() == 127, "{finished}");
    let finished = podman.run(&[&run[..], &[image, "/etc/motd"]].concat())?;
    ensure!(finished.code() == 126, "{finished}");
    let finished = podman.run(&[&run[..], &["-t", image, "sh", "-c", "tty; stty size"]].concat())?;
    ensure!(finished.stdout.contains("/dev/pts/0"), "{finished}");

    podman.ok(&["run", "-d", "--name", "one", "--network", "none", "--memory", "64m", image, "sleep", "1000"])?;
    let inspected = podman.ok(&["inspect", "--format", "{{.OCIRuntime}} {{.State.Status}}", "one"])?;
    ensure!(inspected.trim() == format!("{} running", podman.runtime.display()), "{inspected}");
    let finished = podman.run(&["exec", "-e", "A=b", "-u", "plain", "one", "sh", "-c", "echo $A; id -u; exit 3"])?;
    ensure!(finished.code() == 3 && finished.stdout == "b\n1000\n", "{finished}");
    let finished = podman.run(&["exec", "one", "missing-program"])?;
    ensure!(finished.code() == 127, "{finished}");
    podman.ok(&["pause", "one"])?;
    ensure!(podman.ok(&["inspect", "--format", "{{.State.Status}}", "one"])?.trim() == "paused");
    podman.ok(&["unpause", "one"])?;
    podman.ok(&["stop", "--time", "0", "one"])?;
    ensure!(
        podman.ok(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "one"])?.trim() == "exited 137"
    );
    podman.ok(&["start", "one"])?;
    podman.ok(&["rm", "--force", "--time", "0", "one"])?;

    let words = ["run", "--name", "big", "--network", "none", "--memory", "16m", "--memory-swap", "16m", image];
    let finished = podman.run(&[&words[..], &["tail", "/dev/zero"]].concat())?;
    ensure!(finished.code() == 137, "{finished}");
    podman.ok(&["rm", "big"])?;
    Ok(())
}
