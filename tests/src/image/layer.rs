//! Writes one layer's tar, entry by entry.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use tar::{Builder, EntryType, Header};

/// What every entry has besides its name and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Meta {
    /// An entry of root with this mode, no attributes, and a fixed time.
    pub fn mode(mode: u32) -> Meta {
        Meta { mode, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: BTreeMap::new() }
    }

    /// The same with another owner.
    #[must_use]
    pub fn owned(self, uid: u64, gid: u64) -> Meta {
        Meta { uid, gid, ..self }
    }

    /// The same with another time.
    #[must_use]
    pub fn at(self, seconds: i64, nanoseconds: u32) -> Meta {
        Meta { mtime: (seconds, nanoseconds), ..self }
    }

    /// The same with one extended attribute more.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Meta {
        self.xattrs.insert(name.to_owned(), value.to_vec());
        self
    }
}

/// Writes entries in PAX form, as Docker and BuildKit do: extended headers only where the plain header has no room.
///
/// Names are written as they are given; nothing is checked, so that bad layers can be made as well.
pub struct LayerWriter<W: Write> {
    builder: Builder<W>,
}

impl<W: Write> std::fmt::Debug for LayerWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerWriter").finish_non_exhaustive()
    }
}

impl<W: Write> LayerWriter<W> {
    /// Starts a layer.
    pub fn new(out: W) -> Self {
        LayerWriter { builder: Builder::new(out) }
    }

    /// Adds a folder.
    pub fn directory(&mut self, path: impl AsRef<[u8]>, meta: &Meta) -> io::Result<()> {
        let mut name = path.as_ref().to_vec();
        if !name.ends_with(b"/") {
            name.push(b'/');
        }
        self.entry(EntryType::Directory, &name, b"", meta, 0, &mut io::empty())
    }

    /// Adds a regular file with these bytes.
    pub fn file(&mut self, path: impl AsRef<[u8]>, meta: &Meta, content: &[u8]) -> io::Result<()> {
        self.entry(EntryType::Regular, path.as_ref(), b"", meta, content.len() as u64, &mut &content[..])
    }

    /// Adds a regular file of `size` bytes read from `content`.
    pub fn file_from(
        &mut self,
        path: impl AsRef<[u8]>,
        meta: &Meta,
        size: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        self.entry(EntryType::Regular, path.as_ref(), b"", meta, size, content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>, meta: &Meta) -> io::Result<()> {
        self.entry(EntryType::Symlink, path.as_ref(), target.as_ref(), meta, 0, &mut io::empty())
    }

    /// Adds another name of an entry already written, or of one in a lower layer.
    pub fn hard_link(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>, meta: &Meta) -> io::Result<()> {
        self.entry(EntryType::Link, path.as_ref(), target.as_ref(), meta, 0, &mut io::empty())
    }

    /// Adds a FIFO.
    pub fn fifo(&mut self, path: impl AsRef<[u8]>, meta: &Meta) -> io::Result<()> {
        self.entry(EntryType::Fifo, path.as_ref(), b"", meta, 0, &mut io::empty())
    }

    /// Adds a character (`block` false) or block device.
    pub fn device(
        &mut self,
        path: impl AsRef<[u8]>,
        block: bool,
        (major, minor): (u32, u32),
        meta: &Meta,
    ) -> io::Result<()> {
        let kind = if block { EntryType::Block } else { EntryType::Char };
        let mut header = self.header(kind, path.as_ref(), b"", meta, 0)?;
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        header.set_cksum();
        self.builder.append(&header, io::empty())
    }

    /// Hides a name of the lower layers.
    pub fn whiteout(&mut self, path: impl AsRef<[u8]>) -> io::Result<()> {
        let path = path.as_ref();
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => path.split_at(slash + 1),
            None => (&b""[..], path),
        };
        self.file([parent, b".wh.", name].concat(), &Meta::mode(0), b"")
    }

    /// Hides everything that lower layers have in this folder.
    pub fn opaque(&mut self, directory: impl AsRef<[u8]>) -> io::Result<()> {
        self.file([directory.as_ref(), b"/.wh..wh..opq"].concat(), &Meta::mode(0), b"")
    }

    /// Adds an entry whose header the caller made, for what no honest writer produces.
    pub fn raw(&mut self, header: &Header, content: &[u8]) -> io::Result<()> {
        self.builder.append(header, content)
    }

    /// Writes the end of the archive and hands the output back.
    pub fn finish(self) -> io::Result<W> {
        self.builder.into_inner()
    }

    fn entry(
        &mut self,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        meta: &Meta,
        size: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        let header = self.header(kind, path, link, meta, size)?;
        self.builder.append(&header, content)
    }

    /// Writes the PAX header if one is needed and returns the plain one.
    fn header(&mut self, kind: EntryType, path: &[u8], link: &[u8], meta: &Meta, size: u64) -> io::Result<Header> {
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_size(size);
        // Seven octal digits; more would be written as base 256.
        for (id, key, set) in [
            (meta.uid, "uid", Header::set_uid as fn(&mut Header, u64)),
            (meta.gid, "gid", Header::set_gid as fn(&mut Header, u64)),
        ] {
            if id > 0o7_777_777 {
                pax.push((key.to_owned(), id.to_string().into_bytes()));
            }
            set(&mut header, if id > 0o7_777_777 { 0 } else { id });
        }
        let (seconds, nanoseconds) = meta.mtime;
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        if nanoseconds != 0 || seconds < 0 {
            pax.push(("mtime".to_owned(), decimal_time(seconds, nanoseconds).into_bytes()));
        }
        put_name(&mut header.as_old_mut().name, path, "path", &mut pax);
        put_name(&mut header.as_old_mut().linkname, link, "linkpath", &mut pax);
        for (name, value) in &meta.xattrs {
            pax.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        header.set_cksum();
        if !pax.is_empty() {
            self.builder.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        }
        Ok(header)
    }
}

/// As PAX writes a time: a decimal fraction, so that half a second before 1970 is `-0.5`.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let (whole, fraction) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
        format!("-{whole}.{fraction:09}")
    } else if nanoseconds > 0 {
        format!("{seconds}.{nanoseconds:09}")
    } else {
        seconds.to_string()
    }
}

fn put_name(field: &mut [u8; 100], name: &[u8], key: &str, pax: &mut Vec<(String, Vec<u8>)>) {
    let kept = name.len().min(field.len());
    field.fill(0);
    field[..kept].copy_from_slice(&name[..kept]);
    if kept < name.len() {
        pax.push((key.to_owned(), name.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_decimal_fractions() {
        assert_eq!(decimal_time(5, 0), "5");
        assert_eq!(decimal_time(5, 1), "5.000000001");
        assert_eq!(decimal_time(-1, 500_000_000), "-0.500000000");
        assert_eq!(decimal_time(-2, 250_000_000), "-1.750000000");
        assert_eq!(decimal_time(-3, 0), "-3");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = LayerWriter::new(Vec::new());
        let long = vec![b'n'; 300];
        let meta = Meta::mode(0o4755).owned(3_000_000, 7).at(12, 345).xattr("user.a", b"\x00\xff");
        writer.file(&long, &meta, b"content").unwrap();
        writer.whiteout("a/b").unwrap();
        let bytes = writer.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let mut first = entries.next().unwrap().unwrap();
        assert_eq!(first.path_bytes(), long.as_slice());
        let pax: BTreeMap<String, Vec<u8>> = first
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|extension| extension.map(|e| (e.key().unwrap().to_owned(), e.value_bytes().to_vec())).unwrap())
            .collect();
        assert_eq!(pax["mtime"], b"12.000000345");
        assert_eq!(pax["uid"], b"3000000");
        assert_eq!(pax["SCHILY.xattr.user.a"], b"\x00\xff");
        assert_eq!(entries.next().unwrap().unwrap().path_bytes(), b"a/.wh.b".as_slice());
    }
}
