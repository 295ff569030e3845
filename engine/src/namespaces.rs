//! The namespaces of a container: its own, the host's, or another container's. The others are chosen when it is made, and
//! joined at each start.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use strata_sandbox::capabilities::{SYS_ADMIN, has_effective};
use strata_sandbox::spec_default;
use strata_sandbox::userns::{self, UserNamespaceError};

use crate::container::{Config, Containers, FindError, Namespace, State, UserNamespace};
use crate::process::Process;

/// Another container whose namespace a new one cannot be in.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It is not there.
    #[error("{option}=container:{name}")]
    Absent {
        /// Which of its namespaces was asked for.
        option: &'static str,
        /// As it was named.
        name: String,
        /// Why it was not found.
        source: FindError,
    },
    /// What shows a namespace, `/proc` or `/sys`, can only be mounted in the user namespace that owns it, or above.
    #[error("{option}=container:{name} needs userns=container:{name} for a container that has ids of its own")]
    OtherUsers {
        /// Which of its namespaces was asked for.
        option: &'static str,
        /// As it was named.
        name: String,
    },
}

/// A namespace that cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The container has been removed.
    #[error("join the {kind} namespace of another container")]
    Gone {
        /// Which kind of namespace.
        kind: &'static str,
        /// Why it was not found.
        source: FindError,
    },
    /// It does not run.
    #[error("cannot join the {kind} namespace of a non running container: {name}")]
    NotRunning {
        /// Which kind of namespace.
        kind: &'static str,
        /// The container.
        name: String,
    },
    /// It is in a namespace that this process cannot reach from its own.
    #[error(
        "cannot join the {kind} namespace of container {name}: it was started by another command of a plain user, whose \
         namespace this one is not in; start the container that joins it again"
    )]
    Elsewhere {
        /// Which kind of namespace.
        kind: &'static str,
        /// The container.
        name: String,
    },
}

/// Finds the containers whose namespaces a container is to be in, and takes over what goes with their network. Its user
/// namespace is chosen already.
pub(crate) fn resolve(containers: &Containers, config: &mut Config) -> Result<(), ShareError> {
    let users = config.own_ids.is_some().then(|| owner_of_users(containers, config));
    let find = |option, name: &String| {
        let found = containers.find(name);
        let other = found.map_err(|source| ShareError::Absent { option, name: name.clone(), source })?.config;
        match users.as_ref().is_some_and(|users| *users != owner_of_users(containers, &other)) {
            true => Err(ShareError::OtherUsers { option, name: name.clone() }),
            false => Ok(other),
        }
    };
    if let Namespace::Container(name) = &config.namespaces.pid {
        let other = find("pid", name)?;
        config.namespaces.pid = match other.namespaces.pid {
            Namespace::Host => Namespace::Host,
            Namespace::Private | Namespace::Container(_) => Namespace::Container(other.id.as_str().to_owned()),
        };
    }
    if let Namespace::Container(name) = &config.network {
        let other = find("network", name)?;
        config.network = match other.network {
            Namespace::Host => Namespace::Host,
            Namespace::Private | Namespace::Container(_) => Namespace::Container(other.id.as_str().to_owned()),
        };
        config.hostname = other.hostname;
        config.names = other.names;
    }
    Ok(())
}

/// The container whose user namespace a container is in.
fn owner_of_users(containers: &Containers, config: &Config) -> String {
    let mut owner = config.clone();
    while let UserNamespace::Container(id) = &owner.user_namespace {
        match containers.find(id) {
            Ok(other) => owner = other.config,
            Err(_) => return id.clone(),
        }
    }
    owner.id.as_str().to_owned()
}

/// The namespaces for one start; those of other containers are held open.
#[derive(Debug)]
pub(crate) struct ForStart {
    user: Option<OwnedFd>,
    pid: Option<OwnedFd>,
    network: Option<OwnedFd>,
}

/// Namespaces as the specification says them; those of other containers while [`ForStart`] lives, for this process.
#[derive(Debug)]
pub(crate) struct InSpec {
    pub(crate) user: spec_default::UserNamespace,
    pub(crate) pid: spec_default::Namespace,
    pub(crate) network: spec_default::Namespace,
}

impl ForStart {
    /// Finds the namespaces for a start.
    pub(crate) fn find(containers: &Containers, config: &Config) -> Result<ForStart, JoinError> {
        let join = |kind, namespace: &Namespace| match namespace {
            Namespace::Private | Namespace::Host => Ok(None),
            Namespace::Container(id) => of_other(containers, id, kind).map(Some),
        };
        let user = match &config.user_namespace {
            // One without ids of its own is in the caller's, and so is who joins it.
            UserNamespace::Container(id) => {
                Some(of_other(containers, id, "user")?).filter(|_| config.own_ids.is_some())
            }
            _ => None,
        };
        Ok(ForStart { user, pid: join("pid", &config.namespaces.pid)?, network: join("net", &config.network)? })
    }

    pub(crate) fn in_spec(&self, config: &Config) -> InSpec {
        let path = |namespace: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        let whose = |joined: &Option<OwnedFd>, wanted: &Namespace| match (joined, wanted) {
            (Some(namespace), _) => spec_default::Namespace::Path(path(namespace)),
            (None, Namespace::Host) => spec_default::Namespace::Callers,
            (None, _) => spec_default::Namespace::Own,
        };
        InSpec {
            user: match &self.user {
                Some(namespace) => spec_default::UserNamespace::Path(path(namespace)),
                None => user_of(config),
            },
            pid: whose(&self.pid, &config.namespaces.pid),
            network: whose(&self.network, &config.network),
        }
    }
}

/// The namespaces of a container that runs, which whoever is added to it joins as they are, but for those of the host, in
/// which he is already.
pub(crate) fn of_running(config: &Config) -> InSpec {
    ForStart { user: None, pid: None, network: None }.in_spec(config)
}

fn user_of(config: &Config) -> spec_default::UserNamespace {
    let ids = config.own_ids.as_ref();
    ids.map_or(spec_default::UserNamespace::Callers, |ids| spec_default::UserNamespace::Own(ids.of_namespace()))
}

/// Opens a namespace of another container, which has to run.
fn of_other(containers: &Containers, id: &str, kind: &'static str) -> Result<OwnedFd, JoinError> {
    let other = containers.find(id).map_err(|source| JoinError::Gone { kind, source })?;
    let name = || other.config.name.to_string();
    let not_running = || JoinError::NotRunning { kind, name: name() };
    let (State::Running { init, .. } | State::Paused { init, .. }) = &other.state else { return Err(not_running()) };
    let owner = other.state.owner().ok_or_else(not_running)?;
    // Only what is below the caller's user namespace can be joined; that of root is above all.
    let users = [&Process::current(), owner].map(|process| namespace_of(process, "user"));
    let [Some(ours), Some(its)] = &users else { return Err(not_running()) };
    if !same(ours, its) {
        return Err(JoinError::Elsewhere { kind, name: name() });
    }
    namespace_of(init, kind).ok_or_else(not_running)
}

fn namespace_of(process: &Process, kind: &str) -> Option<OwnedFd> {
    let path = format!("/proc/{}/ns/{kind}", process.pid);
    let namespace = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // Looked at afterwards: the number was still its own when the file was opened.
    process.is_alive().then_some(namespace)
}

fn same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let identity = |namespace: &OwnedFd| rustix::fs::fstat(namespace).ok().map(|found| (found.st_dev, found.st_ino));
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

/// Makes a plain user root of a user namespace in which these containers can start: that of a container that is to be joined,
/// if there is one and it runs, else one of his own. `joined` are containers to be joined, `started` those whose records say
/// so. Without effect where mounting is allowed already.
///
/// # Preconditions
/// The process has one thread.
///
/// # Errors
/// [`UserNamespaceError`].
pub fn enter_rootless_to_start(root: &Path, joined: &[&str], started: &[String]) -> Result<(), UserNamespaceError> {
    if has_effective(SYS_ADMIN) {
        return Ok(());
    }
    let containers = Containers::new(root);
    let configs: Vec<Config> = started.iter().filter_map(|name| Some(containers.find(name).ok()?.config)).collect();
    let mut others = joined.iter().copied().chain(configs.iter().flat_map(Config::joined));
    match others.find_map(|other| containers.find(other).ok()?.state.owner().and_then(Process::open)) {
        Some(monitor) => userns::enter_rootless_of(monitor.as_fd()),
        None => userns::enter_rootless().map(drop),
    }
}
