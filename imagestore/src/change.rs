//! `--change`: the Dockerfile instructions that edit a configuration without running anything.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::model::{ContainerConfig, parse_json};

/// An edit of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `CMD`: the default arguments.
    Cmd(Vec<String>),
    /// `ENTRYPOINT`: the program.
    Entrypoint(Vec<String>),
    /// `ENV`: variables to set.
    Env(Vec<(String, String)>),
    /// `EXPOSE`: ports, such as `80/tcp`.
    Expose(Vec<String>),
    /// `LABEL`: labels to set.
    Label(Vec<(String, String)>),
    /// `STOPSIGNAL`: the signal that asks the program to stop.
    StopSignal(String),
    /// `USER`: the user to run as.
    User(String),
    /// `VOLUME`: folders that become volumes.
    Volume(Vec<String>),
    /// `WORKDIR`: the folder to start in.
    WorkDir(String),
    /// `ONBUILD`: an instruction for images built on this one.
    OnBuild(String),
}

impl Change {
    /// Applies the edit.
    pub fn apply(&self, config: &mut ContainerConfig) {
        match self {
            // As in a Dockerfile: a new entrypoint makes inherited arguments meaningless.
            Change::Entrypoint(words) => {
                config.entrypoint = Some(words.clone());
                config.cmd = None;
            }
            Change::Cmd(words) => config.cmd = Some(words.clone()),
            Change::Env(variables) => {
                let env = config.env.get_or_insert_default();
                for (name, value) in variables {
                    let start = format!("{name}=");
                    let text = format!("{start}{value}");
                    match env.iter_mut().find(|old| old.starts_with(&start)) {
                        Some(old) => *old = text,
                        None => env.push(text),
                    }
                }
            }
            Change::Expose(ports) => add_keys(&mut config.exposed_ports, ports),
            Change::Volume(paths) => add_keys(&mut config.volumes, paths),
            Change::Label(labels) => config.labels.get_or_insert_default().extend(labels.iter().cloned()),
            Change::StopSignal(signal) => config.stop_signal = Some(signal.clone()),
            Change::User(user) => config.user.clone_from(user),
            Change::WorkDir(path) if path.starts_with('/') => config.working_dir = clean_path(path),
            Change::WorkDir(path) => config.working_dir = clean_path(&format!("{}/{path}", config.working_dir)),
            Change::OnBuild(instruction) => match config.other.get_mut("OnBuild") {
                Some(Value::Array(list)) => list.push(json!(instruction)),
                _ => {
                    config.other.insert("OnBuild".to_owned(), json!([instruction]));
                }
            },
        }
    }
}

/// Applies edits in Docker's order of meaning: `CMD` and `ENTRYPOINT` given together both count, whichever comes first.
pub(crate) fn apply_all(changes: &[Change], config: &mut ContainerConfig) {
    let (entrypoints, others): (Vec<_>, Vec<_>) =
        changes.iter().partition(|change| matches!(change, Change::Entrypoint(_)));
    for change in entrypoints.into_iter().chain(others) {
        change.apply(config);
    }
}

impl FromStr for Change {
    type Err = InvalidChange;

    fn from_str(text: &str) -> Result<Self, InvalidChange> {
        let text = text.trim();
        let (instruction, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim_start();
        let invalid = |reason| InvalidChange::Arguments { text: text.to_owned(), reason };
        let one = || if rest.is_empty() { Err(invalid("one argument is needed")) } else { Ok(rest.to_owned()) };
        let words = || {
            let words = split_words(rest).ok_or_else(|| invalid("a quote is not closed"))?;
            if words.is_empty() { Err(invalid("an argument is needed")) } else { Ok(words) }
        };
        Ok(match instruction.to_ascii_uppercase().as_str() {
            "CMD" => Change::Cmd(command(rest)),
            "ENTRYPOINT" => Change::Entrypoint(command(rest)),
            "ENV" => Change::Env(pairs(rest, &words()?).ok_or_else(|| invalid("NAME=value is needed"))?),
            "LABEL" => Change::Label(pairs(rest, &words()?).ok_or_else(|| invalid("key=value is needed"))?),
            "EXPOSE" => {
                let ports = words()?.iter().map(|word| ports(word)).collect::<Option<Vec<_>>>();
                Change::Expose(ports.ok_or_else(|| invalid("port[-port][/protocol] is needed"))?.concat())
            }
            "VOLUME" => match json_list(rest) {
                Some(list) if !list.is_empty() => Change::Volume(list),
                _ => Change::Volume(words()?),
            },
            "USER" => Change::User(one()?),
            "WORKDIR" => Change::WorkDir(one()?),
            "STOPSIGNAL" => Change::StopSignal(one()?),
            "ONBUILD" => Change::OnBuild(one()?),
            other => return Err(InvalidChange::Instruction { instruction: other.to_lowercase() }),
        })
    }
}

/// Why a text is no edit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChange {
    /// The instruction cannot be used here. The wording is Docker's.
    #[error("{instruction} is not a valid change command")]
    Instruction {
        /// The instruction.
        instruction: String,
    },
    /// The arguments are not right.
    #[error("{text:?}: {reason}")]
    Arguments {
        /// The whole text.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A command is a JSON list, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    match json_list(text) {
        Some(list) => list,
        None if text.is_empty() => Vec::new(),
        None => ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
    }
}

fn json_list(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') { parse_json(text.as_bytes(), MAX_TEXT).ok() } else { None }
}

/// `A=1 B="2 3"`, or the old form `A the rest`.
fn pairs(text: &str, words: &[String]) -> Option<Vec<(String, String)>> {
    if !words[0].contains('=') {
        let (name, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim_start().to_owned())]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// Splits at blanks; quotes and backslashes keep them.
fn split_words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(letters.next()),
            (None, letter) if letter.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// `80`, `80/udp`, `8000-8010/tcp`.
fn ports(text: &str) -> Option<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let known = matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
    (known && first <= last).then(|| (first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn add_keys(set: &mut Option<BTreeMap<String, Value>>, keys: &[String]) {
    set.get_or_insert_default().extend(keys.iter().map(|key| (key.clone(), json!({}))));
}

/// Returns a path of a container as an absolute one, without empty, `.` and `..` components.
#[must_use]
pub fn clean_path(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

const MAX_TEXT: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> Value {
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        let mut config = ContainerConfig {
            env: Some(vec!["PATH=/bin".to_owned()]),
            cmd: Some(vec!["old".to_owned()]),
            working_dir: "/srv".to_owned(),
            ..Default::default()
        };
        apply_all(&changes, &mut config);
        serde_json::to_value(&config).unwrap()
    }

    #[test]
    fn changes_edit_the_configuration() {
        let config = applied(&[
            r#"CMD ["a", "b c"]"#,
            "entrypoint exec $X",
            r#"ENV A=1 B="two words" C=it\ is"#,
            "ENV PATH /usr/bin:/bin",
            "EXPOSE 80 53/UDP 8000-8001",
            "LABEL maintainer='some one' v=1",
            "USER 10:20",
            "VOLUME /data /more",
            r#"VOLUME ["/json"]"#,
            "WORKDIR sub/../x",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN x",
        ]);
        let expected = json!({
            "Cmd": ["a", "b c"],
            "Entrypoint": ["/bin/sh", "-c", "exec $X"],
            "Env": ["PATH=/usr/bin:/bin", "A=1", "B=two words", "C=it is"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}},
            "Labels": {"maintainer": "some one", "v": "1"},
            "User": "10:20",
            "Volumes": {"/data": {}, "/more": {}, "/json": {}},
            "WorkingDir": "/srv/x",
            "StopSignal": "SIGINT",
            "OnBuild": ["RUN x"],
        });
        assert_eq!(config, expected);
    }

    #[test]
    fn an_entrypoint_alone_drops_the_inherited_command() {
        assert_eq!(applied(&["ENTRYPOINT [\"x\"]"]).get("Cmd"), None);
        assert_eq!(applied(&["CMD []"])["Cmd"], json!([]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, message) in [
            ("RUN ls", "run is not a valid change command"),
            ("", " is not a valid change command"),
            ("ENV", "\"ENV\": an argument is needed"),
            ("ENV A", "\"ENV A\": NAME=value is needed"),
            ("ENV =1", "\"ENV =1\": NAME=value is needed"),
            ("LABEL a='b", "\"LABEL a='b\": a quote is not closed"),
            ("EXPOSE x", "\"EXPOSE x\": port[-port][/protocol] is needed"),
            ("EXPOSE 90-80", "\"EXPOSE 90-80\": port[-port][/protocol] is needed"),
            ("USER", "\"USER\": one argument is needed"),
        ] {
            assert_eq!(text.parse::<Change>().unwrap_err().to_string(), message);
        }
    }
}
