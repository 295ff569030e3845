//! `create` and `run`.

use std::path::Path;

use anyhow::{Result, bail};
use strata_engine::oci::{Container, ContainerId, Create, Delete, Inherited, Receiver, RuntimeError};

use super::Context;
use super::console::{Kept, Socket};
use super::flags::{Flag, Given, Positionals};
use super::foreground::{Signals, stay};

/// Makes a container.
pub(super) fn create(context: &Context<'_>, words: Vec<String>) -> Result<u8> {
    let given = Given::parse(&FLAGS, words, Positionals::Anywhere)?;
    let id: ContainerId = given.exactly_one("container ID")?.parse()?;
    make(context, &given, &id, None)?;
    Ok(0)
}

/// Makes a container, starts it, and stays with it unless told otherwise.
pub(super) fn run(context: &Context<'_>, words: Vec<String>) -> Result<u8> {
    let given = Given::parse(&FLAGS, words, Positionals::Anywhere)?;
    let id: ContainerId = given.exactly_one("container ID")?.parse()?;
    let detached = given.has("detach");
    if given.has("console-socket") && !detached {
        bail!("cannot use console socket if runc will not detach or allocate tty");
    }
    let signals = if detached { None } else { Some(Signals::collect()?) };
    let mut console = Kept::default();
    let keeps = if detached { None } else { Some(&mut console) };
    let container = make(context, &given, &id, keeps)?;
    // Killed by somebody meanwhile, it has ended before it was started.
    let started = container.process().and_then(|process| Ok((process, container.start()?)));
    let (process, container) = match started {
        Ok(started) => started,
        Err(error) => {
            remove(context, context.runtime.container(&id))?;
            return Err(error.into());
        }
    };
    let Some(signals) = signals else { return Ok(0) };
    let code = stay(&process, console.0, &signals);
    if !given.has("keep") {
        remove(context, Ok(container))?;
    }
    Ok(u8::try_from(code?).unwrap_or(u8::MAX))
}

fn make(context: &Context<'_>, given: &Given, id: &ContainerId, kept: Option<&mut Kept>) -> Result<Container> {
    let mut console_socket = given.value("console-socket").map(|path| Socket::new(path, "/dev/ptmx"));
    let mut pidfd_socket = given.value("pidfd-socket").map(|path| Socket::new(path, "pidfd"));
    let console: Option<&mut dyn Receiver> = match &mut console_socket {
        Some(socket) => Some(socket),
        None => kept.map(|kept| kept as &mut dyn Receiver),
    };
    if given.has("no-pivot") {
        context.log.warn("--no-pivot: the root is switched by pivot_root all the same");
    }
    let (container, warnings) = context.runtime.create(
        id,
        Create {
            bundle: Path::new(given.value("bundle").unwrap_or(".")),
            inherited: inherited(context, given)?,
            console,
            pidfd: pidfd_socket.as_mut().map(|socket| socket as &mut dyn Receiver),
            pid_file: given.value("pid-file").map(Path::new),
        },
    )?;
    context.warn(warnings);
    Ok(container)
}

/// Removes a container that has ended; somebody else may have been faster.
fn remove(context: &Context<'_>, container: Result<Container, RuntimeError>) -> Result<()> {
    match container.and_then(|container| container.delete(Delete::Any)) {
        Ok(warnings) => context.warn(warnings),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Which descriptors and keys go along.
pub(super) fn inherited(context: &Context<'_>, given: &Given) -> Result<Inherited> {
    let descriptors = given.number("preserve-fds")?.unwrap_or(0);
    for number in 3..descriptors.saturating_add(3) {
        // What we have opened ourselves since is nothing that the caller could have meant.
        if !context.descriptors.contains(&number) {
            bail!("--preserve-fds={descriptors}: descriptor {number} is not open");
        }
    }
    Ok(Inherited { descriptors, keyring: given.has("no-new-keyring") })
}

const FLAGS: [Flag; 12] = [
    Flag::value(&["bundle", "b"]),
    Flag::value(&["console-socket"]),
    Flag::value(&["pidfd-socket"]),
    Flag::value(&["pid-file"]),
    Flag::value(&["preserve-fds"]),
    Flag::switch(&["no-pivot"]),
    Flag::switch(&["no-new-keyring"]),
    Flag::switch(&["no-subreaper"]),
    Flag::switch(&["detach", "d"]),
    Flag::switch(&["keep"]),
    Flag::value(&["config", "f"]),
    Flag::switch(&["no-mount-fallback"]),
];
