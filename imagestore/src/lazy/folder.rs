//! The folder of a layer that is not whole: `layers/<diff_id>/lazy`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::map::{ChunkMap, Layout};
use crate::disk::{DiskError, OnDisk, create_new, exists, make_folder, open_if_present};

/// The name of the folder within that of the layer.
pub(crate) const LAZY: &str = "lazy";

/// Returns whether the layer in a folder is not whole, or waits for the end of a mount.
pub(crate) fn is_lazy(layer: &Path) -> Result<bool, DiskError> {
    exists(&layer.join(LAZY).join(MAP))
}

/// Returns whether the layer in a folder was found not to be what its table of contents says: nothing of it is served, and
/// it is as good as absent.
pub(crate) fn is_refused(layer: &Path) -> Result<bool, DiskError> {
    exists(&layer.join(LAZY).join(REFUSED))
}

/// How much of a layer, or of an image's layers, is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LazyProgress {
    /// Bytes of the compressed blobs whose content is here and verified.
    pub here: u64,
    /// Bytes of the compressed blobs.
    pub size: u64,
    /// What failed last, and when; `None` if everything that had failed has come since.
    pub failure: Option<String>,
    /// Whether a layer turned out not to be what its table of contents says, or its folder is damaged: it has to be pulled
    /// anew.
    pub refused: bool,
}

/// Where a layer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// The registry.
    pub(crate) registry: String,
    /// The repository there.
    pub(crate) repository: String,
}

/// An open folder. Everything in it is reached through its descriptor, so that nothing of one that has taken its place
/// meanwhile is mixed with it.
#[derive(Debug)]
pub(crate) struct LazyFolder {
    path: PathBuf,
    folder: File,
    pub(crate) map: ChunkMap,
    /// The content, as far as it is here; whatever becomes of its name.
    pub(crate) content: File,
    /// A byte for each chunk, 1 if it is here.
    have: File,
}

impl LazyFolder {
    /// Makes the folder and its content, which is given what is known of it before the map is.
    pub(crate) fn create(path: &Path) -> Result<File, DiskError> {
        make_folder(path)?;
        create_new(&path.join(CONTENT))
    }

    /// Completes a new folder: afterwards it can be opened.
    pub(crate) fn describe(path: &Path, content: &File, map: &ChunkMap, source: &Source) -> Result<(), DiskError> {
        let content_path = path.join(CONTENT);
        content.set_len(map.size).on_disk("extend", &content_path)?;
        let write = |name: &str, bytes: &[u8]| {
            let path = path.join(name);
            create_new(&path)?.write_all(bytes).on_disk("write", &path)
        };
        write(HAVE, &vec![0; map.chunks.len()])?;
        write(BOOT, boot().as_bytes())?;
        write(SOURCE, &serde_json::to_vec(source).expect("two texts are JSON"))?;
        write(MAP, &map.to_bytes())
    }

    /// Opens the folder of a layer; `None` if the layer is not here or has become an ordinary one. A map that cannot be
    /// understood is an error, of the kind `InvalidData`.
    pub(crate) fn open(path: &Path, access: FolderAccess) -> Result<Option<LazyFolder>, DiskError> {
        let Some(folder) = open_if_present(path)? else { return Ok(None) };
        let Some(bytes) = read_in(&folder, path, MAP)? else { return Ok(None) };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
        let map = ChunkMap::from_bytes(&bytes).ok_or_else(damaged).on_disk("read", &path.join(MAP))?;
        let flags = if access == FolderAccess::Write { OFlags::RDWR } else { OFlags::RDONLY };
        let content = open_in(&folder, path, CONTENT, flags)?;
        let have = open_in(&folder, path, HAVE, flags)?;
        let (Some(content), Some(have)) = (content, have) else { return Ok(None) };
        Ok(Some(LazyFolder { path: path.to_owned(), folder, map, content, have }))
    }

    /// Returns whether the folder still is what its name says. It is not once its layer was removed from the store,
    /// whatever has its name now.
    pub(crate) fn is_in_place(&self) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let named = fs::metadata(&self.path).map(identity);
        named.is_ok_and(|named| self.folder.metadata().is_ok_and(|opened| identity(opened) == named))
    }

    /// Notes for good that the layer is not what its table of contents says.
    pub(crate) fn refuse(&self) -> Result<(), DiskError> {
        self.write(REFUSED, b"")?;
        self.folder.sync_all().on_disk("sync", &self.path)
    }

    /// Returns whether that was noted.
    pub(crate) fn is_refused(&self) -> Result<bool, DiskError> {
        Ok(self.read(REFUSED)?.is_some())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        read_in(&self.folder, &self.path, name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let gone = || io::Error::from(Errno::NOENT);
        let mut file = open_in(&self.folder, &self.path, name, flags)?.ok_or_else(gone).on_disk("create", &path)?;
        file.write_all(bytes).on_disk("write", &path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn content_path(&self) -> PathBuf {
        self.path.join(CONTENT)
    }

    pub(crate) fn source(&self) -> Result<Option<Source>, DiskError> {
        Ok(self.read(SOURCE)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Returns which chunks are here.
    pub(crate) fn have(&self) -> Result<Vec<u8>, DiskError> {
        let mut have = vec![0; self.map.chunks.len()];
        self.have.read_exact_at(&mut have, 0).on_disk("read", &self.path.join(HAVE))?;
        Ok(have)
    }

    /// Returns whether all of these chunks are here.
    pub(crate) fn has(&self, chunks: std::ops::Range<usize>) -> io::Result<bool> {
        // Most reads are within a chunk or two.
        let mut few = [0; 64];
        let mut at = chunks.start;
        while at < chunks.end {
            let count = few.len().min(chunks.end - at);
            self.have.read_exact_at(&mut few[..count], at as u64)?;
            if few[..count].contains(&0) {
                return Ok(false);
            }
            at += count;
        }
        Ok(true)
    }

    /// Keeps a chunk that was verified.
    pub(crate) fn keep(&self, number: usize, content: &[u8], tail: &[u8]) -> Result<(), DiskError> {
        // An empty tail is noted as well: else nobody could tell it from one that was lost.
        if self.map.layout == Layout::Files {
            let path = self.path.join(TAILS);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
            let gone = || io::Error::from(Errno::NOENT);
            let tails = open_in(&self.folder, &self.path, TAILS, flags)?;
            let mut tails = tails.ok_or_else(gone).on_disk("create", &path)?;
            let mut record = Vec::with_capacity(tail.len() + TAIL_HEADER);
            record.extend_from_slice(&(number as u64).to_le_bytes());
            record.extend_from_slice(&(tail.len() as u64).to_le_bytes());
            record.extend_from_slice(tail);
            tails.write_all(&record).on_disk("write", &path)?;
        }
        let place = self.map.chunks[number].offset;
        self.content.write_all_at(content, place).on_disk("write", &self.content_path())?;
        self.have.write_all_at(&[1], number as u64).on_disk("write", &self.path.join(HAVE))
    }

    /// Takes back chunks that turned out not to be here after all.
    pub(crate) fn lose(&self, chunks: std::ops::Range<usize>) -> Result<(), DiskError> {
        let zeros = vec![0; chunks.len()];
        self.have.write_all_at(&zeros, chunks.start as u64).on_disk("write", &self.path.join(HAVE))
    }

    /// Reads the tails, by the numbers of their chunks; one that was cut off is none.
    pub(crate) fn tails(&self) -> Result<HashMap<usize, (u64, u64)>, DiskError> {
        let path = self.path.join(TAILS);
        let mut found = HashMap::new();
        let Some(file) = self.tails_file()? else { return Ok(found) };
        let size = file.metadata().on_disk("examine", &path)?.len();
        let mut at = 0;
        loop {
            let mut header = [0; TAIL_HEADER];
            if at + TAIL_HEADER as u64 > size {
                return Ok(found);
            }
            file.read_exact_at(&mut header, at).on_disk("read", &path)?;
            let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
            let (chunk, length) = (number(0), number(8));
            let start = at + TAIL_HEADER as u64;
            if start.checked_add(length).is_none_or(|end| end > size) {
                return Ok(found);
            }
            // A number that no chunk has is damage, and never asked for.
            found.insert(usize::try_from(chunk).unwrap_or(usize::MAX), (start, length));
            at = start + length;
        }
    }

    pub(crate) fn tails_file(&self) -> Result<Option<File>, DiskError> {
        open_in(&self.folder, &self.path, TAILS, OFlags::RDONLY)
    }

    /// Returns how much is here.
    pub(crate) fn progress(&self) -> Result<LazyProgress, DiskError> {
        let have = self.have()?;
        let here = self.map.chunks.iter().zip(&have).filter(|(_, have)| **have != 0);
        let here = here.map(|(chunk, _)| chunk.blob_length).sum();
        let size = self.map.chunks.iter().map(|chunk| chunk.blob_length).sum();
        Ok(LazyProgress { here, size, failure: self.failure()?, refused: self.is_refused()? })
    }

    /// Returns what failed last, unless everything is well again.
    pub(crate) fn failure(&self) -> Result<Option<String>, DiskError> {
        let failure = self.read(FAILURE)?;
        let failure = failure.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
        Ok(failure.filter(|text| !text.is_empty()))
    }

    /// Notes what failed last, or that everything is well again.
    pub(crate) fn note_failure(&self, text: &str) {
        // Only told to people.
        let _ = self.write(FAILURE, text.as_bytes());
    }

    /// Returns whether the machine was started anew since what is here was written, so that some of it may be lost.
    pub(crate) fn is_of_another_boot(&self) -> Result<bool, DiskError> {
        Ok(self.read(BOOT)?.is_none_or(|bytes| bytes != boot().as_bytes()))
    }

    /// Notes that what counts as here was compared again since the machine was started.
    pub(crate) fn note_boot(&self) -> Result<(), DiskError> {
        self.write(BOOT, boot().as_bytes())
    }
}

/// What a folder is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FolderAccess {
    Read,
    Write,
}

/// Opens a file of an open folder, which is only named in errors; `None` if there is none, or the folder was removed.
fn open_in(folder: &File, path: &Path, name: &str, flags: OFlags) -> Result<Option<File>, DiskError> {
    match openat(folder, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        Err(Errno::NOENT) => Ok(None),
        result => result.on_disk("open", &path.join(name)).map(|file| Some(File::from(file))),
    }
}

/// Reads a whole file of an open folder.
fn read_in(folder: &File, path: &Path, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
    let Some(mut file) = open_in(folder, path, name, OFlags::RDONLY)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).on_disk("read", &path.join(name))?;
    Ok(Some(bytes))
}

/// Tells this start of the machine from others.
fn boot() -> &'static str {
    strata_sys::process_stat::boot_id().unwrap_or_default()
}

const CONTENT: &str = "content";
pub(crate) const MAP: &str = "map";
const HAVE: &str = "have";
const TAILS: &str = "tails";
const SOURCE: &str = "source";
const BOOT: &str = "boot";
const FAILURE: &str = "failure";
const REFUSED: &str = "refused";
const TAIL_HEADER: usize = 16;
