//! Temporary folders: where everything is written before it becomes visible.
//!
//! An operation that writes makes one folder in `tmp/`, named `<pid>-<start time of the process>-<number>`, and holds
//! a lock on it. The kernel drops the lock when the process ends, however it ends; the next process to open the
//! store removes every folder whose lock is free. `tmp/` itself is locked (shared) for the moment between making the
//! folder and locking it, and (exclusively) while leftovers are removed, so that a folder is never taken for a
//! leftover before its owner got to lock it, not even from another pid namespace.
//!
//! A folder may also have a list of layers that its owner found present and relies on: the garbage collector keeps
//! what is on the list of a live folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use strata_layer::DiffId;
use strata_sys::process_stat::ProcessStat;

use crate::disk::{DiskError, Lock, OnDisk, Sharing, make_folder, names_in, open_if_present, read_if_present};
use crate::layout::Layout;

/// A temporary folder, removed with everything in it on drop.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    _lock: Lock,
}

impl WorkDir {
    /// Makes a new folder.
    pub(crate) fn create(layout: &Layout) -> Result<WorkDir, DiskError> {
        let parent = layout.work();
        make_folder(&parent)?;
        let _making = Lock::wait(File::open(&parent).on_disk("open", &parent)?, Sharing::Shared, &parent)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}-{}-{number}", std::process::id(), start_time()));
        // The name is new unless two pid namespaces share the store: then what is found may be alive.
        let path = (0..).map(|retry| if retry == 0 { path.clone() } else { path.with_extension(retry.to_string()) });
        for path in path {
            match fs::DirBuilder::new().create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result.on_disk("create", &path)?,
            }
            let lock = Lock::wait(File::open(&path).on_disk("open", &path)?, Sharing::Exclusive, &path)?;
            return Ok(WorkDir { path, _lock: lock });
        }
        unreachable!("the retries are unbounded")
    }

    /// Returns the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the garbage collector keep `layers` as long as this folder exists.
    ///
    /// # Preconditions
    /// The catalog is locked, else a collection that runs right now does not see it.
    pub(crate) fn pin_locked(&self, layers: &[DiffId]) -> Result<(), DiskError> {
        let path = self.path.join(PINS);
        let mut text = String::with_capacity(layers.len() * 72);
        for layer in layers {
            text.push_str(&layer.0.to_string());
            text.push('\n');
        }
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).mode(0o600).open(&path).on_disk("open", &path)?;
        file.write_all(text.as_bytes()).on_disk("write", &path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // What cannot be removed now is a leftover that the next open removes.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of processes that are gone.
pub(crate) fn remove_leftovers(layout: &Layout) -> Result<(), DiskError> {
    let parent = layout.work();
    let Some(folder) = open_if_present(&parent)? else { return Ok(()) };
    // Somebody who is making a folder, or removing leftovers, will be done soon; the next open looks again.
    let Some(_removing) = Lock::attempt(folder, Sharing::Exclusive, &parent)? else { return Ok(()) };
    for name in names_in(&parent)? {
        let path = parent.join(name);
        let Some(file) = open_if_present(&path)? else { continue };
        if Lock::attempt(file, Sharing::Exclusive, &path)?.is_none() {
            continue;
        }
        match fs::remove_dir_all(&path).or_else(|error| fs::remove_file(&path).map_err(|_| error)) {
            // Its owner has just removed it, and its lock with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.on_disk("remove", &path)?,
        }
    }
    Ok(())
}

/// Returns the layers that live folders rely on.
pub(crate) fn pinned_layers(layout: &Layout) -> Result<Vec<DiffId>, DiskError> {
    let parent = layout.work();
    let mut layers = Vec::new();
    if open_if_present(&parent)?.is_none() {
        return Ok(layers);
    }
    for name in names_in(&parent)? {
        // Folders of dead processes are not told apart here: that only keeps too much, until the next open.
        if let Some(bytes) = read_if_present(&parent.join(name).join(PINS))? {
            layers.extend(String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.parse::<DiffId>().ok()));
        }
    }
    Ok(layers)
}

/// Returns when this process started, in the kernel's clock ticks; 0 where `/proc` is not mounted.
fn start_time() -> u64 {
    ProcessStat::of(std::process::id()).map_or(0, |stat| stat.start_time)
}

static NUMBER: AtomicU64 = AtomicU64::new(0);
const PINS: &str = "pins";

#[cfg(test)]
mod tests {
    use strata_layer::Digest;

    use super::*;

    #[test]
    fn leftovers_go_and_live_folders_stay() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().to_owned());
        remove_leftovers(&layout).unwrap();
        let live = WorkDir::create(&layout).unwrap();
        fs::write(live.path().join("tar"), "x").unwrap();
        let dead = layout.work().join("1-1-0");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("tar"), "x").unwrap();
        fs::write(layout.work().join("stray"), "x").unwrap();

        remove_leftovers(&layout).unwrap();
        assert_eq!(names_in(&layout.work()).unwrap(), [live.path().file_name().unwrap().to_str().unwrap()]);

        let path = live.path().to_owned();
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn pins_are_seen_while_the_folder_lives() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().to_owned());
        let work = WorkDir::create(&layout).unwrap();
        let layers = [DiffId(Digest::of(b"1")), DiffId(Digest::of(b"2"))];
        work.pin_locked(&layers[..1]).unwrap();
        work.pin_locked(&layers[1..]).unwrap();
        assert_eq!(pinned_layers(&layout).unwrap(), layers);
        drop(work);
        assert!(pinned_layers(&layout).unwrap().is_empty());
    }

    #[test]
    fn start_time_is_read() {
        assert_ne!(start_time(), 0);
    }
}
