//! The processes that serve mounts, killed while containers and commands need them.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};
use strata_tests::image::busybox::REFERENCE;
use strata_tests::processes::has_ended;
use strata_tests::random::Random;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

use crate::lifecycle::{child_called, processes, until};
use crate::uring::EnabledUring;

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Busybox];
    let with_uring = &[Need::Fuse, Need::Busybox, Need::Uring];
    suite.add("servers::privileged_container_over_io_uring_under_load", with_uring, container_over_io_uring);
    suite.add("servers::privileged_started_early_and_killed_before_the_mount", needs, killed_early);
}

/// What two clients do in a container until they are told to stop; any failure ends it with 1.
const LOAD: &str = r#"
clients=
for client in 1 2; do
    (
        mkdir /load$client
        cd /load$client
        round=0
        while [ ! -e /stop ]; do
            round=$((round + 1))
            echo $round > a
            mkdir d
            mv a d/b
            ln d/b c
            [ "$(cat c)" = $round ]
            echo more >> c
            [ "$(wc -l < d/b)" = 2 ]
            chmod 600 /etc/passwd
            [ "$(cat /etc/motd)" = "hello from a layer" ]
            rm c d/b
            rmdir d
            [ -z "$(ls)" ]
        done
        echo $round > /rounds$client
    ) &
    clients="$clients $!"
done
for client in $clients; do wait $client; done
"#;

/// The server of a container's root, over an io_uring, is killed again and again; the container does not notice.
fn container_over_io_uring() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    {
        let _enabled = EnabledUring::new();
        strata.ok(["run", "-d", "--name", "busy", REFERENCE, "sh", "-euc", LOAD])?;
    }
    let [monitor, _] = processes(&strata, "busy")?;
    let keeper = child_called(monitor, "strata-fs")?;
    let mut chance = Random::new(u64::from(std::process::id()));
    let (mut kills, mut over_io_uring) = (0, false);
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(30 + chance.below(60)));
        let Ok(worker) = child_called(keeper, "strata-fs") else { continue };
        over_io_uring |= names_of_threads(worker).iter().any(|name| name == "fuse-forget");
        kills += u32::from(kill_process(worker, Signal::KILL).is_ok());
    }
    strata.ok(["exec", "busy", "touch", "/stop"])?;
    let code = strata.ok(["wait", "busy"])?;
    ensure!(code.trim() == "0", "it ended with {code}: {}", strata.ok(["logs", "busy"])?);
    ensure!(kills > 10 && over_io_uring, "only {kills} kills, over io_uring: {over_io_uring}");
    let copied = strata.folder().join("rounds");
    for client in 1..=2 {
        strata.ok(["cp", &format!("busy:/rounds{client}"), &copied.to_string_lossy()])?;
        let rounds: u32 = fs::read_to_string(&copied)?.trim().parse()?;
        ensure!(rounds > 10, "client {client} has done {rounds} rounds beside {kills} kills");
    }
    strata.ok(["rm", "busy"]).map(drop)
}

/// The process that `mount` starts for its mount before it knows more is gone when it is needed.
fn killed_early() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let point = strata.make_folder("point")?;
    // Whoever mounts needs this for a moment, between the one and the other.
    let lock = fs::File::open(strata.state().join("refs/lock"))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let arguments = ["mount".as_ref(), REFERENCE.as_ref(), point.as_os_str()];
    let mut command = strata.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // It is `timeout` that was started.
    let limit = Pid::from_raw(i32::try_from(command.id())?).context("a process number")?;
    let server = || child_called(limit, "strata").and_then(|mount| child_called(mount, "strata-fs"));
    until("its server is there", || Ok(server().is_ok()))?;
    let server = server()?;
    kill_process(server, Signal::KILL)?;
    until("its server has ended", || Ok(has_ended(&server.as_raw_nonzero().to_string())))?;
    rustix::fs::flock(&lock, FlockOperation::Unlock)?;
    let status = command.wait()?;
    let mut said = String::new();
    if let Some(mut errors) = command.stderr.take() {
        std::io::Read::read_to_string(&mut errors, &mut said)?;
    }
    ensure!(status.success(), "{status}: {said}");
    ensure!(fs::read_to_string(point.join("etc/motd"))? == "hello from a layer\n");
    strata.ok(["umount", &point.to_string_lossy()]).map(drop)
}

fn names_of_threads(process: Pid) -> Vec<String> {
    let folder = format!("/proc/{}/task", process.as_raw_nonzero());
    let tasks = fs::read_dir(Path::new(&folder)).into_iter().flatten().flatten();
    tasks.filter_map(|task| Some(fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned())).collect()
}
