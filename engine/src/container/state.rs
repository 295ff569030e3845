//! The life of a container: one enum, and one function that moves it.

use serde::{Deserialize, Serialize};
use strata_imagestore::Timestamp;

use crate::process::Process;
use crate::timestamp;

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum State {
    /// It has its files and had no process yet.
    Created {
        /// Why the last attempt to start it came to nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<StartFailure>,
    },
    /// `owner` is putting its root and its sandbox together.
    Starting {
        /// The monitor that starts it; when that is gone, nothing was started.
        owner: Process,
        /// How it ended the last time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<End>,
    },
    /// Its first process runs.
    Running {
        /// The monitor that waits for it and keeps its record.
        owner: Process,
        /// The first process, as the host sees it.
        init: Process,
        /// When that process was started.
        #[serde(with = "timestamp::text")]
        started: Timestamp,
    },
    /// Its processes are stopped where they are.
    Paused {
        /// The monitor.
        owner: Process,
        /// The first process.
        init: Process,
        /// When that process was started.
        #[serde(with = "timestamp::text")]
        started: Timestamp,
    },
    /// Its first process has ended, and its monitor will start it again, or is about to.
    Restarting {
        /// The monitor.
        owner: Process,
        /// How it ended.
        #[serde(flatten)]
        end: End,
    },
    /// Its first process has ended.
    Exited {
        /// How.
        #[serde(flatten)]
        end: End,
    },
    /// It is no container any more and its files are being deleted. Told by the name of its folder, never written.
    Removing,
    /// It is no container any more, but its files cannot be deleted. Told by the name of its folder, never written.
    Dead,
}

/// How a container's first process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The exit code: 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// When it was started.
    #[serde(with = "timestamp::text")]
    pub started: Timestamp,
    /// When it ended, or was found to have ended.
    #[serde(with = "timestamp::text")]
    pub finished: Timestamp,
    /// Whether the kernel killed a process of it for its memory limit.
    #[serde(default, skip_serializing_if = "is_false")]
    pub out_of_memory: bool,
    /// Whether the user asked for the end, and it shall not be started again by itself.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_user: bool,
    /// What strata itself did wrong, if that was the reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A start that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// The exit code that `run` ended with.
    pub code: i32,
    /// Why.
    pub error: String,
}

/// What is known of a process that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// The moment.
    pub at: Timestamp,
    /// See [`End::out_of_memory`].
    pub out_of_memory: bool,
    /// See [`End::by_user`].
    pub by_user: bool,
    /// See [`End::error`].
    pub error: String,
}

/// What happens to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A monitor begins to start it.
    Start {
        /// That monitor.
        owner: Process,
    },
    /// Its first process runs.
    Started {
        /// The first process.
        init: Process,
        /// The moment.
        at: Timestamp,
    },
    /// The start was given up: refused, failed, or its monitor is gone.
    StartFailed(StartFailure),
    /// Its processes were stopped where they are.
    Pause,
    /// They were let go on.
    Resume,
    /// The first process ended, for good.
    Ended(Ended),
    /// The first process ended, and the monitor will start it again.
    EndedToRestart(Ended),
    /// The monitor begins to start it again.
    Restart,
    /// It will not be started again: the user asked so, or the monitor is gone.
    GiveUp,
    /// Its files are about to be deleted.
    Remove,
    /// They could not be deleted.
    RemoveFailed,
}

/// An event that a state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a container that is {} cannot {}", .state.status(), .event.verb())]
pub struct Refused {
    /// The state, unchanged.
    pub state: State,
    /// What was asked of it.
    pub event: Event,
}

impl State {
    /// The state of a new container.
    pub fn created() -> State {
        State::Created { failure: None }
    }

    /// Moves on `event`, or reports why this state refuses it.
    pub fn apply(&self, event: Event) -> Result<State, Box<Refused>> {
        Ok(match (self, event) {
            (State::Created { .. }, Event::Start { owner }) => State::Starting { owner, before: None },
            (State::Exited { end }, Event::Start { owner }) => State::Starting { owner, before: Some(end.clone()) },
            (State::Starting { owner, .. } | State::Restarting { owner, .. }, Event::Started { init, at }) => {
                State::Running { owner: owner.clone(), init, started: at }
            }
            (State::Starting { before: None, .. }, Event::StartFailed(failure)) => {
                State::Created { failure: Some(failure) }
            }
            (
                State::Starting { before: Some(end), .. } | State::Restarting { end, .. },
                Event::StartFailed(failure),
            ) => State::Exited { end: End { code: failure.code, error: failure.error, ..end.clone() } },
            (State::Running { owner, init, started }, Event::Pause) => {
                State::Paused { owner: owner.clone(), init: init.clone(), started: *started }
            }
            (State::Paused { owner, init, started }, Event::Resume) => {
                State::Running { owner: owner.clone(), init: init.clone(), started: *started }
            }
            (State::Running { started, .. } | State::Paused { started, .. }, Event::Ended(ended)) => {
                State::Exited { end: End::new(*started, ended) }
            }
            (
                State::Running { owner, started, .. } | State::Paused { owner, started, .. },
                Event::EndedToRestart(ended),
            ) => State::Restarting { owner: owner.clone(), end: End::new(*started, ended) },
            (State::Restarting { .. }, Event::Restart) => self.clone(),
            (State::Restarting { end, .. }, Event::GiveUp) => State::Exited { end: end.clone() },
            (State::Created { .. } | State::Exited { .. } | State::Dead, Event::Remove) => State::Removing,
            (State::Removing, Event::RemoveFailed) => State::Dead,
            (state, event) => return Err(Box::new(Refused { state: state.clone(), event })),
        })
    }

    /// Docker's word for the state.
    pub fn status(&self) -> &'static str {
        match self {
            State::Created { .. } | State::Starting { before: None, .. } => "created",
            State::Starting { before: Some(_), .. } | State::Exited { .. } => "exited",
            State::Running { .. } => "running",
            State::Paused { .. } => "paused",
            State::Restarting { .. } => "restarting",
            State::Removing => "removing",
            State::Dead => "dead",
        }
    }

    /// Whether there is a command that is responsible for it, and that is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.owner().is_some_and(|owner| !owner.is_alive())
    }

    /// The monitor that is responsible for the container at the moment, if one is.
    pub fn owner(&self) -> Option<&Process> {
        match self {
            State::Starting { owner, .. }
            | State::Running { owner, .. }
            | State::Paused { owner, .. }
            | State::Restarting { owner, .. } => Some(owner),
            State::Created { .. } | State::Exited { .. } | State::Removing | State::Dead => None,
        }
    }

    /// The first process, while there is one.
    pub fn init(&self) -> Option<&Process> {
        match self {
            State::Running { init, .. } | State::Paused { init, .. } => Some(init),
            _ => None,
        }
    }

    /// How the last process ended, as far as there was one.
    pub fn end(&self) -> Option<&End> {
        match self {
            State::Exited { end } | State::Restarting { end, .. } | State::Starting { before: Some(end), .. } => {
                Some(end)
            }
            _ => None,
        }
    }

    /// The exit code that Docker shows; zero before there is one.
    pub fn exit_code(&self) -> i32 {
        match self {
            State::Created { failure: Some(failure) } => failure.code,
            _ => self.end().map_or(0, |end| end.code),
        }
    }

    /// Whether there is a first process, be it paused.
    pub fn is_running(&self) -> bool {
        self.init().is_some()
    }

    /// Whether Docker says that it runs: also while it waits to be started again.
    pub fn is_active(&self) -> bool {
        self.is_running() || matches!(self, State::Restarting { .. })
    }
}

impl End {
    fn new(started: Timestamp, ended: Ended) -> End {
        let Ended { code, at, out_of_memory, by_user, error } = ended;
        End { code, started, finished: at, out_of_memory, by_user, error }
    }
}

impl Event {
    fn verb(&self) -> &'static str {
        match self {
            Event::Start { .. } => "be started",
            Event::Started { .. } => "begin to run",
            Event::StartFailed(_) => "fail to start",
            Event::Pause => "be paused",
            Event::Resume => "be resumed",
            Event::Ended(_) | Event::EndedToRestart(_) => "end",
            Event::Restart => "be started again",
            Event::GiveUp => "be given up",
            Event::Remove => "be removed",
            Event::RemoveFailed => "fail to be removed",
        }
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32) -> Process {
        Process { pid, start: 7, boot: "b".to_owned() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanoseconds: 0 }
    }

    fn end(code: i32) -> End {
        let (started, finished) = (at(10), at(20));
        End { code, started, finished, out_of_memory: true, by_user: false, error: String::new() }
    }

    fn ended(code: i32) -> Ended {
        Ended { code, at: at(20), out_of_memory: true, by_user: false, error: String::new() }
    }

    fn failure() -> StartFailure {
        StartFailure { code: 127, error: "not found".to_owned() }
    }

    fn states() -> [State; 10] {
        let owner = || process(1);
        let init = || process(2);
        [
            State::created(),
            State::Created { failure: Some(failure()) },
            State::Starting { owner: owner(), before: None },
            State::Starting { owner: owner(), before: Some(end(3)) },
            State::Running { owner: owner(), init: init(), started: at(10) },
            State::Paused { owner: owner(), init: init(), started: at(10) },
            State::Restarting { owner: owner(), end: end(3) },
            State::Exited { end: end(3) },
            State::Removing,
            State::Dead,
        ]
    }

    #[test]
    fn every_state_against_every_event() {
        let [created, failed, starting, again, running, paused, restarting, exited, removing, dead] = &states();
        let exited_badly = State::Exited { end: End { code: 127, error: "not found".to_owned(), ..end(3) } };
        let events = [
            Event::Start { owner: process(1) },
            Event::Started { init: process(2), at: at(10) },
            Event::StartFailed(failure()),
            Event::Pause,
            Event::Resume,
            Event::Ended(ended(3)),
            Event::EndedToRestart(ended(3)),
            Event::Restart,
            Event::GiveUp,
            Event::Remove,
            Event::RemoveFailed,
        ];
        #[rustfmt::skip]
        let table: [(&State, [Option<&State>; 11]); 10] = {
            let none = None;
            [
                //            Start            Started        StartFailed          Pause         Resume         Ended         ToRestart         Restart      GiveUp        Remove          RemoveFailed
                (created,    [Some(starting), none,          none,                none,         none,          none,         none,             none,        none,         Some(removing), none]),
                (failed,     [Some(starting), none,          none,                none,         none,          none,         none,             none,        none,         Some(removing), none]),
                (starting,   [none,           Some(running), Some(failed),        none,         none,          none,         none,             none,        none,         none,           none]),
                (again,      [none,           Some(running), Some(&exited_badly), none,         none,          none,         none,             none,        none,         none,           none]),
                (running,    [none,           none,          none,                Some(paused), none,          Some(exited), Some(restarting), none,        none,         none,           none]),
                (paused,     [none,           none,          none,                none,         Some(running), Some(exited), Some(restarting), none,        none,         none,           none]),
                (restarting, [none,           Some(running), Some(&exited_badly), none,         none,          none,         none,             Some(restarting), Some(exited), none,      none]),
                (exited,     [Some(again),    none,          none,                none,         none,          none,         none,             none,        none,         Some(removing), none]),
                (removing,   [none,           none,          none,                none,         none,          none,         none,             none,        none,         none,           Some(dead)]),
                (dead,       [none,           none,          none,                none,         none,          none,         none,             none,        none,         Some(removing), none]),
            ]
        };
        for (state, row) in table {
            for (event, expected) in events.iter().zip(row) {
                let moved = state.apply(event.clone());
                match expected {
                    Some(expected) => assert_eq!(moved.as_ref(), Ok(expected), "{state:?} on {event:?}"),
                    None => {
                        let refused = Refused { state: state.clone(), event: event.clone() };
                        assert_eq!(moved, Err(Box::new(refused)), "{state:?} on {event:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn states_survive_being_written_and_read() {
        for state in states() {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state, "{text}");
        }
        assert_eq!(serde_json::to_string(&State::created()).unwrap(), r#"{"status":"created"}"#);
        let old = r#"{"status":"exited","code":3,"started":"1970-01-01T00:00:10Z","finished":"1970-01-01T00:00:20Z"}"#;
        let expected = State::Exited { end: End { out_of_memory: false, ..end(3) } };
        assert_eq!(serde_json::from_str::<State>(old).unwrap(), expected);
    }

    #[test]
    fn words_and_codes_are_docker_s() {
        let words: Vec<_> = states().iter().map(|state| (state.status(), state.exit_code())).collect();
        let expected = [
            ("created", 0),
            ("created", 127),
            ("created", 0),
            ("exited", 3),
            ("running", 0),
            ("paused", 0),
            ("restarting", 3),
            ("exited", 3),
            ("removing", 0),
            ("dead", 0),
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let refused = State::created().apply(Event::Pause).unwrap_err();
        assert_eq!(refused.to_string(), "a container that is created cannot be paused");
    }
}
