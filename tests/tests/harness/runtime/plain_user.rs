//! The runtime as a plain user calls it, outside of any user namespace.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use strata_tests::plain_user;
use strata_tests::strata::{Finished, finish, program};
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::rootless_from_outside", needs, from_outside);
}

/// Runs a command of the runtime as the plain user.
fn run(bench: &Bench, words: &[&str]) -> Result<Finished> {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", "30"])
        .arg(bench.file("strata"))
        .arg("runtime")
        .arg("--root")
        .arg(bench.state_folder());
    command.args(words).current_dir(bench.bundle()).stdin(Stdio::null());
    plain_user::demote(&mut command);
    finish(&mut command)
}

fn ok(bench: &Bench, words: &[&str]) -> Result<String> {
    let finished = run(bench, words)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(finished.stdout)
}

fn configure(bench: &Bench, maps: &Value, change: impl FnOnce(&mut Value)) -> Result<()> {
    bench.configure(|spec| {
        spec["linux"]["namespaces"].as_array_mut().into_iter().for_each(|all| all.push(json!({ "type": "user" })));
        spec["linux"]["uidMappings"] = maps.clone();
        spec["linux"]["gidMappings"] = maps.clone();
        change(spec);
    })
}

fn from_outside() -> Result<()> {
    let bench = Bench::new(Runtime::Strata)?;
    // The build folder may be closed to others.
    fs::copy(program().unwrap_or_default(), bench.file("strata"))?;
    let owner = format!("{0}:{0}", plain_user::ID);
    let folder = bench.file("");
    if rustix::process::geteuid().is_root() {
        ensure!(Command::new("chown").args(["-R", &owner]).arg(&folder).status()?.success(), "chown");
    }
    let own = if rustix::process::geteuid().is_root() { plain_user::ID } else { rustix::process::geteuid().as_raw() };
    let maps = json!([{ "containerID": 0, "hostID": own, "size": 1 }]);

    configure(&bench, &maps, |spec| {
        spec["process"]["args"] = json!(["sh", "-c", "id -u; cat /proc/self/uid_map | wc -l; exit 5"])
    })?;
    let finished = run(&bench, &["run", "first"])?;
    ensure!(finished.code() == 5 && finished.stdout == "0\n1\n", "{finished}");

    configure(&bench, &maps, |_| {})?;
    ok(&bench, &["create", "second"])?;
    ok(&bench, &["start", "second"])?;
    let state: Value = serde_json::from_str(&ok(&bench, &["state", "second"])?)?;
    ensure!(state["status"] == "running", "{state}");
    // The second one from the same namespace as the first process.
    let namespace = ok(&bench, &["exec", "second", "readlink", "/proc/1/ns/user"])?;
    ensure!(ok(&bench, &["exec", "second", "readlink", "/proc/self/ns/user"])? == namespace, "{namespace}");
    ensure!(ok(&bench, &["exec", "second", "id", "-u"])? == "0\n");
    for (words, why) in [
        (["update", "--pids-limit", "5", "second"].as_slice(), "no cgroup whose limits"),
        (&["pause", "second"], "no cgroup that can be frozen"),
    ] {
        let refused = run(&bench, words)?;
        // Where one is delegated, there is nothing to refuse.
        ensure!(refused.status.success() || refused.stderr.contains(why), "{refused}");
    }
    ok(&bench, &["delete", "--force", "second"])?;

    let limit = |spec: &mut Value| spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 } });
    configure(&bench, &maps, limit)?;
    let refused = run(&bench, &["run", "third"])?;
    let told =
        ["memory limit", "delegated", "controller"].iter().filter(|word| refused.stderr.contains(**word)).count();
    ensure!(refused.status.success() || told >= 2, "{refused}");

    let foreign = json!([{ "containerID": 0, "hostID": 0, "size": 2 }]);
    configure(&bench, &foreign, |_| {})?;
    let refused = run(&bench, &["run", "fourth"])?;
    ensure!(refused.stderr.contains("linux.uidMappings: 2 ids from 0 are not all this user's"), "{refused}");
    bench.configure(|_| {})?;
    let refused = run(&bench, &["run", "fifth"])?;
    ensure!(refused.stderr.contains("rootless container requires user namespaces"), "{refused}");
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    Ok(())
}
