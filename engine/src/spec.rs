//! A container's configuration in the words of the OCI runtime specification.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount as OciMount,
    MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Spec,
};
use strata_sandbox::audit::Audit;
use strata_sandbox::capabilities::{CapabilitySet, UnknownCapability};
use strata_sandbox::policy::{AuditError, Policy, PolicyError};
use strata_sandbox::seccomp::{Profile, ProfileError};
use strata_sandbox::spec_default::{self, Defaults, UserNamespace, spec_default};
use strata_sandbox::{Landlock, Seccomp};

use crate::container::{Bind, Config, Limits, Mount, Network, Rlimit, SeccompChoice, Tmpfs};
use crate::creation::process_environment;

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
    /// A folder that `-v` makes.
    #[error("create the bind source {path:?}")]
    BindSource {
        /// The folder.
        path: PathBuf,
        /// Why it cannot be made.
        source: std::io::Error,
    },
}

/// Translates a configuration, with further mounts of our own, for a start in a user namespace. Makes the folders that `-v` makes.
pub(crate) fn build(config: &Config, own: &[Mount], user_namespace: UserNamespace) -> Result<Spec, SpecError> {
    let owners_differ = config.own_ids.as_ref().is_some_and(|ids| !ids.are_unchanged());
    let mut mounts = Vec::with_capacity(own.len() + config.mounts.len());
    for mount in own.iter().chain(&config.mounts) {
        mounts.push(match mount {
            Mount::Bind(bind) => bind_mount(bind, owners_differ)?,
            Mount::Tmpfs(tmpfs) => tmpfs_mount(tmpfs)?,
        });
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
        network: match config.network {
            Network::None => spec_default::Network::None,
            Network::Host => spec_default::Network::Host,
        },
        user_namespace,
        read_only_root: config.read_only,
        capabilities: capabilities.adjusted(&config.cap_add, &config.cap_drop)?,
        privileged: config.privileged,
        // A policy is no wall for a program that can become another user.
        no_new_privileges: config.no_new_privileges || security.hardened || security.policy.is_some(),
        mask: security.mask.clone(),
        unmask: security.unmask.clone(),
        private_proc: security.hardened,
        resources: resources(&config.limits)?,
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
    Ok(spec)
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
    strata_sandbox::userns::is_initial() && rustix::fs::statfs(path).is_ok_and(|found| KINDS.contains(&found.f_type))
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

/// Translates limits.
pub(crate) fn resources(limits: &Limits) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResourcesBuilder::default();
    if let Some(limit) = limits.memory {
        // As Docker: without a word about swap, as much swap as memory.
        let swap = limits.memory_and_swap.unwrap_or(limit.saturating_mul(2));
        resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).swap(swap).build()?);
    }
    if limits.nano_cpus.is_some() || limits.cpu_shares.is_some() || limits.cpuset.is_some() {
        let mut cpu = LinuxCpuBuilder::default();
        if let Some(nano) = limits.nano_cpus {
            const PERIOD: u64 = 100_000;
            let quota = i64::try_from(nano.saturating_mul(PERIOD) / 1_000_000_000).unwrap_or(i64::MAX);
            cpu = cpu.period(PERIOD).quota(quota);
        }
        if let Some(shares) = limits.cpu_shares {
            cpu = cpu.shares(shares);
        }
        if let Some(list) = &limits.cpuset {
            cpu = cpu.cpus(list);
        }
        resources = resources.cpu(cpu.build()?);
    }
    if let Some(pids) = limits.pids {
        resources = resources.pids(LinuxPidsBuilder::default().limit(pids).build()?);
    }
    Ok(resources.build()?)
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
