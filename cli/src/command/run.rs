//! `strata run`

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use strata_engine::{Attach, ContainerId, Monitor, RunError, StartOptions, UserNamespace};

use super::container_options::{self, ContainerOptions};
use super::{Context, Outcome};
use crate::detach_keys::DetachKeys;
use crate::failure::Failure;
use crate::relay::{Relay, Signals};
use crate::terminal;

/// Create and run a new container from an image
#[derive(Debug, Args)]
#[command(
    override_usage = "strata run [OPTIONS] IMAGE [COMMAND] [ARG...]",
    disable_help_flag = true,
    after_help = "Exit code: that of the command; 125 when strata failed, 126 when the command cannot be invoked, \
                  127 when it is not found, 128+n when signal n ended it",
    after_long_help = "\
Exit code: that of the command; 125 when strata failed, 126 when the command cannot be invoked, 127 when it is not \
found, 128+n when signal n ended it

Examples:
  strata run --rm -it debian:12 bash
  strata run --rm -v ./src:/src:ro -w /src gcc:latest make
  strata run --rm -m 512m --cpus 1.5 --read-only --tmpfs /tmp python:3 python3 app.py"
)]
pub(crate) struct Run {
    #[command(flatten)]
    container: ContainerOptions,
    /// Run in the background and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Leave the container alone with this key sequence [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<DetachKeys>,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
}

impl Run {
    /// The containers whose namespaces it is to join, as they were named.
    pub(crate) fn joined(&self) -> Vec<&str> {
        let user = match &self.container.userns {
            UserNamespace::Container(name) => Some(name.as_str()),
            _ => None,
        };
        let others = [&self.container.pid, &self.container.network].map(|mode| mode.strip_prefix("container:"));
        user.into_iter().chain(others.into_iter().flatten()).collect()
    }
}

/// Runs a container and returns its exit code.
pub(crate) fn run(context: &Context, run: &Run, out: &mut impl Write) -> Outcome {
    let Run { container: options, .. } = run;
    if options.tty && options.interactive && !run.detach && !terminal::stdin_is_terminal() {
        return Err(Failure::from(anyhow::anyhow!("the input device is not a TTY")));
    }
    if run.detach && !options.attach.is_empty() {
        return Err(Failure::of_engine(anyhow::anyhow!("Conflicting options: -a and -d")));
    }
    if run.detach && options.audit {
        return Err(Failure::of_engine(anyhow::anyhow!(
            "Conflicting options: --audit and -d: what an audit finds is told to the command that is attached"
        )));
    }
    let mut creation = container_options::creation(options).map_err(Failure::of_engine)?;
    check_cidfile(run.cidfile.as_ref())?;
    let attach = (!run.detach).then(|| attach_of(options));
    creation.stdin_once = attach.is_some_and(|attach| attach.input);
    // Before anything else: it gets ready while the container is made.
    let monitor = Monitor::spawn().map_err(Failure::of_engine)?;
    let engine = context.engine_for_new().map_err(|failure| Failure { code: 125, ..failure })?;
    super::pull::ensure(&engine, options)?;
    // Collected before the container exists: a signal between its start and the relay must reach it.
    let signals = match run.detach {
        true => None,
        false => Some(Signals::collect(run.sig_proxy).map_err(Failure::of_engine)?),
    };
    let size = options.tty.then(terminal::size).flatten();
    let start = StartOptions { attach, size };
    let (session, warnings) = engine.run(&creation, start, monitor).map_err(explain)?;
    for warning in warnings {
        eprintln!("strata: warning: {warning}");
    }
    write_cidfile(run.cidfile.as_ref(), session.container()).map_err(Failure::of_engine)?;
    let Some((signals, attach)) = signals.zip(attach) else {
        writeln!(out, "{}", session.container())?;
        return Ok(0);
    };
    let id = session.container().clone();
    let relay = Relay { attach, tty: options.tty, detach_keys: run.detach_keys.clone().unwrap_or_default() };
    super::follow(&engine, &id, session, &relay, &signals)
}

/// What the command is connected to: what was asked for, else both outputs, and the input when it is kept open.
pub(super) fn attach_of(options: &ContainerOptions) -> Attach {
    let asked = |name: &str| options.attach.iter().any(|stream| stream.eq_ignore_ascii_case(name));
    match options.attach.is_empty() {
        true => Attach { input: options.interactive, output: true, error: true },
        false => {
            Attach { input: asked("stdin") && options.interactive, output: asked("stdout"), error: asked("stderr") }
        }
    }
}

/// Refuses a file that is there already, before anything is made.
pub(super) fn check_cidfile(path: Option<&PathBuf>) -> Result<(), Failure> {
    let Some(path) = path.filter(|path| path.exists()) else { return Ok(()) };
    let path = path.display();
    Err(Failure::of_engine(anyhow::anyhow!(
        "container ID file found, make sure the other container isn't running or delete {path}"
    )))
}

/// Writes the identifier to the file that was asked for.
pub(super) fn write_cidfile(path: Option<&PathBuf>, id: &ContainerId) -> io::Result<()> {
    match path {
        Some(path) => std::fs::File::create_new(path)?.write_all(id.as_str().as_bytes()),
        None => Ok(()),
    }
}

/// Adds the exit code and the advice to a failed start.
pub(super) fn explain(error: RunError) -> Failure {
    Failure { code: error.exit_code(), hint: error.hint(), error: error.into() }
}
