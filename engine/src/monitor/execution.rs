//! Processes that are added to the container.

use strata_sandbox::{Exec, Identity, Inherited, Listener, Seccomp, SpawnError};

use super::connection::Role;
use super::protocol::{Execution, Refusal};
use super::requests::refusal;
use super::server::Server;
use super::streams::Member;
use crate::container::{Config, Mount, State};
use crate::{launch, namespaces, spec};

/// Starts a process and connects the command to it.
pub(super) fn start(server: &mut Server, number: usize, execution: &Execution) -> Result<Vec<String>, Refusal> {
    let Some(main) = &server.main else { return Ok(Vec::new()) };
    if matches!(main.container.state, State::Paused { .. }) {
        let name = &main.container.config.name;
        return Err(refusal(format!("Container {name} is paused, unpause the container before exec")));
    }
    let config = configure(&main.container.config, execution);
    let spec = spec::build(&config, &[], namespaces::of_running(&config)).map_err(|error| Refusal::of(&error))?;
    let (stdio, pipes) =
        launch::streams(execution.tty, execution.size, config.own_ids.as_ref()).map_err(|error| Refusal::of(&error))?;
    let observe = launch::listen(main.audit.as_ref());
    let started = strata_sandbox::exec(Exec {
        spec: &spec,
        init: main.member.running(),
        user: Some(if config.user.is_empty() { "0" } else { &config.user }),
        groups: &config.groups,
        stdio,
        seccomp: match execution.privileged {
            true => Seccomp::Unconfined,
            false => spec::seccomp(&config).map_err(|error| Refusal::of(&error))?,
        },
        landlock: spec::landlock(&config, true).map_err(|error| Refusal::of(&error))?,
        listener: match main.audit {
            Some(_) => Listener::Caller(&observe),
            None => Listener::Agent,
        },
        identity: Identity::default(),
        inherited: Inherited::default(),
        cgroup: None,
    });
    drop(observe);
    let running = started.map_err(|error| explain(&error))?;
    let warnings = running.warnings().to_vec();
    let keeps_input = execution.open_stdin && execution.attach.is_some_and(|attach| attach.input);
    let key =
        server.add(|key| Member::new(key, running, pipes, keeps_input, true)).map_err(|error| Refusal::of(&error))?;
    if let Some(attach) = execution.attach {
        server.connections[number].role = Role::Attached(key, attach);
    }
    Ok(warnings)
}

/// The configuration of the container, with another process.
fn configure(config: &Config, execution: &Execution) -> Config {
    let mut config = config.clone();
    config.command.clone_from(&execution.command);
    config.environment.extend(execution.environment.iter().cloned());
    if let Some(user) = execution.user.as_ref().filter(|user| !user.is_empty()) {
        config.user.clone_from(user);
    }
    if let Some(directory) = execution.working_directory.as_ref().filter(|directory| !directory.is_empty()) {
        config.working_directory.clone_from(directory);
    }
    config.tty = execution.tty;
    config.privileged |= execution.privileged;
    // As it has its devices, which may be gone from the host.
    config.devices.clear();
    for mount in &mut config.mounts {
        // The container has them already, and what is gone since is nothing to be made again.
        if let Mount::Bind(bind) = mount {
            bind.create_source = false;
        }
    }
    config
}

/// The texts are those of Docker, in which clients look for reasons.
fn explain(error: &SpawnError) -> Refusal {
    const BEGIN: &str = "OCI runtime exec failed: exec failed: unable to start container process";
    let text = match error {
        // Docker's daemon finds this out before there is a process.
        SpawnError::User(user) => user.to_string(),
        SpawnError::WorkingDirectory { path, source } => {
            let reason = crate::error_chain(source).to_lowercase();
            format!("{BEGIN}: chdir to cwd ({path:?}) set in config.json failed: {reason}: unknown")
        }
        error => format!("{BEGIN}: {}", crate::error_chain(error)),
    };
    let code = match error.exit_code() {
        125 => 126,
        code => code,
    };
    Refusal { text, code, hint: None }
}
