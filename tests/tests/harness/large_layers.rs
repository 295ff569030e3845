//! Layers of very many entries take no more memory than others.

use std::fs;
use std::io::{BufWriter, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use strata_tests::image::layer::{LayerWriter, Meta};
use strata_tests::strata::{Strata, finish};
use strata_tests::tier::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("large_layers::unprivileged_memory_does_not_grow_with_entries", &[], memory);
    suite.add("large_layers::privileged_a_merge_that_finds_no_room_says_so", &[], no_room);
}

/// How many entries, if `STRATA_LARGE_LAYER` does not say otherwise. In memory they would be too many.
const ENTRIES: u64 = 300_000;
/// What a command may take, in KiB.
const MOST: u64 = 64 << 10;

fn memory() -> Result<()> {
    let entries = std::env::var("STRATA_LARGE_LAYER").ok().and_then(|text| text.parse().ok()).unwrap_or(ENTRIES);
    let strata = Strata::new()?;
    let peak = import(&strata, entries, Names::Scattered)?;
    ensure!(peak <= MOST, "an import of {entries} entries took {peak} KiB, more than {MOST}");
    let mut check = strata.command(["fsck"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let peak = watch(&mut check)?;
    ensure!(check.wait()?.success(), "what was imported is not whole");
    ensure!(peak <= MOST, "a check of {entries} entries took {peak} KiB, more than {MOST}");
    for merged in merged_indexes(&strata)? {
        fs::remove_file(merged)?;
    }
    let mut create = strata.command(["create", "large:1", "true"]).stdout(Stdio::null()).spawn()?;
    let peak = watch(&mut create)?;
    ensure!(create.wait()?.success(), "create failed");
    ensure!(peak <= MOST, "an index of {entries} entries made anew took {peak} KiB, more than {MOST}");

    // Nothing was lost on the way.
    let shown = strata.ok(["image", "inspect", "--format", "{{.Size}}", "large:1"])?;
    let expected = (0..entries).filter(|number| number % 10 != 0).map(size).sum::<u64>();
    ensure!(shown.trim() == expected.to_string(), "{shown} bytes instead of {expected}");
    Ok(())
}

/// Imports a layer of so many entries as `large:1`; returns the most memory that it took, in KiB.
fn import(strata: &Strata, entries: u64, names: Names) -> Result<u64> {
    let mut import = strata.command(["import", "-", "large:1"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let input = import.stdin.take().context("no standard input")?;
    let (peak, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || write_layer(input, entries, names));
        let peak = watch(&mut import);
        (peak, writer.join())
    });
    ensure!(import.wait()?.success(), "import failed");
    written.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    peak
}

fn merged_indexes(strata: &Strata) -> Result<Vec<std::path::PathBuf>> {
    let stacks = fs::read_dir(strata.state().join("images"))?.collect::<Result<Vec<_>, _>>()?;
    Ok(stacks.into_iter().map(|stack| stack.path().join("index")).filter(|path| path.exists()).collect())
}

/// Waits for the end of a command and returns the most memory that it ever had, in KiB, with what its program itself takes.
fn watch(child: &mut Child) -> Result<u64> {
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        // The command runs below `timeout`.
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
        for pid in children.split_whitespace() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
            };
            // The kernel keeps the highest mark, so that nothing is missed between two looks but the last moment.
            peak = peak.max(field("VmHWM:"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    ensure!(peak > 0, "the command was not seen at all");
    Ok(peak)
}

/// Merging needs temporary files here. Too few descriptors or too little space are named, and nothing is left behind.
fn no_room() -> Result<()> {
    let strata = Strata::new()?;
    // Just too many, and in the order that costs least.
    import(&strata, 180_000, Names::InOrder)?;
    let forget = || merged_indexes(&strata)?.into_iter().try_for_each(|path| anyhow::Ok(fs::remove_file(path)?));
    let left = || -> Result<usize> { Ok(fs::read_dir(strata.state().join("tmp"))?.count()) };
    forget()?;
    let mut refused = 0;
    for limit in [8, 12, 16, 20, 24] {
        let limited = strata.command(["create", "--name", "made", "large:1", "true"]);
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        command.args(["-c", &script, "sh"]).arg(limited.get_program()).args(limited.get_args());
        let finished = finish(command.current_dir(strata.folder()))?;
        if finished.code() == 0 {
            strata.ok(["rm", "made"])?;
            forget()?;
            continue;
        }
        ensure!(finished.stderr.to_lowercase().contains("too many open files"), "with {limit}: {finished}");
        ensure!(left()? == 0, "with {limit} descriptors something is left: {finished}");
        refused += 1;
    }
    ensure!(refused > 0, "all went well with eight descriptors");
    let folder = strata.state().join("tmp");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &folder, "tmpfs", flags, Some(c"size=2m"))?;
    let full = strata.run(["create", "large:1", "true"]);
    let remains = left();
    rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::empty())?;
    let full = full?;
    ensure!(full.code() != 0 && full.stderr.contains("No space left on device"), "{full}");
    ensure!(full.stderr.contains("write temporary files in"), "it does not say what was written: {full}");
    ensure!(remains? == 0, "something is left: {full}");
    ensure!(strata.ok(["ps", "-aq"])?.is_empty(), "a container was made");
    strata.ok(["create", "large:1", "true"])?;
    strata.ok(["fsck"])?;
    Ok(())
}

/// In which order names come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    /// Half of the entries are in one folder and in no order, the others a hundred in each.
    Scattered,
    /// A hundred in each folder, one after the other.
    InOrder,
}

/// Every tenth entry is a hard link.
fn write_layer(out: impl Write, entries: u64, names: Names) -> Result<()> {
    let mut layer = LayerWriter::new(BufWriter::with_capacity(1 << 20, out));
    let meta = Meta::mode(0o644);
    for number in 0..entries {
        let name = if names == Names::Scattered && number % 2 == 0 {
            format!("all/{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        } else {
            format!("some/{}/{}/{number}", number / 100_000, number / 100 % 1000)
        };
        if number % 10 == 0 && number > 0 {
            // What was written shortly before or long ago.
            let target = if number % 20 == 0 { number - 9 } else { number / 100 * 10 + 1 };
            layer.hard_link(name, format!("some/{}/{}/{target}", target / 100_000, target / 100 % 1000), &meta)?;
        } else {
            layer.file(name, &meta, &b"content"[..usize::try_from(size(number))?])?;
        }
    }
    layer.finish()?;
    Ok(())
}

fn size(number: u64) -> u64 {
    number % 3
}
