//! The figures of all rounds, and the tables that are made of them.

use std::collections::BTreeMap;

use super::engine::Engine;
use crate::measure::{Cost, median};
use crate::report::{Report, row, seconds};

/// What was measured so far.
#[derive(Default)]
pub(super) struct Figures {
    /// In the order in which rows appeared first.
    rows: Vec<String>,
    costs: BTreeMap<(String, Engine), Vec<Cost>>,
    spaces: BTreeMap<(String, Engine), (u64, u64)>,
    failures: BTreeMap<(String, Engine), String>,
}

impl Figures {
    pub(super) fn add(&mut self, name: &str, engine: Engine, cost: Cost) {
        if !self.rows.iter().any(|known| known == name) {
            self.rows.push(name.to_owned());
        }
        self.costs.entry((name.to_owned(), engine)).or_default().push(cost);
    }

    /// Notes how many bytes of the disk something takes, and how many it has.
    pub(super) fn space(&mut self, name: &str, engine: Engine, bytes: u64, content: u64) {
        self.spaces.insert((name.to_owned(), engine), (bytes, content));
    }

    pub(super) fn failed(&mut self, lap: &str, engine: Engine, error: &str) {
        self.failures.insert((lap.to_owned(), engine), error.to_owned());
    }

    fn median(&self, name: &str, engine: Engine) -> Option<Cost> {
        self.costs.get(&(name.to_owned(), engine)).map(|costs| median(costs))
    }

    pub(super) fn print(&self, report: &mut Report) {
        let mut table = vec![row(["", "", "seconds", "CPU-s", "peak MiB", "wall ratio", "CPU ratio"])];
        for name in &self.rows {
            let ours = self.median(name, Engine::Strata);
            let mut shown = name.as_str();
            for engine in Engine::ALL {
                let Some(cost) = self.median(name, engine) else { continue };
                let ratio = |of: fn(Cost) -> f64| match ours {
                    Some(ours) if engine != Engine::Strata && of(cost) > 0.0 => format!("{:.2}", of(ours) / of(cost)),
                    _ => String::new(),
                };
                table.push(row([
                    std::mem::take(&mut shown),
                    engine.name(),
                    &seconds(cost.wall),
                    &seconds(cost.cpu),
                    &(cost.peak / 1024).to_string(),
                    &ratio(|cost| cost.wall.as_secs_f64()),
                    &ratio(|cost| cost.cpu.as_secs_f64()),
                ]));
            }
        }
        report.say(
            "ratios: strata's figure to the engine's. skopeo unpacks nothing, umoci unpacks a layout that is there",
        );
        report.table(&table);
        if !self.spaces.is_empty() {
            let mut table = vec![row(["", "", "MB", "of the content"])];
            for ((name, engine), (bytes, content)) in &self.spaces {
                let share = *bytes as f64 / *content as f64;
                let megabytes = format!("{:.1}", *bytes as f64 / 1e6);
                table.push(row([name, engine.name(), &megabytes, &format!("{share:.2}")]));
            }
            report.table(&table);
        }
        for ((lap, engine), error) in &self.failures {
            report.say(format!("not measured: {lap}, {}: {error}", engine.name()));
        }
        self.print_aims(report);
    }

    /// Says which of the aims are met.
    fn print_aims(&self, report: &mut Report) {
        let ratio = |name: &str, peer: Engine| {
            let (ours, theirs) = (self.median(name, Engine::Strata)?, self.median(name, peer)?);
            Some(ours.cpu.as_secs_f64() / theirs.cpu.as_secs_f64())
        };
        let mut table = vec![row(["aim", "", "at most"])];
        let mut add = |what: &str, value: Option<f64>, aim: f64| {
            if let Some(value) = value {
                let mark = if value > aim { " !" } else { "" };
                table.push(row([what, &format!("{value:.2}{mark}"), &aim.to_string()]));
            }
        };
        add("CPU of load plain, to docker", ratio("load plain", Engine::Docker), 0.15);
        add("CPU of pull gzip, to containerd", ratio("pull gzip", Engine::Containerd), 0.5);
        add("CPU of pull gzip, to podman", ratio("pull gzip", Engine::Podman), 0.25);
        for name in ["load plain", "load gzip", "load zstd", "pull gzip", "pull zstd", "save"] {
            // Skopeo and umoci do half of it.
            let peers = [Engine::Docker, Engine::Podman, Engine::Containerd];
            let best = peers.into_iter().filter_map(|peer| self.median(name, peer)).map(|cost| cost.wall).min();
            let ours = self.median(name, Engine::Strata);
            let value = ours.zip(best).map(|(ours, best)| ours.wall.as_secs_f64() / best.as_secs_f64());
            add(&format!("wall of {name}, to the best of docker, podman, containerd"), value, 0.3);
        }
        let peaks = self.costs.iter().filter(|((_, engine), _)| *engine == Engine::Strata);
        let peak = peaks.flat_map(|(_, costs)| costs).map(|cost| cost.peak).max();
        add("largest peak of strata in any row, MiB", peak.map(|peak| peak as f64 / 1024.0), 64.0);
        if table.len() > 1 {
            report.table(&table);
        }
    }
}
