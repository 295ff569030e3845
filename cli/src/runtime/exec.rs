//! `exec`.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use strata_engine::oci::{Added, Addition, Differences, Receiver};

use super::Context;
use super::console::{Kept, Socket};
use super::flags::{Flag, Given, Positionals};
use super::foreground::{Signals, stay};
use super::make::inherited;

/// Runs another process in a container.
pub(super) fn exec(context: &Context<'_>, words: Vec<String>) -> Result<u8> {
    let given = Given::parse(&FLAGS, words, Positionals::Last)?;
    let mut words = given.positionals.iter().cloned();
    let id = words.next().ok_or_else(|| anyhow!("needs a container ID"))?;
    let process = process(&given, words.collect())?;
    let detached = given.has("detach");
    let terminal = process.has_terminal();
    if terminal && detached && !given.has("console-socket") {
        bail!("cannot allocate tty if runc will detach without setting console socket");
    }
    if given.has("console-socket") && !terminal {
        bail!("cannot use console socket if runc will not detach or allocate tty");
    }
    let stays_here = !detached;
    let signals = if stays_here { Some(Signals::collect()?) } else { None };
    let container = context.container(&id)?;
    container.enter_namespace_of_maker()?;
    let mut kept = Kept::default();
    let mut console_socket = given.value("console-socket").map(|path| Socket::new(path, "/dev/ptmx"));
    let mut pidfd_socket = given.value("pidfd-socket").map(|path| Socket::new(path, "pidfd"));
    let console: &mut dyn Receiver = match &mut console_socket {
        Some(socket) => socket,
        None => &mut kept,
    };
    let running = container.exec(Addition {
        process,
        inherited: inherited(context, &given)?,
        ignore_paused: given.has("ignore-paused"),
        cgroup: given.value("cgroup"),
        console: Some(console),
        pidfd: pidfd_socket.as_mut().map(|socket| socket as &mut dyn Receiver),
        pid_file: given.value("pid-file").map(Path::new),
    })?;
    context.warn(running.warnings().to_vec());
    let Some(signals) = signals else { return Ok(0) };
    Ok(u8::try_from(stay(&running, kept.0, &signals)?).unwrap_or(u8::MAX))
}

fn process(given: &Given, args: Vec<String>) -> Result<Added> {
    if let Some(path) = given.value("process") {
        let json = std::fs::read(path).with_context(|| format!("read the process specification {path:?}"))?;
        return Ok(Added::from_json(&json)?);
    }
    if args.is_empty() {
        bail!("process args cannot be empty");
    }
    let number = |text: &str| text.parse().map_err(|_| anyhow!("invalid group id {text:?}"));
    Ok(Added::Command(Box::new(Differences {
        args,
        cwd: given.value("cwd").map(str::to_owned),
        env: given.values("env").map(str::to_owned).collect(),
        terminal: given.has("tty"),
        user: given.value("user").map(str::to_owned),
        additional_gids: given.values("additional-gids").map(number).collect::<Result<_>>()?,
        capabilities: given.values("cap").map(str::to_owned).collect(),
        no_new_privileges: given.has("no-new-privs"),
        apparmor: given.value("apparmor").map(str::to_owned),
        label: given.value("process-label").map(str::to_owned),
    })))
}

const FLAGS: [Flag; 19] = [
    Flag::value(&["console-socket"]),
    Flag::value(&["pidfd-socket"]),
    Flag::value(&["cwd"]),
    Flag::value(&["env", "e"]),
    Flag::switch(&["tty", "t"]),
    Flag::value(&["user", "u"]),
    Flag::value(&["additional-gids", "g"]),
    Flag::value(&["process", "p"]),
    Flag::switch(&["detach", "d"]),
    Flag::value(&["pid-file"]),
    Flag::value(&["process-label"]),
    Flag::value(&["apparmor"]),
    Flag::switch(&["no-new-privs"]),
    Flag::value(&["cap", "c"]),
    Flag::value(&["preserve-fds"]),
    Flag::value(&["cgroup"]),
    Flag::switch(&["ignore-paused"]),
    Flag::switch(&["no-subreaper"]),
    Flag::switch(&["no-new-keyring"]),
];
