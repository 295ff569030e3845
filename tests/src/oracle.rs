//! What a stack of layers means, by GNU tar and the whiteout rules of the OCI image specification.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

/// Extracts the layers (uncompressed tars, bottom first) into the empty folder `root`.
///
/// Needs root, for owners and devices. The markers are read with the `tar` crate, the entries are extracted by GNU tar.
pub fn extract(layers: &[PathBuf], root: &Path) -> Result<()> {
    for layer in layers {
        apply(layer, root).with_context(|| format!("extract {layer:?}"))?;
    }
    Ok(())
}

/// What one pass over a layer's names tells.
#[derive(Default)]
struct Contents {
    directories: BTreeSet<Vec<u8>>,
    others: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    whiteouts: BTreeSet<Vec<u8>>,
}

fn apply(layer: &Path, root: &Path) -> Result<()> {
    let contents = Contents::read(layer)?;
    let times = times_of_untouched_parents(&contents, root)?;

    // Whiteouts and opaque markers speak of lower layers only, wherever they stand in the tar.
    for path in &contents.whiteouts {
        remove(&host(root, path))?;
    }
    for path in &contents.opaque {
        if let Ok(children) = host(root, path).read_dir() {
            for child in children {
                remove(&child?.path())?;
            }
        }
    }
    // GNU tar does not replace a folder that has entries by something else, nor something else than a symbolic link by a
    // folder.
    for path in &contents.others {
        if host(root, path).symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            fs::remove_dir_all(host(root, path))?;
        }
    }
    for path in &contents.directories {
        if host(root, path).symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
            fs::remove_file(host(root, path))?;
        }
    }
    let status = Command::new("tar")
        // Without delaying, an entry between a folder and its children makes tar set the folder's time too early.
        .args([
            "--extract",
            "--delay-directory-restore",
            "--preserve-permissions",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
        ])
        .args(["--xattrs-include=*", "--warning=no-timestamp", "--wildcards", "--exclude=.wh.*"])
        .args([OsStr::new("--directory"), root.as_os_str(), OsStr::new("--file"), layer.as_os_str()])
        .env("LC_ALL", "C")
        .status()?;
    ensure!(status.success(), "tar: {status}");
    for (path, time) in times {
        let times = Timestamps { last_access: time, last_modification: time };
        match rustix::fs::utimensat(CWD, host(root, &path), &times, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Contents {
    fn read(layer: &Path) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, File::open(layer)?));
        for entry in archive.entries()? {
            let entry = entry?;
            let path = clean(&entry.path_bytes());
            let (parent, name) = split(&path);
            if name == b".wh..wh..opq" {
                contents.opaque.insert(parent.to_vec());
            } else if let Some(hidden) = name.strip_prefix(b".wh.") {
                contents.whiteouts.insert(if parent.is_empty() {
                    hidden.to_vec()
                } else {
                    [parent, b"/", hidden].concat()
                });
            } else if entry.header().entry_type().is_dir() {
                contents.directories.insert(path);
            } else {
                contents.others.insert(path);
            }
        }
        Ok(contents)
    }
}

/// A folder's time is that of the last layer that has an entry for it: extracting children must not move it.
fn times_of_untouched_parents(contents: &Contents, root: &Path) -> Result<BTreeMap<Vec<u8>, Timespec>> {
    let mut times = BTreeMap::new();
    let touched = [&contents.directories, &contents.others, &contents.whiteouts];
    let parents = touched.into_iter().flatten().map(|path| split(path).0.to_vec());
    for parent in parents.chain(contents.opaque.iter().cloned()) {
        if contents.directories.contains(&parent) || times.contains_key(&parent) {
            continue;
        }
        if let Ok(stat) = rustix::fs::statat(CWD, host(root, &parent), AtFlags::SYMLINK_NOFOLLOW) {
            let nanoseconds = i64::try_from(stat.st_mtime_nsec)?;
            times.insert(parent, Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds });
        }
    }
    Ok(times)
}

fn remove(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}

fn host(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// Without leading `./` and `/`, without trailing `/`; the root is the empty path.
fn clean(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
