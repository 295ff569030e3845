//! What commands ask of a monitor.

use std::time::{Duration, Instant};

use super::connection::Role;
use super::execution;
use super::protocol::{Refusal, Reply, Request, Update};
use super::server::{MonitorError, Server, lock};
use crate::container::{Event, State};
use crate::durable::Durability;
use crate::spec;

/// Does what connection `number` asks for, and answers, now or when it has come about.
pub(super) fn answer(server: &mut Server, number: usize, request: Request) -> Result<(), MonitorError> {
    if server.main.is_none() {
        return answer_between(server, number, request);
    }
    let reply = match request {
        Request::Attach(attach) => {
            let key = server.main.as_ref().map_or(0, |main| main.member.key);
            let connection = &mut server.connections[number];
            connection.role = Role::Attached(key, attach);
            Some(Ok(Vec::new()))
        }
        Request::Exec(execution) => Some(execution::start(server, number, &execution)),
        Request::Signal(signal) => Some(send_signal(server, signal).map(|()| Vec::new())),
        // Whoever asks last is obeyed.
        Request::Stop { signal, timeout } => {
            let refused = stop(server, number, signal, timeout)?;
            server.restarts_at_once &= refused.is_some();
            refused
        }
        Request::Restart { signal, timeout } => {
            let refused = stop(server, number, signal, timeout)?;
            server.restarts_at_once |= refused.is_none();
            refused
        }
        Request::Kill => {
            server.by_user = true;
            server.restarts_at_once = false;
            server.kill_main();
            server.connections[number].role = Role::AwaitsEnd;
            None
        }
        Request::Pause => Some(pause(server)?.map(|()| Vec::new())),
        Request::Resume => Some(resume(server)?.map(|()| Vec::new())),
        Request::Update(update) => Some(change(server, &update)?),
    };
    let connection = &mut server.connections[number];
    match reply {
        None => {}
        Some(Err(refusal)) => connection.conclude(&Reply::Refused(refusal)),
        Some(Ok(warnings)) => {
            connection.reply(&Reply::Warned(warnings));
            if connection.role == Role::New {
                connection.role = Role::Done;
            }
        }
    }
    Ok(())
}

/// Between two runs of a container that is started again and again.
fn answer_between(server: &mut Server, number: usize, request: Request) -> Result<(), MonitorError> {
    let reply = match request {
        Request::Stop { .. } | Request::Kill if server.restart.is_some() => {
            server.give_up_restart()?;
            Reply::Done
        }
        Request::Restart { .. } if server.restart.is_some() => {
            server.restart_now();
            server.connections[number].role = Role::AwaitsEnd;
            return Ok(());
        }
        _ => Reply::Refused(refusal(format!("Container {} is not running", server.id))),
    };
    server.connections[number].conclude(&reply);
    Ok(())
}

pub(super) fn refusal(text: String) -> Refusal {
    Refusal { text, code: 1, hint: None }
}

fn send_signal(server: &mut Server, signal: i32) -> Result<(), Refusal> {
    let Some(main) = &server.main else { return Ok(()) };
    let config = &main.container.config;
    main.member.running().signal(signal).map_err(|error| Refusal::of(&error))?;
    if signal == 9 || crate::signal::parse(&config.stop_signal) == Some(signal) {
        server.by_user = true;
    }
    if signal == 9 {
        server.kill_main();
    }
    Ok(())
}

type Answer = Option<Result<Vec<String>, Refusal>>;

fn stop(server: &mut Server, number: usize, signal: Option<i32>, timeout: i64) -> Result<Answer, MonitorError> {
    let Some(main) = &server.main else { return Ok(None) };
    let signal = signal.or_else(|| crate::signal::parse(&main.container.config.stop_signal)).unwrap_or(15);
    if let Err(error) = main.member.running().signal(signal) {
        return Ok(Some(Err(Refusal::of(&error))));
    }
    server.by_user = true;
    // Stopped processes would never see the signal.
    if matches!(main.container.state, State::Paused { .. })
        && let Err(refusal) = resume(server)?
    {
        return Ok(Some(Err(refusal)));
    }
    server.kill_at = u64::try_from(timeout).ok().and_then(|seconds| {
        let at = Instant::now().checked_add(Duration::from_secs(seconds))?;
        // Of two who ask, the less patient one is obeyed.
        Some(server.kill_at.map_or(at, |other| other.min(at)))
    });
    server.connections[number].role = Role::AwaitsEnd;
    Ok(None)
}

fn pause(server: &mut Server) -> Result<Result<(), Refusal>, MonitorError> {
    let Some(main) = &mut server.main else { return Ok(Ok(())) };
    let id = &main.container.config.id;
    if matches!(main.container.state, State::Paused { .. }) {
        return Ok(Err(refusal(format!("Container {id} is already paused"))));
    }
    let Some(cgroup) = main.member.running().cgroup().filter(|cgroup| cgroup.can_freeze()) else {
        return Ok(Err(refusal(format!("cannot pause container {id}: it has no cgroup that can be frozen"))));
    };
    if let Err(error) = cgroup.freeze() {
        // Half frozen is not paused.
        let _ = cgroup.thaw();
        return Ok(Err(Refusal::of(&error)));
    }
    let mut locked = lock(&main.container)?;
    locked.apply(Event::Pause, Durability::Relaxed)?;
    main.container = locked.unlock();
    Ok(Ok(()))
}

fn resume(server: &mut Server) -> Result<Result<(), Refusal>, MonitorError> {
    let Some(main) = &mut server.main else { return Ok(Ok(())) };
    let id = &main.container.config.id;
    if !matches!(main.container.state, State::Paused { .. }) {
        return Ok(Err(refusal(format!("Container {id} is not paused"))));
    }
    if let Some(cgroup) = main.member.running().cgroup()
        && let Err(error) = cgroup.thaw()
    {
        return Ok(Err(Refusal::of(&error)));
    }
    let mut locked = lock(&main.container)?;
    locked.apply(Event::Resume, Durability::Relaxed)?;
    main.container = locked.unlock();
    Ok(Ok(()))
}

/// Changes limits of the running container, then its record.
fn change(server: &mut Server, update: &Update) -> Result<Result<Vec<String>, Refusal>, MonitorError> {
    let Some(main) = &mut server.main else { return Ok(Ok(Vec::new())) };
    let limits = match update.limits_over(&main.container.config.limits) {
        Ok(limits) => limits,
        Err(error) => return Ok(Err(Refusal::of(&error))),
    };
    let resources = match spec::resources(&limits) {
        Ok(resources) => resources,
        Err(error) => return Ok(Err(Refusal::of(&error))),
    };
    let mut warnings = Vec::new();
    if update.limits != Default::default() {
        let Some(cgroup) = main.member.running().cgroup().filter(|cgroup| !cgroup.is_empty()) else {
            let id = &main.container.config.id;
            return Ok(Err(refusal(format!("cannot update container {id}: it has no cgroup of its own"))));
        };
        let unit = cgroup.check(&resources).and_then(|()| server.containers.unit(&main.container.config));
        let told = unit.and_then(|unit| unit.map_or(Ok(()), |unit| unit.update(&resources)));
        match told.and_then(|()| cgroup.update(&resources)) {
            Ok(more) => warnings = more,
            Err(error) => return Ok(Err(Refusal::of(&error))),
        }
    }
    let mut locked = lock(&main.container)?;
    if let Err(error) = locked.change(&server.containers, |config| update.apply(config)) {
        return Ok(Err(Refusal::of(&error)));
    }
    main.container = locked.unlock();
    Ok(Ok(warnings))
}
