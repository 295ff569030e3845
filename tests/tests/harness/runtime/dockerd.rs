//! Docker's daemon with us as its runtime.

use std::fs;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use strata_tests::image::busybox;
use strata_tests::strata::{Finished, finish};
use strata_tests::tier::{Need, Suite};

use super::bundle::wait_for;
use super::containerd::Containerd;

pub(super) fn register(suite: &mut Suite) {
    let programs = ["containerd", "containerd-shim-runc-v2", "dockerd", "docker", "nsenter"];
    let needs: Vec<Need> = std::iter::once(Need::Busybox).chain(programs.map(Need::Program)).collect();
    suite.add("runtime::privileged_docker_runs_its_containers", &needs, containers);
}

/// A daemon with everything in a folder of its own, that touches no network.
struct Docker {
    process: Child,
    containerd: Containerd,
}

impl Docker {
    fn start() -> Result<Docker> {
        let containerd = Containerd::start()?;
        let folder = containerd.strata.folder().to_owned();
        let at = |name: &str| folder.join(name).display().to_string();
        fs::write(folder.join("daemon.json"), "{}")?;
        let log = fs::File::create(folder.join("dockerd.log"))?;
        let group = format!("/strata-test/docker-{}", std::process::id());
        let mut command = containerd.beside(&[
            "dockerd",
            "--config-file",
            &at("daemon.json"),
            "--data-root",
            &at("d-root"),
            "--exec-root",
            &at("d-exec"),
            "--pidfile",
            &at("d.pid"),
            "--host",
            &format!("unix://{}", at("d.sock")),
            "--containerd",
            &at("c.sock"),
            "--add-runtime",
            &format!("strata={}", at("runc")),
            "--default-runtime",
            "strata",
            "--cgroup-parent",
            &group,
            "--storage-driver",
            "vfs",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--bridge=none",
        ]);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let docker = Docker { process, containerd };
        wait_for(|| Ok(docker.run(&["version"])?.status.success().then_some(())))
            .with_context(|| docker.containerd.log("dockerd"))?;
        Ok(docker)
    }

    fn run(&self, words: &[&str]) -> Result<Finished> {
        let host = format!("unix://{}", self.containerd.strata.folder().join("d.sock").display());
        let mut command = self.containerd.beside(&[&["docker", "--host", &host], words].concat());
        finish(command.env("DOCKER_CONFIG", self.containerd.strata.folder()))
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        let finished = self.run(words)?;
        ensure!(finished.status.success(), "{finished}\n{}", self.containerd.log("dockerd"));
        Ok(finished.stdout)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // What a failed test has left running; then the daemon itself, by the word of its own file.
        let _ = self.run(&["rm", "--force", "one", "big"]);
        let pid = fs::read_to_string(self.containerd.strata.folder().join("d.pid")).unwrap_or_default();
        if let Some(pid) = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

fn containers() -> Result<()> {
    let docker = Docker::start()?;
    docker.ok(&["load", "-i", &busybox::folder()?.join("docker.tar").display().to_string()])?;
    let image = busybox::REFERENCE;
    let run = ["run", "--rm", "--network", "none"];
    let finished = docker.run(&[&run[..], &[image, "sh", "-c", "echo out; echo err >&2; exit 42"]].concat())?;
    ensure!(
        finished.code() == 42 && finished.stdout == "out\n" && finished.stderr == "err\n",
        "{finished}\n{}",
        docker.containerd.log("dockerd")
    );
    let finished = docker.run(&[&run[..], &[image, "missing-program"]].concat())?;
    ensure!(finished.code() == 127 && finished.stderr.contains("executable file not found in $PATH"), "{finished}");
    let finished = docker.run(&[&run[..], &[image, "/etc/motd"]].concat())?;
    ensure!(finished.code() == 126, "{finished}");
    let finished = docker.run(&[&run[..], &["-t", image, "tty"]].concat())?;
    ensure!(finished.stdout.contains("/dev/pts/0"), "{finished}");

    docker.ok(&["run", "-d", "--name", "one", "--network", "none", "--memory", "64m", image, "sleep", "1000"])?;
    let finished = docker.run(&["exec", "-e", "A=b", "-u", "plain", "one", "sh", "-c", "echo $A; id -u; exit 3"])?;
    ensure!(finished.code() == 3 && finished.stdout == "b\n1000\n", "{finished}");
    docker.ok(&["pause", "one"])?;
    ensure!(docker.ok(&["inspect", "--format", "{{.State.Status}}", "one"])?.trim() == "paused");
    docker.ok(&["unpause", "one"])?;
    docker.ok(&["update", "--memory", "32m", "--memory-swap", "32m", "one"])?;
    docker.ok(&["stats", "--no-stream", "one"])?;
    ensure!(docker.ok(&["top", "one"])?.contains("sleep 1000"));
    docker.ok(&["stop", "--time", "0", "one"])?;
    ensure!(
        docker.ok(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "one"])?.trim() == "exited 137"
    );
    docker.ok(&["start", "one"])?;
    docker.ok(&["rm", "--force", "one"])?;

    let words = ["run", "--name", "big", "--network", "none", "--memory", "16m", "--memory-swap", "16m", image];
    let finished = docker.run(&[&words[..], &["tail", "/dev/zero"]].concat())?;
    ensure!(finished.code() == 137, "{finished}");
    let told = docker.ok(&["inspect", "--format", "{{.State.OOMKilled}}", "big"])?;
    ensure!(told.trim() == "true", "{told}");
    docker.ok(&["rm", "big"])?;
    Ok(())
}
