//! The messages: what a monitor is given to do, what commands ask of it, what it answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strata_unionfs::Lower;

use crate::container::{Config, ContainerId, Limits, RestartPolicy};

/// The container that a monitor is for, sent before anything else, together with the hold on the layers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The root folder.
    pub(crate) root: PathBuf,
    /// The container. Its record names this monitor as its owner already.
    pub(crate) id: ContainerId,
    /// What its root stands on.
    pub(crate) lower: Lower,
    /// The merged index of that.
    pub(crate) index: PathBuf,
    /// The size of the user's terminal.
    pub(crate) size: Option<(u16, u16)>,
    /// What becomes of the connection when the process runs.
    pub(crate) attach: Option<Attach>,
}

/// What a command is connected to. Without any of it, it only hears of the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Its input goes to the process.
    pub input: bool,
    /// It gets what the process writes.
    pub output: bool,
    /// It gets what the process complains.
    pub error: bool,
}

impl Attach {
    /// All three streams.
    pub fn all() -> Attach {
        Attach { input: true, output: true, error: true }
    }
}

/// What a command asks of the monitor of a running container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// To be connected to the first process.
    Attach(Attach),
    /// Another process in the container.
    Exec(Box<Execution>),
    /// A signal to the first process.
    Signal(i32),
    /// An end, by force after a while; answered when it has come.
    Stop {
        /// The signal that asks for it; that of the container if absent.
        signal: Option<i32>,
        /// Seconds until force is used; -1 for never.
        timeout: i64,
    },
    /// As `Stop`, and then a new start; answered when that has come about.
    Restart {
        /// As for `Stop`.
        signal: Option<i32>,
        /// As for `Stop`.
        timeout: i64,
    },
    /// The end at once; answered when it has come.
    Kill,
    /// Stop all processes where they are.
    Pause,
    /// Let them go on.
    Resume,
    /// Other limits, another restart policy.
    Update(Box<Update>),
}

/// A process to be added to a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables besides those of the container.
    pub environment: Vec<String>,
    /// The user, if not that of the container.
    pub user: Option<String>,
    /// Where it starts, if not where the container's does.
    pub working_directory: Option<String>,
    /// It gets a terminal.
    pub tty: bool,
    /// Its input stays open.
    pub open_stdin: bool,
    /// It gets every capability and no filter.
    pub privileged: bool,
    /// The size of the user's terminal.
    pub size: Option<(u16, u16)>,
    /// What the connection becomes; with `None`, nobody hears of its end.
    pub attach: Option<Attach>,
}

/// What `update` changes; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Limits, of which those that are absent stay.
    pub limits: Limits,
    /// The restart policy.
    pub restart: Option<RestartPolicy>,
}

/// A change of limits that does not go with what is there. The texts are Docker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateConflict {
    /// The period and a number of CPUs.
    #[error("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")]
    Period,
    /// The quota and a number of CPUs.
    #[error("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")]
    Quota,
    /// A number of CPUs and the period or the quota.
    #[error("Conflicting options: Nano CPUs cannot be updated as CPU Period or CPU Quota has already been set")]
    NanoCpus,
}

impl Update {
    /// The limits to be written to the cgroup of a container that has those: quota and period are one file.
    pub(crate) fn limits_over(&self, known: &Limits) -> Result<Limits, UpdateConflict> {
        let new = &self.limits;
        match known.nano_cpus {
            Some(_) if new.cpu_period.is_some() => return Err(UpdateConflict::Period),
            Some(_) if new.cpu_quota.is_some() => return Err(UpdateConflict::Quota),
            None if new.nano_cpus.is_some() && (known.cpu_quota.is_some() || known.cpu_period.is_some()) => {
                return Err(UpdateConflict::NanoCpus);
            }
            _ => {}
        }
        let mut limits = new.clone();
        if new.cpu_quota.is_some() || new.cpu_period.is_some() {
            limits.cpu_quota = new.cpu_quota.or(known.cpu_quota);
            limits.cpu_period = new.cpu_period.or(known.cpu_period);
        }
        Ok(limits)
    }

    /// Puts it into a configuration.
    pub(crate) fn apply(&self, config: &mut Config) {
        fn set<T: Clone>(known: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                known.clone_from(new);
            }
        }
        // Named one by one, so that none that is added is forgotten.
        let Limits {
            memory,
            memory_and_swap,
            memory_reservation,
            swappiness,
            nano_cpus,
            cpu_quota,
            cpu_period,
            cpu_shares,
            cpuset,
            cpuset_mems,
            blkio_weight,
            pids,
        } = &self.limits;
        let limits = &mut config.limits;
        set(&mut limits.memory, memory);
        set(&mut limits.memory_and_swap, memory_and_swap);
        set(&mut limits.memory_reservation, memory_reservation);
        set(&mut limits.swappiness, swappiness);
        set(&mut limits.nano_cpus, nano_cpus);
        set(&mut limits.cpu_quota, cpu_quota);
        set(&mut limits.cpu_period, cpu_period);
        set(&mut limits.cpu_shares, cpu_shares);
        set(&mut limits.cpuset, cpuset);
        set(&mut limits.cpuset_mems, cpuset_mems);
        set(&mut limits.blkio_weight, blkio_weight);
        set(&mut limits.pids, pids);
        if let Some(restart) = self.restart {
            config.restart = restart;
        }
    }
}

/// What came of a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// It is done, and this should be known.
    Warned(Vec<String>),
    /// It is not done.
    Refused(Refusal),
}

/// Why a monitor did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The reason, in one line.
    pub text: String,
    /// The exit code for a command that was to run something.
    pub code: u8,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl Refusal {
    /// A failure of strata itself.
    pub(crate) fn of(error: &dyn std::error::Error) -> Refusal {
        Refusal { text: crate::error_chain(error), code: 125, hint: None }
    }
}
