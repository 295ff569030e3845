//! Looking into a container that runs: its processes, what it uses.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::Command;

use strata_sandbox::cgroup::Usage;

use super::LifecycleError;
use crate::container::Container;
use crate::engine::Engine;

/// The processes of a container, as `ps` of the host shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    /// The headers.
    pub titles: Vec<String>,
    /// One row for each process.
    pub rows: Vec<Vec<String>>,
}

/// What a container uses at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Nanoseconds of CPU time until now.
    pub cpu: u64,
    /// Bytes of memory, without what the kernel can drop at once.
    pub memory: u64,
    /// How many there may be; those of the machine without a limit.
    pub memory_limit: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes received and sent.
    pub network: (u64, u64),
    /// Bytes read from and written to disks.
    pub blocks: (u64, u64),
}

impl Engine {
    /// Lists the processes of a container with the options of `ps`.
    pub fn top(&self, name: &str, options: &[String]) -> Result<Processes, LifecycleError> {
        let container = self.container(name)?;
        let pids = self.processes(&container)?;
        let default = ["-ef".to_owned()];
        let options = if options.is_empty() { &default[..] } else { options };
        // The host's program, never one of the container.
        let output = Command::new("ps").args(options).env("LC_ALL", "C").output().map_err(LifecycleError::Ps)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(LifecycleError::Ps(io::Error::other(format!("ps: {text}"))));
        }
        select(&String::from_utf8_lossy(&output.stdout), &pids)
            .ok_or_else(|| LifecycleError::Ps(io::Error::other("Couldn't find PID field in ps output")))
    }

    /// Says what a container uses; nothing, if it does not run.
    pub fn statistics(&self, container: &Container) -> Result<Statistics, LifecycleError> {
        let Some(init) = container.state.init() else { return Ok(Statistics::default()) };
        let Usage { cpu, memory, memory_limit, processes: counted, blocks } =
            self.registry().cgroup(&container.config).map(|group| group.usage()).unwrap_or_default();
        let processes = match counted {
            Some(count) => count,
            None => self.processes(container)?.len() as u64,
        };
        let machine = memory_of_machine();
        Ok(Statistics {
            cpu: cpu.unwrap_or(0),
            memory: memory.unwrap_or(0),
            memory_limit: memory_limit.map_or(machine, |limit| limit.min(machine)),
            processes,
            network: network(init.pid).unwrap_or((0, 0)),
            blocks,
        })
    }

    /// The processes of a container: those in its cgroup; without one, what descends from its monitor, but for the filesystem
    /// process.
    fn processes(&self, container: &Container) -> Result<BTreeSet<i32>, LifecycleError> {
        let not_running = || LifecycleError::NotRunning(container.config.id.clone());
        let (Some(owner), Some(_)) = (container.state.owner(), container.state.init()) else {
            return Err(not_running());
        };
        let group = self.registry().cgroup(&container.config).map(|group| group.all_processes()).unwrap_or_default();
        if !group.is_empty() {
            return Ok(group.into_iter().map(u32::cast_signed).collect());
        }
        let mut found = BTreeSet::new();
        // Those of our own program are in the monitor's pid namespace, those of the container are not: with a pid namespace that is
        // shared it has a cgroup.
        let own = namespace_level(owner.pid).ok_or_else(not_running)?;
        let mut pending = children(owner.pid);
        while let Some(pid) = pending.pop() {
            if namespace_level(pid).is_some_and(|level| level > own) && found.insert(pid) {
                pending.extend(children(pid));
            }
        }
        Ok(found)
    }
}

/// How many pid namespaces a process is in.
fn namespace_level(pid: i32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(line.split_whitespace().count())
}

fn children(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found
}

/// Takes the rows of some processes out of what `ps` printed; the last column may hold spaces.
fn select(text: &str, pids: &BTreeSet<i32>) -> Option<Processes> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next()?.split_whitespace().map(str::to_owned).collect();
    let position = titles.iter().position(|title| title == "PID")?;
    let mut rows = Vec::new();
    for line in lines {
        let mut rest = line.trim_start();
        let mut row = Vec::with_capacity(titles.len());
        while row.len() + 1 < titles.len() && !rest.is_empty() {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            row.push(word.to_owned());
            rest = after.trim_start();
        }
        row.push(rest.trim_end().to_owned());
        if row.get(position).and_then(|pid| pid.parse::<i32>().ok()).is_some_and(|pid| pids.contains(&pid)) {
            rows.push(row);
        }
    }
    Some(Processes { titles, rows })
}

/// Bytes that the interfaces of a process's network, but for the loopback, received and sent.
fn network(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/dev")).ok()?;
    Some(parse_network(&text))
}

fn parse_network(text: &str) -> (u64, u64) {
    let interfaces = text.lines().filter_map(|line| line.split_once(':'));
    let counted = interfaces.filter(|(name, _)| name.trim() != "lo").map(|(_, numbers)| {
        let mut numbers = numbers.split_whitespace().map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.nth(7).unwrap_or(0))
    });
    counted.fold((0, 0), |sum, one: (u64, u64)| (sum.0 + one.0, sum.1 + one.1))
}

fn memory_of_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or(0_u64) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_their_pid_and_commands_keep_their_spaces() {
        let text = "UID          PID    PPID  C STIME TTY          TIME CMD\n\
                    root           1       0  0 01:00 ?        00:00:01 /sbin/init  splash\n\
                    root        4711       1  0 01:02 pts/0    00:00:00 sleep   1000\n";
        let found = select(text, &BTreeSet::from([4711, 12])).unwrap();
        assert_eq!(found.titles.len(), 8);
        assert_eq!(found.rows, [["root", "4711", "1", "0", "01:02", "pts/0", "00:00:00", "sleep   1000"]]);
        assert_eq!(select("USER COMMAND\nroot x\n", &BTreeSet::new()), None);
    }

    #[test]
    fn interfaces_add_up_without_the_loopback() {
        let text = "Inter-|   Receive    |  Transmit\n face |bytes packets errs\n\
                    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n\
                    eth0: 2000 3 0 0 0 0 0 0 500 4 0 0 0 0 0 0\n\
                    eth1:7 3 0 0 0 0 0 0 8 4 0 0 0 0 0 0\n";
        assert_eq!(parse_network(text), (2007, 508));
    }
}
