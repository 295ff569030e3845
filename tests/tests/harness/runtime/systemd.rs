//! The systemd cgroup driver against a systemd of our own making, on a socket of the test's own.
//!
//! It reads messages by their signatures, with code that shares nothing with the client's, so a value that is not written as its
//! signature says is a failure here.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use strata_tests::image::busybox::REFERENCE;
use strata_tests::plain_user;
use strata_tests::strata::{Finished, Strata, User, finish};
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::privileged_systemd_makes_the_scope", needs, life);
    suite.add("runtime::privileged_systemd_refuses", needs, refusals);
    let needs = [needs, &[Need::Fuse]].concat();
    suite.add("runtime::privileged_systemd_makes_scopes_for_run", &needs, run_in_scopes);
    suite.add("runtime::privileged_systemd_of_a_user_makes_scopes", &needs, scopes_of_a_user);
}

fn bench(name: &str) -> Result<Bench> {
    let bench = Bench::new(Runtime::Strata)?;
    bench.configure(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("strata_test-inner.slice:strata:{name}"));
        spec["linux"]["resources"] = json!({
            "memory": { "limit": 64 << 20, "swap": 96 << 20 },
            "cpu": { "shares": 1024, "quota": 50_000, "period": 100_000 },
            "pids": { "limit": 50 },
            "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            ],
        });
    })?;
    Ok(bench)
}

/// Runs a command of the runtime against the systemd at `socket`.
fn run(bench: &Bench, socket: &Path, words: &[&str]) -> Result<Finished> {
    let words = [&["--systemd-cgroup"], words].concat();
    let mut command = bench.command(&words);
    finish(command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", socket.display())))
}

fn ok(bench: &Bench, socket: &Path, words: &[&str]) -> Result<()> {
    let finished = run(bench, socket, words)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

fn life() -> Result<()> {
    let name = format!("life-{}", std::process::id());
    let mut bench = bench(&name)?;
    let systemd = Systemd::start(&bench.file("bus"), Behaviour::Works)?;
    let id = bench.id();
    ok(&bench, &systemd.socket, &["create", &id])?;
    let unit = format!("strata-{name}.scope");
    let calls = systemd.take_calls()?;
    let (_, arguments) =
        calls.iter().find(|(member, _)| member == "StartTransientUnit").context("no unit was started")?;
    let [told, mode, properties, others] = &arguments[..] else { bail!("{arguments:?}") };
    ensure!(*told == unit.as_str() && *mode == "replace" && *others == json!([]), "{arguments:?}");
    let properties: BTreeMap<String, Value> = properties
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| (pair[0].as_str().unwrap_or("").to_owned(), pair[1].clone()))
        .collect();
    for (property, value) in [
        ("Slice", json!({ "s": "strata_test-inner.slice" })),
        ("Delegate", json!({ "b": true })),
        ("DefaultDependencies", json!({ "b": false })),
        ("MemoryAccounting", json!({ "b": true })),
        ("TasksAccounting", json!({ "b": true })),
        ("CPUQuotaPerSecUSec", json!({ "t": 500_000 })),
        ("CPUQuotaPeriodUSec", json!({ "t": 100_000 })),
        ("TasksMax", json!({ "t": 50 })),
        ("DevicePolicy", json!({ "s": "strict" })),
    ] {
        ensure!(properties.get(property) == Some(&value), "{property}: {properties:?}");
    }
    let devices =
        properties.get("DeviceAllow").and_then(|allowed| allowed["a(ss)"].as_array()).cloned().unwrap_or_default();
    for device in [json!(["/dev/char/1:3", "rwm"]), json!(["char-*", "m"]), json!(["char-pts", "rwm"])] {
        ensure!(devices.contains(&device), "{device}: {devices:?}");
    }
    let memory = ["MemoryMax", "MemoryLimit"].iter().find_map(|name| properties.get(*name));
    ensure!(memory == Some(&json!({ "t": 64 << 20 })), "{properties:?}");
    let begun_with = properties.get("PIDs").and_then(|pids| pids["au"][0].as_u64()).context("no process")?;
    let pid = bench.state(&id)?["pid"].as_u64().unwrap_or_default();
    ensure!(
        begun_with != pid && !Path::new(&format!("/proc/{begun_with}")).exists(),
        "the scope's first process is still there"
    );
    let inside = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let place = format!("/strata_test.slice/strata_test-inner.slice/{unit}");
    ensure!(inside.lines().any(|line| line.ends_with(&place)), "{inside}");

    ok(&bench, &systemd.socket, &["start", &id])?;
    ok(&bench, &systemd.socket, &["update", "--pids-limit", "40", "--memory", "32M", &id])?;
    let calls = systemd.take_calls()?;
    let (_, arguments) =
        calls.iter().find(|(member, _)| member == "SetUnitProperties").context("nothing was changed")?;
    ensure!(arguments[0] == unit.as_str() && arguments[1] == true, "{arguments:?}");
    ensure!(arguments[2].to_string().contains("[\"TasksMax\",{\"t\":40}]"), "{arguments:?}");

    // Which driver it has is known of it, whatever the next command is told.
    let mut delete = bench.command(&["delete", "--force", &id]);
    let deleted = finish(delete.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", systemd.socket.display())))?;
    ensure!(deleted.status.success(), "{deleted}");
    let calls = systemd.take_calls()?;
    ensure!(calls.contains(&("StopUnit".to_owned(), vec![json!(unit), json!("replace")])), "{calls:?}");
    ensure!(bench.left().is_empty(), "{:?}", bench.left());
    // The slices are systemd's, which would have taken them away.
    for hierarchy in
        fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")])
    {
        for slice in ["strata_test.slice/strata_test-inner.slice", "strata_test.slice"] {
            // Most hierarchies have none, and another run may use it.
            let _ = fs::remove_dir(hierarchy.join(slice));
        }
    }
    Ok(())
}

fn refusals() -> Result<()> {
    let mut bench = bench(&format!("refused-{}", std::process::id()))?;
    let refused = |bench: &Bench, socket: &Path, id: &str, words: &str| {
        let finished = run(bench, socket, &["create", id])?;
        ensure!(!finished.status.success() && finished.stderr.contains(words), "{words}: {finished}");
        ensure!(bench.left().is_empty(), "{:?}", bench.left());
        Ok(())
    };
    let id = bench.id();
    refused(&bench, &bench.file("nothing"), &id, "no systemd answers on the message bus")?;
    for (behaviour, words) in [
        (Behaviour::FailsJobs, ".scope ended as"),
        (Behaviour::Denies, "Access denied by test"),
        (Behaviour::Mumbles, "malformed D-Bus message"),
    ] {
        let systemd = Systemd::start(&bench.file(words.split(' ').next().unwrap_or("x")), behaviour)?;
        refused(&bench, &systemd.socket, &id, words)?;
    }
    bench.configure(|spec| spec["linux"]["cgroupsPath"] = json!("/strata-test/plain"))?;
    refused(&bench, &bench.file("nothing"), &id, "slice:prefix:name")
}

/// `strata run` and its kin, whose containers are scopes for as long as they run.
fn run_in_scopes() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let systemd = Systemd::start(&strata.folder().join("bus"), Behaviour::Works)?;
    let on_bus = |words: &[&str]| {
        let mut command = strata.command(words);
        finish(command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", systemd.socket.display())))
    };
    let ok = |words: &[&str]| {
        let finished = on_bus(words)?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout.trim().to_owned())
    };
    let by_systemd = ["--cgroup-manager", "systemd"];
    let run = ["run", "-d", "--name", "scoped", "--pids-limit", "50", REFERENCE, "sleep", "1000"];
    let id = ok(&[&by_systemd[..], &run].concat())?;
    let (unit, slice) = started(&systemd.take_calls()?)?;
    ensure!(
        unit.starts_with("strata-") && unit.ends_with(&format!("-{id}.scope")) && slice == "system.slice",
        "{unit}"
    );
    let pid = ok(&["inspect", "--format", "{{.State.Pid}}", "scoped"])?;
    let inside = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let place = format!("/system.slice/{unit}");
    ensure!(inside.lines().any(|line| line.ends_with(&place)), "{inside}");

    // Which manager it has stands in its record.
    ok(&["update", "--pids-limit", "40", "scoped"])?;
    let calls = systemd.take_calls()?;
    let changed = calls.iter().find(|(member, _)| member == "SetUnitProperties").context("nothing was changed")?;
    ensure!(
        changed.1[0] == unit.as_str() && changed.1[2].to_string().contains("[\"TasksMax\",{\"t\":40}]"),
        "{calls:?}"
    );
    let stopped = ("StopUnit".to_owned(), vec![json!(unit), json!("replace")]);
    ok(&["restart", "-t", "0", "scoped"])?;
    let calls = systemd.take_calls()?;
    ensure!(calls.contains(&stopped) && started(&calls)?.0 == unit, "{calls:?}");
    ok(&["rm", "-f", "scoped"])?;
    ensure!(systemd.take_calls()?.contains(&stopped), "the scope stays");
    ensure!(!places_of(&place).any(|path| path.exists()), "cgroups stay");

    let driver = |words: &[&str]| ok(&[words, &["info", "--format", "{{.CgroupDriver}}"]].concat());
    ensure!(driver(&by_systemd)? == "systemd" && driver(&["--cgroup-manager", "cgroupfs"])? == "cgroupfs");
    let mut nobody = strata.command([&by_systemd[..], &["run", "--rm", REFERENCE, "true"]].concat());
    let refused = finish(nobody.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus"))?;
    ensure!(refused.status.code() == Some(125) && refused.stderr.contains("no systemd answers"), "{refused}");
    Ok(())
}

/// A plain user's systemd, to which part of the cgroups has been handed over.
fn scopes_of_a_user() -> Result<()> {
    let strata = Strata::with_busybox(User::Plain)?;
    let systemd = Systemd::start_for(&strata.folder().join("bus"), Behaviour::Works, plain_user::ID)?;
    fs::set_permissions(&systemd.socket, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let _delegated = Delegated::new()?;
    let address = format!("unix:path={}", systemd.socket.display());
    let run = |words: &[&str]| {
        let own = strata.command([&["--cgroup-manager", "systemd"], words].concat());
        let finished = finish(from_inside(&own).env("DBUS_SESSION_BUS_ADDRESS", &address))?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    };
    let text = run(&["run", "--rm", "--pids-limit", "50", REFERENCE, "cat", "/proc/self/cgroup"])?;
    let calls = systemd.take_calls()?;
    let (unit, slice) = started(&calls)?;
    ensure!(slice == "user.slice", "{slice}");
    ensure!(calls.iter().any(|(member, words)| member == "StopUnit" && words[0] == unit.as_str()), "{calls:?}");
    ensure!(!text.is_empty() && !places_of(&format!("{USER_SERVICE}/user.slice/{unit}")).any(|path| path.exists()));
    Ok(())
}

/// The same command of the plain user, from within what he has been given.
fn from_inside(own: &Command) -> Command {
    const SCRIPT: &str = r#"place=$1 id=$2; shift 2
        for group in /sys/fs/cgroup/*"$place" /sys/fs/cgroup"$place"; do
            [ ! -d "$group" ] || echo $$ >"$group/cgroup.procs"
        done
        exec setpriv --reuid "$id" --regid "$id" --clear-groups -- "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh", USER_SERVICE, &plain_user::ID.to_string()]);
    command.arg(own.get_program()).args(own.get_args()).stdin(Stdio::null());
    command.current_dir(own.get_current_dir().unwrap_or(Path::new("/")));
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// The unit that was started, and its slice.
fn started(calls: &Calls) -> Result<(String, String)> {
    let call = calls.iter().find(|(member, _)| member == "StartTransientUnit").context("no unit was started")?;
    let slice = call.1[2].as_array().into_iter().flatten().find(|pair| pair[0] == "Slice").context("no slice")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&call.1[0]), text(&slice[1]["s"])))
}

/// A path in each hierarchy.
fn places_of(path: &str) -> impl Iterator<Item = PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let path = path.trim_start_matches('/').to_owned();
    hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(move |hierarchy| hierarchy.join(&path))
}

/// Cgroups of version 2 that belong to the plain user, until it is dropped.
struct Delegated;

impl Delegated {
    fn new() -> Result<Delegated> {
        let delegated = Delegated;
        // The top alone has no events.
        let is_top = |it: &Path| it.join("cgroup.controllers").exists() && !it.join("cgroup.events").exists();
        for path in places_of(USER_SERVICE).filter(|path| path.ancestors().nth(3).is_some_and(is_top)) {
            fs::create_dir_all(&path)?;
            plain_user::own(&path)?;
            for file in ["cgroup.procs", "cgroup.subtree_control"] {
                plain_user::own(&path.join(file))?;
            }
        }
        Ok(delegated)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for path in places_of(USER_SERVICE) {
            // From the inside out; those that another user's systemd has stay.
            let inside = path.join("user.slice");
            for path in [inside.as_path()].into_iter().chain(path.ancestors().take(3)) {
                let _ = fs::remove_dir(path);
            }
        }
    }
}

/// What a user's own systemd runs in.
const USER_SERVICE: &str = "/user.slice/user-61999.slice/user@61999.service";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Works,
    FailsJobs,
    Denies,
    Mumbles,
}

type Calls = Vec<(String, Vec<Value>)>;

/// Answers as systemd does, on a bus with nobody else.
struct Systemd {
    socket: PathBuf,
    calls: Arc<Mutex<Result<Calls, String>>>,
}

impl Systemd {
    fn start(socket: &Path, behaviour: Behaviour) -> Result<Systemd> {
        Systemd::start_for(socket, behaviour, rustix::process::geteuid().as_raw())
    }

    /// One that hears `user` alone.
    fn start_for(socket: &Path, behaviour: Behaviour, user: u32) -> Result<Systemd> {
        let listener = UnixListener::bind(socket)?;
        let calls = Arc::new(Mutex::new(Ok(Calls::new())));
        let noted = calls.clone();
        // It ends with the test program.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = serve(stream, behaviour, user, &noted) {
                    *noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Err(format!("{error:#}"));
                }
            }
        });
        Ok(Systemd { socket: socket.to_owned(), calls })
    }

    /// What was called since the last time.
    fn take_calls(&self) -> Result<Calls> {
        let mut calls = self.calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::replace(&mut *calls, Ok(Calls::new())).map_err(anyhow::Error::msg)
    }
}

fn serve(mut stream: UnixStream, behaviour: Behaviour, user: u32, calls: &Mutex<Result<Calls, String>>) -> Result<()> {
    let line = |stream: &mut UnixStream| -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8(line)?)
    };
    let own: String = user.to_string().bytes().map(|it| format!("{it:02x}")).collect();
    ensure!(line(&mut stream)? == format!("\0AUTH EXTERNAL {own}\r\n"), "authentication");
    stream.write_all(b"OK 1234deadbeef\r\n")?;
    ensure!(line(&mut stream)? == "BEGIN\r\n", "begin");
    let mut said_hello = false;
    loop {
        let mut head = [0; 16];
        match stream.read_exact(&mut head) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        }
        ensure!(head[..2] == [b'l', 1] && head[3] == 1, "no method call: {head:?}");
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (body, serial, fields) = (number(4) as usize, number(8), number(12) as usize);
        let mut bytes = head.to_vec();
        bytes.resize((16 + fields).next_multiple_of(8) + body, 0);
        stream.read_exact(&mut bytes[16..])?;
        let mut reader = Read1 { bytes: &bytes, at: 12 };
        let fields = reader.value("a(yv)")?;
        let field = |code: u64| {
            let found = fields.as_array().into_iter().flatten().find(|field| field[0] == code);
            found.and_then(|field| field[1].as_object()?.values().next()?.as_str()).unwrap_or_default().to_owned()
        };
        reader.align(8)?;
        let mut arguments = Vec::new();
        for one in split(&field(8))? {
            arguments.push(reader.value(&one)?);
        }
        ensure!(reader.at == bytes.len(), "{} bytes are left over", bytes.len() - reader.at);
        let member = field(3);
        let of_bus = matches!(member.as_str(), "Hello" | "AddMatch");
        let (destination, path, interface) = match member.as_str() {
            _ if of_bus => ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"),
            "Get" => ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.DBus.Properties"),
            _ => ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"),
        };
        ensure!((field(6), field(1), field(2)) == (destination.into(), path.into(), interface.into()), "{fields}");
        let expected = match member.as_str() {
            "Hello" | "Subscribe" => "",
            "AddMatch" | "ResetFailedUnit" => "s",
            "Get" | "StopUnit" => "ss",
            "SetUnitProperties" => "sba(sv)",
            "StartTransientUnit" => "ssa(sv)a(sa(sv))",
            other => bail!("there is no method {other}"),
        };
        ensure!(field(8) == expected, "{member} has the signature {:?}, not {expected:?}", field(8));
        ensure!(said_hello == (member != "Hello"), "{member} before or after Hello");
        said_hello = true;
        if let Ok(calls) = calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_mut() {
            calls.push((member.clone(), arguments.clone()));
        }
        let mut answers = Vec::new();
        let job = "/org/freedesktop/systemd1/job/7";
        match member.as_str() {
            "Get" => answers.push(reply(serial, "v", |out| {
                out.extend([1, b's', 0, 0]);
                let of_group = arguments[1] == "ControlGroup";
                text(out, if of_group { USER_SERVICE } else { "252 (252.39-1~deb12u1)" });
            })),
            "StartTransientUnit" if behaviour == Behaviour::Denies => {
                answers.push(error(serial, "Access denied by test"))
            }
            "StartTransientUnit" if behaviour == Behaviour::Mumbles => answers.push(vec![b'x'; 64]),
            "StartTransientUnit" | "StopUnit" => {
                if member == "StartTransientUnit" {
                    let pid = arguments[2].as_array().into_iter().flatten().find(|property| property[0] == "PIDs");
                    let pid = pid.and_then(|pids| pids[1]["au"][0].as_u64()).context("no process to begin with")?;
                    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is not there");
                }
                let result = if behaviour == Behaviour::FailsJobs && member != "StopUnit" { "failed" } else { "done" };
                let unit = arguments[0].as_str().unwrap_or_default().to_owned();
                // Another job first, and ours before the answer to the call: systemd may do both.
                answers.push(job_removed("/org/freedesktop/systemd1/job/6", &unit, "canceled"));
                answers.push(job_removed(job, &unit, result));
                answers.push(reply(serial, "o", |out| text(out, job)));
            }
            "ResetFailedUnit" => answers.push(error(serial, "Unit is not loaded.")),
            "Hello" => answers.push(reply(serial, "s", |out| text(out, ":1.5"))),
            _ => answers.push(reply(serial, "", |_| {})),
        }
        for answer in answers {
            stream.write_all(&answer)?;
        }
    }
}

/// The single types of a signature.
fn split(signature: &str) -> Result<Vec<String>> {
    let (mut found, mut depth, mut one) = (Vec::new(), 0, String::new());
    for letter in signature.chars() {
        one.push(letter);
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 && letter != 'a' {
            found.push(std::mem::take(&mut one));
        }
    }
    ensure!(one.is_empty() && depth == 0, "signature {signature:?}");
    Ok(found)
}

struct Read1<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Read1<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let taken = self.bytes.get(self.at..self.at + count).context("the message ends early")?;
        self.at += count;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<()> {
        while !self.at.is_multiple_of(to) {
            ensure!(self.take(1)? == [0], "padding that is not zero");
        }
        Ok(())
    }

    fn number(&mut self, width: usize) -> Result<u64> {
        self.align(width)?;
        Ok(self.take(width)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn text(&mut self, width: usize) -> Result<String> {
        let length = usize::try_from(self.number(width)?)?;
        let text = String::from_utf8(self.take(length)?.to_vec())?;
        ensure!(self.take(1)? == [0], "a text without an end");
        Ok(text)
    }

    /// One value. Those of variants keep their signature, as `{"t": 5}`.
    fn value(&mut self, signature: &str) -> Result<Value> {
        Ok(match signature.as_bytes() {
            b"y" => json!(self.take(1)?[0]),
            b"b" => match self.number(4)? {
                0 => json!(false),
                1 => json!(true),
                other => bail!("{other} is no boolean"),
            },
            b"u" => json!(self.number(4)?),
            b"t" => json!(self.number(8)?),
            b"s" | b"o" => json!(self.text(4)?),
            b"g" => json!(self.text(1)?),
            b"v" => {
                let inner = self.text(1)?;
                ensure!(split(&inner)?.len() == 1, "variant of {inner:?}");
                json!({ &inner: self.value(&inner)? })
            }
            [b'a', ..] => {
                let inner = &signature[1..];
                let length = usize::try_from(self.number(4)?)?;
                self.align(if inner.starts_with('(') || inner == "t" {
                    8
                } else if matches!(inner, "s" | "u" | "o") {
                    4
                } else {
                    1
                })?;
                let end = self.at + length;
                let mut items = Vec::new();
                while self.at < end {
                    items.push(self.value(inner)?);
                }
                ensure!(self.at == end, "an array that does not end with an element");
                json!(items)
            }
            [b'(', .., b')'] => {
                self.align(8)?;
                let inner = split(&signature[1..signature.len() - 1])?;
                json!(inner.iter().map(|one| self.value(one)).collect::<Result<Vec<_>>>()?)
            }
            _ => bail!("type {signature:?}"),
        })
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(length(text.as_bytes()).to_le_bytes());
    out.extend(text.as_bytes());
    out.push(0);
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("messages of tests are short")
}

fn message(kind: u8, fields: &[(u8, u8, &str)], reply_to: Option<u32>, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    let begin = |inner: &mut Vec<u8>, code: u8, kind: u8| {
        inner.resize(inner.len().next_multiple_of(8), 0);
        inner.extend([code, 1, kind, 0]);
    };
    for (code, kind, value) in fields {
        begin(&mut inner, *code, *kind);
        text(&mut inner, value);
    }
    if let Some(serial) = reply_to {
        begin(&mut inner, 5, b'u');
        inner.extend(serial.to_le_bytes());
    }
    if !signature.is_empty() {
        begin(&mut inner, 8, b'g');
        inner.push(length(signature.as_bytes()).to_le_bytes()[0]);
        inner.extend(signature.as_bytes());
        inner.push(0);
    }
    let mut out = vec![b'l', kind, 1, 1];
    out.extend(length(body).to_le_bytes());
    out.extend(9_u32.to_le_bytes());
    out.extend(length(&inner).to_le_bytes());
    out.extend(inner);
    out.resize(out.len().next_multiple_of(8), 0);
    out.extend(body);
    out
}

fn reply(serial: u32, signature: &str, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::new();
    write(&mut body);
    message(2, &[(7, b's', "org.freedesktop.systemd1")], Some(serial), signature, &body)
}

fn error(serial: u32, words: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, words);
    message(3, &[(4, b's', "org.freedesktop.DBus.Error.AccessDenied")], Some(serial), "s", &body)
}

fn job_removed(job: &str, unit: &str, result: &str) -> Vec<u8> {
    let mut body = 7_u32.to_le_bytes().to_vec();
    for word in [job, unit, result] {
        text(&mut body, word);
    }
    let fields = [
        (1, b'o', "/org/freedesktop/systemd1"),
        (2, b's', "org.freedesktop.systemd1.Manager"),
        (3, b's', "JobRemoved"),
    ];
    message(4, &fields, None, "uoss", &body)
}
