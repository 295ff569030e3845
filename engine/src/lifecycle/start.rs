//! Starting containers: new ones, and those that ended.

use std::os::fd::AsFd;
use std::time::Duration;

use strata_imagestore::Stack;

use super::RunError;
use crate::container::{Container, Event, State};
use crate::creation::Creation;
use crate::durable::Durability;
use crate::engine::{Engine, lower_of};
use crate::monitor::{AskError, Attach, Monitor, Session, Task};

/// How a container is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// What the caller is connected to; without, the session ends when the process runs.
    pub attach: Option<Attach>,
    /// The size of the user's terminal, in rows and columns.
    pub size: Option<(u16, u16)>,
}

impl Engine {
    /// Makes a container and starts it with this monitor. The second value says what was left out.
    pub fn run(
        &self,
        creation: &Creation,
        options: StartOptions,
        monitor: Monitor,
    ) -> Result<(Session, Vec<String>), RunError> {
        let state = State::Starting { owner: monitor.process().clone(), before: None };
        let (locked, stack) = self.make(creation, state)?;
        let container = locked.unlock();
        let started = self.hand_over(&container, &stack, options, monitor)?;
        // While the process is at work anyway.
        if let Err(error) = self.recover_some() {
            tracing::warn!(error = %crate::error_chain(&error), "what killed commands left stays");
        }
        Ok(started)
    }

    /// Starts a container; `None` when it runs already.
    pub fn start(&self, name: &str, options: StartOptions) -> Result<Option<(Session, Vec<String>)>, RunError> {
        let container = self.container(name)?;
        let Some(mut locked) = container.lock(Duration::from_secs(10))? else {
            return Err(RunError::Starting(container.config.name));
        };
        match &locked.state {
            State::Paused { .. } => return Err(RunError::Paused),
            State::Running { .. } | State::Restarting { .. } => return Ok(None),
            State::Starting { .. } => return Err(RunError::Starting(container.config.name)),
            _ => {}
        }
        let stack = self.stack_of(&locked)?;
        let monitor = Monitor::spawn().map_err(RunError::Monitor)?;
        locked.apply(Event::Start { owner: monitor.process().clone() }, Durability::Relaxed)?;
        let container = locked.unlock();
        self.hand_over(&container, &stack, options, monitor).map(Some)
    }

    /// Gives a container to its monitor. The record names that as its owner already, so that whoever is killed now, the
    /// next command knows what to make of it.
    fn hand_over(
        &self,
        container: &Container,
        stack: &Stack,
        options: StartOptions,
        monitor: Monitor,
    ) -> Result<(Session, Vec<String>), RunError> {
        let task = Task {
            root: self.root().to_owned(),
            id: container.config.id.clone(),
            lower: lower_of(stack),
            index: stack.index.clone(),
            size: options.size,
            attach: options.attach,
        };
        let started = monitor.start(&task, stack.hold.as_file().as_fd());
        if let Err(AskError::Gone | AskError::Talk(_)) = &started
            && let Err(error) = self.recover()
        {
            tracing::warn!(error = %crate::error_chain(&error), "what a dead monitor left stays");
        }
        Ok(started?)
    }
}
