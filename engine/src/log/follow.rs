//! Waiting for a log to grow.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use strata_imagestore::Timestamp;

use crate::process::Process;

/// Watches a container's folder, and the monitor that writes there.
#[derive(Debug)]
pub(super) struct Watch {
    changes: OwnedFd,
    monitor: OwnedFd,
}

impl Watch {
    /// Begins to watch; `None` when the monitor is gone already.
    pub(super) fn start(folder: &Path, monitor: &Process) -> io::Result<Option<Watch>> {
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&changes, folder, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE)?;
        Ok(monitor.open().map(|monitor| Watch { changes, monitor }))
    }

    /// Waits for a change, until `deadline` at most; `false` when there will be none any more.
    pub(super) fn wait(&mut self, deadline: Option<Timestamp>) -> io::Result<bool> {
        let timeout = deadline.map(|deadline| {
            let now = Timestamp::now();
            let seconds = deadline.seconds.saturating_sub(now.seconds).max(0);
            // To the next second: the reader looks at the exact time.
            Timespec { tv_sec: seconds.saturating_add(1), tv_nsec: 0 }
        });
        let mut fds = [PollFd::new(&self.changes, PollFlags::IN), PollFd::new(&self.monitor, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            result => result?,
        };
        let (changed, ended) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if changed {
            let mut space = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&self.changes, &mut space);
            while events.next().is_ok() {}
            return Ok(true);
        }
        Ok(!ended && deadline.is_none_or(|deadline| Timestamp::now() <= deadline))
    }
}
