//! Making a container: its record, its writable layer, the hold on its image.

use std::io;

use strata_imagestore::{Image, ImageError, ImageId, Stack, StackError, StoreError};

use crate::container::{Container, ContainerId, ContainerName, CreateError, FindError, Locked, RecordError, State};
use crate::creation::{Creation, InvalidCreation};
use crate::durable::Durability;
use crate::engine::{Engine, lease_name};
use crate::launch::{mark, open_index, prepare_upper};
use crate::monitor::{AskError, Refusal};
use crate::namespaces::{self, ShareError};
use crate::user_namespace::{self, ChooseError};

/// A container that was not made, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The image is not here. The text is Docker's.
    #[error("unable to find image '{reference}' locally")]
    NoImage {
        /// The image, completed.
        reference: String,
    },
    /// The image cannot be read.
    #[error(transparent)]
    Image(ImageError),
    /// The container to start was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Its layers cannot be read.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// What was asked for makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidCreation),
    /// The record cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The record cannot be changed.
    #[error("write the record of the container")]
    Record(#[from] RecordError),
    /// Something that the store does for it failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel has no random numbers.
    #[error("draw a random identifier")]
    Random(#[source] rustix::io::Errno),
    /// The writable layer cannot be prepared.
    #[error("prepare the writable layer")]
    Upper(#[source] io::Error),
    /// There are no ids for its user namespace.
    #[error(transparent)]
    Ids(#[from] ChooseError),
    /// It cannot be in the namespace of another container.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Its processes are stopped. The text is Docker's.
    #[error("cannot start a paused container, try unpause instead")]
    Paused,
    /// Another command starts it.
    #[error("container {0} is being started by another command")]
    Starting(ContainerName),
    /// There is no process to stay with it.
    #[error("start the container's monitor")]
    Monitor(#[source] io::Error),
    /// It was not put together, or its program not executed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its monitor went away in the middle.
    #[error(transparent)]
    Ask(AskError),
}

impl From<AskError> for RunError {
    fn from(error: AskError) -> RunError {
        match error {
            AskError::Refused(refusal) => RunError::Refused(refusal),
            error => RunError::Ask(error),
        }
    }
}

impl RunError {
    /// The exit code of the command: 126 and 127 for a program that cannot be executed, else 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Refused(refusal) => refusal.code,
            _ => 125,
        }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            RunError::NoImage { .. } => {
                Some("load it with 'strata load -i FILE'; 'strata images' lists what is here".to_owned())
            }
            RunError::Refused(refusal) => refusal.hint.clone(),
            _ => None,
        }
    }
}

impl Engine {
    /// Makes a container, which is not started.
    pub fn create(&self, creation: &Creation) -> Result<Container, RunError> {
        let (locked, _stack) = self.make(creation, State::created())?;
        Ok(locked.unlock())
    }

    /// Makes a container in the given state.
    pub(super) fn make(&self, creation: &Creation, state: State) -> Result<(Locked, Stack), RunError> {
        let image = self.find_image(&creation.image)?;
        let id = ContainerId::random().map_err(RunError::Random)?;
        let mut config = creation.configure(id, &image)?;
        config.cgroup_manager = self.cgroup_manager().0;
        if config.command.is_empty() {
            return Err(InvalidCreation::NoCommand.into());
        }
        let stack = self.images().stack(&image.id)?;
        let choosing = user_namespace::choose(self.registry(), &mut config, creation.user.is_some())?;
        namespaces::resolve(self.registry(), &mut config)?;
        // One that goes with its process need not survive a power cut, once there is a process.
        let relaxed = config.auto_remove && state != State::created();
        let durability = if relaxed { Durability::Relaxed } else { Durability::Synced };
        let created = self.registry().create(config.clone(), state.clone(), creation.name.clone(), durability);
        let locked = match created {
            Err(CreateError::NameTaken { .. }) => {
                // The holder may be what a killed command left.
                self.recover().map_err(RunError::Record)?;
                self.registry().create(config, state, creation.name.clone(), durability)?
            }
            created => created?,
        };
        drop(choosing);
        match self.keep_layers(&locked, &image.id, &stack) {
            Ok(()) => Ok((locked, stack)),
            Err(error) => {
                let lease = lease_name(&locked);
                // What is left of it the next command removes; what matters to the user is why there is none.
                match locked.discard(self.registry()) {
                    Ok(()) => self.release(&lease),
                    Err(error) => tracing::warn!(error = %crate::error_chain(&error), "half a container stays"),
                }
                Err(error)
            }
        }
    }

    /// Keeps the image's layers for a container that outlives its process, and prepares its writable layer.
    fn keep_layers(&self, container: &Container, image: &ImageId, stack: &Stack) -> Result<(), RunError> {
        let prepare = |index| prepare_upper(container, &index).and_then(|()| mark(container, &index));
        open_index(&stack.index).and_then(prepare).map_err(RunError::Upper)?;
        // One that is not started yet may wait for long.
        if !container.config.auto_remove || container.state == State::created() {
            self.images().lease(&lease_name(container), image)?;
        }
        Ok(())
    }

    fn find_image(&self, name: &str) -> Result<Image, RunError> {
        let find = || -> Result<Image, ImageError> { self.images().image(&self.images().resolve(name)?) };
        find().map_err(|error| match error {
            ImageError::NoSuchImage { name } => RunError::NoImage { reference: name },
            error => RunError::Image(error),
        })
    }
}
