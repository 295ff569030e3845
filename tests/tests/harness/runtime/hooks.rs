//! Hooks: at their points, with the state on their input, in their namespaces.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime, each};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::privileged_hooks_run_at_their_points", needs, || each(points));
    suite.add("runtime::privileged_a_failing_hook_leaves_nothing", needs, || each(failing));
    suite.add("runtime::privileged_a_hook_has_no_longer_than_its_time", needs, || each(timeouts));
    suite.add("runtime::privileged_hooks_in_the_container_are_behind_its_walls", needs, walls);
}

/// A script that appends one line to a log: its name, the state it read, and where it is.
fn write_hook(bench: &Bench, in_root: bool) -> Result<String> {
    let log = if in_root { "/log".into() } else { bench.file("log").display().to_string() };
    let script = format!(
        "#!/bin/sh\nstate=$(cat)\necho \"$1|$state|$(hostname)|$(readlink /proc/self/ns/mnt)\" >> {log}\n\
         [ \"$1\" != \"$FAIL\" ]\n"
    );
    let path = if in_root { bench.bundle().join("rootfs/hook") } else { bench.file("hook") };
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(if in_root { "/hook".into() } else { path.display().to_string() })
}

fn hooks(host: &str, inside: &str, fail: &str) -> Value {
    let hook = |path: &str, name: &str| {
        let env = [format!("FAIL={fail}"), "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        json!([{ "path": path, "args": [path, name], "env": env }])
    };
    json!({
        "prestart": hook(host, "prestart"),
        "createRuntime": hook(host, "createRuntime"),
        "createContainer": hook(host, "createContainer"),
        "startContainer": hook(inside, "startContainer"),
        "poststart": hook(host, "poststart"),
        "poststop": hook(host, "poststop"),
    })
}

/// Name, state, host name and mount namespace of each line.
fn lines(text: &str) -> Result<Vec<(String, Value, String, String)>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.split('|').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        found.push((next(), serde_json::from_str(&next())?, next(), next()));
    }
    Ok(found)
}

fn points(bench: &mut Bench) -> Result<()> {
    let (host, inside) = (write_hook(bench, false)?, write_hook(bench, true)?);
    bench.configure(|spec| spec["hooks"] = hooks(&host, &inside, ""))?;
    let id = bench.id();
    bench.ok(&["create", &id])?;
    let pid = bench.state(&id)?["pid"].clone();
    let own = fs::read_link("/proc/self/ns/mnt")?.display().to_string();
    let at_create = lines(&fs::read_to_string(bench.file("log"))?)?;
    let names: Vec<&str> = at_create.iter().map(|line| line.0.as_str()).collect();
    // runc 1.1 runs those of poststart before anything is started.
    let early = names.last() == Some(&"poststart") && bench.runtime == Runtime::Runc;
    let expected: &[&str] = &["prestart", "createRuntime", "createContainer", "poststart"];
    ensure!(names == expected[..if early { 4 } else { 3 }], "{names:?}");
    for (name, state, hostname, namespace) in at_create.iter().take(3) {
        ensure!(state["id"] == id.as_str() && state["annotations"]["test.key"] == "value", "{name}: {state}");
        ensure!(state["bundle"].as_str() == bench.bundle().to_str(), "{name}: {state}");
        let in_container = name == "createContainer";
        // The peers set the host name later.
        ensure!(in_container == (hostname == "bench") || bench.runtime != Runtime::Strata, "{name} runs on {hostname}");
        if bench.runtime == Runtime::Strata {
            ensure!(in_container != (*namespace == own), "{name} runs in {namespace}");
            ensure!(state["status"] == "creating", "{name}: {state}");
            ensure!(in_container || state["pid"] == pid, "{name}: {state}, not {pid}");
            ensure!(!in_container || state["pid"] == 1, "{name}: {state}");
        }
    }
    ensure!(!bench.bundle().join("rootfs/log").exists(), "startContainer ran at create");

    bench.ok(&["start", &id])?;
    if bench.runtime == Runtime::Crun {
        return Ok(()); // returns before those of the container have ended
    }
    let inside = lines(&fs::read_to_string(bench.bundle().join("rootfs/log"))?)?;
    ensure!(inside.len() == 1 && inside[0].0 == "startContainer" && inside[0].2 == "bench", "{inside:?}");
    let started = lines(&fs::read_to_string(bench.file("log"))?)?;
    let last = started.last().cloned().unwrap_or_default();
    ensure!(last.0 == "poststart" && last.1["pid"] == pid, "{last:?}");
    ensure!(bench.runtime != Runtime::Strata || last.1["status"] == "running", "{last:?}");

    bench.ok(&["delete", "--force", &id])?;
    let ended = lines(&fs::read_to_string(bench.file("log"))?)?;
    let last = ended.last().cloned().unwrap_or_default();
    ensure!(ended.len() == 5 && last.0 == "poststop" && last.1["status"] == "stopped", "{ended:?}");
    Ok(())
}

fn failing(bench: &mut Bench) -> Result<()> {
    let (host, inside) = (write_hook(bench, false)?, write_hook(bench, true)?);
    for fail in ["prestart", "createRuntime", "createContainer"] {
        bench.configure(|spec| spec["hooks"] = hooks(&host, &inside, fail))?;
        let id = bench.id();
        bench.fails(&["create", &id], &["hook"])?;
        bench.fails(&["state", &id], &["does not exist", "No such file or directory"])?;
        ensure!(!bench.cgroup("pids")?.exists(), "{fail} leaves a cgroup");
    }
    for fail in ["startContainer", "poststart"] {
        // crun only warns when this one fails, runc 1.1 runs it at create.
        if fail == "poststart" && bench.runtime != Runtime::Strata {
            continue;
        }
        bench.configure(|spec| spec["hooks"] = hooks(&host, &inside, fail))?;
        let id = bench.id();
        bench.ok(&["create", &id])?;
        let started = bench.run(&["start", &id])?;
        // The peers do not wait for what happens in the container.
        if bench.runtime == Runtime::Strata {
            ensure!(!started.status.success(), "{fail}: {started}");
        }
        bench.becomes(&id, "stopped")?;
        bench.ok(&["delete", &id])?;
    }
    // One that fails at the end is told and keeps nothing.
    bench.configure(|spec| spec["hooks"] = hooks(&host, &inside, "poststop"))?;
    let id = bench.id();
    bench.ok(&["create", &id])?;
    bench.ok(&["delete", "--force", &id])?;
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}

fn timeouts(bench: &mut Bench) -> Result<()> {
    let sleep = |path: &str| json!([{ "path": path, "args": ["sleep", "20"], "timeout": 1 }]);
    for point in ["createRuntime", "createContainer"] {
        bench.configure(|spec| spec["hooks"] = json!({ point: sleep("/bin/sleep") }))?;
        let id = bench.id();
        // crun 1.8 has no timeouts in the container.
        if bench.runtime == Runtime::Strata {
            bench.fails(&["create", &id], &["timed out"])?;
        }
    }
    if bench.runtime == Runtime::Strata {
        bench.configure(|spec| spec["hooks"] = json!({ "startContainer": sleep("/bin/sleep") }))?;
        let id = bench.id();
        bench.ok(&["create", &id])?;
        bench.fails(&["start", &id], &["startContainer hook #0: timed out"])?;
        bench.becomes(&id, "stopped")?;
    }
    Ok(())
}

/// A `startContainer` hook is a program of the container's: it gets no more than the container.
fn walls() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    let look = "grep -E '^(Uid|Cap|NoNewPrivs)' /proc/self/status";
    fs::create_dir(bench.bundle().join("rootfs/out"))?;
    fs::set_permissions(bench.bundle().join("rootfs/out"), fs::Permissions::from_mode(0o777))?;
    bench.configure(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", format!("{look} > /out/program; sleep 1000")]);
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        let args = ["sh", "-c", &format!("{look} > /out/hook; cat > /out/state; ls /proc/self/fd | wc -l > /out/fds")];
        spec["hooks"] = json!({ "startContainer": [{ "path": "/bin/sh", "args": args, "env": ["PATH=/bin"] }] });
    })?;
    let id = bench.id();
    bench.ok(&["create", &id])?;
    bench.ok(&["start", &id])?;
    let read = |name: &str| fs::read_to_string(bench.bundle().join("rootfs/out").join(name));
    let program = super::bundle::wait_for(|| Ok(read("program").ok().filter(|text| text.contains("NoNewPrivs"))))?;
    ensure!(read("hook")? == program, "hook:\n{}program:\n{program}", read("hook")?);
    let state: Value = serde_json::from_str(&read("state")?)?;
    ensure!(state["status"] == "created" && state["pid"] == 1, "{state}");
    // Standard streams and the listing's own.
    ensure!(read("fds")?.trim() == "4", "descriptors in the hook: {}", read("fds")?);
    Ok(())
}
