//! Containers without a daemon: what lives on when commands end, and what is true when something was killed.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use strata_tests::image::busybox::REFERENCE;
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
    suite.add("lifecycle::privileged_exec", needs, || exec(User::Caller));
    suite.add("lifecycle::rootless_exec", needs, || exec(User::Plain));
    suite.add("lifecycle::privileged_exec_has_the_container_s_walls", needs, exec_walls);
    suite.add("lifecycle::privileged_looked_into", &[Need::Fuse, Need::Busybox, Need::Program("ps")], looked_into);
    suite.add("lifecycle::privileged_recovered", needs, recovered);
    suite.add("lifecycle::privileged_terminals", &[Need::Fuse, Need::Busybox, Need::Program("script")], terminals);
    suite.add("lifecycle::privileged_processes_that_end_at_once", needs, at_once);
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: not within half a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn status(strata: &Strata, name: &str) -> Result<String> {
    let format = "{{.State.Status}} {{.State.ExitCode}}";
    Ok(strata.ok(["inspect", "--format", format, name])?.trim().to_owned())
}

/// Processes of a container's record: the monitor, and the first process.
pub(crate) fn processes(strata: &Strata, name: &str) -> Result<[Pid; 2]> {
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
pub(crate) fn child_called(parent: Pid, name: &str) -> Result<Pid> {
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
    // Killed early enough, there is not even the folder.
    let inside = |folder: &std::path::Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let left: Vec<_> = inside(&folder).map(|entry| entry.file_name()).filter(|name| name != "names").collect();
    ensure!(left.is_empty(), "left below containers/: {left:?}");
    ensure!(inside(&folder.join("names")).next().is_none(), "names stay");
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
    let strata = Strata::with_busybox(user)?;
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
    let strata = Strata::with_busybox(user)?;
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
    let strata = Strata::with_busybox(User::Caller)?;
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
    // Of a restart and a stop that comes before its end, the stop is obeyed.
    let script = "trap 'echo asked' USR1; echo ready; while :; do sleep 0.05; done";
    strata.ok(["run", "-d", "--name", "cc", "--stop-signal", "SIGUSR1", REFERENCE, "sh", "-c", script])?;
    ready("cc")?;
    let mut restart = strata.command(["restart", "-t", "-1", "cc"]).stdout(Stdio::null()).spawn()?;
    until("the restart has begun", || Ok(strata.ok(["logs", "cc"])? == "ready\nasked\n"))?;
    strata.ok(["stop", "-t", "0", "cc"])?;
    ensure!(restart.wait()?.success(), "restart");
    ensure!(status(&strata, "cc")? == "exited 137");
    strata.ok(["rm", "aa", "bb", "cc"])?;
    ensure_nothing_left(&strata)
}

fn logs() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
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
    let strata = Strata::with_busybox(User::Caller)?;
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
    let strata = Strata::with_busybox(User::Caller)?;
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
    let strata = Strata::with_busybox(User::Caller)?;
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
    let strata = Strata::with_busybox(user)?;
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
    let strata = Strata::with_busybox(User::Caller)?;
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
    let rounds: u32 = std::env::var("STRATA_TEST_STARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let strata = Strata::with_busybox(User::Caller)?;
    strata.ok(["run", "-d", "--name", "host", REFERENCE, "sleep", "10000"])?;
    let [monitor, _] = processes(&strata, "host")?;
    let descriptors =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", monitor.as_raw_nonzero()))?.count()) };
    let before = descriptors()?;
    for round in 0..rounds {
        let word = format!("word {round}");
        let out = strata.ok(["run", "--rm", REFERENCE, "echo", &word])?;
        ensure!(out == format!("{word}\n"), "round {round}: {out:?}");
        let out = strata.ok(["exec", "host", "echo", &word])?;
        ensure!(out == format!("{word}\n"), "exec in round {round}: {out:?}");
        let code = i32::try_from(round % 256)?;
        strata.exits(code, ["exec", "host", "sh", "-c", &format!("exit {code}")])?;
    }
    // The monitor reaped all of them, and holds nothing of them.
    let children = children_of(monitor.as_raw_nonzero().get().unsigned_abs())?.len();
    ensure!(children == 2, "the monitor has {children} children, not two");
    ensure!(descriptors()? <= before + 1, "the monitor had {before} descriptors and has {}", descriptors()?);
    strata.ok(["rm", "-f", "host"])?;
    ensure_nothing_left(&strata)
}

fn exec(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let refused = strata.exits(1, ["exec", "ee", "true"])?;
    ensure!(refused.stderr.contains("No such container: ee"), "{refused}");
    strata.ok(["run", "-d", "--name", "ee", "-e", "FROM=run", "-w", "/tmp", REFERENCE, "sleep", "10000"])?;
    ensure!(
        strata.ok(["exec", "ee", "sh", "-c", "echo $FROM $FROM_IMAGE $PWD $HOME; id -u; echo $$ > /tmp/pid"])?
            == "run yes /tmp /root\n0\n"
    );
    ensure!(
        strata.ok(["exec", "-w", "/etc", "-e", "FROM=exec", "ee", "sh", "-c", "pwd; echo $FROM"])? == "/etc\nexec\n"
    );
    ensure!(
        strata.ok(["exec", "ee", "sh", "-c", "hostname; cat /proc/1/comm"])?
            == strata.ok(["exec", "ee", "sh", "-c", "hostname; echo sleep"])?
    );
    let who = strata.ok(["exec", "-u", "plain", "ee", "id"])?;
    ensure!(who == "uid=1000(plain) gid=1000(plain) groups=2000(extra)\n", "{who}");
    let who = strata.ok(["exec", "-u", "1000:2000", "ee", "id"])?;
    ensure!(who.starts_with("uid=1000(plain) gid=2000(extra)"), "{who}");
    let both = strata.exits(3, ["exec", "ee", "sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure!(both.stdout == "out\n" && both.stderr == "err\n", "{both}");
    strata.exits(137, ["exec", "ee", "sh", "-c", "kill -9 $$"])?;
    for (code, text, command) in [
        (127, "executable file not found in $PATH", vec!["nope"]),
        (127, "no such file or directory", vec!["/nope"]),
        (126, "permission denied", vec!["/home/not-executable"]),
    ] {
        let failed = strata.exits(code, ["exec", "ee"].into_iter().chain(command))?;
        ensure!(failed.stderr.contains("OCI runtime exec failed") && failed.stderr.contains(text), "{failed}");
    }
    let failed = strata.exits(126, ["exec", "-u", "nobody-here", "ee", "true"])?;
    ensure!(failed.stderr.contains("no matching entries in passwd file"), "{failed}");
    let failed = strata.exits(126, ["exec", "-w", "/not/there", "ee", "true"])?;
    let expected = "OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd \
                    (\"/not/there\") set in config.json failed: no such file or directory: unknown";
    ensure!(failed.stderr == format!("strata: {expected}\n"), "{failed}");
    let input = strata.folder().join("input");
    let sent: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    fs::write(&input, &sent)?;
    let back = strata.run_with_input(["exec", "-i", "ee", "cat"], fs::File::open(&input)?)?;
    ensure!(back.stdout == sent, "{} of {} bytes came back", back.stdout.len(), sent.len());
    let none = strata.run_with_input(["exec", "ee", "cat"], fs::File::open(&input)?)?;
    ensure!(none.stdout.is_empty() && none.code() == 0, "{none}");
    strata.ok(["exec", "-d", "ee", "sh", "-c", "echo made > /tmp/made"])?;
    until("it runs in the background", || Ok(strata.run(["exec", "ee", "cat", "/tmp/made"])?.stdout == "made\n"))?;
    // A command that ends leaves what it started running, and does not wait for it.
    let before = Instant::now();
    strata.ok(["exec", "ee", "sh", "-c", "sleep 1000 & echo $! > /tmp/sleeper"])?;
    ensure!(before.elapsed() < Duration::from_secs(100), "exec waited for a process in the background");
    strata.ok(["exec", "ee", "sh", "-c", "kill -0 $(cat /tmp/sleeper)"])?;
    // Nor one that goes on writing where it wrote.
    let endless = ["exec", "ee", "sh", "-c", "yes & yes & yes &"];
    ensure!(strata.command(endless).stdout(Stdio::null()).status()?.success(), "exec waits for what it started");
    // The end of the container is the end of all.
    let mut child = strata.command(["exec", "ee", "sleep", "1000"]).spawn()?;
    until("it runs", || Ok(strata.ok(["exec", "ee", "ps"])?.matches("sleep 1000").count() >= 2))?;
    strata.ok(["kill", "ee"])?;
    let ended = child.wait()?;
    ensure!(ended.code() == Some(137), "{ended}");
    let refused = strata.exits(1, ["exec", "ee", "true"])?;
    ensure!(refused.stderr.contains(" is not running"), "{refused}");
    strata.ok(["rm", "ee"])?;
    ensure_nothing_left(&strata)
}

/// An added process has what the first one has: capabilities, filter, cgroups, namespaces, limits.
fn exec_walls() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let look = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; cat /proc/self/cgroup; ulimit -n; \
                for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; \
                mount -t tmpfs x /mnt 2>/dev/null && echo mounted; touch /x 2>/dev/null && echo written; true";
    for options in [
        &[][..],
        &["--cap-drop", "ALL", "--cap-add", "CHOWN"],
        &["--security-opt", "no-new-privileges"],
        &["--security-opt", "seccomp=unconfined"],
        &["--security-opt", "hardened"],
        &["--privileged"],
        &["--read-only", "--tmpfs", "/tmp"],
        &["--userns", "auto"],
        &["--user", "1000", "--group-add", "2000"],
        &["--ulimit", "nofile=100:200"],
        &["--memory", "64m", "--pids-limit", "50"],
    ] {
        let mut line = vec!["run", "-d", "--name", "ee"];
        line.extend(options);
        let script = format!("({look}) > /tmp/first; touch /tmp/done; sleep 10000");
        line.extend([REFERENCE, "sh", "-c", &script]);
        strata.ok(line)?;
        until("the first process has looked", || {
            Ok(strata.run(["exec", "ee", "test", "-e", "/tmp/done"])?.status.success())
        })?;
        let first = strata.ok(["exec", "ee", "cat", "/tmp/first"])?;
        let added = strata.ok(["exec", "ee", "sh", "-c", look])?;
        ensure!(first == added && first.contains("CapEff"), "{options:?}\n--- first\n{first}--- added\n{added}");
        strata.ok(["rm", "-f", "ee"])?;
    }
    strata.ok(["run", "-d", "--name", "ee", REFERENCE, "sleep", "10000"])?;
    let all = strata.ok(["exec", "--privileged", "ee", "grep", "-E", "Seccomp:", "/proc/self/status"])?;
    ensure!(all == "Seccomp:\t0\n", "{all}");
    strata.ok(["pause", "ee"])?;
    let refused = strata.exits(1, ["exec", "ee", "true"])?;
    ensure!(refused.stderr.contains("is paused, unpause the container before exec"), "{refused}");
    strata.ok(["rm", "-f", "ee"])?;
    ensure_nothing_left(&strata)
}

/// Runs a command line below `script`, which gives it a terminal, types into that, and returns what it showed.
fn in_terminal(strata: &Strata, line: &str, typed: &[&str]) -> Result<(String, Option<i32>)> {
    let program = strata_tests::strata::program().context("the binary")?;
    let root = strata.state();
    let line = format!("stty rows 33 cols 77; {} --root {} {line}", program.display(), root.display());
    let log = strata.folder().join("typescript");
    // What an earlier one showed must not be taken for this one's.
    let _ = fs::remove_file(&log);
    let mut child = std::process::Command::new("script")
        .args(["-q", "-e", "-f", "-c", &line])
        .arg(&log)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut input = child.stdin.take().context("its input")?;
    for text in typed {
        // Everything typed is answered before the next thing is: nothing gets lost between the modes of the terminal.
        let shown = || fs::read(&log).unwrap_or_default();
        until("it shows something", || Ok(String::from_utf8_lossy(&shown()).matches("ready").count() > 0))?;
        std::io::Write::write_all(&mut input, text.as_bytes())?;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill()?;
                bail!("no end: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    drop(input);
    Ok((String::from_utf8_lossy(&fs::read(&log)?).into_owned(), status.code()))
}

fn terminals() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let talk = "tty; stty size; echo ready; read line; echo got $line; exit 5";
    let (shown, code) = in_terminal(&strata, &format!("run --rm -it {REFERENCE} sh -c '{talk}'"), &["words\n"])?;
    ensure!(shown.contains("33 77") && shown.contains("got words") && code == Some(5), "{code:?} {shown}");
    // The keys leave it running, and it can be come back to.
    let (shown, code) = in_terminal(&strata, &format!("run --name tt -it {REFERENCE} sh -c '{talk}'"), &["\x10\x11"])?;
    ensure!(code == Some(0) && !shown.contains("\ngot"), "{code:?} {shown}");
    ensure!(status(&strata, "tt")? == "running 0");
    let (shown, code) = in_terminal(&strata, "exec -it tt sh -c 'stty size; echo ready; read a; exit 6'", &["x\n"])?;
    ensure!(shown.contains("33 77") && code == Some(6), "{code:?} {shown}");
    let mut child = strata.command(["wait", "tt"]).stdout(Stdio::piped()).spawn()?;
    let (shown, code) =
        in_terminal(&strata, "exec -it --detach-keys a,b tt sh -c 'echo ready; read a; exit 6'", &["ab"])?;
    ensure!(code == Some(0), "{code:?} {shown}");
    strata.ok(["kill", "tt"])?;
    let mut waited = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().context("its output")?, &mut waited)?;
    ensure!(child.wait()?.success() && waited == "137\n", "{waited}");
    strata.ok(["rm", "tt"])?;
    ensure_nothing_left(&strata)
}

fn looked_into() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let busy = "sleep 4321 & while :; do :; done";
    strata.ok(["run", "-d", "--name", "busy", "--memory", "64m", REFERENCE, "sh", "-c", busy])?;
    strata.ok(["exec", "-d", "busy", "sleep", "1234"])?;
    let top = strata.ok(["top", "busy"])?;
    let (first, rest) = top.split_once('\n').context("a header")?;
    ensure!(first.starts_with("UID") && first.contains("PID") && first.ends_with("CMD"), "{top}");
    ensure!(rest.lines().count() == 3 && rest.contains("sleep 1234") && rest.contains("sleep 4321"), "{top}");
    let chosen = strata.ok(["top", "busy", "-o", "pid,args"])?;
    ensure!(chosen.starts_with("PID") && chosen.lines().count() == 4, "{chosen}");
    let refused = strata.exits(1, ["top", "busy", "-o", "args"])?;
    ensure!(refused.stderr.contains("Couldn't find PID field in ps output"), "{refused}");
    let format = "{{.Name}}|{{.CPUPerc}}|{{.MemUsage}}|{{.PIDs}}";
    let used = strata.ok(["stats", "--no-stream", "--format", format])?;
    let fields: Vec<&str> = used.trim().split('|').collect();
    let [name, cpu, memory, processes] = fields[..] else { bail!("{used}") };
    ensure!(name == "busy" && processes == "3" && memory.ends_with(" / 64MiB"), "{used}");
    ensure!(cpu.trim_end_matches('%').parse::<f64>()? > 1.0, "{used}");
    strata.ok(["rm", "-f", "busy"])?;
    let refused = strata.exits(1, ["top", "busy"])?;
    ensure!(refused.stderr.contains("No such container: busy"), "{refused}");
    ensure_nothing_left(&strata)
}

/// As after a restart of the machine: every monitor is gone.
fn recovered() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    for (name, policy) in
        [("never", "no"), ("always", "always"), ("unless", "unless-stopped"), ("stopped", "unless-stopped")]
    {
        strata.ok(["run", "-d", "--name", name, "--restart", policy, REFERENCE, "sleep", "10000"])?;
    }
    strata.ok(["stop", "-t", "0", "stopped"])?;
    for name in ["never", "always", "unless"] {
        kill_process(processes(&strata, name)?[0], Signal::KILL)?;
    }
    until("all are found dead", || Ok(strata.ok(["ps", "-q"])?.is_empty()))?;
    let started = strata.ok(["system", "recover"])?;
    let mut started: Vec<&str> = started.lines().collect();
    started.sort_unstable();
    ensure!(started == ["always", "unless"], "{started:?}");
    ensure!(status(&strata, "always")? == "running 0" && status(&strata, "never")? == "exited 137");
    strata.ok(["rm", "-f", "never", "always", "unless", "stopped"])?;
    ensure_nothing_left(&strata)
}
