//! Room for one process more than a container may have.
//!
//! Entering a cgroup is not subject to its limit of processes, making a process in it is. So what is added to a container that is
//! full comes in, as with every runtime, and only its being made in there would fail. For that moment the limit is one higher.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use super::Cgroup;

/// A limit of processes that is higher than it should be. Dropped, it is what it was.
#[derive(Debug)]
pub(crate) struct Room {
    file: PathBuf,
    raised: String,
    limit: String,
    /// Two who both raise it would both put back what they found.
    _lock: OwnedFd,
}

impl Cgroup {
    /// Makes room for one more process than there are. `None` when the limit of this cgroup is not what is in the way.
    ///
    /// # Errors
    /// The errno of reading or writing the limit; `EWOULDBLOCK` when somebody does the same and does not come to an end.
    pub(crate) fn make_room(&self) -> io::Result<Option<Room>> {
        let Some(directory) = self.directory("pids") else { return Ok(None) };
        let lock = lock(directory)?;
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

/// Keeps others away. The container may see the directory and keep the lock itself, so it is waited for no longer than others need it.
fn lock(directory: &Path) -> io::Result<OwnedFd> {
    let lock = openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Err(Errno::INTR) => {}
            result => return result.map(|()| lock).map_err(Into::into),
        }
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

/// How long others may need.
const PATIENCE: Duration = Duration::from_millis(500);
