//! What is measured, in which order, and what is aimed at.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::data::{Data, Set, warm};
use super::peer::{self, Peer, UpperPlace};
use super::read::{self, Places};
use super::requests::Requests;
use super::samples::{RowKey, Samples, Stopwatch, is_wanted};
use super::{change, programs};
use crate::load::first_line;
use crate::measure;

/// Where uppers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpperKind {
    /// In memory; on the disk for rows that are about it: fsync, dpkg (which calls it), and chmod of many bytes.
    Mixed,
    /// All in memory.
    Memory,
    /// All on the disk.
    Disk,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often.
    pub rounds: usize,
    /// Numbers of layers for the rows that depend on it.
    pub layers: Vec<usize>,
    /// Parts of row names; empty is all.
    pub rows: Vec<String>,
    /// Where uppers lie.
    pub upper: UpperKind,
    /// How much of each.
    pub effort: Effort,
}

/// How often things are done in one run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Files to look at.
    pub looks: usize,
    /// Names to make.
    pub names: u64,
    /// Writes.
    pub writes: u64,
}

/// Rows that are measured together, on one mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Walk,
    Stat,
    Missing,
    Small,
    Large,
    Writes,
    Synced,
    Names,
    Files,
    Git,
    Dpkg,
    Cargo,
    Attributes,
    Mount,
    Idle,
}

/// Everything a run needs.
#[derive(Debug)]
pub struct Run<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// What to do it on.
    pub data: &'a Data,
    /// Who does it.
    pub peers: &'a [Peer],
    /// A folder on the disk for uppers and the mount.
    pub disk: &'a Path,
    /// A folder in memory for uppers.
    pub memory: &'a Path,
    /// Says what is being done.
    pub progress: fn(&str),
}

impl Run<'_> {
    /// Measures everything.
    pub fn all(&self) -> Result<Samples> {
        let mut samples = Samples::default();
        let mut dead: Vec<String> = Vec::new();
        let mut warmed: Vec<PathBuf> = Vec::new();
        for group in GROUPS {
            if !group.rows().iter().any(|row| is_wanted(&self.plan.rows, row)) {
                continue;
            }
            for &layers in self.layers(group) {
                let set = self.set(group, layers)?;
                let places = match group {
                    Group::Walk | Group::Stat | Group::Missing | Group::Small => {
                        Some(Places::choose(&self.data.tree(1)?.folder.join("l0"), self.plan.effort.looks)?)
                    }
                    _ => None,
                };
                if !warmed.contains(&set.folder) {
                    warm(&set.folder)?;
                    self.warm_store(&set, &mut samples, &mut dead);
                    warmed.push(set.folder.clone());
                }
                for round in 0..self.rounds(group) {
                    for turn in 0..self.peers.len() {
                        // Everybody comes first in some round.
                        let peer = &self.peers[(turn + round) % self.peers.len()];
                        if dead.contains(&peer.name) || group.leaves_out(peer, layers) {
                            continue;
                        }
                        (self.progress)(&format!("{group:?} on {layers}, round {}: {}", round + 1, peer.name));
                        if let Err(error) = self.one(group, &set, peer, places.as_ref(), None, &mut samples) {
                            let text = format!("{}: {group:?}: {}", peer.name, first_line(&error));
                            if !samples.failures.contains(&text) {
                                samples.failures.push(text);
                            }
                        }
                    }
                }
                self.count(group, &set, places.as_ref(), &mut samples);
            }
        }
        Ok(samples)
    }

    /// What a first use writes is written, and a mode that does not exist here is left out.
    fn warm_store(&self, set: &Set, samples: &mut Samples, dead: &mut Vec<String>) {
        let first = self.peers.iter().position(Peer::is_ours);
        for (number, peer) in self.peers.iter().enumerate() {
            if peer.is_plain() || dead.contains(&peer.name) {
                continue;
            }
            let tried = self.fresh_upper(UpperKind::Memory).and_then(|upper| {
                let mounted = peer.mount(self.data, set, Some(&upper), "", &self.point()?)?;
                // All of ours have one store; folders are warm already.
                if first == Some(number) {
                    warm(&mounted.point)?;
                }
                mounted.unmount()
            });
            if let Err(error) = tried {
                samples.failures.push(format!("{} is left out: {}", peer.name, first_line(&error)));
                dead.push(peer.name.clone());
            }
        }
    }

    /// Once more for our first mode, with requests counted instead of time.
    fn count(&self, group: Group, set: &Set, places: Option<&Places>, samples: &mut Samples) {
        let Some(peer) = self.peers.iter().find(|peer| peer.is_ours()) else { return };
        if matches!(group, Group::Mount | Group::Idle) {
            return;
        }
        let counted =
            Requests::new(self.disk).and_then(|requests| self.one(group, set, peer, places, Some(&requests), samples));
        if let Err(error) = counted {
            let text = format!("requests are not counted: {}", first_line(&error));
            if !samples.failures.contains(&text) {
                samples.failures.push(text);
            }
        }
    }

    fn one(
        &self,
        group: Group,
        set: &Set,
        peer: &Peer,
        places: Option<&Places>,
        requests: Option<&Requests>,
        samples: &mut Samples,
    ) -> Result<()> {
        let kind = match self.plan.upper {
            UpperKind::Mixed if group.is_on_disk() => UpperKind::Disk,
            UpperKind::Mixed => UpperKind::Memory,
            kind => kind,
        };
        // A plain folder that is only looked at, or whose changes can be taken back, is used as it is.
        let own_place = !(peer.is_plain() && group.leaves_the_lower());
        let upper = if own_place { Some(self.fresh_upper(kind)?) } else { None };
        let options = if group == Group::Attributes { "metacopy=on" } else { "" };
        let mounted = peer.mount(self.data, set, upper.as_ref(), options, &self.point()?)?;
        let mut watch = Stopwatch {
            samples,
            peer: &peer.name,
            layers: set.layers,
            point: mounted.point.clone(),
            requests,
            wanted: &self.plan.rows,
        };
        let effort = self.plan.effort;
        match group {
            Group::Walk => read::walk(&mut watch, places.context("a tree")?)?,
            Group::Stat => read::stat(&mut watch, places.context("a tree")?)?,
            Group::Missing => read::missing(&mut watch, places.context("a tree")?)?,
            Group::Small => read::small(&mut watch, places.context("a tree")?)?,
            Group::Large => read::large(&mut watch)?,
            Group::Writes => change::writes(&mut watch, effort.writes)?,
            Group::Synced => change::synced(&mut watch, effort.names)?,
            Group::Names => change::names(&mut watch, effort.names)?,
            Group::Files => programs::files(&mut watch, self.data)?,
            Group::Git => programs::git(&mut watch)?,
            Group::Dpkg => programs::dpkg(&mut watch, self.data)?,
            Group::Cargo => programs::cargo(&mut watch)?,
            Group::Attributes => change::attributes(&mut watch)?,
            Group::Mount => watch.note("mount", 1, mounted.took.as_secs_f64() * 1e6),
            Group::Idle => idle(&mut watch)?,
        }
        mounted.unmount()?;
        if kind == UpperKind::Disk {
            // Its dirty pages are not the next one's business.
            rustix::fs::sync();
        }
        Ok(())
    }

    fn layers(&self, group: Group) -> &[usize] {
        match group {
            Group::Walk | Group::Stat | Group::Missing | Group::Small => {
                // 127 changes nothing that 64 does not show.
                let most = self.plan.layers.iter().position(|&layers| layers > 64).unwrap_or(self.plan.layers.len());
                &self.plan.layers[..most]
            }
            Group::Mount => &self.plan.layers,
            _ => &[1],
        }
    }

    fn rounds(&self, group: Group) -> usize {
        match group {
            Group::Mount => self.plan.rounds * 3,
            Group::Attributes | Group::Cargo | Group::Large => self.plan.rounds.min(2),
            Group::Idle => 1,
            _ => self.plan.rounds,
        }
    }

    fn set(&self, group: Group, layers: usize) -> Result<Set> {
        match group {
            Group::Walk | Group::Stat | Group::Missing | Group::Small | Group::Mount | Group::Idle => {
                self.data.tree(layers)
            }
            Group::Large => self.data.large(),
            Group::Attributes => self.data.heavy(),
            _ => self.data.work(),
        }
    }

    fn point(&self) -> Result<PathBuf> {
        let point = self.disk.join("point");
        fs::create_dir_all(&point)?;
        Ok(point)
    }

    fn fresh_upper(&self, kind: UpperKind) -> Result<UpperPlace> {
        let base = if kind == UpperKind::Disk { self.disk } else { self.memory };
        let upper = UpperPlace { dir: base.join("upper"), work: base.join("work") };
        peer::clear(&upper)?;
        Ok(upper)
    }
}

/// What a mount costs while nobody uses it, after everything in it was looked at.
fn idle(watch: &mut Stopwatch<'_>) -> Result<()> {
    warm(&watch.point)?;
    let servers = peer::servers();
    let cpu = || servers.iter().filter_map(|pid| measure::cpu_of(*pid).ok()).sum::<Duration>();
    let before = cpu();
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let share = (cpu() - before).as_secs_f64() / started.elapsed().as_secs_f64();
    let status = |field: &str| -> f64 {
        let value = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(field))?.to_owned();
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        // An empty sum is -0.
        servers.iter().filter_map(value).fold(0.0, |sum, value| sum + value)
    };
    watch.note("idle mount: CPU, per mille", 0, share * 1000.0);
    watch.note("idle mount: own memory, KiB", 0, status("RssAnon:"));
    watch.note("idle mount: threads", 0, status("Threads:"));
    Ok(())
}

impl Group {
    fn is_on_disk(self) -> bool {
        matches!(self, Group::Synced | Group::Dpkg | Group::Attributes)
    }

    /// Whether the lower folder itself may be given to somebody without a union.
    fn leaves_the_lower(self) -> bool {
        matches!(self, Group::Walk | Group::Stat | Group::Missing | Group::Small | Group::Large | Group::Attributes)
    }

    fn leaves_out(self, peer: &Peer, layers: usize) -> bool {
        peer.is_plain() && (layers > 1 || matches!(self, Group::Mount | Group::Idle))
    }

    fn rows(self) -> &'static [&'static str] {
        match self {
            Group::Walk => &["walk + stat, fresh", "walk + stat, second", "walk + stat, repeated"],
            Group::Stat => &["stat by list, fresh", "stat by list, repeated"],
            Group::Missing => &["negative lookup, fresh", "negative lookup, repeated"],
            Group::Small => &["open+read+close, first", "open+read+close, repeated"],
            Group::Large => &[
                "large file, sequential, first",
                "large file, sequential, repeated",
                "large file, random 4k",
                "large file, mmap",
            ],
            Group::Writes => &["write 100 bytes", "write 4k at random"],
            Group::Synced => &["append 100 bytes, fsync each 100", "append 4k, fsync each 100"],
            Group::Names => &["create + close", "create + write 4k + close", "mkdir", "rename", "unlink", "rmdir"],
            Group::Files => &["untar", "cp -r", "rm -rf", "rm -rf of a layer's files"],
            Group::Git => &["git status, first", "git status, repeated", "git clone"],
            Group::Dpkg => &["dpkg -i"],
            Group::Cargo => &["cargo build"],
            Group::Attributes => &["chmod -R", "chown -R"],
            Group::Mount => &["mount"],
            Group::Idle => &["idle mount: CPU, per mille", "idle mount: own memory, KiB", "idle mount: threads"],
        }
    }
}

/// The most that strata's time may be as a multiple of overlayfs's and of fuse-overlayfs 2's.
pub fn aims(key: &RowKey) -> (Option<f64>, Option<f64>) {
    let many = key.layers > 16;
    let (overlayfs, fuse) = match key.name {
        "walk + stat, fresh" if many => (0.15, 0.04),
        "walk + stat, fresh" => (0.7, 0.2),
        "walk + stat, repeated" => (0.6, 0.25),
        "stat by list, fresh" if many => (0.7, 0.15),
        "stat by list, fresh" => (2.0, 0.4),
        "negative lookup, fresh" if many => (0.12, 1.0),
        "negative lookup, fresh" => (1.4, 1.0),
        "negative lookup, repeated" => (0.8, 0.15),
        "open+read+close, repeated" => (1.5, 0.6),
        name if name.starts_with("large file") => (1.0, 0.5),
        "write 100 bytes" | "write 4k at random" => (1.0, 0.1),
        "append 100 bytes, fsync each 100" | "append 4k, fsync each 100" => (1.0, 0.1),
        "create + close" => (3.0, 0.4),
        "mkdir" => (3.5, 0.3),
        "rename" => (4.0, 0.3),
        "unlink" => (3.0, 0.4),
        "untar" => (2.5, 0.5),
        "cp -r" => (2.2, 0.5),
        "rm -rf" => (3.3, 0.5),
        "git status, repeated" | "git clone" => (1.5, 0.5),
        "dpkg -i" => (1.3, 0.5),
        "cargo build" => (1.1, 0.5),
        "chmod -R" | "chown -R" => (1.5, 0.2),
        "mount" if key.layers >= 16 => (1.0, f64::INFINITY),
        _ => return (None, None),
    };
    (Some(overlayfs), Some(fuse).filter(|aim| aim.is_finite()))
}

const GROUPS: [Group; 15] = [
    Group::Walk,
    Group::Stat,
    Group::Missing,
    Group::Small,
    Group::Large,
    Group::Writes,
    Group::Synced,
    Group::Names,
    Group::Files,
    Group::Git,
    Group::Dpkg,
    Group::Cargo,
    Group::Attributes,
    Group::Mount,
    Group::Idle,
];
