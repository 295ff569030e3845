//! Writing a log: lines out of streams, rotation by size.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use memchr::memchr;
use strata_imagestore::Timestamp;

use super::{LogStream, MAX_RECORD, json, local, rotated};
use crate::container::{Container, LogConfig, LogDriver};

/// The log of a container whose process runs.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    config: LogConfig,
    file: File,
    size: u64,
    /// What has no line end yet.
    pending: [Pending; 2],
    /// Records on their way to the file.
    buffer: Vec<u8>,
}

#[derive(Debug, Default)]
struct Pending {
    text: Vec<u8>,
    since: Option<Timestamp>,
}

impl LogWriter {
    /// Opens the log to append to it; what a killed monitor left torn at its end goes. `None` when nothing is kept.
    pub(crate) fn open(container: &Container) -> io::Result<Option<LogWriter>> {
        let Some(path) = super::path(container) else { return Ok(None) };
        Ok(Some(LogWriter::at(path, container.config.log.clone())?))
    }

    fn at(path: PathBuf, config: LogConfig) -> io::Result<LogWriter> {
        let (file, size) = open_file(&path, config.driver)?;
        let pending = [Pending::default(), Pending::default()];
        Ok(LogWriter { path, config, file, size, pending, buffer: Vec::new() })
    }

    /// Takes what was written to `stream`: whole lines go to the file, the rest waits for its end.
    pub(crate) fn write(&mut self, stream: LogStream, mut bytes: &[u8]) -> io::Result<()> {
        let now = Timestamp::now();
        while !bytes.is_empty() {
            let pending = &mut self.pending[stream as usize];
            let room = MAX_RECORD - pending.text.len();
            let reach = &bytes[..room.min(bytes.len())];
            let end = memchr(b'\n', reach).map_or(reach.len(), |position| position + 1);
            let (taken, rest) = bytes.split_at(end);
            bytes = rest;
            let is_whole = taken.ends_with(b"\n") || taken.len() == room;
            if is_whole && pending.text.is_empty() {
                self.add(stream, now, taken)?;
                continue;
            }
            pending.since.get_or_insert(now);
            pending.text.extend(taken);
            if is_whole {
                self.end_record(stream)?;
            }
        }
        self.flush()
    }

    /// Writes what is still without a line end: nothing more will come.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.end_record(LogStream::Output)?;
        self.end_record(LogStream::Error)?;
        self.flush()
    }

    fn end_record(&mut self, stream: LogStream) -> io::Result<()> {
        let Pending { text, since: Some(at) } = std::mem::take(&mut self.pending[stream as usize]) else {
            return Ok(());
        };
        self.add(stream, at, &text)
    }

    /// Puts a record into the buffer; one that has no room in the file any more begins the next one.
    fn add(&mut self, stream: LogStream, at: Timestamp, text: &[u8]) -> io::Result<()> {
        let before = self.buffer.len();
        match self.config.driver {
            LogDriver::JsonFile => json::encode(stream, at, text, &mut self.buffer),
            LogDriver::Local | LogDriver::None => local::encode(stream, at, text, &mut self.buffer),
        }
        if self.size + self.buffer.len() as u64 > self.config.size_limit() && self.size + before as u64 > 0 {
            let record = self.buffer.split_off(before);
            self.flush()?;
            self.rotate()?;
            self.buffer = record;
        }
        Ok(())
    }

    /// One call for all of it, so that a kill leaves nothing torn but by its very timing.
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.buffer);
        self.size += self.buffer.len() as u64;
        // What a burst took is kept for the rest of it.
        let is_burst = self.buffer.len() > MAX_RECORD;
        self.buffer.clear();
        if !is_burst {
            self.buffer.shrink_to(MAX_RECORD);
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        let files = self.config.file_limit();
        for age in (1..files).rev() {
            match std::fs::rename(rotated(&self.path, age - 1), rotated(&self.path, age)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if files == 1 {
            std::fs::remove_file(&self.path)?;
        }
        (self.file, self.size) = open_file(&self.path, self.config.driver)?;
        Ok(())
    }
}

/// Opens a file to append to it and returns where its last whole record ends.
fn open_file(path: &Path, driver: LogDriver) -> io::Result<(File, u64)> {
    let mut file = File::options().read(true).append(true).create(true).mode(0o600).open(path)?;
    let found = file.metadata()?.len();
    let end = match driver {
        LogDriver::JsonFile => end_of_lines(&file, found)?,
        LogDriver::Local | LogDriver::None => super::reader::end_of_records(&file)?,
    };
    if end < found {
        file.set_len(end)?;
    }
    if end == 0 && driver == LogDriver::Local {
        file.write_all(local::MAGIC)?;
        return Ok((file, local::MAGIC.len() as u64));
    }
    Ok((file, end))
}

fn end_of_lines(file: &File, length: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 4096];
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(buffer.len() as u64);
        let size = usize::try_from(end - begin).unwrap_or(buffer.len());
        std::os::unix::fs::FileExt::read_exact_at(file, &mut buffer[..size], begin)?;
        if let Some(position) = buffer[..size].iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + position as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::super::LogRecord;
    use super::super::reader::{LogOptions, LogReader};
    use super::*;

    fn config(driver: LogDriver, max_size: u64, max_file: u32) -> LogConfig {
        LogConfig { driver, max_size: Some(max_size), max_file: Some(max_file) }
    }

    fn all(path: &Path, driver: LogDriver, options: LogOptions) -> Vec<LogRecord> {
        let mut reader = LogReader::at(path, driver, options).unwrap();
        std::iter::from_fn(|| reader.next_record().unwrap()).collect()
    }

    fn texts(path: &Path, driver: LogDriver, options: LogOptions) -> Vec<String> {
        all(path, driver, options).into_iter().map(|record| String::from_utf8(record.text).unwrap()).collect()
    }

    const DRIVERS: [LogDriver; 2] = [LogDriver::Local, LogDriver::JsonFile];

    #[test]
    fn lines_come_back_in_order_whatever_pieces_they_came_in() {
        for driver in DRIVERS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let mut writer = LogWriter::at(path.clone(), config(driver, 0, 1)).unwrap();
            writer.write(LogStream::Output, b"one\ntw").unwrap();
            writer.write(LogStream::Error, b"bad\n").unwrap();
            writer.write(LogStream::Output, b"o\n\nthree").unwrap();
            assert_eq!(texts(&path, driver, LogOptions::default()), ["one\n", "bad\n", "two\n", "\n"]);
            writer.finish().unwrap();
            let found = all(&path, driver, LogOptions::default());
            assert_eq!(found[4].text, b"three");
            assert_eq!((found[1].stream, found[4].stream), (LogStream::Error, LogStream::Output));
            let tail = LogOptions { tail: Some(2), ..LogOptions::default() };
            assert_eq!(texts(&path, driver, tail), ["\n", "three"]);
        }
    }

    #[test]
    fn a_long_line_is_kept_in_pieces() {
        for driver in DRIVERS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let mut writer = LogWriter::at(path.clone(), config(driver, 0, 1)).unwrap();
            let line = [vec![b'x'; MAX_RECORD + 5], b"\n".to_vec()].concat();
            writer.write(LogStream::Output, &line).unwrap();
            let found = texts(&path, driver, LogOptions::default());
            assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [MAX_RECORD, 6]);
        }
    }

    #[test]
    fn the_size_is_bounded_and_the_newest_lines_stay() {
        for driver in DRIVERS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let mut writer = LogWriter::at(path.clone(), config(driver, 1000, 3)).unwrap();
            for number in 0..1000 {
                writer.write(LogStream::Output, format!("line {number}\n").as_bytes()).unwrap();
            }
            let files: Vec<u64> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len())
                .collect();
            assert!(files.len() == 3 && files.iter().all(|size| *size <= 1000), "{files:?}");
            let found = texts(&path, driver, LogOptions::default());
            let expected: Vec<String> = (1000 - found.len()..1000).map(|number| format!("line {number}\n")).collect();
            assert_eq!(found, expected);
            assert!(found.len() > 20, "{}", found.len());
            let tail = LogOptions { tail: Some(20), ..LogOptions::default() };
            assert_eq!(texts(&path, driver, tail), expected[expected.len() - 20..]);
        }
    }

    #[test]
    fn what_is_torn_at_the_end_goes_and_the_next_line_follows_the_last_whole_one() {
        for driver in DRIVERS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let mut writer = LogWriter::at(path.clone(), config(driver, 0, 1)).unwrap();
            writer.write(LogStream::Output, b"one\ntwo\n").unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            File::options().write(true).open(&path).unwrap().set_len(length - 3).unwrap();
            assert_eq!(texts(&path, driver, LogOptions::default()), ["one\n"]);
            let mut writer = LogWriter::at(path.clone(), config(driver, 0, 1)).unwrap();
            writer.write(LogStream::Output, b"three\n").unwrap();
            assert_eq!(texts(&path, driver, LogOptions::default()), ["one\n", "three\n"]);
        }
    }

    #[test]
    fn times_choose() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut writer = LogWriter::at(path.clone(), config(LogDriver::Local, 0, 1)).unwrap();
        writer.write(LogStream::Output, b"one\n").unwrap();
        let between = Timestamp::now();
        while Timestamp::now() <= between {}
        writer.write(LogStream::Output, b"two\n").unwrap();
        let since = LogOptions { since: Some(between), ..LogOptions::default() };
        let until = LogOptions { until: Some(between), ..LogOptions::default() };
        assert_eq!(texts(&path, LogDriver::Local, since), ["two\n"]);
        assert_eq!(texts(&path, LogDriver::Local, until), ["one\n"]);
    }
}
