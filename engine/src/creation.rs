//! What a user asks of a new container, and what becomes of it with the image's own configuration.

use std::collections::BTreeMap;

use strata_imagestore::{ContainerConfig, Image, Timestamp};
use strata_sandbox::cgroup::CgroupManager;
use strata_sandbox::userns;

use crate::container::{
    Config, ContainerId, ContainerName, Device, DeviceRule, Limits, LogConfig, Mount, NameResolution, Namespace,
    Namespaces, RestartPolicy, Rlimit, SeccompChoice, Security, UserNamespace, VERSION,
};

/// A container that is to be.
#[derive(Clone, Debug, Default)]
pub struct Creation {
    /// The image, by any of its names.
    pub image: String,
    /// The command, in place of the image's.
    pub command: Vec<String>,
    /// The entrypoint, in place of the image's; an empty one takes it away.
    pub entrypoint: Option<Vec<String>>,
    /// The name; one is drawn if there is none.
    pub name: Option<ContainerName>,
    /// The host name; the beginning of the identifier if there is none.
    pub hostname: Option<String>,
    /// The NIS domain name; none if there is none.
    pub domainname: Option<String>,
    /// What its files say of other hosts.
    pub names: NameResolution,
    /// Environment variables, `NAME=value`, over those of the image.
    pub environment: Vec<String>,
    /// Where the process starts, in place of the image's.
    pub working_directory: Option<String>,
    /// The user, in place of the image's.
    pub user: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// Attach a terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub open_stdin: bool,
    /// Standard input ends with that of the command the container is started for.
    pub stdin_once: bool,
    /// Remove the container when its process ends.
    pub auto_remove: bool,
    /// Refuse writes to the root.
    pub read_only: bool,
    /// What is mounted in it.
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Rules about devices it may use beside its own.
    pub device_rules: Vec<DeviceRule>,
    /// Resource limits.
    pub limits: Limits,
    /// Its processes wait for memory where the kernel would end one.
    pub oom_kill_disable: bool,
    /// Capabilities to add.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// The system call filter.
    pub seccomp: SeccompChoice,
    /// Programs cannot gain privileges.
    pub no_new_privileges: bool,
    /// The other walls.
    pub security: Security,
    /// The network.
    pub network: Namespace,
    /// The other namespaces, but that of users.
    pub namespaces: Namespaces,
    /// The user namespace.
    pub user_namespace: UserNamespace,
    /// The signal that asks the process to end, in place of the image's.
    pub stop_signal: Option<String>,
    /// Labels over those of the image.
    pub labels: BTreeMap<String, String>,
    /// Every capability, no masks, no filter, every device.
    pub privileged: bool,
    /// Limits of the process, as of `setrlimit`.
    pub rlimits: Vec<Rlimit>,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Bytes of `/dev/shm`.
    pub shm_size: Option<u64>,
    /// Bytes that the writable layer may hold.
    pub storage_size: Option<u64>,
    /// How readily the kernel kills it when memory is short.
    pub oom_score: Option<i32>,
    /// Whether it is started again when it has ended.
    pub restart: RestartPolicy,
    /// Seconds between the signal that asks it to stop and the one that ends it; -1 for never.
    pub stop_timeout: Option<i64>,
    /// Where what it writes is kept.
    pub log: LogConfig,
}

/// A container that makes no sense. The texts are Docker's where Docker has the case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCreation {
    /// Neither the user nor the image says what to run.
    #[error("no command specified")]
    NoCommand,
    /// The working directory is relative.
    #[error("the working directory '{0}' is invalid, it needs to be an absolute path")]
    WorkingDirectory(String),
    /// The host name has characters that no host name has.
    #[error("invalid hostname: {0:?}")]
    Hostname(String),
    /// A domain or an option would not be one word in `resolv.conf`.
    #[error("{0:?} is no domain to search and no option of a resolver")]
    Resolver(String),
    /// Two options cannot be had together.
    #[error("conflicting options: {0}")]
    Conflict(&'static str),
    /// Something would be cut at a zero byte by the kernel.
    #[error("{0} has a zero byte in it")]
    ZeroByte(&'static str),
}

impl Creation {
    /// Applies the image's configuration. The name is set when the record is made. The command may be empty: that is
    /// a container which is only a folder.
    pub(crate) fn configure(&self, id: ContainerId, image: &Image) -> Result<Config, InvalidCreation> {
        let defaults = &image.config.config;
        let (command, entrypoint_length) = self.command_line(defaults);
        let working_directory = match self.working_directory.as_deref().filter(|path| !path.is_empty()) {
            Some(path) => path,
            None if defaults.working_dir.is_empty() => "/",
            None => &defaults.working_dir,
        };
        if !working_directory.starts_with('/') {
            return Err(InvalidCreation::WorkingDirectory(working_directory.to_owned()));
        }
        if let Some(option) = self.conflict() {
            return Err(option);
        }
        let hostname = match &self.hostname {
            Some(name) => name.clone(),
            None if self.network == Namespace::Host || self.namespaces.host_uts => {
                rustix::system::uname().nodename().to_string_lossy().into_owned()
            }
            // Who joins another's network is given its name.
            None => id.short().to_owned(),
        };
        let is_name = |name: &String| !name.is_empty() && name.len() <= 64 && !name.contains(|c: char| c.is_control());
        if let Some(name) = [&hostname].into_iter().chain(&self.domainname).find(|name| !is_name(name)) {
            return Err(InvalidCreation::Hostname(name.clone()));
        }
        let is_word = |word: &String| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control());
        if let Some(word) = self.names.search.iter().chain(&self.names.options).find(|word| !is_word(word)) {
            return Err(InvalidCreation::Resolver(word.clone()));
        }
        let mut environment = defaults.env.clone().unwrap_or_default();
        set_variables(&mut environment, &self.environment);
        for (what, values) in [("the command", &command), ("the environment", &environment)] {
            if values.iter().any(|value| value.contains('\0')) {
                return Err(InvalidCreation::ZeroByte(what));
            }
        }
        let mut labels = defaults.labels.clone().unwrap_or_default();
        labels.extend(self.labels.clone());
        Ok(Config {
            version: VERSION,
            id,
            name: self.name.clone().unwrap_or_else(ContainerName::placeholder),
            created: Timestamp::now(),
            image: image.id.to_string(),
            image_reference: self.image.clone(),
            command,
            entrypoint_length,
            environment,
            user: self.user.clone().unwrap_or_else(|| defaults.user.clone()),
            working_directory: working_directory.to_owned(),
            hostname,
            domainname: self.domainname.clone(),
            names: self.names.clone(),
            labels,
            stop_signal: self
                .stop_signal
                .clone()
                .or_else(|| defaults.stop_signal.clone())
                .unwrap_or_else(|| "SIGTERM".to_owned()),
            tty: self.tty,
            open_stdin: self.open_stdin,
            stdin_once: self.stdin_once,
            auto_remove: self.auto_remove,
            read_only: self.read_only,
            mounts: self.mounts.clone(),
            devices: self.devices.clone(),
            device_rules: self.device_rules.clone(),
            limits: self.limits.clone(),
            oom_kill_disable: self.oom_kill_disable,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            seccomp: self.seccomp.clone(),
            no_new_privileges: self.no_new_privileges,
            security: self.security.clone(),
            network: self.network.clone(),
            namespaces: self.namespaces.clone(),
            // A plain user's containers are in one already.
            user_namespace: match self.security.hardened
                && self.user_namespace == UserNamespace::Host
                && userns::is_initial()
            {
                true => UserNamespace::Auto,
                false => self.user_namespace.clone(),
            },
            own_ids: None,
            groups: self.groups.clone(),
            privileged: self.privileged,
            rlimits: self.rlimits.clone(),
            sysctls: self.sysctls.clone(),
            shm_size: self.shm_size,
            storage_size: self.storage_size,
            oom_score: self.oom_score,
            restart: self.restart,
            stop_timeout: self.stop_timeout,
            log: self.log.clone(),
            // Said by the engine.
            cgroup_manager: CgroupManager::default(),
        })
    }

    /// What is asked for and cannot be had together.
    fn conflict(&self) -> Option<InvalidCreation> {
        let joins = matches!(self.network, Namespace::Container(_));
        let conflicts = [
            (self.hostname.is_some() && self.namespaces.host_uts, "hostname and the UTS mode"),
            (self.domainname.is_some() && self.namespaces.host_uts, "domainname and the UTS mode"),
            (self.hostname.is_some() && joins, "hostname and the network mode"),
            (!self.names.servers.is_empty() && joins, "dns and the network mode"),
            (!self.names.hosts.is_empty() && joins, "custom host-to-IP mapping and the network mode"),
        ];
        conflicts.into_iter().find(|(conflicts, _)| *conflicts).map(|(_, what)| InvalidCreation::Conflict(what))
    }

    /// An entrypoint of the user's own takes the image's command away with the image's entrypoint.
    fn command_line(&self, defaults: &ContainerConfig) -> (Vec<String>, usize) {
        let (mut line, command) = match &self.entrypoint {
            Some(entrypoint) => (entrypoint.clone(), self.command.clone()),
            None => {
                let command = match self.command.is_empty() {
                    true => defaults.cmd.clone().unwrap_or_default(),
                    false => self.command.clone(),
                };
                (defaults.entrypoint.clone().unwrap_or_default(), command)
            }
        };
        let entrypoint_length = line.len();
        line.extend(command);
        (line, entrypoint_length)
    }
}

/// The environment of a container's process: Docker's own variables first, then those of image and user.
pub(crate) fn process_environment(config: &Config) -> Vec<String> {
    let mut lines = vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        format!("HOSTNAME={}", config.hostname),
    ];
    if config.tty {
        lines.push("TERM=xterm".to_owned());
    }
    set_variables(&mut lines, &config.environment);
    lines
}

/// Sets variables: a later value replaces an earlier one in its place.
fn set_variables(lines: &mut Vec<String>, more: &[String]) {
    for line in more {
        match lines.iter_mut().find(|known| name_of(known) == name_of(line)) {
            Some(known) => known.clone_from(line),
            None => lines.push(line.clone()),
        }
    }
}

fn name_of(line: &str) -> &str {
    line.split('=').next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn line(creation: Creation, entrypoint: &[&str], cmd: &[&str]) -> Vec<String> {
        let defaults = ContainerConfig {
            entrypoint: Some(words(entrypoint)),
            cmd: Some(words(cmd)),
            ..ContainerConfig::default()
        };
        creation.command_line(&defaults).0
    }

    #[test]
    fn entrypoint_and_command_are_joined_as_docker_does() {
        let nothing = Creation::default;
        let command = || Creation { command: words(&["x", "y"]), ..Creation::default() };
        let entrypoint = |entrypoint: &[&str]| Creation { entrypoint: Some(words(entrypoint)), ..Creation::default() };
        for (creation, image_entrypoint, image_cmd, expected) in [
            (nothing(), &["e"][..], &["c"][..], &["e", "c"][..]),
            (nothing(), &[], &["c"], &["c"]),
            (nothing(), &["e"], &[], &["e"]),
            (command(), &["e"], &["c"], &["e", "x", "y"]),
            (command(), &[], &["c"], &["x", "y"]),
            (entrypoint(&["f"]), &["e"], &["c"], &["f"]),
            (Creation { entrypoint: Some(words(&["f"])), ..command() }, &["e"], &["c"], &["f", "x", "y"]),
            (Creation { entrypoint: Some(Vec::new()), ..command() }, &["e"], &["c"], &["x", "y"]),
            (nothing(), &[], &[], &[]),
            (entrypoint(&[]), &["e"], &["c"], &[]),
        ] {
            assert_eq!(line(creation, image_entrypoint, image_cmd), words(expected));
        }
    }

    #[test]
    fn later_variables_replace_earlier_ones_in_place() {
        let mut lines = words(&["PATH=/image", "HOSTNAME=h", "A=1", "B=2"]);
        set_variables(&mut lines, &words(&["A=3", "C=", "HOSTNAME=mine"]));
        assert_eq!(lines, words(&["PATH=/image", "HOSTNAME=mine", "A=3", "B=2", "C="]));
    }
}
