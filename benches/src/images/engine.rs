//! The engines, and an empty store of each with whatever daemon it needs.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::load::{Dockerd, remove_engine_folder};
use crate::measure::{self, Cost};
use crate::sandbox::podman_options;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Engine {
    Strata,
    Docker,
    Podman,
    Containerd,
    /// Copies without unpacking anything.
    Skopeo,
    /// Unpacks a layout into a folder.
    Umoci,
}

impl Engine {
    pub(super) const ALL: [Engine; 6] =
        [Engine::Strata, Engine::Docker, Engine::Podman, Engine::Containerd, Engine::Skopeo, Engine::Umoci];

    pub(super) fn name(self) -> &'static str {
        match self {
            Engine::Strata => "strata",
            Engine::Docker => "docker",
            Engine::Podman => "podman",
            Engine::Containerd => "containerd",
            Engine::Skopeo => "skopeo",
            Engine::Umoci => "umoci",
        }
    }

    /// Starts it with an empty store in `folder`, which must not exist.
    pub(super) fn start(self, strata: &Path, folder: PathBuf) -> Result<Store> {
        let daemon = match self {
            Engine::Docker => Daemon::Docker(Dockerd::start(&folder)?),
            Engine::Containerd => Daemon::Containerd(Containerd::start(&folder)?),
            _ => {
                fs::create_dir_all(&folder)?;
                Daemon::None
            }
        };
        Ok(Store { engine: self, strata: strata.to_owned(), folder, daemon: Some(daemon) })
    }
}

/// An engine's store. Everything is removed when it is dropped.
pub(super) struct Store {
    pub(super) engine: Engine,
    strata: PathBuf,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

enum Daemon {
    None,
    Docker(Dockerd),
    Containerd(Containerd),
}

impl Store {
    /// Where all of it lies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command on the store.
    pub(super) fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = match (self.engine, &self.daemon) {
            (Engine::Strata, _) => {
                let mut command = Command::new(&self.strata);
                command.arg("--root").arg(self.folder.join("store"));
                command
            }
            (_, Some(Daemon::Docker(daemon))) => daemon.client(),
            (_, Some(Daemon::Containerd(daemon))) => daemon.client(),
            (Engine::Podman, _) => {
                let mut command = Command::new("podman");
                command.args(podman_options(&self.folder));
                command
            }
            (engine, _) => Command::new(engine.name()),
        };
        command.args(arguments);
        command
    }

    /// Measures a command, with what the daemon does for it.
    pub(super) fn time<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<Cost> {
        let before = self.daemon_cpu()?;
        let mut cost = measure::time(&self.command(arguments))?;
        cost.cpu += self.daemon_cpu()?.saturating_sub(before);
        let peak = match &self.daemon {
            Some(Daemon::Docker(daemon)) => daemon.peak()?,
            Some(Daemon::Containerd(daemon)) => measure::peak_of(daemon.child.id())?,
            _ => 0,
        };
        cost.peak = cost.peak.max(peak);
        Ok(cost)
    }

    fn daemon_cpu(&self) -> Result<Duration> {
        match &self.daemon {
            Some(Daemon::Docker(daemon)) => daemon.cpu(),
            Some(Daemon::Containerd(daemon)) => measure::cpu_of(daemon.child.id()),
            _ => Ok(Duration::ZERO),
        }
    }

    /// The space that the store takes on the disk.
    pub(super) fn space(&self) -> Result<u64> {
        bytes_below(&self.folder)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // What cannot be ended or removed is told by the next start in the same folder.
        let _ = match self.daemon.take() {
            Some(Daemon::Docker(daemon)) => daemon.stop(),
            Some(Daemon::Containerd(daemon)) => daemon.stop(),
            _ => Ok(()),
        };
        let _ = remove_engine_folder(&self.folder);
        // The dirty pages of this lap are not the next one's business.
        rustix::fs::sync();
    }
}

/// A containerd of our own, without plugins that need more than a folder.
struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    fn start(folder: &Path) -> Result<Containerd> {
        fs::create_dir_all(folder)?;
        let socket = folder.join("socket");
        let config = folder.join("config.toml");
        let at = |name: &str| folder.join(name).display().to_string();
        fs::write(
            &config,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
                at("root"),
                at("state"),
                socket.display().to_string(),
                at("opt"),
            ),
        )?;
        let log = File::create(folder.join("log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        let daemon = Containerd { child, socket };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !daemon.client().arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
            if Instant::now() > deadline {
                daemon.stop()?;
                bail!("containerd does not answer");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(daemon)
    }

    fn client(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", "bench"]);
        command
    }

    fn stop(mut self) -> Result<()> {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        self.child.wait()?;
        Ok(())
    }
}

/// The space that everything below a folder takes; what is gone meanwhile takes none.
fn bytes_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += bytes_below(&entry.path())?;
        }
    }
    Ok(bytes)
}
