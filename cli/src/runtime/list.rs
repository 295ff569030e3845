//! `list` and `ps`.

use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use strata_engine::oci::State;

use super::flags::{Flag, Given, Positionals};
use super::{Context, print};

/// Prints the containers.
pub(super) fn list(context: &Context<'_>, words: Vec<String>) -> Result<u8> {
    let flags = [Flag::value(&["format", "f"]), Flag::switch(&["quiet", "q"])];
    let given = Given::parse(&flags, words, Positionals::Anywhere)?;
    given.none()?;
    let states: Vec<State> = context.runtime.containers()?.iter().map(|container| container.state()).collect();
    if given.has("quiet") {
        for state in states {
            print(format_args!("{}\n", state.id))?;
        }
        return Ok(0);
    }
    match given.value("format").unwrap_or("table") {
        "table" => table(&states)?,
        // As Go prints a list that nobody has made.
        "json" if states.is_empty() => print(format_args!("null\n"))?,
        "json" => print(format_args!("{}\n", serde_json::to_string(&states)?))?,
        other => bail!("invalid format option: {other:?}"),
    }
    Ok(0)
}

fn table(states: &[State]) -> Result<()> {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = states.iter().map(|state| {
        let bundle = state.bundle.display().to_string();
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_string(),
            bundle,
            state.created.clone(),
            state.owner.clone(),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}", width = (*width).max(11) + 1))
            .collect();
        print(format_args!("{}\n", cells.concat().trim_end()))?;
    }
    Ok(())
}

/// Prints the processes of a container: their numbers, or what the host's `ps` says of them.
pub(super) fn ps(context: &Context<'_>, words: Vec<String>) -> Result<u8> {
    let given = Given::parse(&[Flag::value(&["format", "f"])], words, Positionals::Last)?;
    let (id, options) = given.positionals.split_first().ok_or_else(|| anyhow!("needs a container ID"))?;
    let processes = context.container(id)?.processes()?;
    match given.value("format").unwrap_or("table") {
        "json" => {
            print(format_args!("{}\n", serde_json::to_string(&processes)?))?;
            return Ok(0);
        }
        "table" => {}
        other => bail!("invalid format option: {other:?}"),
    }
    let ordinary = ["-ef".to_owned()];
    let options = if options.is_empty() { &ordinary } else { options };
    let output = Command::new("ps").args(options).output().context("run ps")?;
    if !output.status.success() {
        bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|title| title == "PID")
        .ok_or_else(|| anyhow!("couldn't find PID field in ps output"))?;
    print(format_args!("{header}\n"))?;
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|text| text.parse().ok());
        if pid.is_some_and(|pid: u32| processes.contains(&pid)) {
            print(format_args!("{line}\n"))?;
        }
    }
    Ok(0)
}
