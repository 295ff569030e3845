//! One file per verb: its options, the call, the rendering.

pub(crate) mod attach;
pub(crate) mod bench;
pub(crate) mod commit;
mod container_options;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod diff;
pub(crate) mod disk_usage;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod export;
pub(crate) mod fetch;
mod filter;
pub(crate) mod fsck;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod load;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod manifest;
pub(crate) mod mount;
pub(crate) mod pause;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod registry;
pub(crate) mod rename;
pub(crate) mod restart;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod search;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod system;
pub(crate) mod tag;
pub(crate) mod top;
pub(crate) mod umount;
pub(crate) mod update;
pub(crate) mod wait;

use std::path::PathBuf;

use anyhow::Context as _;
use strata_engine::{CgroupManager, ContainerId, Engine, Session};

use crate::configuration;
use crate::failure::Failure;
use crate::relay::{self, Relay, Signals};

/// What every verb is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where all state is.
    pub(crate) root: PathBuf,
    /// Who makes cgroups, where the command line says so.
    pub(crate) cgroup_manager: Option<CgroupManager>,
}

impl Context {
    /// Opens the engine.
    pub(crate) fn engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::open(&self.root)?)
    }

    /// Opens the engine to make containers, or to tell how they are made.
    pub(crate) fn engine_for_new(&self) -> Result<Engine, Failure> {
        let asked = match self.cgroup_manager {
            Some(asked) => Some(asked),
            None => configuration::cgroup_manager().map_err(Failure::of_engine)?,
        };
        Ok(self.engine()?.with_cgroup_manager(asked))
    }
}

/// What a verb ends with: an exit code, or a failure to report.
pub(crate) type Outcome = Result<u8, Failure>;

/// Does the same for several operands: a failure is reported and the others are still done.
pub(crate) fn for_each<T>(operands: &[T], mut action: impl FnMut(&T) -> Result<(), Failure>) -> Outcome {
    let mut code = 0;
    for operand in operands {
        if let Err(failure) = action(operand) {
            // Nobody reads any more: there is nobody to tell either.
            if crate::output::is_closed_pipe(&failure.error) {
                return Err(failure);
            }
            failure.report();
            code = failure.code;
        }
    }
    Ok(code)
}

/// Follows a container to its end, and returns its exit code.
fn follow(engine: &Engine, id: &ContainerId, mut session: Session, relay: &Relay, signals: &Signals) -> Outcome {
    let mut findings = String::new();
    let relayed = relay.run(&mut session, signals, &mut findings);
    // Nobody may read any more.
    relay::show(rustix::stdio::stderr(), findings.as_bytes());
    let relayed = relayed.context("relay the container's streams").map_err(Failure::of_engine)?;
    match relayed {
        relay::Outcome::Ended(code) => Ok(exit_code(code)),
        relay::Outcome::Detached => Ok(0),
        relay::Outcome::Lost => {
            // This also writes down what is left to be said.
            let code = engine.wait(id.as_str()).ok().filter(|code| *code != 0).unwrap_or(137);
            eprintln!("strata: the monitor of container {} was killed, and the container with it", id.short());
            Ok(exit_code(code))
        }
    }
}

/// The exit code of a process as that of a command.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}
