//! What a container was created with. Never changes afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strata_imagestore::Timestamp;
use strata_sandbox::cgroup::CgroupManager;

use super::own_ids::{self, OwnIds};
use super::{ContainerId, ContainerName, Device, DeviceRule, NameResolution, Namespace, Namespaces, UserNamespace};
use crate::timestamp;

/// The form of `config.json` that this version writes.
pub(crate) const VERSION: u32 = 1;

/// Everything a container was created with, image configuration already applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The form of the file.
    pub version: u32,
    /// The container.
    pub id: ContainerId,
    /// Its name.
    pub name: ContainerName,
    /// When it was created.
    #[serde(with = "timestamp::text")]
    pub created: Timestamp,
    /// The image, `sha256:` and 64 digits.
    pub image: String,
    /// The image as the user named it.
    pub image_reference: String,
    /// The program and its arguments; empty for a container that is only a writable folder.
    pub command: Vec<String>,
    /// How many of `command` come from the entrypoint.
    pub entrypoint_length: usize,
    /// The environment, `NAME=value`.
    pub environment: Vec<String>,
    /// The user as written: `name`, `uid`, `user:group`; empty for the superuser.
    pub user: String,
    /// Where the process starts.
    pub working_directory: String,
    /// The host name inside.
    pub hostname: String,
    /// The NIS domain name inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// What its files say of other hosts.
    #[serde(default, skip_serializing_if = "NameResolution::is_default")]
    pub names: NameResolution,
    /// Labels of the image and of the command line.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the process to end.
    pub stop_signal: String,
    /// A terminal is attached.
    pub tty: bool,
    /// Standard input stays open.
    pub open_stdin: bool,
    /// Standard input ends with that of the command the container was started for.
    #[serde(default)]
    pub stdin_once: bool,
    /// The container is removed when its process ends.
    pub auto_remove: bool,
    /// The root cannot be written.
    pub read_only: bool,
    /// Folders of the host and memory filesystems.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Rules about devices it may use beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_rules: Vec<DeviceRule>,
    /// Resource limits.
    #[serde(default)]
    pub limits: Limits,
    /// Its processes wait for memory where the kernel would end one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_kill_disable: bool,
    /// Capabilities added to Docker's default set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities taken from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// The system call filter.
    #[serde(default)]
    pub seccomp: SeccompChoice,
    /// Programs cannot gain privileges.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// The other walls.
    #[serde(default, skip_serializing_if = "Security::is_default")]
    pub security: Security,
    /// The network.
    #[serde(default)]
    pub network: Namespace,
    /// The other namespaces, but that of users.
    #[serde(default, skip_serializing_if = "Namespaces::is_default")]
    pub namespaces: Namespaces,
    /// The user namespace.
    #[serde(default)]
    pub user_namespace: UserNamespace,
    /// The ids of a user namespace of its own.
    #[serde(default, alias = "id_base", skip_serializing_if = "Option::is_none", deserialize_with = "own_ids::read")]
    pub own_ids: Option<OwnIds>,
    /// Supplementary groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Every capability, no masks, no filter, every device.
    #[serde(default)]
    pub privileged: bool,
    /// Limits of the process, as of `setrlimit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Kernel parameters of its namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Bytes of `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Bytes that the writable layer may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_size: Option<u64>,
    /// How readily the kernel kills it when memory is short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score: Option<i32>,
    /// Whether it is started again when it has ended.
    #[serde(default, skip_serializing_if = "RestartPolicy::is_no")]
    pub restart: RestartPolicy,
    /// Seconds between the signal that asks it to stop and the one that ends it; -1 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Where what it writes is kept.
    #[serde(default)]
    pub log: LogConfig,
    /// Who makes its cgroup.
    #[serde(default, skip_serializing_if = "CgroupManager::is_cgroupfs")]
    pub cgroup_manager: CgroupManager,
}

impl Config {
    /// The containers whose namespaces it joins.
    pub(crate) fn joined(&self) -> impl Iterator<Item = &str> {
        let user = match &self.user_namespace {
            UserNamespace::Container(id) => Some(id.as_str()),
            _ => None,
        };
        user.into_iter().chain(self.namespaces.pid.joined()).chain(self.network.joined())
    }

    /// Docker's word for the network.
    pub fn network_name(&self) -> String {
        self.network.clone().into()
    }
}

/// When a container that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Always; also by `system recover` when the user had stopped it.
    Always,
    /// Always, unless the user stopped it.
    UnlessStopped,
    /// When it failed.
    OnFailure {
        /// So many times at most; zero for any number.
        #[serde(default)]
        maximum: u32,
    },
}

/// A text that is no restart policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRestartPolicy {
    /// The word is unknown. The text is Docker's.
    #[error("invalid restart policy '{0}'")]
    Name(String),
    /// Only `on-failure` counts. The text is Docker's.
    #[error("maximum retry count cannot be used with restart policy '{0}'")]
    Count(String),
    /// The count is no number. The text is Docker's.
    #[error("invalid restart policy format: maximum retry count must be an integer")]
    Number,
}

impl RestartPolicy {
    /// Docker's word for it.
    pub fn name(self) -> &'static str {
        match self {
            RestartPolicy::No => "no",
            RestartPolicy::Always => "always",
            RestartPolicy::UnlessStopped => "unless-stopped",
            RestartPolicy::OnFailure { .. } => "on-failure",
        }
    }

    /// How often at most; zero for any number.
    pub fn maximum(self) -> u32 {
        match self {
            RestartPolicy::OnFailure { maximum } => maximum,
            _ => 0,
        }
    }

    /// Whether a process that ended by itself with `code`, after `restarts` restarts, is started again.
    pub(crate) fn wants_restart(self, code: i32, restarts: u32) -> bool {
        match self {
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure { maximum } => code != 0 && (maximum == 0 || restarts < maximum),
        }
    }

    pub(crate) fn is_no(&self) -> bool {
        *self == RestartPolicy::No
    }
}

impl std::str::FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(text: &str) -> Result<RestartPolicy, InvalidRestartPolicy> {
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let plain = match name {
            "" | "no" => RestartPolicy::No,
            "always" => RestartPolicy::Always,
            "unless-stopped" => RestartPolicy::UnlessStopped,
            "on-failure" => {
                let maximum = count.map_or(Ok(0), str::parse).map_err(|_| InvalidRestartPolicy::Number)?;
                return Ok(RestartPolicy::OnFailure { maximum });
            }
            _ => return Err(InvalidRestartPolicy::Name(name.to_owned())),
        };
        match count {
            Some(count) if count.parse::<u32>().is_err() => Err(InvalidRestartPolicy::Number),
            Some(_) => Err(InvalidRestartPolicy::Count(name.to_owned())),
            None => Ok(plain),
        }
    }
}

/// How a container's output is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// In which form.
    #[serde(default)]
    pub driver: LogDriver,
    /// Bytes after which a new file is begun; zero for one file without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// So many files at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_file: Option<u32>,
}

/// The form of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// Our own, bounded.
    #[default]
    Local,
    /// Docker's JSON lines.
    JsonFile,
    /// Nothing is kept.
    None,
}

impl LogDriver {
    /// Docker's word for it.
    pub fn name(self) -> &'static str {
        match self {
            LogDriver::Local => "local",
            LogDriver::JsonFile => "json-file",
            LogDriver::None => "none",
        }
    }
}

impl LogConfig {
    /// The bytes after which a new file is begun.
    pub(crate) fn size_limit(&self) -> u64 {
        let default = match self.driver {
            LogDriver::Local => 20 << 20,
            LogDriver::JsonFile | LogDriver::None => u64::MAX,
        };
        self.max_size.filter(|size| *size > 0).unwrap_or(default)
    }

    /// How many files are kept.
    pub(crate) fn file_limit(&self) -> u32 {
        let default = match self.driver {
            LogDriver::Local => 5,
            LogDriver::JsonFile | LogDriver::None => 1,
        };
        self.max_file.unwrap_or(default).max(1)
    }
}

/// A limit of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Its name, such as `nofile`.
    pub name: String,
    /// The limit in force.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Mount {
    /// A file or folder of the host.
    Bind(Bind),
    /// A filesystem in memory.
    Tmpfs(Tmpfs),
}

/// A file or folder of the host, shown in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host, absolute.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
    /// It cannot be written through the container.
    #[serde(default)]
    pub read_only: bool,
    /// A folder is made at `source` when nothing is there, as `-v` does and `--mount` does not.
    #[serde(default)]
    pub create_source: bool,
    /// The propagation, such as `rslave`; empty for the default.
    #[serde(default)]
    pub propagation: String,
}

/// A filesystem in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// In the container, absolute.
    pub target: String,
    /// Mount options, such as `size=64m` and `mode=1777`.
    #[serde(default)]
    pub options: Vec<String>,
}

impl Mount {
    /// Where it is seen in the container.
    pub fn target(&self) -> &str {
        match self {
            Mount::Bind(bind) => &bind.target,
            Mount::Tmpfs(tmpfs) => &tmpfs.target,
        }
    }
}

/// Resource limits; what is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; -1 for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_and_swap: Option<i64>,
    /// Bytes of memory that it is left when memory is short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<i64>,
    /// How readily its memory is swapped out, from 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
    /// Billionths of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// Microseconds of CPU time in each period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<i64>,
    /// Microseconds of a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// Relative weight of CPU time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// The CPUs it may run on, as a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// The memory nodes it may use, as a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// Relative weight of reads and writes of disks, from 10 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blkio_weight: Option<u16>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
}

/// The system call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeccompChoice {
    /// Docker's default profile.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// The profile with this text.
    Profile(String),
}

/// What differs from Docker's walls around an ordinary container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Stricter in everything that most programs can do without.
    pub hardened: bool,
    /// Paths that are hidden too.
    pub mask: Vec<String>,
    /// Masked and read-only paths that are left as they are; `ALL` for all of them.
    pub unmask: Vec<String>,
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// The text of a policy about files, ports and system calls.
    pub policy: Option<String>,
    /// The policy is not enforced: what it would refuse is told to whoever is attached at the end, else to the log.
    pub audit: bool,
    /// The options as they were written, for those who ask.
    pub options: Vec<String>,
}

impl Security {
    /// Tells whether nothing was asked for.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies_are_docker_s() {
        for (text, expected) in [
            ("", RestartPolicy::No),
            ("no", RestartPolicy::No),
            ("always", RestartPolicy::Always),
            ("unless-stopped", RestartPolicy::UnlessStopped),
            ("on-failure", RestartPolicy::OnFailure { maximum: 0 }),
            ("on-failure:3", RestartPolicy::OnFailure { maximum: 3 }),
        ] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy, expected, "{text}");
            let written = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<RestartPolicy>(&written).unwrap(), policy, "{written}");
        }
        for text in ["sometimes", "always:3", "on-failure:x", "on-failure:-1", "always:x"] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn who_is_started_again() {
        let three = RestartPolicy::OnFailure { maximum: 3 };
        for (policy, code, restarts, expected) in [
            (RestartPolicy::No, 1, 0, false),
            (RestartPolicy::Always, 0, 100, true),
            (RestartPolicy::UnlessStopped, 0, 100, true),
            (RestartPolicy::OnFailure { maximum: 0 }, 0, 0, false),
            (RestartPolicy::OnFailure { maximum: 0 }, 1, 100, true),
            (three, 1, 2, true),
            (three, 1, 3, false),
        ] {
            assert_eq!(policy.wants_restart(code, restarts), expected, "{policy:?} {code} {restarts}");
        }
    }
}
