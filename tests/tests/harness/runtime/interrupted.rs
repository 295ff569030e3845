//! Commands that are killed, and many at once: the next one finds its way, and nothing is left.
//!
//! `STRATA_RUNTIME_CYCLES` (default 20) and `STRATA_RUNTIME_AT_ONCE` (default 10) make the long run of it.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use strata_tests::processes::has_ended;
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime, wait_for};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::privileged_a_killed_create_leaves_nothing_in_the_way", needs, killed_create);
    suite.add("runtime::privileged_a_create_killed_in_a_hook_is_removed", needs, killed_in_a_hook);
    suite.add("runtime::privileged_a_killed_start_is_seen_as_it_is", needs, killed_start);
    suite.add("runtime::privileged_a_killed_delete_is_finished", needs, killed_delete);
    suite.add("runtime::privileged_cycles_leave_nothing", needs, cycles);
    suite.add("runtime::privileged_many_at_once", needs, many_at_once);
}

fn spawn(bench: &Bench, words: &[&str]) -> Result<Child> {
    Ok(bench.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Kills the runtime below `timeout`, which passes nothing on when it is killed itself.
fn kill(mut command: Child) -> Result<()> {
    let children = format!("/proc/{0}/task/{0}/children", command.id());
    let children = fs::read_to_string(children).unwrap_or_default();
    for pid in children.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    command.wait()?;
    Ok(())
}

/// Whatever the moment was: the container is whole, or the name can be used again. What is said to be created starts.
fn killed_create() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    for step in 0..25_u64 {
        let id = bench.id();
        let command = spawn(&bench, &["create", &id])?;
        std::thread::sleep(Duration::from_micros(step * step * 40));
        kill(command)?;
        let state = bench.run(&["state", &id])?;
        let record = fs::read_to_string(bench.state_folder().join(&id).join("state.json")).unwrap_or_default();
        if state.stdout.contains("\"status\": \"created\"") {
            bench.ok(&["start", &id])?;
        } else if record.contains("\"complete\":true") {
            // Killed between the record and the word to its process, it has left a container that has ended.
            ensure!(state.stdout.contains("\"status\": \"stopped\""), "step {step}: {state}");
            bench.fails(&["create", &id], &["already exists"])?;
            bench.ok(&["delete", &id])?;
            bench.ok(&["run", "--detach", &id])?;
        } else {
            bench.ok(&["run", "--detach", &id])?;
        }
        bench.ok(&["delete", "--force", &id])?;
        ensure!(!bench.cgroup("pids")?.exists(), "step {step}: a cgroup is left");
    }
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}

fn killed_in_a_hook() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    for point in ["createRuntime", "createContainer"] {
        let marker = bench.file("marker");
        fs::remove_file(&marker).ok();
        let script = format!("touch {}; exec sleep 5", marker.display());
        let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }]);
        bench.configure(|spec| spec["hooks"] = json!({ point: hook }))?;
        let id = bench.id();
        let command = spawn(&bench, &["create", &id])?;
        wait_for(|| Ok(marker.exists().then_some(())))?;
        let during = bench.state(&id)?;
        ensure!(during["status"] == "creating", "{during}");
        let pid = during["pid"].clone();
        kill(command)?;
        bench.becomes(&id, "stopped")?;
        bench.ok(&["delete", &id])?;
        ensure!(has_ended(&pid.to_string()), "{pid} lives");
        ensure!(!bench.cgroup("pids")?.exists() && bench.left().is_empty(), "{:?}", bench.left());
    }
    Ok(())
}

fn killed_start() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    for step in 0..15_u64 {
        let id = bench.id();
        bench.ok(&["create", &id])?;
        let command = spawn(&bench, &["start", &id])?;
        std::thread::sleep(Duration::from_micros(step * 300));
        kill(command)?;
        let pid = bench.state(&id)?["pid"].clone();
        let status = wait_for(|| {
            // Told to go on, the process does so without the command.
            let status = bench.status(&id)?;
            let program = fs::read_to_string(format!("/proc/{pid}/cmdline"))?.starts_with("sleep");
            Ok((program == (status == "running")).then_some(status))
        })?;
        if status == "created" {
            bench.ok(&["start", &id])?;
        }
        bench.fails(&["start", &id], &["already running"])?;
        bench.ok(&["delete", "--force", &id])?;
    }
    Ok(())
}

fn killed_delete() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    for step in 0..15_u64 {
        let id = bench.id();
        bench.ok(&["run", "--detach", &id])?;
        let command = spawn(&bench, &["delete", "--force", &id])?;
        std::thread::sleep(Duration::from_micros(step * 400));
        kill(command)?;
        bench.ok(&["delete", "--force", &id])?;
        bench.fails(&["state", &id], &["does not exist"])?;
        ensure!(!bench.cgroup("pids")?.exists(), "step {step}: a cgroup is left");
    }
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}

fn from_environment(name: &str, ordinary: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(ordinary)
}

/// Mounts of this namespace, and groups of the tests'.
fn remains(bench: &Bench) -> Result<(usize, bool)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let own = bench.bundle();
    let own = own.to_string_lossy();
    Ok((mounts.lines().filter(|line| line.contains(&*own)).count(), bench.cgroup("pids")?.exists()))
}

fn cycles() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    let id = bench.id();
    for cycle in 0..from_environment("STRATA_RUNTIME_CYCLES", 20) {
        bench.ok(&["create", &id])?;
        bench.ok(&["start", &id])?;
        bench.ok(&["kill", &id, "KILL"])?;
        bench.becomes(&id, "stopped")?;
        bench.ok(&["delete", &id])?;
        ensure!(remains(&bench)? == (0, false) && bench.left().is_empty(), "after {cycle} cycles: {:?}", bench.left());
    }
    Ok(())
}

fn many_at_once() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    // Each in a cgroup of its own.
    bench.configure(|spec| {
        spec["linux"]["cgroupsPath"] = json!("");
        spec["process"]["args"] = json!(["true"]);
    })?;
    let ids: Vec<String> = (0..from_environment("STRATA_RUNTIME_AT_ONCE", 10)).map(|_| bench.id()).collect();
    let running: Vec<Child> = ids.iter().map(|id| spawn(&bench, &["run", id])).collect::<Result<_>>()?;
    for mut child in running {
        let status = child.wait()?;
        ensure!(status.success(), "{status}");
    }
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}
