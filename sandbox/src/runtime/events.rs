//! `events`: what a container uses from time to time, and that it ran out of memory.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;

use super::{Container, RuntimeError, Statistics};
use crate::cgroup::{Cgroup, Version};

/// Something that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What is used now.
    Statistics(Box<Statistics>),
    /// The kernel killed a process for memory.
    OutOfMemory,
}

impl Container {
    /// Tells of events until the container ends or `tell` answers that nobody listens any more.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`], and what goes wrong while watching.
    pub fn watch(&self, interval: Duration, tell: &mut dyn FnMut(Event) -> bool) -> Result<(), RuntimeError> {
        let init = self.running()?;
        let cgroup = init.cgroup().ok_or(RuntimeError::NotRunning)?;
        let mut memory = MemoryWatch::new(cgroup).map_err(RuntimeError::io("watch the memory of the container"))?;
        let mut next = Instant::now() + interval;
        loop {
            let left = Timespec::try_from(next.saturating_duration_since(Instant::now())).unwrap_or_default();
            let mut fds = vec![PollFd::from_borrowed_fd(init.pidfd(), PollFlags::IN)];
            fds.extend(memory.as_ref().map(|watch| PollFd::new(&watch.fd, PollFlags::IN)));
            match poll(&mut fds, Some(&left)) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result.map_err(|errno| RuntimeError::io("watch the container")(errno.into()))?,
            };
            let (ended, remembered) =
                (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
            drop(fds);
            if remembered && memory.as_mut().is_some_and(MemoryWatch::had_kill) && !tell(Event::OutOfMemory) {
                return Ok(());
            }
            if ended {
                return Ok(());
            }
            if Instant::now() >= next {
                next += interval;
                let Ok(statistics) = self.statistics() else { continue };
                if !tell(Event::Statistics(Box::new(statistics))) {
                    return Ok(());
                }
            }
        }
    }
}

/// Wakes when the memory controller has something to say.
struct MemoryWatch {
    fd: OwnedFd,
    /// Version 2 tells of other things, too: the file, and how many kills it had.
    counted: Option<(std::path::PathBuf, u64)>,
}

impl MemoryWatch {
    fn new(cgroup: &Cgroup) -> io::Result<Option<Self>> {
        match cgroup.place_of("memory") {
            None => Ok(None),
            Some((folder, Version::V1)) => {
                let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let control = fs::File::open(folder.join("memory.oom_control"))?;
                let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
                fs::write(folder.join("cgroup.event_control"), line)?;
                Ok(Some(Self { fd, counted: None }))
            }
            Some((folder, Version::V2)) => {
                let file = folder.join("memory.events");
                let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
                inotify::add_watch(&fd, &file, inotify::WatchFlags::MODIFY)?;
                let kills = kills(&file);
                Ok(Some(Self { fd, counted: Some((file, kills)) }))
            }
        }
    }

    /// Empties what woke us, and tells whether there was a kill.
    fn had_kill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        // Nonblocking: at its end it says so.
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|count| count == buffer.len()) {}
        match &mut self.counted {
            // Also woken when the group is removed; then there is nothing to watch any more.
            None => true,
            Some((file, known)) => {
                let now = kills(file);
                let had = now > *known;
                *known = now;
                had
            }
        }
    }
}

fn kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
