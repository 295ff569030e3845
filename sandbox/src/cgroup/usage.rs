//! What the processes of a cgroup use.

use std::fs;
use std::path::Path;

use super::{Cgroup, Version};

/// What is used at a moment; what no controller counts is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds of CPU time until now.
    pub cpu: Option<u64>,
    /// Bytes of memory, without the part of the page cache that has not been used lately.
    pub memory: Option<u64>,
    /// How many there may be.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Bytes read from and written to disks.
    pub blocks: (u64, u64),
}

impl Cgroup {
    /// Reads what is used now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let of = |controller: &str, file: [&str; 2]| -> Option<(String, Version)> {
            let (folder, version) = self.place_of(controller)?;
            let name = if version == Version::V1 { file[0] } else { file[1] };
            Some((read(folder, name)?, version))
        };
        let cpu = of("cpuacct", ["cpuacct.usage", ""]).or_else(|| of("cpu", ["cpuacct.usage", "cpu.stat"]));
        let memory = of("memory", ["memory.usage_in_bytes", "memory.current"]);
        let idle = of("memory", ["memory.stat", "memory.stat"]);
        let limit = of("memory", ["memory.limit_in_bytes", "memory.max"]);
        let blocks =
            of("blkio", ["blkio.throttle.io_service_bytes_recursive", ""]).or_else(|| of("io", ["", "io.stat"]));
        Usage {
            cpu: cpu.and_then(|(text, version)| match version {
                Version::V1 => number(&text),
                Version::V2 => Some(field(&text, "usage_usec")? * 1000),
            }),
            memory: memory.and_then(|(text, _)| number(&text)).map(|used| {
                let idle = idle.and_then(|(text, version)| match version {
                    Version::V1 => field(&text, "total_inactive_file"),
                    Version::V2 => field(&text, "inactive_file"),
                });
                used.saturating_sub(idle.unwrap_or(0))
            }),
            // Without a limit, v1 has a number near the largest and v2 a word.
            memory_limit: limit.and_then(|(text, _)| number(&text)).filter(|limit| *limit < 1 << 60),
            processes: of("pids", ["pids.current", "pids.current"]).and_then(|(text, _)| number(&text)),
            blocks: blocks.map_or((0, 0), |(text, version)| match version {
                Version::V1 => blocks_v1(&text),
                Version::V2 => blocks_v2(&text),
            }),
        }
    }
}

fn read(folder: &Path, name: &str) -> Option<String> {
    if name.is_empty() { None } else { fs::read_to_string(folder.join(name)).ok() }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `name value` on a line of its own.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| number(line.strip_prefix(name)?.strip_prefix(' ')?))
}

/// `8:0 Read 4096`, one line for each device and direction.
fn blocks_v1(text: &str) -> (u64, u64) {
    let sum = |direction: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(' ')?.1.strip_prefix(direction));
        lines.filter_map(number).sum()
    };
    (sum("Read"), sum("Write"))
}

/// `8:0 rbytes=4096 wbytes=0 ...`, one line for each device.
fn blocks_v2(text: &str) -> (u64, u64) {
    let sum = |name: &str| text.split_whitespace().filter_map(|word| number(word.strip_prefix(name)?)).sum();
    (sum("rbytes="), sum("wbytes="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_both_versions_are_read() {
        assert_eq!(blocks_v1("8:0 Read 4096\n8:0 Write 512\n8:16 Read 4\nTotal 4612\n"), (4100, 512));
        assert_eq!(blocks_v2("8:0 rbytes=4096 wbytes=1 rios=1\n8:16 rbytes=4 wbytes=2\n"), (4100, 3));
        assert_eq!(field("usage_usec 12\nuser_usec 3\n", "usage_usec"), Some(12));
        assert_eq!(field("usage_usec_x 12\n", "usage_usec"), None);
        assert_eq!(number("max\n"), None);
    }
}
