//! A container's scope: made, changed, stopped.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::LinuxResources;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

use super::bus::{Bus, BusError};
use super::properties::{self, Property};
use super::wire::{Message, Method, Reader, Value};
use crate::cgroup::{CgroupError, CgroupName, Hierarchies, Layout, Version};

/// A transient unit of systemd, by its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unit {
    /// The slice that it is in.
    slice: String,
    /// Its whole name.
    name: String,
    /// Whether it is one of the user's own systemd.
    of_user: bool,
}

impl Unit {
    /// Reads a `cgroupsPath` of the form that runtimes have with this driver, `SLICE:PREFIX:NAME`; without one, the container is
    /// `runc-ID.scope`, which other tools look for.
    ///
    /// # Errors
    /// [`CgroupError::UnitPath`], [`CgroupError::Unit`].
    pub fn new(path: Option<&str>, id: &str) -> Result<Self, CgroupError> {
        let of_user = is_of_user();
        let parts: Vec<&str> = path.map_or_else(|| vec!["", "runc", id], |path| path.split(':').collect());
        let [slice, prefix, name] = parts[..] else {
            return Err(CgroupError::UnitPath(path.unwrap_or_default().to_owned()));
        };
        let slice = match (slice, of_user) {
            ("", true) => "user.slice",
            ("", false) => "system.slice",
            (slice, _) => slice,
        };
        let name = match (prefix, name.ends_with(".slice")) {
            // Only a scope holds processes.
            (_, true) => return Err(CgroupError::Unit(name.to_owned())),
            ("", _) => format!("{name}.scope"),
            (prefix, _) => format!("{prefix}-{name}.scope"),
        };
        if !is_unit_name(&name) || slice_path(slice).is_none() {
            return Err(CgroupError::Unit(if is_unit_name(&name) { slice.to_owned() } else { name }));
        }
        Ok(Self { slice: slice.to_owned(), name, of_user })
    }

    /// Returns the place of its cgroup, below the root of each hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`]: where a user's units are only his systemd knows.
    pub fn cgroup(&self) -> Result<CgroupName, CgroupError> {
        let mut base = String::new();
        if self.of_user {
            base = Manager::connect(true)?.text("ControlGroup")?;
        }
        let slices = slice_path(&self.slice).unwrap_or_default();
        CgroupName::new(&format!("{base}/{slices}/{}", self.name))
    }

    /// Tells systemd of changed limits.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`].
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let mut manager = Manager::connect(self.of_user)?;
        let version = manager.version()?;
        let properties = properties::of_resources(resources, kind_of_host()?, version)?;
        if properties.is_empty() {
            return Ok(());
        }
        // What a transient unit is changed to need not outlive it.
        let arguments = [Value::Text(self.name.clone()), Value::Bool(true), Value::Properties(properties)];
        manager.call("SetUnitProperties", &arguments)?;
        Ok(())
    }

    /// Ends what is left in it, and waits until it is gone. One that is gone already is success.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`].
    pub fn stop(&self) -> Result<(), CgroupError> {
        let mut manager = Manager::connect(self.of_user)?;
        match manager.run_job(&self.name, "StopUnit", &[Value::Text(self.name.clone()), replace()]) {
            Err(error) if error.is(NO_SUCH_UNIT) => return Ok(()),
            result => result?,
        }
        manager.forget_failure(&self.name);
        Ok(())
    }

    fn start(&self, pid: u32, resources: Option<&LinuxResources>) -> Result<(), CgroupError> {
        let mut manager = Manager::connect(self.of_user)?;
        let version = manager.version()?;
        let host = kind_of_host()?;
        let mut all: Vec<Property> = vec![
            ("Description", Value::Text(format!("strata container {}", self.name))),
            ("Slice", Value::Text(self.slice.clone())),
            // Ours with all below it: systemd changes nothing in there by itself.
            ("Delegate", Value::Bool(true)),
            ("PIDs", Value::Numbers(vec![pid])),
            ("MemoryAccounting", Value::Bool(true)),
            ("CPUAccounting", Value::Bool(true)),
            (if host == Version::V2 { "IOAccounting" } else { "BlockIOAccounting" }, Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
            // It neither waits for the system to come up nor is stopped before everything else when that goes down.
            ("DefaultDependencies", Value::Bool(false)),
        ];
        if let Some(resources) = resources {
            all.extend(properties::of_resources(resources, host, version)?);
        }
        let arguments = [Value::Text(self.name.clone()), replace(), Value::Properties(all), Value::NoUnits];
        match manager.run_job(&self.name, "StartTransientUnit", &arguments) {
            // One of that name has failed before, and systemd still shows it.
            Err(error) if error.is(UNIT_EXISTS) => {
                manager.forget_failure(&self.name);
                manager.run_job(&self.name, "StartTransientUnit", &arguments)?;
            }
            result => result?,
        }
        Ok(())
    }
}

/// Asks whether a systemd makes units for this user: the machine's for root, else one of his own.
///
/// # Errors
/// [`BusError`]: why not.
pub fn is_reachable() -> Result<(), BusError> {
    if !is_of_user() {
        return Bus::open(false).map(drop);
    }
    // Only within what is his own may a plain user move processes about.
    let theirs = Manager::connect(true)?.text("ControlGroup")?;
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    match std::path::Path::new(own).starts_with(&theirs) {
        true => Ok(()),
        false => Err(BusError::Elsewhere { own: own.to_owned(), theirs }),
    }
}

fn is_of_user() -> bool {
    !(rustix::process::geteuid().is_root() && crate::userns::is_initial())
}

/// A scope that has been made, and is kept alive by a process of ours that does nothing. Dropped, it is stopped.
#[derive(Debug)]
pub(crate) struct Scope {
    unit: Unit,
    keeper: Option<Keeper>,
}

impl Scope {
    /// Has systemd make it.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`].
    pub(crate) fn start(unit: &Unit, resources: Option<&LinuxResources>) -> Result<Self, CgroupError> {
        let keeper = Keeper::new().map_err(|source| CgroupError::Keeper { source })?;
        unit.start(keeper.pid, resources)?;
        Ok(Self { unit: unit.clone(), keeper: Some(keeper) })
    }

    /// From here on it lives as long as the processes that have come into it.
    pub(crate) fn keep(mut self) {
        self.keeper = None;
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            drop(keeper);
            if let Err(error) = self.unit.stop() {
                tracing::warn!(%error, "scope not stopped after a failed start");
            }
        }
    }
}

/// A process that waits for its end.
#[derive(Debug)]
struct Keeper {
    pid: u32,
    pidfd: OwnedFd,
    /// Closed by our end, it ends too.
    _alive: OwnedFd,
}

impl Keeper {
    fn new() -> std::io::Result<Self> {
        let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (pid, pidfd) = crate::spawn::clone_process(0, None, &theirs, |theirs| {
            // Whoever waits for the end of a pipe, a socket or a lock of ours must not wait for this process. Where this fails,
            // there is only the signal.
            let _ = strata_sys::process::close_from_except(0, [theirs.as_fd()]);
            // Both, since the container's first process has a copy of our end for a while.
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            let mut byte = [0_u8; 1];
            while let Err(rustix::io::Errno::INTR) = rustix::io::read(theirs, &mut byte) {}
            strata_sys::process::exit_now(0)
        })?;
        Ok(Self { pid, pidfd, _alive: ours })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Fails only when it is gone already.
        let _ = strata_sys::pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {}
    }
}

/// systemd's manager of units.
#[derive(Debug)]
struct Manager {
    bus: Bus,
}

impl Manager {
    fn connect(of_user: bool) -> Result<Self, BusError> {
        Ok(Self { bus: Bus::open(of_user)? })
    }

    fn call(&mut self, member: &str, arguments: &[Value]) -> Result<Message, BusError> {
        self.bus.call(Method { destination: SYSTEMD, path: MANAGER_PATH, interface: MANAGER, member }, arguments)
    }

    fn text(&mut self, property: &'static str) -> Result<String, BusError> {
        let text = |text: &str| Value::Text(text.to_owned());
        let get = Method {
            destination: SYSTEMD,
            path: MANAGER_PATH,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
        };
        let answer = self.bus.call(get, &[text(MANAGER), text(property)])?;
        let mut reader = Reader::of_body(&answer);
        let read = reader.signature().and_then(|_| reader.text());
        read.map_err(|source| BusError::Broken { call: format!("property {property}"), source })
    }

    /// `252 (252.39-1~deb12u1)`, `v256.7`
    fn version(&mut self) -> Result<u32, BusError> {
        let text = self.text("Version")?;
        let digits: String =
            text.chars().skip_while(|it| !it.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        // One that does not say is taken for an old one.
        Ok(digits.parse().unwrap_or(0))
    }

    /// Calls what begins a job, and waits until that is done.
    fn run_job(&mut self, unit: &str, member: &str, arguments: &[Value]) -> Result<(), BusError> {
        // Before the call: the job can be over before its answer is here.
        let rule = format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'");
        let add = Method {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "AddMatch",
        };
        self.bus.call(add, &[Value::Text(rule)])?;
        self.call("Subscribe", &[])
            .or_else(|error| if error.is(ALREADY_SUBSCRIBED) { Ok(Message::default()) } else { Err(error) })?;
        let answer = self.call(member, arguments)?;
        let job = Reader::of_body(&answer).text();
        let job = job.map_err(|source| BusError::Broken { call: member.to_owned(), source })?;
        let result = self.bus.wait(member, |signal| {
            if signal.member.as_deref() != Some("JobRemoved") || signal.signature != "uoss" {
                return Ok(None);
            }
            let mut reader = Reader::of_body(signal);
            reader.u32()?;
            let (removed, _, result) = (reader.text()?, reader.text()?, reader.text()?);
            Ok((removed == job).then_some(result))
        })?;
        match result.as_str() {
            "done" => Ok(()),
            _ => Err(BusError::Job { unit: unit.to_owned(), result }),
        }
    }

    /// Has systemd forget a unit that failed; for one that did not, this fails and changes nothing.
    fn forget_failure(&mut self, unit: &str) {
        let _ = self.call("ResetFailedUnit", &[Value::Text(unit.to_owned())]);
    }
}

fn kind_of_host() -> Result<Version, CgroupError> {
    Ok(match Hierarchies::detect()?.layout() {
        Layout::V2 => Version::V2,
        _ => Version::V1,
    })
}

fn replace() -> Value {
    Value::Text("replace".to_owned())
}

/// What systemd takes for a name, without `/`, which would leave the folder.
fn is_unit_name(name: &str) -> bool {
    let known = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
    name.len() < 256 && !name.starts_with('.') && name.chars().all(known)
}

/// `a-b.slice` lies in `a.slice`: the path is both.
fn slice_path(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(String::new());
    }
    if !is_unit_name(slice) || name.split('-').any(str::is_empty) {
        return None;
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Some(ends.map(|end| format!("{}.slice", &name[..end])).collect::<Vec<_>>().join("/"))
}

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_slices() {
        for (slice, path) in [
            ("system.slice", Some("system.slice")),
            ("a-b-c.slice", Some("a.slice/a-b.slice/a-b-c.slice")),
            ("-.slice", Some("")),
            ("a--b.slice", None),
            ("-a.slice", None),
            ("a/b.slice", None),
            ("system", None),
        ] {
            assert_eq!(slice_path(slice).as_deref(), path, "{slice}");
        }
    }

    #[test]
    fn paths_name_units() {
        let name = |path: Option<&str>| Unit::new(path, "c1").map(|unit| (unit.slice, unit.name)).ok();
        let pair = |slice: &str, name: &str| Some((slice.to_owned(), name.to_owned()));
        assert_eq!(name(Some("a-b.slice:crio:x")), pair("a-b.slice", "crio-x.scope"));
        assert_eq!(name(Some("a.slice::x")), pair("a.slice", "x.scope"));
        assert_eq!(name(None).unwrap().1, "runc-c1.scope");
        for bad in ["a", "/a/b", "a.slice:b", "a:b:c", "a.slice:p:x/y", "a.slice:p:x.slice", "a.slice:b:c:d"] {
            assert_eq!(name(Some(bad)), None, "{bad}");
        }
    }
}
