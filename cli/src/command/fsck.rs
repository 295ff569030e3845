//! `strata fsck`

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use strata_engine::{Depth, Finding, FsckOptions, FsckReport, Mend, Outcome as Mended};

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::output::human::printable;
use crate::progress::Bars;
use crate::registries;

/// Check that all images are whole, and repair them
#[derive(Debug, Args)]
#[command(after_long_help = "\
Every layer, configuration and manifest is compared with its digest, every index and table with what it was made from. \
Without --repair nothing is changed.

With --repair, caches are made again; layers and documents that are damaged are put aside in the folder 'quarantine' of the \
root and fetched again from the registry that the image was pulled from or pushed to. 'system prune' empties that folder.

Exit codes: 0 all is whole, 1 all that was damaged has been repaired, 4 something is damaged, 8 the check could not be made, \
125 wrong usage.

Examples:
  strata fsck --repair
  strata fsck --quick                     sizes, documents and indexes only
  strata fsck --repair --older-than 30d   read what was not read for 30 days: for a timer")]
pub(crate) struct Fsck {
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
    /// Do not read the layers themselves
    #[arg(long, conflicts_with = "older_than")]
    quick: bool,
    /// Read only layers that were not read by a check for this long, such as 30d or 12h
    #[arg(long, value_name = "TIME", value_parser = time)]
    older_than: Option<Duration>,
    /// Do not ask registries
    #[arg(long)]
    offline: bool,
    /// Print the result as text, or as one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Form,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Lines
    Text,
    /// One object
    Json,
}

/// Checks, and prints what was found.
pub(crate) fn run(context: &Context, options: &Fsck, out: &mut impl Write) -> Outcome {
    let failed = |failure: Failure| Failure { code: UNCHECKED, ..failure };
    let engine = context.engine().map_err(failed)?;
    let client = if options.repair && !options.offline { Some(registries::client()?) } else { None };
    let depth = match (options.quick, options.older_than) {
        (true, _) => Depth::Quick,
        (false, Some(time)) => Depth::NotCheckedFor(time),
        (false, None) => Depth::Whole,
    };
    let mend = if options.repair { Mend::Everything(client.as_ref()) } else { Mend::Nothing };
    let progress = Bars::new(options.format == Form::Json);
    let report = engine.images().fsck(&FsckOptions { depth, mend }, &progress);
    drop(progress);
    let report = report.map_err(|error| failed(error.into()))?;
    match options.format {
        Form::Json => writeln!(out, "{}", as_json(&report))?,
        Form::Text => as_text(&report, options, out)?,
    }
    Ok(match (report.findings.is_empty(), report.is_whole()) {
        (true, _) => 0,
        (false, true) => REPAIRED,
        (false, false) => DAMAGED,
    })
}

fn as_text(report: &FsckReport, options: &Fsck, out: &mut impl Write) -> std::io::Result<()> {
    for finding in &report.findings {
        let Finding { subject, problem, images, outcome } = finding;
        let of = if images.is_empty() { String::new() } else { format!(" (of {})", images.join(", ")) };
        writeln!(out, "{}", printable(&format!("{subject}{of}: {problem}")))?;
        let became = match outcome {
            Mended::Repaired(how) => format!("repaired: {how}"),
            Mended::Lost(why) => format!("not repaired: {why}"),
            Mended::Left if options.repair => "not repaired".to_owned(),
            Mended::Left => "not repaired: --repair was not given".to_owned(),
        };
        writeln!(out, "  {}", printable(&became))?;
    }
    let repaired = report.findings.iter().filter(|finding| finding.is_repaired()).count();
    writeln!(
        out,
        "{} images, {} layers ({} read, {} verified by the kernel): {} damaged, {repaired} repaired",
        report.images,
        report.layers,
        report.read,
        report.verified_by_kernel,
        report.findings.len(),
    )?;
    if report.leftovers > 0 {
        writeln!(out, "{} files that nothing needs: 'strata system prune' removes them", report.leftovers)?;
    }
    Ok(())
}

fn as_json(report: &FsckReport) -> serde_json::Value {
    let findings = report.findings.iter().map(|finding| {
        let (state, detail) = match &finding.outcome {
            Mended::Left => ("left", ""),
            Mended::Repaired(how) => ("repaired", how.as_str()),
            Mended::Lost(why) => ("lost", why.as_str()),
        };
        json!({
            "kind": finding.subject.kind(),
            "digest": finding.subject.digest().map(|digest| digest.to_string()),
            "images": finding.images,
            "problem": finding.problem,
            "cache": finding.subject.is_cache(),
            "outcome": state,
            "detail": detail,
        })
    });
    json!({
        "images": report.images,
        "layers": report.layers,
        "layers_read": report.read,
        "layers_verified_by_kernel": report.verified_by_kernel,
        "leftovers": report.leftovers,
        "whole": report.is_whole(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

/// Reads a time as a number with a unit: `30d`, `12h`, `5m`, `10s`.
fn time(text: &str) -> Result<Duration, String> {
    let invalid = || format!("a number with one of the units s, m, h, d is needed, not '{text}'");
    let at = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(invalid)?;
    let number: u64 = text[..at].parse().map_err(|_| invalid())?;
    let unit = match &text[at..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(invalid()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(invalid)
}

/// All that was damaged has been repaired, as fsck(8) says it.
const REPAIRED: u8 = 1;
/// Something is damaged.
const DAMAGED: u8 = 4;
/// It is not known what is damaged.
const UNCHECKED: u8 = 8;
