//! The user namespace of a container: its ids are chosen when it is made, that of another container is joined at each start.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use strata_sandbox::capabilities::{SYS_ADMIN, has_effective};
use strata_sandbox::spec_default;
use strata_sandbox::userns::{self, UserNamespaceError};

use crate::container::{Config, Container, Containers, FindError, OwnIds, RecordError, State, UserNamespace};
use crate::process::Process;

/// Ids that a container cannot have.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// The records of the others cannot be read.
    #[error("read the records of containers")]
    Record(#[from] RecordError),
    /// There are none.
    #[error(transparent)]
    Ids(#[from] UserNamespaceError),
    /// A hardened container of root needs ids that are nobody's outside.
    #[error(
        "userns={0} leaves root of the container root of the machine, which a hardened container must not be; use auto"
    )]
    Hardened(UserNamespace),
    /// The container whose namespace was asked for.
    #[error("userns=container:{name}")]
    Other {
        /// As it was named.
        name: String,
        /// Why it was not found.
        source: FindError,
    },
}

/// A user namespace that cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The container has been removed.
    #[error("join the user namespace of another container")]
    Gone(#[from] FindError),
    /// It does not run.
    #[error("cannot join the user namespace of a non running container: {0}")]
    NotRunning(String),
    /// It is in a namespace that this process cannot reach from its own.
    #[error(
        "cannot join the user namespace of container {0}: it was started by another command of a plain user, whose \
         namespace this one is not in; start the container that joins it again"
    )]
    Elsewhere(String),
}

/// Chooses the ids of a container that is being made. The choice stands once its record is written, and until then this lock is
/// kept.
pub(crate) fn choose(
    containers: &Containers,
    config: &mut Config,
    user_given: bool,
) -> Result<Option<OwnedFd>, ChooseError> {
    let choosing = choose_ids(containers, config, user_given)?;
    let is_root_outside = config.own_ids.as_ref().is_none_or(OwnIds::are_unchanged);
    if config.security.hardened && is_root_outside && userns::is_initial() {
        return Err(ChooseError::Hardened(config.user_namespace.clone()));
    }
    Ok(choosing)
}

fn choose_ids(containers: &Containers, config: &mut Config, user_given: bool) -> Result<Option<OwnedFd>, ChooseError> {
    match &config.user_namespace {
        UserNamespace::Host => Ok(None),
        UserNamespace::Auto => {
            let choosing = containers.lock_ids()?;
            let others = containers.list()?;
            let block = |other: &Container| other.config.own_ids.as_ref().and_then(OwnIds::first_of_block);
            let taken: Vec<u32> = others.iter().filter_map(block).collect();
            config.own_ids = Some(userns::auto(&taken)?.into());
            Ok(Some(choosing))
        }
        UserNamespace::KeepId { uid, gid } => {
            let kept = userns::keep_id(*uid, *gid)?;
            config.own_ids = Some(kept.maps.into());
            if !user_given {
                config.user = format!("{}:{}", kept.uid, kept.gid);
            }
            Ok(None)
        }
        UserNamespace::NoMap => {
            config.own_ids = Some(userns::nomap()?.into());
            Ok(None)
        }
        UserNamespace::Container(name) => {
            // While this is kept, nobody else is given the ids of a container that is just being removed.
            let choosing = containers.lock_ids()?;
            let other = containers.find(name);
            let other = other.map_err(|source| ChooseError::Other { name: name.clone(), source })?;
            config.own_ids = other.config.own_ids;
            config.user_namespace = UserNamespace::Container(other.config.id.as_str().to_owned());
            Ok(Some(choosing))
        }
    }
}

/// The user namespace for one start.
#[derive(Debug)]
pub(crate) enum ForStart {
    Callers,
    Own(OwnIds),
    /// Another container's, held open.
    Joined(OwnedFd),
}

impl ForStart {
    /// How the specification says it; while this lives, for this process.
    pub(crate) fn in_spec(&self) -> spec_default::UserNamespace {
        match self {
            ForStart::Callers => spec_default::UserNamespace::Callers,
            ForStart::Own(ids) => spec_default::UserNamespace::Own(ids.of_namespace()),
            ForStart::Joined(namespace) => {
                spec_default::UserNamespace::Path(PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd())))
            }
        }
    }
}

/// Finds the user namespace for a start.
pub(crate) fn for_start(containers: &Containers, config: &Config) -> Result<ForStart, JoinError> {
    let UserNamespace::Container(id) = &config.user_namespace else {
        return Ok(config.own_ids.clone().map_or(ForStart::Callers, ForStart::Own));
    };
    let other = containers.find(id)?;
    let name = || other.config.name.to_string();
    let not_running = || JoinError::NotRunning(name());
    let (State::Running { init, .. } | State::Paused { init, .. }) = &other.state else { return Err(not_running()) };
    let owner = other.state.owner().ok_or_else(not_running)?;
    // Only what is below the caller's namespace can be joined; that of root is above all.
    let same =
        namespace_of(&Process::current()).is_some_and(|ours| namespace_of(owner).is_some_and(|its| same(&ours, &its)));
    if !same {
        return Err(JoinError::Elsewhere(name()));
    }
    match config.own_ids {
        // The other is in the caller's, and so in this one.
        None => Ok(ForStart::Callers),
        Some(_) => Ok(ForStart::Joined(namespace_of(init).ok_or_else(not_running)?)),
    }
}

/// The user namespace of a container that runs, as the specification says it.
pub(crate) fn of_running(config: &Config) -> spec_default::UserNamespace {
    config.own_ids.clone().map_or(ForStart::Callers, ForStart::Own).in_spec()
}

fn namespace_of(process: &Process) -> Option<OwnedFd> {
    let path = format!("/proc/{}/ns/user", process.pid);
    let namespace = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // Looked at afterwards: the number was still its own when the file was opened.
    process.is_alive().then_some(namespace)
}

fn same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let identity = |namespace: &OwnedFd| rustix::fs::fstat(namespace).ok().map(|found| (found.st_dev, found.st_ino));
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

/// Makes a plain user root of a namespace in which these containers can start, or one that is in the user namespace
/// `wanted`: that of the container whose namespace is to be joined if there is one and it runs, else one of his own. Without
/// effect where mounting is allowed already.
///
/// # Preconditions
/// The process has one thread.
///
/// # Errors
/// [`UserNamespaceError`].
pub fn enter_rootless_to_start(
    root: &Path,
    wanted: Option<&UserNamespace>,
    names: &[String],
) -> Result<(), UserNamespaceError> {
    if has_effective(SYS_ADMIN) {
        return Ok(());
    }
    let containers = Containers::new(root);
    let of_record = |name: &String| containers.find(name).ok().map(|container| container.config.user_namespace);
    let joined = |namespace: UserNamespace| match namespace {
        UserNamespace::Container(other) => containers.find(&other).ok()?.state.owner().and_then(Process::open),
        _ => None,
    };
    match wanted.cloned().into_iter().chain(names.iter().filter_map(of_record)).find_map(joined) {
        Some(monitor) => userns::enter_rootless_of(monitor.as_fd()),
        None => userns::enter_rootless().map(drop),
    }
}
