//! Room for one process more than a container may have.
//!
//! Entering a cgroup is not subject to its limit of processes, making a process in it is. So what is added to a container that is
//! full comes in, as with every runtime, and only its being made in there would fail. For that moment the limit is one higher.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};

use super::Cgroup;

/// A limit of processes that is higher than it should be. Dropped, it is what it was.
#[derive(Debug)]
pub(crate) struct Room {
    file: PathBuf,
    raised: String,
    limit: String,
    /// Two who both raise it would both put back what they found.
    _lock: std::os::fd::OwnedFd,
}

impl Cgroup {
    /// Makes room for one more process than there are. `None` when the limit of this cgroup is not what is in the way.
    ///
    /// # Errors
    /// The errno of reading or writing the limit.
    pub(crate) fn make_room(&self) -> io::Result<Option<Room>> {
        let Some(directory) = self.directory("pids") else { return Ok(None) };
        let lock = openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let read = |name| Ok::<_, io::Error>(fs::read_to_string(directory.join(name))?.trim().to_owned());
        let (limit, current) = (read("pids.max")?, read("pids.current")?);
        let (Ok(most), Ok(current)) = (limit.parse::<u64>(), current.parse::<u64>()) else { return Ok(None) };
        if current < most {
            // Somebody has ended meanwhile.
            return Ok(None);
        }
        let room = Room { file: directory.join("pids.max"), raised: (current + 1).to_string(), limit, _lock: lock };
        fs::write(&room.file, &room.raised)?;
        Ok(Some(room))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = put_back(&self.file, &self.raised, &self.limit) {
            tracing::warn!(%error, file = ?self.file, limit = self.limit, "limit of processes not put back");
        }
    }
}

/// Unless somebody has set another limit meanwhile.
fn put_back(file: &Path, raised: &str, limit: &str) -> io::Result<()> {
    match fs::read_to_string(file)?.trim() == raised {
        true => fs::write(file, limit),
        false => Ok(()),
    }
}
