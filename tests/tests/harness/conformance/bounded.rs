//! What the filesystem process takes: few descriptors, memory that comes back, and no time when nothing happens.
//!
//! `STRATA_BOUNDED_FILES` says how many files there are.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use strata_tests::strata::finish;
use strata_tests::tier::{Need, Suite};
use strata_tests::union::{Server, Union};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("bounded::privileged_few_descriptors_for_many_files", &[Need::Fuse], few_descriptors);
    suite.add("bounded::privileged_memory_comes_back_when_nodes_are_forgotten", &[Need::Fuse], forgotten_nodes);
    suite.add("bounded::privileged_nothing_is_kept_of_what_was_deleted", &[Need::Fuse], deleted_files);
    suite.add("bounded::privileged_one_large_folder", &[Need::Fuse], one_large_folder);
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
    for process in union.server_and_keeper()? {
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
    Ok(())
}

/// Waits until the server has given back so much that it has no more than `most` KiB. It does so when no more nodes are being
/// forgotten, which takes as long as the machine wants.
fn comes_back(union: &Union, most: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let now = memory(union)?;
        if now <= most {
            return Ok(());
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "{now} KiB are left {PATIENCE:?} after the nodes were forgotten, not {most}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What may be left of what was known at most: the directories of the nodes that were forgotten last, and what is in pieces.
fn left_of(known: u64) -> u64 {
    4 * 1024 + known / 4
}

fn forgotten_nodes() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    fill(&union.bottom(), files())?;
    union.mount()?;
    let mounted = memory(&union)?;
    for _ in 0..3 {
        union.shell("find . -ls > ../listing")?;
        let walked = memory(&union)?;
        // The bound itself: a lower node is worth less than a KiB while it is known.
        ensure!(walked <= 16 * 1024 + files() as u64, "{walked} KiB for {} files", files());
        forget_all(&union)?;
        comes_back(&union, mounted + left_of(walked))?;
    }
    union.unmount()
}

fn deleted_files() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    fs::create_dir(union.bottom().join("lower"))?;
    union.mount()?;
    let mounted = memory(&union)?;
    for _ in 0..4 {
        let made = union.point().join("made");
        fs::create_dir(&made)?;
        // Making files takes longer than finding them.
        fill(&made, files() / 10)?;
        let known = memory(&union)?;
        fs::remove_dir_all(&made)?;
        forget_all(&union)?;
        comes_back(&union, mounted + left_of(known))?;
    }
    union.unmount()
}

/// As many names as there are to be files, half of them in the lower, in one folder.
fn one_large_folder() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    let half = files() / 2;
    let fill = |folder: &Path, numbers: std::ops::Range<usize>| -> Result<()> {
        fs::create_dir_all(folder)?;
        for number in numbers {
            fs::File::create_new(folder.join(format!("file{number}")))?;
        }
        Ok(())
    };
    fill(&union.bottom().join("large"), 0..half)?;
    union.mount()?;
    let mounted = memory(&union)?;
    let large = union.point().join("large");
    fill(&large, half..2 * half)?;
    let listed = || -> Result<usize> { Ok(fs::read_dir(&large)?.collect::<Result<Vec<_>, _>>()?.len()) };
    ensure!(listed()? == 2 * half, "{} of {} names are listed", listed()?, 2 * half);
    let known = memory(&union)?;
    ensure!(known <= 16 * 1024 + files() as u64 * 5 / 4, "{known} KiB for a folder of {} names", files());
    forget_all(&union)?;
    comes_back(&union, mounted + left_of(known))?;
    fs::remove_dir_all(&large)?;
    ensure!(!large.exists(), "it was deleted");
    fs::create_dir(&large)?;
    ensure!(listed()? == 0, "{} names have come back", listed()?);
    forget_all(&union)?;
    comes_back(&union, mounted + left_of(known))?;
    union.remount()?;
    ensure!(listed()? == 0, "{} names have come back with a new mount", listed()?);
    union.unmount()
}

fn idle() -> Result<()> {
    let union = Union::new(Server::Strata)?;
    fs::write(union.bottom().join("file"), "x")?;
    union.mount()?;
    let open = fs::File::open(union.point().join("file"))?;
    fs::write(union.point().join("new"), "x")?;
    std::thread::sleep(Duration::from_millis(500));
    let before = ticks(&union)?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let spent = ticks(&union)? - before;
    ensure!(spent <= 1, "{spent} ticks in {:?}", started.elapsed());
    drop(open);
    union.unmount()
}

/// Memory of its own that the server has, in KiB, and what it shares with the next.
fn memory(union: &Union) -> Result<u64> {
    let [server, _] = union.server_and_keeper()?;
    let status = fs::read_to_string(format!("/proc/{server}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name} in {status}"))?.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(field("RssAnon:")? + field("RssShmem:")?)
}

/// Time spent for a mount, in clock ticks.
fn ticks(union: &Union) -> Result<u64> {
    let mut sum = 0;
    for process in union.server_and_keeper()? {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<u64> = after_name.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        sum += fields.get(11).copied().unwrap_or(0) + fields.get(12).copied().unwrap_or(0);
    }
    Ok(sum)
}

/// How long a server may take to give memory back, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(120);
