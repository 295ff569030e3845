//! The directories of one container in all hierarchies: made, limited, entered, emptied, removed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};

use super::devices::DeviceRule;
use super::limits::{Shortage, apply, refuse_below_usage};
use super::settings::{Wanted, wanted};
use super::{CgroupError, CgroupName, Hierarchies, Hierarchy, Version, device_program};

/// A container's directory in each hierarchy.
///
/// Dropping it leaves the directories; [`remove`](Cgroup::remove) takes them away.
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
}

/// Where a cgroup is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// Below the root of each hierarchy, or where this user may make one; it must be new.
    Ours(&'a CgroupName),
    /// Below the root of each hierarchy; systemd has made some of its directories and handed them over.
    Delegated(&'a CgroupName),
}

/// The directory in one hierarchy.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) version: Version,
    /// Where its hierarchy is mounted.
    mount: PathBuf,
    pub(super) path: PathBuf,
    pub(super) controllers: Vec<String>,
    /// Open for `CLONE_INTO_CGROUP`; v2 only.
    directory: Option<OwnedFd>,
}

impl Cgroup {
    /// Makes the directories and applies `resources`. The second value lists what Docker merely warns about.
    ///
    /// A user who may not make cgroups gets none, as long as no limit asks for one.
    ///
    /// # Errors
    /// [`CgroupError`]; whatever was made before the failure is removed again.
    pub fn create(name: &CgroupName, resources: Option<&LinuxResources>) -> Result<(Self, Vec<String>), CgroupError> {
        Self::create_with(name, resources, Shortage::Refused)
    }

    /// As [`create`](Self::create), with a choice of what a limit means that this host or user cannot have.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_with(
        name: &CgroupName,
        resources: Option<&LinuxResources>,
        shortage: Shortage,
    ) -> Result<(Self, Vec<String>), CgroupError> {
        Self::create_at(Place::Ours(name), resources, shortage)
    }

    /// As [`create_with`](Self::create_with), where the directory of v2, or of systemd itself, may be there already.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub(crate) fn create_at(
        place: Place<'_>,
        resources: Option<&LinuxResources>,
        shortage: Shortage,
    ) -> Result<(Self, Vec<String>), CgroupError> {
        let hierarchies = Hierarchies::detect()?;
        let mut made = Self { groups: Vec::new() };
        let mut warnings = Vec::new();
        match made.fill(&hierarchies, place, resources, shortage, &mut warnings) {
            Ok(()) => Ok((made, warnings)),
            Err(error) => {
                if let Err(cleanup) = made.remove() {
                    tracing::warn!(error = %cleanup, "cgroup not removed after a failed start");
                }
                Err(error)
            }
        }
    }

    /// Finds the directories that `name` has, such as those a killed monitor left behind.
    ///
    /// # Errors
    /// [`CgroupError::Detect`].
    pub fn open(name: &CgroupName) -> Result<Self, CgroupError> {
        let hierarchies = Hierarchies::detect()?;
        let groups = hierarchies.iter().filter_map(|hierarchy| {
            let path = hierarchy.bases().into_iter().map(|base| base.join(name.as_str())).find(|path| path.is_dir())?;
            let controllers = hierarchy.controllers.clone();
            let mount = hierarchy.mount.clone();
            Some(Group { version: hierarchy.version, mount, directory: None, path, controllers })
        });
        Ok(Self { groups: groups.collect() })
    }

    /// Returns the same directories, not held open.
    pub(crate) fn places(&self) -> Self {
        Self { groups: self.groups.iter().map(Group::clone_place).collect() }
    }

    /// Tells whether no hierarchy has a directory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns the v2 directory, in which a child can be born.
    #[must_use]
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.groups.iter().find_map(|group| group.directory.as_ref().map(AsFd::as_fd))
    }

    /// Returns the directory of `controller`.
    #[must_use]
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        self.with_controller(controller).map(|group| group.path.as_path())
    }

    /// Opens the way into every directory, except the v2 one when the process was born in it.
    ///
    /// # Errors
    /// [`CgroupError::Attach`].
    pub(crate) fn doors(&self, born_in_unified: bool) -> Result<Vec<Door>, CgroupError> {
        let groups = self.groups.iter().filter(|group| !(born_in_unified && group.directory.is_some()));
        groups.map(Group::door).collect()
    }

    /// Opens the ways in for a process that is added beside process `init`.
    ///
    /// A container that manages cgroups of its own has moved its first process into one below and handed controllers on; version
    /// 2 then lets no process into the container's own directory. That of `init` is the second choice there, as long as it
    /// lies below: a container that got its first process out of its limits gets no other out with it.
    ///
    /// # Errors
    /// [`CgroupError::Attach`].
    pub(crate) fn doors_beside(&self, init: u32) -> Result<Vec<Door>, CgroupError> {
        let door = |group: &Group| {
            let instead = if group.version == Version::V2 { group.file_of_process(init) } else { None };
            Ok(Door { instead, ..group.door()? })
        };
        self.groups.iter().map(door).collect()
    }

    /// Opens the way into `below`, a directory that the container has made below its own in some hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::Name`], [`CgroupError::Attach`].
    pub(crate) fn doors_at(&self, below: &CgroupName) -> Result<Vec<Door>, CgroupError> {
        let mut doors = Vec::new();
        let mut found = false;
        for group in &self.groups {
            let inner = Group { path: group.path.join(below.as_str()), directory: None, ..group.clone_place() };
            let exists = inner.path.is_dir();
            found |= exists;
            doors.push(if exists { inner.door()? } else { group.door()? });
        }
        if found { Ok(doors) } else { Err(CgroupError::Name(below.as_str().to_owned())) }
    }

    /// Moves process `pid` into every directory.
    ///
    /// # Errors
    /// [`CgroupError::Attach`], [`CgroupError::RealTime`].
    pub fn attach(&self, pid: u32) -> Result<(), CgroupError> {
        for group in &self.groups {
            fs::write(group.path.join("cgroup.procs"), pid.to_string())
                .map_err(|source| attach_error(group.path.clone(), group.counts_real_time(), source))?;
        }
        Ok(())
    }

    /// Lists the processes inside.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let Some(group) = self.groups.first() else { return Vec::new() };
        let text = fs::read_to_string(group.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Lists the processes inside, also those in groups that the container has made below.
    #[must_use]
    pub fn all_processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        if let Some(group) = self.groups.first() {
            collect_processes(&group.path, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Tells whether the kernel killed a process inside for memory.
    #[must_use]
    pub fn had_oom_kill(&self) -> bool {
        let Some(group) = self.with_controller("memory") else { return false };
        let file = match group.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(group.path.join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }

    /// Tells whether there is a directory through which the processes inside can be stopped.
    #[must_use]
    pub fn can_freeze(&self) -> bool {
        self.with_controller("freezer").is_some() || self.groups.iter().any(|group| group.version == Version::V2)
    }

    /// Tells whether the processes inside have been stopped.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let v1 = self.with_controller("freezer");
        let v2 = self.groups.iter().find(|group| group.version == Version::V2);
        let Some(group) = v1.or(v2) else { return false };
        let (file, frozen) = match group.version {
            Version::V1 => ("freezer.self_freezing", "1"),
            Version::V2 => ("cgroup.freeze", "1"),
        };
        fs::read_to_string(group.path.join(file)).is_ok_and(|text| text.trim() == frozen)
    }

    /// Stops every process inside where it is.
    ///
    /// # Errors
    /// [`CgroupError::Freeze`].
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`CgroupError::Freeze`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    /// Looks whether limits can be changed to these, as [`update`](Self::update) does first. Whoever else is told of them is to be
    /// told afterwards.
    ///
    /// # Errors
    /// [`CgroupError::NoController`], [`CgroupError::BelowUsage`].
    pub fn check(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let wanted = wanted(resources, self.with_controller("io").map_or("blkio", |_| "io"));
        let found = |limit: &Wanted| self.with_controller(&limit.controller).map(|group| group.version);
        if let Some(missing) = wanted.iter().find(|limit| !limit.is_met_by(found(limit))) {
            return Err(missing.without_controller());
        }
        self.groups.iter().try_for_each(|group| refuse_below_usage(group, resources))
    }

    /// Changes limits of a running container.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn update(&self, resources: &LinuxResources) -> Result<Vec<String>, CgroupError> {
        self.check(resources)?;
        let mut warnings = Vec::new();
        for group in &self.groups {
            apply(group, resources, Shortage::Refused, &mut warnings)?;
        }
        Ok(warnings)
    }

    /// Kills what is left inside and removes the directories. Already removed is success.
    ///
    /// # Errors
    /// [`CgroupError::Remove`] when processes do not die within two seconds.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for group in &self.groups {
            remove_directory(&group.path)?;
        }
        Ok(())
    }

    /// Returns the directory of a controller, and of which version that is.
    pub(crate) fn place_of(&self, controller: &str) -> Option<(&Path, Version)> {
        let group = self.with_controller(controller)?;
        Some((&group.path, group.version))
    }

    fn with_controller(&self, controller: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.controllers.iter().any(|name| name == controller))
    }

    fn fill(
        &mut self,
        hierarchies: &Hierarchies,
        place: Place<'_>,
        resources: Option<&LinuxResources>,
        shortage: Shortage,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        let block = hierarchies.with_controller("io").map_or("blkio", |_| "io");
        let mut wanted = resources.map(|resources| wanted(resources, block)).unwrap_or_default();
        let found = |limit: &Wanted| hierarchies.with_controller(&limit.controller).map(|hierarchy| hierarchy.version);
        for missing in wanted.extract_if(.., |limit| !limit.is_met_by(found(limit))) {
            shortage.meet(missing.without_controller(), warnings)?;
        }
        let has_files =
            resources.is_some_and(|resources| resources.unified().as_ref().is_some_and(|files| !files.is_empty()));
        if has_files && !hierarchies.iter().any(|hierarchy| hierarchy.version == Version::V2) {
            let (controller, setting) = ("v2".to_owned(), "resources.unified".to_owned());
            shortage.meet(CgroupError::NoController { controller, setting }, warnings)?;
        }
        // What cannot be handed on shows when it is set.
        let controllers: Vec<_> = match shortage {
            Shortage::Refused => wanted.iter().map(|limit| limit.controller.as_str()).collect(),
            Shortage::Told => Vec::new(),
        };
        for hierarchy in hierarchies.iter() {
            match make(hierarchy, place, &controllers) {
                Ok(group) => self.groups.push(group),
                Err(CgroupError::Create { source, path }) if is_denied(&source) => {
                    let has = |controller: &str| hierarchy.controllers.iter().any(|name| name == controller);
                    for limit in wanted.iter().filter(|limit| has(&limit.controller)) {
                        let source = io::Error::from_raw_os_error(source.raw_os_error().unwrap_or(libc::EACCES));
                        shortage.meet(CgroupError::NotDelegated { setting: limit.name.clone(), source }, warnings)?;
                    }
                    tracing::debug!(?path, "no cgroup in this hierarchy: not delegated");
                }
                Err(error) => return Err(error),
            }
        }
        let Some(resources) = resources else { return Ok(()) };
        for group in &self.groups {
            apply(group, resources, shortage, warnings)?;
        }
        let rules = resources.devices().iter().flatten().map(DeviceRule::from_oci).collect::<Result<Vec<_>, _>>()?;
        self.restrict_devices(&rules)
    }

    fn restrict_devices(&self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        if rules.is_empty() {
            return Ok(());
        }
        if let Some(group) = self.with_controller("devices") {
            // Each opened once, for a dozen rules.
            let mut files = [("devices.deny", None), ("devices.allow", None)];
            for rule in rules {
                let (name, opened) = &mut files[usize::from(rule.allow)];
                for value in rule.v1_lines() {
                    write_again(opened, &group.path.join(*name), &value).map_err(|source| CgroupError::Set {
                        file: (*name).to_owned(),
                        value,
                        source,
                    })?;
                }
            }
            return Ok(());
        }
        let Some(group) = self.groups.iter().find(|group| group.directory.is_some()) else { return Ok(()) };
        let directory = group.directory.as_ref().expect("just found by it").as_fd();
        match attach_device_rules(directory, rules) {
            // In a user namespace the call is refused, and the kernel already keeps foreign devices from its mounts.
            Err(error) if is_denied(&error) && !crate::userns::is_initial() => Ok(()),
            result => result.map_err(|source| CgroupError::DeviceProgram { path: group.path.clone(), source }),
        }
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let action = if frozen { "freeze" } else { "thaw" };
        let v1 = self.with_controller("freezer");
        let v2 = self.groups.iter().find(|group| group.version == Version::V2);
        let Some(group) = v1.or(v2) else { return Ok(()) };
        let fail = |source| CgroupError::Freeze { action, path: group.path.clone(), source };
        let (file, value, state_file, reached) = match (group.version, frozen) {
            (Version::V1, true) => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
            (Version::V1, false) => ("freezer.state", "THAWED", "freezer.state", "THAWED"),
            (Version::V2, true) => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
            (Version::V2, false) => ("cgroup.freeze", "0", "cgroup.events", "frozen 0"),
        };
        let deadline = Instant::now() + PATIENCE;
        let reach = || loop {
            fs::write(group.path.join(file), value)?;
            let state = fs::read_to_string(group.path.join(state_file))?;
            if state.lines().any(|line| line == reached) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let result = reach();
        if frozen && result.is_err() {
            // Half frozen is worse than not at all: nobody would let go of those that stand still.
            let thaw = if group.version == Version::V1 { "THAWED" } else { "0" };
            let _ = fs::write(group.path.join(file), thaw);
        }
        result.map_err(fail)
    }
}

/// The open file through which a process moves itself into a directory: it writes `0`, itself.
#[derive(Debug)]
pub(crate) struct Door {
    file: OwnedFd,
    /// Where to go when that is closed to processes.
    instead: Option<OwnedFd>,
    path: PathBuf,
    counts_real_time: bool,
}

impl Door {
    /// Moves the calling thread, which is all of its process. Allocates nothing.
    pub(crate) fn enter(&self) -> Result<(), rustix::io::Errno> {
        match (rustix::io::write(&self.file, b"0"), &self.instead) {
            (Err(rustix::io::Errno::BUSY), Some(instead)) => rustix::io::write(instead, b"0").map(drop),
            (result, _) => result.map(drop),
        }
    }

    /// Says why [`enter`](Self::enter) failed.
    pub(crate) fn error(&self, source: io::Error) -> CgroupError {
        attach_error(self.path.clone(), self.counts_real_time, source)
    }
}

impl Group {
    /// The same directory, not held open.
    fn clone_place(&self) -> Self {
        let (mount, path, controllers) = (self.mount.clone(), self.path.clone(), self.controllers.clone());
        Self { version: self.version, mount, path, controllers, directory: None }
    }

    /// Opens the way in.
    ///
    /// In version 1 that is `tasks`: the kernel moves a thread that names itself at once, but before it moves any other
    /// thread or a process it waits for an RCU grace period, milliseconds for each of nine hierarchies
    /// (`cgroup_procs_write_start`).
    fn door(&self) -> Result<Door, CgroupError> {
        let name = match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        };
        let file = rustix::fs::open(self.path.join(name), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| attach_error(self.path.clone(), false, errno.into()))?;
        Ok(Door { file, instead: None, path: self.path.clone(), counts_real_time: self.counts_real_time() })
    }

    /// Opens the way into the directory of process `pid`, if that lies below this one.
    fn file_of_process(&self, pid: u32) -> Option<OwnedFd> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let place = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let below = part_below(self.path.strip_prefix(&self.mount).ok()?, place)?;
        let file = self.path.join(below).join("cgroup.procs");
        rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// Tells whether real-time processes need a budget here.
    fn counts_real_time(&self) -> bool {
        self.version == Version::V1 && self.controllers.iter().any(|name| name == "cpu")
    }
}

/// What of `place`, a path as `/proc/PID/cgroup` has it, comes after `group`; nothing for `group` itself and what lies elsewhere.
fn part_below<'a>(group: &Path, place: &'a str) -> Option<&'a Path> {
    let below = Path::new(place).strip_prefix("/").ok()?.strip_prefix(group).ok()?;
    let mut parts = below.components().peekable();
    (parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))).then_some(below)
}

fn attach_error(path: PathBuf, counts_real_time: bool, source: io::Error) -> CgroupError {
    if counts_real_time && source.raw_os_error() == Some(libc::EINVAL) {
        CgroupError::RealTime { path, source }
    } else {
        CgroupError::Attach { path, source }
    }
}

/// Attaches `rules` as a program to the v2 directory.
fn attach_device_rules(directory: BorrowedFd<'_>, rules: &[DeviceRule]) -> io::Result<()> {
    let program = strata_sys::bpf::load_device_program(&device_program::compile(rules))?;
    strata_sys::bpf::attach_device_program(directory, program.as_fd())
}

/// Makes the directory in one hierarchy, at the first place where that is allowed.
fn make(hierarchy: &Hierarchy, place: Place<'_>, wanted: &[&str]) -> Result<Group, CgroupError> {
    let mut made = make_below(hierarchy, &hierarchy.mount, place, wanted);
    let Place::Ours(_) = place else { return made };
    for base in hierarchy.bases().into_iter().skip(1) {
        match &made {
            Err(CgroupError::Create { source, .. } | CgroupError::NotDelegated { source, .. }) if is_denied(source) => {
                made = make_below(hierarchy, &base, place, wanted);
            }
            _ => break,
        }
    }
    made
}

/// Makes the directory below `base`, with the parents it needs.
fn make_below(hierarchy: &Hierarchy, base: &Path, place: Place<'_>, wanted: &[&str]) -> Result<Group, CgroupError> {
    let (Place::Ours(name) | Place::Delegated(name)) = place;
    let path = base.join(name.as_str());
    let create_error = |path: &Path, source| CgroupError::Create { path: path.to_owned(), source };
    let has = |controller: &str| hierarchy.controllers.iter().any(|name| name == controller);
    let cpuset = hierarchy.version == Version::V1 && has("cpuset");

    let mut parent = base.to_owned();
    let mut parts = name.as_str().split('/').peekable();
    while let Some(part) = parts.next() {
        // What is above a scope is systemd's, which has handed everything on to it.
        if hierarchy.version == Version::V2 && matches!(place, Place::Ours(_)) {
            enable_controllers(&parent, &hierarchy.controllers, wanted)?;
        }
        let child = parent.join(part);
        let last = parts.peek().is_none();
        match fs::create_dir(&child) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !last => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && matches!(place, Place::Delegated(_)) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // What a killed predecessor left can go; a living container's cannot.
                match fs::remove_dir(&child) {
                    Ok(()) => fs::create_dir(&child).map_err(|source| create_error(&child, source))?,
                    Err(_) => return Err(CgroupError::InUse { path: child }),
                }
            }
            Err(source) => return Err(create_error(&child, source)),
        }
        if cpuset {
            inherit_cpuset(&parent, &child).map_err(|source| create_error(&child, source))?;
        }
        parent = child;
    }
    let directory = match hierarchy.version {
        Version::V1 => None,
        Version::V2 => Some(
            rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| create_error(&path, error.into()))?,
        ),
    };
    let (mount, controllers) = (hierarchy.mount.clone(), hierarchy.controllers.clone());
    Ok(Group { version: hierarchy.version, mount, path, controllers, directory })
}

/// A fresh v1 cpuset is empty, and nothing can enter it.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(child.join(file))?.trim().is_empty() {
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Hands the controllers of a v2 directory on to its children. Only those that a limit needs have to work.
fn enable_controllers(parent: &Path, offered: &[String], wanted: &[&str]) -> Result<(), CgroupError> {
    if offered.is_empty() {
        return Ok(());
    }
    let file = parent.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    for controller in offered {
        let useful = USEFUL.contains(&controller.as_str()) || wanted.contains(&controller.as_str());
        if !useful || enabled.split_whitespace().any(|name| name == controller) {
            continue;
        }
        let value = format!("+{controller}");
        if let Err(source) = fs::write(&file, &value)
            && wanted.contains(&controller.as_str())
        {
            return Err(if is_denied(&source) {
                CgroupError::NotDelegated { setting: format!("a {controller} limit"), source }
            } else {
                CgroupError::Set { file: file.display().to_string(), value, source }
            });
        }
    }
    Ok(())
}

/// Writes a control file that has to be there, and stays open for the next value.
fn write_again(opened: &mut Option<fs::File>, path: &Path, value: &str) -> io::Result<()> {
    let file = match opened {
        Some(file) => file,
        None => opened.insert(fs::File::options().write(true).open(path)?),
    };
    io::Write::write_all(file, value.as_bytes())
}

/// Removes a directory with everything below it, killing what lives in it.
fn remove_directory(path: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(50);
    loop {
        let source = match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => error,
        };
        if source.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
            return Err(CgroupError::Remove { path: path.to_owned(), source });
        }
        kill_all(path);
        let children = fs::read_dir(path).into_iter().flatten().flatten();
        for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove_directory(&child.path())?;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn kill_all(path: &Path) {
    // v2 since Linux 5.14; elsewhere one by one, and the caller comes again for those born meanwhile.
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw) {
        // Already gone is fine; anything else shows when the directory stays busy.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A threaded group of version 2 cannot be read; its processes are those of its parent.
fn collect_processes(path: &Path, found: &mut Vec<u32>) {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&child.path(), found);
        }
    }
}

pub(super) fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
}

/// What statistics use, or `update` may later.
const USEFUL: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// How long killed processes may take to leave.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use oci_spec::runtime::{LinuxHugepageLimitBuilder, LinuxResourcesBuilder};

    use super::super::docker_device_rules;
    use super::*;

    /// A cgroup for one test, or nothing where this process may not make any.
    fn group(name: &str) -> Option<Cgroup> {
        let name = CgroupName::new(&format!("strata-test-unit-{}-{name}", std::process::id())).unwrap();
        let (group, _) = Cgroup::create(&name, None).ok()?;
        if group.is_empty() {
            eprintln!("skipped: may not make cgroups");
            return None;
        }
        Some(group)
    }

    #[test]
    fn a_limit_that_cannot_be_had_is_refused_or_told() {
        let huge = LinuxHugepageLimitBuilder::default().page_size("3MB").limit(1).build().unwrap();
        let resources = LinuxResourcesBuilder::default().hugepage_limits(vec![huge]).build().unwrap();
        let name = CgroupName::new(&format!("strata-test-unit-{}-shortage", std::process::id())).unwrap();
        if group("probe").map(|group| group.remove().unwrap()).is_none() {
            return;
        }
        let refused = Cgroup::create(&name, Some(&resources)).unwrap_err();
        assert!(matches!(refused, CgroupError::NoController { .. } | CgroupError::NoFile { .. }), "{refused}");
        let (made, warnings) = Cgroup::create_with(&name, Some(&resources), Shortage::Told).unwrap();
        assert!(warnings.iter().all(|text| text.ends_with("Limitation discarded.")), "{warnings:?}");
        assert!(warnings[0].contains("a huge page limit"), "{warnings:?}");
        made.remove().unwrap();
    }

    #[test]
    fn what_lies_below_a_group_is_told_from_what_does_not() {
        let below = |place| part_below(Path::new("a/b"), place).map(|path| path.to_str().unwrap());
        assert_eq!(below("/a/b/init"), Some("init"));
        assert_eq!(below("/a/b/c/d"), Some("c/d"));
        for place in ["/a/b", "/a/b/", "/a", "/", "", "/a/bc", "/a/b/../c", "/../a/b/c", "/x/a/b/c", "a/b/c"] {
            assert_eq!(below(place), None, "{place}");
        }
    }

    #[test]
    fn removing_ends_what_lives_inside() {
        let Some(group) = group("removing") else { return };
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        group.attach(child.id()).unwrap();
        assert_eq!(group.processes(), [child.id()]);
        let below = group.groups[0].path.join("below");
        fs::create_dir(&below).unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        group.remove().unwrap();
        assert!(!reaper.join().unwrap().success());
        assert!(!below.exists() && group.groups.iter().all(|group| !group.path.exists()));
        group.remove().unwrap();
    }

    #[test]
    fn a_living_containers_cgroup_is_not_taken_over_and_a_dead_ones_is() {
        let name = CgroupName::new(&format!("strata-test-unit-{}-twice", std::process::id())).unwrap();
        let Some(first) = group("twice") else { return };
        // Empty, as after a kill of its monitor.
        let (second, _) = Cgroup::create(&name, None).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        second.attach(child.id()).unwrap();
        assert!(matches!(Cgroup::create(&name, None), Err(CgroupError::InUse { .. })));
        assert_eq!(second.processes(), [child.id()], "the refused one took nothing away");
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        first.remove().unwrap();
        reaper.join().unwrap();
    }

    #[test]
    fn the_kernel_takes_the_device_program_and_obeys() {
        let Some(group) = group("devices") else { return };
        let Some(unified) = group.groups.iter().find(|group| group.directory.is_some()) else {
            group.remove().unwrap();
            return eprintln!("skipped: no cgroup v2");
        };
        let rules: Vec<_> = docker_device_rules().iter().map(|rule| DeviceRule::from_oci(rule).unwrap()).collect();
        match attach_device_rules(unified.directory.as_ref().unwrap().as_fd(), &rules) {
            Err(error) if is_denied(&error) => eprintln!("skipped: {error}"),
            result => {
                result.unwrap();
                let script = format!(
                    "echo $$ > {}/cgroup.procs; head -c 1 /dev/zero >/dev/null && echo zero; head -c 0 /dev/kmsg && echo kmsg",
                    unified.path.display()
                );
                let output = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).output().unwrap();
                assert_eq!(String::from_utf8_lossy(&output.stdout), "zero\n");
            }
        }
        group.remove().unwrap();
    }
}
