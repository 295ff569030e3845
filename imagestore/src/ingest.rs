//! One pass over a layer: digest of the blob, decompression, digest of the tar, index, and the tar on disk.
//!
//! Two threads share the work of each layer: the caller's reads and decompresses (and writes what needs no
//! decompression), the other hashes and indexes (and writes what was decompressed). A fixed number of buffers goes
//! round between them, so memory does not depend on the size of the layer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};
use strata_layer::index::{Layer, NewIndex, TableError};
use strata_layer::ingest::{LayerError, LayerIngest};
use strata_layer::tar::Limits;
use strata_layer::{DiffId, Digest};
use strata_sys::writeback::start_writeback;

use crate::decompress::{Bounded, Compression, Decompressor, read_start};
use crate::disk::{DiskError, OnDisk, create_new, make_folder};
use crate::layout::{BLOB, INDEX, TAR};
use crate::scratch::{failed_in, scratch_in, write_index};
use crate::store::Store;

/// A layer in a temporary folder: its tar and its index.
#[derive(Clone, Debug)]
pub(crate) struct NewLayer {
    /// The folder, as it will be in the store.
    pub(crate) folder: PathBuf,
    /// The digest of the tar.
    pub(crate) diff_id: DiffId,
    /// The size of the tar.
    pub(crate) tar_size: u64,
    /// The digest of the blob as it came, compressed or not.
    pub(crate) blob: Digest,
    /// The size of the blob as it came.
    pub(crate) blob_size: u64,
}

/// Why a layer was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The source could not be read.
    #[error("read the layer")]
    Source(#[source] io::Error),
    /// The store could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The compressed data are damaged or too large.
    #[error("decompress the layer")]
    Decompress(#[source] io::Error),
    /// The tar is not acceptable.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl IngestError {
    /// Returns whether the layer is to blame, and not the machine.
    pub(crate) fn is_content(&self) -> bool {
        match self {
            IngestError::Layer(LayerError::Table(TableError::Scratch(_)))
            | IngestError::Source(_)
            | IngestError::Disk(_) => false,
            IngestError::Decompress(_) | IngestError::Layer(_) => true,
        }
    }
}

/// Takes a layer in. `folder` is made; what is in it after an error is to be removed by the caller.
///
/// Where the tar is known that a compressed layer must be, and only zeros at the end of it are missing, they are added:
/// Podman before 5 leaves them out of what it compresses as zstd:chunked.
pub(crate) fn ingest_layer(
    mut source: impl Read,
    folder: PathBuf,
    max_size: u64,
    expected: Option<DiffId>,
    advanced: &mut dyn FnMut(u64),
) -> Result<NewLayer, IngestError> {
    make_folder(&folder)?;
    let tar_path = folder.join(TAR);
    let tar = create_new(&tar_path)?;
    let start = read_start(&mut source, SNIFF).map_err(IngestError::Source)?;
    let compression = Compression::of(&start);
    let mut source = Source {
        reader: (&start[..]).chain(source),
        hash: (compression != Compression::None).then(Sha256::new),
        bytes: 0,
        failed: None,
        advanced,
    };
    let ingested = {
        let reader = Decompressor::new(&mut source, compression).map_err(IngestError::Decompress)?;
        let mut reader = Bounded { source: reader, left: max_size };
        let writer = TarWriter { file: tar, path: &tar_path, written: 0, started: 0 };
        // A blob that is the tar itself has the digest that it has.
        let expected = expected.filter(|_| compression != Compression::None);
        let ingest = LayerIngest::new(Limits::default()).with_scratch(scratch_in(&folder));
        run_pipeline(ingest, &mut reader, compression, writer, expected)
    };
    if let Some(error) = source.failed {
        return Err(IngestError::Source(error));
    }
    let (layer, index) = ingested.map_err(|error| match error {
        IngestError::Layer(LayerError::Table(TableError::Scratch(error))) => failed_in(&folder, error).into(),
        error => error,
    })?;

    write_index(index, &folder.join(INDEX))?;
    let blob = source.hash.map(|hash| Digest::from_bytes(hash.finalize().into()));
    if let Some(blob) = blob {
        let path = folder.join(BLOB);
        create_new(&path)?.write_all(format!("{blob}\n").as_bytes()).on_disk("write", &path)?;
    }
    Store::enable_verity(&folder)?;
    Ok(NewLayer {
        folder,
        diff_id: layer.diff_id,
        tar_size: layer.tar_size,
        blob: blob.unwrap_or(layer.diff_id.0),
        blob_size: source.bytes,
    })
}

/// Brings everything from `reader` into the index and onto the disk.
fn run_pipeline(
    mut ingest: LayerIngest,
    reader: &mut impl Read,
    compression: Compression,
    mut tar: TarWriter<'_>,
    expected: Option<DiffId>,
) -> Result<(Layer, NewIndex), IngestError> {
    let mut chunk = vec![0; CHUNK];
    let first = fill(reader, &mut chunk)?;
    if first < CHUNK {
        // A small layer is not worth a thread.
        ingest.push(&chunk[..first])?;
        tar.write(&chunk[..first])?;
        return finish(ingest, &mut tar, expected);
    }

    let (full_sender, full_receiver): (SyncSender<Vec<u8>>, Receiver<Vec<u8>>) = sync_channel(CHUNKS);
    let (empty_sender, empty_receiver) = channel();
    for _ in 1..CHUNKS {
        // The receiver is alive, it is right here.
        let _ = empty_sender.send(vec![0; CHUNK]);
    }
    let (mut tar_here, mut tar_there) = match compression {
        Compression::None => (Some(tar), None),
        Compression::Gzip | Compression::Zstd => (None, Some(tar)),
    };
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("layer".to_owned()).spawn_scoped(scope, move || {
            for chunk in full_receiver {
                ingest.push(&chunk)?;
                if let Some(tar) = &mut tar_there {
                    tar.write(&chunk)?;
                }
                // The reader is gone only after an error of its own, which it reports.
                let _ = empty_sender.send(chunk);
            }
            match &mut tar_there {
                Some(tar) => finish(ingest, tar, expected),
                None => Ok(ingest.finish_index()?),
            }
        });
        let worker = worker.map_err(IngestError::Source)?;
        let read = (|| -> Result<(), IngestError> {
            let mut count = first;
            loop {
                chunk.truncate(count);
                if let Some(tar) = &mut tar_here {
                    tar.write(&chunk)?;
                }
                let is_last = count < CHUNK;
                if full_sender.send(chunk).is_err() || is_last {
                    return Ok(());
                }
                // The worker stops early only with an error, which it reports.
                let Ok(next) = empty_receiver.recv() else { return Ok(()) };
                chunk = next;
                chunk.resize(CHUNK, 0);
                count = fill(reader, &mut chunk)?;
            }
        })();
        drop(full_sender);
        let ingested: Result<(Layer, NewIndex), IngestError> = match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // A source that broke off makes the tar look cut off, so its own error comes first.
        read.and(ingested)
    })
}

/// Ends a layer, with the zeros that its compressed form lacks.
fn finish(
    mut ingest: LayerIngest,
    tar: &mut TarWriter<'_>,
    expected: Option<DiffId>,
) -> Result<(Layer, NewIndex), IngestError> {
    if let Some(count) = expected.and_then(|expected| ingest.missing_zeros(expected)) {
        let zeros = vec![0; count];
        ingest.push(&zeros)?;
        tar.write(&zeros)?;
    }
    Ok(ingest.finish_index()?)
}

/// The tar on its way to the disk.
struct TarWriter<'a> {
    file: File,
    path: &'a Path,
    written: u64,
    /// How much of it the kernel was asked to write.
    started: u64,
}

impl TarWriter<'_> {
    fn write(&mut self, chunk: &[u8]) -> Result<(), DiskError> {
        self.file.write_all(chunk).on_disk("write", self.path)?;
        self.written += chunk.len() as u64;
        let ready = self.written - self.started;
        if ready >= WRITEBACK_STEP {
            // Else the disk would idle now and we for it at the end. Where this does not work, that is what happens.
            let _ = start_writeback(&self.file, self.started, ready);
            self.started = self.written;
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the source ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, IngestError> {
    let mut count = 0;
    while count < buffer.len() {
        match reader.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(IngestError::Decompress(error)),
        }
    }
    Ok(count)
}

/// The blob as it comes: counted, hashed where that is not the tar's digest anyway, its errors kept apart.
struct Source<'a, R> {
    reader: R,
    hash: Option<Sha256>,
    bytes: u64,
    failed: Option<io::Error>,
    advanced: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.reader.read(buffer) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(error);
                return Err(io::Error::other("the source failed"));
            }
            result => result?,
        };
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..count]);
        }
        let before = self.bytes;
        self.bytes += count as u64;
        if before / PROGRESS_STEP != self.bytes / PROGRESS_STEP {
            (self.advanced)(self.bytes);
        }
        Ok(count)
    }
}

/// How many bytes tell the compression.
const SNIFF: usize = 4;
/// The size of a buffer.
const CHUNK: usize = 1 << 20;
/// How many buffers one layer has.
const CHUNKS: usize = 8;
/// How many bytes are given to the disk at once.
const WRITEBACK_STEP: u64 = 8 << 20;
/// How many bytes lie between two reports.
const PROGRESS_STEP: u64 = 1 << 20;
