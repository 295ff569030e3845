//! Containers without a daemon: what lives on when commands end, and what is true when something was killed.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox::{self, REFERENCE};
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Busybox];
    suite.add("lifecycle::privileged_background", needs, || background(User::Caller));
    suite.add("lifecycle::rootless_background", needs, || background(User::Plain));
    suite.add("lifecycle::privileged_created_then_started", needs, || created(User::Caller));
    suite.add("lifecycle::rootless_created_then_started", needs, || created(User::Plain));
    suite.add("lifecycle::privileged_stop_takes_the_container_s_signal_and_time", needs, stop);
    suite.add("lifecycle::privileged_logs", needs, logs);
    suite.add("lifecycle::privileged_restart_policies", needs, restart_policies);
    suite.add("lifecycle::privileged_paused", needs, paused);
    suite.add("lifecycle::privileged_names", needs, names);
    suite.add("lifecycle::privileged_killed_monitor_and_filesystem", needs, || killed(User::Caller));
    suite.add("lifecycle::rootless_killed_monitor_and_filesystem", needs, || killed(User::Plain));
    suite.add("lifecycle::privileged_killed_at_every_step_of_a_start", needs, killed_start);
    suite.add("lifecycle::privileged_processes_that_end_at_once", needs, at_once);
}

fn prepared(user: User) -> Result<Strata> {
    let strata = Strata::of(user)?;
    strata.load(&busybox::folder()?.join(Form::DockerNew.file_name()))?;
    Ok(strata)
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn status(strata: &Strata, name: &str) -> Result<String> {
    let format = "{{.State.Status}} {{.State.ExitCode}}";
    Ok(strata.ok(["inspect", "--format", format, name])?.trim().to_owned())
}

/// Processes of a container's record: the monitor, and the first process.
fn processes(strata: &Strata, name: &str) -> Result<[Pid; 2]> {
    let id = strata.ok(["inspect", "--format", "{{.Id}}", name])?;
    let record = fs::read(strata.state().join("containers").join(id.trim()).join("state.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let pid = |who: &str| -> Result<Pid> {
        let number = record["state"][who]["pid"].as_i64().with_context(|| format!("{who} in {record}"))?;
        Pid::from_raw(i32::try_from(number)?).context("a process number")
    };
    Ok([pid("owner")?, pid("init")?])
}

/// The children of a process whose name is this.
fn child_called(parent: Pid, name: &str) -> Result<Pid> {
    let parent = parent.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    for child in children.split_whitespace() {
        if fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim() == name) {
            return Pid::from_raw(child.parse()?).context("a process number");
        }
    }
    bail!("no {name} among the children of {parent}: {children}")
}

/// Nothing of any container is left.
fn ensure_nothing_left(strata: &Strata) -> Result<()> {
    ensure!(strata.ok(["ps", "-aq"])?.is_empty(), "containers stay listed");
    let folder = strata.state().join("containers");
    let left: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["names"], "left below containers/: {left:?}");
    ensure!(fs::read_dir(folder.join("names"))?.next().is_none(), "names stay");
    until("processes of the root end", || Ok(holders(strata)?.is_empty()))
}

/// Processes that have something of the state folder open.
fn holders(strata: &Strata) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let descriptors = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let holds = |link: fs::DirEntry| fs::read_link(link.path()).is_ok_and(|path| path.starts_with(strata.state()));
        if descriptors.into_iter().any(holds) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

fn background(user: User) -> Result<()> {
    let strata = prepared(user)?;
    let script = "echo out; echo err >&2; trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done";
    let id = strata.ok(["run", "-d", "--name", "web", REFERENCE, "sh", "-c", script])?;
    ensure!(id.trim().len() == 64, "{id}");
    until("it writes", || Ok(strata.run(["logs", "web"])?.stderr == "err\n"))?;
    ensure!(status(&strata, "web")? == "running 0");
    ensure!(strata.ok(["ps", "-q", "--no-trunc"])? == id);
    let up = strata.ok(["ps", "--format", "{{.Names}} {{.Status}}"])?;
    ensure!(up.starts_with("web Up "), "{up}");
    ensure!(strata.ok(["stop", "web"])? == "web\n");
    ensure!(status(&strata, "web")? == "exited 3");
    ensure!(strata.ok(["wait", "web"])? == "3\n");
    let logs = strata.run(["logs", "web"])?;
    ensure!(logs.stdout == "out\nbye\n" && logs.stderr == "err\n", "{logs}");
    ensure!(strata.ok(["stop", "web"])? == "web\n", "a stopped container is no failure");
    let refused = strata.exits(1, ["kill", "web"])?;
    ensure!(refused.stderr.contains("Cannot kill container: web: Container "), "{refused}");

    ensure!(strata.ok(["start", "web"])? == "web\n");
    ensure!(strata.ok(["start", "web"])? == "web\n", "a running container is no failure");
    let refused = strata.exits(1, ["rm", "web"])?;
    ensure!(refused.stderr.contains("container is running: stop the container before removing"), "{refused}");
    ensure!(strata.ok(["kill", &id[..8]])? == format!("{}\n", &id[..8]));
    ensure!(status(&strata, "web")? == "exited 137");
    strata.ok(["restart", "web"])?;
    ensure!(status(&strata, "web")? == "running 0");
    strata.ok(["restart", "-t", "0", "web"])?;
    ensure!(status(&strata, "web")? == "running 0");
    ensure!(strata.ok(["rm", "-f", "web"])? == "web\n");

    // One that goes with its process, and one that is waited for.
    strata.ok(["run", "-d", "--rm", "--name", "gone", REFERENCE, "true"])?;
    until("it goes", || Ok(strata.ok(["ps", "-aq"])?.is_empty()))?;
    strata.ok(["run", "-d", "--rm", "--name", "later", REFERENCE, "sh", "-c", "sleep 0.3; exit 9"])?;
    ensure!(strata.ok(["wait", "later"])? == "9\n");
    ensure_nothing_left(&strata)
}

fn created(user: User) -> Result<()> {
    let strata = prepared(user)?;
    strata.ok(["create", "--name", "one", "-i", REFERENCE, "sh", "-c", "cat; echo end; exit 4"])?;
    ensure!(status(&strata, "one")? == "created 0");
    ensure!(strata.ok(["ps", "-a", "--format", "{{.Status}}"])? == "Created\n");
    let input = strata.folder().join("input");
    fs::write(&input, "typed\n")?;
    let finished = strata.run_with_input(["start", "-a", "-i", "one"], fs::File::open(input)?)?;
    ensure!(finished.stdout == "typed\nend\n" && finished.code() == 4, "{finished}");
    ensure!(strata.ok(["logs", "one"])? == "typed\nend\n");

    // A program that is not there: the container stays as it was made, and says why.
    let failed = strata.exits(127, ["run", "--name", "two", REFERENCE, "nope"])?;
    ensure!(failed.stderr.contains("executable file not found in $PATH"), "{failed}");
    ensure!(status(&strata, "two")? == "created 127");
    ensure!(strata.ok(["inspect", "--format", "{{.State.Error}}", "two"])?.contains("not found"));
    let failed = strata.exits(1, ["start", "two"])?;
    ensure!(failed.stderr.contains("failed to start containers: two"), "{failed}");
    let pruned = strata.ok(["container", "prune", "-f"])?;
    ensure!(pruned.contains("Deleted Containers:") && pruned.contains("Total reclaimed space: "), "{pruned}");
    ensure_nothing_left(&strata)
}

fn stop() -> Result<()> {
    let strata = prepared(User::Caller)?;
    let script = "trap 'exit 21' USR1; trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let ready = |name: &str| until("it is ready", || Ok(strata.ok(["logs", name])? == "ready\n"));
    strata.ok(["run", "-d", "--name", "aa", "--stop-signal", "SIGUSR1", REFERENCE, "sh", "-c", script])?;
    ready("aa")?;
    strata.ok(["stop", "aa"])?;
    ensure!(status(&strata, "aa")? == "exited 21");
    strata.ok(["run", "-d", "--name", "bb", "--stop-timeout", "1", REFERENCE, "sh", "-c", script])?;
    ready("bb")?;
    let before = Instant::now();
    strata.ok(["stop", "bb"])?;
    ensure!(before.elapsed() >= Duration::from_millis(900), "{:?}", before.elapsed());
    ensure!(status(&strata, "bb")? == "exited 137");
    strata.ok(["start", "bb"])?;
    until("it is ready", || Ok(strata.ok(["logs", "bb"])? == "ready\nready\n"))?;
    strata.ok(["stop", "-t", "-1", "-s", "USR1", "bb"])?;
    ensure!(status(&strata, "bb")? == "exited 21");
    strata.ok(["rm", "aa", "bb"])?;
    ensure_nothing_left(&strata)
}

fn logs() -> Result<()> {
    let strata = prepared(User::Caller)?;
    let script = "i=0; while [ $i -lt 30 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; printf end";
    for driver in ["local", "json-file"] {
        strata.ok(["run", "-d", "--name", driver, "--log-driver", driver, REFERENCE, "sh", "-c", script])?;
        let mut expected: String = (0..30).map(|number| format!("line {number}\n")).collect();
        expected.push_str("end");
        ensure!(strata.ok(["logs", "-f", driver])? == expected, "{driver}: following misses lines");
        ensure!(strata.ok(["logs", driver])? == expected, "{driver}");
        ensure!(strata.ok(["logs", "--tail", "2", driver])? == "line 29\nend", "{driver}");
        ensure!(strata.ok(["logs", "--tail", "0", driver])?.is_empty(), "{driver}");
        ensure!(strata.ok(["logs", "--since", "1h", driver])? == expected, "{driver}");
        ensure!(strata.ok(["logs", "--until", "1h", driver])?.is_empty(), "{driver}");
        let timed = strata.ok(["logs", "-t", "--tail", "1", driver])?;
        ensure!(timed.len() == 31 + 3 && timed.ends_with("Z end"), "{driver}: {timed}");
    }
    // However much is written, the files stay small, and what was last stays.
    let flood = "i=0; while [ $i -lt 20000 ]; do echo a line of some length, number $i; i=$((i+1)); done";
    let mut line = vec!["run", "--name", "flood", "--log-opt", "max-size=100k", "--log-opt", "max-file=3"];
    line.extend([REFERENCE, "sh", "-c", flood]);
    let shown = strata.ok(line)?;
    ensure!(shown.lines().count() == 20_000, "{} lines were shown", shown.lines().count());
    let kept = strata.ok(["logs", "flood"])?;
    ensure!(shown.ends_with(&kept) && kept.len() > 100_000, "{} bytes kept", kept.len());
    let id = strata.ok(["inspect", "--format", "{{.Id}}", "flood"])?;
    let folder = strata.state().join("containers").join(id.trim());
    let sizes: Vec<u64> = fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("container.log"))
        .map(|entry| entry.metadata().map_or(0, |metadata| metadata.len()))
        .collect();
    ensure!(sizes.len() == 3 && sizes.iter().all(|size| *size <= 100 << 10), "{sizes:?}");
    strata.ok(["run", "--name", "silent", "--log-driver", "none", REFERENCE, "echo", "x"])?;
    let refused = strata.exits(1, ["logs", "silent"])?;
    ensure!(refused.stderr.contains("configured logging driver does not support reading"), "{refused}");
    Ok(())
}

fn restart_policies() -> Result<()> {
    let strata = prepared(User::Caller)?;
    let count = |name: &str| -> Result<u32> {
        Ok(strata.ok(["inspect", "--format", "{{.RestartCount}}", name])?.trim().parse()?)
    };
    strata.ok(["run", "-d", "--name", "few", "--restart", "on-failure:2", REFERENCE, "sh", "-c", "echo x; exit 5"])?;
    until("it is given up", || Ok(status(&strata, "few")? == "exited 5"))?;
    ensure!(count("few")? == 2 && strata.ok(["logs", "few"])? == "x\nx\nx\n", "{}", count("few")?);
    strata.ok(["run", "-d", "--name", "well", "--restart", "on-failure", REFERENCE, "true"])?;
    until("it is left alone", || Ok(status(&strata, "well")? == "exited 0"))?;
    strata.ok(["run", "-d", "--name", "again", "--restart", "always", REFERENCE, "sh", "-c", "sleep 0.1; exit 6"])?;
    until("it is restarted", || Ok(count("again")? >= 2))?;
    until("it waits", || Ok(strata.ok(["ps", "--format", "{{.Status}}"])?.contains("Restarting (6) ")))?;
    let refused = strata.exits(1, ["rm", "again"])?;
    ensure!(refused.stderr.contains("stop the container before removing or force remove"), "{refused}");
    strata.ok(["stop", "again"])?;
    until("it stays stopped", || Ok(status(&strata, "again")?.starts_with("exited ")))?;
    strata.ok(["start", "again"])?;
    strata.ok(["update", "--restart", "no", "again"])?;
    until("the new policy counts", || Ok(status(&strata, "again")? == "exited 6"))?;
    strata.ok(["rm", "few", "well", "again"])?;
    ensure_nothing_left(&strata)
}

fn paused() -> Result<()> {
    let strata = prepared(User::Caller)?;
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    strata.ok(["run", "-d", "--name", "pp", REFERENCE, "sh", "-c", script])?;
    until("it writes", || Ok(!strata.ok(["logs", "pp"])?.is_empty()))?;
    ensure!(strata.ok(["pause", "pp"])? == "pp\n");
    ensure!(status(&strata, "pp")? == "paused 0");
    ensure!(strata.ok(["ps", "--format", "{{.Status}}"])?.trim().ends_with(" (Paused)"));
    let refused = strata.exits(1, ["pause", "pp"])?;
    ensure!(refused.stderr.contains("is already paused"), "{refused}");
    let refused = strata.exits(1, ["start", "pp"])?;
    ensure!(refused.stderr.contains("cannot start a paused container, try unpause instead"), "{refused}");
    let refused = strata.exits(1, ["rm", "pp"])?;
    ensure!(refused.stderr.contains("is paused and must be unpaused first"), "{refused}");
    let before = strata.ok(["logs", "pp"])?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(strata.ok(["logs", "pp"])? == before, "a paused container writes");
    strata.ok(["unpause", "pp"])?;
    until("it goes on", || Ok(strata.ok(["logs", "pp"])?.len() > before.len()))?;
    let refused = strata.exits(1, ["unpause", "pp"])?;
    ensure!(refused.stderr.contains("is not paused"), "{refused}");
    // Both ends of a paused container.
    strata.ok(["pause", "pp"])?;
    strata.ok(["stop", "-t", "1", "pp"])?;
    ensure!(status(&strata, "pp")?.starts_with("exited "));
    strata.ok(["start", "pp"])?;
    strata.ok(["pause", "pp"])?;
    strata.ok(["rm", "-f", "pp"])?;
    // And a killed monitor of one.
    strata.ok(["run", "-d", "--name", "qq", REFERENCE, "sleep", "1000"])?;
    strata.ok(["pause", "qq"])?;
    kill_process(processes(&strata, "qq")?[0], Signal::KILL)?;
    until("it is found dead", || Ok(status(&strata, "qq")? == "exited 137"))?;
    strata.ok(["rm", "qq"])?;
    ensure_nothing_left(&strata)
}

fn names() -> Result<()> {
    let strata = prepared(User::Caller)?;
    strata.ok(["create", "--name", "one", REFERENCE])?;
    let id = strata.ok(["run", "-d", "--name", "two", REFERENCE, "sleep", "1000"])?;
    let refused = strata.exits(1, ["rename", "two", "one"])?;
    ensure!(refused.stderr.contains("Conflict. The container name \"/one\" is already in use"), "{refused}");
    let refused = strata.exits(1, ["rename", "two", "two"])?;
    ensure!(refused.stderr.contains("Renaming a container with the same name as its current name"), "{refused}");
    strata.ok(["rename", "two", "three"])?;
    ensure!(strata.ok(["ps", "--format", "{{.Names}}"])? == "three\n");
    strata.exits(1, ["inspect", "two"])?;
    ensure!(strata.ok(["inspect", "--format", "{{.Name}}", &id[..10]])? == "/three\n");
    strata.ok(["update", "--memory", "64m", "--memory-swap", "-1", "three"])?;
    ensure!(strata.ok(["inspect", "--format", "{{.HostConfig.Memory}}", "three"])? == "67108864\n");
    strata.ok(["restart", "-t", "0", "three"])?;
    ensure!(strata.ok(["inspect", "--format", "{{.HostConfig.Memory}}", "three"])? == "67108864\n");
    strata.ok(["rm", "-f", "one", "three"])?;
    ensure_nothing_left(&strata)
}

fn killed(user: User) -> Result<()> {
    let strata = prepared(user)?;
    for auto_remove in [false, true] {
        for victim in ["monitor", "filesystem", "init"] {
            let mut line = vec!["run", "-d", "--name", "vv"];
            line.extend(auto_remove.then_some("--rm"));
            line.extend([REFERENCE, "sleep", "1000"]);
            strata.ok(line)?;
            let [monitor, init] = processes(&strata, "vv")?;
            let killed = match victim {
                "monitor" => monitor,
                "init" => init,
                _ => child_called(monitor, "strata-fs")?,
            };
            kill_process(killed, Signal::KILL)?;
            if auto_remove {
                until("it goes", || Ok(strata.ok(["ps", "-aq"])?.is_empty()))?;
            } else {
                until("it is found dead", || Ok(status(&strata, "vv")? == "exited 137"))?;
                strata.ok(["start", "vv"])?;
                ensure!(status(&strata, "vv")? == "running 0", "{victim}: it does not start again");
                strata.ok(["rm", "-f", "vv"])?;
            }
            ensure_nothing_left(&strata).with_context(|| format!("killed {victim}, removed {auto_remove}"))?;
        }
    }
    Ok(())
}

/// Kills command or monitor a little later each time, from before there is anything until the container runs.
fn killed_start() -> Result<()> {
    let strata = prepared(User::Caller)?;
    for round in 0..40_u32 {
        let mut child = strata
            .command(["run", "--name", "vv", REFERENCE, "sleep", "1000"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_micros(u64::from(round / 2) * 1000));
        let victims = if round % 2 == 0 { commands(&child)? } else { monitors(&child)? };
        for victim in victims {
            // It may have ended by itself.
            let _ = kill_process(victim, Signal::KILL);
        }
        if round % 2 == 0 {
            child.wait()?;
        }
        // Whatever is there now, it can be removed, and its name be used again.
        until("it can be removed", || Ok(strata.run(["rm", "-f", "vv"])?.status.success()))?;
        if round % 2 == 1 {
            // It may not have come to making the container yet.
            until("the command ends", || {
                strata.ok(["rm", "-f", "vv"])?;
                Ok(child.try_wait()?.is_some())
            })?;
        }
        strata.ok(["rm", "-f", "vv"])?;
        ensure_nothing_left(&strata).with_context(|| format!("round {round}"))?;
    }
    strata.ok(["run", "--rm", "--name", "vv", REFERENCE, "true"])?;
    Ok(())
}

/// The command below `timeout`, which may not have come to starting it.
fn commands(child: &Child) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    until("there is a command", || {
        found = children_of(child.id())?;
        Ok(!found.is_empty())
    })?;
    Ok(found)
}

fn monitors(child: &Child) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for command in commands(child)? {
        found.extend(children_of(command.as_raw_nonzero().get().unsigned_abs())?);
    }
    Ok(found)
}

fn children_of(pid: u32) -> Result<Vec<Pid>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|child| Pid::from_raw(child.parse()?).context("a process number")).collect()
}

/// `STRATA_TEST_STARTS` says how often; a hang ends the test by its time limit.
fn at_once() -> Result<()> {
    let rounds = std::env::var("STRATA_TEST_STARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let strata = prepared(User::Caller)?;
    for round in 0..rounds {
        let word = format!("word {round}");
        let out = strata.ok(["run", "--rm", REFERENCE, "echo", &word])?;
        ensure!(out == format!("{word}\n"), "round {round}: {out:?}");
    }
    ensure_nothing_left(&strata)
}
