//! The processes that came of this one.

use std::fs;

/// A process and the one that it is a child of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descendant {
    /// Its number.
    process: u32,
    /// Its parent's.
    parent: u32,
}

/// All processes that this one has started, directly or through others, and that are still there.
fn descendants() -> Vec<Descendant> {
    let mut found = Vec::new();
    let mut pending = vec![std::process::id()];
    while let Some(parent) = pending.pop() {
        for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for process in children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()) {
                found.push(Descendant { process, parent });
                pending.push(process);
            }
        }
    }
    found
}

/// The servers of mounts that a keeper starts again when they are killed: a keeper is a child of this process once the
/// command that mounted has ended, and its only child is the server.
pub fn workers() -> Vec<u32> {
    let all = descendants();
    let line = |process: u32| fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let is_server = |process: u32| line(process).starts_with(b"strata\0fs\0");
    let keepers = all.iter().filter(|found| found.parent == std::process::id() && is_server(found.process));
    let kept = keepers.flat_map(|keeper| all.iter().filter(move |found| found.parent == keeper.process));
    kept.map(|found| found.process).collect()
}

/// Whether a process is gone, or a zombie that nobody has reaped yet.
pub fn has_ended(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}
