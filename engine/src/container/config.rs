//! What a container was created with. Never changes afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strata_imagestore::Timestamp;

use super::{ContainerId, ContainerName};
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
    /// Labels of the image and of the command line.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the process to end.
    pub stop_signal: String,
    /// A terminal is attached.
    pub tty: bool,
    /// Standard input stays open.
    pub open_stdin: bool,
    /// The container is removed when its process ends.
    pub auto_remove: bool,
    /// The root cannot be written.
    pub read_only: bool,
    /// Folders of the host and memory filesystems.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Resource limits.
    #[serde(default)]
    pub limits: Limits,
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
    /// The network.
    #[serde(default)]
    pub network: Network,
    /// The user namespace.
    #[serde(default)]
    pub user_namespace: UserNamespace,
    /// The first id on the host of a user namespace of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_base: Option<u32>,
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
    /// How readily the kernel kills it when memory is short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score: Option<i32>,
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
    /// Billionths of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// Relative weight of CPU time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// The CPUs it may run on, as a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
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

/// The network of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Its own, with the loopback interface only.
    #[default]
    None,
    /// The host's.
    Host,
}

impl std::fmt::Display for Network {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Network::None => "none",
            Network::Host => "host",
        })
    }
}

/// The user namespace of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserNamespace {
    /// The one strata runs in.
    #[default]
    Host,
    /// Its own, with ids that mean nothing on the host.
    Auto,
}
