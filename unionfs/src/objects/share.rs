//! One mount of a layer for all processes that serve it.
//!
//! Beside the table lies a record, `<table>.mount`, one line per holder of the mount: process id, start time of the
//! process, number of its descriptor of the mount's root. A newcomer takes the descriptor out of any of these processes
//! with `pidfd_getfd` and adds a line of its own, so the mount lives until its last holder is gone, in whatever order
//! they go. Lines of dead processes are dropped by the next one that looks; the last holder to leave removes the file.
//!
//! The record is a hint: all of what it says is checked before it is believed. It lies in a folder that only its owner
//! can write to, and one `flock` on it orders everything that is done with the table.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FlockOperation, StatVfsMountFlags, flock, fstat, fstatfs, fstatvfs};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use strata_layer::objects::ROOT_NID;
use strata_sys::filesystem_uuid::filesystem_uuid;

use super::ObjectsUnavailable;

/// The record of one layer, locked.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    file: File,
    holders: Vec<Holder>,
}

impl Record {
    /// Opens the record beside `table`, waiting for whoever is working with it.
    pub(super) fn lock(table: &Path) -> Result<Record, ObjectsUnavailable> {
        let mut path = table.to_owned().into_os_string();
        path.push(".mount");
        let path = PathBuf::from(path);
        Record::lock_at(path.clone(), Missing::Create).map_err(ObjectsUnavailable::io("lock", &path))
    }

    fn lock_at(path: PathBuf, missing: Missing) -> io::Result<Record> {
        let create = missing == Missing::Create;
        loop {
            let file = File::options().read(true).write(true).create(create).mode(0o600).open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            // The last holder may have removed the file while we waited for it.
            match std::fs::metadata(&path) {
                Ok(there) if same_file(&there, &file.metadata()?) => {}
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            let mut text = Vec::new();
            (&file).take(RECORD_LIMIT).read_to_end(&mut text)?;
            // Lines that do not parse were cut by a crash or come from another version; they go with the next write.
            let holders = String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect();
            return Ok(Record { path, file, holders });
        }
    }

    /// Takes the root of the mount with this UUID out of a process that holds it. `None` if no process does, or none
    /// lets us have it. Forgets holders that are gone.
    pub(super) fn join(&mut self, uuid: &[u8; 16]) -> Option<OwnedFd> {
        self.holders.retain(|holder| holder.process.is_alive());
        self.holders.iter().find_map(|holder| match holder.take_root(uuid) {
            Ok(root) => root,
            Err(error) => {
                tracing::debug!(?holder, %error, "cannot take the mount of another process");
                None
            }
        })
    }

    /// Adds this process, which has the mount's root open at `root`, to the record. `None` if that is not possible;
    /// then other processes make their own mounts.
    pub(super) fn add(mut self, root: &OwnedFd) -> Option<Holding> {
        let added = Process::current().and_then(|process| {
            let holder = Holder { process, descriptor: root.as_raw_fd() };
            self.holders.push(holder);
            self.write().map(|()| holder)
        });
        match added {
            Ok(holder) => Some(Holding { path: self.path, holder }),
            Err(error) => {
                tracing::debug!(path = ?self.path, %error, "mount of object table is not shared");
                None
            }
        }
    }

    /// Writes the holders, or removes the record if there are none.
    fn write(&mut self) -> io::Result<()> {
        if self.holders.is_empty() {
            return std::fs::remove_file(&self.path);
        }
        let text: String = self.holders.iter().map(|holder| format!("{holder}\n")).collect();
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(text.as_bytes())
    }
}

/// Our line in a record, removed on drop.
#[derive(Debug)]
pub(super) struct Holding {
    path: PathBuf,
    holder: Holder,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let leave = || -> io::Result<()> {
            let mut record = Record::lock_at(self.path.clone(), Missing::Fail)?;
            record.holders.retain(|holder| *holder != self.holder && holder.process.is_alive());
            record.write()
        };
        if let Err(error) = leave() {
            // The line stays and is recognised as stale by the next reader.
            tracing::debug!(path = ?self.path, %error, "cannot leave the record of an object table's mount");
        }
    }
}

/// One process that has a mount open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    process: Process,
    descriptor: RawFd,
}

impl Holder {
    /// Takes the descriptor out of the process. `None` if it is not, or no longer, the root of the mount with this UUID.
    fn take_root(&self, uuid: &[u8; 16]) -> io::Result<Option<OwnedFd>> {
        let process = pidfd_open(self.process.pid, PidfdFlags::empty())?;
        // Looked at after the descriptor was opened, so that it is this very process from here on.
        if !self.process.is_alive() {
            return Ok(None);
        }
        let root = pidfd_getfd(&process, self.descriptor, PidfdGetfdFlags::empty())?;
        let flags = fstatvfs(&root)?.f_flag;
        let locked = StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
        let is_ours = fstatfs(&root)?.f_type == EROFS_MAGIC
            && fstat(&root)?.st_ino == ROOT_NID
            && flags.contains(locked)
            && filesystem_uuid(root.as_fd())? == *uuid;
        Ok(is_ours.then_some(root))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.process.pid.as_raw_nonzero(), self.process.started, self.descriptor)
    }
}

impl FromStr for Holder {
    type Err = ();

    fn from_str(line: &str) -> Result<Holder, ()> {
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or(());
        let pid = word()?.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(())?;
        let started = word()?.parse().map_err(drop)?;
        let descriptor = word()?.parse().map_err(drop)?;
        match words.next() {
            None => Ok(Holder { process: Process { pid, started }, descriptor }),
            Some(_) => Err(()),
        }
    }
}

/// A process, told apart from later ones with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    /// Clock ticks between boot and start.
    started: u64,
}

impl Process {
    fn current() -> io::Result<Process> {
        let pid = rustix::process::getpid();
        Ok(Process { pid, started: start_time(pid)? })
    }

    fn is_alive(&self) -> bool {
        start_time(self.pid).is_ok_and(|started| started == self.started)
    }
}

/// Returns the start time of a process: the 22nd field of its `stat`, the second being a name that may hold anything.
fn start_time(pid: Pid) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let behind_name = stat.iter().rposition(|byte| *byte == b')').and_then(|at| stat.get(at + 2..));
    let field = behind_name.and_then(|fields| fields.split(|byte| *byte == b' ').nth(19));
    let number = field.and_then(|field| std::str::from_utf8(field).ok()?.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// What to do if there is no record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Fail,
}

/// `EROFS_SUPER_MAGIC_V1`.
const EROFS_MAGIC: i64 = 0xe0f5_e1e2;
/// More than any number of processes makes it.
const RECORD_LIMIT: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(line: &str) -> Option<Holder> {
        line.parse().ok()
    }

    #[test]
    fn a_line_reads_back() {
        let line = "17 4711 23";
        assert_eq!(holder(line).unwrap().to_string(), line);
        for bad in ["", "17", "17 4711", "17 4711 23 5", "0 1 2", "-4 1 2", "17 4711 x", "17  4711 23"] {
            assert_eq!(holder(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_process_is_alive_only_with_its_own_start_time() {
        let current = Process::current().unwrap();
        assert!(current.is_alive());
        assert!(!Process { started: current.started + 1, ..current }.is_alive());
    }

    #[test]
    fn a_descriptor_that_is_something_else_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path().join("objects");
        let other = OwnedFd::from(File::open("/").unwrap());
        let holding = Record::lock(&table).unwrap().add(&other).unwrap();
        let mut record = Record::lock(&table).unwrap();
        assert!(record.join(&[0; 16]).is_none());
        assert_eq!(record.holders, [holding.holder]);
        drop(record);
        drop(holding);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the last holder removes the record");
    }

    #[test]
    fn lines_of_the_dead_and_garbage_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path().join("objects");
        std::fs::write(directory.path().join("objects.mount"), "1 1 3\nnonsense\n4194303 12 5\n").unwrap();
        let mut record = Record::lock(&table).unwrap();
        assert_eq!(record.holders.len(), 2);
        assert!(record.join(&[0; 16]).is_none());
        assert_eq!(record.holders, []);
    }
}
