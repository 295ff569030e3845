//! Which calls an audit looks at, and what they are about.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use strata_sys::seccomp_notify::Notification;

use super::place;
use super::report::Access;
use crate::policy::Policy;

/// A call that is observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    /// The policy refuses it whatever its arguments are.
    pub(super) is_refused: bool,
    /// What its arguments are about.
    about: &'static [About],
}

/// What a call's arguments say. Numbers are those of arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// A file is opened: folder, path, flags.
    Open(Option<usize>, usize, Flags),
    /// A program is executed: folder, path.
    Execute(Option<usize>, usize),
    /// The content of a file is changed: path.
    Change(usize),
    /// A name is made or removed: folder, path.
    Name(Option<usize>, usize),
    /// A socket is connected, or bound: socket, address, length.
    Connect,
    Bind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flags {
    Argument(usize),
    /// The beginning of what this argument points to.
    Pointer(usize),
    /// As `creat`.
    Create,
}

/// The calls that touch files by their names.
const OF_FILES: [(&str, &[About]); 22] = [
    ("open", &[About::Open(None, 0, Flags::Argument(1))]),
    ("openat", &[About::Open(Some(0), 1, Flags::Argument(2))]),
    ("openat2", &[About::Open(Some(0), 1, Flags::Pointer(2))]),
    ("creat", &[About::Open(None, 0, Flags::Create)]),
    ("execve", &[About::Execute(None, 0)]),
    ("execveat", &[About::Execute(Some(0), 1)]),
    ("truncate", &[About::Change(0)]),
    ("truncate64", &[About::Change(0)]),
    ("mkdir", &[About::Name(None, 0)]),
    ("mkdirat", &[About::Name(Some(0), 1)]),
    ("mknod", &[About::Name(None, 0)]),
    ("mknodat", &[About::Name(Some(0), 1)]),
    ("rmdir", &[About::Name(None, 0)]),
    ("unlink", &[About::Name(None, 0)]),
    ("unlinkat", &[About::Name(Some(0), 1)]),
    ("rename", &[About::Name(None, 0), About::Name(None, 1)]),
    ("renameat", &[About::Name(Some(0), 1), About::Name(Some(2), 3)]),
    ("renameat2", &[About::Name(Some(0), 1), About::Name(Some(2), 3)]),
    ("link", &[About::Name(None, 1)]),
    ("linkat", &[About::Name(Some(2), 3)]),
    ("symlink", &[About::Name(None, 1)]),
    ("symlinkat", &[About::Name(Some(1), 2)]),
];

/// The calls that name ports.
const OF_PORTS: [(&str, &[About]); 2] = [("connect", &[About::Connect]), ("bind", &[About::Bind])];

/// Their names.
pub(crate) fn of_files() -> impl Iterator<Item = &'static str> {
    OF_FILES.iter().map(|(name, _)| *name)
}

/// Their names.
pub(crate) fn of_ports() -> impl Iterator<Item = &'static str> {
    OF_PORTS.iter().map(|(name, _)| *name)
}

impl Call {
    pub(super) fn of(name: &str, policy: &Policy) -> Call {
        let find = |table: &'static [(&str, &[About])]| table.iter().find(|(known, _)| *known == name);
        let files = policy.files.as_ref().and_then(|_| find(&OF_FILES));
        let ports = policy.network.as_ref().and_then(|_| find(&OF_PORTS));
        Call {
            name: name.to_owned(),
            is_refused: !policy.allows_call(name),
            about: files.or(ports).map_or(&[], |(_, about)| about),
        }
    }
}

/// What a call is about to do.
#[derive(Debug)]
pub(super) enum Observation {
    /// Something with a file.
    File {
        /// The caller's root.
        root: Rc<OwnedFd>,
        /// The path from there.
        path: PathBuf,
        access: Access,
    },
    /// Connecting to a TCP port.
    Connect(u16),
    /// Binding one.
    Bind(u16),
}

/// Looks at a call. What cannot be read of the caller, which may be gone, is left out.
pub(super) fn observe(call: &Call, notification: &Notification) -> Vec<Observation> {
    let caller = Caller { notification };
    call.about.iter().flat_map(|about| caller.observe(*about).unwrap_or_default()).collect()
}

struct Caller<'a> {
    notification: &'a Notification,
}

impl Caller<'_> {
    fn observe(&self, about: About) -> Option<Vec<Observation>> {
        match about {
            About::Open(folder, path, flags) => self.open(folder, path, flags),
            About::Execute(folder, path) => self.file(folder, path, &[Access::Execute]),
            About::Change(path) => self.file(None, path, &[Access::Write]),
            About::Name(folder, path) => self.file(folder, path, &[Access::Name]),
            About::Connect => Some(vec![Observation::Connect(self.port()?)]),
            // Port 0 is any free one, which the kernel chooses and landlock counts as port 0.
            About::Bind => Some(vec![Observation::Bind(self.port()?)]),
        }
    }

    fn open(&self, folder: Option<usize>, path: usize, flags: Flags) -> Option<Vec<Observation>> {
        let flags = match flags {
            Flags::Argument(index) => u32::try_from(self.argument(index) & 0xffff_ffff).ok()?,
            Flags::Pointer(index) => u32::from_ne_bytes(*self.memory(self.argument(index), 4)?.first_chunk()?),
            Flags::Create => (OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC).bits(),
        };
        let flags = OFlags::from_bits_retain(flags);
        if flags.contains(OFlags::PATH) {
            return None;
        }
        let mode = flags & OFlags::RWMODE;
        let mut accesses = Vec::new();
        if mode != OFlags::WRONLY {
            accesses.push(Access::Read);
        }
        if mode != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            accesses.push(if flags.contains(OFlags::CREATE) { Access::WriteOrMake } else { Access::Write });
        }
        self.file(folder, path, &accesses)
    }

    fn file(&self, folder: Option<usize>, path: usize, accesses: &[Access]) -> Option<Vec<Observation>> {
        let executes = accesses.contains(&Access::Execute);
        let text = self.text(self.argument(path))?;
        let pid = self.notification.pid;
        let base = match folder.map(|index| self.argument(index).cast_signed()) {
            // The number of a descriptor is an int.
            #[expect(clippy::cast_possible_truncation, reason = "the kernel looks at the low half alone")]
            Some(fd) if fd as i32 != libc::AT_FDCWD => format!("/proc/{pid}/fd/{}", fd as i32),
            _ => format!("/proc/{pid}/cwd"),
        };
        let path = match (text.as_os_str().is_empty(), text.is_absolute()) {
            // `AT_EMPTY_PATH`: the descriptor itself. Everywhere else this is an error.
            (true, _) if executes => std::fs::read_link(base).ok()?,
            (true, _) => return None,
            (_, true) => own_file(pid, &text).unwrap_or(text),
            (_, false) => std::fs::read_link(base).ok()?.join(text),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = Rc::new(openat(CWD, format!("/proc/{pid}/root"), flags, Mode::empty()).ok()?);
        let observed = |path: &PathBuf, access| Observation::File { root: root.clone(), path: path.clone(), access };
        // The kernel opens these to execute them, too.
        let interpreters = if executes { place::interpreters(root.as_fd(), &path) } else { Vec::new() };
        let with = interpreters.iter().map(|path| observed(path, Access::Execute));
        Some(with.chain(accesses.iter().map(|access| observed(&path, *access))).collect())
    }

    /// The port in an address of a TCP socket.
    fn port(&self) -> Option<u16> {
        let length = usize::try_from(self.argument(2)).ok()?.min(28);
        let address = self.memory(self.argument(1), length)?;
        let family = u16::from_ne_bytes(*address.first_chunk()?);
        let (four, six) = (AddressFamily::INET, AddressFamily::INET6);
        if family != four.as_raw() && family != six.as_raw() {
            return None;
        }
        // The caller is a thread; its descriptors are those of its process.
        let pid = i32::try_from(self.notification.pid).ok().and_then(Pid::from_raw)?;
        let caller = pidfd_open(pid, PidfdFlags::empty())
            .or_else(|_| pidfd_open(pid, PidfdFlags::from_bits_retain(libc::PIDFD_THREAD)));
        let number = i32::try_from(self.argument(0) & 0x7fff_ffff).ok()?;
        let socket = pidfd_getfd(caller.ok()?, number, PidfdGetfdFlags::empty()).ok()?;
        let domain = socket_domain(&socket).ok()?;
        let is_tcp = (domain == four || domain == six) && socket_type(&socket).ok()? == SocketType::STREAM;
        is_tcp.then(|| u16::from_be_bytes([address[2], address[3]]))
    }

    fn argument(&self, index: usize) -> u64 {
        self.notification.arguments[index]
    }

    /// A path that the caller has at `address`.
    fn text(&self, address: u64) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let mut text = Vec::new();
        let memory = self.open_memory()?;
        while text.len() < LONGEST_PATH {
            let from = address.checked_add(text.len() as u64)?;
            // What comes behind the page may not be there.
            let rest = PAGE - usize::try_from(from % PAGE as u64).ok()?;
            let mut piece = vec![0; rest.min(256)];
            let count = memory.read_at(&mut piece, from).ok().filter(|count| *count > 0)?;
            piece.truncate(count);
            match piece.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    text.extend(&piece[..end]);
                    return Some(PathBuf::from(std::ffi::OsString::from_vec(text)));
                }
                None => text.extend(piece),
            }
        }
        None
    }

    fn memory(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.open_memory()?.read_exact_at(&mut bytes, address).ok()?;
        Some(bytes)
    }

    fn open_memory(&self) -> Option<File> {
        File::open(format!("/proc/{}/mem", self.notification.pid)).ok()
    }
}

/// What the kernel's links to a caller's own program and descriptors lead to: only there they mean that.
fn own_file(pid: u32, path: &Path) -> Option<PathBuf> {
    let own = ["/proc/self", "/proc/thread-self"].into_iter().find_map(|folder| path.strip_prefix(folder).ok())?;
    if own != Path::new("exe") && own.parent() != Some(Path::new("fd")) {
        return None;
    }
    std::fs::read_link(Path::new("/proc").join(pid.to_string()).join(own)).ok().filter(|path| path.is_absolute())
}

const PAGE: usize = 4096;
/// `PATH_MAX`
const LONGEST_PATH: usize = 4096;
