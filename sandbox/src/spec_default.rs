//! The spec of an ordinary Docker container, and the switches that the command line has for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDevice, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResources, Mount, MountBuilder, PosixRlimit, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::capabilities::CapabilitySet;
use crate::cgroup::docker_device_rules;
use crate::userns::IdMaps;

/// What distinguishes one container from the ordinary one.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`; `PATH` is added when it is missing, as in Docker.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Host name; the network `host` keeps the host's when this is absent.
    pub hostname: Option<String>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Whose network the container sees; one of its own has a loopback interface alone.
    pub network: Namespace,
    /// Whose processes it sees.
    pub pid: Namespace,
    /// With whom it shares System V objects and message queues. There is no `/dev/shm` and no `/dev/mqueue` where that is
    /// not [`Namespace::Own`], but for mounts of the caller's.
    pub ipc: Namespace,
    /// Whose host name it has; its own is only set where that is [`Namespace::Own`].
    pub uts: Namespace,
    /// From where on it sees cgroups.
    pub cgroup: Namespace,
    /// Which users and groups there are.
    pub user_namespace: UserNamespace,
    /// Whether the root is mounted read-only.
    pub read_only_root: bool,
    /// All capability sets but the inheritable and ambient ones, which stay empty.
    pub capabilities: CapabilitySet,
    /// All capabilities, no masks, writable `/sys` and cgroups, no device list. The filter is the caller's to leave out.
    pub privileged: bool,
    /// `--security-opt no-new-privileges`.
    pub no_new_privileges: bool,
    /// Paths that are hidden beside [`MASKED_PATHS`].
    pub mask: Vec<String>,
    /// Masked and read-only paths that are left as they are; `ALL` for all of them.
    pub unmask: Vec<String>,
    /// Only processes of one's own are seen below `/proc`, and nothing else of the kernel.
    pub private_proc: bool,
    /// Limits; device rules are added.
    pub resources: LinuxResources,
    /// Further mounts, after the ordinary ones.
    pub mounts: Vec<Mount>,
    /// Further devices.
    pub devices: Vec<LinuxDevice>,
    /// `--ulimit`.
    pub rlimits: Vec<PosixRlimit>,
    /// `--sysctl`.
    pub sysctls: HashMap<String, String>,
    /// `--shm-size` in bytes.
    pub shm_size: u64,
    /// `--oom-score-adj`.
    pub oom_score: Option<i32>,
}

/// Which user namespace a container is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UserNamespace {
    /// That of the caller.
    #[default]
    Callers,
    /// One of its own with these ids.
    Own(IdMaps),
    /// That of a namespace file, such as another container's `/proc/PID/ns/user`.
    Path(PathBuf),
}

/// Which namespace of a kind a container is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Namespace {
    /// One of its own.
    #[default]
    Own,
    /// That of the caller.
    Callers,
    /// That of a namespace file, such as another container's `/proc/PID/ns/net`.
    Path(PathBuf),
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            hostname: None,
            terminal: false,
            network: Namespace::Own,
            pid: Namespace::Own,
            ipc: Namespace::Own,
            uts: Namespace::Own,
            cgroup: Namespace::Own,
            user_namespace: UserNamespace::Callers,
            read_only_root: false,
            capabilities: CapabilitySet::DOCKER,
            privileged: false,
            no_new_privileges: false,
            mask: Vec::new(),
            unmask: Vec::new(),
            private_proc: false,
            resources: LinuxResources::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            rlimits: Vec::new(),
            sysctls: HashMap::new(),
            shm_size: 64 << 20,
            oom_score: None,
        }
    }
}

/// Builds the spec.
///
/// # Errors
/// [`OciSpecError`] from the spec's builders, for values that the spec's types refuse.
pub fn spec_default(defaults: Defaults) -> Result<Spec, OciSpecError> {
    let namespaces = namespaces(&defaults)?;
    let capabilities = if defaults.privileged { CapabilitySet::ALL } else { defaults.capabilities };
    let sets = LinuxCapabilitiesBuilder::default()
        .bounding(capabilities.to_oci())
        .effective(capabilities.to_oci())
        .permitted(capabilities.to_oci())
        .inheritable(CapabilitySet::EMPTY.to_oci())
        .ambient(CapabilitySet::EMPTY.to_oci())
        .build()?;
    let mut env = defaults.env;
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.insert(0, format!("PATH={DEFAULT_PATH}"));
    }
    if defaults.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    if let Some(hostname) = &defaults.hostname
        && !env.iter().any(|entry| entry.starts_with("HOSTNAME="))
    {
        env.push(format!("HOSTNAME={hostname}"));
    }
    let mut process = ProcessBuilder::default()
        .terminal(defaults.terminal)
        .user(UserBuilder::default().uid(0_u32).gid(0_u32).build()?)
        .args(defaults.args)
        .env(env)
        .cwd(defaults.cwd)
        .capabilities(sets)
        .no_new_privileges(defaults.no_new_privileges)
        .rlimits(defaults.rlimits)
        .build()?;
    process.set_oom_score_adj(defaults.oom_score);

    let mut mounts = ordinary_mounts(defaults.shm_size, defaults.privileged)?;
    if defaults.private_proc
        && let Some(proc) = mounts.iter_mut().find(|mount| mount.destination() == Path::new("/proc"))
    {
        let mut options = proc.options().clone().unwrap_or_default();
        options.extend(["subset=pid", "hidepid=ptraceable"].map(str::to_owned));
        proc.set_options(Some(options));
    }
    if defaults.ipc != Namespace::Own {
        mounts.retain(|mount| !["/dev/shm", "/dev/mqueue"].iter().any(|path| mount.destination() == Path::new(path)));
    }
    // A mount of the user's own on one of these places replaces it.
    mounts.retain(|mount| !defaults.mounts.iter().any(|own| own.destination() == mount.destination()));
    mounts.extend(defaults.mounts);

    let mut resources = defaults.resources;
    let rules = if defaults.privileged { Vec::new() } else { docker_device_rules() };
    let own_rules = defaults.devices.iter().map(oci_spec::runtime::LinuxDeviceCgroup::from);
    let listed = resources.devices().clone().unwrap_or_default();
    resources.set_devices(Some(rules.into_iter().chain(own_rules).chain(listed).collect()));

    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources)
        .devices(defaults.devices)
        .sysctl(defaults.sysctls);
    if let UserNamespace::Own(maps) = &defaults.user_namespace {
        let (uids, gids) = maps.to_oci();
        linux = linux.uid_mappings(uids).gid_mappings(gids);
    }
    let stays = |path: &&str| !defaults.unmask.iter().any(|unmasked| unmasked == "ALL" || covers(unmasked, path));
    let masks = |paths: &[&str]| paths.iter().copied().filter(stays).map(str::to_owned).collect::<Vec<_>>();
    linux = if defaults.privileged {
        linux.masked_paths(defaults.mask).readonly_paths(Vec::new())
    } else {
        let mut masked = masks(&MASKED_PATHS);
        masked.extend(defaults.mask);
        linux.masked_paths(masked).readonly_paths(masks(&READ_ONLY_PATHS))
    };

    // The path is not used: the root comes as a descriptor or path of its own.
    let root = RootBuilder::default().path("rootfs").readonly(defaults.read_only_root).build()?;
    let spec = SpecBuilder::default().root(root).process(process).mounts(mounts).linux(linux.build()?);
    // A name needs a namespace to be the name of.
    let hostname = defaults.hostname.filter(|_| defaults.uts == Namespace::Own);
    spec.hostname(hostname.unwrap_or_default()).build()
}

/// Tells whether a path of `unmask` is about a masked one: itself, or all of a folder as `/proc/*`.
fn covers(unmasked: &str, masked: &str) -> bool {
    match unmasked.strip_suffix("/*") {
        Some(folder) => masked.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')),
        None => unmasked.trim_end_matches('/') == masked,
    }
}

fn ordinary_mounts(shm_size: u64, privileged: bool) -> Result<Vec<Mount>, OciSpecError> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(source)
            .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
            .build()
    };
    let access = if privileged { "rw" } else { "ro" };
    let size = format!("size={shm_size}");
    Ok(vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access])?,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", access])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size])?,
    ])
}

fn namespaces(defaults: &Defaults) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let builder = |kind| LinuxNamespaceBuilder::default().typ(kind);
    let mut all = vec![builder(Mount).build()?];
    for (kind, whose) in [
        (Pid, &defaults.pid),
        (Uts, &defaults.uts),
        (Ipc, &defaults.ipc),
        (Cgroup, &defaults.cgroup),
        (Network, &defaults.network),
    ] {
        match whose {
            Namespace::Own => all.push(builder(kind).build()?),
            Namespace::Callers => {}
            Namespace::Path(path) => all.push(builder(kind).path(path.clone()).build()?),
        }
    }
    match &defaults.user_namespace {
        UserNamespace::Callers => {}
        UserNamespace::Own(_) => all.push(builder(User).build()?),
        UserNamespace::Path(path) => all.push(builder(User).path(path.clone()).build()?),
    }
    Ok(all)
}

/// What Docker gives a container whose image says nothing.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Shows of the host what no container needs to see.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// May be seen but not written.
pub const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_mount_replaces_the_ordinary_one() {
        let own = MountBuilder::default().destination("/dev/shm").source("/tmp").typ("bind").build().unwrap();
        let spec = spec_default(Defaults { mounts: vec![own], ..Defaults::default() }).unwrap();
        let shm: Vec<_> = spec.mounts().iter().flatten().filter(|mount| mount.destination().ends_with("shm")).collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(shm[0].typ().as_deref(), Some("bind"));
    }

    #[test]
    fn paths_are_masked_and_unmasked() {
        let masked = |mask: &[&str], unmask: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
            let spec = spec_default(Defaults { mask: own(mask), unmask: own(unmask), ..Defaults::default() }).unwrap();
            let linux = spec.linux().clone().unwrap();
            let lists = [linux.masked_paths(), linux.readonly_paths()];
            lists.map(|list| list.clone().unwrap_or_default())
        };
        assert_eq!(
            masked(&[], &[]),
            [MASKED_PATHS.map(str::to_owned).to_vec(), READ_ONLY_PATHS.map(str::to_owned).to_vec()]
        );
        assert_eq!(masked(&[], &["ALL"]), [Vec::<String>::new(), Vec::new()]);
        assert_eq!(masked(&["/secret"], &["ALL"])[0], ["/secret"]);
        assert_eq!(masked(&[], &["/proc/*"])[0], ["/sys/devices/virtual/powercap", "/sys/firmware"]);
        assert!(
            !masked(&[], &["/proc/kcore", "/proc/sys/"])
                .concat()
                .iter()
                .any(|path| path == "/proc/kcore" || path == "/proc/sys")
        );
    }

    #[test]
    fn the_host_network_is_no_namespace() {
        let kinds = |network| {
            let spec = spec_default(Defaults { network, ..Defaults::default() }).unwrap();
            let linux = spec.linux().clone().unwrap();
            linux.namespaces().iter().flatten().filter(|entry| entry.typ() == LinuxNamespaceType::Network).count()
        };
        assert_eq!((kinds(Namespace::Own), kinds(Namespace::Callers)), (1, 0));
    }

    #[test]
    fn the_path_is_there_and_inheritable_is_empty() {
        let spec = spec_default(Defaults::default()).unwrap();
        let process = spec.process().clone().unwrap();
        assert!(process.env().iter().flatten().any(|entry| entry.starts_with("PATH=/usr/local/sbin")));
        let sets = process.capabilities().clone().unwrap();
        assert!(sets.inheritable().iter().flatten().next().is_none());
        assert_eq!(CapabilitySet::from_oci(sets.bounding().as_ref()), CapabilitySet::DOCKER);
    }
}
