//! Limits and what is told of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime, each};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::privileged_limits_are_changed", needs, || each(update));
    suite.add("runtime::privileged_statistics_are_runcs", needs, || each(statistics));
    suite.add("runtime::privileged_running_out_of_memory_is_told", needs, out_of_memory);
}

fn limited(spec: &mut Value) {
    spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
}

fn update(bench: &mut Bench) -> Result<()> {
    bench.configure(limited)?;
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    let (memory, pids) = (bench.cgroup("memory")?, bench.cgroup("pids")?);
    let (memory, pids) = (memory.join("memory.limit_in_bytes"), pids.join("pids.max"));
    if !memory.exists() {
        return Ok(()); // version 2; its form is tested below the harness
    }
    ensure!(fs::read_to_string(&memory)?.trim() == (64 << 20).to_string());
    // crun has no units.
    let memory_limit = if bench.runtime == Runtime::Crun { "33554432" } else { "32M" };
    bench.ok(&["update", "--memory", memory_limit, "--pids-limit", "40", &id])?;
    ensure!(fs::read_to_string(&memory)?.trim() == (32 << 20).to_string());
    ensure!(fs::read_to_string(&pids)?.trim() == "40");
    let file = bench.file("resources.json");
    fs::write(&file, r#"{"memory":{"limit":50331648},"pids":{"limit":30}}"#)?;
    bench.ok(&["update", "--resources", &file.to_string_lossy(), &id])?;
    ensure!(fs::read_to_string(&memory)?.trim() == "50331648" && fs::read_to_string(&pids)?.trim() == "30");
    let mut command = bench.command(&["update", "-r", "-", &id]);
    let finished = strata_tests::strata::finish(command.stdin(fs::File::open(&file)?))?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

fn statistics(bench: &mut Bench) -> Result<()> {
    if bench.runtime == Runtime::Crun {
        return Ok(()); // has no such verb
    }
    bench.configure(limited)?;
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    let told: Value = serde_json::from_str(&bench.ok(&["events", "--stats", &id])?)?;
    ensure!(told["type"] == "stats" && told["id"] == id.as_str(), "{told}");
    let data = &told["data"];
    ensure!(data["memory"]["usage"]["limit"] == 64 << 20 && data["memory"]["usage"]["usage"].is_u64(), "{data}");
    ensure!(data["pids"] == json!({ "current": 1, "limit": 50 }), "{data}");
    ensure!(data["cpu"]["usage"]["total"].as_u64().is_some_and(|total| total > 0), "{data}");
    ensure!(data["memory"]["raw"]["total_rss"].is_u64() || data["memory"]["raw"]["anon"].is_u64(), "{data}");
    Ok(())
}

fn out_of_memory() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    bench.configure(|spec| {
        limited(spec);
        spec["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
        spec["process"]["args"] = json!(["sh", "-c", "sleep 0.5; tail /dev/zero; sleep 1"]);
    })?;
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    let mut watching = bench.command(&["events", "--interval", "200ms", &id]).stdout(Stdio::piped()).spawn()?;
    let mut kinds = Vec::new();
    for line in BufReader::new(watching.stdout.take().context("a pipe")?).lines() {
        let event: Value = serde_json::from_str(&line?)?;
        kinds.push(event["type"].as_str().unwrap_or_default().to_owned());
    }
    ensure!(watching.wait()?.success(), "it ends with the container");
    ensure!(kinds.iter().any(|kind| kind == "oom") && kinds.iter().any(|kind| kind == "stats"), "{kinds:?}");
    Ok(())
}
