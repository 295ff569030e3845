//! The short way for programs that want a confined process and have no OCI spec at hand.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder,
    Spec,
};

use crate::capabilities::CapabilitySet;
use crate::cgroup::{CgroupName, Usage};
use crate::spec_default::{Defaults, Namespace, spec_default};
use crate::{
    Exec, ExitStatus, Identity, Inherited, Landlock, Launch, Listener, Orphan, Root, Running, Seccomp, SpawnError,
    Stdio, exec, spawn,
};

/// What a process may do. [`Policy::untrusted`] and [`Policy::docker`] are good places to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What it may do as root of the sandbox.
    pub capabilities: CapabilitySet,
    /// Whether programs such as `sudo` give it nothing.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// The second wall.
    pub landlock: Landlock,
    /// What it sees of networks.
    pub network: Namespace,
}

impl Policy {
    /// For code that nobody has looked at: no capability, no way to get one, no network, both walls.
    #[must_use]
    pub fn untrusted() -> Self {
        Self {
            capabilities: CapabilitySet::EMPTY,
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            landlock: Landlock::Auto,
            network: Namespace::Own,
        }
    }

    /// What Docker gives to a container, without a network.
    #[must_use]
    pub fn docker() -> Self {
        Self { capabilities: CapabilitySet::DOCKER, no_new_privileges: false, ..Self::untrusted() }
    }
}

/// Whether a shown folder may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No.
    ReadOnly,
    /// Yes; whatever is written is in the folder of the host.
    ReadWrite,
}

/// A place to run programs in: a root filesystem, folders shown in it, limits and a policy.
///
/// Every [`spawn`](Sandbox::spawn) makes a new one of its kind. It ends with its first process, or with the thread that
/// has made it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    root: PathBuf,
    defaults: Defaults,
    user: Option<String>,
    policy: Policy,
    memory: Option<i64>,
    cpus: Option<f64>,
    processes: Option<i64>,
}

impl Sandbox {
    /// A sandbox with the root filesystem `root`, which it does not change, and [`Policy::untrusted`].
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            defaults: Defaults { read_only_root: true, hostname: Some("sandbox".into()), ..Defaults::default() },
            user: None,
            policy: Policy::untrusted(),
            memory: None,
            cpus: None,
            processes: None,
        }
    }

    /// Replaces the policy.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Lets the process change the root filesystem.
    #[must_use]
    pub fn writable_root(mut self) -> Self {
        self.defaults.read_only_root = false;
        self
    }

    /// Shows a folder of the host.
    #[must_use]
    pub fn folder(mut self, host: impl AsRef<Path>, place: impl AsRef<Path>, access: Access) -> Self {
        let access = match access {
            Access::ReadOnly => "ro",
            Access::ReadWrite => "rw",
        };
        let options = ["rbind", "nosuid", "nodev", access].map(str::to_owned).to_vec();
        let mount = mount(place.as_ref(), "bind", host.as_ref(), options);
        self.defaults.mounts.push(mount);
        self
    }

    /// Gives it an empty folder in memory, of at most `bytes`.
    #[must_use]
    pub fn scratch(mut self, place: impl AsRef<Path>, bytes: u64) -> Self {
        let options = vec!["nosuid".into(), "nodev".into(), "mode=1777".into(), format!("size={bytes}")];
        self.defaults.mounts.push(mount(place.as_ref(), "tmpfs", Path::new("tmpfs"), options));
        self
    }

    /// Sets `NAME=value`. Nothing of the caller's environment goes along.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.defaults.env.push(format!("{name}={value}"));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, place: impl Into<PathBuf>) -> Self {
        self.defaults.cwd = place.into();
        self
    }

    /// Runs as `user[:group]`, by name in the root filesystem's accounts or by number; root of the sandbox otherwise.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Limits memory to `bytes`, and swap to nothing more.
    #[must_use]
    pub fn memory(mut self, bytes: i64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Limits CPU time to that of so many processors, such as 1.5.
    #[must_use]
    pub fn cpus(mut self, count: f64) -> Self {
        self.cpus = Some(count);
        self
    }

    /// Limits how many processes and threads there are at once.
    #[must_use]
    pub fn processes(mut self, count: i64) -> Self {
        self.processes = Some(count);
        self
    }

    /// Starts a program and returns once it has been executed.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left then.
    pub fn spawn<S: AsRef<str>>(&self, command: &[S], stdio: Stdio) -> Result<Sandboxed, SpawnError> {
        let invalid = |error: oci_spec::OciSpecError| SpawnError::Invalid(error.to_string());
        let spec = spec_default(Defaults {
            args: command.iter().map(|word| word.as_ref().to_owned()).collect(),
            capabilities: self.policy.capabilities,
            no_new_privileges: self.policy.no_new_privileges,
            network: self.policy.network.clone(),
            terminal: matches!(stdio, Stdio::Terminal { .. }),
            resources: self.resources().map_err(invalid)?,
            ..self.defaults.clone()
        })
        .map_err(invalid)?;
        let running = spawn(Launch {
            user: self.user.as_deref(),
            stdio,
            cgroup: Some(unique_name()?),
            seccomp: self.policy.seccomp.clone(),
            landlock: self.policy.landlock.clone(),
            orphan: Orphan::IsKilled,
            ..Launch::new(&spec, Root::Path(self.root.clone()))
        })?;
        Ok(Sandboxed { running, spec, user: self.user.clone(), policy: self.policy.clone() })
    }

    fn resources(&self) -> Result<LinuxResources, oci_spec::OciSpecError> {
        let mut resources = LinuxResourcesBuilder::default();
        if let Some(bytes) = self.memory {
            resources = resources.memory(LinuxMemoryBuilder::default().limit(bytes).swap(bytes).build()?);
        }
        if let Some(count) = self.cpus {
            // Fractions of a microsecond are nothing to a scheduler.
            #[expect(clippy::cast_possible_truncation, reason = "saturates, and the kernel refuses what is too much")]
            let quota = (count * PERIOD as f64) as i64;
            resources = resources.cpu(LinuxCpuBuilder::default().quota(quota).period(PERIOD).build()?);
        }
        if let Some(count) = self.processes {
            resources = resources.pids(LinuxPidsBuilder::default().limit(count).build()?);
        }
        resources.build()
    }
}

/// A program in its sandbox. Dropped, it is killed, with everything that it has started.
#[derive(Debug)]
pub struct Sandboxed {
    running: Running,
    spec: Spec,
    user: Option<String>,
    policy: Policy,
}

impl Sandboxed {
    /// Returns the first process.
    pub fn process(&self) -> &Running {
        &self.running
    }

    /// Waits for its end, and ends what it has left behind.
    ///
    /// # Errors
    /// The errno of `waitid`.
    pub fn wait(&self) -> std::io::Result<ExitStatus> {
        self.running.wait()
    }

    /// Waits at most `timeout`; `None` when it goes on.
    ///
    /// # Errors
    /// The errno of `waitid`.
    pub fn wait_timeout(&self, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
        self.running.wait_timeout(timeout)
    }

    /// Kills it, with everything that it has started.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn kill(&self) -> std::io::Result<()> {
        self.running.signal(libc::SIGKILL)
    }

    /// Tells what is used now, until the end has been waited for.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.running.cgroup().map(crate::cgroup::Cgroup::usage).unwrap_or_default()
    }

    /// Starts another program in the same sandbox, under the same policy.
    ///
    /// # Errors
    /// [`SpawnError`].
    pub fn exec<S: AsRef<str>>(&self, command: &[S], stdio: Stdio) -> Result<Running, SpawnError> {
        let mut spec = self.spec.clone();
        if let Some(process) = spec.process_mut() {
            process.set_args(Some(command.iter().map(|word| word.as_ref().to_owned()).collect()));
            process.set_terminal(Some(matches!(stdio, Stdio::Terminal { .. })));
        }
        exec(Exec {
            spec: &spec,
            init: &self.running,
            user: self.user.as_deref(),
            groups: &[],
            stdio,
            seccomp: self.policy.seccomp.clone(),
            landlock: self.policy.landlock.clone(),
            listener: Listener::Agent,
            identity: Identity::default(),
            inherited: Inherited::default(),
            cgroup: None,
        })
    }
}

impl Drop for Sandboxed {
    fn drop(&mut self) {
        // Both fail only for what has ended and been waited for.
        let _ = self.kill();
        let _ = self.wait();
    }
}

fn mount(place: &Path, kind: &str, source: &Path, options: Vec<String>) -> Mount {
    let built = MountBuilder::default().destination(place).typ(kind).source(source).options(options).build();
    built.expect("a builder that was given every field has all it needs")
}

/// A cgroup that nobody else in this process has.
fn unique_name() -> Result<CgroupName, SpawnError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(CgroupName::new(&format!("strata-sandbox/{}-{number}", std::process::id()))?)
}

/// Of the CPU quota, in microseconds.
const PERIOD: u64 = 100_000;
