//! `strata runtime`: an OCI runtime with runc's command line. Also what this program is when it is called `runc` or
//! `strata-runtime`, since others can often be given a path to a runtime and nothing else.
//!
//! Options, output, exit codes and the words of errors are runc's where programs read them.

mod console;
mod exec;
mod flags;
mod foreground;
mod list;
mod log;
mod make;
mod watch;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use strata_engine::oci::{self, Audience, Container, Delete, Runtime};
use strata_engine::{CgroupManager, error_chain};
use strata_sys::entry::PROCESS_VERBS;

use self::flags::{Flag, Given, Positionals};
use self::log::Log;

/// Does what the command line asks for.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let parsed = flags::text(arguments).and_then(|arguments| Given::parse(&GLOBAL, arguments, Positionals::Last));
    let given = match parsed {
        Ok(given) => given,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let makes_processes = given.positionals.first().is_some_and(|verb| PROCESS_VERBS.contains(&verb.as_str()));
    let protected = if makes_processes { oci::protect_own_program() } else { Ok(()) };
    // Nothing is open yet but what the caller has left open, which may be meant for the container.
    let descriptors = open_descriptors();
    // What a careless caller left open must not live on in a container or a hook.
    let _ = strata_sys::process::close_on_exec_from(3);
    let log = match Log::open(given.value("log"), given.value("log-format"), given.has("debug")) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let protected = protected.context("run from where a container cannot write to this program");
    match protected.map_err(Failure::from).and_then(|()| run(&given, &log, descriptors)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            log.error(&failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// The numbers, from 3 up, of all that is open.
fn open_descriptors() -> Vec<u32> {
    let folder = Path::new("/proc/self/fd");
    let numbers = |folder| {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect::<Vec<u32>>()
    };
    let mut found = numbers(folder);
    // Without that by which the folder was read.
    found.retain(|number| *number >= 3 && folder.join(number.to_string()).symlink_metadata().is_ok());
    found
}

/// Why a verb did not do what it was asked, and its exit code.
#[derive(Debug)]
struct Failure {
    text: String,
    code: u8,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure { text: error_chain(error.into().as_ref()), code: 1 }
    }
}

impl Failure {
    /// Says which verb failed, as runc does.
    fn of(what: &str, code: u8) -> impl Fn(anyhow::Error) -> Failure {
        move |error| Failure { text: format!("{what}: {}", error_chain(error.as_ref())), code }
    }
}

/// What every verb knows.
struct Context<'a> {
    runtime: Runtime,
    log: &'a Log,
    /// What the caller has left open, from 3 up.
    descriptors: Vec<u32>,
}

impl Context<'_> {
    fn container(&self, id: &str) -> Result<Container> {
        Ok(self.runtime.container(&id.parse()?)?)
    }

    /// Tells of things that were left out.
    fn warn(&self, warnings: Vec<String>) {
        for warning in warnings {
            self.log.warn(&warning);
        }
    }
}

fn run(given: &Given, log: &Log, descriptors: Vec<u32>) -> Result<u8, Failure> {
    let mut words = given.positionals.iter().cloned();
    let verb = words.next();
    if given.has("version") {
        print(format_args!("strata-runtime version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), oci::MAX_VERSION))?;
        return Ok(0);
    }
    let Some(verb) = verb.filter(|verb| !given.has("help") && verb != "help") else {
        print(format_args!("{USAGE}"))?;
        return Ok(0);
    };
    let cgroup_manager = match given.has("systemd-cgroup") {
        true => CgroupManager::Systemd,
        false => CgroupManager::Cgroupfs,
    };
    let root = given.value("root").map_or_else(default_root, |root| Ok(PathBuf::from(root)))?;
    // A plain user cannot mount before he is root of a namespace of his own.
    let ids_outside = matches!(verb.as_str(), "create" | "run") && oci::enter()?;
    let context = Context {
        runtime: Runtime::new(root).with_cgroup_manager(cgroup_manager).with_ids_outside(ids_outside),
        log,
        descriptors,
    };
    dispatch(&context, &verb, words.collect())
}

fn dispatch(context: &Context<'_>, verb: &str, words: Vec<String>) -> Result<u8, Failure> {
    let parse = |flags: &[Flag]| Given::parse(flags, words.clone(), Positionals::Anywhere);
    let id_only = || -> Result<String> { Ok(parse(&[])?.exactly_one("container ID")?.to_owned()) };
    match verb {
        "create" => make::create(context, words).map_err(Failure::of("runc create failed", 1)),
        "run" => make::run(context, words).map_err(Failure::of("runc run failed", 1)),
        "exec" => exec::exec(context, words).map_err(Failure::of("exec failed", 255)),
        "start" => {
            context.container(&id_only()?)?.start()?;
            Ok(0)
        }
        "state" => {
            let state = context.container(&id_only()?)?.state();
            print(format_args!("{}\n", serde_json::to_string_pretty(&state)?))?;
            Ok(0)
        }
        "kill" => Ok(kill(context, &parse(&[Flag::switch(&["all", "a"]), Flag::switch(&["regex", "r"])])?)?),
        "delete" => Ok(delete(context, &parse(&[Flag::switch(&["force", "f"])])?)?),
        "pause" => {
            context.container(&id_only()?)?.pause()?;
            Ok(0)
        }
        "resume" => {
            context.container(&id_only()?)?.resume()?;
            Ok(0)
        }
        "ps" => Ok(list::ps(context, words)?),
        "list" => Ok(list::list(context, words)?),
        "update" => Ok(watch::update(context, words)?),
        "events" => Ok(watch::events(context, words)?),
        "features" => {
            parse(&[])?.none()?;
            print(format_args!("{}\n", serde_json::to_string_pretty(&oci::features())?))?;
            Ok(0)
        }
        "spec" => Ok(spec(&parse(&[Flag::value(&["bundle", "b"]), Flag::switch(&["rootless"])])?)?),
        "checkpoint" | "restore" => Err(anyhow!("{verb} is not supported: this runtime has no checkpoints").into()),
        _ => Err(anyhow!("no such command: {verb}").into()),
    }
}

fn kill(context: &Context<'_>, given: &Given) -> Result<u8> {
    let (id, signal) = match given.positionals.as_slice() {
        [id] => (id, "SIGTERM"),
        [id, signal] => (id, signal.as_str()),
        [] => bail!("kill needs a container ID"),
        _ => bail!("kill takes a container ID and a signal, nothing more"),
    };
    let signal = oci::parse_signal(signal)?;
    let container = context.container(id)?;
    if given.has("all") {
        container.signal_all(signal)?
    } else {
        container.signal(signal)?
    }
    Ok(0)
}

fn delete(context: &Context<'_>, given: &Given) -> Result<u8> {
    let id = given.exactly_one("container ID")?;
    let which = if given.has("force") { Delete::Any } else { Delete::Stopped };
    match context.container(id) {
        Ok(container) => context.warn(container.delete(which)?),
        Err(error) => {
            let missing = error.downcast_ref::<oci::RuntimeError>().is_some_and(oci::RuntimeError::is_not_found);
            if missing {
                context.runtime.sweep(&id.parse()?)?;
            }
            if !(missing && given.has("force")) {
                return Err(error);
            }
        }
    }
    Ok(0)
}

fn spec(given: &Given) -> Result<u8> {
    given.none()?;
    let path = PathBuf::from(given.value("bundle").unwrap_or(".")).join("config.json");
    let audience = match given.has("rootless") {
        true => Audience::User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() },
        false => Audience::Root,
    };
    let mut text = serde_json::to_string_pretty(&oci::template(audience))?;
    text.push('\n');
    let mut file = match std::fs::File::create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("file {} exists. Remove it first", path.display())
        }
        result => result.with_context(|| format!("create {}", path.display()))?,
    };
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    Ok(0)
}

/// Writes to standard output. Whoever has closed it does not want more.
fn print(text: fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// `/run/strata-runtime`, or below a plain user's own folder.
fn default_root() -> Result<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    match (rustix::process::geteuid().is_root(), own) {
        // Root of a user namespace of somebody's own has that user's folder.
        (true, Some(own)) if !oci::is_initial_user_namespace() => Ok(PathBuf::from(own).join("strata-runtime")),
        (true, _) => Ok(PathBuf::from("/run/strata-runtime")),
        (false, Some(own)) => Ok(PathBuf::from(own).join("strata-runtime")),
        (false, None) => bail!("no folder for the state of containers: set XDG_RUNTIME_DIR, or give one by --root"),
    }
}

/// Options before the verb. What only others' runtimes have is taken and means nothing here.
const GLOBAL: [Flag; 11] = [
    Flag::value(&["root"]),
    Flag::value(&["log"]),
    Flag::value(&["log-format"]),
    Flag::switch(&["debug"]),
    Flag::switch(&["systemd-cgroup"]),
    Flag::value(&["rootless"]),
    Flag::value(&["criu"]),
    Flag::value(&["cgroup-manager"]),
    Flag::value(&["log-level"]),
    Flag::switch(&["version", "v"]),
    Flag::switch(&["help", "h"]),
];

const USAGE: &str = "\
Run containers from OCI bundles, with runc's command line

Usage: strata runtime [OPTIONS] COMMAND [ARGUMENTS]

Commands:
  create    Make a container whose program waits to be started
  start     Start the program of a created container
  run       Create and start a container, and wait for its end
  state     Print the state of a container
  kill      Send a signal to a container
  delete    Remove a container that has ended
  exec      Run another process in a container
  ps        List the processes of a container
  list      List containers
  pause     Stop all processes of a container where they are
  resume    Let them go on
  update    Change the limits of a container
  events    Print what a container uses, and that it ran out of memory
  spec      Write a config.json to begin with
  features  Print what this runtime understands

Options:
  --root DIR            Keep the state of containers in DIR [/run/strata-runtime]
  --log FILE            Write errors and warnings to FILE, too
  --log-format FORMAT   How they are written: text or json [text]
  --debug               Write more of them
  --systemd-cgroup      Have systemd make the cgroups, as scopes
  -v, --version         Print the version
";
