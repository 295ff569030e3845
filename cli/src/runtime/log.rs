//! Where errors and warnings go: standard error, and a file that the caller reads (`--log`). containerd's shim takes the last
//! error from there, as JSON.

use std::fs::File;
use std::io::Write;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use strata_engine::oci;

/// The file, if there is one, and how it is written.
#[derive(Debug)]
pub(super) struct Log {
    file: Option<File>,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

impl Log {
    /// Opens the file. With `debug`, what the libraries tell goes to standard error.
    pub(super) fn open(path: Option<&str>, format: Option<&str>, debug: bool) -> Result<Log> {
        let format = match format {
            None | Some("" | "text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => bail!("invalid log-format: {other:?}"),
        };
        let file = match path.filter(|path| !path.is_empty()) {
            // crun's way of naming a file; its others are not ours.
            Some(path) => {
                let path = path.strip_prefix("file:").unwrap_or(path);
                let file = File::options().append(true).create(true).open(path);
                Some(file.with_context(|| format!("open the log {path:?}"))?)
            }
            None => None,
        };
        crate::logging::start(if debug { crate::args::LogLevel::Debug } else { crate::args::LogLevel::Warn });
        Ok(Log { file, format })
    }

    /// Tells of a failure, on standard error in any case.
    pub(super) fn error(&self, text: &str) {
        self.write("error", text);
        if self.file.is_some() {
            eprintln!("{text}");
        }
    }

    /// Tells of something that was left out.
    pub(super) fn warn(&self, text: &str) {
        self.write("warning", text);
    }

    fn write(&self, level: &str, text: &str) {
        let time = oci::timestamp(SystemTime::now());
        let line = match self.format {
            Format::Json => format!("{}\n", json!({ "level": level, "msg": text, "time": time })),
            Format::Text => format!("time={} level={level} msg={}\n", json!(time), json!(text)),
        };
        // One write for one line: others append to the same file. If it cannot be written, nobody can be told.
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}
