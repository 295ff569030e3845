//! What `rename` and `update` changed of a container's configuration: a file of its own, written over `config.json`.
//!
//! `config.json` itself is never written again, since whoever mounts the container's files holds a lock on it.

use serde::{Deserialize, Serialize};

use super::config::VERSION;
use super::{Config, ContainerName, Limits, RestartPolicy};

/// The changed fields, all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes {
    /// The form of the file.
    pub(super) version: u32,
    name: ContainerName,
    limits: Limits,
    restart: RestartPolicy,
}

impl Changes {
    /// Takes them from a configuration.
    pub(super) fn of(config: &Config) -> Changes {
        Changes { version: VERSION, name: config.name.clone(), limits: config.limits.clone(), restart: config.restart }
    }

    /// Puts them into a configuration.
    pub(super) fn apply(self, config: &mut Config) {
        let Changes { version: _, name, limits, restart } = self;
        config.name = name;
        config.limits = limits;
        config.restart = restart;
    }
}
