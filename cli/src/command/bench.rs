//! `strata bench`

use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use strata_engine::LookupReport;

use super::{Context, Outcome};
use crate::output::Table;

/// Measure lookups in an image on a real mount, beside overlayfs and fuse-overlayfs
#[derive(Debug, Args)]
#[command(after_long_help = "\
The layers are unpacked to folders for the kernel's overlayfs and for fuse-overlayfs, where those can be used. \
'First' is on a fresh mount of which only the root was looked at, 'again' follows on the same mount. Figures are microseconds per \
operation, the median of the rounds.

Examples:
  strata bench lookup debian:12
  strata bench lookup --rounds 5 --format json debian:12 > figures.json")]
pub(crate) struct Lookup {
    /// Take the median of NUMBER runs
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
    /// Choose the form of the result
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Shape,
    /// The image, by name or id
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// The form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Runs the benchmark.
pub(crate) fn run(context: &Context, lookup: &Lookup, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    let terminal = io::stderr().is_terminal();
    let mut note = |what: &str| {
        if terminal {
            eprint!("\r\x1b[2K{what} ...");
        }
    };
    let report = engine.bench_lookup(&lookup.image, usize::from(lookup.rounds), &mut note);
    if terminal {
        eprint!("\r\x1b[2K");
    }
    let report = report?;
    match lookup.format {
        Shape::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
        Shape::Table => write!(out, "{}", table(&report))?,
    }
    Ok(0)
}

fn table(report: &LookupReport) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}: {} layers, {} entries, {} directories, {} small files\nLinux {}, {} CPUs ({})\n\
         microseconds per operation, median of {}; in brackets: strata's share of the other's time\n\n",
        report.image,
        report.layers,
        report.entries,
        report.directories,
        report.small_files,
        machine.kernel,
        machine.cpus,
        machine.cpu_model,
        report.rounds,
    );
    let header = ["OPERATION".to_owned()].into_iter().chain(report.contenders.iter().map(|name| name.to_uppercase()));
    let mut table = Table::new(header);
    for measure in &report.measures {
        let ours = measure.microseconds.first().copied().unwrap_or_default();
        let cells = measure.microseconds.iter().enumerate().map(|(number, value)| match number {
            0 => format!("{value:.2}"),
            _ => format!("{value:.2} ({:.2})", ours / value.max(f64::MIN_POSITIVE)),
        });
        table.push([measure.name.clone()].into_iter().chain(cells));
    }
    text.push_str(&table.to_string());
    for (name, reason) in &report.skipped {
        text.push_str(&format!("\n{name} was not measured: {reason}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use strata_engine::{Machine, Measure};

    use super::*;

    #[test]
    fn the_table_names_what_was_compared() {
        let report = LookupReport {
            image: "debian:12".to_owned(),
            machine: Machine { kernel: "6.18".to_owned(), cpus: 2, cpu_model: "a CPU".to_owned() },
            layers: 5,
            entries: 100,
            directories: 10,
            small_files: 20,
            rounds: 3,
            measures: vec![Measure {
                name: "walk + stat, first".to_owned(),
                operations: 100,
                microseconds: vec![8.0, 16.0],
            }],
            contenders: vec!["strata".to_owned(), "overlayfs".to_owned()],
            skipped: vec![("fuse-overlayfs".to_owned(), "it is not installed".to_owned())],
        };
        assert_eq!(
            table(&report),
            "debian:12: 5 layers, 100 entries, 10 directories, 20 small files\n\
             Linux 6.18, 2 CPUs (a CPU)\n\
             microseconds per operation, median of 3; in brackets: strata's share of the other's time\n\n\
             OPERATION            STRATA    OVERLAYFS\n\
             walk + stat, first   8.00      16.00 (0.50)\n\n\
             fuse-overlayfs was not measured: it is not installed\n"
        );
    }
}
