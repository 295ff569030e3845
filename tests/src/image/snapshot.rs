//! Writes what changed in a root tree between two moments as a layer.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::layer::{LayerWriter, Meta};
use crate::tree;

/// What a tree looked like: enough to tell which names were added, changed or removed since.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    entries: BTreeMap<Vec<u8>, Identity>,
}

/// Any change of content or attributes moves the change time; a replaced entry has another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    inode: u64,
    changed: (i64, i64),
    directory: bool,
}

impl Snapshot {
    /// Looks at everything below `root`.
    pub fn take(root: &Path) -> Result<Snapshot> {
        let mut entries = BTreeMap::new();
        walk(root, &mut |path, metadata| {
            entries.insert(path.to_vec(), Identity::of(metadata));
            Ok(())
        })?;
        Ok(Snapshot { entries })
    }

    /// The names below `root` that were added or changed since; parents before children.
    pub fn changed(&self, root: &Path) -> Result<Vec<Vec<u8>>> {
        let mut changed = std::collections::BTreeSet::new();
        walk(root, &mut |path, metadata| {
            if self.entries.get(path) != Some(&Identity::of(metadata)) {
                changed.insert(path.to_vec());
            }
            Ok(())
        })?;
        Ok(changed.into_iter().collect())
    }

    /// Writes the difference to `root` as it is now: parents before children, deleted names as whiteouts, folders that
    /// were removed and made again as opaque ones, hard links as links to their first name.
    pub fn write_changes(&self, root: &Path, out: &mut LayerWriter<impl Write>) -> Result<()> {
        let mut now = BTreeMap::new();
        walk(root, &mut |path, metadata| {
            now.insert(path.to_vec(), metadata.clone());
            Ok(())
        })?;
        for path in self.entries.keys() {
            if !now.contains_key(path) && self.parent_is_kept(path, &now) {
                out.whiteout(path)?;
            }
        }
        let mut first_names: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (path, metadata) in &now {
            if self.entries.get(path) == Some(&Identity::of(metadata)) && !self.is_below_replaced(path, &now) {
                continue;
            }
            write_entry(root, path, metadata, &mut first_names, out).with_context(|| tree::escape(path))?;
            if metadata.is_dir() && self.was_replaced(path, metadata) {
                out.opaque(path)?;
            }
        }
        Ok(())
    }

    fn parent_is_kept(&self, path: &[u8], now: &BTreeMap<Vec<u8>, Metadata>) -> bool {
        parent(path).is_none_or(|parent| {
            now.get(parent).is_some_and(|metadata| metadata.is_dir() && !self.was_replaced(parent, metadata))
        })
    }

    fn was_replaced(&self, path: &[u8], metadata: &Metadata) -> bool {
        self.entries.get(path).is_some_and(|before| before.directory && before.inode != metadata.ino())
    }

    fn is_below_replaced(&self, path: &[u8], now: &BTreeMap<Vec<u8>, Metadata>) -> bool {
        std::iter::successors(parent(path), |path| parent(path))
            .any(|ancestor| now.get(ancestor).is_some_and(|metadata| self.was_replaced(ancestor, metadata)))
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Identity {
        Identity {
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            directory: metadata.is_dir(),
        }
    }
}

fn write_entry(
    root: &Path,
    path: &[u8],
    metadata: &Metadata,
    first_names: &mut BTreeMap<u64, Vec<u8>>,
    out: &mut LayerWriter<impl Write>,
) -> Result<()> {
    let host = root.join(std::ffi::OsStr::from_bytes(path));
    let mut meta = Meta::mode(metadata.mode() & 0o7777)
        .owned(metadata.uid().into(), metadata.gid().into())
        .at(metadata.mtime(), u32::try_from(metadata.mtime_nsec())?);
    for (name, value) in tree::xattrs(&host)? {
        meta = meta.xattr(std::str::from_utf8(&name)?, &value);
    }
    if !metadata.is_dir() && metadata.nlink() > 1 {
        if let Some(first) = first_names.get(&metadata.ino()) {
            return Ok(out.hard_link(path, first, &meta)?);
        }
        first_names.insert(metadata.ino(), path.to_vec());
    }
    let kind = metadata.file_type();
    let device = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    match () {
        () if kind.is_dir() => out.directory(path, &meta)?,
        () if kind.is_file() => out.file_from(path, &meta, metadata.size(), &mut File::open(&host)?)?,
        () if kind.is_symlink() => out.symlink(path, host.read_link()?.into_os_string().into_vec(), &meta)?,
        () if kind.is_fifo() => out.fifo(path, &meta)?,
        () if kind.is_char_device() => out.device(path, false, device, &meta)?,
        () if kind.is_block_device() => out.device(path, true, device, &meta)?,
        () => bail!("a tar cannot hold a socket"),
    }
    Ok(())
}

/// Calls `visit` with each path below `root`, relative and without leading slash.
fn walk(root: &Path, visit: &mut dyn FnMut(&[u8], &Metadata) -> Result<()>) -> Result<()> {
    let mut pending = vec![(root.to_owned(), Vec::new())];
    while let Some((folder, name)) = pending.pop() {
        for child in folder.read_dir().with_context(|| format!("read folder {folder:?}"))? {
            let child = child?;
            let mut path = name.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(child.file_name().as_bytes());
            let metadata = child.path().symlink_metadata()?;
            visit(&path, &metadata)?;
            if metadata.is_dir() {
                pending.push((child.path(), path));
            }
        }
    }
    Ok(())
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|&byte| byte == b'/').map(|slash| &path[..slash])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_changes_are_written() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["kept", "remade", "gone"] {
            fs::create_dir(at(folder)).unwrap();
            fs::write(at(folder).join("file"), folder).unwrap();
        }
        fs::write(at("replaced"), "x").unwrap();
        let before = Snapshot::take(root.path()).unwrap();

        fs::remove_file(at("kept/file")).unwrap();
        fs::write(at("kept/new"), "new").unwrap();
        fs::hard_link(at("kept/new"), at("kept/twin")).unwrap();
        fs::rename(at("remade"), at("moved")).unwrap();
        fs::create_dir(at("remade")).unwrap();
        fs::remove_dir_all(at("gone")).unwrap();
        fs::remove_file(at("replaced")).unwrap();
        fs::create_dir(at("replaced")).unwrap();

        let mut writer = LayerWriter::new(Vec::new());
        before.write_changes(root.path(), &mut writer).unwrap();
        let bytes = writer.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let link = entry.link_name_bytes().map(|link| format!(" = {}", String::from_utf8_lossy(&link)));
                format!("{}{}", String::from_utf8_lossy(&entry.path_bytes()), link.unwrap_or_default())
            })
            .collect();
        assert_eq!(
            names,
            [
                ".wh.gone",
                "kept/.wh.file",
                "kept/",
                "kept/new",
                "kept/twin = kept/new",
                "moved/",
                "moved/file",
                "remade/",
                "remade/.wh..wh..opq",
                "replaced/",
            ]
        );
    }
}
