//! `exec`: another process in a running container.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use oci_spec::runtime::{Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, Process, Spec};

use super::create::{Receiver, landlock_of, send_pidfd, write_pid_file};
use super::{Container, RuntimeError, Status};
use crate::capabilities::CapabilitySet;
use crate::cgroup::CgroupName;
use crate::{Exec, Inherited, Listener, Running, Seccomp, Stdio, WindowSize, exec};

/// What is to run.
#[derive(Debug)]
pub enum Added {
    /// A whole process, as in `--process`.
    Process(Box<Process>),
    /// The container's own process with some differences.
    Command(Box<Differences>),
}

/// How an added process differs from the container's own.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// Program and arguments.
    pub args: Vec<String>,
    /// The working directory.
    pub cwd: Option<String>,
    /// More `NAME=value`.
    pub env: Vec<String>,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// `user[:group]`, by number or name.
    pub user: Option<String>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// More capabilities.
    pub capabilities: Vec<String>,
    /// `no_new_privs` though the container has it not.
    pub no_new_privileges: bool,
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// The SELinux label.
    pub label: Option<String>,
}

/// An added process, and around it.
#[derive(Debug)]
pub struct Addition<'a> {
    /// What is to run.
    pub process: Added,
    /// What of the caller's the process keeps.
    pub inherited: Inherited,
    /// Also when the container is paused: the process is then, too.
    pub ignore_paused: bool,
    /// A cgroup below the container's.
    pub cgroup: Option<&'a str>,
    /// Receives the terminal's other end.
    pub console: Option<&'a mut dyn Receiver>,
    /// Receives a descriptor of the process.
    pub pidfd: Option<&'a mut dyn Receiver>,
    /// Receives the number of the process as text.
    pub pid_file: Option<&'a Path>,
}

impl Added {
    /// Reads a whole process from JSON of the spec's form.
    ///
    /// # Errors
    /// [`RuntimeError::InvalidArgument`].
    pub fn from_json(json: &[u8]) -> Result<Self, RuntimeError> {
        let process = serde_json::from_slice(json)
            .map_err(|error| RuntimeError::InvalidArgument(format!("process specification is not valid: {error}")))?;
        Ok(Self::Process(Box::new(process)))
    }

    /// Tells whether it gets a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        match self {
            Self::Process(process) => process.terminal() == Some(true),
            Self::Command(differences) => differences.terminal,
        }
    }
}

impl Container {
    /// Starts another process in the container.
    ///
    /// # Errors
    /// [`RuntimeError::WrongStatus`] when the container has ended or is paused, [`RuntimeError::Spawn`].
    pub fn exec(&self, addition: Addition<'_>) -> Result<Running, RuntimeError> {
        let refuse = |text: &str| Err(RuntimeError::WrongStatus(text.to_owned()));
        match self.status() {
            Status::Stopped => return refuse("cannot exec in a stopped container"),
            Status::Creating => return refuse("cannot exec in a container that is being created"),
            Status::Paused if !addition.ignore_paused => {
                return refuse("cannot exec in a paused container (use --ignore-paused to override)");
            }
            Status::Paused | Status::Created | Status::Running => {}
        }
        let mut spec = self.spec()?.clone();
        let (process, user) = match addition.process {
            Added::Process(process) => (*process, None),
            Added::Command(differences) => differ(&spec, *differences)?,
        };
        let terminal = process.terminal() == Some(true);
        let size = process.console_size().and_then(|size| {
            Some(WindowSize { rows: size.height().try_into().ok()?, columns: size.width().try_into().ok()? })
        });
        spec.set_process(Some(process));
        let init = self.running()?;
        let running = exec(Exec {
            spec: &spec,
            init: &init,
            user: user.as_deref(),
            groups: &[],
            stdio: if terminal { Stdio::Terminal { size } } else { Stdio::Inherit },
            seccomp: Seccomp::FromSpec,
            landlock: landlock_of(&self.record),
            listener: Listener::Agent,
            identity: self.identity(),
            inherited: addition.inherited,
            cgroup: addition.cgroup.map(cgroup_below).transpose()?,
        })
        .map_err(RuntimeError::Spawn)?;
        let handed = hand_over(&running, addition.console, addition.pidfd, addition.pid_file);
        if let Err(error) = handed {
            // Nobody would know of it.
            let _ = running.signal(libc::SIGKILL);
            let _ = running.wait();
            return Err(error);
        }
        Ok(running)
    }
}

fn hand_over(
    running: &Running,
    console: Option<&mut dyn Receiver>,
    pidfd: Option<&mut dyn Receiver>,
    pid_file: Option<&Path>,
) -> Result<(), RuntimeError> {
    if let (Some(console), Some(receiver)) = (running.console(), console) {
        receive(receiver, console)?;
    }
    if let Some(receiver) = pidfd {
        send_pidfd(running.pid(), receiver).map_err(RuntimeError::io("pass on the pidfd"))?;
    }
    if let Some(path) = pid_file {
        write_pid_file(path, running.pid()).map_err(RuntimeError::io("write the pid file"))?;
    }
    Ok(())
}

fn receive(receiver: &mut dyn Receiver, console: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    receiver.receive(console.as_fd()).map_err(RuntimeError::io("pass on the terminal"))
}

/// The container's own process with the differences, and the user to look up.
fn differ(spec: &Spec, differences: Differences) -> Result<(Process, Option<String>), RuntimeError> {
    let own =
        spec.process().as_ref().ok_or_else(|| RuntimeError::InvalidSpec("process property must be set".into()))?;
    let mut process = own.clone();
    process.set_args(Some(differences.args));
    process.set_terminal(Some(differences.terminal));
    process.set_console_size(None);
    if let Some(cwd) = differences.cwd {
        process.set_cwd(cwd.into());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(differences.env);
    process.set_env(Some(env));
    if differences.no_new_privileges {
        process.set_no_new_privileges(Some(true));
    }
    if differences.apparmor.is_some() {
        process.set_apparmor_profile(differences.apparmor);
    }
    if differences.label.is_some() {
        process.set_selinux_label(differences.label);
    }
    if !differences.capabilities.is_empty() {
        let added = with_capabilities(process.capabilities().as_ref(), &differences.capabilities)?;
        process.set_capabilities(Some(added));
    }
    let mut user = process.user().clone();
    if !differences.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(differences.additional_gids);
        user.set_additional_gids(Some(groups));
    }
    let wanted = match differences.user {
        None => None,
        Some(text) => match numbers(&text) {
            Some((uid, gid)) => {
                user.set_uid(uid);
                if let Some(gid) = gid {
                    user.set_gid(gid);
                }
                None
            }
            // A name, or nothing that could be one: the account files of the container say.
            None => Some(text),
        },
    };
    process.set_user(user);
    Ok((process, wanted))
}

/// Where in the container's cgroup: version 1 names controllers before the path, which has to be the same in all here.
fn cgroup_below(text: &str) -> Result<CgroupName, RuntimeError> {
    let path = text.rsplit_once(':').map_or(text, |(_, path)| path);
    Ok(CgroupName::new(path)?)
}

/// `uid[:gid]` in decimal digits alone.
fn numbers(text: &str) -> Option<(u32, Option<u32>)> {
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u32>().ok())
            .flatten()
            .filter(|id| *id <= MAX_ID)
    };
    match text.split_once(':') {
        Some((uid, gid)) => Some((number(uid)?, Some(number(gid)?))),
        None => Some((number(text)?, None)),
    }
}

fn with_capabilities(own: Option<&LinuxCapabilities>, names: &[String]) -> Result<LinuxCapabilities, RuntimeError> {
    let added = names.iter().try_fold(CapabilitySet::EMPTY, |set, name| {
        let one = CapabilitySet::parse(name).map_err(|error| RuntimeError::InvalidArgument(error.to_string()))?;
        Ok::<_, RuntimeError>(set.union(one))
    })?;
    let with = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        CapabilitySet::from_oci(own.and_then(|own| of(own).as_ref())).union(added).to_oci()
    };
    let same =
        |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| own.and_then(|own| of(own).clone()).unwrap_or_default();
    LinuxCapabilitiesBuilder::default()
        .bounding(with(|sets| sets.bounding()))
        .effective(with(|sets| sets.effective()))
        .permitted(with(|sets| sets.permitted()))
        .inheritable(same(|sets| sets.inheritable()))
        .ambient(same(|sets| sets.ambient()))
        .build()
        .map_err(|error| RuntimeError::InvalidSpec(error.to_string()))
}

/// As the kernel's signed 31 bits.
const MAX_ID: u32 = i32::MAX.unsigned_abs();

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn ids_are_digits_and_nothing_else() {
        assert_eq!(numbers("0"), Some((0, None)));
        assert_eq!(numbers("33:44"), Some((33, Some(44))));
        for odd in ["", ":", ":0", "0:", "-1", "+1", "1000abc", "0x0", "4294967296", "2147483648", "0:-1", " 0"] {
            assert_eq!(numbers(odd), None, "{odd:?}");
        }
    }
}
