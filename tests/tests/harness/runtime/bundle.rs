//! A bundle with a busybox, and the runtimes that run it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use strata_tests::image::busybox;
use strata_tests::strata::{Finished, finish, program};
use strata_tests::union::on_path;
use tempfile::TempDir;

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runtime {
    Strata,
    Runc,
    Crun,
}

/// A runtime with a bundle and a state folder of its own. Dropped, it removes its containers.
pub(super) struct Bench {
    pub(super) runtime: Runtime,
    folder: TempDir,
    made: Vec<String>,
}

/// Does the same with every runtime that is on this machine.
pub(super) fn each(case: fn(&mut Bench) -> Result<()>) -> Result<()> {
    for runtime in [Runtime::Strata, Runtime::Runc, Runtime::Crun] {
        if runtime == Runtime::Strata || on_path(runtime.name()).is_some() {
            case(&mut Bench::new(runtime)?).with_context(|| format!("with {}", runtime.name()))?;
        }
    }
    Ok(())
}

impl Runtime {
    pub(super) fn name(self) -> &'static str {
        match self {
            Runtime::Strata => "strata",
            Runtime::Runc => "runc",
            Runtime::Crun => "crun",
        }
    }
}

impl Bench {
    pub(super) fn new(runtime: Runtime) -> Result<Bench> {
        let folder = tempfile::Builder::new().prefix("strata-test-").tempdir_in("/var/tmp")?;
        let root = folder.path().join("bundle/rootfs");
        for folder in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy(busybox::program()?, root.join("bin/busybox"))?;
        let applets = Command::new(busybox::program()?).arg("--list").output()?;
        for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nplain:x:1000:1000::/tmp:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\nplain:x:1000:\n")?;
        let bench = Bench { runtime, folder, made: Vec::new() };
        bench.configure(|_| {})?;
        Ok(bench)
    }

    /// The folder of the bundle.
    pub(super) fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    /// A path in the test's own folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration: a sleeping container, changed as the test needs it.
    pub(super) fn configure(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let capabilities = json!(["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"]);
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": ["sleep", "1000"],
                "env": ["PATH=/bin", "FROM=config"],
                "cwd": "/",
                "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
                "noNewPrivileges": true
            },
            "root": { "path": "rootfs" },
            "hostname": "bench",
            "annotations": { "test.key": "value" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }
            ],
            "linux": {
                "cgroupsPath": format!("/strata-test/{}", self.unique("cgroup")),
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" }
                ]
            }
        });
        change(&mut spec);
        fs::write(self.bundle().join("config.json"), serde_json::to_vec_pretty(&spec)?)?;
        Ok(())
    }

    /// Configures a shell script as the program.
    pub(super) fn script(&self, script: &str) -> Result<()> {
        self.configure(|spec| spec["process"]["args"] = json!(["sh", "-c", script]))
    }

    fn unique(&self, what: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("{what}-{}-{}-{number}", self.runtime.name(), std::process::id())
    }

    /// A name for a container, which is removed in the end.
    pub(super) fn id(&mut self) -> String {
        let id = self.unique("test");
        self.made.push(id.clone());
        id
    }

    pub(super) fn state_folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The command, ended after half a minute.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = match self.runtime {
            Runtime::Strata => {
                let mut command = Command::new("timeout");
                command.args(["--kill-after=5", "30"]).arg(program().unwrap_or_default()).arg("runtime");
                command
            }
            peer => {
                let mut command = Command::new("timeout");
                let script =
                    r#"if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@""#;
                command.args(["--kill-after=5", "30", "unshare", "--mount", "--propagation", "slave"]);
                command.args(["sh", "-c", script, "sh", peer.name()]);
                command
            }
        };
        command.arg("--root").arg(self.state_folder()).args(words);
        command.current_dir(self.bundle()).stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, words: &[&str]) -> Result<Finished> {
        finish(&mut self.command(words))
    }

    /// What a command printed, which must succeed.
    pub(super) fn ok(&self, words: &[&str]) -> Result<String> {
        let finished = self.run(words)?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    }

    /// That a command fails, and says one of these.
    pub(super) fn fails(&self, words: &[&str], texts: &[&str]) -> Result<()> {
        let finished = self.run(words)?;
        ensure!(!finished.status.success(), "it should have failed: {finished}");
        ensure!(texts.iter().any(|text| finished.stderr.contains(text)), "none of {texts:?} in {finished}");
        Ok(())
    }

    /// The same, with one peer who does not see a failure there.
    pub(super) fn fails_except(&self, peer: Runtime, words: &[&str], texts: &[&str]) -> Result<()> {
        if self.runtime == peer { self.run(words).map(drop) } else { self.fails(words, texts) }
    }

    pub(super) fn state(&self, id: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&["state", id])?)?)
    }

    pub(super) fn status(&self, id: &str) -> Result<String> {
        Ok(self.state(id)?["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the container has this status.
    pub(super) fn becomes(&self, id: &str, status: &str) -> Result<()> {
        let last = wait_for(|| Ok((self.status(id)? == status).then_some(())));
        last.with_context(|| format!("{id} does not become {status}: {:?}", self.status(id)))
    }

    /// Where the container's cgroup is in the hierarchy of a controller.
    pub(super) fn cgroup(&self, controller: &str) -> Result<PathBuf> {
        let spec: Value = serde_json::from_slice(&fs::read(self.bundle().join("config.json"))?)?;
        let path = spec["linux"]["cgroupsPath"].as_str().unwrap_or_default().trim_start_matches('/');
        Ok(Path::new("/sys/fs/cgroup").join(controller).join(path))
    }

    /// What is left of containers in the state folder.
    pub(super) fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state_folder()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for id in &self.made {
            // Most are gone already.
            let _ = self.run(&["delete", "--force", id]);
        }
    }
}

/// Reaps a process that came to us when its parent ended, as conmon and the shim do: until then, the first process of its
/// pid namespace cannot end.
pub(super) fn reap(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // Somebody else's is no fault.
    let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
}

/// Asks until there is an answer, for at most ten seconds.
pub(super) fn wait_for<T>(mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("it takes too long");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
