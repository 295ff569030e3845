//! Layers of very many entries take no more memory than others.

use std::io::{BufWriter, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use strata_tests::image::layer::{LayerWriter, Meta};
use strata_tests::strata::Strata;
use strata_tests::tier::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("large_layers::unprivileged_memory_does_not_grow_with_entries", &[], memory);
}

/// How many entries, if `STRATA_LARGE_LAYER` does not say otherwise. In memory they would be too many.
const ENTRIES: u64 = 300_000;
/// What a command may take, in KiB.
const MOST: u64 = 64 << 10;

fn memory() -> Result<()> {
    let entries = std::env::var("STRATA_LARGE_LAYER").ok().and_then(|text| text.parse().ok()).unwrap_or(ENTRIES);
    let strata = Strata::new()?;
    let mut import = strata.command(["import", "-", "large:1"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let input = import.stdin.take().context("no standard input")?;
    let (peak, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || write_layer(input, entries));
        let peak = watch(&mut import);
        (peak, writer.join())
    });
    ensure!(import.wait()?.success(), "import failed");
    written.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let peak = peak?;
    ensure!(peak <= MOST, "an import of {entries} entries took {peak} KiB, more than {MOST}");

    // Nothing was lost on the way.
    let shown = strata.ok(["image", "inspect", "--format", "{{.Size}}", "large:1"])?;
    let expected = (0..entries).filter(|number| number % 10 != 0).map(size).sum::<u64>();
    ensure!(shown.trim() == expected.to_string(), "{shown} bytes instead of {expected}");
    Ok(())
}

/// Waits for the end of a process and returns the most memory that it was seen with, in KiB.
fn watch(child: &mut Child) -> Result<u64> {
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(peak)
}

/// Half of the entries are in one folder and in no order, the others a hundred in each; every tenth is a hard link.
fn write_layer(out: impl Write, entries: u64) -> Result<()> {
    let mut layer = LayerWriter::new(BufWriter::with_capacity(1 << 20, out));
    let meta = Meta::mode(0o644);
    for number in 0..entries {
        let name = if number % 2 == 0 {
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
