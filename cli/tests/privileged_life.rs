//! Containers and mounts from beginning to end, with the command as a user has it. All of it needs root.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "all of it is tests, and a skipped one says so")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::strata::{Strata, finish, mounts_below, program};

const IMAGE: &str = busybox::REFERENCE;

/// A state folder with the busybox image in it; `None` without the privileges for it.
fn prepared(test: &str) -> Option<Strata> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("{test}: skipped, needs root");
        return None;
    }
    let strata = Strata::new().unwrap();
    strata.load(&busybox::folder().unwrap().join(Form::DockerNew.file_name())).unwrap();
    Some(strata)
}

/// The command itself, not below `timeout`, so that signals reach it.
fn direct(strata: &Strata, arguments: &[&str]) -> Command {
    let mut command = Command::new(program().unwrap());
    command.arg("--root").arg(strata.state()).args(arguments).stdin(Stdio::null()).env_remove("STRATA_ROOT");
    command
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, signal);
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Cgroups, server processes and files that containers of this root left.
fn leftovers(strata: &Strata) -> Vec<String> {
    let mut found = Vec::new();
    let containers = strata.state().join("containers");
    for entry in fs::read_dir(&containers).into_iter().flatten().flatten() {
        if entry.file_name() != "names" {
            found.push(entry.path().display().to_string());
        }
    }
    for folder in [containers.join("names"), strata.state().join("leases")] {
        found.extend(
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path().display().to_string()),
        );
    }
    found.extend(mounts_below(strata.folder()).iter().map(|path| format!("mount {}", path.display())));
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = |link: fs::DirEntry| fs::read_link(link.path()).is_ok_and(|path| path.starts_with(strata.state()));
        if descriptors.into_iter().any(holds) {
            found.push(format!("process {}", process.file_name().display()));
        }
    }
    found
}

fn cgroups() -> usize {
    let below = |folder: &Path| {
        let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with("strata-")).count()
    };
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    hierarchies.map(|entry| below(&entry.path())).sum::<usize>() + below(Path::new("/sys/fs/cgroup"))
}

/// The monitor of a container, by its record.
fn monitor_of(strata: &Strata, name: &str) -> Pid {
    let id = strata.ok(["inspect", "--format", "{{.Id}}", name]).unwrap();
    let record = strata.state().join("containers").join(id.trim()).join("state.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    let pid = record["state"]["owner"]["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn a_killed_command_leaves_its_container_running_and_a_killed_monitor_does_not() {
    let Some(strata) = prepared("killed command") else { return };
    let shared = strata.make_folder("shared").unwrap();
    let volume = format!("{}:/shared", shared.display());
    let script = "echo $$ > /shared/started; sleep 1000";
    let mut child =
        direct(&strata, &["run", "--name", "victim", "-v", &volume, IMAGE, "sh", "-c", script]).spawn().unwrap();
    wait_until("the container starts", || shared.join("started").exists());
    let state = || strata.ok(["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "victim"]).unwrap();
    assert_eq!(state(), "running 0\n");
    send(&child, Signal::KILL);
    child.wait().unwrap();
    assert_eq!(state(), "running 0\n");
    rustix::process::kill_process(monitor_of(&strata, "victim"), Signal::KILL).unwrap();
    wait_until("the next command says so", || state() == "exited 137\n");
    strata.ok(["rm", "victim"]).unwrap();
    wait_until("nothing is left", || leftovers(&strata).is_empty());
}

#[test]
fn killed_anywhere_nothing_stays() {
    let Some(strata) = prepared("killed anywhere") else { return };
    let before = cgroups();
    let mut seen = [false; 2];
    for round in 0..40_u64 {
        let mut child = direct(&strata, &["run", "--rm", "--name", "again", IMAGE, "sleep", "1000"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(700 * round));
        send(&child, Signal::KILL);
        child.wait().unwrap();
        // Killed before the monitor had its task, there is no container; afterwards, there is one that runs.
        let left = !strata.ok(["ps", "-aq"]).unwrap().is_empty();
        seen[usize::from(left)] = true;
        strata.ok(["rm", "-f", "again"]).unwrap();
    }
    assert!(seen[0], "no command was killed early");
    assert_eq!(strata.ok(["ps", "-aq"]).unwrap(), "");
    wait_until("nothing is left", || leftovers(&strata).is_empty());
    wait_until("no cgroup is left", || cgroups() <= before);
}

#[test]
fn signals_are_passed_on() {
    let Some(strata) = prepared("signals") else { return };
    let shared = strata.make_folder("shared").unwrap();
    let volume = format!("{}:/shared", shared.display());
    for (signal, name, code) in [(Signal::TERM, "TERM", 41), (Signal::HUP, "HUP", 42), (Signal::USR1, "USR1", 43)] {
        let started = shared.join(name);
        let script = format!("trap 'exit {code}' {name}; touch /shared/{name}; while :; do sleep 0.05; done");
        let mut child = direct(&strata, &["run", "--rm", "-v", &volume, IMAGE, "sh", "-c", &script]).spawn().unwrap();
        wait_until("the container starts", || started.exists());
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
    }
}

#[test]
fn a_process_without_a_handler_is_killed_by_the_third_request() {
    let Some(strata) = prepared("third request") else { return };
    let mut child = direct(&strata, &["run", "--rm", IMAGE, "sleep", "1000"]).spawn().unwrap();
    wait_until("the container starts", || !strata.ok(["ps", "-q"]).unwrap().is_empty());
    for _ in 0..3 {
        assert!(child.try_wait().unwrap().is_none());
        send(&child, Signal::INT);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn much_data_flows_both_ways_at_once() {
    let Some(strata) = prepared("both ways") else { return };
    let sent: Vec<u8> = (0..=255).cycle().take(8 << 20).collect();
    let mut child = direct(&strata, &["run", "--rm", "-i", IMAGE, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || input.write_all(&copy).unwrap());
    let mut received = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(received == sent, "{} bytes came back", received.len());
}

#[test]
fn without_i_the_container_reads_nothing() {
    let Some(strata) = prepared("no input") else { return };
    let mut child = direct(&strata, &["run", "--rm", IMAGE, "sh", "-c", "cat; echo end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    drop(input);
    assert_eq!(text, "end\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_leaves_does_not_disturb_the_container() {
    let Some(strata) = prepared("closed output") else { return };
    let script = "i=0; while [ $i -lt 20000 ]; do echo a line of output; i=$((i+1)); done; touch /finished";
    let mut child = direct(&strata, &["run", "--name", "talker", IMAGE, "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(strata.ok(["diff", "talker"]).unwrap().contains("A /finished"));
}

#[test]
fn changes_of_a_writable_mount_are_a_container() {
    let Some(strata) = prepared("writable mount") else { return };
    let point = strata.make_folder("point").unwrap();
    let place = point.display().to_string();
    let id = strata.ok(["mount", "--rw", IMAGE, &place]).unwrap();
    let id = id.trim();
    fs::write(point.join("etc/new"), "new").unwrap();
    fs::remove_file(point.join("etc/motd")).unwrap();
    let refused = strata.exits(1, ["rm", id]).unwrap();
    assert!(refused.stderr.contains("mounted"), "{refused}");
    strata.ok(["umount", &place]).unwrap();
    assert_eq!(strata.ok(["diff", id]).unwrap(), "C /etc\nD /etc/motd\nA /etc/new\n");

    strata.ok(["mount", id, &place]).unwrap();
    assert_eq!(fs::read_to_string(point.join("etc/new")).unwrap(), "new");
    assert!(fs::write(point.join("etc/newer"), "").is_err(), "a mount without --rw can be written");
    strata.ok(["umount", &place]).unwrap();

    strata.ok(["commit", id, "made:1"]).unwrap();
    strata.ok(["rm", id]).unwrap();
    assert_eq!(strata.ok(["run", "--rm", "made:1", "cat", "/etc/new"]).unwrap(), "new");
    wait_until("nothing is left", || leftovers(&strata).is_empty());
}

#[test]
fn a_container_keeps_its_layers_when_its_image_is_removed() {
    let Some(strata) = prepared("kept layers") else { return };
    strata.ok(["run", "--name", "kept", IMAGE, "touch", "/new"]).unwrap();
    let id = strata.ok(["images", "-q"]).unwrap();
    strata.ok(["rmi", "-f", id.trim()]).unwrap();
    assert_eq!(strata.ok(["images", "-q"]).unwrap(), "");
    assert_eq!(strata.ok(["diff", "kept"]).unwrap(), "A /new\n");
    let output = strata.folder().join("kept.tar");
    strata.ok(["export", "-o", &output.display().to_string(), "kept"]).unwrap();
    assert!(fs::metadata(&output).unwrap().len() > 1 << 20);
    strata.ok(["rm", "kept"]).unwrap();
    wait_until("nothing is left", || leftovers(&strata).is_empty());
}

#[test]
fn a_container_of_its_own_ids_stores_those_of_the_image() {
    let Some(strata) = prepared("own ids") else { return };
    let script =
        "id -u; touch /made; chown 1000:2000 /made; stat -c '%u:%g' /made /etc/motd; head -1 /proc/self/uid_map";
    let out = strata.ok(["run", "--name", "own", "--userns", "auto", IMAGE, "sh", "-c", script]).unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..3], ["0", "1000:2000", "0:0"], "{out}");
    let map: Vec<u32> = lines[3].split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert!(map[0] == 0 && map[1] >= 65_536 && map[2] == 65_536, "{out}");
    strata.ok(["commit", "own", "own:1"]).unwrap();
    assert_eq!(strata.ok(["run", "--rm", "own:1", "stat", "-c", "%u:%g", "/made"]).unwrap(), "1000:2000\n");
}

#[test]
fn a_container_sees_neither_the_host_nor_our_descriptors() {
    let Some(strata) = prepared("confined") else { return };
    let script = "ls /proc/self/fd | wc -l; grep -E 'Seccomp:|SigBlk' /proc/self/status; cat /proc/1/comm; \
                  echo x > /proc/sys/kernel/hostname 2>/dev/null || echo refused";
    let out = strata.ok(["run", "--rm", IMAGE, "sh", "-c", script]).unwrap();
    // Three streams, and the folder that ls itself has open.
    let expected = "4\nSigBlk:\t0000000000000000\nSeccomp:\t2\nsh\nrefused\n";
    assert_eq!(out, expected);
}

#[test]
fn called_by_other_names() {
    let Some(strata) = prepared("other names") else { return };
    let folder = strata.folder().to_owned();
    for name in ["lower", "over", "upper", "work", "point"] {
        strata.make_folder(name).unwrap();
    }
    fs::write(folder.join("lower/a"), "a").unwrap();
    fs::write(folder.join("over/b"), "b").unwrap();
    let point = folder.join("point");
    let called = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(program().unwrap());
        command.arg0(name).args(arguments).current_dir(&folder).env("STRATA_ROOT", strata.state());
        let finished = finish(&mut command).unwrap();
        assert!(finished.status.success(), "{finished}");
    };
    let names = || {
        let mut names: Vec<String> =
            fs::read_dir(&point).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.join(" ")
    };
    called("fuse-overlayfs", &["-o", "lowerdir=over:lower,upperdir=upper,workdir=work", "point"]);
    fs::write(point.join("c"), "c").unwrap();
    assert_eq!(names(), "a b c");
    strata.ok(["umount", "point"]).unwrap();
    assert_eq!(fs::read_to_string(folder.join("upper/c")).unwrap(), "c");

    called("/sbin/mount.fuse.strata", &["none", "point", "-o", "rw,lowerdir=upper:lower"]);
    assert_eq!(names(), "a c");
    strata.ok(["umount", "point"]).unwrap();

    called("mount.strata", &[IMAGE, "point", "-n", "-o", "ro,nodev"]);
    assert!(point.join("bin/busybox").exists());
    strata.ok(["umount", "point"]).unwrap();
}

#[test]
fn bench_lookup_measures_and_leaves_nothing() {
    let Some(strata) = prepared("bench") else { return };
    let out = strata.ok(["bench", "lookup", "--rounds", "1", "--format", "json", IMAGE]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["layers"], 2);
    assert_eq!(report["contenders"][0], "strata");
    let measures = report["measures"].as_array().unwrap();
    assert_eq!(measures.len(), 8);
    for measure in measures {
        let figures = measure["microseconds"].as_array().unwrap();
        assert!(figures.iter().all(|figure| figure.as_f64().unwrap() > 0.0), "{measure}");
    }
    assert!(fs::read_dir(strata.state().join("bench")).unwrap().next().is_none());
    wait_until("nothing is left", || leftovers(&strata).is_empty());
}
