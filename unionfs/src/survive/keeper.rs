//! The process that keeps a mount when its server dies.
//!
//! It has made the mount, shaken hands with the kernel and opened all channels to it, and it shares its memory with the
//! worker that it forks to serve. When the worker dies, the next one has the same descriptors and the same memory; it
//! asks the kernel to hand out again what was not answered, and goes on. The keeper itself does nothing but wait.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use strata_sys::fork::{Forked, fork};

use super::keep::Keep;
use super::memory::{End, Header};
use super::pinned::Pinned;
use super::watchdog::Watchdog;
use crate::fuse::{Connection, Line};
use crate::tree::Tree;

/// What a test wants to go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The worker kills itself at one in so many steps of requests.
    pub kill_one_in: Option<u64>,
    /// Only at this kind of step: 1 when a request was read, 2 when it was noted, 3 anywhere in executing it, 4 when it
    /// was executed, 5 when it was answered.
    pub kill_at: Option<u64>,
    /// Workers do not believe what the last one noted about requests, nor what it left in the slots of an io_uring.
    pub forgetful: bool,
    /// How long the watchdog of a connection over io_uring lets requests be missing, if not as long as usual.
    pub patience: Option<Duration>,
    /// The worker aborts at every request with this number.
    pub deadly: Option<u32>,
}

/// What a mount has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survived {
    /// Workers that have died.
    pub deaths: u64,
    /// Those of them that a test has let die at a step of a request.
    pub injected: u64,
    /// Requests that were handed out again.
    pub resent: u64,
    /// Those of them that had noted which names they would change.
    pub intended: u64,
    /// Those of them that had changed them.
    pub executed: u64,
    /// Requests that were given up because workers died of them.
    pub poisoned: u64,
    /// Files without a name that could not be kept.
    pub unpinned: u64,
    /// The longest time without a worker.
    pub longest_pause: Duration,
}

impl Survived {
    pub(crate) fn of(keep: &Keep) -> Survived {
        let count = |header| keep.memory().read_header(header);
        Survived {
            deaths: count(Header::Generation).saturating_sub(1),
            injected: count(Header::Kills),
            resent: count(Header::Resent),
            intended: count(Header::Intended),
            executed: count(Header::Executed),
            poisoned: count(Header::Poisoned),
            unpinned: count(Header::Unpinned),
            longest_pause: Duration::from_micros(count(Header::LongestPause)),
        }
    }
}

/// Why a worker cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It cannot be made.
    #[error("start the process that serves the mount")]
    Start(#[source] io::Error),
    /// It cannot use the layers, and says why.
    #[error("{0}")]
    Layers(String),
    /// It died before it could say.
    #[error("the process that serves the mount ended before it was ready")]
    Died,
}

/// A mount and its worker.
#[derive(Debug)]
pub(crate) struct Keeper {
    service: Service,
    watchdog: Option<Watchdog>,
    pidfd: OwnedFd,
    /// When the last worker was gone.
    since: Instant,
}

/// All that a worker needs.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) layers: Pinned,
    pub(crate) keep: Arc<Keep>,
    /// The lock of the upper.
    pub(crate) lock: Option<OwnedFd>,
    pub(crate) line: Line,
    /// The mount has a place, from where somebody may take it away and wait for its end.
    pub(crate) somewhere: bool,
}

impl Keeper {
    /// Starts the first worker and waits until it can serve. This process must have one thread only.
    pub(crate) fn start(service: Service, faults: Faults) -> Result<Keeper, WorkerError> {
        let memory = service.keep.memory();
        memory.header(Header::KillOneIn).store(faults.kill_one_in.unwrap_or(0), Ordering::Relaxed);
        memory.header(Header::KillAt).store(faults.kill_at.unwrap_or(0), Ordering::Relaxed);
        memory.header(Header::Forgetful).store(faults.forgetful.into(), Ordering::Relaxed);
        memory.header(Header::Deadly).store(faults.deadly.unwrap_or(0).into(), Ordering::Relaxed);
        let since = Instant::now();
        let watchdog = service.line.slots().zip(service.line.number());
        let watchdog = watchdog.map(|(slots, number)| Watchdog::new(number, Arc::clone(slots), faults.patience));
        let pidfd = service.start_worker()?;
        shield();
        Ok(Keeper { service, watchdog, pidfd, since })
    }

    /// Starts worker after worker until the mount is gone.
    pub(crate) fn watch(mut self) -> io::Result<()> {
        let mut failures: u32 = 0;
        let mut last_answer = Instant::now();
        loop {
            let status = self.wait_for_worker()?;
            if status.exit_status() == Some(0) {
                return Ok(());
            }
            self.since = Instant::now();
            let memory = Arc::clone(self.service.keep.memory());
            let end = if status.terminating_signal() == Some(Signal::KILL.as_raw()) { End::Killed } else { End::Fault };
            memory.header(Header::End).store(end as u64, Ordering::Release);
            loop {
                let answered = memory.header(Header::Answered).swap(0, Ordering::AcqRel);
                failures = if answered == 0 { failures + 1 } else { 0 };
                if answered > 0 {
                    last_answer = Instant::now();
                }
                let hopeless = failures > MOST_FAILURES && last_answer.elapsed() > MOST_SILENCE;
                if hopeless || memory.is_lost() || !self.service.line.agreed.can_resend() {
                    // When this process is gone, so is the connection: clients get errors and do not wait for ever.
                    return Err(io::Error::other("the process that serves the mount died, and no other can go on"));
                }
                if failures > 1 {
                    std::thread::sleep(Duration::from_millis(5 << failures.min(6)));
                }
                match self.service.start_worker() {
                    Ok(pidfd) => {
                        self.pidfd = pidfd;
                        break;
                    }
                    // Killed on its way, perhaps, or out of something that may be there again in a moment.
                    Err(error) => {
                        tracing::warn!(%error, "the next server of the mount did not start");
                        memory.header(Header::End).store(End::Unready as u64, Ordering::Release);
                    }
                }
            }
            let pause = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
            memory.header(Header::LongestPause).fetch_max(pause, Ordering::Relaxed);
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.begin();
            }
        }
    }

    /// Waits for the worker's end, and makes sure meanwhile that it is of use.
    fn wait_for_worker(&mut self) -> io::Result<WaitIdStatus> {
        if let Some(watchdog) = &mut self.watchdog {
            while watchdog.wait(&self.pidfd) {
                watchdog.look().map_err(io::Error::other)?;
            }
        }
        wait_for(&self.pidfd)
    }

    pub(crate) fn keep(&self) -> &Arc<Keep> {
        &self.service.keep
    }
}

impl Drop for Keeper {
    /// Without a keeper, no worker: when both are gone, the connection is.
    fn drop(&mut self) {
        // Fails for one that has ended.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = wait_for(&self.pidfd);
    }
}

impl Service {
    /// Forks a worker and waits until it is ready.
    fn start_worker(&self) -> Result<OwnedFd, WorkerError> {
        self.keep.memory().count(Header::Generation);
        let (ready, says) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| WorkerError::Start(error.into()))?;
        let keeper = rustix::process::getpid();
        match fork().map_err(WorkerError::Start)? {
            Forked::Child => {
                // Whatever happens, nothing of this process may return to the keeper's frames.
                let worked = catch_unwind(AssertUnwindSafe(|| self.work(keeper, says)));
                strata_sys::process::exit_now(i32::from(!matches!(worked, Ok(Ok(())))))
            }
            Forked::Parent { pidfd, .. } => {
                drop(says);
                let mut word = String::new();
                let _ = std::fs::File::from(ready).read_to_string(&mut word);
                if word == READY {
                    return Ok(pidfd);
                }
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                let _ = wait_for(&pidfd);
                Err(if word.is_empty() { WorkerError::Died } else { WorkerError::Layers(word) })
            }
        }
    }

    /// The life of a worker.
    fn work(&self, keeper: Pid, says: OwnedFd) -> io::Result<()> {
        // Whoever is left alone would keep the mount from ever ending.
        strata_sys::process::set_parent_death_signal(libc::SIGKILL)?;
        if rustix::process::getppid() != Some(keeper) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Not the mount itself, which would be in use for ever, and nothing else of whoever asked for it.
        let mut kept: Vec<_> = self.line.descriptors().collect();
        kept.extend(self.keep.pins().descriptors().chain(self.lock.iter().map(|lock| lock.as_fd())));
        kept.extend(self.layers.descriptors());
        kept.push(says.as_fd());
        strata_sys::process::close_all_but(&kept)?;
        unshield();
        let mut says = std::fs::File::from(says);
        self.keep.memory().find_free();
        let lock = self.lock.as_ref().map(|lock| rustix::io::fcntl_dupfd_cloexec(lock, 0)).transpose()?;
        let tree = match Tree::open_kept(self.layers.spec(), &self.keep, lock) {
            Ok(tree) => Arc::new(tree),
            Err(error) => {
                says.write_all(self.layers.named(&chain(&error)).as_bytes())?;
                return Err(io::Error::other(error));
            }
        };
        let connection = Connection::kept(Arc::clone(&tree), &self.line, &self.keep);
        if self.keep.is_left() {
            connection.resend()?;
        }
        let says = Mutex::new(Some(says));
        let mut result = connection.serve(&|| {
            // The keeper is gone if it does not listen, and so is this process soon.
            let says = says.lock().unwrap_or_else(PoisonError::into_inner).take();
            let _ = says.map(|mut says| says.write_all(READY.as_bytes()));
        });
        if self.somewhere && result.is_ok() {
            result = tree.write_through_at_the_end().map_err(io::Error::from);
        }
        // The last holder of a layer's object table tidies up.
        drop(tree);
        result
    }
}

/// Waits for the end of a child.
fn wait_for(pidfd: &OwnedFd) -> io::Result<WaitIdStatus> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Asks the kernel to kill anybody else first when memory runs out; allowed to root only.
fn shield() {
    let _ = std::fs::write(BADNESS, "-1000");
}

/// A worker is a process like any other.
fn unshield() {
    if std::fs::read_to_string(BADNESS).is_ok_and(|badness| badness.trim() == "-1000") {
        // Raising it is always allowed.
        let _ = std::fs::write(BADNESS, "0");
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What a worker says that can serve.
const READY: &str = "\0ready";
/// So many workers in a row may die without having answered anything, in so long a time: where many programs run, one
/// may be killed on its way again and again before it serves.
const MOST_FAILURES: u32 = 16;
const MOST_SILENCE: Duration = Duration::from_secs(5);
const BADNESS: &str = "/proc/self/oom_score_adj";
