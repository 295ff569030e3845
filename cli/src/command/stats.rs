//! `strata stats`

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Map, Value};
use strata_engine::{Container, Engine, Statistics};

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::output::{Column, Format, List, human};

/// Show what containers use
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Show all containers, not only the running ones
    #[arg(short, long)]
    all: bool,
    /// Show the present only, and end
    #[arg(long)]
    no_stream: bool,
    /// Show the whole of everything
    #[arg(long)]
    no_trunc: bool,
    /// Use 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Arc<Format>>,
    /// The containers, by name, id or the beginning of an id; all that run if there are none
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

const COLUMNS: [Column; 9] = [
    Column { field: "BlockIO", header: "BLOCK I/O" },
    Column { field: "CPUPerc", header: "CPU %" },
    Column { field: "Container", header: "CONTAINER" },
    Column { field: "ID", header: "CONTAINER ID" },
    Column { field: "MemPerc", header: "MEM %" },
    Column { field: "MemUsage", header: "MEM USAGE / LIMIT" },
    Column { field: "Name", header: "NAME" },
    Column { field: "NetIO", header: "NET I/O" },
    Column { field: "PIDs", header: "PIDS" },
];
const SHOWN: [&str; 8] = ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"];

/// The time over which the use of the CPU is measured.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows what containers use, once or again and again.
pub(crate) fn run(context: &Context, stats: &Stats, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    let on_terminal = rustix::termios::isatty(rustix::stdio::stdout());
    let mut before = measure(&engine, stats)?;
    loop {
        let started = Instant::now();
        std::thread::sleep(INTERVAL);
        let now = measure(&engine, stats)?;
        let passed = started.elapsed();
        if !stats.no_stream && on_terminal && stats.format.is_none() {
            // From the top of an empty screen.
            write!(out, "\x1b[2J\x1b[H")?;
        }
        let rows = now.iter().map(|(container, used)| {
            let earlier = before.iter().find(|(other, _)| other.config.id == container.config.id);
            row(container, used, earlier.map_or(used.cpu, |(_, used)| used.cpu), passed, stats.no_trunc)
        });
        let rows = rows.collect();
        List { columns: &COLUMNS, shown: &SHOWN, rows }
            .write(stats.format.as_deref().unwrap_or(&Format::Table), out)?;
        out.flush()?;
        if stats.no_stream {
            return Ok(0);
        }
        before = now;
    }
}

fn measure(engine: &Engine, stats: &Stats) -> Result<Vec<(Container, Statistics)>, Failure> {
    let containers = match &stats.containers[..] {
        [] => engine.containers()?.into_iter().filter(|one| stats.all || one.state.is_active()).collect(),
        names => names.iter().map(|name| engine.container(name)).collect::<Result<Vec<_>, _>>()?,
    };
    let measured = containers.into_iter().map(|container| {
        // One that has ended meanwhile uses nothing.
        let used = engine.statistics(&container).unwrap_or_default();
        (container, used)
    });
    Ok(measured.collect())
}

fn row(container: &Container, used: &Statistics, before: u64, passed: Duration, whole: bool) -> Map<String, Value> {
    let id = &container.config.id;
    let id = if whole { id.to_string() } else { id.short().to_owned() };
    let pair = |(one, other): (u64, u64)| format!("{} / {}", human::size(one), human::size(other));
    let fields = [
        ("BlockIO", pair(used.blocks)),
        ("CPUPerc", percent(used.cpu.saturating_sub(before), u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX))),
        ("Container", id.clone()),
        ("ID", id),
        ("MemPerc", percent(used.memory, used.memory_limit)),
        ("MemUsage", format!("{} / {}", human::binary_size(used.memory), human::binary_size(used.memory_limit))),
        ("Name", container.config.name.to_string()),
        ("NetIO", pair(used.network)),
        ("PIDs", used.processes.to_string()),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

/// Two decimals, as Docker.
#[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "0.00%".to_owned() } else { format!("{:.2}%", part as f64 * 100.0 / whole as f64) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn shares_have_two_decimals() {
        assert_eq!(super::percent(1, 3), "33.33%");
        assert_eq!(super::percent(5, 0), "0.00%");
    }
}
