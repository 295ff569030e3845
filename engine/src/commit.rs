//! What a container changed: listed, as an image, and its whole tree as a tar.

use std::io::{self, Write};

use strata_imagestore::{
    Change, CommitLayerError, CommitOptions, ContainerConfig, ImageError, ImageId, ImageRef, Stack, StackError,
};
use strata_layer::tar_writer::{TarWriteError, TarWriter};
use strata_unionfs::{Change as FileChange, Difference, MountPoints, MountSpec, Options, Upper, WalkError};

use crate::container::{Config, Container, FindError};
use crate::engine::{Engine, image_id, lower_of};
use crate::{launch, network_files, own_file};

/// How to make an image of a container.
#[derive(Clone, Debug, Default)]
pub struct ContainerCommit {
    /// The image's name.
    pub reference: Option<ImageRef>,
    /// Who makes it.
    pub author: Option<String>,
    /// What was changed.
    pub message: Option<String>,
    /// Edits of the configuration.
    pub changes: Vec<Change>,
}

/// A container whose files cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// It was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Neither a container nor an image is called so.
    #[error("No such image or container: {0}")]
    NotFound(String),
    /// An image cannot be found.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its layers cannot be used.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Its files cannot be read, or the tar not be written.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The tar cannot be ended.
    #[error(transparent)]
    Write(#[from] TarWriteError),
}

/// A container of which no image was made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Its files cannot be looked at.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// Its image is gone, and with it the configuration to start from.
    #[error("read the image of the container")]
    Image(#[from] ImageError),
    /// The layer was not stored.
    #[error(transparent)]
    Layer(#[from] CommitLayerError<ChangesError>),
}

impl Engine {
    /// Lists what a container changed, sorted by path.
    pub fn changes(&self, name: &str) -> Result<Vec<FileChange>, ChangesError> {
        let container = self.container(name)?;
        let stack = self.stack_of(&container)?;
        Ok(strata_unionfs::changes(&observed(&container, &stack), &mount_points(&stack)?)?)
    }

    /// Compares two images or containers, the first with the second; without a second, a container with its image.
    pub fn compare(
        &self,
        before: &str,
        after: Option<&str>,
        tell: &mut dyn FnMut(Difference) -> io::Result<()>,
    ) -> Result<(), ChangesError> {
        let Some(after) = after else {
            let container = self.container(before)?;
            let stack = self.stack_of(&container)?;
            let (image, container) = (shown(&stack), observed(&container, &stack));
            let sides = [(&image, &MountPoints::default()), (&container, &mount_points(&stack)?)];
            return Ok(strata_unionfs::compare(sides, tell)?);
        };
        let ((before, made_before, _before), (after, made_after, _after)) =
            (self.tree_of(before)?, self.tree_of(after)?);
        Ok(strata_unionfs::compare([(&before, &made_before), (&after, &made_after)], tell)?)
    }

    /// Finds a container or an image and what its tree is made of, which stays as long as the stack is held, and what was made
    /// in it to mount on.
    fn tree_of(&self, name: &str) -> Result<(MountSpec, MountPoints, Stack), ChangesError> {
        match self.container(name) {
            Ok(container) => {
                let stack = self.stack_of(&container)?;
                Ok((observed(&container, &stack), mount_points(&stack)?, stack))
            }
            Err(error) if error.is_not_found() => {
                let image = match self.images().resolve(name) {
                    Err(error) if error.is_not_found() => return Err(ChangesError::NotFound(name.to_owned())),
                    result => result?,
                };
                let stack = self.images().stack(&image)?;
                Ok((shown(&stack), MountPoints::default(), stack))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes an image of a container's image and one more layer with exactly its changes.
    pub fn commit(&self, name: &str, commit: &ContainerCommit) -> Result<ImageId, CommitError> {
        let container = self.container(name).map_err(ChangesError::from)?;
        let stack = self.stack_of(&container).map_err(ChangesError::from)?;
        let (spec, made) = (observed(&container, &stack), mount_points(&stack)?);
        let base =
            image_id(&container).ok_or_else(|| ImageError::NoSuchImage { name: container.config.image.clone() })?;
        let image = self.images().image(&base)?;
        let mut changes = own_changes(&container.config, &image.config.config);
        changes.extend(commit.changes.iter().cloned());
        let options = CommitOptions {
            reference: commit.reference.clone(),
            changes,
            message: commit.message.clone(),
            author: commit.author.clone(),
            created_by: Some(container.config.command.join(" ")),
            ..CommitOptions::default()
        };
        let write = |out: &mut dyn Write| -> Result<(), ChangesError> {
            let mut tar = TarWriter::new(out);
            strata_unionfs::write_changes(&spec, &made, &mut tar)?;
            end(tar)
        };
        Ok(self.images().commit_layer(Some(&base), write, &options)?)
    }

    /// Writes the whole tree of a container as a tar.
    pub fn export(&self, name: &str, out: &mut dyn Write) -> Result<(), ChangesError> {
        let container = self.container(name)?;
        let stack = self.stack_of(&container)?;
        let mut tar = TarWriter::new(out);
        strata_unionfs::write_merged(&observed(&container, &stack), &mut tar)?;
        end(tar)
    }
}

/// The tree of an image.
fn shown(stack: &Stack) -> MountSpec {
    MountSpec { lower: lower_of(stack), upper: None, options: Options { read_only: true, ..Options::default() } }
}

/// The container's tree, only looked at. It may be mounted and in use meanwhile.
fn observed(container: &Container, stack: &Stack) -> MountSpec {
    MountSpec {
        lower: lower_of(stack),
        upper: Some(Upper { dir: container.upper(), work: container.work() }),
        options: Options { read_only: true, ..Options::default() },
    }
}

/// Where every container of an image has something mounted, or made for it, whether the image has anything there or not. Docker
/// keeps this in a layer of its own.
fn mount_points(stack: &Stack) -> Result<MountPoints, ChangesError> {
    let index = launch::open_index(&stack.index).map_err(WalkError::Read)?;
    let always = own_file::ALWAYS_MOUNTED.into_iter().chain([launch::CONTAINER_MARK]).map(str::to_owned);
    Ok(MountPoints::new(always.chain(network_files::places(&index))))
}

fn end<W: Write>(tar: TarWriter<W>) -> Result<(), ChangesError> {
    let (_, skipped) = tar.finish()?;
    for part in skipped {
        tracing::warn!(path = %String::from_utf8_lossy(&part.path), "left out: {:?}", part.what);
    }
    Ok(())
}

/// What the container was created with otherwise than its image says, as Docker keeps it for the new image.
fn own_changes(config: &Config, image: &ContainerConfig) -> Vec<Change> {
    let mut changes = Vec::new();
    let (entrypoint, command) = config.command.split_at(config.entrypoint_length.min(config.command.len()));
    let same = |own: &[String], other: &Option<Vec<String>>| other.as_deref().unwrap_or_default() == own;
    if !same(entrypoint, &image.entrypoint) {
        changes.push(Change::Entrypoint(entrypoint.to_vec()));
        changes.push(Change::Cmd(command.to_vec()));
    } else if !same(command, &image.cmd) {
        changes.push(Change::Cmd(command.to_vec()));
    }
    let known = image.env.as_deref().unwrap_or_default();
    let variables = config.environment.iter().filter(|line| !known.contains(line));
    let variables: Vec<_> = variables
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if !variables.is_empty() {
        changes.push(Change::Env(variables));
    }
    if config.user != image.user {
        changes.push(Change::User(config.user.clone()));
    }
    // A container without one starts in the root, which says nothing about the image.
    if config.working_directory != image.working_dir
        && (config.working_directory != "/" || !image.working_dir.is_empty())
    {
        changes.push(Change::WorkDir(config.working_directory.clone()));
    }
    let known = image.labels.clone().unwrap_or_default();
    let labels: Vec<_> = config
        .labels
        .iter()
        .filter(|(name, value)| known.get(*name) != Some(value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !labels.is_empty() {
        changes.push(Change::Label(labels));
    }
    changes
}
