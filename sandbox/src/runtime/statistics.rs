//! What a container uses, in the form of runc's `events`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::{Container, RuntimeError};
use crate::cgroup::{Cgroup, Version};

/// What a container uses. Names and units are runc's: nanoseconds, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, HugePages>,
    intel_rdt: Empty,
    network_interfaces: Option<()>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Empty {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct CpuUsage {
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
    kernel: u64,
    user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u32>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u32>,
    mem_exclusive: u64,
    mem_hardwall: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlockEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlockEntry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct BlockEntry {
    major: u64,
    minor: u64,
    op: String,
    value: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct HugePages {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Container {
    /// Reads what the container uses now. What no controller counts is zero.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`] when it has no cgroup, [`RuntimeError::Cgroup`].
    pub fn statistics(&self) -> Result<Statistics, RuntimeError> {
        let cgroup = self.cgroup()?.ok_or(RuntimeError::NotRunning)?;
        Ok(Statistics::of(cgroup))
    }
}

impl Statistics {
    fn of(cgroup: &Cgroup) -> Self {
        let mut found = Self::default();
        let at = |controller| cgroup.place_of(controller);
        match at("cpu") {
            Some((folder, Version::V1)) => {
                found.cpu.throttling = throttling(&read(folder, "cpu.stat"), "throttled_time", 1)
            }
            Some((folder, Version::V2)) => {
                let stat = read(folder, "cpu.stat");
                found.cpu.throttling = throttling(&stat, "throttled_usec", 1000);
                found.cpu.usage = CpuUsage {
                    total: field(&stat, "usage_usec") * 1000,
                    percpu: Vec::new(),
                    kernel: field(&stat, "system_usec") * 1000,
                    user: field(&stat, "user_usec") * 1000,
                };
            }
            None => {}
        }
        if let Some((folder, Version::V1)) = at("cpuacct") {
            found.cpu.usage = cpu_usage_v1(folder);
        }
        if let Some((folder, version)) = at("cpuset") {
            found.cpuset = cpuset(folder, version);
        }
        match at("memory") {
            Some((folder, Version::V1)) => found.memory = memory_v1(folder),
            Some((folder, Version::V2)) => found.memory = memory_v2(folder),
            None => {}
        }
        if let Some((folder, _)) = at("pids") {
            let limit = number(&read(folder, "pids.max"));
            found.pids = Pids { current: number(&read(folder, "pids.current")), limit };
        }
        match at("blkio") {
            Some((folder, Version::V1)) => {
                found.blkio.io_service_bytes_recursive =
                    blocks_v1(&read(folder, "blkio.throttle.io_service_bytes_recursive"));
                found.blkio.io_serviced_recursive = blocks_v1(&read(folder, "blkio.throttle.io_serviced_recursive"));
            }
            _ => {
                if let Some((folder, Version::V2)) = at("io") {
                    let stat = read(folder, "io.stat");
                    found.blkio.io_service_bytes_recursive =
                        blocks_v2(&stat, [("rbytes", "Read"), ("wbytes", "Write")]);
                    found.blkio.io_serviced_recursive = blocks_v2(&stat, [("rios", "Read"), ("wios", "Write")]);
                }
            }
        }
        if let Some((folder, version)) = at("hugetlb") {
            found.hugetlb = huge_pages(folder, version);
        }
        found
    }
}

fn cpu_usage_v1(folder: &Path) -> CpuUsage {
    let stat = read(folder, "cpuacct.stat");
    // In ticks of the clock that user space sees, always 100 per second on the architectures we know.
    let ticks = |name| field(&stat, name) * (1_000_000_000 / 100);
    CpuUsage {
        total: number(&read(folder, "cpuacct.usage")),
        percpu: read(folder, "cpuacct.usage_percpu").split_whitespace().map(number).collect(),
        kernel: ticks("system"),
        user: ticks("user"),
    }
}

fn throttling(stat: &str, time: &str, unit: u64) -> Throttling {
    Throttling {
        periods: field(stat, "nr_periods"),
        throttled_periods: field(stat, "nr_throttled"),
        throttled_time: field(stat, time) * unit,
    }
}

fn cpuset(folder: &Path, version: Version) -> CpuSet {
    if version == Version::V2 {
        let list = |file| ranges(&read(folder, file));
        return CpuSet { cpus: list("cpuset.cpus"), mems: list("cpuset.mems"), ..CpuSet::default() };
    }
    let of = |name: &str| read(folder, &format!("cpuset.{name}"));
    CpuSet {
        cpus: ranges(&of("cpus")),
        cpu_exclusive: number(&of("cpu_exclusive")),
        mems: ranges(&of("mems")),
        mem_exclusive: number(&of("mem_exclusive")),
        mem_hardwall: number(&of("mem_hardwall")),
        memory_migrate: number(&of("memory_migrate")),
        memory_spread_page: number(&of("memory_spread_page")),
        memory_spread_slab: number(&of("memory_spread_slab")),
        memory_pressure: number(&of("memory_pressure")),
        sched_load_balance: number(&of("sched_load_balance")),
        sched_relax_domain_level: of("sched_relax_domain_level").trim().parse().unwrap_or(0),
    }
}

fn memory_v1(folder: &Path) -> Memory {
    let entry = |name: &str| {
        let of = |file: &str| number(&read(folder, &format!("memory.{name}{file}")));
        MemoryEntry {
            limit: of("limit_in_bytes"),
            usage: of("usage_in_bytes"),
            max: of("max_usage_in_bytes"),
            failcnt: of("failcnt"),
        }
    };
    let raw = pairs(&read(folder, "memory.stat"));
    Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        raw,
    }
}

/// As runc fills version 1's names: swap counts memory, too.
fn memory_v2(folder: &Path) -> Memory {
    let events = read(folder, "memory.events");
    let usage = MemoryEntry {
        limit: limit(&read(folder, "memory.max")),
        usage: number(&read(folder, "memory.current")),
        max: number(&read(folder, "memory.peak")),
        failcnt: field(&events, "max"),
    };
    let swap_limit = limit(&read(folder, "memory.swap.max"));
    let swap = MemoryEntry {
        limit: swap_limit.saturating_add(if swap_limit == u64::MAX { 0 } else { usage.limit }),
        usage: number(&read(folder, "memory.swap.current")) + usage.usage,
        ..MemoryEntry::default()
    };
    let raw = pairs(&read(folder, "memory.stat"));
    Memory { cache: raw.get("file").copied().unwrap_or(0), usage, swap, raw, ..Memory::default() }
}

fn huge_pages(folder: &Path, version: Version) -> BTreeMap<String, HugePages> {
    let mut found = BTreeMap::new();
    let (usage, max, failed) = match version {
        Version::V1 => ("usage_in_bytes", "max_usage_in_bytes", "failcnt"),
        Version::V2 => ("current", "", "events"),
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(size) = name.to_str().and_then(|name| name.strip_prefix("hugetlb.")?.strip_suffix(usage)) else {
            continue;
        };
        let size = size.trim_end_matches('.');
        if size.contains('.') {
            continue; // reservations
        }
        let of = |file: &str| read(folder, &format!("hugetlb.{size}.{file}"));
        let failcnt = match version {
            Version::V1 => number(&of(failed)),
            Version::V2 => field(&of(failed), "max"),
        };
        found.insert(size.to_owned(), HugePages { usage: number(&of(usage)), max: number(&of(max)), failcnt });
    }
    found
}

fn read(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap_or_default()
}

/// A number; `max` and what is missing count as none.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// A limit of version 2, where none is a word.
fn limit(text: &str) -> u64 {
    if text.trim() == "max" { u64::MAX } else { number(text) }
}

fn pairs(text: &str) -> BTreeMap<String, u64> {
    text.lines().filter_map(|line| line.split_once(' ')).map(|(name, value)| (name.to_owned(), number(value))).collect()
}

fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map_or(0, number)
}

/// `0-2,5` as numbers.
fn ranges(text: &str) -> Vec<u32> {
    let mut all = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            all.extend(first..=last.min(first.saturating_add(8191)));
        }
    }
    all
}

/// `8:0 Read 4096`, one line for each device and direction.
fn blocks_v1(text: &str) -> Vec<BlockEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (major, minor) = words.next()?.split_once(':')?;
            let op = words.next()?.to_owned();
            Some(BlockEntry {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                op,
                value: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// `8:0 rbytes=4096 wbytes=0 ...`, one line for each device.
fn blocks_v2(text: &str, names: [(&str, &str); 2]) -> Vec<BlockEntry> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        for word in words {
            let Some((name, value)) = word.split_once('=') else { continue };
            if let Some((_, op)) = names.iter().find(|(known, _)| *known == name) {
                all.push(BlockEntry {
                    major: number(major),
                    minor: number(minor),
                    op: (*op).to_owned(),
                    value: number(value),
                });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_control_files_are_read() {
        assert_eq!(ranges("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(ranges("\n"), Vec::<u32>::new());
        let read = |value| BlockEntry { major: 8, minor: 16, op: "Read".into(), value };
        assert_eq!(blocks_v1("8:16 Read 4\nTotal 4\n"), [read(4)]);
        assert_eq!(blocks_v2("8:16 rbytes=4 rios=1\n", [("rbytes", "Read"), ("wbytes", "Write")]), [read(4)]);
        assert_eq!(limit("max\n"), u64::MAX);
    }

    #[test]
    fn the_json_has_runcs_names() {
        let json = serde_json::to_value(Statistics::default()).unwrap();
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["blkio", "cpu", "cpuset", "hugetlb", "intel_rdt", "memory", "network_interfaces", "pids"];
        assert_eq!(names, expected);
        assert_eq!(json["memory"]["kernelTCP"]["failcnt"], 0);
    }
}
