//! An archive as a set of members, wherever it comes from.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use strata_layer::DiffId;

use super::members::{Content, Members, SeekingFile};
use super::stream::{self, StreamArchive};
use super::{Input, LoadError, StreamContext};
use crate::decompress::{Compression, read_start};
use crate::ingest::NewLayer;

/// The members of an archive.
#[derive(Debug)]
pub(super) enum Archive {
    /// An uncompressed tar in a file that can be read at any position.
    File(FileArchive),
    /// A folder.
    Folder(OwnedFd),
    /// A stream that has passed by.
    Stream(StreamArchive),
}

/// Where the bytes of a layer are.
pub(super) enum LayerSource<'a> {
    /// They are still to be read.
    Reader {
        /// Gives the bytes.
        reader: Box<dyn Read + Send + 'a>,
        /// How many there are.
        size: u64,
    },
    /// The layer has been taken in already.
    Taken(&'a NewLayer),
    /// The layer is in the store and was not read.
    Present(DiffId),
}

#[derive(Debug)]
pub(super) struct FileArchive {
    file: File,
    members: HashMap<String, Place>,
}

/// Where a member is in a file.
#[derive(Clone, Debug)]
enum Place {
    File { offset: u64, size: u64 },
    Link(String),
    Other,
}

impl Archive {
    /// Finds out what the input is and what is in it. A stream is read to its end.
    pub(super) fn open(input: Input<'_>, context: &StreamContext<'_>) -> Result<Archive, LoadError> {
        match input {
            Input::Path(path) => Archive::open_path(&path, context),
            Input::File(file) => Archive::open_file(file, context),
            Input::Stream(stream) => stream::read(stream, context).map(Archive::Stream),
        }
    }

    fn open_path(path: &Path, context: &StreamContext<'_>) -> Result<Archive, LoadError> {
        let open_error = |source| LoadError::Open { path: path.display().to_string(), source };
        let file = File::open(path).map_err(open_error)?;
        if file.metadata().map_err(open_error)?.is_dir() {
            return Ok(Archive::Folder(file.into()));
        }
        Archive::open_file(file, context)
    }

    fn open_file(mut file: File, context: &StreamContext<'_>) -> Result<Archive, LoadError> {
        let metadata = file.metadata().map_err(LoadError::Read)?;
        let at_start = metadata.is_file() && io::Seek::stream_position(&mut file).map_err(LoadError::Read)? == 0;
        if at_start {
            let start = read_start(&mut &file, 4).map_err(LoadError::Read)?;
            if Compression::of(&start) == Compression::None {
                return FileArchive::scan(file, metadata.len()).map(Archive::File);
            }
            io::Seek::rewind(&mut file).map_err(LoadError::Read)?;
        }
        stream::read(Box::new(file), context).map(Archive::Stream)
    }

    /// Returns whether there is a member of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        let Some(name) = normalise(name) else { return false };
        match self {
            Archive::File(archive) => archive.members.contains_key(&name),
            Archive::Folder(folder) => open_beneath(folder, &name).is_ok(),
            Archive::Stream(archive) => archive.has(&name),
        }
    }

    /// Fails if there is no file of this name.
    pub(super) fn check_exists(&self, name: &str) -> Result<(), LoadError> {
        if self.has(name) { Ok(()) } else { Err(LoadError::Missing { member: name.to_owned() }) }
    }

    /// Reads a whole member of at most `limit` bytes.
    pub(super) fn document(&self, name: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
        let LayerSource::Reader { reader, size } = self.layer(name)? else {
            return Err(LoadError::NotADocument { member: name.to_owned() });
        };
        if size > limit {
            return Err(LoadError::DocumentTooLarge { member: name.to_owned(), size, limit });
        }
        let mut bytes = Vec::new();
        // A file of a folder may grow while it is read.
        reader.take(limit + 1).read_to_end(&mut bytes).map_err(LoadError::Read)?;
        if bytes.len() as u64 != size {
            return Err(LoadError::Size { member: name.to_owned(), expected: size, found: bytes.len() as u64 });
        }
        Ok(bytes)
    }

    /// Returns the bytes of a member, or the layer that was made of them already.
    pub(super) fn layer(&self, name: &str) -> Result<LayerSource<'_>, LoadError> {
        let missing = || LoadError::Missing { member: name.to_owned() };
        let normal = normalise(name).ok_or_else(missing)?;
        match self {
            Archive::File(archive) => match follow(&archive.members, &normal, Place::target) {
                None => Err(missing()),
                Some(Place::File { offset, size }) => {
                    let reader = Region { file: &archive.file, offset: *offset, left: *size };
                    Ok(LayerSource::Reader { reader: Box::new(reader), size: *size })
                }
                Some(_) => Err(LoadError::NotAFile { member: name.to_owned() }),
            },
            Archive::Folder(folder) => {
                let file = open_beneath(folder, &normal).map_err(|error| match error {
                    rustix::io::Errno::NOENT => missing(),
                    error => LoadError::Open { path: name.to_owned(), source: error.into() },
                })?;
                let metadata = file.metadata().map_err(LoadError::Read)?;
                if !metadata.is_file() {
                    return Err(LoadError::NotAFile { member: name.to_owned() });
                }
                Ok(LayerSource::Reader { reader: Box::new(file), size: metadata.len() })
            }
            Archive::Stream(archive) => archive.layer(&normal),
        }
    }
}

impl FileArchive {
    fn scan(file: File, length: u64) -> Result<FileArchive, LoadError> {
        let mut members = HashMap::new();
        let mut reader = Members::new(SeekingFile::new(&file, length));
        while let Some(member) = reader.next()? {
            let place = match member.content {
                Content::File => Place::File { offset: reader.content_offset(), size: member.size },
                Content::Link(target) => Place::Link(target),
                Content::Folder => continue,
                Content::Other => Place::Other,
            };
            if members.insert(member.name.clone(), place).is_some() {
                return Err(LoadError::Repeated { member: member.name });
            }
        }
        drop(reader);
        Ok(FileArchive { file, members })
    }
}

impl Place {
    fn target(&self) -> Option<&str> {
        match self {
            Place::Link(target) => Some(target),
            _ => None,
        }
    }
}

/// Looks a member up; a link is followed once, which is what archives of `docker save` need.
pub(super) fn follow<'a, T>(
    members: &'a HashMap<String, T>,
    name: &str,
    target: impl Fn(&T) -> Option<&str>,
) -> Option<&'a T> {
    let found = members.get(name)?;
    match target(found) {
        Some(target) => members.get(target),
        None => Some(found),
    }
}

/// Returns a member's name without empty and `.` components; `None` if it leads upwards or to nothing.
pub(super) fn normalise(name: &str) -> Option<String> {
    resolve_within("", name)
}

/// Resolves a path relative to a folder of the archive; `None` if it leads out of it.
pub(super) fn resolve_within(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn open_beneath(folder: &OwnedFd, name: &str) -> rustix::io::Result<File> {
    // A FIFO must not make us wait, nor a link lead out of the folder.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve).map(File::from)
}

/// A part of a file, read without moving the file's position.
pub(super) struct Region<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
    pub(super) left: u64,
}

impl Read for Region<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
