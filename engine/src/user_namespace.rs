//! The ids of a container's user namespace, chosen when the container is made.

use std::os::fd::OwnedFd;

use strata_sandbox::userns::{self, UserNamespaceError};

use crate::container::{Config, Container, Containers, FindError, OwnIds, RecordError, UserNamespace};

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
