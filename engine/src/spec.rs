//! A container's configuration in the words of the OCI runtime specification.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPidsBuilder, LinuxResources, Mount as OciMount,
    MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Spec,
};
use strata_sandbox::audit::Audit;
use strata_sandbox::capabilities::{CapabilitySet, UnknownCapability};
use strata_sandbox::policy::{AuditError, Policy, PolicyError};
use strata_sandbox::seccomp::{Profile, ProfileError};
use strata_sandbox::spec_default::{self, Defaults, spec_default};
use strata_sandbox::{Landlock, Seccomp, userns};

use crate::container::{Bind, Config, Limits, Mount, Rlimit, SeccompChoice, Tmpfs};
use crate::creation::process_environment;
use crate::device_nodes::{self, DeviceError, Found};
use crate::namespaces::InSpec;

/// A configuration that cannot be translated.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A capability that is none.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// A profile that is none.
    #[error("decoding seccomp profile failed")]
    Seccomp(#[from] ProfileError),
    /// A policy that is none.
    #[error("invalid policy")]
    Policy(#[from] PolicyError),
    /// A policy that cannot be audited.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A value that the specification cannot hold.
    #[error("invalid container configuration")]
    Value(#[from] OciSpecError),
    /// A device that is none.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A folder that `-v` makes.
    #[error("create the bind source {path:?}")]
    BindSource {
        /// The folder.
        path: PathBuf,
        /// Why it cannot be made.
        source: std::io::Error,
    },
}

/// Translates a configuration, with further mounts of our own, for a start in these namespaces. Makes the folders that `-v` makes.
pub(crate) fn build(config: &Config, own: &[Mount], namespaces: InSpec) -> Result<Spec, SpecError> {
    let owners_differ = config.own_ids.as_ref().is_some_and(|ids| !ids.are_unchanged());
    let mut mounts = Vec::with_capacity(own.len() + config.mounts.len());
    let shared = shared_folders(config);
    for mount in own.iter().chain(&shared).chain(&config.mounts) {
        mounts.push(match mount {
            Mount::Bind(bind) => bind_mount(bind, owners_differ)?,
            Mount::Tmpfs(tmpfs) => tmpfs_mount(tmpfs)?,
        });
    }
    // Nodes are made by root of the machine alone; for others the host's are shown.
    let makes_nodes = config.own_ids.is_none() && userns::is_initial();
    let (mut devices, mut rules) = (Vec::new(), Vec::new());
    for Found { host, node, rule } in device_nodes::find(&config.devices)? {
        rules.push(rule);
        match makes_nodes {
            true => devices.push(node),
            false => {
                let bind = MountBuilder::default().typ("bind").source(host).destination(node.path());
                mounts.push(bind.options(["bind".to_owned(), "rprivate".to_owned()]).build()?);
            }
        }
    }
    // What is mounted in a folder must come after what is mounted on it, whatever the order on the command line.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    let rlimits = config.rlimits.iter().map(rlimit).collect::<Result<Vec<_>, _>>()?;
    let security = &config.security;
    let capabilities = match security.hardened {
        true => CapabilitySet::HARDENED,
        false => CapabilitySet::DOCKER,
    };
    let mut spec = spec_default(Defaults {
        args: config.command.clone(),
        env: process_environment(config),
        cwd: PathBuf::from(&config.working_directory),
        hostname: Some(config.hostname.clone()),
        terminal: config.tty,
        network: namespaces.network,
        pid: namespaces.pid,
        ipc: callers_if(config.namespaces.host_ipc),
        uts: callers_if(config.namespaces.host_uts),
        cgroup: callers_if(config.namespaces.host_cgroup),
        user_namespace: namespaces.user,
        read_only_root: config.read_only,
        capabilities: capabilities.adjusted(&config.cap_add, &config.cap_drop)?,
        privileged: config.privileged,
        // A policy is no wall for a program that can become another user.
        no_new_privileges: config.no_new_privileges || security.hardened || security.policy.is_some(),
        mask: security.mask.clone(),
        unmask: security.unmask.clone(),
        private_proc: security.hardened,
        resources: all_resources(config, rules)?,
        mounts,
        rlimits,
        sysctls: config.sysctls.clone().into_iter().collect(),
        shm_size: config.shm_size.unwrap_or(Defaults::default().shm_size),
        oom_score: config.oom_score,
        ..Defaults::default()
    })?;
    if let Some(profile) = &security.apparmor
        && let Some(process) = spec.process_mut()
    {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_devices(Some(devices));
    }
    spec.set_domainname(config.domainname.clone());
    Ok(spec)
}

fn callers_if(callers: bool) -> spec_default::Namespace {
    if callers { spec_default::Namespace::Callers } else { spec_default::Namespace::Own }
}

/// The system call filter that was chosen.
pub(crate) fn seccomp(config: &Config) -> Result<Seccomp, SpecError> {
    let chosen = match &config.seccomp {
        SeccompChoice::Default if config.privileged => Seccomp::Unconfined,
        SeccompChoice::Default if config.security.hardened => Seccomp::Profile(Profile::hardened()),
        SeccompChoice::Default => Seccomp::Default,
        SeccompChoice::Unconfined => Seccomp::Unconfined,
        SeccompChoice::Profile(text) => Seccomp::Profile(Profile::from_json(text.as_bytes())?),
    };
    let audits = config.security.audit;
    let Some(policy) = policy(config)?.filter(|policy| audits || policy.syscalls.is_some()) else { return Ok(chosen) };
    let profile = match chosen {
        Seccomp::Profile(profile) => profile,
        Seccomp::Unconfined => Profile::everything(),
        Seccomp::Default | Seccomp::FromSpec => Profile::docker_default().clone(),
    };
    Ok(Seccomp::Profile(if audits { policy.observe(&profile)? } else { policy.restrict(&profile) }))
}

/// The audit that was asked for.
pub(crate) fn audit(config: &Config) -> Result<Option<Audit>, SpecError> {
    Ok(policy(config)?.filter(|_| config.security.audit).map(Audit::new))
}

/// How landlock is to guard the container's processes; `added` for those that are not the first.
pub(crate) fn landlock(config: &Config, added: bool) -> Result<Landlock, SpecError> {
    Ok(match policy(config)?.filter(|_| !config.security.audit) {
        Some(policy) => Landlock::Policy(policy),
        None if config.privileged => Landlock::Off,
        None if config.security.hardened => Landlock::Hardened,
        // A domain of its own would keep it from looking at the container's other processes, which is mostly what one is
        // added for: landlock takes them for strangers.
        None if added => Landlock::Off,
        None => Landlock::Auto,
    })
}

/// Tells whether a text is a policy.
///
/// # Errors
/// [`PolicyError`], with the line.
pub fn check_policy(text: &str) -> Result<(), PolicyError> {
    Policy::parse(text).map(|_| ())
}

fn policy(config: &Config) -> Result<Option<Policy>, SpecError> {
    Ok(config.security.policy.as_deref().map(Policy::parse).transpose()?)
}

/// What a container shares with the host as files once it shares its objects of System V.
fn shared_folders(config: &Config) -> Vec<Mount> {
    let is_wanted = |path: &&str| {
        let is_taken = config.mounts.iter().any(|own| own.target() == *path);
        config.namespaces.host_ipc && !is_taken && Path::new(path).is_dir()
    };
    let bind = |path: &str| {
        Mount::Bind(Bind {
            source: path.into(),
            target: path.to_owned(),
            read_only: false,
            create_source: false,
            propagation: String::new(),
        })
    };
    ["/dev/shm", "/dev/mqueue"].into_iter().filter(is_wanted).map(bind).collect()
}

fn bind_mount(bind: &Bind, own_ids: bool) -> Result<OciMount, SpecError> {
    if bind.create_source {
        create_source(&bind.source)?;
    }
    let propagation = if bind.propagation.is_empty() { "rprivate" } else { &bind.propagation };
    let mut options = vec!["rbind".to_owned(), propagation.to_owned()];
    if bind.read_only {
        options.push("ro".to_owned());
    }
    // Else all files of the volume would be nobody's in a container with ids of its own.
    if own_ids && can_map_owners(&bind.source) {
        options.push("idmap".to_owned());
    }
    Ok(MountBuilder::default().typ("bind").source(&bind.source).destination(&bind.target).options(options).build()?)
}

/// Whether the owners of what lies there can be mapped: on the common filesystems of disks, by the root of the
/// machine (`FS_ALLOW_IDMAP`, `mount_setattr(2)`).
pub(crate) fn can_map_owners(path: &Path) -> bool {
    /// ext4, XFS, Btrfs: the numbers of `statfs(2)`.
    const KINDS: [i64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];
    userns::is_initial() && rustix::fs::statfs(path).is_ok_and(|found| KINDS.contains(&found.f_type))
}

fn create_source(path: &Path) -> Result<(), SpecError> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|source| SpecError::BindSource { path: path.to_owned(), source })
}

fn tmpfs_mount(tmpfs: &Tmpfs) -> Result<OciMount, SpecError> {
    let mut options = ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    options.extend(tmpfs.options.iter().cloned());
    Ok(MountBuilder::default().typ("tmpfs").source("tmpfs").destination(&tmpfs.target).options(options).build()?)
}

fn rlimit(limit: &Rlimit) -> Result<PosixRlimit, OciSpecError> {
    let kind = format!("RLIMIT_{}", limit.name.to_uppercase());
    // A name that is none of the kernel's makes the builder fail.
    let kind: PosixRlimitType = serde_json::from_value(serde_json::Value::from(kind)).map_err(OciSpecError::SerDe)?;
    PosixRlimitBuilder::default().typ(kind).soft(limit.soft).hard(limit.hard).build()
}

/// The limits of a container, and the rules about its devices, of which those of `own` are for nodes it is given.
fn all_resources(config: &Config, own: Vec<LinuxDeviceCgroup>) -> Result<LinuxResources, SpecError> {
    let mut resources = resources(&config.limits)?;
    // One that may use every device needs no list of them, which would leave out all others.
    if !config.privileged {
        let said = config.device_rules.iter().map(device_nodes::rule);
        resources.set_devices(Some(own.into_iter().map(Ok).chain(said).collect::<Result<_, _>>()?));
    }
    if config.oom_kill_disable {
        let mut memory = (*resources.memory()).unwrap_or_default();
        memory.set_disable_oom_killer(Some(true));
        resources.set_memory(Some(memory));
    }
    Ok(resources)
}

/// Translates limits.
pub(crate) fn resources(limits: &Limits) -> Result<LinuxResources, SpecError> {
    let mut memory = LinuxMemory::default();
    memory.set_limit(limits.memory);
    // As Docker: without a word about swap, as much swap as memory.
    memory.set_swap(limits.memory.map(|limit| limits.memory_and_swap.unwrap_or(limit.saturating_mul(2))));
    memory.set_reservation(limits.memory_reservation);
    memory.set_swappiness(limits.swappiness);

    let mut cpu = LinuxCpu::default();
    cpu.set_period(limits.cpu_period).set_quota(limits.cpu_quota).set_shares(limits.cpu_shares);
    if let Some(nano) = limits.nano_cpus {
        const PERIOD: u64 = 100_000;
        let quota = i64::try_from(nano.saturating_mul(PERIOD) / 1_000_000_000).unwrap_or(i64::MAX);
        cpu.set_period(Some(PERIOD)).set_quota(Some(quota));
    }
    cpu.set_cpus(limits.cpuset.clone()).set_mems(limits.cpuset_mems.clone());

    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory).filter(|memory| *memory != LinuxMemory::default()));
    resources.set_cpu(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()));
    if let Some(pids) = limits.pids {
        resources.set_pids(Some(LinuxPidsBuilder::default().limit(pids).build()?));
    }
    if let Some(weight) = limits.blkio_weight {
        resources.set_block_io(Some(LinuxBlockIoBuilder::default().weight(weight).build()?));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_docker_s() {
        let limits =
            Limits { memory: Some(64 << 20), nano_cpus: Some(1_500_000_000), pids: Some(7), ..Limits::default() };
        let built = resources(&limits).unwrap();
        let memory = built.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(128 << 20)));
        let cpu = built.cpu().as_ref().unwrap();
        assert_eq!((cpu.period(), cpu.quota()), (Some(100_000), Some(150_000)));
        assert_eq!(built.pids().unwrap().limit(), 7);

        let unlimited_swap = Limits { memory: Some(1 << 30), memory_and_swap: Some(-1), ..Limits::default() };
        assert_eq!(resources(&unlimited_swap).unwrap().memory().unwrap().swap(), Some(-1));
        let none = resources(&Limits::default()).unwrap();
        assert!(none.memory().is_none() && none.cpu().is_none() && none.pids().is_none());
    }

    #[test]
    fn a_bind_makes_its_source_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let bind = |name: &str, create_source| Bind {
            source: folder.path().join(name),
            target: "/data".to_owned(),
            read_only: true,
            create_source,
            propagation: String::new(),
        };
        let mount = bind_mount(&bind("made/deep", true), false).unwrap();
        assert!(folder.path().join("made/deep").is_dir());
        assert_eq!(mount.options().as_deref(), Some(&["rbind", "rprivate", "ro"].map(str::to_owned)[..]));
        // What is missing is for the sandbox to say, which opens it.
        bind_mount(&bind("absent", false), false).unwrap();
        assert!(!folder.path().join("absent").exists());
    }

    #[test]
    fn the_user_s_words_about_a_tmpfs_come_last() {
        let tmpfs = Tmpfs { target: "/t".to_owned(), options: vec!["exec".to_owned(), "size=1m".to_owned()] };
        let options = tmpfs_mount(&tmpfs).unwrap().options().clone().unwrap();
        assert_eq!(options, ["nosuid", "nodev", "noexec", "exec", "size=1m"]);
    }

    #[test]
    fn process_limits_have_the_kernel_s_names() {
        let limit = |name: &str| Rlimit { name: name.to_owned(), soft: 1, hard: 2 };
        assert_eq!(rlimit(&limit("nofile")).unwrap().typ(), PosixRlimitType::RlimitNofile);
        assert!(rlimit(&limit("nope")).is_err());
    }
}
