//! Containers: their records, their life, and what is done to them.
//!
//! A container is a folder, `<root>/containers/<id>/`: `config.json` never changes (what does is in `changes.json`), `state.json` is replaced on every
//! step, `upper` and `work` are its writable layer. `<root>/containers/names/<name>` is a link to it.

mod cgroup;
mod changes;
mod config;
mod device;
mod id;
mod name;
mod name_resolution;
mod namespace;
mod own_ids;
mod registry;
mod state;
mod user_namespace;

pub(crate) use cgroup::choose_manager;
pub(crate) use config::VERSION;
pub use config::{
    Bind, Config, InvalidRestartPolicy, Limits, LogConfig, LogDriver, Mount, RestartPolicy, Rlimit, SeccompChoice,
    Security, Tmpfs,
};
pub use device::{Device, DeviceRule, InvalidDevice};
pub(crate) use id::random_bytes;
pub use id::{ContainerId, InvalidContainerId};
pub use name::{ContainerName, InvalidName};
pub use name_resolution::{ExtraHost, InvalidExtraHost, NameResolution};
pub use namespace::{Namespace, Namespaces};
pub use own_ids::OwnIds;
pub use registry::{Container, Containers, CreateError, FindError, RecordError, RemoveError};
pub(crate) use registry::{Locked, Use};
pub use state::{End, Ended, Event, Refused, StartFailure, State};
pub use user_namespace::{InvalidUserNamespace, UserNamespace};
