//! Loading an uncompressed archive of the size of a real image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use strata_tests::image::synthetic;

use crate::measure::{self, Cost};
use crate::report::{Report, row, seconds};

/// Prints the table.
pub fn figures(strata: &Path, work: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    let archive = synthetic::large()?;
    let size = archive.metadata()?.len();
    // Everybody reads it from memory.
    std::io::copy(&mut File::open(&archive)?, &mut std::io::sink())?;
    report.say(format!(
        "load of an uncompressed docker-archive: {} MB, 6 layers, 20,000 files; median of {rounds}, each into an empty store",
        size / 1_000_000
    ));
    let mut rows = vec![row(["", "seconds", "MB/s", "CPU-s", "peak MiB"])];
    let mut add = |name: &str, costs: Result<Vec<Cost>>| match costs {
        Ok(costs) => {
            let cost = measure::median(&costs);
            let rate = size as f64 / 1e6 / cost.wall.as_secs_f64();
            rows.push(row([
                name,
                &seconds(cost.wall),
                &format!("{rate:.0}"),
                &seconds(cost.cpu),
                &(cost.peak / 1024).to_string(),
            ]));
        }
        Err(error) => rows.push(vec![name.to_owned(), format!("not measured: {}", first_line(&error))]),
    };
    add("strata load", (0..rounds).map(|_| by_strata(strata, work, &archive)).collect());
    add("podman load", (0..rounds).map(|_| by_podman(work, &archive)).collect());
    add("docker load", by_docker(work, &archive, rounds));
    report.table(&rows);
    Ok(())
}

pub(crate) fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (first, last) = (lines.next().unwrap_or_default().to_owned(), lines.next_back());
    let joined = last.map_or_else(|| first.clone(), |last| format!("{first} ... {last}"));
    joined.chars().take(300).collect()
}

fn by_strata(strata: &Path, work: &Path, archive: &Path) -> Result<Cost> {
    let root = work.join("load-strata");
    let cost = measure::time(Command::new(strata).arg("--root").arg(&root).arg("load").arg("-i").arg(archive))?;
    fs::remove_dir_all(&root)?;
    settle();
    Ok(cost)
}

fn by_podman(work: &Path, archive: &Path) -> Result<Cost> {
    let root = work.join("load-podman");
    fs::create_dir_all(&root)?;
    let mut command = Command::new("podman");
    command.args(crate::sandbox::podman_options(&root)).arg("load").arg("-q").arg("-i").arg(archive);
    let cost = measure::time(&command);
    remove_engine_folder(&root)?;
    settle();
    cost
}

/// The last round's dirty pages are not this round's business.
fn settle() {
    rustix::fs::sync();
}

fn by_docker(work: &Path, archive: &Path, rounds: usize) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for _ in 0..rounds {
        let daemon = Dockerd::start(&work.join("load-docker"))?;
        let archive = archive.to_string_lossy();
        costs.push(daemon.time(&["load", "-q", "-i", &archive])?);
        daemon.stop()?;
        settle();
    }
    Ok(costs)
}

/// A daemon of our own: its own folders and socket, no network set up.
#[derive(Debug)]
pub struct Dockerd {
    child: Child,
    folder: PathBuf,
    socket: String,
}

impl Dockerd {
    /// Starts it and waits until it answers.
    pub fn start(folder: &Path) -> Result<Dockerd> {
        fs::create_dir_all(folder)?;
        let log = File::create(folder.join("log"))?;
        let socket = format!("unix://{}/socket", folder.display());
        let child = Command::new("dockerd")
            .args([
                "--host",
                &socket,
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--storage-driver=overlay2",
            ])
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let mut daemon = Dockerd { child, folder: folder.to_owned(), socket };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !daemon.client().arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
            if let Some(status) = daemon.child.try_wait()? {
                let log = fs::read_to_string(folder.join("log"))?;
                let last = log.lines().last().unwrap_or_default().to_owned();
                let _ = remove_engine_folder(folder);
                bail!("dockerd ended with {status}: {last}");
            }
            if Instant::now() > deadline {
                let _ = daemon.stop();
                bail!("dockerd does not answer");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(daemon)
    }

    /// Measures a command of the client, with what the daemon does for it.
    pub fn time(&self, arguments: &[&str]) -> Result<Cost> {
        let before = self.cpu()?;
        let mut cost = measure::time(self.client().args(arguments))?;
        cost.cpu += self.cpu()?.saturating_sub(before);
        cost.peak = self.peak()?;
        Ok(cost)
    }

    /// The daemon's peak resident set so far, in KiB.
    pub fn peak(&self) -> Result<i64> {
        measure::peak_of(self.child.id())
    }

    /// A client of this daemon.
    pub fn client(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.socket).env_remove("DOCKER_CONTEXT");
        command
    }

    /// CPU time so far of the daemon, its containerd, and what they waited for.
    pub fn cpu(&self) -> Result<Duration> {
        let mut total = measure::cpu_of(self.child.id())?;
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        for child in children.split_whitespace() {
            total += measure::cpu_of(child.parse()?)?;
        }
        Ok(total)
    }

    /// Ends it and removes everything it had.
    pub fn stop(mut self) -> Result<()> {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        self.child.wait()?;
        remove_engine_folder(&self.folder)
    }
}

/// Removes an engine's folder with what it left mounted.
pub(crate) fn remove_engine_folder(folder: &Path) -> Result<()> {
    // podman cleans up after a container in a process that nobody waits for, and mounts for that.
    for _ in 0..10 {
        strata_tests::strata::unmount_below(folder);
        if fs::remove_dir_all(folder).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    fs::remove_dir_all(folder).with_context(|| format!("remove {folder:?}"))
}
