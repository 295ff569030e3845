//! One mount of a layer for all processes that serve it.
//!
//! Beside the table lies a record, `<table>.mount`, one line per holder of the mount: process id, the inode number of its
//! pidfd, which no other process has until the next boot, and the number of its descriptor of the mount's root. A newcomer takes the descriptor out of any of these processes
//! with `pidfd_getfd` and adds a line of its own, so the mount lives until its last holder is gone, in whatever order
//! they go. Lines of dead processes are dropped by the next one that looks; the last holder to leave removes the file.
//!
//! The record is a hint: all of what it says is checked before it is believed. It lies in a folder that only its owner
//! can write to, and one `flock` on it orders everything that is done with the table.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
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
    /// lets us have it. Forgets holders that are of no use.
    pub(super) fn join(&mut self, uuid: &[u8; 16]) -> Option<OwnedFd> {
        while let Some(holder) = self.holders.last() {
            match holder.take_root(uuid) {
                Ok(Some(root)) => return Some(root),
                Ok(None) => {}
                Err(error) => tracing::debug!(?holder, %error, "cannot take the mount of another process"),
            }
            self.holders.pop();
        }
        None
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
        // Not truncated first: ext4 takes that for a replacement of the content and writes to the disk at once. What a
        // crash leaves between the two calls is the ends of old lines.
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
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
            record.holders.retain(|holder| *holder != self.holder);
            while record.holders.last().is_some_and(|holder| !holder.process.is_alive()) {
                record.holders.pop();
            }
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
        let (pidfd, process) = Process::open(self.process.pid)?;
        if process != self.process {
            return Ok(None);
        }
        let root = pidfd_getfd(&pidfd, self.descriptor, PidfdGetfdFlags::empty())?;
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
        write!(f, "{} {} {}", self.process.pid.as_raw_nonzero(), self.process.identity, self.descriptor)
    }
}

impl FromStr for Holder {
    type Err = ();

    fn from_str(line: &str) -> Result<Holder, ()> {
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or(());
        let pid = word()?.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(())?;
        let identity = word()?.parse().map_err(drop)?;
        let descriptor = word()?.parse().ok().filter(|descriptor| *descriptor >= 0).ok_or(())?;
        match words.next() {
            None => Ok(Holder { process: Process { pid, identity }, descriptor }),
            Some(_) => Err(()),
        }
    }
}

/// A process, told apart from later ones with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    /// Inode number of any pidfd of it.
    identity: u64,
}

impl Process {
    fn current() -> io::Result<Process> {
        Ok(Process::open(rustix::process::getpid())?.1)
    }

    fn is_alive(&self) -> bool {
        Process::open(self.pid).is_ok_and(|(_, process)| process == *self)
    }

    fn open(pid: Pid) -> io::Result<(OwnedFd, Process)> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        if fstatfs(&pidfd)?.f_type != PIDFS_MAGIC {
            // Before Linux 6.9 all pidfds have one inode.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let identity = fstat(&pidfd)?.st_ino;
        Ok((pidfd, Process { pid, identity }))
    }
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
/// `PID_FS_MAGIC`.
const PIDFS_MAGIC: i64 = 0x5049_4446;
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
    fn a_process_has_an_identity_of_its_own() {
        let ours = Process::current().unwrap();
        assert_eq!(ours, Process::current().unwrap());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let (pidfd, theirs) = Process::open(Pid::from_child(&child)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(pidfd);
        assert_ne!(ours.identity, theirs.identity);
        assert!(Process::open(theirs.pid).is_err());
    }

    #[test]
    fn a_descriptor_that_is_something_else_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path().join("objects");
        let other = OwnedFd::from(File::open("/").unwrap());
        let holding = Record::lock(&table).unwrap().add(&other).unwrap();
        let mut record = Record::lock(&table).unwrap();
        assert_eq!(record.holders, [holding.holder]);
        assert!(record.join(&[0; 16]).is_none());
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
