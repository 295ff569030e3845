//! Reading a log, oldest record first, over all of its files.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use strata_imagestore::Timestamp;

use super::follow::Watch;
use super::{LogRecord, json, local, rotated};
use crate::container::{Container, FindError, LogDriver};

/// Which records are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// None from before this moment.
    pub since: Option<Timestamp>,
    /// None from after this moment.
    pub until: Option<Timestamp>,
    /// Only so many from the end.
    pub tail: Option<usize>,
    /// Wait for more as long as the container runs.
    pub follow: bool,
}

/// A log that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The container cannot be found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Nothing is kept. The text is Docker's.
    #[error("configured logging driver does not support reading")]
    NotKept,
    /// The file system refused.
    #[error("read the log {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A log that is being read.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    driver: LogDriver,
    options: LogOptions,
    /// Files still to be read, oldest first; the first one is being read.
    files: VecDeque<Source>,
    watch: Option<Watch>,
}

/// One file that is being read.
#[derive(Debug)]
struct Source {
    file: File,
    /// Where the next piece of it is read.
    offset: u64,
    /// What was read and not yet decoded.
    buffer: Vec<u8>,
    begin: usize,
}

impl LogReader {
    pub(crate) fn open(container: &Container, options: LogOptions) -> Result<LogReader, LogError> {
        let path = super::path(container).ok_or(LogError::NotKept)?;
        let failed = |source| LogError::Read { path: path.clone(), source };
        let watch = match (options.follow, container.state.owner()) {
            // Before anything is read: what is written from now on is noticed.
            (true, Some(owner)) => Watch::start(container.folder(), owner).map_err(failed)?,
            _ => None,
        };
        let mut reader = LogReader::at(&path, container.config.log.driver, options).map_err(failed)?;
        reader.watch = watch;
        Ok(reader)
    }

    pub(super) fn at(path: &Path, driver: LogDriver, options: LogOptions) -> io::Result<LogReader> {
        let mut files = VecDeque::new();
        for age in 0.. {
            match Source::open(&rotated(path, age), driver) {
                Ok(source) => files.push_front(source),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        let mut reader = LogReader { path: path.to_owned(), driver, options, files, watch: None };
        if let Some(tail) = reader.options.tail {
            reader.skip_to_tail(tail)?;
        }
        Ok(reader)
    }

    /// Returns the next record; `None` at the end. A reader that follows waits for more before it says that.
    pub fn next_record(&mut self) -> Result<Option<LogRecord>, LogError> {
        let path = self.path.clone();
        self.next(true).map_err(|source| LogError::Read { path, source })
    }

    /// Returns the next record that is there already.
    fn next(&mut self, wait: bool) -> io::Result<Option<LogRecord>> {
        loop {
            if let Some(record) = self.next_of_any_time()? {
                if self.options.since.is_some_and(|since| record.at < since) {
                    continue;
                }
                if self.options.until.is_some_and(|until| record.at > until) {
                    return Ok(None);
                }
                return Ok(Some(record));
            }
            let Some(watch) = self.watch.as_mut().filter(|_| wait) else { return Ok(None) };
            let deadline = self.options.until;
            if !watch.wait(deadline)? {
                // The monitor is gone: what it wrote last is read, and that is all.
                self.watch = None;
            }
            self.look_for_newer_files()?;
        }
    }

    fn next_of_any_time(&mut self) -> io::Result<Option<LogRecord>> {
        while let Some(source) = self.files.front_mut() {
            if let Some(record) = source.next(self.driver)? {
                return Ok(Some(record));
            }
            // The newest file may still grow.
            if self.files.len() == 1 {
                return Ok(None);
            }
            self.files.pop_front();
        }
        Ok(None)
    }

    /// After a rotation the file that was the newest has another name.
    fn look_for_newer_files(&mut self) -> io::Result<()> {
        let last = match self.files.back() {
            Some(source) => Some(source.file.metadata()?.ino()),
            None => None,
        };
        let mut newer = Vec::new();
        for age in 0.. {
            match Source::open(&rotated(&self.path, age), self.driver) {
                Ok(source) if Some(source.file.metadata()?.ino()) == last => break,
                Ok(source) => newer.push(source),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        self.files.extend(newer.into_iter().rev());
        Ok(())
    }

    /// Goes on behind all but the last `tail` records.
    fn skip_to_tail(&mut self, tail: usize) -> io::Result<()> {
        let mut missing = tail;
        let mut position = self.files.len();
        while missing > 0 && position > 0 {
            position -= 1;
            missing = self.files[position].keep_last(missing, self.driver)?;
        }
        if missing == 0 && tail == 0 {
            // Nothing that is there already, only what comes.
            if let Some(newest) = self.files.back_mut() {
                newest.keep_last(0, self.driver)?;
            }
            position = self.files.len().saturating_sub(1);
        }
        self.files.drain(..position);
        Ok(())
    }
}

impl Source {
    fn open(path: &Path, driver: LogDriver) -> io::Result<Source> {
        let file = File::open(path)?;
        let offset = if driver == LogDriver::Local { local::MAGIC.len() as u64 } else { 0 };
        Ok(Source { file, offset, buffer: Vec::new(), begin: 0 })
    }

    fn next(&mut self, driver: LogDriver) -> io::Result<Option<LogRecord>> {
        loop {
            let bytes = &self.buffer[self.begin..];
            let found = match driver {
                LogDriver::JsonFile => json::decode(bytes),
                LogDriver::Local | LogDriver::None => local::decode(bytes),
            };
            if let Some((record, length)) = found {
                self.begin += length;
                return Ok(Some(record));
            }
            if driver == LogDriver::JsonFile
                && let Some(length) = json::length(bytes)
            {
                // A line that is none of ours; the next one may be.
                self.begin += length;
                continue;
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Reads on; `false` at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.begin);
        self.begin = 0;
        let before = self.buffer.len();
        self.buffer.resize(before + CHUNK, 0);
        let count = self.file.read_at(&mut self.buffer[before..], self.offset);
        self.buffer.truncate(before + *count.as_ref().unwrap_or(&0));
        let count = count?;
        self.offset += count as u64;
        Ok(count > 0)
    }

    /// Skips all but the last `wanted` records; returns how many are missing.
    fn keep_last(&mut self, wanted: usize, driver: LogDriver) -> io::Result<usize> {
        let mut begins: VecDeque<u64> = VecDeque::new();
        let mut end = self.offset;
        loop {
            let bytes = &self.buffer[self.begin..];
            let length = match driver {
                LogDriver::JsonFile => json::length(bytes),
                LogDriver::Local | LogDriver::None => local::length(bytes).filter(|length| *length <= bytes.len()),
            };
            match length {
                Some(length) => {
                    begins.push_back(end);
                    if begins.len() > wanted {
                        begins.pop_front();
                    }
                    self.begin += length;
                    end += length as u64;
                }
                None if self.fill()? => {}
                None => break,
            }
        }
        self.offset = *begins.front().unwrap_or(&end);
        self.buffer.clear();
        self.begin = 0;
        Ok(wanted - begins.len())
    }
}

/// Where the last whole record of a file in our own form ends; zero for a file that is none.
pub(super) fn end_of_records(file: &File) -> io::Result<u64> {
    let mut magic = [0; local::MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
        result => result?,
    }
    if magic != *local::MAGIC {
        return Ok(0);
    }
    let offset = magic.len() as u64;
    let mut source = Source { file: file.try_clone()?, offset, buffer: Vec::new(), begin: 0 };
    source.keep_last(0, LogDriver::Local)?;
    Ok(source.offset)
}

const CHUNK: usize = 64 << 10;
