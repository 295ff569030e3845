//! `events` and `update`.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::json;
use strata_engine::oci::{self, Event, LIMITS, RuntimeError, Statistics};

use super::flags::{Flag, Given, Positionals};
use super::{Context, print};

/// Prints what happens to a container, one JSON object to a line.
pub(super) fn events(context: &Context<'_>, words: Vec<String>) -> Result<u8> {
    let flags = [Flag::value(&["interval"]), Flag::switch(&["stats"])];
    let given = Given::parse(&flags, words, Positionals::Anywhere)?;
    let id = given.exactly_one("container ID")?;
    let interval = duration(given.value("interval").unwrap_or("5s"))?;
    if interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let container = context.container(id)?;
    if container.status() == oci::Status::Stopped {
        bail!("container with id {id} is not running");
    }
    if given.has("stats") {
        print_statistics(id, &container.statistics()?)?;
        return Ok(0);
    }
    let mut failed = None;
    let watched = container.watch(interval, &mut |event| {
        let told = match event {
            Event::OutOfMemory => print(format_args!("{}\n", json!({ "type": "oom", "id": id }))).map_err(Into::into),
            Event::Statistics(statistics) => print_statistics(id, &statistics),
        };
        failed = told.err();
        failed.is_none()
    });
    match (watched, failed) {
        (_, Some(error)) => Err(error),
        // It ended before there was anything to see.
        (Err(RuntimeError::NotRunning), None) => Ok(0),
        (result, None) => Ok(result.map(|()| 0)?),
    }
}

fn print_statistics(id: &str, statistics: &Statistics) -> Result<()> {
    let data = serde_json::to_string(statistics)?;
    let id = json!(id);
    Ok(print(format_args!("{{\"type\":\"stats\",\"id\":{id},\"data\":{data}}}\n"))?)
}

/// As Go writes it: `5s`, `250ms`, `1m30s`.
fn duration(text: &str) -> Result<Duration> {
    let invalid = || anyhow!("invalid duration {text:?}");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        total += Duration::try_from_secs_f64(number * unit).map_err(|_| invalid())?;
        rest = &rest[letters..];
    }
    Ok(total)
}

/// Changes limits of a container.
pub(super) fn update(context: &Context<'_>, words: Vec<String>) -> Result<u8> {
    let given = Given::parse(&UPDATE, words, Positionals::Anywhere)?;
    let id = given.exactly_one("container ID")?;
    for name in ["l3-cache-schema", "mem-bw-schema"] {
        if given.value(name).is_some() {
            bail!("--{name}: Intel RDT is not supported");
        }
    }
    for name in ["kernel-memory", "kernel-memory-tcp"] {
        if given.value(name).is_some() {
            context.log.warn(&format!("--{name} is ignored: kernels have no such limit any more"));
        }
    }
    let json = match given.value("resources") {
        None => None,
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("read resources from standard input")?;
            Some(bytes)
        }
        Some(path) => Some(std::fs::read(path).with_context(|| format!("read resources from {path:?}"))?),
    };
    let options: Vec<_> = LIMITS.iter().filter_map(|limit| Some((limit, given.value(limit.option)?))).collect();
    let resources = oci::resources(json.as_deref(), &options)?;
    context.warn(context.container(id)?.update(&resources)?);
    Ok(0)
}

const UPDATE: [Flag; 20] = [
    Flag::value(&["resources", "r"]),
    Flag::value(&["blkio-weight"]),
    Flag::value(&["cpu-period"]),
    Flag::value(&["cpu-quota"]),
    Flag::value(&["cpu-burst"]),
    Flag::value(&["cpu-rt-period"]),
    Flag::value(&["cpu-rt-runtime"]),
    Flag::value(&["cpu-share"]),
    Flag::value(&["cpu-shares"]),
    Flag::value(&["cpu-idle"]),
    Flag::value(&["cpuset-cpus"]),
    Flag::value(&["cpuset-mems"]),
    Flag::value(&["memory"]),
    Flag::value(&["memory-reservation"]),
    Flag::value(&["memory-swap"]),
    Flag::value(&["pids-limit"]),
    Flag::value(&["kernel-memory"]),
    Flag::value(&["kernel-memory-tcp"]),
    Flag::value(&["l3-cache-schema"]),
    Flag::value(&["mem-bw-schema"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in [("5s", 5000), ("250ms", 250), ("1m30s", 90_000), ("1.5s", 1500)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for bad in ["", "5", "s", "5 s", "-1s"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_limit_has_its_option() {
        let words = LIMITS.iter().map(|limit| format!("--{}=1", limit.option)).collect();
        assert!(Given::parse(&UPDATE, words, Positionals::Anywhere).is_ok());
    }
}
