//! Why a container did not start.

use std::io;
use std::path::PathBuf;

use crate::cgroup::CgroupError;
use crate::seccomp::ProfileError;
use crate::user::UserError;

/// Why a container did not start.
///
/// The texts of [`ExecutableNotFound`](SpawnError::ExecutableNotFound) and its neighbours are Docker's: clients derive
/// exit codes from them.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The spec asks for something that is malformed or that no host can do.
    #[error("invalid container configuration: {0}")]
    Invalid(String),
    /// The spec asks for something that this crate does not do.
    #[error("unsupported container configuration: {0}")]
    Unsupported(String),
    /// The user of the process.
    #[error("{0}: unknown")]
    User(#[from] UserError),
    /// The cgroup could not be made or a limit not be set.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The system call filter.
    #[error("seccomp profile")]
    Seccomp(#[from] ProfileError),
    /// The agent that is to answer for the filter.
    #[error("hand the seccomp listener to the agent at {path:?}")]
    SeccompAgent {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root filesystem could not be opened.
    #[error("open root filesystem {path:?}")]
    Root {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The source of a bind mount.
    #[error("{}", bind_source_text(path, source))]
    BindSource {
        /// The path on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The owners of a mount cannot be mapped.
    #[error("map the owners of the mount on {path:?}")]
    MountMap {
        /// The path in the container.
        path: PathBuf,
        /// Why: `EINVAL` where the filesystem cannot be id-mapped.
        source: io::Error,
    },
    /// A namespace to join.
    #[error("open namespace {path:?}")]
    Namespace {
        /// The namespace file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new process could not be made.
    #[error("clone into new namespaces{}", clone_hint(source))]
    Clone {
        /// Why.
        source: io::Error,
    },
    /// The id maps of the user namespace.
    #[error("write {file} of the user namespace")]
    IdMap {
        /// `uid_map`, `gid_map`.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A network device of the host that the container is to get.
    #[error("network device {device:?}: {what}{}", device_hint(source))]
    NetworkDevice {
        /// Its name on the host.
        device: String,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something else the parent does for the child, such as its OOM score.
    #[error("{what}")]
    Parent {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A step inside the container.
    #[error("{what}")]
    Setup {
        /// What was tried, with the path or value it was about.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A path that must be a directory of the container's own is a symlink or something else.
    #[error("{path:?} in the root filesystem must be a directory, not a link or file")]
    NotADirectory {
        /// The path in the container.
        path: PathBuf,
    },
    /// The working directory is outside of the container's root.
    #[error("current working directory {path:?} is outside of the container")]
    WorkingDirectoryOutside {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The working directory cannot be entered.
    #[error("mkdir or chdir to cwd ({path:?}) set in config.json failed")]
    WorkingDirectory {
        /// The path in the container.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A bare command name that no folder of `PATH` has.
    #[error("exec: {name:?}: executable file not found in $PATH: unknown")]
    ExecutableNotFound {
        /// The command.
        name: String,
    },
    /// The program, given by path, does not exist.
    #[error("exec: {name:?}: stat {name}: no such file or directory: unknown")]
    NoSuchExecutable {
        /// The command.
        name: String,
    },
    /// The program or its interpreter cannot be executed.
    #[error("exec: {name:?}: {}: unknown", exec_text(source))]
    Exec {
        /// The command.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What the caller does while a container is made failed.
    #[error("{what}")]
    Stage {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The child ended without a word.
    #[error("container process ended during setup ({status})")]
    Died {
        /// How it ended.
        status: crate::ExitStatus,
    },
}

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
#[error("error running {point} hook #{index}: {fault}{}", output_text(output))]
pub struct HookError {
    /// When it runs, as the spec calls it.
    pub point: &'static str,
    /// Which of the list, from 0.
    pub index: usize,
    /// What happened.
    pub fault: HookFault,
    /// What it wrote, standard output and error alike.
    pub output: String,
}

/// What happened to a hook.
#[derive(Debug, thiserror::Error)]
pub enum HookFault {
    /// It could not be executed.
    #[error("{0}")]
    NotRun(io::Error),
    /// It ended with this code, 128+n when signal n ended it.
    #[error("exit status {0}")]
    Ended(i32),
    /// It took longer than it may.
    #[error("timed out")]
    TimedOut,
}

fn output_text(output: &str) -> String {
    if output.trim().is_empty() { String::new() } else { format!(", output: {}", output.trim()) }
}

impl SpawnError {
    /// Returns the exit code `run` ends with: 127 when the program does not exist, 126 when it cannot be executed,
    /// 125 for everything that is not the program's fault.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ExecutableNotFound { .. } | Self::NoSuchExecutable { .. } => 127,
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            // Docker reads "permission denied" and friends out of the text and answers 126.
            Self::Exec { .. } => 126,
            Self::WorkingDirectory { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 126,
            _ => 125,
        }
    }

    /// Tells whether the program was not found in the container.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.exit_code() == 127
    }
}

fn bind_source_text(path: &std::path::Path, source: &io::Error) -> String {
    if source.kind() == io::ErrorKind::NotFound {
        format!("bind source path does not exist: {}", path.display())
    } else {
        format!("bind mount of {}", path.display())
    }
}

/// The text of the errno as C and Docker print it, lower case.
fn exec_text(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        Some(libc::EISDIR) => "is a directory".into(),
        Some(libc::ELOOP) => "too many levels of symbolic links".into(),
        Some(libc::ETXTBSY) => "text file busy".into(),
        Some(libc::E2BIG) => "argument list too long".into(),
        Some(libc::EPERM) => "operation not permitted".into(),
        _ => source.to_string().to_lowercase(),
    }
}

fn device_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (needs CAP_NET_ADMIN in the host's network namespace)",
        Some(libc::EINVAL) => " (some kinds of devices stay in their namespace)",
        _ => "",
    }
}

fn clone_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EUSERS) => " (a limit below /proc/sys/user is reached)",
        Some(libc::EPERM) => " (needs CAP_SYS_ADMIN, or unprivileged user namespaces)",
        Some(libc::EBUSY) => " (the parent cgroup has controllers enabled or is threaded)",
        _ => "",
    }
}
