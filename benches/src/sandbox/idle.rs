//! Containers that do nothing: what of ours stays with each, and whether commands still answer when there are many.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;

use crate::report::{Report, millis, row};
use crate::walk::run;

/// Starts `count` containers and prints the table.
pub fn figures(strata: &Path, work: &Path, count: usize, report: &mut Report) -> Result<()> {
    let root = work.join("idle");
    let engine = Engine { strata, root: &root };
    run(engine.command(&["load", "-i"]).arg(busybox::folder()?.join(Form::DockerNew.file_name())))?;
    let before = available()?;
    let started = Instant::now();
    let kept =
        (0..count).try_for_each(|_| engine.output(&["run", "-d", busybox::REFERENCE, "sleep", "1000000"]).map(drop));
    let start = started.elapsed();
    let measured = kept.and_then(|()| engine.look(count, before));
    let removed = engine.remove_all();
    let (processes, shared, look, sizes) = measured?;
    let remove = removed?;
    fs::remove_dir_all(&root)?;

    report.say(format!(
        "{count} containers of `sleep`, started one after the other: {} ms each; `ps` {} ms, `inspect` of all {} ms,\n\
         `rm -f` of all {} ms each; the machine has {shared:.2} MiB less for each, with what is the kernel's and `sleep`'s",
        millis(start / u32::try_from(count)?),
        millis(look[0]),
        millis(look[1]),
        millis(remove / u32::try_from(count)?),
    ));
    let mut rows = vec![row(["MiB for each container", "processes", "RSS", "PSS", "private"])];
    for (name, size) in &sizes {
        rows.push(size.row(name, count, processes[name]));
    }
    let total = sizes.values().fold(Size::default(), |sum, size| sum.plus(*size));
    rows.push(total.row("all of ours", count, processes.values().sum()));
    report.table(&rows);
    Ok(())
}

struct Engine<'a> {
    strata: &'a Path,
    root: &'a Path,
}

type Looked = (BTreeMap<String, usize>, f64, [Duration; 2], BTreeMap<String, Size>);

impl Engine<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.strata);
        command.arg("--root").arg(self.root).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Adds up the processes that stand behind the containers: the parent of each first process, and all of the
    /// parent's children but that.
    fn look(&self, count: usize, before: u64) -> Result<Looked> {
        let used = before.saturating_sub(available()?) as f64 / 1024.0 / count as f64;
        let started = Instant::now();
        let ids = self.output(&["ps", "-q", "--no-trunc"])?;
        let listed = started.elapsed();
        let ids: Vec<&str> = ids.lines().collect();
        ensure!(ids.len() == count, "{} of {count} containers run", ids.len());
        let mut inspect = vec!["inspect", "--format", "{{.State.Pid}}"];
        inspect.extend(ids);
        let started = Instant::now();
        let firsts = self.output(&inspect)?;
        let inspected = started.elapsed();

        let (mut processes, mut sizes) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, Size>::new());
        let children = children()?;
        for first in firsts.lines() {
            let first: u32 = first.trim().parse()?;
            let mut waiting = vec![parent(first)?];
            let mut depth = 0;
            while !waiting.is_empty() {
                let mut next = Vec::new();
                for pid in waiting {
                    let name = ["monitor", "fs keeper", "fs worker"].get(depth).copied().unwrap_or("other").to_owned();
                    let entry = sizes.entry(name.clone()).or_default();
                    *entry = entry.plus(Size::of(pid)?);
                    *processes.entry(name).or_default() += 1;
                    next.extend(children.get(&pid).into_iter().flatten().filter(|pid| **pid != first));
                }
                waiting = next;
                depth += 1;
            }
        }
        Ok((processes, used, [listed, inspected], sizes))
    }

    fn remove_all(&self) -> Result<Duration> {
        let ids = self.output(&["ps", "-aq"])?;
        let mut remove = vec!["rm", "-f"];
        remove.extend(ids.lines());
        let started = Instant::now();
        if remove.len() > 2 {
            self.output(&remove)?;
        }
        Ok(started.elapsed())
    }
}

/// KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    resident: u64,
    proportional: u64,
    private: u64,
}

impl Size {
    fn of(pid: u32) -> Result<Size> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        let private = field("Private_Clean:")? + field("Private_Dirty:")?;
        Ok(Size { resident: field("Rss:")?, proportional: field("Pss:")?, private })
    }

    fn plus(self, other: Size) -> Size {
        Size {
            resident: self.resident + other.resident,
            proportional: self.proportional + other.proportional,
            private: self.private + other.private,
        }
    }

    fn row(self, name: &str, count: usize, processes: usize) -> Vec<String> {
        let each = |size: u64| format!("{:.2}", size as f64 / 1024.0 / count as f64);
        let processes = format!("{:.1}", processes as f64 / count as f64);
        row([name, &processes, &each(self.resident), &each(self.proportional), &each(self.private)])
    }
}

/// What the kernel could give to new programs, in KiB.
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn parent(pid: u32) -> Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("a process's line has its name in parentheses")?.1;
    Ok(after_name.split_whitespace().nth(1).context("a parent")?.parse()?)
}

/// The children of every process.
fn children() -> Result<BTreeMap<u32, Vec<u32>>> {
    let mut found = BTreeMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // What has ended meanwhile is nobody's child.
        if let Ok(parent) = parent(pid) {
            found.entry(parent).or_default().push(pid);
        }
    }
    Ok(found)
}
