//! Images to and from a registry and archives, beside other tools.
//!
//! A *lap* is what one engine does with one empty store, several measured steps one after the other. In each round every
//! engine runs every lap, so that whatever else the machine does meets all of them. CPU time counts the command, what it
//! waited for, and the daemons behind it.

mod engine;
mod huge;
mod laps;
mod relay;
mod scene;
mod table;

use std::path::{Path, PathBuf};

use anyhow::Result;

use self::engine::Engine;
use self::laps::{Lap, run_lap};
use self::scene::Scene;
use self::table::Figures;
use crate::load::first_line;
use crate::report::Report;

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How often, for the laps that are not run just once.
    pub rounds: usize,
    /// Small images, one round: whether everything runs.
    pub quick: bool,
    /// The laps, all if empty: `plain`, `gzip`, `zstd`, `pull`, `pull-zstd`, `commit`, `lazy`, `huge`.
    pub laps: Vec<String>,
    /// The engines, all that are installed if empty.
    pub engines: Vec<String>,
    /// Where the registry and the archives are made, and found again the next time; made anew if `None`.
    pub scene: Option<PathBuf>,
}

/// Tells whoever waits, beside the output, what is being measured.
#[expect(clippy::print_stderr, reason = "the program's progress")]
fn progress(what: &str) {
    eprintln!("... {what}");
}

/// Prints the tables.
pub fn figures(strata: &Path, work: &Path, options: &Options, report: &mut Report) -> Result<()> {
    let wants = |lap: &str| options.laps.is_empty() || options.laps.iter().any(|name| name == lap);
    let rounds = if options.quick { 1 } else { options.rounds };
    let scene = Scene::prepare(strata, work, options)?;
    let engines: Vec<Engine> = Engine::ALL
        .into_iter()
        .filter(|engine| options.engines.is_empty() || options.engines.iter().any(|name| name == engine.name()))
        .collect();
    report.say(format!(
        "an image of {} MB in {} files and 6 layers, to and from `strata registry serve` on this machine and archives in\n\
         memory; median of {rounds}, interleaved, each lap in an empty store. peak: of the command, and of the daemon\n\
         where there is one",
        scene.content / 1_000_000,
        scene.files,
    ));
    let mut figures = Figures::default();
    for _ in 0..rounds {
        for lap in Lap::all(&scene).into_iter().filter(|lap| wants(lap.name())) {
            for engine in &engines {
                progress(&format!("{} {}", lap.name(), engine.name()));
                if let Err(error) = run_lap(&scene, *engine, &lap, &mut figures) {
                    figures.failed(lap.name(), *engine, &first_line(&error));
                }
            }
        }
    }
    figures.print(report);
    if wants("lazy") {
        relay::figures(&scene, rounds, report)?;
    }
    if wants("huge") {
        huge::figures(&scene, &engines, options.quick, report)?;
    }
    Ok(())
}
