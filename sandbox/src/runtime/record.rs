//! What is written about a container: `state.json` in its folder.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};

use super::init::Init;
use crate::cgroup::systemd::Unit;

/// Where the parts of a container are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// The version of this format.
    pub(super) format: u32,
    pub(super) id: String,
    /// The version of the specification that the bundle follows.
    pub(super) oci_version: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub(super) created: String,
    /// Who made it.
    pub(super) owner: u32,
    /// Absent until it exists.
    pub(super) init: Option<Init>,
    /// Whether `create` has come to its end.
    pub(super) complete: bool,
    /// The place of its cgroup below the root of each hierarchy.
    pub(super) cgroup: Option<String>,
    /// Whose cgroup that is, if systemd makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unit: Option<Unit>,
    pub(super) annotations: HashMap<String, String>,
}

impl Record {
    /// Writes it, so that whoever reads sees the old one or this.
    pub(super) fn write(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        write_file(folder, RECORD, &bytes)
    }

    /// Reads what [`write`](Self::write) wrote.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match record.format {
            FORMAT => Ok(record),
            other => Err(format!("written in format {other}, this version knows {FORMAT}")),
        }
    }
}

/// Writes a file under a name of its own first.
pub(super) fn write_file(folder: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(folder, temporary.as_str(), flags, Mode::from_bits_truncate(0o600))?;
    let written = std::fs::File::from(file).write_all(bytes);
    if let Err(error) = written {
        // The next one overwrites it in any case.
        let _ = unlinkat(folder, temporary.as_str(), AtFlags::empty());
        return Err(error);
    }
    Ok(renameat(folder, temporary.as_str(), folder, name)?)
}

/// The file's name.
pub(super) const RECORD: &str = "state.json";
/// Of the only version so far.
pub(super) const FORMAT: u32 = 1;
