//! The members of an outer tar, one after the other.
//!
//! Headers are read by the strict parser for layers. It is given a fresh start at each member, so that the content of
//! members can be left out, or read from elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use strata_layer::tar::{BLOCK, Entry, EntryKind, Event, Limits, Parser, Problem, TarError};

use super::LoadError;
use super::archive::{normalise, resolve_within};

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name, without empty and `.` components.
    pub(super) name: String,
    /// The size of its content.
    pub(super) size: u64,
    /// What it is.
    pub(super) content: Content,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    File,
    Folder,
    /// A symbolic or hard link to another member.
    Link(String),
    /// Something that no image needs.
    Other,
}

/// What a tar is read from.
pub(super) trait Source: Read {
    /// Leaves out `count` bytes. Returns whether there were as many.
    fn skip(&mut self, count: u64) -> io::Result<bool>;

    /// Says what it means when reading fails.
    fn error(&self, error: io::Error) -> LoadError;
}

/// Reads the members of a tar. The content of the current member is read from it as from a file.
#[derive(Debug)]
pub(super) struct Members<S> {
    source: S,
    /// How many bytes have been read or skipped.
    position: u64,
    /// What is left of the content of the current member.
    left: u64,
    /// What follows the content up to the next block.
    padding: u64,
    /// The name of the current member, for messages.
    current: Option<String>,
    count: usize,
    name_bytes: usize,
}

impl<S: Source> Members<S> {
    pub(super) fn new(source: S) -> Members<S> {
        Members { source, position: 0, left: 0, padding: 0, current: None, count: 0, name_bytes: 0 }
    }

    /// Returns where the content of the current member begins, if nothing of it was read yet.
    pub(super) fn content_offset(&self) -> u64 {
        self.position
    }

    /// Says what it means when reading the content of a member fails.
    pub(super) fn error(&self, error: io::Error) -> LoadError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => LoadError::CutOff { member: self.current.clone().unwrap_or_default() },
            _ => self.source.error(error),
        }
    }

    /// Moves to the next member; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Member>, LoadError> {
        loop {
            let rest = self.left + self.padding;
            if rest > 0 && !self.source.skip(rest).map_err(|error| self.error(error))? {
                return Err(LoadError::CutOff { member: self.current.clone().unwrap_or_default() });
            }
            self.position += rest;
            (self.left, self.padding) = (0, 0);

            let Some(entry) = self.read_headers()? else { return Ok(None) };
            self.left = entry.data.end - entry.data.start;
            self.padding = self.left.next_multiple_of(BLOCK as u64) - self.left;
            // No document can name what is not UTF-8.
            let Ok(path) = String::from_utf8(entry.path.clone()) else { continue };
            self.count_member(&path)?;
            if path.split('/').any(|part| part == "..") {
                return Err(LoadError::MemberName { name: path });
            }
            // The root folder itself.
            let Some(name) = normalise(&path) else { continue };
            self.current = Some(name.clone());
            return Ok(Some(Member { size: self.left, content: content_of(&entry, &name), name }));
        }
    }

    fn count_member(&mut self, path: &str) -> Result<(), LoadError> {
        self.count += 1;
        self.name_bytes += path.len();
        if self.count > MAX_MEMBERS || self.name_bytes > MAX_NAME_BYTES {
            return Err(LoadError::TooManyMembers);
        }
        Ok(())
    }

    /// Reads up to the content of the next member.
    fn read_headers(&mut self) -> Result<Option<Entry>, LoadError> {
        let mut parser = Parser::new(Limits::default());
        let start = self.position;
        loop {
            let mut block = [0; BLOCK];
            let count = self.fill(&mut block)?;
            let is_first = self.position == start;
            if is_first && count == BLOCK && block.iter().all(|byte| *byte == 0) {
                self.position += BLOCK as u64;
                return self.check_end().map(|()| None);
            }
            self.position += count as u64;
            let result = match parser.next_event(&mut &block[..count]) {
                Ok(Some(Event::Entry(entry))) => return Ok(Some(*entry)),
                Ok(_) if count == BLOCK => continue,
                Ok(_) => parser.finish(),
                Err(error) => Err(error),
            };
            // The marker of the end may be missing.
            return match result {
                Ok(()) => Ok(None),
                Err(error) => Err(self.tar_error(error, start)),
            };
        }
    }

    /// Reads what follows the end marker: nothing but zeros.
    fn check_end(&mut self) -> Result<(), LoadError> {
        let mut buffer = vec![0; SKIP_BUFFER];
        let end = self.position;
        loop {
            let count = self.fill(&mut buffer)?;
            let garbage = buffer[..count].iter().position(|byte| *byte != 0);
            // No tool pads as much; an endless device does.
            let endless = (self.position - end > MAX_TRAILER).then_some(0);
            if let Some(offset) = garbage.or(endless) {
                let error = TarError { offset: offset as u64, entry: None, problem: Problem::TrailingData };
                return Err(self.tar_error(error, self.position));
            }
            self.position += count as u64;
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LoadError> {
        let mut count = 0;
        while count < buffer.len() {
            match self.source.read(&mut buffer[count..]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(error)),
            }
        }
        Ok(count)
    }

    /// Makes the offset one in the whole archive. What does not even begin as a tar is no archive.
    fn tar_error(&self, mut source: TarError, start: u64) -> LoadError {
        if start == 0 && matches!(source.problem, Problem::Checksum | Problem::Truncated) {
            return LoadError::NotAnArchive;
        }
        source.offset += start;
        LoadError::Tar { after: self.current.clone(), source }
    }
}

impl<S: Source> Read for Members<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.source.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
        }
        self.left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

fn content_of(entry: &Entry, name: &str) -> Content {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let link = |folder: &str, target: &[u8]| {
        let target = std::str::from_utf8(target).ok().and_then(|target| resolve_within(folder, target));
        target.map_or(Content::Other, Content::Link)
    };
    match &entry.kind {
        EntryKind::Directory => Content::Folder,
        EntryKind::Regular if entry.sparse.is_none() => Content::File,
        EntryKind::Symlink { target } if !target.starts_with(b"/") => link(folder, target),
        EntryKind::HardLink { target } => link("", target),
        _ => Content::Other,
    }
}

/// A file that is read at any position.
#[derive(Debug)]
pub(super) struct SeekingFile<'a> {
    file: &'a File,
    position: u64,
    length: u64,
}

impl<'a> SeekingFile<'a> {
    pub(super) fn new(file: &'a File, length: u64) -> SeekingFile<'a> {
        SeekingFile { file, position: 0, length }
    }
}

impl Read for SeekingFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Source for SeekingFile<'_> {
    fn skip(&mut self, count: u64) -> io::Result<bool> {
        self.position = self.position.saturating_add(count);
        Ok(self.position <= self.length)
    }

    fn error(&self, error: io::Error) -> LoadError {
        LoadError::Read(error)
    }
}

const MAX_MEMBERS: usize = 1_000_000;
const MAX_TRAILER: u64 = 64 << 20;
const MAX_NAME_BYTES: usize = 16 << 20;
pub(super) const SKIP_BUFFER: usize = 64 << 10;
