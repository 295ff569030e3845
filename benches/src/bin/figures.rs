//! Takes every published figure in one run and writes the text to `benches/results/`.
//!
//! `figures [load] [walk] [images] [idle] [neighbours] [sandbox] [--rounds N] [--idle N] [--no-file]`; the binary under test is
//! `$STRATA_BIN`, else what `cargo dist` made. For `images` also `--quick`, `--laps A,B`, `--engines A,B` and
//! `--scene FOLDER`, which keeps what is measured on for the next time.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use strata_benches::report::Report;
use strata_benches::{binary, images, load, machine, measure, sandbox, walk};

#[expect(clippy::print_stderr, reason = "a command")]
fn main() -> ExitCode {
    match figures() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("figures: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn figures() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let mut wanted = Vec::new();
    let (mut rounds, mut count, mut to_file) = (5, 20, true);
    let mut of_images = images::Options::default();
    while let Some(argument) = arguments.next() {
        match argument.to_str().context("arguments are text")? {
            measure::WRAP => {
                let report = arguments.next().context("a file for the cost")?;
                let code = measure::wrap(report.as_ref(), arguments)?;
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            "--rounds" => {
                rounds = arguments.next().and_then(|text| text.to_str()?.parse().ok()).context("a number of rounds")?
            }
            "--idle" => {
                count =
                    arguments.next().and_then(|text| text.to_str()?.parse().ok()).context("a number of containers")?
            }
            "--no-file" => to_file = false,
            "--quick" => of_images.quick = true,
            name @ ("--laps" | "--engines") => {
                let list = arguments.next().and_then(|text| text.into_string().ok()).context("a list of names")?;
                let names = list.split(',').map(str::to_owned).collect();
                if name == "--laps" { of_images.laps = names } else { of_images.engines = names }
            }
            "--scene" => of_images.scene = Some(arguments.next().context("a folder")?.into()),
            name @ ("load" | "walk" | "images" | "idle" | "neighbours" | "sandbox") => wanted.push(name.to_owned()),
            other => {
                bail!("{other}: not one of load, walk, images, idle, neighbours, sandbox or an option of the README")
            }
        }
    }
    if !rustix::process::geteuid().is_root() {
        bail!("root is needed: the peers mount and start containers");
    }
    let strata = binary()?;
    let work = tempfile::Builder::new().prefix("strata-figures-").tempdir_in("/var/tmp")?;
    let all = wanted.is_empty();
    let is_wanted = |name: &str| all || wanted.iter().any(|wanted| wanted == name);

    let mut report = Report::default();
    report.say(machine::describe(work.path()));
    if is_wanted("load") {
        load::figures(&strata, work.path(), rounds.min(5), &mut report)?;
    }
    if is_wanted("walk") {
        walk::figures(&strata, work.path(), rounds, &mut report)?;
    }
    if is_wanted("images") {
        of_images.rounds = rounds.min(3);
        images::figures(&strata, work.path(), &of_images, &mut report)?;
    }
    if is_wanted("idle") {
        sandbox::idle::figures(&strata, work.path(), count, &mut report)?;
    }
    // Last: these put this program into a mount namespace of its own.
    if is_wanted("neighbours") {
        sandbox::neighbours::figures(&strata, work.path(), 2, &mut report)?;
    }
    if is_wanted("sandbox") {
        sandbox::figures(&strata, work.path(), rounds * 8, &mut report)?;
    }
    if to_file {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/results"));
        let date = report.text().split_whitespace().nth(1).unwrap_or("undated").to_owned();
        let only_images = wanted == ["images"];
        let (file, command) = if only_images {
            (format!("{date}-images.txt"), "bench-images")
        } else {
            (format!("{date}.txt"), "figures")
        };
        let file = folder.join(file);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(&file, format!("$ just {command}\n\n{}", report.text()))?;
        report.say(format!("written to {}", file.display()));
    }
    Ok(ExitCode::SUCCESS)
}
