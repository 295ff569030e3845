//! Putting an entry together of its header and the extended headers before it.

use super::entry::{Entry, EntryKind};
use super::error::Problem;
use super::header::Header;
use super::pax::{Pax, PaxSparse, Xattrs};
use crate::index::{Device, Timestamp};
use crate::path::MAX_NAME;

/// The extended headers that wait for their entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub(super) pax: Option<Pax>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
}

impl Extended {
    pub(super) fn is_pending(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }

    /// Returns the name of the entry. Readers differ in which of two names they take, so there must not be two.
    pub(super) fn path(&self, header: &Header<'_>) -> Result<Vec<u8>, Problem> {
        let (sparse_name, pax_path) = match &self.pax {
            Some(pax) => (pax.sparse.name.as_ref(), pax.path.as_ref()),
            None => (None, None),
        };
        let path = match (sparse_name, pax_path, &self.long_name) {
            (Some(name), _, None) => name.clone(),
            (None, Some(path), None) => path.clone(),
            (None, None, Some(name)) => name.clone(),
            (None, Some(path), Some(name)) if path == name => path.clone(),
            (None, None, None) => header.path(),
            _ => return Err(Problem::Contradiction),
        };
        if path.is_empty() { Err(Problem::EmptyName) } else { Ok(path) }
    }

    /// Returns the entry at `path`, the number of bytes that follow its header, and what says that it is a sparse file.
    pub(super) fn into_entry(
        self,
        path: Vec<u8>,
        header: &Header<'_>,
        type_flag: u8,
        global: &Pax,
    ) -> Result<(Box<Entry>, u64, PaxSparse), Problem> {
        let pax = self.pax.unwrap_or_default();
        let target = match (pax.link_path, self.long_link) {
            (Some(path), Some(name)) if path != name => return Err(Problem::Contradiction),
            (Some(target), _) | (None, Some(target)) => target,
            (None, None) => header.link_name().to_vec(),
        };
        let size = match pax.size {
            Some(size) => size,
            None => header.size()?,
        };
        let device = || -> Result<Device, Problem> {
            let (major, minor) = header.device()?;
            let number = |number: u64| u32::try_from(number).map_err(|_| Problem::Number("device"));
            Ok(Device {
                major: number(pax.device_major.unwrap_or(major))?,
                minor: number(pax.device_minor.unwrap_or(minor))?,
            })
        };
        let kind = match type_flag {
            // Before there was a type for directories, a slash at the end made one.
            0 | b'0' | b'7' if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::Regular,
            b'1' => EntryKind::HardLink { target },
            b'2' => EntryKind::Symlink { target },
            b'3' => EntryKind::CharDevice(device()?),
            b'4' => EntryKind::BlockDevice(device()?),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(Problem::Type(other)),
        };
        let stored = match kind {
            EntryKind::Regular => size,
            // Writers put the size of the file there, but no data follows.
            EntryKind::HardLink { .. } => 0,
            _ if size == 0 => 0,
            _ => return Err(Problem::UnexpectedData(size)),
        };
        let permissions = match kind {
            // As Linux shows them, whatever the archive says.
            EntryKind::Symlink { .. } => 0o777,
            _ => header.permissions()?,
        };
        let mtime = match pax.mtime.or(global.mtime) {
            Some(mtime) => mtime,
            None => Timestamp { seconds: header.mtime()?, nanoseconds: 0 },
        };
        let entry = Entry {
            path,
            kind,
            permissions,
            uid: owner(pax.uid.or(global.uid).map_or(header.uid(), Ok)?, "uid")?,
            gid: owner(pax.gid.or(global.gid).map_or(header.gid(), Ok)?, "gid")?,
            mtime,
            xattrs: checked(pax.xattrs)?,
            size: stored,
            data: 0..0,
            sparse: None,
            offset: 0,
        };
        Ok((Box::new(entry), stored, pax.sparse))
    }
}

fn owner(id: u64, field: &'static str) -> Result<u32, Problem> {
    u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or(Problem::Owner(field))
}

/// Returns attributes that a file system would take.
fn checked(xattrs: Xattrs) -> Result<Xattrs, Problem> {
    let mut names = 0;
    for (name, value) in &xattrs {
        names += name.len() + 1;
        let valid = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&0) && value.len() <= MAX_XATTR_VALUE;
        if !valid || names > MAX_XATTR_NAMES {
            return Err(Problem::Xattr(String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]).into_owned()));
        }
    }
    Ok(xattrs)
}

/// `XATTR_SIZE_MAX`.
const MAX_XATTR_VALUE: usize = 65536;
/// `XATTR_LIST_MAX`: all names with their NULs.
const MAX_XATTR_NAMES: usize = 65536;
