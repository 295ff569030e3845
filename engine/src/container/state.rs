//! The life of a container: one enum, and one function that moves it.

use serde::{Deserialize, Serialize};
use strata_imagestore::Timestamp;

use crate::process::Process;
use crate::timestamp;

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum State {
    /// It has its files and no process yet.
    Created,
    /// `owner` is putting its root and its sandbox together.
    Starting {
        /// The command that starts it; when that is gone, nothing was started.
        owner: Process,
    },
    /// Its first process runs.
    Running {
        /// The command that waits for it and keeps its record.
        owner: Process,
        /// The first process, as the host sees it.
        init: Process,
        /// When that process was started.
        #[serde(with = "timestamp::text")]
        started: Timestamp,
    },
    /// Its first process has ended.
    Exited {
        /// The exit code: 128 and the signal's number when a signal ended it.
        code: i32,
        /// When it was started.
        #[serde(with = "timestamp::text")]
        started: Timestamp,
        /// When it ended, or was found to have ended.
        #[serde(with = "timestamp::text")]
        finished: Timestamp,
    },
}

/// What happens to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A command begins to start it.
    Start {
        /// That command.
        owner: Process,
    },
    /// Its first process runs.
    Started {
        /// The first process.
        init: Process,
        /// The moment.
        at: Timestamp,
    },
    /// The start was given up: refused, failed, or its command is gone.
    StartFailed,
    /// The first process ended.
    Ended {
        /// Its exit code.
        code: i32,
        /// The moment.
        at: Timestamp,
    },
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
    /// Moves on `event`, or reports why this state refuses it.
    pub fn apply(&self, event: Event) -> Result<State, Box<Refused>> {
        Ok(match (self, event) {
            (State::Created | State::Exited { .. }, Event::Start { owner }) => State::Starting { owner },
            (State::Starting { owner }, Event::Started { init, at }) => {
                State::Running { owner: owner.clone(), init, started: at }
            }
            (State::Starting { .. }, Event::StartFailed) => State::Created,
            (State::Running { started, .. }, Event::Ended { code, at }) => {
                State::Exited { code, started: *started, finished: at }
            }
            (state, event) => return Err(Box::new(Refused { state: state.clone(), event })),
        })
    }

    /// Docker's word for the state.
    pub fn status(&self) -> &'static str {
        match self {
            State::Created | State::Starting { .. } => "created",
            State::Running { .. } => "running",
            State::Exited { .. } => "exited",
        }
    }

    /// The command that is responsible for the container at the moment, if one is.
    pub fn owner(&self) -> Option<&Process> {
        match self {
            State::Starting { owner } | State::Running { owner, .. } => Some(owner),
            State::Created | State::Exited { .. } => None,
        }
    }

    /// The exit code that Docker shows; zero before there is one.
    pub fn exit_code(&self) -> i32 {
        match self {
            State::Exited { code, .. } => *code,
            _ => 0,
        }
    }

    /// Whether the first process runs.
    pub fn is_running(&self) -> bool {
        matches!(self, State::Running { .. })
    }
}

impl Event {
    fn verb(&self) -> &'static str {
        match self {
            Event::Start { .. } => "be started",
            Event::Started { .. } => "begin to run",
            Event::StartFailed => "fail to start",
            Event::Ended { .. } => "end",
        }
    }
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

    #[test]
    fn every_state_against_every_event() {
        let created = State::Created;
        let starting = State::Starting { owner: process(1) };
        let running = State::Running { owner: process(1), init: process(2), started: at(10) };
        let exited = State::Exited { code: 3, started: at(10), finished: at(20) };
        let start = Event::Start { owner: process(1) };
        let started = Event::Started { init: process(2), at: at(10) };
        let failed = Event::StartFailed;
        let ended = Event::Ended { code: 3, at: at(20) };

        let table: [(&State, &Event, Option<&State>); 16] = [
            (&created, &start, Some(&starting)),
            (&created, &started, None),
            (&created, &failed, None),
            (&created, &ended, None),
            (&starting, &start, None),
            (&starting, &started, Some(&running)),
            (&starting, &failed, Some(&created)),
            (&starting, &ended, None),
            (&running, &start, None),
            (&running, &started, None),
            (&running, &failed, None),
            (&running, &ended, Some(&exited)),
            (&exited, &start, Some(&starting)),
            (&exited, &started, None),
            (&exited, &failed, None),
            (&exited, &ended, None),
        ];
        for (state, event, expected) in table {
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

    #[test]
    fn states_survive_being_written_and_read() {
        for state in [
            State::Created,
            State::Starting { owner: process(1) },
            State::Running { owner: process(1), init: process(2), started: at(10) },
            State::Exited { code: 137, started: at(10), finished: at(20) },
        ] {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state, "{text}");
        }
        assert_eq!(serde_json::to_string(&State::Created).unwrap(), r#"{"status":"created"}"#);
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let refused = State::Created.apply(Event::StartFailed).unwrap_err();
        assert_eq!(refused.to_string(), "a container that is created cannot fail to start");
    }
}
