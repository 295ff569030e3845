//! Ending containers, and waiting for their end.

use super::{LifecycleError, StartOptions};
use crate::container::{Container, State};
use crate::engine::Engine;
use crate::monitor::{Attach, Request};

/// How a container is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopOptions {
    /// The signal that asks for it, if not that of the container.
    pub signal: Option<i32>,
    /// Seconds until force is used, if not those of the container; -1 for never.
    pub timeout: Option<i64>,
}

/// Seconds until force is used when nobody says anything, as in Docker.
const PATIENCE: i64 = 10;

impl Engine {
    /// Stops a container. One that does not run is left alone.
    pub fn stop(&self, name: &str, options: StopOptions) -> Result<(), LifecycleError> {
        let container = self.container(name)?;
        let request = Request::Stop { signal: options.signal, timeout: timeout(&container, options) };
        match self.ask_running(&container, &request) {
            Err(LifecycleError::NotRunning(_)) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Stops a container and starts it again; one that does not run is just started.
    pub fn restart(&self, name: &str, options: StopOptions) -> Result<(), LifecycleError> {
        let container = self.container(name)?;
        let request = Request::Restart { signal: options.signal, timeout: timeout(&container, options) };
        match self.ask_running(&container, &request) {
            Err(LifecycleError::NotRunning(_)) => {
                self.start(container.config.id.as_str(), StartOptions::default())?;
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Sends a signal to a container's first process.
    pub fn kill(&self, name: &str, signal: i32) -> Result<(), LifecycleError> {
        let found = self.container(name);
        let container = found.map_err(|source| LifecycleError::NoneToKill { name: name.to_owned(), source })?;
        let request = if signal == 9 { Request::Kill } else { Request::Signal(signal) };
        match self.ask_running(&container, &request) {
            Err(LifecycleError::NotRunning(id)) => Err(LifecycleError::NotKilled { name: name.to_owned(), id }),
            result => result.map(drop),
        }
    }

    /// Waits for the end of a container and returns its exit code; at once if it does not run.
    pub fn wait(&self, name: &str) -> Result<i32, LifecycleError> {
        let container = self.container(name)?;
        let session = match self.ask_running(&container, &Request::Attach(Attach::default())) {
            Err(LifecycleError::NotRunning(_)) => None,
            result => Some(result?.0),
        };
        if let Some(session) = session
            && let Some(code) = session.wait().map_err(LifecycleError::Wait)?
        {
            return Ok(code);
        }
        match self.container(container.config.id.as_str()) {
            Ok(container) => Ok(container.state.exit_code()),
            // Removed at its end, which nobody saw.
            Err(error) if error.is_not_found() && container.state.is_active() => Ok(137),
            Err(error) => Err(error.into()),
        }
    }

    /// Stops all processes of a container where they are.
    pub fn pause(&self, name: &str) -> Result<(), LifecycleError> {
        let container = self.container(name)?;
        self.ask_running(&container, &Request::Pause).map(drop)
    }

    /// Lets them go on.
    pub fn unpause(&self, name: &str) -> Result<(), LifecycleError> {
        let container = self.container(name)?;
        if !matches!(container.state, State::Paused { .. }) {
            return Err(LifecycleError::NotPaused(container.config.id));
        }
        self.ask_running(&container, &Request::Resume).map(drop)
    }
}

fn timeout(container: &Container, options: StopOptions) -> i64 {
    options.timeout.or(container.config.stop_timeout).unwrap_or(PATIENCE)
}
