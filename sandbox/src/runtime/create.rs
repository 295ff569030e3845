//! `create`: everything of a container but its program.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use oci_spec::runtime::Spec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::bundle::{self, Bundle};
use super::container::{Claim, claim, hook_state};
use super::delete::remove_folder;
use super::init::Init;
use super::record::{FORMAT, Record, write_file};
use super::{Container, ContainerId, Runtime, RuntimeError, hooks, rootless};
use crate::cgroup::systemd::Unit;
use crate::cgroup::{Cgroup, CgroupManager, CgroupName};
use crate::create::{Creation, Stages};
use crate::{Identity, Inherited, Landlock, Launch, Root, Running, SpawnError, Stdio, WindowSize};

/// How a container is to be made.
#[derive(Debug)]
pub struct Create<'a> {
    /// The folder of the bundle.
    pub bundle: &'a Path,
    /// What of the caller's the process keeps.
    pub inherited: Inherited,
    /// Receives the terminal's other end, if the spec asks for a terminal.
    pub console: Option<&'a mut dyn Receiver>,
    /// Receives a descriptor of the process.
    pub pidfd: Option<&'a mut dyn Receiver>,
    /// Receives the number of the process as text.
    pub pid_file: Option<&'a Path>,
}

/// Somebody who takes a descriptor.
pub trait Receiver: std::fmt::Debug {
    /// Takes it.
    ///
    /// # Errors
    /// Whatever stands against it; the container is not made then.
    fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<()>;
}

impl Runtime {
    /// Makes a container whose program waits to be started. Returns it, locked against changes by others as long as it is
    /// not dropped or started, and what was asked for and left out.
    ///
    /// # Errors
    /// [`RuntimeError`]; nothing of the container is left then.
    pub fn create(&self, id: &ContainerId, options: Create<'_>) -> Result<(Container, Vec<String>), RuntimeError> {
        let mut bundle = Bundle::read(options.bundle)?;
        if self.ids_outside {
            rootless::translate(&mut bundle.spec)?;
        }
        let terminal = bundle.spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true));
        if terminal && options.console.is_none() {
            let text = "cannot allocate tty if runc will detach without setting console socket";
            return Err(RuntimeError::InvalidArgument(text.into()));
        }
        let record = new_record(id, &bundle, self.cgroup_manager, self.ids_outside)?;
        let folder = self.take_name(id)?;
        let path = self.root().join(id.as_str());
        let mut made = Making { path: &path, folder: Some(Rc::new(folder)), spec: &bundle.spec, record, exists: false };
        match made.make(&bundle, options) {
            Ok(running) => {
                let folder = made.folder.take().and_then(Rc::into_inner).ok_or(RuntimeError::NotFound)?;
                let record = made.record.clone();
                drop(made);
                let cgroup = OnceCell::from(running.cgroup().map(Cgroup::places));
                let spec = OnceCell::from(bundle.spec);
                let container = Container { id: id.clone(), path, folder, record, spec, cgroup };
                Ok((container, running.warnings().to_vec()))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a name that is free, or that only a killed command has left taken.
    fn take_name(&self, id: &ContainerId) -> Result<OwnedFd, RuntimeError> {
        loop {
            match claim(self.root(), id)? {
                Claim::New(folder) => return Ok(folder),
                Claim::Left(folder) => {
                    let path = self.root().join(id.as_str());
                    match Container::open(self.root(), id) {
                        Ok(left) if left.record.complete => return Err(RuntimeError::Exists),
                        // A `create` that did not come to its end: what it made goes with it.
                        Ok(left) => left.destroy_locked()?,
                        Err(RuntimeError::NotFound) => remove_folder(&path)?,
                        // What it says nobody knows, so it is not ours to throw away.
                        Err(error) => return Err(error),
                    }
                    drop(folder);
                }
            }
        }
    }
}

fn new_record(
    id: &ContainerId,
    bundle: &Bundle,
    cgroup_manager: CgroupManager,
    ids_outside: bool,
) -> Result<Record, RuntimeError> {
    let linux = bundle.spec.linux().as_ref();
    let asked = linux.and_then(|linux| linux.cgroups_path().as_ref()).filter(|path| !path.as_os_str().is_empty());
    let asked = asked.map(|path| path.to_string_lossy().into_owned());
    let unit = match cgroup_manager {
        CgroupManager::Cgroupfs => None,
        CgroupManager::Systemd => Some(Unit::new(asked.as_deref(), id.as_str())?),
    };
    let cgroup = match &unit {
        Some(unit) => unit.cgroup()?.to_string(),
        None => asked.unwrap_or_else(|| id.to_string()),
    };
    Ok(Record {
        format: FORMAT,
        id: id.to_string(),
        oci_version: bundle.spec.version().clone(),
        bundle: bundle.folder.clone(),
        rootfs: bundle.rootfs.clone(),
        created: timestamp(SystemTime::now()),
        owner: if ids_outside { crate::userns::uid_outside() } else { rustix::process::geteuid().as_raw() },
        init: None,
        complete: false,
        cgroup: Some(cgroup),
        unit,
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
    })
}

/// A container that is being made. Dropped with its folder, it removes that.
struct Making<'a> {
    path: &'a Path,
    /// The only descriptor of it, which has the lock.
    folder: Option<Rc<OwnedFd>>,
    spec: &'a Spec,
    record: Record,
    /// Whether its first process was ever there: then hooks may have run, and `poststop` undoes what they did.
    exists: bool,
}

impl Making<'_> {
    fn make(&mut self, bundle: &Bundle, options: Create<'_>) -> Result<Running, RuntimeError> {
        let folder = self.folder.clone().ok_or(RuntimeError::NotFound)?;
        let failed = |source| RuntimeError::Folder { path: self.path.to_owned(), source };
        self.record.write(folder.as_fd()).map_err(failed)?;
        write_file(folder.as_fd(), bundle::CONFIG, &bundle.text).map_err(failed)?;

        let process = bundle.spec.process().as_ref();
        let terminal = process.is_some_and(|process| process.terminal() == Some(true));
        let size = process.and_then(|process| process.console_size()).and_then(|size| {
            let size = WindowSize { rows: size.height().try_into().ok()?, columns: size.width().try_into().ok()? };
            (size.rows > 0 || size.columns > 0).then_some(size)
        });
        let cgroup = self.record.cgroup.as_deref().map(CgroupName::new).transpose()?;
        let state = hook_state(&self.record);
        let unit = self.record.unit.clone();
        let launch = Launch {
            unit: unit.as_ref(),
            stdio: if terminal { Stdio::Terminal { size } } else { Stdio::Inherit },
            cgroup,
            landlock: landlock_of(&self.record),
            identity: Identity { id: &state.id, bundle: &state.bundle },
            inherited: options.inherited,
            ..Launch::new(&bundle.spec, Root::Path(bundle.rootfs.clone()))
        };
        let mut stages = Steps { making: self, options };
        let creation =
            Creation { folder: folder.as_fd(), state: state.clone(), root: &bundle.rootfs, stages: &mut stages };
        crate::create::create(launch, creation).map_err(RuntimeError::Spawn)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if self.folder.is_none() {
            return;
        }
        if self.exists {
            let poststop = self.spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref());
            let state = hook_state(&self.record).json("stopped", None);
            for warning in hooks::run_each("poststop", poststop, &state) {
                tracing::warn!("{warning}");
            }
        }
        if let Err(error) = remove_folder(self.path) {
            tracing::warn!(%error, "state folder not removed after a failed start");
        }
    }
}

/// What is done along the way.
struct Steps<'a, 'b, 'c> {
    making: &'a mut Making<'b>,
    options: Create<'c>,
}

impl Steps<'_, '_, '_> {
    fn write(&self) -> Result<(), SpawnError> {
        let fail = |source| SpawnError::Stage { what: "write the state of the container", source };
        let folder = self.making.folder.as_ref().ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        self.making.record.write(folder.as_fd()).map_err(fail)
    }
}

impl Stages for Steps<'_, '_, '_> {
    fn cloned(&mut self, pid: u32) -> Result<(), SpawnError> {
        let init = Init::of(pid).map_err(|source| SpawnError::Stage { what: "look at the new process", source })?;
        self.making.record.init = Some(init);
        self.making.exists = true;
        self.write()
    }

    fn mounted(&mut self, pid: u32) -> Result<(), SpawnError> {
        let Some(hooks) = self.making.spec.hooks() else { return Ok(()) };
        let state = hook_state(&self.making.record).json("creating", Some(pid));
        hooks::run_all("prestart", hooks.prestart().as_ref(), &state)?;
        hooks::run_all("createRuntime", hooks.create_runtime().as_ref(), &state)?;
        Ok(())
    }

    fn ready(&mut self, pid: u32, console: Option<BorrowedFd<'_>>) -> Result<(), SpawnError> {
        if let (Some(console), Some(receiver)) = (console, self.options.console.as_deref_mut()) {
            receiver.receive(console).map_err(|source| SpawnError::Stage { what: "pass on the terminal", source })?;
        }
        if let Some(receiver) = self.options.pidfd.as_deref_mut() {
            send_pidfd(pid, receiver).map_err(|source| SpawnError::Stage { what: "pass on the pidfd", source })?;
        }
        if let Some(path) = self.options.pid_file {
            write_pid_file(path, pid).map_err(|source| SpawnError::Stage { what: "write the pid file", source })?;
        }
        self.making.record.complete = true;
        self.write()
    }
}

pub(super) fn send_pidfd(pid: u32, receiver: &mut dyn Receiver) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    // Our child, not reaped: the number is its own.
    receiver.receive(pidfd_open(pid, PidfdFlags::empty())?.as_fd())
}

/// Writes the number so that whoever sees the file sees all of it.
pub(super) fn write_pid_file(path: &Path, pid: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let temporary: PathBuf = path.with_file_name(temporary);
    fs::write(&temporary, pid.to_string())?;
    fs::rename(&temporary, path)
}

/// The second wall is put up when the bundle asks for it: images and tools that look at one process from another of the
/// same container work unchanged without it.
pub(super) fn landlock_of(record: &Record) -> Landlock {
    match record.annotations.get(LANDLOCK_ANNOTATION).map(String::as_str) {
        Some("auto") => Landlock::Auto,
        _ => Landlock::Off,
    }
}

/// `auto` puts landlock up where it denies nothing that the other walls allow.
const LANDLOCK_ANNOTATION: &str = "dev.strata.landlock";

/// RFC 3339 with nanoseconds, UTC.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // From days to a date, counting years from March (Howard Hinnant's civil_from_days).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_written_as_in_rfc_3339() {
        let at = |seconds, nanoseconds| timestamp(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_399, 5), "2000-02-28T23:59:59.000000005Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(4_102_444_799, 999_999_999), "2099-12-31T23:59:59.999999999Z");
    }
}
