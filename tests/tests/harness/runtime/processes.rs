//! Processes: added ones, their terminals, what they inherit.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use strata_tests::strata::finish;
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime, each, reap, wait_for};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::privileged_a_process_is_added", needs, || each(added));
    suite.add("runtime::privileged_odd_users_are_never_root", needs, || each(odd_users));
    suite.add("runtime::privileged_a_terminal_goes_to_the_callers_socket", needs, || each(console_socket));
    suite.add("runtime::privileged_descriptors_are_passed_when_asked", needs, || each(preserved));
    suite.add("runtime::privileged_a_pidfd_is_handed_out", needs, pidfd_socket);
    suite.add("runtime::privileged_a_waiting_container_holds_nothing_of_the_hosts", needs, waiting);
    suite.add("runtime::privileged_signals_reach_the_program", needs, || each(signals));
}

fn added(bench: &mut Bench) -> Result<()> {
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    let finished = bench.run(&["exec", &id, "sh", "-c", "echo $FROM $MORE; pwd; id -u; exit 7"])?;
    ensure!(finished.code() == 7 && finished.stdout == "config\n/\n0\n", "{finished}");
    let words = ["exec", "--cwd", "/tmp", "-e", "MORE=more", "--user", "1000:1000", &id];
    let finished =
        bench.run(&[&words[..], &["/bin/sh", "-c", "echo $FROM $MORE; pwd; /bin/id -u; /bin/id -g"]].concat())?;
    // With crun, an environment of its own replaces that of the container.
    ensure!(bench.runtime == Runtime::Crun || finished.stdout == "config more\n/tmp\n1000\n1000\n", "{finished}");

    let process = bench.file("process.json");
    let description = json!({
        "user": { "uid": 0, "gid": 0 }, "args": ["sh", "-c", "echo $ONLY$FROM; grep CapEff /proc/self/status"],
        "env": ["PATH=/bin", "ONLY=this"], "cwd": "/"
    });
    fs::write(&process, description.to_string())?;
    let finished = bench.run(&["exec", "--process", &process.to_string_lossy(), &id])?;
    ensure!(finished.stdout.starts_with("this\n"), "{finished}");
    // With runc, a process that names no capabilities has those of the container.
    ensure!(bench.runtime != Runtime::Strata || finished.stdout.ends_with("CapEff:\t0000000000000000\n"), "{finished}");

    let pid_file = bench.file("exec.pid");
    bench.ok(&["exec", "--detach", "--pid-file", &pid_file.to_string_lossy(), &id, "sleep", "999"])?;
    let pid: u32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    // runc returns before its process has become the program.
    let program = || Ok((fs::read_to_string(format!("/proc/{pid}/cmdline"))? == "sleep\x00999\0").then_some(()));
    wait_for(program).context("the added process does not become the program")?;
    let processes: Vec<u32> = serde_json::from_str(&bench.ok(&["ps", "--format", "json", &id])?)?;
    let init = bench.state(&id)?["pid"].as_u64().context("no pid")?;
    ensure!(processes.len() == 2 && processes.contains(&pid) && processes.iter().any(|pid| u64::from(*pid) == init));
    if bench.runtime == Runtime::Crun {
        bench.ok(&["exec", &id, "/bin/kill", "-9", "-1"]).ok();
        reap(pid);
        return Ok(()); // lists numbers alone, and waits where others refuse
    }
    let table = bench.ok(&["ps", &id])?;
    ensure!(table.lines().count() == 3 && table.contains("sleep 999"), "{table}");

    let finished = bench.run(&["exec", &id, "missing-program"])?;
    ensure!(!finished.status.success() && finished.stderr.contains("not found"), "{finished}");
    ensure!(bench.runtime == Runtime::Crun || finished.code() == 255, "{finished}");
    bench.ok(&["pause", &id])?;
    if bench.runtime != Runtime::Crun {
        bench.fails(&["exec", &id, "true"], &["paused"])?;
    }
    bench.ok(&["resume", &id])?;
    let _ = bench.run(&["exec", &id, "kill", "-9", "-1"])?;
    reap(pid);
    bench.ok(&["delete", "--force", &id])?;
    Ok(())
}

fn odd_users(bench: &mut Bench) -> Result<()> {
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    for odd in ["1000abc", "-1", "4294967296", "0x0", ":0", "1000:x", "1000:-1"] {
        let user = format!("--user={odd}");
        let finished = bench.run(&["exec", &user, &id, "id", "-u"])?;
        // Versions of the peers before 2026 take some of these.
        if bench.runtime == Runtime::Strata {
            ensure!(!finished.status.success() && finished.stdout.is_empty(), "{odd}: {finished}");
        }
    }
    Ok(())
}

/// Waits for one descriptor on a socket.
fn receive(listener: &UnixListener) -> Result<OwnedFd> {
    let (connection, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 256];
    recvmsg(&connection, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let fd = ancillary.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.context("no descriptor came")
}

/// Everything until nobody has the other end any more.
fn read_terminal(terminal: OwnedFd) -> String {
    let mut text = Vec::new();
    // It ends with an error when the last process has closed it.
    let _ = fs::File::from(terminal).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn console_socket(bench: &mut Bench) -> Result<()> {
    let socket = bench.file("console");
    let listener = UnixListener::bind(&socket)?;
    let socket = socket.to_string_lossy().into_owned();
    bench.configure(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({ "height": 31, "width": 77 });
        spec["process"]["args"] = json!(["sh", "-c", "tty; stty size; test -t 0 && echo yes; ls -l /dev/console"]);
    })?;
    let id = bench.id();
    // crun makes the terminal for nobody.
    bench.fails_except(Runtime::Crun, &["create", &id], &["console", "tty", "terminal"])?;
    let id = bench.id();
    bench.ok(&["create", "--console-socket", &socket, &id])?;
    let terminal = receive(&listener)?;
    bench.ok(&["start", &id])?;
    let text = read_terminal(terminal);
    ensure!(text.contains("yes") && text.contains("31 77"), "{text:?}");
    bench.becomes(&id, "stopped")?;
    bench.ok(&["delete", &id])?;

    bench.configure(|_| {})?;
    let id = bench.id();
    bench.ok(&["run", "-d", &id])?;
    let pid_file = bench.file("tty.pid");
    let pid_path = pid_file.to_string_lossy().into_owned();
    bench.ok(&["exec", "-t", "-d", "--console-socket", &socket, "--pid-file", &pid_path, &id, "tty"])?;
    let text = read_terminal(receive(&listener)?);
    reap(fs::read_to_string(&pid_file)?.trim().parse()?);
    ensure!(text.contains("/dev/pts/"), "{text:?}");
    Ok(())
}

fn preserved(bench: &mut Bench) -> Result<()> {
    let script = "cat <&3; ls /proc/self/fd | tr '\\n' ' '";
    bench.script(script)?;
    let message = bench.file("message");
    fs::write(&message, "through\n")?;
    let id = bench.id();
    let command = bench.command(&["run", "--preserve-fds", "1", &id]);
    let inner: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut shell = std::process::Command::new("sh");
    let opened = format!("exec 3<{}; exec \"$@\"", message.display());
    shell.arg("-c").arg(opened).arg("sh").args(inner).current_dir(bench.bundle()).stdin(std::process::Stdio::null());
    let finished = finish(&mut shell)?;
    ensure!(finished.stdout.starts_with("through\n0 1 2 3"), "{finished}");
    let id = bench.id();
    bench.script("ls /proc/self/fd | wc -l")?;
    let without = bench.ok(&["run", &id])?;
    ensure!(without.trim() == "4", "more than the standard streams: {without}");
    Ok(())
}

fn pidfd_socket() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    let socket = bench.file("pidfd");
    let listener = UnixListener::bind(&socket)?;
    let id = bench.id();
    bench.ok(&["create", "--pidfd-socket", &socket.to_string_lossy(), &id])?;
    let pidfd = receive(&listener)?;
    let pid = bench.state(&id)?["pid"].clone();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&pidfd)))?;
    ensure!(info.contains(&format!("Pid:\t{pid}\n")), "{info}");
    Ok(())
}

/// Before its program, the first process has the pipes of its start and the standard streams, no more.
fn waiting() -> Result<()> {
    let mut bench = Bench::new(Runtime::Strata)?;
    let id = bench.id();
    bench.ok(&["create", &id])?;
    let pid = bench.state(&id)?["pid"].clone();
    let mut open: Vec<String> = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse()?;
        if number > 2 {
            open.push(fs::read_link(entry.path())?.display().to_string());
        }
    }
    let expected = ["/start.answers", "/start.word", "/memfd:hook-output (deleted)"];
    open.sort_by_key(|name| expected.iter().position(|expected| name.ends_with(expected)));
    ensure!(open.iter().zip(expected).all(|(name, end)| name.ends_with(end)) && open.len() == 3, "{open:?}");
    // Nobody in the container reaches it: it is no file of the container's.
    let root = format!("/proc/{pid}/root");
    ensure!(!Path::new(&root).join(bench.state_folder().strip_prefix("/")?).exists());
    bench.ok(&["start", &id])?;
    ensure!(["start.word", "start.answers"].iter().all(|name| !bench.state_folder().join(&id).join(name).exists()));
    Ok(())
}

fn signals(bench: &mut Bench) -> Result<()> {
    bench.script("trap 'echo got >> /got' USR1; echo > /ready; while :; do sleep 0.05; done")?;
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    let root = bench.bundle().join("rootfs");
    wait_for(|| Ok(root.join("ready").exists().then_some(())))?;
    for name in ["USR1", "SIGUSR1", "10"] {
        // Only runc takes names in small letters.
        fs::remove_file(root.join("got")).ok();
        bench.ok(&["kill", &id, name])?;
        wait_for(|| Ok(root.join("got").exists().then_some(())))?;
    }
    let pid_file = bench.file("exec.pid");
    bench.ok(&["exec", "-d", "--pid-file", &pid_file.to_string_lossy(), &id, "sleep", "998"])?;
    bench.ok(&["kill", "--all", &id, "KILL"])?;
    reap(fs::read_to_string(&pid_file)?.trim().parse()?);
    bench.becomes(&id, "stopped")?;
    let processes: Value = serde_json::from_str(&bench.ok(&["ps", "--format", "json", &id]).unwrap_or("null".into()))?;
    ensure!(processes.as_array().is_none_or(Vec::is_empty), "{processes}");
    Ok(())
}
