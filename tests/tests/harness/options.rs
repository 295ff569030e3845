//! Options of `run` and `create`: devices, names, limits, namespaces.

use std::fs;

use anyhow::{Result, ensure};
use strata_tests::image::busybox::{REFERENCE, shell};
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

use crate::lifecycle::until;

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Busybox];
    suite.add("options::privileged_names", needs, || names(User::Caller));
    suite.add("options::rootless_names", needs, || names(User::Plain));
    suite.add("options::privileged_namespaces", needs, || namespaces(User::Caller));
    suite.add("options::rootless_namespaces", needs, || namespaces(User::Plain));
    suite.add("options::privileged_namespaces_of_other_users", needs, other_users);
    suite.add("options::rootless_devices", needs, device_of_plain_user);
    suite.add("options::privileged_devices", needs, devices);
    suite.add("options::privileged_limits", needs, limits);
}

/// The command ends with this code and says this.
fn refused(strata: &Strata, command: &[&str], code: i32, why: &str) -> Result<()> {
    let refused = strata.exits(code, command)?;
    ensure!(refused.stderr.contains(why), "{refused}");
    Ok(())
}

fn names(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let options = ["--add-host", "db:10.0.0.1", "--add-host=six=[::1]", "--dns", "9.9.9.9", "--dns-search", "a.b"];
    let text = strata.ok(shell(
        &[&options[..], &["--dns-opt", "ndots:3", "--domainname", "site", "--hostname", "web"]].concat(),
        "tail -2 /etc/hosts; cat /etc/resolv.conf /proc/sys/kernel/domainname; hostname",
    ))?;
    let expected = "10.0.0.1\tdb\n::1\tsix\nsearch a.b\nnameserver 9.9.9.9\noptions ndots:3\nsite\nweb\n";
    ensure!(text == expected, "{text}");
    for (options, why) in [
        (&["--add-host", "db"][..], "bad format for add-host"),
        (&["--add-host", "db:1.2"], "invalid IP address in add-host"),
        (&["--add-host", "db:host-gateway"], "host-gateway"),
        (&["--dns", "nowhere"], "nowhere"),
        (&["--dns-search", "a b"], "no domain to search"),
    ] {
        refused(&strata, &shell(options, "true"), 125, why)?;
    }
    let labels = strata.folder().join("labels");
    fs::write(&labels, "# of the site\ncolour=red\n\nempty\n")?;
    let labels = labels.to_str().unwrap_or_default();
    let id = strata.ok(["create", "--label-file", labels, "-l", "empty=no", REFERENCE])?;
    let found = strata.ok(["inspect", "-f", "{{.Config.Labels.colour}} {{.Config.Labels.empty}}", id.trim()])?;
    ensure!(found == "red no\n", "{found}");
    Ok(())
}

fn devices() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let open = "(: < /dev/f) && echo read; (: > /dev/f) && echo written; exit 0";
    for (device, expected) in
        [("/dev/full:/dev/f:r", "read\n"), ("/dev/fuse:/dev/f:r", "read\n"), ("/dev/fuse:/dev/f", "read\nwritten\n")]
    {
        // That one may be written whatever this option says: it is among those of every container.
        let expected = if device.contains("full") { "read\nwritten\n" } else { expected };
        let text = strata.ok(shell(&["--device", device], open))?;
        ensure!(text == expected, "{device}: {text}");
    }
    let make = "mknod /f c 10 229 && (: <> /f) && echo opened; exit 0";
    ensure!(strata.ok(shell(&[], make))?.is_empty());
    ensure!(strata.ok(shell(&["--device-cgroup-rule", "c 10:* rwm"], make))? == "opened\n");
    // Every device that there is stays usable beside one that is named.
    ensure!(strata.ok(shell(&["--privileged", "--device", "/dev/full:/dev/f"], make))? == "opened\n");
    // Where nodes cannot be made the host's are shown.
    let text =
        strata.ok(shell(&["--userns", "auto", "--device", "/dev/full:/dev/f"], "test -c /dev/f && echo here"))?;
    ensure!(text == "here\n", "{text}");
    let text = strata.ok(shell(&["--device", "/dev/net:/dev/n"], "test -c /dev/n/tun && echo here"));
    if fs::metadata("/dev/net/tun").is_ok() {
        ensure!(text? == "here\n");
    }
    for (device, why) in
        [("/dev/nope", "No such file"), ("/etc/passwd", "not a device node"), ("fuse", "is not an absolute path")]
    {
        refused(&strata, &shell(&["--device", device], "true"), 125, why)?;
    }
    refused(&strata, &shell(&["--device-cgroup-rule", "c 10 rwm"], "true"), 125, "invalid device cgroup format")
}

fn device_of_plain_user() -> Result<()> {
    let strata = Strata::with_busybox(User::Plain)?;
    let text = strata.ok(shell(&["--device", "/dev/full:/dev/f"], "head -c1 /dev/f | wc -c"))?;
    ensure!(text.trim() == "1", "{text}");
    Ok(())
}

fn limits() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let options = ["-m", "64m", "--memory-reservation", "20m", "--cpu-quota", "50000", "--cpu-period", "100000"];
    let create = [&["run", "-d", "--name", "one"], &options[..], &["--cpuset-mems", "0", REFERENCE, "sleep", "1000"]];
    strata.ok(create.concat())?;
    let (quota, reservation) = match fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok() {
        true => ("cat /sys/fs/cgroup/cpu.max", "cat /sys/fs/cgroup/memory.low"),
        false => ("cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us", "cat /sys/fs/cgroup/memory/memory.soft_limit_in_bytes"),
    };
    let inside = |script: &str| strata.ok(["exec", "one", "sh", "-c", script]);
    ensure!(inside(quota)?.starts_with("50000"));
    ensure!(inside(reservation)?.trim() == "20971520");
    strata.ok(["update", "--cpu-quota", "20000", "--memory-reservation", "30m", "one"])?;
    ensure!(inside(quota)?.starts_with("20000"));
    // One file of cgroups of version 2 has both.
    strata.ok(["update", "--cpu-period", "50000", "one"])?;
    ensure!(inside(quota)?.starts_with("20000"));
    refused(&strata, &["update", "--cpus", "0.5", "one"], 1, "Nano CPUs cannot be updated")?;
    ensure!(inside(reservation)?.trim() == "31457280");
    let form = "{{.HostConfig.CpuQuota}} {{.HostConfig.MemoryReservation}} {{.HostConfig.CpusetMems}}";
    ensure!(strata.ok(["inspect", "-f", form, "one"])? == "20000 31457280 0\n");
    for (options, why) in [
        (&["--cpus", "1", "--cpu-quota", "50000"][..], "Nano CPUs and CPU Quota cannot both be set"),
        (&["--cpu-period", "10"], "CPU cfs period can not be less than 1ms"),
        (&["--cpu-quota", "10"], "CPU cfs quota can not be less than 1ms"),
        (&["--blkio-weight", "5"], "Range of blkio weight is from 10 to 1000"),
        (&["-m", "10m", "--memory-reservation", "20m"], "less than memory reservation limit"),
        (&["--memory-swappiness", "101"], "valid memory swappiness range is 0-100"),
    ] {
        refused(&strata, &shell(options, "true"), 125, why)?;
    }
    strata.ok(["rm", "-f", "one"]).map(drop)
}

fn namespaces(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let own =
        |kind: &str| Ok::<_, std::io::Error>(fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string());
    for (kind, option) in [("ipc", "--ipc"), ("uts", "--uts"), ("cgroup", "--cgroupns")] {
        let look = format!("readlink /proc/self/ns/{kind}");
        let found = strata.ok(shell(&[option, "host"], &look))?;
        ensure!(found.trim() == own(kind)?, "{option}: {found}");
        ensure!(strata.ok(shell(&[], &look))?.trim() != own(kind)?, "{option}");
    }
    strata.ok(["run", "-d", "--name", "zeroth", "--network", "host", REFERENCE, "sleep", "1000"])?;
    ensure!(strata.ok(["exec", "zeroth", "readlink", "/proc/self/ns/net"])?.trim() == own("net")?);
    strata.ok(["rm", "-f", "zeroth"])?;
    ensure!(strata.ok(shell(&["--ipc", "host"], "stat -f -c %T /dev/shm"))?.trim() == "tmpfs");
    refused(
        &strata,
        &shell(&["--uts", "host", "--hostname", "web"], "true"),
        125,
        "conflicting options: hostname and the UTS",
    )?;
    refused(&strata, &shell(&["--pid", "mine"], "true"), 125, "invalid PID mode")?;

    // Processes, a network and its names of another container.
    strata.ok(["run", "-d", "--name", "first", "--add-host", "db:10.0.0.1", REFERENCE, "sleep", "1000"])?;
    let hostname = strata.ok(["exec", "first", "hostname"])?;
    let network = strata.ok(["exec", "first", "readlink", "/proc/self/ns/net"])?;
    if user == User::Caller {
        let processes = strata.ok(shell(&["--pid", "container:first"], "ps -o args"))?;
        ensure!(processes.contains("sleep 1000") && processes.lines().count() <= 4, "{processes}");
    }
    let joins = ["create", "--name", "second", "--network", "container:first", REFERENCE, "sh", "-c"];
    strata.ok([&joins[..], &["readlink /proc/self/ns/net; hostname; tail -1 /etc/hosts"]].concat())?;
    ensure!(strata.ok(["start", "-a", "second"])? == format!("{network}{hostname}10.0.0.1\tdb\n"));
    strata.ok(["stop", "-t", "0", "first"])?;
    refused(&strata, &["start", "second"], 1, "non running container")?;
    strata.ok(["rm", "first"])?;
    refused(&strata, &["start", "second"], 1, "No such container")?;
    refused(&strata, &shell(&["--network", "container:first"], "true"), 125, "No such container: first")?;

    // Whatever a container leaves behind among the processes of the host ends with it: by its cgroup, without which it is refused.
    let leave = "sleep 4321 & sleep 4321 & exec sleep 1000";
    let third = ["run", "-d", "--name", "third", "--pid", "host", REFERENCE, "sh", "-c", leave];
    let started = strata.run(third)?;
    if user == User::Plain && started.code() != 0 {
        ensure!(started.code() == 125 && started.stderr.contains("without a cgroup"), "{started}");
        return Ok(());
    }
    let processes = || -> Result<Vec<String>> {
        let top = strata.ok(["top", "third", "-o", "pid,args"])?;
        Ok(top.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    };
    until("all processes run", || Ok(processes()?.len() == 3))?;
    let left = processes()?;
    ensure!(strata.ok(["exec", "third", "readlink", "/proc/self/ns/pid"])?.trim() == own("pid")?);
    strata.ok(["stop", "-t", "0", "third"])?;
    let alive = |pid: &String| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"));
    ensure!(!left.iter().any(alive), "{left:?}");
    strata.ok(["start", "third"])?;
    strata.ok(["rm", "-f", "third"])?;
    Ok(())
}

/// Who owns no namespace cannot look into it, and is never shown the host's instead.
fn other_users() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    strata.ok(["run", "-d", "--name", "first", REFERENCE, "sleep", "1000"])?;
    for option in ["--pid", "--network"] {
        let run = shell(&["--userns", "auto", option, "container:first"], "ps");
        refused(&strata, &run, 125, "needs userns=container:first")?;
    }
    strata.ok(["run", "-d", "--name", "second", "--userns", "auto", REFERENCE, "sleep", "2000"])?;
    let all = ["--userns", "container:second", "--pid", "container:second", "--network", "container:second"];
    let processes = strata.ok(shell(&all, "ps -o args; ls /sys/class/net"))?;
    ensure!(processes.contains("sleep 2000") && processes.lines().last() == Some("lo"), "{processes}");
    strata.ok(["rm", "-f", "first", "second"]).map(drop)
}
