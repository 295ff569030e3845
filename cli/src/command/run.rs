//! `strata run`

mod options;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use clap::{ArgAction, Args};
use strata_engine::{Attached, ContainerName, RunError};

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::relay::{self, Peer, Signals, Streams};
use crate::terminal::{self, RawTerminal};

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
    /// Remove the container when it exits
    #[arg(long)]
    rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run in the background (not available yet)
    #[arg(short, long)]
    detach: bool,
    /// Assign a name to the container
    #[arg(long)]
    name: Option<ContainerName>,
    /// Set an environment variable; without a value, pass the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Start in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Join an additional group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Show a file or folder of the host in the container
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]")]
    volume: Vec<String>,
    /// Attach a filesystem: type=bind|tmpfs,src=...,dst=...
    #[arg(long, value_name = "OPTIONS")]
    mount: Vec<String>,
    /// Mount a filesystem in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Make the container's root read-only
    #[arg(long)]
    read_only: bool,
    /// Set the container's host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Limit memory
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Limit memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Limit CPU time to that of so many CPUs
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Set the relative weight of CPU time
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Run only on these CPUs
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Limit the number of processes; -1 for unlimited
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Set seccomp=FILE|unconfined or no-new-privileges
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Give every privilege: all capabilities and devices, nothing masked or filtered
    #[arg(long)]
    privileged: bool,
    /// Limit a resource of the process, as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Set the size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Set how readily the kernel kills it when memory is short
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Choose the network: none or host
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "none")]
    network: String,
    /// Choose the user namespace: host or auto
    #[arg(long, value_name = "MODE", default_value = "host")]
    userns: String,
    /// Replace the entrypoint of the image
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Set the signal that asks the container to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<std::path::PathBuf>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The image, and the command to run instead of the image's own
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_name = "IMAGE")]
    image_and_command: Vec<String>,
}

/// Runs a container and returns its exit code.
pub(crate) fn run(context: &Context, run: &Run) -> Outcome {
    if run.detach {
        let failure = Failure::of_engine(anyhow::anyhow!("running in the background is not available yet"));
        return Err(failure.hint("leave out `-d` and let the shell run it in the background: `strata run ... &`"));
    }
    if run.tty && run.interactive && !terminal::stdin_is_terminal() {
        return Err(Failure::from(anyhow::anyhow!("the input device is not a TTY")));
    }
    let options = options::creation(run).map_err(Failure::of_engine)?;
    if let Some(path) = run.cidfile.as_ref().filter(|path| path.exists()) {
        let path = path.display();
        return Err(Failure::of_engine(anyhow::anyhow!(
            "container ID file found, make sure the other container isn't running or delete {path}"
        )));
    }
    let engine = context.engine().map_err(|failure| Failure { code: 125, ..failure })?;
    // Collected before the container exists: a signal between its start and the relay must reach it.
    let signals = Signals::collect().map_err(Failure::of_engine)?;
    let size = run.tty.then(terminal::size).flatten();
    let mut attached = engine.run(&options, size).map_err(explain)?;
    for warning in attached.warnings() {
        eprintln!("strata: warning: {warning}");
    }
    let relayed = write_id(run, &attached).and_then(|()| follow(run, &mut attached, &signals));
    if relayed.is_err() {
        // Without its streams nobody can reach it any more. It may have ended by itself, which is as well.
        let _ = attached.signal(9);
    }
    let status = attached.finish().map_err(Failure::of_engine)?;
    relayed.map_err(|error| Failure::of_engine(anyhow::Error::from(error).context("relay the container's streams")))?;
    Ok(status)
}

fn write_id(run: &Run, attached: &Attached<'_>) -> io::Result<()> {
    match &run.cidfile {
        Some(path) => io::Write::write_all(&mut std::fs::File::create_new(path)?, attached.id().as_str().as_bytes()),
        None => Ok(()),
    }
}

fn follow(run: &Run, attached: &mut Attached<'_>, signals: &Signals) -> io::Result<()> {
    let _raw = match run.tty && run.interactive {
        true => Some(RawTerminal::enter(io::stdin().as_fd())?),
        false => None,
    };
    let input = attached.take_input(run.interactive)?;
    let attached = &*attached;
    let streams = Streams { input, output: attached.output(), error: attached.error_output() };
    relay::relay(attached, streams, signals)
}

impl Peer for Attached<'_> {
    fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd()
    }

    fn signal(&self, signal: i32) -> io::Result<()> {
        Attached::signal(self, signal)
    }

    fn resize(&self) -> io::Result<()> {
        match terminal::size() {
            Some((rows, columns)) => Attached::resize(self, rows, columns),
            None => Ok(()),
        }
    }
}

/// Adds the exit code and the advice to a failed start.
fn explain(error: RunError) -> Failure {
    Failure { code: error.exit_code(), hint: error.hint(), error: error.into() }
}
