//! `strata ps`

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value};
use strata_engine::{Container, ContainerSize, Engine, Mount, State, Timestamp};

use super::filter::{self, Filter};
use super::{Context, Outcome};
use crate::output::{Column, Format, List, human};

/// List containers
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Show all containers, not only the running ones
    #[arg(short, long)]
    all: bool,
    /// Show the identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Show the whole of everything
    #[arg(long)]
    no_trunc: bool,
    /// Show what the containers' files take
    #[arg(short, long)]
    size: bool,
    /// Show the last NUMBER created containers
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Show the latest created container
    #[arg(short, long)]
    latest: bool,
    /// Show only what fits: status=, name=, id=, ancestor=, label=, exited=, before=, since=, volume=, network=
    #[arg(short, long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Vec<Filter>,
    /// Use 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Arc<Format>>,
}

const COLUMNS: [Column; 14] = [
    Column { field: "Command", header: "COMMAND" },
    Column { field: "CreatedAt", header: "CREATED AT" },
    Column { field: "ID", header: "CONTAINER ID" },
    Column { field: "Image", header: "IMAGE" },
    Column { field: "Labels", header: "LABELS" },
    Column { field: "LocalVolumes", header: "LOCAL VOLUMES" },
    Column { field: "Mounts", header: "MOUNTS" },
    Column { field: "Names", header: "NAMES" },
    Column { field: "Networks", header: "NETWORKS" },
    Column { field: "Ports", header: "PORTS" },
    Column { field: "RunningFor", header: "CREATED" },
    Column { field: "Size", header: "SIZE" },
    Column { field: "State", header: "STATE" },
    Column { field: "Status", header: "STATUS" },
];
const SHOWN: [&str; 7] = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
const SHOWN_WITH_SIZE: [&str; 8] = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", "Size"];

/// Lists containers.
pub(crate) fn run(context: &Context, ps: &Ps, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    filter::check(&ps.filter, &FILTERS)?;
    let bounds = bounds(&engine, &ps.filter)?;
    let limit = if ps.latest { Some(1) } else { ps.last };
    let all =
        ps.all || limit.is_some() || ps.filter.iter().any(|filter| matches!(filter.key.as_str(), "status" | "exited"));
    let containers = engine.containers()?;
    let chosen = containers
        .iter()
        .filter(|container| all || container.state.is_active())
        .filter(|container| fits(container, &ps.filter, &bounds))
        .take(limit.unwrap_or(usize::MAX));
    let now = Timestamp::now();
    if ps.quiet && ps.format.is_none() {
        for container in chosen {
            let id = &container.config.id;
            writeln!(out, "{}", if ps.no_trunc { id.as_str() } else { id.short() })?;
        }
        return Ok(0);
    }
    let format = ps.format.as_deref().unwrap_or(&Format::Table);
    let sized = ps.size || format.names("Size", &COLUMNS);
    let rows = chosen.map(|container| {
        let mut row = row(container, ps.no_trunc, now);
        let size = sized.then(|| engine.container_size(container));
        row.insert("Size".to_owned(), Value::from(size.map_or_else(|| "0B".to_owned(), size_text)));
        row
    });
    let rows = rows.collect();
    let shown: &[&str] = if ps.size { &SHOWN_WITH_SIZE } else { &SHOWN };
    List { columns: &COLUMNS, shown, rows }.write(format, out)?;
    Ok(0)
}

/// The fields of a container's line.
pub(super) fn row(container: &Container, whole: bool, now: Timestamp) -> Map<String, Value> {
    let config = &container.config;
    let command = config.command.join(" ");
    let command = if whole { command } else { human::ellipsis(&command, 20) };
    let mounts: Vec<&str> = config.mounts.iter().map(strata_engine::Mount::target).collect();
    let labels: Vec<String> = config.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let fields = [
        ("Command", quote(&command)),
        ("CreatedAt", human::moment(config.created)),
        ("ID", if whole { config.id.to_string() } else { config.id.short().to_owned() }),
        ("Image", config.image_reference.clone()),
        ("Labels", labels.join(",")),
        ("LocalVolumes", "0".to_owned()),
        ("Mounts", mounts.join(",")),
        ("Names", config.name.to_string()),
        ("Networks", config.network_name()),
        ("Ports", String::new()),
        ("RunningFor", human::age(config.created, now)),
        ("State", container.state.status().to_owned()),
        ("Status", status(&container.state, now)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

fn size_text(size: ContainerSize) -> String {
    format!("{} (virtual {})", human::size(size.writable), human::size(size.root))
}

fn status(state: &State, now: Timestamp) -> String {
    let up = |started: &Timestamp| format!("Up {}", human::duration(human::seconds_between(*started, now)));
    match state {
        State::Running { started, .. } => up(started),
        State::Paused { started, .. } => format!("{} (Paused)", up(started)),
        State::Restarting { end, .. } => format!("Restarting ({}) {}", end.code, human::age(end.finished, now)),
        State::Exited { end } | State::Starting { before: Some(end), .. } => {
            format!("Exited ({}) {}", end.code, human::age(end.finished, now))
        }
        State::Created { .. } | State::Starting { before: None, .. } => "Created".to_owned(),
        State::Removing => "Removal In Progress".to_owned(),
        State::Dead => "Dead".to_owned(),
    }
}

/// Quotes a command as Go does, so that no control character reaches the terminal.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            letter if letter.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(letter))),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// What the filters `before` and `since` name: the moments those containers were created.
#[derive(Debug, Default)]
struct Bounds {
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

/// Looks up what filters name, and refuses values that can never fit.
fn bounds(engine: &Engine, filters: &[Filter]) -> Result<Bounds> {
    let mut bounds = Bounds::default();
    for filter in filters {
        match filter.key.as_str() {
            "before" => bounds.before = Some(engine.container(&filter.value)?.config.created),
            "since" => bounds.since = Some(engine.container(&filter.value)?.config.created),
            "status" if !STATUSES.contains(&filter.value.as_str()) => {
                bail!("Unrecognised filter value for status: {}", filter.value)
            }
            "exited" if filter.value.parse::<i32>().is_err() => bail!("invalid filter 'exited={}'", filter.value),
            _ => {}
        }
    }
    Ok(bounds)
}

/// Filters with one key are alternatives, those with different keys must all fit; labels must all fit.
fn fits(container: &Container, filters: &[Filter], bounds: &Bounds) -> bool {
    let config = &container.config;
    let one = |filter: &Filter| match filter.key.as_str() {
        "status" => container.state.status() == filter.value,
        "name" => config.name.as_str().contains(filter.value.trim_start_matches('/')),
        "id" => config.id.as_str().starts_with(&filter.value),
        "ancestor" => {
            let reference = config.image_reference.as_str();
            let image = config.image.strip_prefix("sha256:").unwrap_or(&config.image);
            reference == filter.value
                || reference.rsplit_once(':').is_some_and(|(name, _)| name == filter.value)
                || (filter.value.len() >= 4
                    && image.starts_with(filter.value.strip_prefix("sha256:").unwrap_or(&filter.value)))
        }
        "exited" => match &container.state {
            State::Exited { end } => end.code.to_string() == filter.value,
            _ => false,
        },
        "before" => bounds.before.is_none_or(|before| config.created < before),
        "since" => bounds.since.is_none_or(|since| config.created > since),
        "network" => config.network_name() == filter.value,
        "volume" => config.mounts.iter().any(|mount| match mount {
            Mount::Bind(bind) => bind.target == filter.value || bind.source.as_os_str() == filter.value.as_str(),
            Mount::Tmpfs(tmpfs) => tmpfs.target == filter.value,
        }),
        _ => filter.fits_label(&config.labels),
    };
    filter::all_keys_fit(filters, one)
}

const FILTERS: [&str; 10] =
    ["status", "name", "id", "ancestor", "label", "exited", "before", "since", "volume", "network"];
const STATUSES: [&str; 7] = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];

#[cfg(test)]
mod tests {
    use strata_engine::{End, Process};

    use super::*;

    #[test]
    fn a_command_cannot_talk_to_the_terminal() {
        assert_eq!(quote("sh -c \"x\"\n\u{1b}[31m"), r#""sh -c \"x\"\n\x1b[31m""#);
    }

    #[test]
    fn statuses_read_as_docker_s() {
        let at = |seconds| Timestamp { seconds, nanoseconds: 0 };
        let end = || End {
            code: 3,
            started: at(0),
            finished: at(10),
            out_of_memory: false,
            by_user: false,
            error: String::new(),
        };
        let owner = Process { pid: 1, start: 1, boot: String::new() };
        let init = owner.clone();
        for (state, text) in [
            (State::created(), "Created"),
            (State::Exited { end: end() }, "Exited (3) 2 seconds ago"),
            (State::Running { owner: owner.clone(), init: init.clone(), started: at(9) }, "Up 3 seconds"),
            (State::Paused { owner: owner.clone(), init, started: at(9) }, "Up 3 seconds (Paused)"),
            (State::Restarting { owner, end: end() }, "Restarting (3) 2 seconds ago"),
            (State::Removing, "Removal In Progress"),
            (State::Dead, "Dead"),
        ] {
            assert_eq!(status(&state, at(12)), text);
        }
    }
}
