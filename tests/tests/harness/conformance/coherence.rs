//! What processes see of each other's changes to a file that was open or mapped before it was copied up.
//!
//! `coherence.py` asks, for each class of lower files: those served through the page cache of the union's node, programs
//! and large files that are passed through, and large databases that are not. What a class answers otherwise than one
//! filesystem would is listed here, as `docs/design/union.md` says.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use strata_tests::strata::finish;
use strata_tests::tier::{Need, Suite};
use strata_tests::tree::{DirectoryLinks, Listing};
use strata_tests::union::{Server, Union};

use super::{RING, mount};

pub(crate) fn register(suite: &mut Suite) {
    let needs = [Need::Fuse, Need::Program("python3")];
    suite.add("coherence::privileged_small_files", &needs, || ours("text", "passthrough=auto", &[]));
    suite.add("coherence::privileged_programs", &needs, || ours("elf", "passthrough=auto", SPLIT));
    suite.add("coherence::privileged_large_files", &needs, || ours("large", "passthrough=auto", SPLIT));
    suite.add("coherence::privileged_databases", &needs, || ours("database", "passthrough=auto", &[]));
    suite.add("coherence::privileged_programs_without_passthrough", &needs, || ours("elf", "passthrough=off", &[]));
    suite
        .add("coherence::privileged_large_files_without_passthrough", &needs, || ours("large", "passthrough=off", &[]));
    let needs = [Need::Fuse, Need::Program("python3"), Need::Uring];
    suite.add("coherence::privileged_small_files_over_io_uring", &needs, || ours("text", RING, &[]));
    suite.add("coherence::privileged_programs_over_io_uring", &needs, || ours("elf", RING, SPLIT));
    suite.add("coherence::privileged_databases_over_io_uring", &needs, || ours("database", RING, &[]));
    let needs = [Need::Server(Server::Overlayfs), Need::Program("python3")];
    suite.add("coherence::privileged_overlayfs_for_comparison", &needs, overlayfs);
}

/// What readers of a passed-through lower file lose when a writer comes: they stay on the old file.
const SPLIT: &[(&str, &str)] = &[
    ("flocks_meet", "granted twice"),
    ("flocks_survive_copy_up", "granted twice"),
    ("ofd_locks_meet", "granted twice"),
    ("old_descriptor_reads_new_data", "old data"),
    ("old_mapping_shows_new_data", "old data"),
    ("path_is_reopened_for_writing_beside_reader", "ETXTBSY"),
    ("posix_locks_meet", "granted twice"),
    ("reader_is_reopened_for_writing", "ETXTBSY"),
    ("tail_sees_what_is_appended", "nothing"),
    ("watch_of_the_file_fires", "nothing"),
];

fn ours(class: &str, options: &str, exceptions: &[(&str, &str)]) -> Result<()> {
    ask(&Union::new(Server::Strata)?.with_options(options), class, exceptions)
}

fn overlayfs() -> Result<()> {
    ask(&Union::new(Server::Overlayfs)?, "text", &[("old_mapping_shows_new_data", "old data")])
}

fn ask(union: &Union, class: &str, exceptions: &[(&str, &str)]) -> Result<()> {
    python(union, &["prepare", "lower0", class])?;
    let before = Listing::of(&union.bottom(), DirectoryLinks::Reported)?;
    mount(union)?;
    let answers = python(union, &["check", "mnt", class])?;
    ensure!(answers.len() > 40, "only {} checks: {answers:?}", answers.len());
    let otherwise: BTreeMap<&str, &str> = answers
        .iter()
        .filter(|(_, answer)| *answer != "ok")
        .map(|(check, answer)| (check.as_str(), answer.as_str()))
        .collect();
    let expected: BTreeMap<&str, &str> = exceptions.iter().copied().collect();
    ensure!(otherwise == expected, "{class}: these answers are not \"ok\": {otherwise:#?}, expected {expected:#?}");
    let seconds = std::env::var("STRATA_STORM_SECONDS").unwrap_or_else(|_| "2".to_owned());
    let storm = python(union, &["storm", "mnt", class, &seconds])?;
    ensure!(storm.get("storm").is_some_and(|answer| answer == "ok"), "{storm:?}");
    union.unmount()?;
    before.expect_same(&Listing::of(&union.bottom(), DirectoryLinks::Reported)?).context("the lower has changed")
}

/// Runs the script; returns the answers that it prints.
fn python(union: &Union, arguments: &[&str]) -> Result<BTreeMap<String, String>> {
    let script = union.folder().join("coherence.py");
    fs::write(&script, include_str!("coherence.py"))?;
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120", "python3"]).arg(&script).args(arguments);
    let finished = finish(command.current_dir(union.folder()))?;
    ensure!(finished.status.success(), "{finished}");
    if finished.stdout.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(&finished.stdout).with_context(|| finished.to_string())
}
