//! The parent's side of a start: plan, clone, map ids, wait for the word that the program runs.

use std::borrow::Cow;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use strata_sys::clone::{Announcement, CLONE_PARENT, Cloned, Side, clone_for_parent, clone3, unshare};

use crate::capabilities::CapabilitySet;
use crate::cgroup::systemd::Scope;
use crate::cgroup::{Cgroup, Door, Place};
use crate::child;
use crate::child::report::{Failure, Report, Step, receive, send_child, send_failure, send_go};
use crate::landlock::LandlockPlan;
use crate::network_devices::{self, Moved};
use crate::notify::Destination;
use crate::plan::process::ProcessPlan;
use crate::plan::{GatePlan, MountPlan, MountSource, Namespaces, Plan, RootfsPlan, SeccompPlan, StdioPlan, mounts};
use crate::running::ExitStatus;
use crate::seccomp::{Profile, ProfileError};
use crate::{Launch, Orphan, Running, Seccomp, SpawnError, Stages, Stdio, describe, userns};

/// Starts a container and returns once its program has been executed.
///
/// A process that ignores `SIGCHLD` could not learn how the container ended: its default action is put back.
///
/// # Errors
/// [`SpawnError`]; nothing of the container is left then, neither process nor cgroup nor mount.
pub fn spawn(launch: Launch<'_>) -> Result<Running, SpawnError> {
    if launch.spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default()) {
        return Err(SpawnError::Unsupported("hooks".into()));
    }
    make(launch, None)
}

/// Makes a container; with a gate, it waits there for its start.
pub(crate) fn make(launch: Launch<'_>, gate: Option<Gate<'_>>) -> Result<Running, SpawnError> {
    let spec = launch.spec;
    refuse_what_is_not_done(spec)?;
    strata_sys::process::keep_exit_codes_of_children();
    let mut warnings = Vec::new();
    let namespaces = Namespaces::from_spec(spec)?;
    let devices = network_devices::plan(spec)?;
    let (root, root_is_folder) = mounts::open_root(launch.root)?;
    let may_set_groups = userns::may_set_groups();
    let mut process = ProcessPlan::new(spec, root.as_fd(), launch.user, launch.groups, may_set_groups)?;
    process.inherit(launch.inherited);
    // What is written for them lies in /proc, which there is somebody else's.
    if namespaces.has_joined(LinuxNamespaceType::Mount)
        && (!process.labels.writes.is_empty() || namespaces.has_new(LinuxNamespaceType::Time))
    {
        return Err(SpawnError::Unsupported(
            "a label or a new time namespace in a mount namespace that is joined".into(),
        ));
    }
    if !may_set_groups && process.has_groups() {
        warnings.push("supplementary groups are left out: this user namespace forbids setgroups".to_owned());
    }
    let seccomp = compile_filter(spec, &launch.seccomp, process.capabilities.bounding)?;
    let notify = match seccomp.as_ref().is_some_and(SeccompPlan::notifies) {
        true => Some(Destination::new(spec, launch.listener, launch.identity, None)?),
        false => None,
    };
    let landlock = LandlockPlan::of(&launch.landlock, spec, process.capabilities.bounding, seccomp.as_ref())?;
    let mut rootfs = RootfsPlan::new(spec, root, root_is_folder, &launch.stdio, &namespaces)?;
    let not_for_child = gate.as_ref().map(|gate| gate.not_for_child);
    let (gate, mut stages): (_, Option<&mut dyn Stages>) = match gate {
        Some(gate) => {
            if let Some(place) = gate.root_place {
                rootfs.place = place;
            }
            (Some(gate.plan), Some(gate.stages))
        }
        None => (None, None),
    };
    let (parent_end, child_end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| SpawnError::Parent { what: "make a socket pair", source: errno.into() })?;
    let name = |text: &Option<String>| {
        let text = text.as_ref().filter(|text| !text.is_empty());
        text.map(|text| CString::new(text.as_str()))
            .transpose()
            .map_err(|_| SpawnError::Invalid("NUL in the host name".into()))
    };
    let mut plan = Plan {
        parent: child_end,
        hostname: name(spec.hostname())?,
        domainname: name(spec.domainname())?,
        time_offsets: time_offsets(spec),
        namespaces,
        rootfs,
        stdio: match launch.stdio {
            Stdio::Inherit => StdioPlan::Inherit,
            Stdio::Fds { stdin, stdout, stderr } => StdioPlan::Fds([stdin, stdout, stderr]),
            Stdio::Terminal { .. } => StdioPlan::Terminal,
        },
        cgroups: Vec::new(),
        process,
        dies_with_parent: launch.orphan == Orphan::IsKilled,
        landlock,
        seccomp,
        gate,
    };
    if let Some(user) = plan.namespaces.joined_user() {
        map_owners(&plan.rootfs, root_is_folder, user.as_fd(), &mut warnings)?;
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let scope = launch.unit.map(|unit| Scope::start(unit, resources)).transpose()?;
    let cgroup = match &launch.cgroup {
        Some(name) => {
            let place = if scope.is_some() { Place::Delegated(name) } else { Place::Ours(name) };
            let (cgroup, notes) = Cgroup::create_at(place, resources, launch.shortage)?;
            warnings.extend(notes);
            Some(CgroupGuard(Some(cgroup)))
        }
        None => None,
    };
    let group = cgroup.as_ref().and_then(|guard| guard.0.as_ref());
    if launch.orphan == Orphan::IsKilled
        && !plan.namespaces.has_new(LinuxNamespaceType::Pid)
        && group.is_none_or(Cgroup::is_empty)
    {
        let why = "a pid namespace that is shared, without a cgroup: processes that outlive the first would never end";
        return Err(SpawnError::Unsupported(why.to_owned()));
    }
    // From inside a user namespace that is joined, nobody may be born into a cgroup of the host: the way in is opened here.
    let unified = group.and_then(Cgroup::unified).filter(|_| plan.namespaces.joined_user().is_none());
    if let Some(group) = group {
        plan.cgroups = group.doors(unified.is_some())?;
    }
    let (pid, pidfd) = clone_child(Start { plan: &plan, other_end: parent_end.as_fd(), not_for_child }, unified)
        .map_err(|source| SpawnError::Clone { source })?;
    // The child has its own copies; ours would hide its death, and that it does not wait any more.
    drop((plan.parent, plan.gate));
    let mut starting = Starting { pid, pidfd: Some(pidfd), socket: parent_end, successor: None };
    let told =
        Told { rootfs: Some(&plan.rootfs), process: &plan.process, cgroups: &plan.cgroups, notify: notify.as_ref() };
    if let Some(stages) = stages.as_deref_mut() {
        stages.cloned(pid)?;
    }
    // Goes back before the child goes, and its network namespace with it.
    let mut moved = Moved::default();
    let helped = starting.prepare(told, &plan.namespaces, spec, root_is_folder, &mut warnings).and_then(|()| {
        moved = Moved::into_process(&devices, pid)?;
        starting.score_and_release(&plan.process)
    });
    let console = starting.after_help(told, helped, stages)?;
    moved.keep();
    // The container's first process is in it by now.
    if let Some(scope) = scope {
        scope.keep();
    }
    Ok(Running {
        pid,
        pidfd: starting.started(),
        console,
        cgroup: cgroup.and_then(CgroupGuard::keep),
        warnings,
        ended: OnceLock::new(),
        reaping: Mutex::new(()),
    })
}

/// The second half of a start is somebody else's.
pub(crate) struct Gate<'a> {
    pub(crate) plan: GatePlan,
    /// Where hooks expect the root, if any do.
    pub(crate) root_place: Option<CString>,
    pub(crate) stages: &'a mut dyn Stages,
    /// A descriptor of the parent's that the child closes at once: it may stand for a lock.
    pub(crate) not_for_child: BorrowedFd<'a>,
}

/// What the parent still needs of the plan once the child walks through it.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    /// Absent for a process that joins a container.
    pub(crate) rootfs: Option<&'a RootfsPlan>,
    pub(crate) process: &'a ProcessPlan,
    pub(crate) cgroups: &'a [Door],
    /// Who answers for the filter.
    pub(crate) notify: Option<&'a Destination<'a>>,
}

impl Told<'_> {
    /// A mount by its number.
    pub(crate) fn mount(&self, index: usize) -> Option<&MountPlan> {
        self.rootfs?.mounts.get(index)
    }
}

/// A child on its way. Dropped before [`started`](Starting::started), it is made to end and reaped.
pub(crate) struct Starting {
    pub(crate) pid: u32,
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) socket: OwnedFd,
    /// Where the process is noted that the child makes in its place, if it is to.
    pub(crate) successor: Option<Announcement>,
}

impl Starting {
    /// Listens until the program runs or waits at its gate, once the parent has done its part or failed to. Returns the
    /// terminal.
    pub(crate) fn after_help(
        &mut self,
        plan: Told<'_>,
        helped: Result<(), SpawnError>,
        stages: Option<&mut dyn Stages>,
    ) -> Result<Option<OwnedFd>, SpawnError> {
        // When the child failed meanwhile, its reason comes before what that made fail here.
        if let Err(error) = helped {
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            let told = poll(&mut ready, Some(&Timespec::default())).is_ok_and(|count| count > 0);
            return Err(match told.then(|| self.listen(plan, None)) {
                Some(Err(reason)) => reason,
                Some(Ok(_)) | None => error,
            });
        }
        self.listen(plan, stages)
    }

    /// Does what the child waits for first: the maps of its user namespace.
    fn prepare(
        &self,
        plan: Told<'_>,
        namespaces: &Namespaces,
        spec: &Spec,
        root_is_folder: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(), SpawnError> {
        if namespaces.has_new(LinuxNamespaceType::User) {
            self.write_id_maps(spec)?;
            if let Some(rootfs) = plan.rootfs {
                self.map_owners(rootfs, root_is_folder, warnings)?;
            }
            self.release()?;
        }
        Ok(())
    }

    fn release(&self) -> Result<(), SpawnError> {
        send_go(self.socket.as_fd())
            .map_err(|errno| SpawnError::Parent { what: "release the child", source: errno.into() })
    }

    /// Sets the OOM score, which only a privileged parent may, and lets the child go on.
    pub(crate) fn score_and_release(&self, process: &ProcessPlan) -> Result<(), SpawnError> {
        if let Some(score) = process.oom_score {
            std::fs::write(format!("/proc/{}/oom_score_adj", self.pid), score.to_string())
                .map_err(|source| SpawnError::Parent { what: "set the OOM score", source })?;
        }
        self.release()
    }

    fn listen(&mut self, plan: Told<'_>, mut stages: Option<&mut dyn Stages>) -> Result<Option<OwnedFd>, SpawnError> {
        let mut console = None;
        let mut executing = false;
        let mut hook_output = String::new();
        loop {
            let report = receive(self.socket.as_fd())
                .map_err(|errno| SpawnError::Parent { what: "listen to the child", source: errno.into() })?;
            match report {
                Some(Report::Console(fd)) => console = Some(fd),
                Some(Report::HookOutput(fd)) => hook_output = describe::hook_text(fd),
                Some(Report::Mounted) => {
                    if let Some(stages) = stages.as_deref_mut() {
                        stages.mounted(self.pid)?;
                    }
                    self.release()?;
                }
                Some(Report::Ready) => {
                    if let Some(stages) = stages.as_deref_mut() {
                        stages.ready(self.pid, console.as_ref().map(AsFd::as_fd))?;
                    }
                    self.release()?;
                    return Ok(console);
                }
                Some(Report::Executing) => executing = true,
                Some(Report::Listener(listener)) => {
                    if let Some(destination) = plan.notify {
                        destination.deliver(listener, self.pid)?;
                    }
                }
                // Only said by one that is started, or to one that joins a user namespace.
                Some(Report::HookText(_) | Report::Child { .. }) => {}
                Some(Report::Failed(failure)) => {
                    // To the end, for who has failed may have been quicker than its maker.
                    while let Ok(Some(_)) = receive(self.socket.as_fd()) {}
                    self.take_up_successor()?;
                    return Err(describe::failure(plan, failure, hook_output));
                }
                None => {
                    self.take_up_successor()?;
                    return if executing { Ok(console) } else { Err(SpawnError::Died { status: self.reap()? }) };
                }
            }
        }
    }

    /// Goes on with the process that the one listened to has made in its place, and with which it has ended, or was killed. It is
    /// ours: nobody else would reap it, and a dead process that nobody reaps keeps the pid namespace of its container alive.
    fn take_up_successor(&mut self) -> Result<(), SpawnError> {
        let Some(number) = self.made_successor() else { return Ok(()) };
        // Our child, not reaped: the number is its own.
        let pidfd = pidfd_open(number, PidfdFlags::empty())
            .map_err(|errno| SpawnError::Parent { what: "hold the process", source: errno.into() })?;
        self.successor = None;
        self.pid = number.as_raw_pid().unsigned_abs();
        if let Some(first) = self.pidfd.replace(pidfd) {
            wait_for(WaitId::PidFd(first.as_fd()));
        }
        Ok(())
    }

    /// The process that has been made in place of the one listened to, if that is a child of ours and not yet taken up.
    fn made_successor(&self) -> Option<Pid> {
        let pid = self.successor.as_ref()?.pid()?;
        let number = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(number), look).is_ok().then_some(number)
    }

    fn write_id_maps(&self, spec: &Spec) -> Result<(), SpawnError> {
        let linux = spec.linux().as_ref();
        let uids = linux.and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
        let gids = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
        for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
            let lines: String = maps.iter().map(map_line).collect();
            std::fs::write(format!("/proc/{}/{file}", self.pid), lines)
                .map_err(|source| SpawnError::IdMap { file, source })?;
        }
        Ok(())
    }

    fn map_owners(
        &self,
        rootfs: &RootfsPlan,
        root_is_folder: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(), SpawnError> {
        let fail = |source| SpawnError::Parent { what: "map the owners of a mount", source };
        let namespace = std::fs::File::open(format!("/proc/{}/ns/user", self.pid)).map_err(fail)?;
        map_owners(rootfs, root_is_folder, namespace.as_fd(), warnings)
    }

    fn reap(&self) -> Result<ExitStatus, SpawnError> {
        let fail = |source| SpawnError::Parent { what: "wait for the child", source };
        let pidfd = self.pidfd.as_ref().ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        loop {
            // Not reaped yet: that is left to the destructor, which does it on every way out.
            match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(Some(status)) => return Ok(ExitStatus::from_wait(&status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(fail(errno.into())),
            }
        }
    }

    pub(crate) fn started(mut self) -> OwnedFd {
        self.pidfd.take().expect("taken only here, and this takes the value")
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            // Both fail only when it is gone already.
            let _ = strata_sys::pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL);
            wait_for(WaitId::PidFd(pidfd.as_fd()));
        }
        // Made before its maker was gone, and whatever kept us from taking it up: it is not left behind.
        if let Some(number) = self.made_successor() {
            let _ = rustix::process::kill_process(number, rustix::process::Signal::KILL);
            wait_for(WaitId::Pid(number));
        }
    }
}

/// Waits for the end of a child, and reaps it.
fn wait_for(child: WaitId<'_>) {
    while let Err(rustix::io::Errno::INTR) = waitid(child.clone(), WaitIdOptions::EXITED) {}
}

/// Shows files with the owners that the container's ids stand for, where that was asked for or is the only sense:
/// a plain folder as the root of a container with ids of its own.
fn map_owners(
    rootfs: &RootfsPlan,
    root_is_folder: bool,
    namespace: BorrowedFd<'_>,
    warnings: &mut Vec<String>,
) -> Result<(), SpawnError> {
    let map =
        |mount: &OwnedFd, recursive| strata_sys::mount_attributes::mount_idmap(mount.as_fd(), recursive, namespace);
    if root_is_folder && let Err(error) = map(&rootfs.root, false) {
        // Not every filesystem can, and a nested namespace may not. The files keep their owners then.
        warnings.push(format!("owners of the root filesystem are not mapped: {error}"));
    }
    for mount in &rootfs.mounts {
        if let MountSource::Detached { mount, idmap: Some(recursive) } = &mount.source {
            map(mount, *recursive)
                .map_err(|source| SpawnError::Parent { what: "map the owners of a mount", source })?;
        }
    }
    Ok(())
}

/// Removes a cgroup unless the start succeeds.
struct CgroupGuard(Option<Cgroup>);

impl CgroupGuard {
    fn keep(mut self) -> Option<Cgroup> {
        self.0.take()
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take()
            && let Err(error) = cgroup.remove()
        {
            tracing::warn!(%error, "cgroup not removed after a failed start");
        }
    }
}

/// What the child begins with.
#[derive(Clone, Copy)]
struct Start<'a> {
    plan: &'a Plan,
    /// The parent's end of the socket.
    other_end: BorrowedFd<'a>,
    not_for_child: Option<BorrowedFd<'a>>,
}

impl Start<'_> {
    /// The child's side, whichever way it was made.
    fn run(&self) -> ! {
        // Our own copy of the other end would keep us waiting for ever if the parent died.
        strata_sys::process::close_fd(self.other_end);
        if let Some(fd) = self.not_for_child {
            strata_sys::process::close_fd(fd);
        }
        child::run(self.plan)
    }
}

/// Makes the child, from a thread that has joined namespaces if some are to be joined.
fn clone_child(start: Start<'_>, unified: Option<BorrowedFd<'_>>) -> io::Result<(u32, OwnedFd)> {
    // The child makes these itself: the first when it is in its cgroup, the second because it is entered at exec.
    let later = LinuxNamespaceType::Cgroup as u64 | LinuxNamespaceType::Time as u64;
    let plan = start.plan;
    let flags = plan.namespaces.new & !later;
    let clone = || clone_process(flags, unified, &start, |start| start.run());
    if plan.namespaces.joined.is_empty() {
        return clone();
    }
    if let Some(user) = plan.namespaces.joined_user() {
        return clone_between(&Between { start, flags, user: user.as_fd() });
    }
    // Joining is for good and per thread, and a child inherits it: a thread for one child, which then ends.
    std::thread::scope(|scope| {
        let joined = scope.spawn(|| {
            unshare(u64::from(libc::CLONE_FS.unsigned_abs()))?;
            for (kind, fd) in &plan.namespaces.joined {
                move_into_link_name_space(fd.as_fd(), Some(link_kind(*kind)))?;
            }
            clone()
        });
        joined.join().unwrap_or_else(|_| Err(io::Error::other("the cloning thread panicked")))
    })
}

/// What a process needs that joins a user namespace and makes the child from there.
#[derive(Clone, Copy)]
struct Between<'a> {
    start: Start<'a>,
    flags: u64,
    user: BorrowedFd<'a>,
}

/// Makes the child by a process between: only one without other threads may join a user namespace, and what is made new
/// has to belong to that namespace.
fn clone_between(between: &Between<'_>) -> io::Result<(u32, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let context = (*between, theirs);
    let (_, pidfd) = clone_process(0, None, &context, |(between, answer)| {
        let failed = match make_from_between(between, answer.as_fd()) {
            Ok(()) => strata_sys::process::exit_now(0),
            Err(errno) => errno,
        };
        send_failure(answer.as_fd(), Failure::new(Step::Join, 0, failed.raw_os_error()));
        strata_sys::process::exit_now(125)
    })?;
    drop(context);
    let report = receive(ours.as_fd());
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
    match report? {
        Some(Report::Child { pid, pidfd }) => Ok((pid, pidfd)),
        Some(Report::Failed(failure)) => Err(io::Error::from_raw_os_error(failure.errno)),
        _ => Err(io::Error::other("the process that joins the user namespace ended without a word")),
    }
}

/// The side of the process between: system calls alone.
fn make_from_between(between: &Between<'_>, answer: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let plan = between.start.plan;
    let errno = |error: io::Error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
    // The user namespace gives the powers to join the others, unless they belong to somebody above it: those come first.
    let mut pending = 0_u16;
    for (index, (kind, fd)) in plan.namespaces.joined.iter().enumerate() {
        if *kind != LinuxNamespaceType::User && move_into_link_name_space(fd.as_fd(), Some(link_kind(*kind))).is_err() {
            pending |= 1_u16.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0);
        }
    }
    move_into_link_name_space(between.user, Some(LinkNameSpaceType::User))?;
    child::become_root()?;
    for (index, (kind, fd)) in plan.namespaces.joined.iter().enumerate() {
        if pending & 1_u16.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0) != 0 {
            move_into_link_name_space(fd.as_fd(), Some(link_kind(*kind)))?;
        }
    }
    let (pid, pidfd) =
        clone_process(between.flags | CLONE_PARENT, None, &between.start, |start| start.run()).map_err(errno)?;
    send_child(answer, pid, pidfd.as_fd())
}

/// Makes a child that runs `child` on its copy of `context` and nothing else.
///
/// # Preconditions
/// `child` neither allocates nor locks.
#[expect(unsafe_code, reason = "the one call that makes a second process out of this one")]
pub(crate) fn clone_process<T>(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    context: &T,
    child: fn(&T) -> !,
) -> io::Result<(u32, OwnedFd)> {
    // SAFETY: the child's side is `child` alone, which by this function's contract makes system calls only and ends
    // with execve or exit; it never returns here, as its type says.
    match unsafe { clone3(flags, cgroup) }? {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => child(context),
    }
}

/// Makes a process for the caller's parent, which learns of it by `announcement`, and has it run `child` on its copy of `context` and
/// nothing else.
///
/// # Preconditions
/// As for [`clone_process`].
#[expect(unsafe_code, reason = "as above, for a process that has no use for the new one")]
pub(crate) fn clone_successor<T>(announcement: &Announcement, context: &T, child: fn(&T) -> !) -> io::Result<()> {
    // SAFETY: as above.
    match unsafe { clone_for_parent(announcement) }? {
        Side::Maker => Ok(()),
        Side::Made => child(context),
    }
}

fn link_kind(kind: LinuxNamespaceType) -> LinkNameSpaceType {
    match kind {
        LinuxNamespaceType::Mount => LinkNameSpaceType::Mount,
        LinuxNamespaceType::Cgroup => LinkNameSpaceType::ControlGroup,
        LinuxNamespaceType::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        LinuxNamespaceType::Ipc => LinkNameSpaceType::InterProcessCommunication,
        LinuxNamespaceType::User => LinkNameSpaceType::User,
        LinuxNamespaceType::Pid => LinkNameSpaceType::ProcessID,
        LinuxNamespaceType::Network => LinkNameSpaceType::Network,
        LinuxNamespaceType::Time => LinkNameSpaceType::Time,
    }
}

/// The profile of the filter, if there is to be one.
pub(crate) fn profile_of<'a>(spec: &Spec, wanted: &'a Seccomp) -> Result<Option<Cow<'a, Profile>>, SpawnError> {
    Ok(match wanted {
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(Cow::Borrowed(Profile::docker_default())),
        Seccomp::Profile(profile) => Some(Cow::Borrowed(profile)),
        Seccomp::FromSpec => match spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
            Some(seccomp) => Some(Cow::Owned(Profile::from_oci(seccomp)?)),
            None => None,
        },
    })
}

pub(crate) fn compile_filter(
    spec: &Spec,
    wanted: &Seccomp,
    bounding: CapabilitySet,
) -> Result<Option<SeccompPlan>, SpawnError> {
    let Some(profile) = profile_of(spec, wanted)? else { return Ok(None) };
    let program = match wanted {
        Seccomp::Default => Profile::docker_default_program(bounding)?,
        _ => profile.compile_cached(bounding)?,
    };
    // As in runc: profiles are written for more kernels than this one, and looking for such names costs as much as compiling.
    if tracing::enabled!(tracing::Level::DEBUG) {
        for name in profile.unknown_names() {
            tracing::debug!(name, "the seccomp profile names a system call that does not exist");
        }
    }
    if program.notifies() && !profile.always_allows("sendmsg", bounding) {
        return Err(ProfileError::NotifyNeedsSendmsg.into());
    }
    let may_mount = ["mount", "move_mount"].into_iter().any(|name| profile.may_allow(name, bounding));
    Ok(Some(SeccompPlan { filter: program.instructions, flags: program.flags, may_mount }))
}

pub(crate) fn map_line(map: &LinuxIdMapping) -> String {
    format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())
}

fn time_offsets(spec: &Spec) -> Option<String> {
    let offsets = spec.linux().as_ref()?.time_offsets().as_ref()?;
    let line = |(clock, offset): (&String, &oci_spec::runtime::LinuxTimeOffset)| {
        format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
    };
    Some(offsets.iter().map(line).collect())
}

/// What is left out is said, not ignored.
fn refuse_what_is_not_done(spec: &Spec) -> Result<(), SpawnError> {
    match spec.linux().as_ref().is_some_and(|linux| linux.intel_rdt().is_some()) {
        true => Err(SpawnError::Unsupported("linux.intelRdt".into())),
        false => Ok(()),
    }
}
