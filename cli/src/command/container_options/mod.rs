//! The options that `run` and `create` share.

mod creation;

pub(super) use creation::{creation, environment, limits};

use clap::{ArgAction, Args};
use strata_engine::{ContainerName, Device, DeviceRule, ExtraHost, Platform, RestartPolicy, UserNamespace};

/// How a container is made.
#[derive(Debug, Args)]
pub(crate) struct ContainerOptions {
    /// Remove the container when it exits
    #[arg(long)]
    pub(super) rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Assign a name to the container
    #[arg(long)]
    pub(super) name: Option<ContainerName>,
    /// Set an environment variable; without a value, pass the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<std::path::PathBuf>,
    /// Start in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Run as this user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Join an additional group
    #[arg(long, value_name = "GROUP")]
    pub(super) group_add: Vec<String>,
    /// Show a file or folder of the host in the container
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]")]
    pub(super) volume: Vec<String>,
    /// Attach a filesystem: type=bind|tmpfs,src=...,dst=...
    #[arg(long, value_name = "OPTIONS")]
    pub(super) mount: Vec<String>,
    /// Mount a filesystem in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    pub(super) tmpfs: Vec<String>,
    /// Make the container's root read-only
    #[arg(long)]
    pub(super) read_only: bool,
    /// Set the container's host name
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Set the container's NIS domain name
    #[arg(long, value_name = "NAME")]
    pub(super) domainname: Option<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub(super) add_host: Vec<ExtraHost>,
    /// Ask this server for names
    #[arg(long, value_name = "ADDRESS")]
    pub(super) dns: Vec<std::net::IpAddr>,
    /// Look for short names in this domain; . for none
    #[arg(long, value_name = "DOMAIN")]
    pub(super) dns_search: Vec<String>,
    /// Set an option of the resolver, as ndots:2
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub(super) dns_option: Vec<String>,
    /// Show a device of the host in the container
    #[arg(long, value_name = "HOST[:CONTAINER]")]
    pub(super) device: Vec<Device>,
    /// Allow devices, as 'c 10:* rwm'
    #[arg(long, value_name = "RULE")]
    pub(super) device_cgroup_rule: Vec<DeviceRule>,
    #[command(flatten)]
    pub(super) limits: LimitOptions,
    /// Set how readily its memory is swapped out, 0 to 100; -1 as on the host
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub(super) memory_swappiness: Option<i64>,
    /// Let its processes wait for memory instead of ending one
    #[arg(long)]
    pub(super) oom_kill_disable: bool,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub(super) cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub(super) cap_drop: Vec<String>,
    /// Set hardened, no-new-privileges, seccomp=FILE|unconfined, apparmor=PROFILE, label=disable, mask=PATH, unmask=PATH|ALL
    #[arg(long, value_name = "OPTION")]
    pub(super) security_opt: Vec<String>,
    /// Restrict files, ports and system calls as this file says
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<std::path::PathBuf>,
    /// Do not enforce the policy: tell at the end what it would have refused, and the policy that would not
    #[arg(long, requires = "policy")]
    pub(super) audit: bool,
    /// Give every privilege: all capabilities and devices, nothing masked or filtered
    #[arg(long)]
    pub(super) privileged: bool,
    /// Limit a resource of the process, as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(super) ulimit: Vec<String>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) sysctl: Vec<String>,
    /// Set the size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    pub(super) shm_size: Option<String>,
    /// Limit what the container may write to its own layer
    #[arg(long, value_name = "BYTES", conflicts_with = "storage_opt")]
    pub(super) size: Option<String>,
    /// Set an option of the storage: size=BYTES
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) storage_opt: Vec<String>,
    /// Set how readily the kernel kills it when memory is short
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub(super) oom_score_adj: Option<i32>,
    /// Choose the network: none, host or container:NAME
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "none")]
    pub(super) network: String,
    /// Show the processes of the host or of container:NAME
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub(super) pid: String,
    /// Share System V objects, message queues and /dev/shm with the host: private or host
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub(super) ipc: String,
    /// Have the host's name: private or host
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub(super) uts: String,
    /// See where in the host's cgroups it is: private or host
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub(super) cgroupns: String,
    /// Choose the user namespace: host, auto, nomap, keep-id[:uid=UID,gid=GID] or container:NAME
    #[arg(long, value_name = "MODE", default_value = "host")]
    pub(super) userns: UserNamespace,
    /// Replace the entrypoint of the image
    #[arg(long, value_name = "COMMAND")]
    pub(super) entrypoint: Option<String>,
    /// Set the signal that asks the container to stop
    #[arg(long, value_name = "SIGNAL")]
    pub(super) stop_signal: Option<String>,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    pub(super) label_file: Vec<std::path::PathBuf>,
    /// Start it again when it ends: no, always, unless-stopped or on-failure[:MAX]
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(super) restart: RestartPolicy,
    /// Wait so many seconds after that signal before the container is killed; -1 for ever
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub(super) stop_timeout: Option<i64>,
    /// Keep what the container writes as: local, json-file or none
    #[arg(long, value_name = "DRIVER", default_value = "local")]
    pub(super) log_driver: String,
    /// Set an option of the log: max-size=BYTES or max-file=NUMBER
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) log_opt: Vec<String>,
    /// Attach to stdin, stdout or stderr
    #[arg(short, long, value_name = "STREAM", value_parser = ["stdin", "stdout", "stderr", "STDIN", "STDOUT", "STDERR"])]
    pub(super) attach: Vec<String>,
    /// Pull the image from its registry
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(super) pull: super::pull::Policy,
    /// Whether an image that says what is in it may be used before it is here
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) lazy: super::pull::Lazy,
    /// Choose the image for this platform, as os/architecture[/variant], when it is pulled
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
    /// Print nothing while the image is pulled
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The image, and the command to run instead of the image's own
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_name = "IMAGE")]
    pub(super) image_and_command: Vec<String>,
}

/// Limits of resources, which `update` can change too.
#[derive(Debug, Args)]
pub(crate) struct LimitOptions {
    /// Limit memory
    #[arg(short, long, value_name = "BYTES")]
    pub(super) memory: Option<String>,
    /// Limit memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(super) memory_swap: Option<String>,
    /// Leave it so much memory when memory is short
    #[arg(long, value_name = "BYTES")]
    pub(super) memory_reservation: Option<String>,
    /// Limit CPU time to that of so many CPUs
    #[arg(long, value_name = "NUMBER")]
    pub(super) cpus: Option<String>,
    /// Set the relative weight of CPU time
    #[arg(short, long, value_name = "WEIGHT")]
    pub(super) cpu_shares: Option<u64>,
    /// Limit CPU time to so many microseconds of each period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(super) cpu_quota: Option<i64>,
    /// Set the length of a period in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(super) cpu_period: Option<u64>,
    /// Run only on these CPUs
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_cpus: Option<String>,
    /// Use only memory of these nodes
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_mems: Option<String>,
    /// Set the relative weight of disk accesses, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub(super) blkio_weight: Option<u16>,
    /// Limit the number of processes; -1 for unlimited
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub(super) pids_limit: Option<i64>,
}
