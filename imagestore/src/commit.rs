//! New images of one new layer: `import` and `commit`.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use strata_layer::DiffId;

use crate::change::{Change, apply_all};
use crate::image_id::ImageId;
use crate::images::ImageError;
use crate::ingest::{IngestError, NewLayer, ingest_layer};
use crate::load::{Input, LoadError, open_stream};
use crate::model::{ContainerConfig, HistoryEntry, ImageConfig, Platform, RootFs};
use crate::progress::{Event, Progress};
use crate::publish::{NewImage, PublishError};
use crate::reference::ImageRef;
use crate::stack::StackError;
use crate::store::{Store, StoreError};
use crate::timestamp::Timestamp;
use crate::work::WorkDir;

/// What a new image is like, apart from its files.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Its name.
    pub reference: Option<ImageRef>,
    /// What containers of the image start with; the base's if `None`.
    pub config: Option<ContainerConfig>,
    /// Edits of that.
    pub changes: Vec<Change>,
    /// A message.
    pub message: Option<String>,
    /// Who makes it.
    pub author: Option<String>,
    /// The command that made the layer, for the history.
    pub created_by: Option<String>,
    /// When it is made; now if `None`. With a fixed time the same files give the same image.
    pub created: Option<Timestamp>,
    /// The machine that it is for; this one, or the base's, if `None`.
    pub platform: Option<Platform>,
}

impl Store {
    /// Makes an image of one layer, the tar of a root file system, compressed or not.
    pub fn import(
        &self,
        input: Input<'_>,
        options: &CommitOptions,
        progress: &dyn Progress,
    ) -> Result<ImageId, CommitError> {
        self.check_writable()?;
        let work = WorkDir::create(&self.layout).map_err(StoreError::from)?;
        let source = open_stream(input).map_err(|error| CommitError::Open(Box::new(error)))?;
        let name = "import";
        progress.report(Event::Started { layer: name, bytes: None });
        let mut advanced = |bytes| progress.report(Event::Advanced { layer: name, bytes });
        let layer = ingest_layer(source, work.path().join("layer"), MAX_LAYER_SIZE, None, &mut advanced)?;
        progress.report(Event::Finished { layer: name });

        let config = blank_config(options);
        let options = CommitOptions {
            message: Some(options.message.clone().unwrap_or_else(|| "Imported from -".to_owned())),
            ..options.clone()
        };
        let id = self.add_layer(&work, config, Vec::new(), layer, &options)?;
        self.note_image("import", id, &id.to_string());
        Ok(id)
    }

    /// Makes an image of another one, or of none, and one more layer, whose tar `write_tar` writes.
    ///
    /// `write_tar` runs on a thread of its own, so that what it writes is stored meanwhile.
    pub fn commit_layer<E: Send>(
        &self,
        base: Option<&ImageId>,
        write_tar: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send,
        options: &CommitOptions,
    ) -> Result<ImageId, CommitLayerError<E>> {
        self.check_writable().map_err(CommitError::from)?;
        let work = WorkDir::create(&self.layout).map_err(StoreError::from).map_err(CommitError::from)?;
        let (config, sizes) = self.base_config(base, options, &work)?;
        let folder = work.path().join("layer");
        let (sender, receiver) = sync_channel(PIPE_CHUNKS);
        let (written, taken) = thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut pipe = PipeWriter { sender, buffer: Vec::with_capacity(PIPE_CHUNK) };
                let written = write_tar(&mut pipe);
                // Without this last message the reader takes what it got for cut off.
                if written.is_ok() {
                    pipe.finish();
                }
                written
            });
            let pipe = PipeReader { receiver, chunk: Vec::new(), position: 0, complete: false };
            let taken = ingest_layer(pipe, folder, MAX_LAYER_SIZE, None, &mut |_| ());
            match writer.join() {
                Ok(written) => (written, taken),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        match (written, taken) {
            // The writer fails with a broken pipe when the other side has given up: that side knows why.
            (_, Err(error)) if !matches!(error, IngestError::Source(_)) => Err(CommitError::from(error).into()),
            (Err(error), _) => Err(CommitLayerError::Write(error)),
            (Ok(()), Err(error)) => Err(CommitError::from(error).into()),
            (Ok(()), Ok(layer)) => Ok(self.add_layer(&work, config, sizes, layer, options)?),
        }
    }

    /// Returns the configuration to start from and the layers that stay, which are pinned.
    fn base_config(
        &self,
        base: Option<&ImageId>,
        options: &CommitOptions,
        work: &WorkDir,
    ) -> Result<(ImageConfig, Vec<(DiffId, u64)>), CommitError> {
        let Some(base) = base else {
            return Ok((blank_config(options), Vec::new()));
        };
        let image = self.image(base)?;
        let present = self.pin_present(work, &image.layers)?;
        if let Some(gone) = image.layers.iter().find(|layer| !present.contains(layer)) {
            return Err(PublishError::LayerGone { layer: *gone }.into());
        }
        let mut sizes = Vec::with_capacity(image.layers.len() + 1);
        for layer in image.layers {
            sizes.push((layer, self.tar_size(layer)?));
        }
        Ok((image.config, sizes))
    }

    /// Puts the layer on top and makes the image visible.
    fn add_layer(
        &self,
        work: &WorkDir,
        mut config: ImageConfig,
        mut layers: Vec<(DiffId, u64)>,
        layer: NewLayer,
        options: &CommitOptions,
    ) -> Result<ImageId, CommitError> {
        let created = options.created.unwrap_or_else(Timestamp::now).to_string();
        layers.push((layer.diff_id, layer.tar_size));
        if let Some(replacement) = &options.config {
            config.config = replacement.clone();
        }
        apply_all(&options.changes, &mut config.config);
        config.created = Some(created.clone());
        config.author = options.author.clone().or(config.author);
        config.comment.clone_from(&options.message);
        config.rootfs.diff_ids = layers.iter().map(|(layer, _)| *layer).collect();
        // What tools note about the making of the base does not hold for this image.
        for key in ["id", "parent", "container", "container_config", "docker_version", "moby.buildkit.buildinfo.v1"] {
            config.other.remove(key);
        }
        fill_history(&mut config.history, layers.len() - 1);
        config.history.push(HistoryEntry {
            created: Some(created),
            created_by: options.created_by.clone(),
            author: options.author.clone(),
            comment: options.message.clone(),
            empty_layer: false,
        });
        let names = options.reference.iter().cloned().collect();
        let image = NewImage::of_plain_layers(config.to_bytes(), &layers, names);
        let new = BTreeMap::from([(layer.diff_id, layer)]);
        // A first layer is merged by itself, which shows whether it is whole. Over a base that would cost as much as the
        // base is large, and what a container changed fits on what it was changed in.
        let images = std::slice::from_ref(&image);
        let stacks = if layers.len() == 1 { self.merge_new_stacks(work, &new, images)? } else { Vec::new() };
        self.publish(work, &new, &stacks, images)?;
        for name in &image.names {
            self.note_image("tag", image.id(), &name.familiar());
        }
        Ok(image.id())
    }
}

/// Returns the configuration of an image without layers.
fn blank_config(options: &CommitOptions) -> ImageConfig {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    ImageConfig {
        architecture: platform.architecture,
        variant: platform.variant,
        os: platform.os,
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() },
        ..Default::default()
    }
}

/// A base without any history gets one entry for each layer, so that the count stays right.
fn fill_history(history: &mut Vec<HistoryEntry>, layers: usize) {
    if history.iter().all(|entry| entry.empty_layer) {
        history.extend((0..layers).map(|_| HistoryEntry::default()));
    }
}

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The input could not be opened.
    #[error(transparent)]
    Open(Box<LoadError>),
    /// The base was not found or could not be read.
    #[error(transparent)]
    Base(#[from] ImageError),
    /// The layer was not taken in.
    #[error(transparent)]
    Layer(#[from] IngestError),
    /// The layer does not stand by itself.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The image could not be made visible.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Why a layer was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitLayerError<E> {
    /// The store would not take it.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The tar could not be written.
    #[error("write the layer")]
    Write(#[source] E),
}

/// The writing end of a pipe between two threads.
struct PipeWriter {
    sender: SyncSender<Vec<u8>>,
    buffer: Vec<u8>,
}

impl PipeWriter {
    fn send(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIPE_CHUNK));
        self.sender.send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Sends what is left, and an empty message, which is the mark of a regular end.
    fn finish(mut self) {
        // A reader that is gone has failed, and says so.
        let _ = if self.buffer.is_empty() { Ok(()) } else { self.send() };
        let _ = self.sender.send(Vec::new());
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIPE_CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == PIPE_CHUNK {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading end of a pipe between two threads.
struct PipeReader {
    receiver: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
    complete: bool,
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.chunk.len() && !self.complete {
            let chunk = self.receiver.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.complete = chunk.is_empty();
            (self.chunk, self.position) = (chunk, 0);
        }
        let rest = &self.chunk[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }
}

const PIPE_CHUNK: usize = 256 << 10;
const PIPE_CHUNKS: usize = 4;
/// 64 GiB, as for `load`.
const MAX_LAYER_SIZE: u64 = 64 << 30;
