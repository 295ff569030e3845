//! What a caller says to start a container: the OCI spec plus what the spec has no words for.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::systemd::Unit;
use crate::cgroup::{CgroupName, Shortage};

/// A container to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Everything that the OCI runtime specification describes. `root.path` is ignored in favour of `root`.
    pub spec: &'a Spec,
    /// The root filesystem.
    pub root: Root,
    /// `user`, `user:group` or numbers, looked up in the image's own `/etc/passwd` and `/etc/group`. Overrides the
    /// ids of the spec's `process.user`, and fills in `HOME` when the environment has none.
    pub user: Option<&'a str>,
    /// Supplementary groups by name or number (`--group-add`), in addition to the user's own.
    pub groups: &'a [String],
    /// Where the process reads and writes.
    pub stdio: Stdio,
    /// The cgroup to make for the container; without one the process stays in the caller's.
    pub cgroup: Option<CgroupName>,
    /// The unit that systemd is to make that cgroup as, which is then the unit's; without one it is made here.
    pub unit: Option<&'a Unit>,
    /// What becomes of limits that cannot be had.
    pub shortage: Shortage,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// Whether landlock is put up as a second wall.
    pub landlock: Landlock,
    /// What happens to the process when the thread that starts it ends.
    pub orphan: Orphan,
    /// Who is asked about calls that the filter notifies of.
    pub listener: Listener<'a>,
    /// What an agent that is asked is told about the container.
    pub identity: Identity<'a>,
    /// What of the caller's the process keeps.
    pub inherited: Inherited,
}

impl<'a> Launch<'a> {
    /// Describes a start with the defaults: inherited stdio, no cgroup, the spec's own filter, landlock where it
    /// breaks nothing.
    #[must_use]
    pub fn new(spec: &'a Spec, root: Root) -> Self {
        Self {
            spec,
            root,
            user: None,
            groups: &[],
            stdio: Stdio::Inherit,
            cgroup: None,
            unit: None,
            shortage: Shortage::default(),
            seccomp: Seccomp::FromSpec,
            landlock: Landlock::Auto,
            orphan: Orphan::GoesOn,
            listener: Listener::Agent,
            identity: Identity::default(),
            inherited: Inherited::default(),
        }
    }
}

/// Who is asked about calls that the filter notifies of (`SCMP_ACT_NOTIFY`).
#[derive(Clone, Copy, Default)]
pub enum Listener<'a> {
    /// The agent at the spec's `linux.seccomp.listenerPath`, as the runtime specification describes.
    #[default]
    Agent,
    /// The caller: the function gets the listener and the process id before the program is executed, and must return at
    /// once, since that may be a call it is about to be asked about.
    Caller(&'a dyn Fn(OwnedFd, u32)),
}

impl std::fmt::Debug for Listener<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Agent => "Agent",
            Self::Caller(_) => "Caller",
        })
    }
}

/// How a container is known to others.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Its id.
    pub id: &'a str,
    /// The folder of its bundle, absolute.
    pub bundle: &'a Path,
}

impl Default for Identity<'_> {
    fn default() -> Self {
        Self { id: "", bundle: Path::new("/") }
    }
}

/// What of the caller's a process keeps, besides its standard streams: nothing, if nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// So many descriptors, from number 3 up. They must be open.
    pub descriptors: u32,
    /// The session keyring.
    pub keyring: bool,
}

/// What happens to the process when the thread that started it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orphan {
    /// Nothing.
    #[default]
    GoesOn,
    /// The kernel kills it, and with it everything in its pid namespace. A program that gains privileges at its
    /// `execve` escapes this, as the kernel has it.
    IsKilled,
}

/// Where the root filesystem comes from.
#[derive(Debug)]
pub enum Root {
    /// A directory, bound with everything mounted below it.
    Path(PathBuf),
    /// A detached mount (`fsmount`, `open_tree`), which the container takes over. It is visible nowhere else and goes
    /// away with the container's mount namespace.
    Mount(OwnedFd),
}

/// The standard streams of the process.
#[derive(Debug)]
pub enum Stdio {
    /// The caller's own.
    Inherit,
    /// Three descriptors.
    Fds {
        /// What the process reads.
        stdin: OwnedFd,
        /// Where it writes.
        stdout: OwnedFd,
        /// Where it complains.
        stderr: OwnedFd,
    },
    /// A terminal made in the container's own devpts; [`Running::console`](crate::Running::console) is its other end.
    Terminal {
        /// Its size at the start.
        size: Option<WindowSize>,
    },
}

impl Stdio {
    /// Makes three pipes: the streams for the container and the caller's ends of them.
    ///
    /// # Errors
    /// The errno of `pipe2`.
    pub fn pipes() -> io::Result<(Self, Pipes)> {
        let (stdin, write_stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (read_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (read_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((
            Self::Fds { stdin, stdout, stderr },
            Pipes { stdin: write_stdin, stdout: read_stdout, stderr: read_stderr },
        ))
    }
}

/// The caller's ends of [`Stdio::pipes`].
#[derive(Debug)]
pub struct Pipes {
    /// What is written here the process reads.
    pub stdin: OwnedFd,
    /// What the process writes is read here.
    pub stdout: OwnedFd,
    /// What the process complains is read here.
    pub stderr: OwnedFd,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Which system call filter the process gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// What the spec's `linux.seccomp` says; none when it says nothing.
    #[default]
    FromSpec,
    /// Docker's default profile for the capabilities of the spec.
    Default,
    /// None.
    Unconfined,
    /// A profile that was read before, such as from `--security-opt seccomp=FILE`.
    Profile(crate::seccomp::Profile),
}

/// How landlock guards the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Landlock {
    /// Around the container's root, where the kernel has it and where it denies nothing that the other walls allow: not
    /// for containers that may mount, by capability or in a user namespace, since landlock denies every mount.
    #[default]
    Auto,
    /// Around the root whatever the process may otherwise, and around signals and abstract sockets where no namespace is.
    /// Mounting is denied.
    Hardened,
    /// What a policy allows, and nothing else of the kinds it is about. Mounting is denied.
    Policy(crate::policy::Policy),
    /// Never.
    Off,
}
