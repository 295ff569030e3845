//! Failures of the child as errors for people: the step with the path or value it was about.

use std::ffi::{CStr, OsStr};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::child::hooks::FIRST_START_CONTAINER;
use crate::child::report::{Failure, HOOK_TEXT_LIMIT, Step};
use crate::plan::{MountSource, TargetPlan};
use crate::spawn::Told;
use crate::{HookError, HookFault, SpawnError};

/// Turns a failure of the child into an error; `hook_output` is what hooks wrote before.
pub(crate) fn failure(plan: Told<'_>, failure: Failure, hook_output: String) -> SpawnError {
    let Failure { step, index, errno } = failure;
    let index = usize::from(index);
    let source = io::Error::from_raw_os_error(errno);
    let mount = || plan.mount(index).map_or_else(String::new, |mount| absolute(&mount.target).display().to_string());
    let kind = || match plan.mount(index).map(|mount| &mount.source) {
        Some(MountSource::Filesystem { kind, .. }) => kind.to_string_lossy().into_owned(),
        Some(MountSource::Cgroups(_)) => "cgroup".into(),
        Some(MountSource::Detached { .. }) | None => "bind".into(),
    };
    let path = |list: Option<&[std::ffi::CString]>| {
        list.and_then(|list| list.get(index)).map_or_else(String::new, |path| text(path))
    };
    let what = match step {
        Step::ExecNotFound if plan.process.program.searched => {
            return SpawnError::ExecutableNotFound { name: plan.process.name() };
        }
        Step::ExecNotFound => return SpawnError::NoSuchExecutable { name: plan.process.name() },
        Step::Exec => return SpawnError::Exec { name: plan.process.name(), source },
        Step::WorkingDirectory => {
            return SpawnError::WorkingDirectory { path: absolute(&plan.process.cwd), source };
        }
        Step::WorkingDirectoryOutside => {
            return SpawnError::WorkingDirectoryOutside { path: absolute(&plan.process.cwd) };
        }
        Step::MountTargetIsNoDirectory => return SpawnError::NotADirectory { path: PathBuf::from(mount()) },
        Step::Parent => "synchronise with the parent".to_owned(),
        Step::Descriptors => "close descriptors on exec (needs Linux 5.11)".to_owned(),
        Step::RootIds => "become root of the user namespace".to_owned(),
        Step::EnterCgroup => match plan.cgroups.get(index) {
            Some(door) => return SpawnError::Cgroup(door.error(source)),
            None => "enter the cgroup".to_owned(),
        },
        Step::CgroupNamespace => "make a cgroup namespace".to_owned(),
        Step::TimeNamespace => "make a time namespace".to_owned(),
        Step::Session => "start a session".to_owned(),
        Step::Hostname => "set the host name".to_owned(),
        Step::Domainname => "set the domain name".to_owned(),
        Step::PrivateMounts => "make the mounts private".to_owned(),
        Step::AttachRoot => "attach the root filesystem".to_owned(),
        Step::MountTarget => format!("open mount point {}", mount()),
        Step::MakeMountTarget => format!("create mount point {}", mount()),
        Step::NewFilesystem => format!("make a {} filesystem for {}", kind(), mount()),
        Step::MountOption => format!("set the options of the {} filesystem for {}", kind(), mount()),
        Step::MountFlags => format!("set the flags of {}", mount()),
        Step::Mount => format!("mount {} on {}", kind(), mount()),
        Step::Node => {
            let devices = plan.rootfs.and_then(|rootfs| rootfs.devices.as_ref());
            let node = devices.and_then(|devices| devices.nodes.get(index));
            let below = if node.is_some_and(|node| node.in_dev) { "/dev" } else { "" };
            format!(
                "create device {below}{}",
                node.map_or_else(String::new, |node| absolute(&node.target).display().to_string())
            )
        }
        Step::DeviceLink => "create the links in /dev".to_owned(),
        Step::DeviceDirectory => "open /dev of the root filesystem, which must be a directory".to_owned(),
        Step::NoDevpts => "make a terminal: no devpts is mounted on /dev/pts".to_owned(),
        Step::OpenTerminal => "make a terminal".to_owned(),
        Step::BindConsole => "mount the terminal on /dev/console".to_owned(),
        Step::Sysctl => {
            let name = plan
                .rootfs
                .and_then(|rootfs| rootfs.sysctls.get(index))
                .map_or_else(String::new, |(path, _)| path.to_string_lossy().into_owned());
            format!("set sysctl {}", name.trim_start_matches("sys/").replace('/', "."))
        }
        Step::NoProc => "set sysctls: no proc is mounted on /proc".to_owned(),
        Step::Mask => format!("mask {}", path(plan.rootfs.map(|rootfs| rootfs.masked.as_slice()))),
        Step::MaskSource => "make a cover for masked paths (/dev/null must be the null device)".to_owned(),
        Step::ReadOnly => format!("make {} read-only", path(plan.rootfs.map(|rootfs| rootfs.read_only.as_slice()))),
        Step::ReadOnlyRoot => "make the root filesystem read-only".to_owned(),
        Step::Propagation => "set mount propagation".to_owned(),
        Step::PivotRoot => "switch to the root filesystem".to_owned(),
        Step::LeaveHost => "detach the host's filesystem".to_owned(),
        Step::ControllingTerminal => "take the terminal".to_owned(),
        Step::Stdio => "place the standard streams".to_owned(),
        Step::Loopback => "switch the loopback interface on".to_owned(),
        Step::Rlimit => {
            let hint = if errno == libc::EPERM { " (raising a hard limit needs CAP_SYS_RESOURCE)" } else { "" };
            let name = plan
                .process
                .rlimits
                .get(index)
                .map_or_else(String::new, |(resource, _)| format!("{resource:?}").to_lowercase());
            format!("set ulimit {name}{hint}")
        }
        Step::Personality => "set the personality".to_owned(),
        Step::Scheduler => {
            let hint =
                if errno == libc::EPERM { " (needs CAP_SYS_NICE, and a real-time budget of its cgroup)" } else { "" };
            format!("set process.scheduler{hint}")
        }
        Step::IoPriority => "set process.ioPriority".to_owned(),
        Step::MemoryPolicy => "set linux.memoryPolicy".to_owned(),
        Step::Affinity => "set process.execCPUAffinity".to_owned(),
        Step::Label => {
            let label = plan.process.labels.writes.get(index);
            let label = label.map_or_else(String::new, |(_, label)| label.to_string_lossy().into_owned());
            format!("set the label {label:?} of the security module (is the profile loaded?)")
        }
        Step::BoundingSet => "limit the capability bounding set".to_owned(),
        Step::Groups => "set supplementary groups".to_owned(),
        Step::Gid => format!("setgid to {} (is it mapped in the user namespace?)", plan.process.gid.as_raw()),
        Step::Uid => format!("setuid to {} (is it mapped in the user namespace?)", plan.process.uid.as_raw()),
        Step::Capabilities => "set capabilities".to_owned(),
        Step::Ambient => "set ambient capabilities".to_owned(),
        Step::NoNewPrivileges => "set no_new_privs".to_owned(),
        Step::Landlock => "apply landlock".to_owned(),
        Step::Seccomp => "load the seccomp filter".to_owned(),
        Step::Join if index == 1 => {
            "make the process (it takes two places below the limits of processes for a moment)".to_owned()
        }
        Step::Join => "join the namespaces of the container".to_owned(),
        Step::Hook => return hook(index, HookFault::NotRun(source), hook_output),
        Step::HookEnded => return hook(index, HookFault::Ended(errno), hook_output),
        Step::HookTimedOut => return hook(index, HookFault::TimedOut, hook_output),
        Step::Gate => "wait for the start".to_owned(),
    };
    SpawnError::Setup { what, source }
}

fn hook(number: usize, fault: HookFault, output: String) -> SpawnError {
    let (point, index) = match number.checked_sub(FIRST_START_CONTAINER) {
        Some(index) => ("startContainer", index),
        None => ("createContainer", number),
    };
    SpawnError::Hook(HookError { point, index, fault, output })
}

/// Reads what hooks wrote, up to a length that still is a message.
pub(crate) fn hook_text(output: OwnedFd) -> String {
    let mut text = Vec::new();
    let mut file = std::fs::File::from(output);
    // What cannot be read is not worth another error.
    let _ = file.rewind().and_then(|()| file.take(HOOK_TEXT_LIMIT as u64).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

fn absolute(target: &TargetPlan) -> PathBuf {
    Path::new("/").join(target.components.iter().map(|name| OsStr::from_bytes(name.as_bytes())).collect::<PathBuf>())
}

fn text(path: &CStr) -> String {
    format!("/{}", path.to_string_lossy())
}
