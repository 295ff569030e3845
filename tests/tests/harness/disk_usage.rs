//! What `system df` says is what `du` says, and what the prune commands free is what it promised.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let run = &[Need::Fuse, Need::Busybox];
    suite.add("disk_usage::privileged_sums_are_those_of_du", run, || sums(User::Caller));
    suite.add("disk_usage::rootless_sums_are_those_of_du", run, || sums(User::Plain));
    suite.add("disk_usage::unprivileged_prune_removes_what_is_unused", &[Need::Busybox], prune);
    suite.add("disk_usage::privileged_an_emptied_root_is_small", run, emptied);
}

/// The bytes that the program `du` counts.
fn du(folder: &Path) -> Result<u64> {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(folder).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).with_context(|| format!("du: {text:?}"))
}

/// Reads a size as it is shown, `1.23MB`.
fn bytes(text: &str) -> Result<f64> {
    let digits = text.find(|letter: char| letter.is_ascii_alphabetic()).context("a size has a unit")?;
    let factor = match &text[digits..] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => anyhow::bail!("unit {other}"),
    };
    Ok(text[..digits].parse::<f64>()? * factor)
}

/// The sum of a column of all lines.
fn sum(rows: &Value, field: &str) -> Result<f64> {
    let rows = rows.as_array().context("a list")?;
    rows.iter().map(|row| bytes(row[field].as_str().context("a size")?)).sum()
}

fn near(what: &str, sum: f64, du: u64) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "a hundredth is asked for")]
    let du = du as f64;
    ensure!((sum - du).abs() <= du / 100.0, "{what}: {sum} and du says {du}");
    Ok(())
}

fn sums(user: User) -> Result<()> {
    let strata = Strata::of(user)?;
    strata.load(&busybox::folder()?.join(Form::OciGzip.file_name()))?;
    let image = busybox::REFERENCE;
    let script = "dd if=/dev/zero of=/data bs=1M count=5; ln /data /again; truncate -s 1G /sparse; mkdir -p /a/b/c";
    strata.ok(["run", "--name", "one", image, "sh", "-c", script])?;
    strata.ok(["commit", "one", "made:1"])?;
    strata.ok(["run", "--rm", "made:1", "true"])?;
    strata.ok(["create", "--name", "two", image])?;
    // A download that was cut off.
    let downloads = strata.state().join("downloads");
    let parts = downloads.join("0".repeat(64));
    std::fs::create_dir_all(&parts)?;
    std::fs::write(parts.join("0"), [1; 100_000])?;
    if user == User::Plain {
        [&downloads, &parts, &parts.join("0")].into_iter().try_for_each(|path| plain_user::own(path))?;
    }

    let summary = strata.ok(["system", "df", "--format", "{{.Size}}"])?;
    let total: f64 = summary.lines().map(bytes).sum::<Result<f64>>()?;
    near("system df", total, du(&strata.state())?)?;

    let verbose: Value = serde_json::from_str(&strata.ok(["system", "df", "-v", "--format", "json"])?)?;
    let images = sum(&verbose["Images"], "UniqueSize")?;
    let all = images + sum(&verbose["Containers"], "Size")? + sum(&verbose["Others"], "Size")?;
    near("system df -v", all, du(&strata.state())?)?;

    let counts = strata.ok(["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"])?;
    ensure!(counts == "Images 2 1\nContainers 2 0\nLocal Volumes 0 0\nBuild Cache 0 0\n", "{counts}");

    // What is promised is freed.
    strata.ok(["rm", "one", "two"])?;
    let promised = strata.ok(["system", "df", "--format", "{{.Reclaimable}}"])?;
    let promised: f64 =
        promised.lines().map(|line| bytes(line.split(' ').next().unwrap_or(""))).sum::<Result<f64>>()?;
    let before = du(&strata.state())?;
    let out = strata.ok(["system", "prune", "-a", "-f"])?;
    let freed = before - du(&strata.state())?;
    near("reclaimable", promised, freed)?;
    let said =
        out.lines().last().and_then(|line| line.strip_prefix("Total reclaimed space: ")).context("a last line")?;
    near("reclaimed", bytes(said)?, freed)
}

fn prune() -> Result<()> {
    let strata = Strata::new()?;
    let archive = busybox::folder()?.join(Form::DockerNew.file_name());
    let archive = archive.to_str().context("a path in UTF-8")?;
    strata.ok(["import", "-c", "LABEL keep=yes", archive, "kept:1"])?;
    strata.ok(["load", "-q", "-i", archive])?;
    ensure!(strata.ok(["image", "prune", "-f"])? == "Total reclaimed space: 0B\n");
    // A name that moves leaves an image without one.
    let old = strata.ok(["images", "-q", "kept:1"])?;
    strata.ok(["tag", busybox::REFERENCE, "kept:1"])?;
    ensure!(strata.ok(["image", "prune", "-f", "--filter", "label!=keep"])? == "Total reclaimed space: 0B\n");
    ensure!(strata.ok(["image", "prune", "-f", "--filter", "until=1h"])? == "Total reclaimed space: 0B\n");
    let refused = strata.ok(["image", "prune"])?;
    ensure!(refused.ends_with("[y/N] "), "without an answer nothing is done: {refused}");
    let out = strata.ok(["image", "prune", "-f", "--filter", "label=keep=yes"])?;
    ensure!(out.starts_with(&format!("Deleted Images:\ndeleted: sha256:{}", old.trim())), "{out}");
    ensure!(strata.ok(["images", "-q"])?.lines().count() == 2);
    let out = strata.ok(["image", "prune", "-a", "-f"])?;
    ensure!(
        out.contains("untagged: kept:1\n") && out.contains(&format!("untagged: {}\n", busybox::REFERENCE)),
        "{out}"
    );
    ensure!(strata.ok(["images", "-q"])?.is_empty());
    Ok(())
}

fn emptied() -> Result<()> {
    let strata = Strata::new()?;
    for form in [Form::DockerNew, Form::OciGzip] {
        strata.load(&busybox::folder()?.join(form.file_name()))?;
    }
    let image = busybox::REFERENCE;
    strata.ok(["run", "--name", "one", image, "dd", "if=/dev/zero", "of=/data", "bs=1M", "count=3"])?;
    strata.ok(["commit", "one", "made:1"])?;
    strata.ok(["rm", "one"])?;
    strata.ok(["rmi", "made:1", image])?;
    let left = du(&strata.state())?;
    ensure!(left < 1 << 20, "{left} bytes are left: {:#?}", strata.state_listing()?);
    Ok(())
}
