//! What the filesystem process takes: few descriptors, memory that comes back, and no time when nothing happens.
//!
//! `STRATA_BOUNDED_FILES` says how many files there are.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use strata_tests::processes;
use strata_tests::strata::finish;
use strata_tests::tier::{Need, Suite};
use strata_tests::union::{Server, Union};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("bounded::privileged_few_descriptors_for_many_files", &[Need::Fuse], few_descriptors);
    suite.add("bounded::privileged_memory_comes_back_when_nodes_are_forgotten", &[Need::Fuse], forgotten_nodes);
    suite.add("bounded::privileged_nothing_is_kept_of_what_was_deleted", &[Need::Fuse], deleted_files);
    suite.add("bounded::privileged_no_time_passes_when_nothing_happens", &[Need::Fuse], idle);
}

fn files() -> usize {
    std::env::var("STRATA_BOUNDED_FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

/// Fills a folder with files, 100 in each subfolder.
fn fill(folder: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let below = folder.join(format!("d{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir(&below)?;
        }
        fs::write(below.join(format!("file{number}")), "x")?;
    }
    Ok(())
}

fn few_descriptors() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    fill(&union.bottom(), files())?;
    let mount = union.strata().command(["mount", "--lower", "lower0", "--upper", "upper0", "--work", "work0", "mnt"]);
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -n 1024 && exec \"$@\"", "bash"]).arg(mount.get_program()).args(mount.get_args());
    let finished = finish(command.current_dir(union.folder()))?;
    ensure!(finished.status.success(), "{finished}");
    // Read all, change some of the attributes, and keep many open meanwhile.
    let walk = "find . -type f | wc -l && find . -type f -name '*7' -exec chmod 600 {} + && \
                find . -type f -exec cat {} + | wc -c && find . -type f -perm 600 | wc -l";
    let open: Vec<fs::File> =
        (0..1500).filter_map(|number| open_one(&union.point(), number)).collect::<Result<Vec<_>>>()?;
    let output = union.shell(walk)?;
    let count = files();
    ensure!(output == format!("{count}\n{count}\n{}\n", count / 10), "{output}");
    ensure!(
        open.len() == 1500.min(count) && open.iter().all(|file| file.metadata().is_ok_and(|found| found.len() == 1))
    );
    drop(open);
    for process in servers()? {
        let used = fs::read_dir(format!("/proc/{process}/fd"))?.count();
        ensure!(used <= 1024, "{used} descriptors in process {process}");
    }
    union.unmount()
}

fn open_one(point: &Path, number: usize) -> Option<Result<fs::File>> {
    (number < files()).then(|| {
        let path = point.join(format!("d{}/file{number}", number / 100));
        // Every third for writing, which copies it up.
        let file = fs::File::options().read(true).write(number.is_multiple_of(3)).open(&path);
        file.with_context(|| format!("open {path:?}"))
    })
}

/// A remount makes the kernel forget all nodes of the mount that are not in use, and of no other.
fn forget_all(union: &Union) -> Result<()> {
    let mut command = Command::new("mount");
    command.args(["-i", "-o", "remount,rw"]).arg(union.point());
    let finished = finish(&mut command)?;
    ensure!(finished.status.success(), "{finished}");
    // It gives memory back when nothing more is forgotten.
    std::thread::sleep(Duration::from_millis(700));
    Ok(())
}

fn forgotten_nodes() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    fill(&union.bottom(), files())?;
    union.mount()?;
    let mut after = Vec::new();
    let mut walked = 0;
    for _ in 0..3 {
        union.shell("find . -ls > ../listing")?;
        walked = memory()?;
        forget_all(&union)?;
        after.push(memory()?);
    }
    let (first, last) = (after[0], after[after.len() - 1]);
    ensure!(last <= first + first / 4 + 2048, "KiB after each walk: {after:?}; {walked} before the last was forgotten");
    // The bound itself: a lower node is worth less than a KiB while it is known.
    ensure!(walked <= 60_000 + files() as u64, "{walked} KiB for {} files", files());
    union.unmount()
}

fn deleted_files() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    fs::create_dir(union.bottom().join("lower"))?;
    union.mount()?;
    let mut after = Vec::new();
    for _ in 0..4 {
        let made = union.point().join("made");
        fs::create_dir(&made)?;
        // Making files takes longer than finding them.
        fill(&made, files() / 10)?;
        fs::remove_dir_all(&made)?;
        forget_all(&union)?;
        after.push(memory()?);
    }
    let (first, last) = (after[0], after[after.len() - 1]);
    ensure!(last <= first + first / 4 + 2048, "KiB after each round: {after:?}");
    union.unmount()
}

fn idle() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    fs::write(union.bottom().join("file"), "x")?;
    union.mount()?;
    let open = fs::File::open(union.point().join("file"))?;
    fs::write(union.point().join("new"), "x")?;
    std::thread::sleep(Duration::from_millis(500));
    let before = ticks()?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let spent = ticks()? - before;
    ensure!(spent <= 1, "{spent} ticks in {:?}", started.elapsed());
    drop(open);
    union.unmount()
}

/// The processes that serve this test's mounts: all that came of it and are still there.
fn servers() -> Result<Vec<u32>> {
    let found: Vec<u32> = processes::descendants().iter().map(|found| found.process).collect();
    ensure!(!found.is_empty(), "no server is a child of this process");
    Ok(found)
}

/// Resident memory of its own, in KiB, of all servers.
fn memory() -> Result<u64> {
    let mut sum = 0;
    for process in servers()? {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        sum += line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// Time spent by all servers, in clock ticks.
fn ticks() -> Result<u64> {
    let mut sum = 0;
    for process in servers()? {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<u64> = after_name.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        sum += fields.get(11).copied().unwrap_or(0) + fields.get(12).copied().unwrap_or(0);
    }
    Ok(sum)
}
