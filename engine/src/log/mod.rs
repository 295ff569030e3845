//! What containers write, kept in files: written by the monitor, read by anybody.
//!
//! Both forms are described in `docs/formats/log.md`. A record is one line, or a piece of a line longer than
//! [`MAX_RECORD`]. A file that is torn at its end, by a kill or a power cut, ends with its last whole record.

mod follow;
mod json;
mod local;
mod reader;
mod writer;

pub use reader::{LogError, LogOptions, LogReader};
pub(crate) use writer::LogWriter;

use std::path::{Path, PathBuf};

use strata_imagestore::Timestamp;

use crate::container::{Container, LogDriver};

/// Which of its two outputs a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output, or the terminal.
    Output,
    /// Standard error.
    Error,
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Where it was written.
    pub stream: LogStream,
    /// When it was read by the monitor.
    pub at: Timestamp,
    /// What was written, with its line end if it has one.
    pub text: Vec<u8>,
}

/// A longer line is kept in pieces.
pub(crate) const MAX_RECORD: usize = 16 << 10;

/// The newest file of a container's log; older ones have a number after it.
pub(crate) fn path(container: &Container) -> Option<PathBuf> {
    let name = match container.config.log.driver {
        LogDriver::Local => "container.log".to_owned(),
        LogDriver::JsonFile => format!("{}-json.log", container.config.id),
        LogDriver::None => return None,
    };
    Some(container.folder().join(name))
}

/// The file that was the newest `age` rotations ago.
pub(crate) fn rotated(path: &Path, age: u32) -> PathBuf {
    match age {
        0 => path.to_owned(),
        age => {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{age}"));
            path.with_file_name(name)
        }
    }
}
