//! Commands that are killed leave a store that works, and nothing behind.

use std::fs::{self, File};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use strata_tests::image::archive::Form;
use strata_tests::image::{busybox, debian};
use strata_tests::strata::{Strata, User, mounts_below};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("interrupted::unprivileged_killed_load_changes_nothing", &[Need::Busybox, Need::Debian], killed_load);
    let run = &[Need::Fuse, Need::Busybox];
    suite.add("interrupted::privileged_killed_run_can_be_removed", run, || killed_run(User::Caller));
    suite.add("interrupted::rootless_killed_run_can_be_removed", run, || killed_run(User::Plain));
    suite.add("interrupted::privileged_killed_server_ends_its_mount", run, killed_server);
}

/// Kills the command itself, which runs below `timeout`.
fn kill_command(child: &mut Child) -> Result<()> {
    let task = format!("/proc/{0}/task/{0}/children", child.id());
    let mut children = fs::read_to_string(&task)?;
    // It may not have come to starting it.
    while children.is_empty() && child.try_wait()?.is_none() {
        children = fs::read_to_string(&task)?;
    }
    for pid in children.split_whitespace() {
        let pid = Pid::from_raw(pid.parse()?).context("a process number")?;
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
    child.wait()?;
    Ok(())
}

fn killed_load() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let before = strata.state_listing()?;
    let folder = debian::kept().context("the Debian image")?;
    let archives = [Form::DockerNew, Form::OciGzip, Form::OciZstd, Form::DockerOld];
    let mut interrupted = 0;
    for (round, form) in archives.iter().cycle().take(12).enumerate() {
        let archive = folder.join(form.file_name());
        let mut child =
            strata.command(["load"]).stdin(File::open(&archive)?).stdout(std::process::Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(20 + 45 * u64::try_from(round)?));
        kill_command(&mut child)?;
        let images = strata.ok(["images", "-q"])?;
        if images.lines().count() == 1 {
            interrupted += 1;
            let after = strata.state_listing()?;
            ensure!(
                after == before,
                "round {round}: left behind {:#?}",
                after.keys().filter(|path| !before.contains_key(*path)).collect::<Vec<_>>()
            );
        } else {
            strata.ok(["rmi", debian::REFERENCE])?;
        }
    }
    ensure!(interrupted > 0, "no load was slow enough to be killed");
    strata.load(&folder.join(Form::OciZstd.file_name()))?;
    strata.ok(["rmi", debian::REFERENCE])?;
    ensure!(strata.state_listing()? == before, "removing the image leaves something");
    Ok(())
}

fn killed_run(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let marker = strata.make_folder("shared")?;
    let volume = format!("{}:/shared", marker.display());
    for round in 0..6_u64 {
        let script = "touch /shared/started /in-upper; sleep 100";
        let mut child =
            strata.start(["run", "--name", "victim", "-v", &volume, busybox::REFERENCE, "sh", "-c", script])?;
        if round % 2 == 0 {
            wait_for(&marker.join("started"), &strata)?;
            fs::remove_file(marker.join("started"))?;
        } else {
            std::thread::sleep(Duration::from_millis(3 * round));
        }
        kill_command(&mut child)?;
        // Killed early enough, there is no container at all.
        if !strata.ok(["ps", "-a", "-q"])?.is_empty() {
            strata.ok(["rm", "-f", "victim"])?;
        }
        ensure!(strata.ok(["ps", "-a", "-q"])?.is_empty(), "the container stays listed");
        let _ = fs::remove_file(marker.join("started"));
    }
    ensure!(mounts_below(strata.folder()).is_empty(), "{:?}", mounts_below(strata.folder()));
    strata.ok(["run", "--rm", busybox::REFERENCE, "true"])?;
    let containers = fs::read_dir(strata.state().join("containers")).into_iter().flatten().count();
    ensure!(containers <= 1, "{containers} folders left below containers/");
    Ok(())
}

fn wait_for(path: &Path, strata: &Strata) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        let log = || fs::read_to_string(strata.folder().join("started.log")).unwrap_or_default();
        ensure!(Instant::now() < deadline, "{path:?} does not appear\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn killed_server() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let point = strata.make_folder("point")?;
    let point_text = point.to_string_lossy().into_owned();
    strata.ok(["mount", busybox::REFERENCE, &point_text])?;
    let mut servers = servers_of(&strata)?;
    ensure!(servers.len() == 2, "a keeper and a worker expected: {servers:?}");
    servers.sort_by_key(|pid| !has_children(*pid));
    for _ in 0..3 {
        for worker in servers_of(&strata)?.into_iter().filter(|pid| *pid != servers[0]) {
            kill_process(worker, Signal::KILL)?;
        }
        ensure!(fs::read_to_string(point.join("etc/motd"))? == "hello from a layer\n", "the next worker");
    }
    kill_process(servers[0], Signal::KILL)?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(fs::read_dir(&point).is_err(), "the mount of a dead keeper answers");
    strata.ok(["umount", &point_text])?;
    strata.ok(["mount", busybox::REFERENCE, &point_text])?;
    ensure!(fs::read_to_string(point.join("etc/motd"))? == "hello from a layer\n");
    strata.ok(["umount", &point_text])?;
    Ok(())
}

fn has_children(pid: Pid) -> bool {
    let pid = pid.as_raw_nonzero();
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).is_ok_and(|children| !children.is_empty())
}

/// The processes that have something of the state folder open, other than this one.
fn servers_of(strata: &Strata) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else { continue };
        let holds = |link: std::io::Result<fs::DirEntry>| -> bool {
            link.and_then(|link| fs::read_link(link.path())).is_ok_and(|target| target.starts_with(strata.state()))
        };
        let Ok(descriptors) = fs::read_dir(path.join("fd")) else { continue };
        if number != rustix::process::getpid().as_raw_nonzero().get() && descriptors.into_iter().any(holds) {
            found.extend(Pid::from_raw(number));
        }
    }
    Ok(found)
}
