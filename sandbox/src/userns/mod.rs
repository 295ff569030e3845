//! User namespaces: id maps, free ranges for containers, and how a plain user becomes root of a namespace of his own.

use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{WaitId, WaitIdOptions, getgid, getuid, waitid};
use strata_sys::process::CStringList;

use crate::capabilities;

mod maps;

pub use maps::{AUTO_SIZE, IdMaps, IdRange, Kept, auto, gid_outside, keep_id, nomap, uid_outside};
pub(crate) use maps::{gid_inside, uid_inside};

/// Tells whether this process lives in the machine's initial user namespace, where all ids exist.
#[must_use]
pub fn is_initial() -> bool {
    // Another one may have all ids too, but not the number that the kernel gives the first.
    let is_first = || rustix::fs::stat("/proc/self/ns/user").is_ok_and(|found| found.st_ino == INITIAL_NAMESPACE);
    own_map("/proc/self/uid_map", &UID_MAP).iter().any(|range| range.size == u32::MAX) && is_first()
}

/// Tells whether `gid` exists in this process's user namespace.
#[must_use]
pub fn maps_gid(gid: u32) -> bool {
    let inside =
        |range: &IdRange| gid >= range.container && u64::from(gid) < u64::from(range.container) + u64::from(range.size);
    own_map("/proc/self/gid_map", &GID_MAP).iter().any(inside)
}

/// Tells whether `setgroups` works here. In a namespace that a plain user mapped alone it does not.
#[must_use]
pub fn may_set_groups() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").map_or(true, |text| text.trim() != "deny")
}

fn own_map(path: &str, cache: &'static OnceLock<Vec<IdRange>>) -> &'static [IdRange] {
    cache.get_or_init(|| parse_map(&std::fs::read_to_string(path).unwrap_or_default()))
}

/// Parses the kernel's `uid_map`.
fn parse_map(text: &str) -> Vec<IdRange> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some(IdRange { container: numbers.next()??, host: numbers.next()??, size: numbers.next()?? })
    };
    text.lines().filter_map(line).collect()
}

/// Counts the subordinate user ids of this process's user.
pub(crate) fn subordinate_count() -> u64 {
    let uid = getuid().as_raw();
    let name = user_name(uid).unwrap_or_default();
    let count =
        |file| subordinate(Path::new(file), &name, Some(uid)).iter().map(|range| u64::from(range.1)).sum::<u64>();
    count("/etc/subuid").min(count("/etc/subgid"))
}

/// Reads the ranges of `name` or `uid` from a subuid or subgid file: first id and count.
fn subordinate(file: &Path, name: &str, uid: Option<u32>) -> Vec<(u32, u32)> {
    parse_subordinate(&std::fs::read_to_string(file).unwrap_or_default(), name, uid)
}

fn parse_subordinate(text: &str, name: &str, uid: Option<u32>) -> Vec<(u32, u32)> {
    let uid = uid.map(|uid| uid.to_string());
    let line = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        if owner.is_empty() || (owner != name && Some(owner) != uid.as_deref()) {
            return None;
        }
        let (first, count) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.trim().parse::<u32>().ok()?);
        (count > 0 && first.checked_add(count).is_some()).then_some((first, count))
    };
    text.lines().filter_map(line).collect()
}

/// What [`enter_rootless`] found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rootless {
    /// This process may mount already: root, or root of a namespace.
    NotNeeded,
    /// It is now root of a namespace with subordinate ids.
    Ranges,
    /// It is now root of a namespace in which only the user himself exists. Files of other owners cannot be made.
    Single,
}

/// Makes a plain user root of a user and mount namespace of his own.
///
/// Subordinate ids of `/etc/subuid` and `/etc/subgid` are mapped by `newuidmap` and `newgidmap` where both exist. The
/// process keeps its id, its descriptors and its terminal. Without effect where mounting is allowed already.
///
/// # Preconditions
/// The process has one thread: call it first in `main`.
///
/// # Errors
/// [`UserNamespaceError`] where the kernel or its configuration forbids user namespaces.
pub fn enter_rootless() -> Result<Rootless, UserNamespaceError> {
    if capabilities::has_effective(capabilities::SYS_ADMIN) {
        return Ok(Rootless::NotNeeded);
    }
    strata_sys::process::keep_exit_codes_of_children();
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let helpers = Helpers::start(uid, gid)?;
    let unshared = strata_sys::clone::unshare(NEW_USER_AND_MOUNT);
    let mapped = match (&unshared, helpers) {
        (Ok(()), Some(helpers)) => helpers.map(),
        _ => false,
    };
    unshared.map_err(|source| UserNamespaceError::Unshare { hint: unshare_hint(&source), source })?;
    if !mapped {
        // One of two maps cannot be completed by hand.
        if std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.trim().is_empty()) {
            return Err(UserNamespaceError::HalfMapped);
        }
        let write = |file: &'static str, text: &str| {
            std::fs::write(format!("/proc/self/{file}"), text)
                .map_err(|source| UserNamespaceError::Map { file, source })
        };
        write("setgroups", "deny")?;
        write("uid_map", &format!("0 {uid} 1"))?;
        write("gid_map", &format!("0 {gid} 1"))?;
    }
    become_root()?;
    mount_for_ourselves()?;
    Ok(if mapped { Rootless::Ranges } else { Rootless::Single })
}

/// Makes a plain user root of the user namespace in which `process`, one of his own, is root, with mounts of his own.
///
/// # Preconditions
/// As of [`enter_rootless`].
///
/// # Errors
/// [`UserNamespaceError::Join`] when the process has ended or is somebody else's.
pub fn enter_rootless_of(process: BorrowedFd<'_>) -> Result<(), UserNamespaceError> {
    use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
    begin_in_joined(move_into_thread_name_spaces(process, ThreadNameSpaceType::USER))
}

/// As [`enter_rootless_of`], in the namespace that `namespace` is a file of.
///
/// # Errors
/// [`UserNamespaceError::Join`].
pub(crate) fn enter_rootless_in(namespace: BorrowedFd<'_>) -> Result<(), UserNamespaceError> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    begin_in_joined(move_into_link_name_space(namespace, Some(LinkNameSpaceType::User)))
}

fn begin_in_joined(joined: rustix::io::Result<()>) -> Result<(), UserNamespaceError> {
    strata_sys::process::keep_exit_codes_of_children();
    let join = |source| UserNamespaceError::Join { source };
    joined.map_err(|errno| join(errno.into()))?;
    strata_sys::clone::unshare(NEW_MOUNT).map_err(join)?;
    become_root()?;
    mount_for_ourselves()
}

/// Makes a plain user root of the user and mount namespace in which `process`, one of his own, is root.
///
/// The working directory is that namespace's root afterwards.
///
/// # Preconditions
/// As of [`enter_rootless`].
///
/// # Errors
/// [`UserNamespaceError::Join`] when the process has ended or is somebody else's.
pub fn join_rootless(process: BorrowedFd<'_>) -> Result<(), UserNamespaceError> {
    use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
    let kinds = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    move_into_thread_name_spaces(process, kinds).map_err(|errno| UserNamespaceError::Join { source: errno.into() })?;
    become_root()
}

/// What the host mounts later still shows up here; what we mount stays ours.
fn mount_for_ourselves() -> Result<(), UserNamespaceError> {
    let slave = rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", slave)
        .map_err(|errno| UserNamespaceError::BecomeRoot { what: "mounts", source: errno.into() })
}

fn become_root() -> Result<(), UserNamespaceError> {
    use rustix::process::{Gid, Uid};
    let root = |what, result: rustix::io::Result<()>| {
        result.map_err(|errno| UserNamespaceError::BecomeRoot { what, source: errno.into() })
    };
    root("group", rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))?;
    root("user", rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
}

/// The two set-user-id programs, waiting outside of the namespace that they are to map.
struct Helpers {
    /// Writing here lets one start.
    gates: [OwnedFd; 2],
    pidfds: [OwnedFd; 2],
}

impl Helpers {
    /// Prepares both; `None` without programs or ranges.
    fn start(uid: u32, gid: u32) -> Result<Option<Self>, UserNamespaceError> {
        let name = user_name(uid).unwrap_or_default();
        let uids = subordinate(Path::new("/etc/subuid"), &name, Some(uid));
        let gids = subordinate(Path::new("/etc/subgid"), &name, Some(uid));
        let (Some(uid_program), Some(gid_program)) = (find_program("newuidmap"), find_program("newgidmap")) else {
            return Ok(None);
        };
        if uids.is_empty() || gids.is_empty() {
            return Ok(None);
        }
        let (uid_gate, uid_pidfd) = Self::fork(&uid_program, &map_arguments(uid, &uids))?;
        let (gid_gate, gid_pidfd) = Self::fork(&gid_program, &map_arguments(gid, &gids))?;
        Ok(Some(Self { gates: [uid_gate, gid_gate], pidfds: [uid_pidfd, gid_pidfd] }))
    }

    /// Lets both run; tells whether both succeeded.
    fn map(self) -> bool {
        let mut mapped = true;
        for (gate, pidfd) in self.gates.into_iter().zip(self.pidfds) {
            mapped &= rustix::io::write(&gate, b"1").is_ok();
            drop(gate);
            let status = loop {
                match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
                    Err(rustix::io::Errno::INTR) => {}
                    result => break result,
                }
            };
            mapped &= matches!(status, Ok(Some(status)) if status.exit_status() == Some(0));
        }
        mapped
    }

    fn fork(program: &Path, arguments: &[String]) -> Result<(OwnedFd, OwnedFd), UserNamespaceError> {
        let fail = |source| UserNamespaceError::Helper { program: program.to_owned(), source };
        let text =
            |text: &OsStr| CString::new(text.as_encoded_bytes()).map_err(|_| fail(io::ErrorKind::InvalidInput.into()));
        let path = text(program.as_os_str())?;
        let mut list = vec![path.clone()];
        for argument in arguments {
            list.push(text(OsStr::new(argument))?);
        }
        let (arguments, environment) = (CStringList::new(list), CStringList::new(Vec::new()));
        let (gate, opener) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| fail(errno.into()))?;
        let helper = Helper { gate, opener, path, arguments, environment };
        let (_, pidfd) = crate::spawn::clone_process(0, None, &helper, wait_and_execute).map_err(fail)?;
        Ok((helper.opener, pidfd))
    }
}

/// What one helper needs.
struct Helper {
    gate: OwnedFd,
    opener: OwnedFd,
    path: CString,
    arguments: CStringList,
    environment: CStringList,
}

/// The helper's side: nothing but system calls.
fn wait_and_execute(helper: &Helper) -> ! {
    // Our own copy of the other end would keep us waiting for ever if the parent died.
    strata_sys::process::close_fd(helper.opener.as_fd());
    let mut byte = [0_u8; 1];
    if let Ok(1) = rustix::io::read(&helper.gate, &mut byte) {
        let _ = strata_sys::process::execve(&helper.path, &helper.arguments, &helper.environment);
    }
    strata_sys::process::exit_now(127)
}

/// `PID 0 <own id> 1  1 <first> <count> ...`
fn map_arguments(own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut arguments = vec![std::process::id().to_string()];
    let mut text = format!("0 {own} 1");
    let mut next = 1_u32;
    for (first, count) in ranges {
        let _ = write!(text, " {next} {first} {count}");
        next = next.saturating_add(*count);
    }
    arguments.extend(text.split(' ').map(str::to_owned));
    arguments
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"]
        .into_iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

fn unshare_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (see kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns)"
        }
        Some(libc::ENOSPC | libc::EUSERS) => " (user.max_user_namespaces is reached)",
        Some(libc::EINVAL) => " (the process has several threads)",
        _ => "",
    }
}

/// Why a user namespace could not be had.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    /// No block of ids is free.
    #[error("no free range of {AUTO_SIZE} ids for a user namespace; see /etc/subuid and /etc/subgid")]
    NoFreeRange,
    /// There is no plain user whose ids could be left out.
    #[error("userns=nomap is for plain users, whose own ids it leaves out: here strata runs as root")]
    NoMapOfRoot,
    /// There are no other ids than those that are to be left out.
    #[error(
        "userns=nomap leaves out the user's own ids, and there are no others; see newuidmap(1), /etc/subuid and /etc/subgid"
    )]
    NoMapOfOne,
    /// An id that the kernel reserves.
    #[error("userns=keep-id: {0} is no id that a user or group can have")]
    InvalidId(u32),
    /// The namespace itself.
    #[error("make a user namespace{hint}")]
    Unshare {
        /// What to look at.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// `newuidmap` succeeded and `newgidmap` did not.
    #[error("newgidmap failed; see /etc/subgid")]
    HalfMapped,
    /// A map of one id.
    #[error("write /proc/self/{file}")]
    Map {
        /// The file.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The namespace of another process.
    #[error("enter the user namespace of the container")]
    Join {
        /// Why.
        source: io::Error,
    },
    /// The last steps.
    #[error("become root of the user namespace ({what})")]
    BecomeRoot {
        /// Which step.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The mapping programs.
    #[error("start {program:?}")]
    Helper {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

static UID_MAP: OnceLock<Vec<IdRange>> = OnceLock::new();
static GID_MAP: OnceLock<Vec<IdRange>> = OnceLock::new();

/// `PROC_USER_INIT_INO`
const INITIAL_NAMESPACE: u64 = 0xefff_fffd;
const NEW_MOUNT: u64 = 0x2_0000;
const NEW_USER_AND_MOUNT: u64 = 0x1000_0000 | NEW_MOUNT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_parsed() {
        let map = parse_map("         0       1000          1\n         1     100000      65536\n");
        assert_eq!(
            map,
            [IdRange { container: 0, host: 1000, size: 1 }, IdRange { container: 1, host: 100_000, size: 65536 }]
        );
    }

    #[test]
    fn subordinate_ranges_by_name_or_number() {
        let text = "anna:100000:65536\n1000:300000:10\n:5:5\nbert:4294967290:10\nanna:x:1\nanna:200000:5\n";
        assert_eq!(parse_subordinate(text, "anna", Some(1000)), [(100_000, 65536), (300_000, 10), (200_000, 5)]);
        assert_eq!(parse_subordinate(text, "bert", None), []);
        assert_eq!(parse_subordinate(text, "", None), []);
    }

    #[test]
    fn mapping_arguments_stack_the_ranges() {
        let arguments = map_arguments(1000, &[(100_000, 65536), (300_000, 10)]);
        assert_eq!(arguments[1..].join(" "), "0 1000 1 1 100000 65536 65537 300000 10");
    }
}
