//! A tree as text, one line per name, so that two trees compare as a diff.
//!
//! ```text
//! . d 0755 0:0 mtime=1700000000.000000000
//! etc/hosts f 0644 0:0 mtime=1700000000.000000000 size=12 nlink=2 sha256=2cf2...
//! etc/hosts2 f 0644 0:0 mtime=1700000000.000000000 size=12 nlink=2 same=etc/hosts sha256=2cf2...
//! dev/null c 0666 0:0 mtime=1700000000.000000000 nlink=1 device=1:3
//! lib l 0777 0:0 mtime=1700000000.000000000 size=7 nlink=1 target=usr/lib
//! ```
//!
//! Lines are in the order of a walk that sorts the names of each directory as bytes. Bytes that are not printable ASCII,
//! spaces and backslashes are written as `\x` and two hexadecimal digits. Directories have no size and no link count:
//! filesystems count those differently.
//!
//! Three sources give the same text: a directory on disk ([`list_directory`]), a merged index with its tars and a layer's
//! index with its tar (both [`list_index`]). Whiteouts and opaque directories exist only in the latter.

mod directory;
mod indexed;

use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;

pub use directory::list_directory;
pub use indexed::list_index;

use crate::Digest;
use crate::index::{Device, Kind, Timestamp};

/// What a listing says about each file.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether the contents of regular files are digested.
    pub contents: bool,
    /// Which extended attributes are listed, by name.
    pub keep_xattr: fn(&[u8]) -> bool,
}

impl Default for Options {
    /// Everything.
    fn default() -> Options {
        Options { contents: true, keep_xattr: |_| true }
    }
}

/// Why a tree cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// A file on disk, or the tar of a file, cannot be read.
    #[error("{operation} {path:?}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// Path in the tree.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The index contradicts itself or the tars.
    #[error("index is damaged at {path:?}")]
    Damaged {
        /// Path in the tree.
        path: PathBuf,
    },
}

/// All that a line says but the path.
#[derive(Clone, Debug)]
struct Facts {
    kind: Kind,
    permissions: u16,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    /// Of regular files and symbolic links.
    size: u64,
    /// Of anything but directories.
    nlink: u64,
    device: Device,
    target: Vec<u8>,
    /// The first path of the same file, if there was one before.
    same: Option<Vec<u8>>,
    /// Type in the directory, if it is not that of the file.
    entry_type: Option<u8>,
    /// `opaque` or `implicit`.
    marks: Vec<&'static str>,
    digest: Option<Digest>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Facts {
    /// Adds the line of the file at `path` to `text`.
    fn write(&self, text: &mut String, path: &[u8]) {
        self.try_write(text, path).expect("writing to a string does not fail");
    }

    fn try_write(&self, text: &mut String, path: &[u8]) -> fmt::Result {
        let Facts { kind, permissions, uid, gid, mtime, .. } = self;
        write!(text, "{} {} {permissions:04o} {uid}:{gid}", Escaped(path_or_dot(path)), letter(*kind))?;
        write!(text, " mtime={}.{:09}", mtime.seconds, mtime.nanoseconds)?;
        if matches!(kind, Kind::Regular | Kind::Symlink) {
            write!(text, " size={}", self.size)?;
        }
        if *kind != Kind::Directory {
            write!(text, " nlink={}", self.nlink)?;
        }
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            write!(text, " device={}:{}", self.device.major, self.device.minor)?;
        }
        if *kind == Kind::Symlink {
            write!(text, " target={}", Escaped(&self.target))?;
        }
        if let Some(same) = &self.same {
            write!(text, " same={}", Escaped(same))?;
        }
        if let Some(entry_type) = self.entry_type {
            write!(text, " d_type={entry_type}")?;
        }
        for mark in &self.marks {
            write!(text, " {mark}")?;
        }
        if let Some(digest) = &self.digest {
            write!(text, " {}", digest.to_string().replace(':', "="))?;
        }
        let mut xattrs: Vec<_> = self.xattrs.iter().collect();
        xattrs.sort_unstable();
        for (name, value) in xattrs {
            write!(text, " {}={}", Escaped(name), Escaped(value))?;
        }
        text.push('\n');
        Ok(())
    }
}

/// Returns the letter that `ls` has for a type, but `f` for regular files.
fn letter(kind: Kind) -> char {
    match kind {
        Kind::Directory => 'd',
        Kind::Regular => 'f',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}

/// Bytes that print as one word.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            match byte {
                b'!'..=b'~' if *byte != b'\\' => f.write_char(char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

fn path_or_dot(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// Returns the path of `name` in the directory at `path`.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
