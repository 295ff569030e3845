//! `format.json`: which version of the layout a store has, and which features whoever opens it must know.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::{DiskError, OnDisk, read_if_present, sync_folder, write_durably};
use crate::layout::Layout;
use crate::model::{DocumentError, parse_own_json};
use crate::work::WorkDir;

/// What may be done with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Only reading: a newer version left something behind that only it can keep right.
    ReadOnly,
}

/// The content of `format.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Format {
    version: u32,
    features: Features,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Features {
    /// Whoever does not know these may do everything.
    #[serde(default)]
    ignorable: BTreeSet<String>,
    /// Whoever does not know these may only read.
    #[serde(default)]
    read_only: BTreeSet<String>,
    /// Whoever does not know these must keep away.
    #[serde(default)]
    refuse: BTreeSet<String>,
}

/// Why the format of a store was refused.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is not what this or any later version writes.
    #[error("{path:?} is damaged")]
    Damaged {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// The store has another layout.
    #[error("the store has format version {found}, this program knows version {VERSION}")]
    Version {
        /// The version of the store.
        found: u32,
    },
    /// The store has features that must be known.
    #[error("the store has features that this program does not know: {}", names.join(", "))]
    UnknownFeatures {
        /// Their names.
        names: Vec<String>,
    },
}

/// Reads the format, or writes it if the store is new.
pub(crate) fn establish(layout: &Layout) -> Result<Access, FormatError> {
    let path = layout.format();
    if let Some(bytes) = read_if_present(&path)? {
        return check(&bytes, &path);
    }
    let work = WorkDir::create(layout)?;
    let aside = work.path().join("format.json");
    let format = Format { version: VERSION, features: Features::default() };
    let mut bytes = serde_json::to_vec_pretty(&format).expect("the format has only string keys");
    bytes.push(b'\n');
    write_durably(&aside, &bytes)?;
    // Another process that opens the new store writes the same.
    fs::rename(&aside, &path).on_disk("rename", &path)?;
    sync_folder(layout.root())?;
    Ok(Access::ReadWrite)
}

fn check(bytes: &[u8], path: &Path) -> Result<Access, FormatError> {
    let format: Format =
        parse_own_json(bytes).map_err(|source| FormatError::Damaged { path: path.to_owned(), source })?;
    if format.version != VERSION {
        return Err(FormatError::Version { found: format.version });
    }
    let unknown = |set: BTreeSet<String>| set.into_iter().filter(|name| !KNOWN.contains(&name.as_str()));
    let names: Vec<_> = unknown(format.features.refuse).collect();
    if !names.is_empty() {
        return Err(FormatError::UnknownFeatures { names });
    }
    Ok(if unknown(format.features.read_only).next().is_some() { Access::ReadOnly } else { Access::ReadWrite })
}

/// The version of the layout.
const VERSION: u32 = 1;
/// Features that this version knows.
const KNOWN: [&str; 0] = [];

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Access, String> {
        check(text.as_bytes(), Path::new("format.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn features_decide_what_may_be_done() {
        for (text, expected) in [
            (r#"{"version":1,"features":{}}"#, Ok(Access::ReadWrite)),
            (r#"{"version":1,"features":{"ignorable":["a"]},"more":1}"#, Ok(Access::ReadWrite)),
            (r#"{"version":1,"features":{"read-only":["a"]}}"#, Ok(Access::ReadOnly)),
            (
                r#"{"version":1,"features":{"refuse":["packs","b"],"read-only":["a"]}}"#,
                Err("the store has features that this program does not know: b, packs"),
            ),
            (r#"{"version":2,"features":{}}"#, Err("the store has format version 2, this program knows version 1")),
            ("{", Err("\"format.json\" is damaged")),
        ] {
            assert_eq!(checked(text), expected.map_err(str::to_owned), "{text}");
        }
    }
}
