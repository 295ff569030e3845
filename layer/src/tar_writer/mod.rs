//! Writing a layer, or a whole tree, as a tar.
//!
//! The output is a pure function of what is appended: no time, user name or process id of ours gets into it. Plain
//! ustar headers wherever they are enough; where not (long names, times with fractions, large numbers, extended
//! attributes, holes) a PAX header in front, with the same records in the same order every time. GNU tar, Docker and our
//! own parser read it.
//!
//! Whiteouts and opaque markers are entries of their own kind; a real file cannot be named like one.

mod header;
mod pax;
mod sparse;

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;

use self::header::{BLOCK, Header, TypeFlag};
use self::pax::Records;
use self::sparse::{RangesReader, data_ranges};
use crate::index::{Device, Timestamp};
use crate::whiteout;

/// One entry of a tar, without the content of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TarEntry<'a> {
    /// Where it is: names separated by `/`, relative to the root of the tree; empty for the root itself.
    pub path: &'a [u8],
    /// What it is.
    pub kind: TarKind<'a>,
    /// The lower twelve bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Names and values of extended attributes, in any order. Those that belong to a union filesystem are left out.
    pub xattrs: &'a [(&'a [u8], &'a [u8])],
}

/// What a [`TarEntry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarKind<'a> {
    /// A directory.
    Directory,
    /// A regular file of this size.
    Regular {
        /// Bytes of the file.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to, as it stands.
        target: &'a [u8],
    },
    /// A further name of a file that was appended before.
    HardLink {
        /// The path of that file, in the form of [`TarEntry::path`].
        target: &'a [u8],
    },
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket, which a tar cannot hold.
    Socket,
    /// Something below was deleted: hides `path` in the layers below.
    Whiteout,
    /// The directory `path` hides everything that the layers below have in it.
    Opaque,
}

/// Writes entries to a tar.
#[derive(Debug)]
pub struct TarWriter<W> {
    out: W,
    skipped: Vec<Skipped>,
    /// Whether names that begin like markers are ordinary ones.
    plain: bool,
}

/// Something that a tar cannot express and that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The entry.
    pub path: Vec<u8>,
    /// What was left out of it.
    pub what: SkippedPart,
}

/// What was left out of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkippedPart {
    /// All of it: it is a socket.
    Socket,
    /// The extended attribute of this name: a PAX record cannot carry a `=` in its name.
    Xattr(Vec<u8>),
}

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TarWriteError {
    /// The name belongs to whiteouts.
    #[error("{:?} cannot be in a layer: names beginning with \".wh.\" mark deleted files", text(.path))]
    ReservedName {
        /// The entry, or the target of a hard link.
        path: Vec<u8>,
    },
    /// The marker that hides a name of more than 251 bytes would be longer than names can be.
    #[error("{:?} cannot be deleted in a layer: its name is too long for a marker", text(.path))]
    WhiteoutTooLong {
        /// What was deleted.
        path: Vec<u8>,
    },
    /// The path is not one below the root: absolute, or with an empty, `.` or `..` component or a NUL.
    #[error("{:?} is not a relative path", text(.path))]
    InvalidPath {
        /// The entry, or the target of a hard link.
        path: Vec<u8>,
    },
    /// A symbolic link points nowhere, or to a target with a NUL.
    #[error("symbolic link {:?} has an impossible target", text(.path))]
    InvalidTarget {
        /// The link.
        path: Vec<u8>,
    },
    /// The content ended before the size of the entry.
    #[error("{:?} became shorter while it was read", text(.path))]
    Shrunk {
        /// The file.
        path: Vec<u8>,
    },
    /// The data ranges of a sparse file overlap, are out of order or leave the file.
    #[error("map of sparse file {:?} is wrong", text(.path))]
    InvalidMap {
        /// The file.
        path: Vec<u8>,
    },
    /// A device number is too large for a tar.
    #[error("device number of {:?} is too large", text(.path))]
    InvalidDevice {
        /// The device.
        path: Vec<u8>,
    },
    /// The content cannot be read.
    #[error("read {:?}", text(.path))]
    Read {
        /// The file.
        path: Vec<u8>,
        /// Why.
        source: io::Error,
    },
    /// The tar cannot be written.
    #[error("write tar")]
    Write(#[source] io::Error),
}

impl<W: Write> TarWriter<W> {
    /// Starts the tar of a layer.
    pub fn new(out: W) -> TarWriter<W> {
        TarWriter { out, skipped: Vec::new(), plain: false }
    }

    /// Starts the tar of files that are no layer, where a name that begins with `.wh.` is one like any other.
    pub fn plain(out: W) -> TarWriter<W> {
        TarWriter { plain: true, ..TarWriter::new(out) }
    }

    /// Appends an entry that has no content: anything but a regular file with a size above 0.
    pub fn append(&mut self, entry: &TarEntry<'_>) -> Result<(), TarWriteError> {
        self.append_with(entry, &mut io::empty())
    }

    /// Appends an entry; if it is a regular file, with exactly its size in bytes from `content`.
    pub fn append_with(&mut self, entry: &TarEntry<'_>, content: &mut dyn Read) -> Result<(), TarWriteError> {
        let TarKind::Regular { size } = entry.kind else { return self.append_empty(entry) };
        self.write_header(entry, size, Records::default())?;
        self.copy(entry.path, size, content)?;
        self.pad(size)
    }

    /// Appends a regular file with holes: only what lies in the ranges of `data` is written, and read from `content`,
    /// one range after the other.
    pub fn append_sparse(
        &mut self,
        entry: &TarEntry<'_>,
        data: &[Range<u64>],
        content: &mut dyn Read,
    ) -> Result<(), TarWriteError> {
        let TarKind::Regular { size } = entry.kind else { return self.append_empty(entry) };
        let map =
            sparse::encode_map(data, size).ok_or_else(|| TarWriteError::InvalidMap { path: entry.path.into() })?;
        let length: u64 = data.iter().map(|range| range.end - range.start).sum();
        let stored = map.len() as u64 + length;
        let mut records = Records::default();
        records.add("GNU.sparse.major", b"1");
        records.add("GNU.sparse.minor", b"0");
        records.add("GNU.sparse.name", entry.path);
        records.add_number("GNU.sparse.realsize", size);
        self.write_header(entry, stored, records)?;
        self.write(&map)?;
        self.copy(entry.path, length, content)?;
        self.pad(stored)
    }

    /// Appends a regular file with the content of `file`, leaving out large holes. Reads from the start, whatever the
    /// file's position, and moves it.
    pub fn append_file(&mut self, entry: &TarEntry<'_>, file: &File) -> Result<(), TarWriteError> {
        let TarKind::Regular { size } = entry.kind else { return self.append_empty(entry) };
        let read = |source| TarWriteError::Read { path: entry.path.into(), source };
        match data_ranges(file, size).map_err(read)? {
            Some(ranges) => self.append_sparse(entry, &ranges, &mut RangesReader::new(file, &ranges)),
            None => self.append_with(entry, &mut RangesReader::new(file, std::slice::from_ref(&(0..size)))),
        }
    }

    /// Ends the tar and returns the writer, not flushed, and what was left out.
    pub fn finish(mut self) -> Result<(W, Vec<Skipped>), TarWriteError> {
        self.write(&[0; 2 * BLOCK])?;
        Ok((self.out, self.skipped))
    }

    /// Appends an entry without content.
    fn append_empty(&mut self, entry: &TarEntry<'_>) -> Result<(), TarWriteError> {
        if entry.kind == TarKind::Socket {
            self.skipped.push(Skipped { path: entry.path.into(), what: SkippedPart::Socket });
            return Ok(());
        }
        self.write_header(entry, 0, Records::default())
    }

    /// Writes the headers of an entry of which `stored` bytes follow. `sparse` holds the records of a sparse file.
    fn write_header(&mut self, entry: &TarEntry<'_>, stored: u64, sparse: Records) -> Result<(), TarWriteError> {
        let is_sparse = !sparse.is_empty();
        let name = stored_name(entry, self.plain)?;
        let (type_flag, link, device) = match entry.kind {
            TarKind::Directory => (TypeFlag::Directory, &[][..], None),
            TarKind::Regular { .. } | TarKind::Whiteout | TarKind::Opaque => (TypeFlag::Regular, &[][..], None),
            TarKind::Symlink { target } => (TypeFlag::Symlink, target, None),
            TarKind::HardLink { target } => (TypeFlag::HardLink, target, None),
            TarKind::CharDevice(device) => (TypeFlag::CharDevice, &[][..], Some(device)),
            TarKind::BlockDevice(device) => (TypeFlag::BlockDevice, &[][..], Some(device)),
            TarKind::Fifo => (TypeFlag::Fifo, &[][..], None),
            TarKind::Socket => return Ok(()),
        };
        match entry.kind {
            TarKind::HardLink { target } => check_path(target, self.plain)?,
            TarKind::Symlink { target } if target.is_empty() || target.contains(&0) => {
                return Err(TarWriteError::InvalidTarget { path: entry.path.into() });
            }
            _ => {}
        }

        let mut records = Records::default();
        let mut header = Header::new(type_flag, entry.permissions & 0o7777);
        if is_sparse {
            // The real name is in the record; a reader that knows no sparse files finds the map under this one.
            header.set_name(&placeholder(b"GNUSparseFile.0/", &name));
        } else if !header.set_name(&name) {
            header.set_name(&placeholder(b"", &name));
            records.add("path", &name);
        }
        if !header.set_link(link) {
            records.add("linkpath", link);
        }
        for (set, key, value) in [
            (header.set_size(stored), "size", stored),
            (header.set_uid(entry.uid), "uid", entry.uid.into()),
            (header.set_gid(entry.gid), "gid", entry.gid.into()),
        ] {
            if !set {
                records.add_number(key, value);
            }
        }
        if !header.set_mtime(entry.mtime) {
            records.add("mtime", pax::time(entry.mtime).as_bytes());
        }
        if device.is_some_and(|device| !header.set_device(device)) {
            return Err(TarWriteError::InvalidDevice { path: entry.path.into() });
        }
        records.append(sparse);
        let mut xattrs: Vec<_> = entry.xattrs.to_vec();
        xattrs.sort_unstable();
        for (name, value) in xattrs {
            if whiteout::is_private_xattr(name) {
                continue;
            }
            if name.contains(&b'=') || name.contains(&0) {
                self.skipped.push(Skipped { path: entry.path.into(), what: SkippedPart::Xattr(name.into()) });
                continue;
            }
            records.add_bytes(&[b"SCHILY.xattr.", name].concat(), value);
        }

        if !records.is_empty() {
            let body = records.into_bytes();
            let mut extended = Header::new(TypeFlag::Pax, 0o644);
            extended.set_name(&placeholder(b"PaxHeaders.0/", &name));
            extended.set_size(body.len() as u64);
            extended.set_mtime(Timestamp::default());
            self.write(&extended.finish())?;
            self.write(&body)?;
            self.pad(body.len() as u64)?;
        }
        self.write(&header.finish())
    }

    /// Copies exactly `length` bytes of the file at `path`.
    fn copy(&mut self, path: &[u8], length: u64, content: &mut dyn Read) -> Result<(), TarWriteError> {
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(COPY_BUFFER).min(COPY_BUFFER)];
        let mut left = length;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(COPY_BUFFER).min(buffer.len());
            let got = match content.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(TarWriteError::Shrunk { path: path.into() }),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(TarWriteError::Read { path: path.into(), source }),
            };
            self.write(&buffer[..got])?;
            left -= got as u64;
        }
        Ok(())
    }

    /// Writes zeros up to the next block behind content of `length` bytes.
    fn pad(&mut self, length: u64) -> Result<(), TarWriteError> {
        let used = usize::try_from(length % BLOCK as u64).unwrap_or(0);
        if used == 0 { Ok(()) } else { self.write(&[0; BLOCK][used..]) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TarWriteError> {
        self.out.write_all(bytes).map_err(TarWriteError::Write)
    }
}

/// Returns the name under which an entry stands in the tar.
fn stored_name(entry: &TarEntry<'_>, plain: bool) -> Result<Vec<u8>, TarWriteError> {
    let path = entry.path;
    if path.is_empty() {
        return match entry.kind {
            TarKind::Directory => Ok(b"./".to_vec()),
            TarKind::Opaque => Ok(whiteout::OPAQUE.to_vec()),
            _ => Err(TarWriteError::InvalidPath { path: path.into() }),
        };
    }
    check_path(path, plain)?;
    Ok(match entry.kind {
        TarKind::Directory => [path, b"/"].concat(),
        TarKind::Opaque => [path, b"/", whiteout::OPAQUE].concat(),
        TarKind::Whiteout => {
            let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
            let marker = whiteout::marker_for(&path[name..]);
            let marker = marker.ok_or_else(|| TarWriteError::WhiteoutTooLong { path: path.into() })?;
            [&path[..name], &marker].concat()
        }
        _ => path.to_vec(),
    })
}

/// Refuses paths that are not plain names below the root, and in a layer the names of whiteouts.
fn check_path(path: &[u8], plain: bool) -> Result<(), TarWriteError> {
    for name in path.split(|byte| *byte == b'/') {
        if !plain && whiteout::is_reserved(name) {
            return Err(TarWriteError::ReservedName { path: path.into() });
        }
        if matches!(name, b"" | b"." | b"..") || name.contains(&0) {
            return Err(TarWriteError::InvalidPath { path: path.into() });
        }
    }
    Ok(())
}

/// Returns a name for the ustar header of an entry whose real name stands in a PAX record: the last component, cut.
fn placeholder(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let last = name.iter().rposition(|byte| *byte == b'/').map_or(name, |slash| &name[slash + 1..]);
    let room = header::NAME_LENGTH - folder.len();
    [folder, &last[..last.len().min(room)]].concat()
}

/// Returns a path for a message.
fn text(path: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(path)
}

const COPY_BUFFER: usize = 128 * 1024;
