//! Times commands, with the CPU time and peak memory of the process and of what it waited for.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// What a command took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// From start to exit.
    pub wall: Duration,
    /// User and system time of the process and its waited children.
    pub cpu: Duration,
    /// The largest resident set of any of them, in KiB.
    pub peak: i64,
}

/// The median of each number by itself.
pub fn median(costs: &[Cost]) -> Cost {
    fn middle<T: Copy + Ord>(costs: &[Cost], of: impl Fn(&Cost) -> T) -> Option<T> {
        let mut values: Vec<T> = costs.iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    }
    Cost {
        wall: middle(costs, |cost| cost.wall).unwrap_or_default(),
        cpu: middle(costs, |cost| cost.cpu).unwrap_or_default(),
        peak: middle(costs, |cost| cost.peak).unwrap_or_default(),
    }
}

/// The median of durations.
pub fn median_time(times: &[Duration]) -> Duration {
    let costs: Vec<Cost> = times.iter().map(|&wall| Cost { wall, ..Cost::default() }).collect();
    median(&costs).wall
}

/// Runs a command to its end and measures it; it must succeed.
///
/// The kernel tells a process only the largest peak of *all* its children, so each command gets a parent of its own: this
/// program, called with [`WRAP`].
pub fn time(command: &Command) -> Result<Cost> {
    let report = tempfile::NamedTempFile::new()?;
    let mut wrapped = Command::new(std::env::current_exe()?);
    wrapped.arg(WRAP).arg(report.path()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    let output = wrapped.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{:?}: {}\n{}{}",
        command,
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    read(report.path())
}

/// Reads what the timer wrote.
pub fn read(report: &Path) -> Result<Cost> {
    let text = std::fs::read_to_string(report)?;
    let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(numbers.len() == 3, "{text:?}");
    Ok(Cost {
        wall: Duration::from_micros(numbers[0]),
        cpu: Duration::from_micros(numbers[1]),
        peak: i64::try_from(numbers[2])?,
    })
}

/// The first argument that makes this program a timer of one command.
pub const WRAP: &str = "--time-one-command";

/// What the timer does: runs the command, writes its cost to a file, ends with its exit code.
pub fn wrap(report: &Path, mut command: impl Iterator<Item = OsString>) -> Result<i32> {
    let program = command.next().context("a command to time")?;
    let mut child = Command::new(program);
    // With ids to set, the child is forked and has hardly any memory; else it would share ours until its exec, and that counts
    // as its peak.
    child.args(command).gid(rustix::process::getegid().as_raw());
    let started = Instant::now();
    let status = child.status().with_context(|| format!("{child:?}"))?;
    let wall = started.elapsed();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    let cpu = micros(usage.user_time()) + micros(usage.system_time());
    std::fs::write(report, format!("{} {cpu} {}", wall.as_micros(), usage.max_rss()))?;
    Ok(status.code().unwrap_or(255))
}

/// CPU time so far of a running process and of the children it waited for.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("a process's line has its name in parentheses")?.1;
    let ticks = after_name.split_whitespace().skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Peak resident set of a running process in KiB.
pub fn peak_of(pid: u32) -> Result<i64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
