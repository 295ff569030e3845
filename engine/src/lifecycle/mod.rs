//! What users do to containers.

mod change;
mod create;
mod look;
mod recover;
mod remove;
mod start;
mod stop;

pub use create::RunError;
pub use look::{Processes, Statistics};
pub use remove::RemoveContainerError;
pub use start::StartOptions;
pub use stop::StopOptions;

use std::time::{Duration, Instant};

use crate::container::{Container, ContainerId, CreateError, FindError, RecordError, State};
use crate::engine::Engine;
use crate::log::{LogError, LogOptions, LogReader};
use crate::monitor::{AskError, Attach, Execution, Request, Session, UpdateConflict, ask};

/// Something that cannot be done to a container. The texts are Docker's where Docker has the case.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// It was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Its record cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Other limits do not go with those it has.
    #[error(transparent)]
    Update(#[from] UpdateConflict),
    /// Its name is taken.
    #[error("Error when allocating new name")]
    Name(#[source] CreateError),
    /// It has that name.
    #[error("Renaming a container with the same name as its current name")]
    SameName,
    /// It does not run.
    #[error("Container {0} is not running")]
    NotRunning(ContainerId),
    /// There is none to kill.
    #[error("Cannot kill container: {name}")]
    NoneToKill {
        /// As the user named it.
        name: String,
        /// Why not.
        source: FindError,
    },
    /// It does not run, and cannot be killed therefore.
    #[error("Cannot kill container: {name}: Container {id} is not running")]
    NotKilled {
        /// As the user named it.
        name: String,
        /// The container.
        id: ContainerId,
    },
    /// It is not paused.
    #[error("Container {0} is not paused")]
    NotPaused(ContainerId),
    /// There is nothing to attach to.
    #[error("You cannot attach to a stopped container, start it first")]
    AttachStopped,
    /// Nothing would come.
    #[error("You cannot attach to a paused container, unpause it first")]
    AttachPaused,
    /// It does not run at the moment.
    #[error("You cannot attach to a restarting container, wait until it is running")]
    AttachRestarting,
    /// Nothing would run.
    #[error("Container {0} is paused, unpause the container before exec")]
    ExecPaused(String),
    /// It does not run at the moment.
    #[error("Container {0} is restarting, wait until the container is running")]
    ExecRestarting(ContainerId),
    /// It is being put together by another command.
    #[error("container {0} is being started by another command")]
    Starting(ContainerId),
    /// It must run for that.
    #[error("cannot set limits: {0}")]
    Limits(String),
    /// Its processes cannot be listed.
    #[error("list the processes of the container")]
    Ps(#[source] std::io::Error),
    /// Its monitor does not do it.
    #[error(transparent)]
    Monitor(#[from] AskError),
    /// It did not start.
    #[error(transparent)]
    Start(#[from] RunError),
    /// Its monitor went away in the middle.
    #[error("wait for the end of the container")]
    Wait(#[source] std::io::Error),
}

impl LifecycleError {
    /// The exit code of a command that was to run something.
    pub fn exit_code(&self) -> u8 {
        match self {
            LifecycleError::Monitor(AskError::Refused(refusal)) => refusal.code,
            LifecycleError::Start(error) => error.exit_code(),
            _ => 1,
        }
    }

    /// Whether there is no such container.
    pub fn is_not_found(&self) -> bool {
        match self {
            LifecycleError::Find(error) | LifecycleError::NoneToKill { source: error, .. } => error.is_not_found(),
            _ => false,
        }
    }
}

/// How long a monitor that ends may take to write that down.
const PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Asks the monitor of a container that runs.
    fn ask_running(&self, container: &Container, request: &Request) -> Result<(Session, Vec<String>), LifecycleError> {
        let id = &container.config.id;
        let mut container = container.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !container.state.is_active() {
                return Err(match &container.state {
                    State::Starting { .. } => LifecycleError::Starting(id.clone()),
                    _ => LifecycleError::NotRunning(id.clone()),
                });
            }
            match ask(&container, request) {
                // It ended meanwhile, and is about to be written down as such; or it was started anew.
                Err(AskError::Gone) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                result => return Ok(result?),
            }
            container = match self.container(id.as_str()) {
                Err(error) if error.is_not_found() => return Err(LifecycleError::NotRunning(id.clone())),
                result => result?,
            };
        }
    }

    /// Connects to the first process of a container.
    pub fn attach(&self, name: &str, attach: Attach) -> Result<(Container, Session), LifecycleError> {
        let container = self.container(name)?;
        match &container.state {
            State::Paused { .. } => return Err(LifecycleError::AttachPaused),
            State::Restarting { .. } => return Err(LifecycleError::AttachRestarting),
            State::Running { .. } => {}
            _ => return Err(LifecycleError::AttachStopped),
        }
        match self.ask_running(&container, &Request::Attach(attach)) {
            Ok((session, _)) => Ok((container, session)),
            Err(LifecycleError::NotRunning(_)) => Err(LifecycleError::AttachStopped),
            Err(error) => Err(error),
        }
    }

    /// Starts another process in a running container. The last value says what was left out.
    pub fn exec(&self, name: &str, execution: Execution) -> Result<(Session, Vec<String>), LifecycleError> {
        let container = self.container(name)?;
        match &container.state {
            State::Paused { .. } => Err(LifecycleError::ExecPaused(name.to_owned())),
            State::Restarting { .. } => Err(LifecycleError::ExecRestarting(container.config.id)),
            _ => self.ask_running(&container, &Request::Exec(Box::new(execution))),
        }
    }

    /// Reads what a container wrote.
    pub fn logs(&self, name: &str, options: LogOptions) -> Result<(Container, LogReader), LogError> {
        let container = self.container(name)?;
        let reader = LogReader::open(&container, options)?;
        Ok((container, reader))
    }
}
