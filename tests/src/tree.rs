//! Lists a folder as text, one line for each name, so that two trees compare as a diff.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Which number a folder's line shows as its link count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryLinks {
    /// What `stat` says.
    Reported,
    /// Two and one for each subfolder, whatever the file system that holds the tree counts.
    Counted,
}

/// A tree as text: path to everything else about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    lines: BTreeMap<Vec<u8>, String>,
}

impl Listing {
    /// Lists everything below `root`, and `root` itself as `.`.
    ///
    /// A line has type and mode, owner, group, size (of files), time to the nanosecond, link count, device numbers,
    /// link target, extended attributes, and the digest of the content.
    pub fn of(root: &Path, links: DirectoryLinks) -> Result<Listing> {
        let mut listing = Listing::default();
        let mut pending: Vec<(PathBuf, Vec<u8>)> = vec![(root.to_owned(), b".".to_vec())];
        while let Some((path, name)) = pending.pop() {
            let metadata = path.symlink_metadata().with_context(|| format!("stat {path:?}"))?;
            let (mut subfolders, mut unreadable) = (0, false);
            if metadata.is_dir() {
                let children = match path.read_dir() {
                    // The listing says so; the caller decides what that means.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        unreadable = true;
                        None
                    }
                    children => Some(children.with_context(|| format!("read folder {path:?}"))?),
                };
                for child in children.into_iter().flatten() {
                    let child = child.with_context(|| format!("read folder {path:?}"))?;
                    subfolders += u64::from(child.file_type()?.is_dir());
                    let file_name = child.file_name().into_vec();
                    let below = if name == b"." { file_name } else { [&name[..], b"/", &file_name].concat() };
                    pending.push((child.path(), below));
                }
            }
            let links = match links {
                DirectoryLinks::Counted if metadata.is_dir() => 2 + subfolders,
                _ => metadata.nlink(),
            };
            let mut line = line(&path, &metadata, links).with_context(|| format!("describe {path:?}"))?;
            if unreadable {
                line.push_str(UNREADABLE);
            }
            listing.lines.insert(name, line);
        }
        Ok(listing)
    }

    /// Reads what [`Listing::to_text`] wrote.
    pub fn from_text(text: &str) -> Listing {
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        Listing { lines: lines.map(|(name, rest)| (unescape(name), rest.to_owned())).collect() }
    }

    /// One line for each name, sorted by the bytes of the path.
    pub fn to_text(&self) -> String {
        self.lines.iter().fold(String::new(), |mut text, (name, line)| {
            let _ = writeln!(text, "{}\t{line}", escape(name));
            text
        })
    }

    /// This tree as `other`, listed by somebody with fewer rights, may show it: without the content of files that it
    /// marks as unreadable, and without the children of such folders.
    #[must_use]
    pub fn as_far_as_readable(&self, other: &Listing) -> Listing {
        let mut lines = self.lines.clone();
        for (name, _) in other.lines.iter().filter(|(_, line)| line.ends_with(UNREADABLE)) {
            let below = [&name[..], b"/"].concat();
            lines.retain(|path, _| !path.starts_with(&below));
            if let Some(line) = lines.get_mut(name) {
                if line.starts_with('f') {
                    line.truncate(line.rfind(' ').unwrap_or(line.len()));
                }
                line.push_str(UNREADABLE);
            }
        }
        Listing { lines }
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether not even the root was listed.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The names whose line differs or that only one side has, each with both lines; at most `limit`.
    pub fn differences(&self, other: &Listing, limit: usize) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.lines.keys().chain(other.lines.keys()).collect();
        let differing = names.into_iter().filter(|name| self.lines.get(*name) != other.lines.get(*name));
        let absent = "(absent)".to_owned();
        differing
            .take(limit)
            .map(|name| {
                let (left, right) = (self.lines.get(name), other.lines.get(name));
                format!("{}\n  - {}\n  + {}", escape(name), left.unwrap_or(&absent), right.unwrap_or(&absent))
            })
            .collect()
    }

    /// Fails with the first differences unless both trees are the same but for what every container of an image without
    /// such files has: its mark, and a file to mount its hosts on.
    pub fn expect_same_but_mount_points(&self, found: &Listing) -> Result<()> {
        let mut differences = self.differences(found, 20);
        differences
            .retain(|one| !["etc", "etc/hosts", ".dockerenv"].iter().any(|name| one.split('\n').next() == Some(name)));
        anyhow::ensure!(differences.is_empty(), "trees differ (- expected, + found):\n{}", differences.join("\n"));
        Ok(())
    }

    /// Fails with the first differences unless both trees are the same; `self` is what was expected.
    pub fn expect_same(&self, found: &Listing) -> Result<()> {
        let differences = self.differences(found, 20);
        anyhow::ensure!(
            differences.is_empty(),
            "trees differ ({} names expected, {} found; - expected, + found):\n{}",
            self.len(),
            found.len(),
            differences.join("\n")
        );
        Ok(())
    }
}

fn line(path: &Path, metadata: &std::fs::Metadata, links: u64) -> Result<String> {
    let kind = metadata.file_type();
    let letter = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_file() => 'f',
        () if kind.is_symlink() => 'l',
        () if kind.is_char_device() => 'c',
        () if kind.is_block_device() => 'b',
        () if kind.is_fifo() => 'p',
        () => 's',
    };
    let mut line = format!(
        "{letter}{:04o} {}:{} {}.{:09} n{links}",
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    );
    if kind.is_file() || kind.is_symlink() {
        write!(line, " {}B", metadata.size())?;
    }
    if kind.is_char_device() || kind.is_block_device() {
        let device = metadata.rdev();
        write!(line, " {},{}", rustix::fs::major(device), rustix::fs::minor(device))?;
    }
    if kind.is_symlink() {
        write!(line, " -> {}", escape(path.read_link()?.as_os_str().as_bytes()))?;
    }
    for (name, value) in xattrs(path)? {
        write!(line, " {}={}", escape(&name), hex(&value))?;
    }
    if kind.is_file() {
        match digest_of(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => line.push_str(UNREADABLE),
            digest => write!(line, " {}", digest?)?,
        }
    }
    Ok(line)
}

/// All extended attributes of a path, links not followed, sorted by name.
pub fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let size = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(size);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// The SHA-256 of a file's content, in hexadecimal.
pub fn digest_of(path: &Path) -> io::Result<String> {
    digest_of_file(&mut std::fs::File::open(path)?)
}

/// The SHA-256 of the rest of an open file, in hexadecimal.
pub fn digest_of_file(file: &mut std::fs::File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Printable ASCII as it is, the rest as `\xNN`; a name then holds no space or line end.
pub fn escape(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, &byte| {
        if byte.is_ascii_graphic() && byte != b'\\' {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02x}");
        }
        text
    })
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit(*high).unwrap_or(0) << 4 | digit(*low).unwrap_or(0));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Ends the line of what the lister could not read.
const UNREADABLE: &str = " (unreadable)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_text_form() {
        for name in [&b"plain"[..], b"with space", b"\xff\n\\", b"\\x41"] {
            assert_eq!(unescape(&escape(name)), name);
        }
    }

    #[test]
    fn a_changed_mode_is_the_only_difference() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "x").unwrap();
        std::fs::write(folder.path().join("b"), "y").unwrap();
        let before = Listing::of(folder.path(), DirectoryLinks::Counted).unwrap();
        assert_eq!(Listing::from_text(&before.to_text()), before);
        std::fs::set_permissions(folder.path().join("a"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let after = Listing::of(folder.path(), DirectoryLinks::Counted).unwrap();
        let differences = before.differences(&after, 9);
        assert_eq!(differences.len(), 1);
        assert!(differences[0].starts_with("a\n  - f0644"), "{}", differences[0]);
        assert!(before.expect_same(&after).is_err());
    }
}
