//! Making sure that a connection over io_uring is served again after a server's death.
//!
//! None is known, but if a request were lost in a kernel that behaves in another way than those that were tried, whoever
//! made it would wait for ever, and no signal would help. So the keeper looks, from each death until it has found that
//! nothing waits, and gives the connection up rather than let anybody hang: then all get errors.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus};
use strata_sys::fuse_ring::{Buffers, Tally};

use super::kick::kick;

/// What the keeper of a connection over io_uring knows about its queues.
#[derive(Debug)]
pub(crate) struct Watchdog {
    number: u32,
    slots: Arc<Buffers>,
    /// Where the kernel says how many requests it has, if it lets us know: only root may.
    control: Option<Control>,
    /// Processes that start the queues of the present server.
    kickers: Vec<OwnedFd>,
    /// Whether there is still to be one, which could not be made or has failed.
    to_kick: bool,
    /// Those of earlier servers. They were killed, and end when what they asked last is answered.
    dismissed: Vec<OwnedFd>,
    queues: Vec<Seen>,
    state: State,
    patience: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There was no death since it was found that nothing waits.
    Settled,
    Watching,
}

/// What a queue was like when it was last seen to move.
#[derive(Clone, Copy, Debug)]
struct Seen {
    turns: u64,
    returned: u64,
    since: Instant,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stall {
    /// A request of our own did not come to the server.
    #[error("requests from CPU {0} do not arrive after the death of a server")]
    Queue(u16),
    /// The kernel has more requests than we.
    #[error("the kernel waits for {waiting} requests, of which the server has {taken}, after the death of the last")]
    Lost { waiting: u64, taken: u64 },
}

impl Watchdog {
    /// Prepares for the deaths of servers of the connection of this number.
    pub(crate) fn new(number: u32, slots: Arc<Buffers>, patience: Option<Duration>) -> Watchdog {
        let control = Control::open().ok();
        let queues = (0..slots.queues()).map(|queue| Seen::now(&slots, queue)).collect();
        let patience = patience.unwrap_or(PATIENCE);
        Watchdog {
            number,
            slots,
            control,
            kickers: Vec::new(),
            to_kick: false,
            dismissed: Vec::new(),
            queues,
            state: State::Settled,
            patience,
        }
    }

    /// Goes to work: a new server has all queues.
    pub(crate) fn begin(&mut self) {
        self.state = State::Watching;
        for kicker in &self.kickers {
            // What it asks may lie in a queue that is to be started, and while it waits it holds a lock of the
            // filesystem, behind which an unmounting may wait, and behind that the next one that asks.
            let _ = rustix::process::pidfd_send_signal(kicker, Signal::KILL);
        }
        self.dismissed.append(&mut self.kickers);
        self.queues = (0..self.slots.queues()).map(|queue| Seen::now(&self.slots, queue)).collect();
        self.to_kick = true;
        self.kick();
    }

    /// Starts the queues. What there is no room for now is tried again with the next look.
    fn kick(&mut self) {
        self.forget_questions();
        match kick(self.number, &self.slots) {
            Ok(kicker) => {
                self.kickers.push(kicker);
                self.to_kick = false;
            }
            Err(error) => tracing::warn!(%error, "the queues of a mount could not be started again yet"),
        }
    }

    /// Waits until the server of `worker` ends or there is something to [`look`](Self::look) at. Returns whether that is
    /// so; if not, nothing has to be looked at before the end of the server.
    pub(crate) fn wait(&self, worker: &OwnedFd) -> bool {
        if self.state == State::Settled {
            return false;
        }
        let processes = std::iter::once(worker).chain(&self.kickers).chain(&self.dismissed);
        let mut processes: Vec<_> = processes.map(|process| PollFd::new(process, PollFlags::IN)).collect();
        // Interrupted or not, looking does no harm.
        let _ = poll(&mut processes, Timespec::try_from(INTERVAL).ok().as_ref());
        processes.first().is_some_and(|worker| worker.revents().is_empty())
    }

    /// Looks whether everything moves.
    pub(crate) fn look(&mut self) -> Result<(), Stall> {
        self.dismissed.retain(|kicker| end_of(kicker).is_none());
        if self.to_kick {
            self.kick();
        }
        let mut failed = false;
        self.kickers.retain(|kicker| {
            let end = end_of(kicker);
            failed |= end.as_ref().is_some_and(|status| status.exit_status() != Some(0));
            end.is_none()
        });
        if failed {
            // With the next look, which is some time away: not as fast as processes can fail.
            self.to_kick = true;
            return Ok(());
        }
        let idle = self.idle_queues();
        if !self.kickers.is_empty() {
            let asked = |queue: &u16| {
                let count = |tally| self.slots.tally(*queue, tally).load(Ordering::Acquire);
                count(Tally::Asked) > count(Tally::Returned)
            };
            return idle.into_iter().find(asked).map_or(Ok(()), |queue| Err(Stall::Queue(queue)));
        }
        self.forget_questions();
        let waiting = self.control.as_ref().and_then(|control| control.waiting(self.number)).unwrap_or(0);
        if waiting == 0 && !self.to_kick {
            self.state = State::Settled;
        } else if idle.len() == self.queues.len() {
            let taken = (0..self.slots.queues()).map(|queue| in_work(&self.slots, queue)).sum();
            if waiting > taken {
                return Err(Stall::Lost { waiting, taken });
            }
        }
        Ok(())
    }

    /// What was asked before does not matter any more. Whoever was killed has not counted its last.
    fn forget_questions(&self) {
        for queue in 0..self.slots.queues() {
            let asked = self.slots.tally(queue, Tally::Asked).load(Ordering::Acquire);
            self.slots.tally(queue, Tally::Returned).store(asked, Ordering::Release);
        }
    }

    /// Returns the queues whose thread has waited for the kernel as long as we are patient, and which could have taken a
    /// request meanwhile: with work that takes long in all slots nothing can move, and nothing is lost.
    fn idle_queues(&mut self) -> Vec<u16> {
        let mut idle = Vec::new();
        for (queue, seen) in (0..).zip(&mut self.queues) {
            let now = Seen::now(&self.slots, queue);
            let full = in_work(&self.slots, queue) >= self.slots.depth().into();
            if full || (now.turns, now.returned) != (seen.turns, seen.returned) {
                *seen = now;
            } else if now.turns.is_multiple_of(2) && seen.since.elapsed() >= self.patience {
                idle.push(queue);
            }
        }
        idle
    }
}

impl Seen {
    fn now(slots: &Buffers, queue: u16) -> Seen {
        let count = |tally| slots.tally(queue, tally).load(Ordering::Acquire);
        Seen { turns: count(Tally::Turns), returned: count(Tally::Returned), since: Instant::now() }
    }
}

/// Returns how many slots of a queue hold a request that the server has not answered yet.
fn in_work(slots: &Buffers, queue: u16) -> u64 {
    let count = |tally| slots.tally(queue, tally).load(Ordering::Acquire);
    count(Tally::Taken).saturating_sub(count(Tally::Answered))
}

/// Returns how a child ended, if it did.
fn end_of(child: &OwnedFd) -> Option<WaitIdStatus> {
    rustix::process::waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok().flatten()
}

/// The folder of the kernel's control files of FUSE.
#[derive(Debug)]
struct Control(OwnedFd);

impl Control {
    /// Opens it, wherever it is mounted or not.
    fn open() -> io::Result<Control> {
        let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        Ok(Control(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?))
    }

    /// Returns how many requests of a connection are not answered, queued ones among them.
    fn waiting(&self, number: u32) -> Option<u64> {
        // Such a file can be read once.
        let file =
            rustix::fs::openat(&self.0, format!("{number}/waiting"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        std::io::read_to_string(File::from(file.ok()?)).ok()?.trim().parse().ok()
    }
}

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a request may be missing while nobody does anything about it.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_full_of_work_is_not_idle() {
        let slots = Arc::new(Buffers::new(2, 3).unwrap());
        let mut watchdog = Watchdog::new(0, Arc::clone(&slots), Some(Duration::ZERO));
        assert_eq!(watchdog.idle_queues(), [0, 1]);
        slots.tally(1, Tally::Taken).store(5, Ordering::Release);
        slots.tally(1, Tally::Answered).store(2, Ordering::Release);
        assert_eq!(watchdog.idle_queues(), [0]);
        slots.tally(1, Tally::Answered).store(3, Ordering::Release);
        assert_eq!(watchdog.idle_queues(), [0, 1]);
        slots.tally(0, Tally::Turns).store(1, Ordering::Release);
        assert_eq!(watchdog.idle_queues(), [1], "it has just moved");
        assert_eq!(watchdog.idle_queues(), [1], "it works");
    }

    #[test]
    fn a_queue_that_is_still_to_be_started_is_not_settled() {
        let slots = Arc::new(Buffers::new(1, 1).unwrap());
        let mut watchdog = Watchdog::new(u32::MAX, slots, None);
        watchdog.state = State::Watching;
        let mut failing = std::process::Command::new("/bin/false").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&failing);
        watchdog.kickers.push(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap());
        for _ in 0..200 {
            watchdog.look().unwrap();
            if watchdog.kickers.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Waited for already.
        let _ = failing.wait();
        assert_eq!((watchdog.state, watchdog.to_kick), (State::Watching, true));
    }
}
