//! The life of a container, verb by verb.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime, each, wait_for};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::privileged_a_container_lives_and_ends", needs, || each(life));
    suite.add("runtime::privileged_what_a_status_forbids_is_refused", needs, || each(refusals));
    suite.add("runtime::privileged_nothing_runs_before_the_start", needs, || each(before_the_start));
    suite.add("runtime::privileged_what_cannot_be_executed_is_said_at_create", needs, || each(not_executable));
    suite.add("runtime::privileged_run_ends_as_its_program", needs, || each(run));
    suite.add("runtime::privileged_a_list_has_every_container", needs, || each(list));
    suite.add("runtime::privileged_errors_are_in_the_log_as_json", needs, || each(log));
    suite.add("runtime::privileged_documents_are_of_the_specs_form", needs, documents);
    suite.add("runtime::privileged_other_names_and_orders_of_options", needs, names_and_orders);
}

/// What is said of a container that is not there.
const MISSING: &[&str] = &["does not exist", "No such file or directory"];

fn life(bench: &mut Bench) -> Result<()> {
    let id = bench.id();
    let pid_file = bench.file("pid");
    bench.ok(&["create", "--pid-file", &pid_file.to_string_lossy(), "--bundle", ".", &id])?;
    let created = bench.state(&id)?;
    let pid = fs::read_to_string(&pid_file)?;
    ensure!(created["status"] == "created" && created["id"] == id.as_str(), "{created}");
    ensure!(created["pid"].as_u64() == pid.trim().parse().ok(), "{created} {pid}");
    ensure!(created["bundle"].as_str() == bench.bundle().canonicalize()?.to_str(), "{created}");
    ensure!(created["annotations"]["test.key"] == "value", "{created}");
    ensure!(created["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.0")), "{created}");

    bench.ok(&["start", &id])?;
    ensure!(bench.status(&id)? == "running");
    ensure!(fs::read_to_string(format!("/proc/{pid}/cmdline"))? == "sleep\x001000\0");
    bench.ok(&["pause", &id])?;
    ensure!(bench.status(&id)? == "paused");
    bench.ok(&["resume", &id])?;
    ensure!(bench.status(&id)? == "running");

    bench.ok(&["kill", &id, "KILL"])?;
    bench.becomes(&id, "stopped")?;
    ensure!(bench.cgroup("pids")?.exists(), "the cgroup goes with delete");
    bench.ok(&["delete", &id])?;
    bench.fails(&["state", &id], MISSING)?;
    ensure!(!bench.cgroup("pids")?.exists() && bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}

fn refusals(bench: &mut Bench) -> Result<()> {
    // crun has no rules for names.
    for bad in ["a/b", "..", "a b", ""].into_iter().filter(|_| bench.runtime != Runtime::Crun) {
        bench.fails(
            &["create", bad],
            &[
                "invalid container ID",
                "cannot be empty",
                "container id",
                "cannot create state",
                "create",
                "Usage",
                "invalid id",
            ],
        )?;
    }
    bench.fails(&["state", "missing"], MISSING)?;
    bench.fails(&["start", "missing"], MISSING)?;
    bench.fails(&["delete", "missing"], MISSING)?;
    bench.ok(&["delete", "--force", "missing"])?;
    let id = bench.id();
    bench.ok(&["create", &id])?;
    bench.fails(&["create", &id], &["already exists"])?;
    bench.fails_except(Runtime::Crun, &["resume", &id], &["not paused"])?;
    bench.ok(&["start", &id])?;
    bench.fails(&["start", &id], &["already running", "not in created state", "cannot start", "exec.fifo"])?;
    if bench.runtime == Runtime::Crun {
        return Ok(()); // refuses less, in words of its own
    }
    bench.fails(&["delete", &id], &["not stopped", "still running", "is not stopped"])?;
    bench.fails(&["kill", &id, "NOTHING"], &["unknown signal", "invalid signal"])?;
    bench.ok(&["kill", &id, "9"])?;
    bench.becomes(&id, "stopped")?;
    bench.fails(&["start", &id], &["stopped", "not in created state", "cannot start", "not running", "exec.fifo"])?;
    bench.fails(&["exec", &id, "true"], &["stopped", "not running"])?;
    // crun says nothing to this.
    bench.fails_except(Runtime::Crun, &["kill", &id, "TERM"], &["not running"])?;
    bench.ok(&["delete", &id])?;

    let id = bench.id();
    bench.ok(&["create", &id])?;
    // What was never started can go.
    bench.ok(&["delete", &id])?;
    let id = bench.id();
    bench.ok(&["create", &id])?;
    bench.ok(&["start", &id])?;
    bench.ok(&["delete", "--force", &id])?;
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}

fn before_the_start(bench: &mut Bench) -> Result<()> {
    bench.script("echo ran > /ran; sleep 1000")?;
    let id = bench.id();
    bench.ok(&["create", &id])?;
    // What is changed now has no effect any more.
    fs::write(bench.bundle().join("config.json"), "{}")?;
    let marker = bench.bundle().join("rootfs/ran");
    std::thread::sleep(std::time::Duration::from_millis(50));
    ensure!(!marker.exists(), "it ran before its start");
    bench.ok(&["start", &id])?;
    wait_for(|| Ok(marker.exists().then_some(())))?;
    bench.ok(&["delete", "--force", &id])?;
    Ok(())
}

fn not_executable(bench: &mut Bench) -> Result<()> {
    fs::write(bench.bundle().join("rootfs/tmp/text"), "no program")?;
    for (name, text) in [
        ("missing-program", "not found in $PATH"),
        ("/missing/program", "no such file or directory"),
        ("/tmp/text", "ermission denied"),
    ] {
        bench.configure(|spec| spec["process"]["args"] = json!([name]))?;
        let id = bench.id();
        let text_of_crun = text.replace("no such file", "No such file");
        bench.fails(&["create", &id], &[text, &text_of_crun])?;
        bench.fails(&["state", &id], MISSING)?;
    }
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}

fn run(bench: &mut Bench) -> Result<()> {
    bench.script("echo out; echo err >&2; exit 42")?;
    let id = bench.id();
    let finished = bench.run(&["run", &id])?;
    ensure!(finished.code() == 42 && finished.stdout == "out\n" && finished.stderr == "err\n", "{finished}");
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    bench.script("kill -9 $$")?;
    let id = bench.id();
    // The first process of a pid namespace does not die of its own signals.
    let finished = bench.run(&["run", &id])?;
    ensure!(finished.code() == 0, "{finished}");
    bench.configure(|_| {})?;
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    ensure!(bench.status(&id)? == "running");
    bench.ok(&["delete", "-f", &id])?;
    Ok(())
}

fn list(bench: &mut Bench) -> Result<()> {
    let empty = bench.ok(&["list", "--format", "json"])?;
    ensure!(matches!(empty.split_whitespace().collect::<String>().as_str(), "null" | "[]"), "{empty}");
    let (one, other) = (bench.id(), bench.id());
    bench.ok(&["create", &one])?;
    bench.configure(|_| {})?;
    bench.ok(&["run", "-d", &other])?;
    let quiet = bench.ok(&["list", "-q"])?;
    let mut expected = [one.clone(), other.clone()];
    expected.sort();
    let mut found: Vec<_> = quiet.lines().map(str::to_owned).collect();
    found.sort();
    ensure!(found == expected, "{quiet}");
    let states: Value = serde_json::from_str(&bench.ok(&["list", "-f", "json"])?)?;
    let status = |id: &str| {
        let found = states.as_array().into_iter().flatten().find(|state| state["id"] == id);
        found.map(|state| state["status"].clone())
    };
    ensure!(status(&one) == Some(json!("created")) && status(&other) == Some(json!("running")), "{states}");
    let table = bench.ok(&["list"])?;
    ensure!(table.lines().count() == 3 && table.contains("PID") && table.contains("STATUS"), "{table}");
    Ok(())
}

fn log(bench: &mut Bench) -> Result<()> {
    bench.configure(|spec| spec["process"]["args"] = json!(["missing-program"]))?;
    let path = bench.file("log.json");
    let id = bench.id();
    let path_text = path.to_string_lossy().into_owned();
    bench.fails(&["--log", &path_text, "--log-format", "json", "create", &id], &["not found"])?;
    let text = fs::read_to_string(path)?;
    let entries: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let error = entries.iter().rfind(|entry| entry["level"] == "error");
    let said = error.and_then(|entry| entry["msg"].as_str()).unwrap_or_default();
    ensure!(said.contains("not found in $PATH"), "{text}");
    Ok(())
}

fn documents() -> Result<()> {
    let bench = Bench::new(Runtime::Strata)?;
    let features: Value = serde_json::from_str(&bench.ok(&["features"])?)?;
    ensure!(features["ociVersionMin"] == "1.0.0" && features["linux"]["cgroup"]["v2"] == true, "{features}");
    fs::remove_file(bench.bundle().join("config.json"))?;
    bench.ok(&["spec"])?;
    bench.fails(&["spec"], &["exists. Remove it first"])?;
    let spec: Value = serde_json::from_slice(&fs::read(bench.bundle().join("config.json"))?)?;
    ensure!(spec["process"]["args"] == json!(["sh"]) && spec["root"]["path"] == "rootfs", "{spec}");
    bench.fails(&["checkpoint", "x"], &["not supported"])?;
    bench.fails(&["restore", "x"], &["not supported"])?;
    bench.fails(&["nonsense"], &["no such command"])?;
    Ok(())
}

fn names_and_orders() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    let called_runc = bench.file("runc");
    std::os::unix::fs::symlink(strata_tests::strata::program().unwrap_or_default(), &called_runc)?;
    let state = bench.state_folder();
    let call = |words: &[&str]| -> Result<()> {
        let mut command = std::process::Command::new(&called_runc);
        command.arg(format!("-root={}", state.display())).args(["--systemd-cgroup=false", "--rootless", "auto"]);
        let finished = strata_tests::strata::finish(command.args(words))?;
        ensure!(finished.status.success(), "{finished}");
        Ok(())
    };
    let id = bench.id();
    let bundle = bench.bundle();
    let bundle = bundle.to_string_lossy();
    call(&["create", &id, "-b", &bundle])?;
    call(&["start", &id])?;
    call(&["kill", "--all=true", &id, "SIGKILL"])?;
    bench.becomes(&id, "stopped")?;
    call(&["delete", &id, "-force"])?;
    call(&["--version"])?;
    Ok(())
}
