//! What a policy would refuse, observed and not enforced.
//!
//! The container's filter asks about every call that the policy has something to say about. A thread looks at the call, compares
//! it with the policy, and lets it go on. Between the look and the call a program can change what was looked at: an audit
//! is an observation, no wall.

mod place;
mod report;
mod watched;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use strata_sys::seccomp_notify::{self, Answer, Notification};

pub use self::report::{Access, Finding, Report};
use self::watched::{Call, Observation};
pub(crate) use self::watched::{of_files, of_ports};
use crate::policy::Policy;
use crate::seccomp::Architecture;

/// An audit of one container. Its processes wait for it in each call that is observed; if it goes away, such calls fail with
/// `ENOSYS`.
#[derive(Debug)]
pub struct Audit {
    shared: Arc<Shared>,
    watchers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    policy: Policy,
    /// By architecture and number.
    calls: HashMap<(u32, i32), Call>,
    report: Mutex<Report>,
}

impl Audit {
    /// Prepares the audit of `policy`.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let calls = policy.observed_names();
        let numbers = calls.iter().flat_map(|name| {
            let call = Call::of(name, &policy);
            Architecture::ALL.into_iter().filter_map(move |architecture| {
                let number = i32::try_from(architecture.number(name)?).ok()?;
                Some(((architecture.audit_number(), number), call.clone()))
            })
        });
        let calls = numbers.collect();
        Self { shared: Arc::new(Shared { policy, calls, report: Mutex::default() }), watchers: Mutex::default() }
    }

    /// Answers for the calls of a filter until no process has it any more.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn watch(&self, listener: OwnedFd) -> std::io::Result<()> {
        let shared = self.shared.clone();
        let name = "strata-audit".to_owned();
        let watcher = std::thread::Builder::new().name(name).spawn(move || shared.watch(&listener))?;
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| !watcher.is_finished());
        watchers.push(watcher);
        Ok(())
    }

    /// Waits until all processes that are observed have been seen to end, and returns what was found. A file that does not
    /// answer must not keep the end of a container from being told, so this waits for some seconds at most.
    #[must_use]
    pub fn finish(self) -> (Policy, Report) {
        let watchers = self.watchers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + PATIENCE;
        while watchers.iter().any(|watcher| !watcher.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let report = std::mem::take(&mut *self.shared.report.lock().unwrap_or_else(PoisonError::into_inner));
        (self.shared.policy.clone(), report)
    }
}

impl Shared {
    fn watch(&self, listener: &OwnedFd) {
        loop {
            let mut fds = [PollFd::new(listener, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            if !fds[0].revents().contains(PollFlags::IN) {
                // Nobody has the filter any more.
                return;
            }
            // It fails when the caller was killed before it could be asked about.
            let Ok(notification) = seccomp_notify::receive(listener.as_fd()) else { continue };
            let observed = self.look_at(&notification);
            // Read of the caller, if that still waits, and of nobody who has its number by now.
            let is_waiting = seccomp_notify::is_waiting(listener.as_fd(), notification.id);
            let answered = seccomp_notify::answer(listener.as_fd(), notification.id, Answer::Continue);
            if is_waiting && answered.is_ok() {
                let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
                for finding in observed {
                    report.add(finding);
                }
            }
        }
    }

    fn look_at(&self, notification: &Notification) -> Vec<Finding> {
        let Some(call) = self.calls.get(&(notification.architecture, notification.number)) else { return Vec::new() };
        let mut findings = Vec::new();
        if call.is_refused {
            findings.push(Finding::Call(call.name.clone()));
        }
        for observation in watched::observe(call, notification) {
            findings.extend(match observation {
                Observation::File { root, path, access } => place::refused(&self.policy, root.as_fd(), path, access),
                Observation::Connect(port) => self.port(port, |ports| &ports.connect, Finding::Connect),
                Observation::Bind(port) => self.port(port, |ports| &ports.bind, Finding::Bind),
            });
        }
        findings
    }

    fn port(
        &self,
        port: u16,
        allowed: fn(&crate::policy::Ports) -> &Vec<u16>,
        finding: fn(u16) -> Finding,
    ) -> Option<Finding> {
        let ports = self.policy.network.as_ref()?;
        (!allowed(ports).contains(&port)).then(|| finding(port))
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
