//! The writable layer on disk, in the form of kernel overlayfs (`docs/formats/upper.md`).
//!
//! Whatever takes more than one step is prepared in the staging folder, on the same filesystem, and put in place by one
//! rename: a crash leaves the old or the new. The staging folder is emptied at every mount.

mod links;
mod owners;

pub(crate) use links::{Link, Links};
pub(crate) use owners::{Given, Owners};

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::Result;
use crate::acl;
use crate::backing::{self, Identity, RawStat};
use crate::beneath::{Crossing, open_beneath};
use crate::by_name;
use crate::idmap::Ids;
use crate::marks::{self, Namespace, Recorded};
use crate::node::Ino;
use crate::override_stat::Override;
use crate::spec::{Options, Upper};

/// The writable layer.
#[derive(Debug)]
pub(crate) struct UpperLayer {
    root: OwnedFd,
    /// Leads nowhere if the layer is only looked at.
    staging: OwnedFd,
    links: Links,
    marks: Namespace,
    owners: Owners,
    /// User and group of the files that this process makes.
    server: (u32, u32),
    /// Names that would be whiteouts in archives are neither seen nor made.
    by_name: bool,
    device: u64,
    next_name: AtomicU64,
    /// The root is marked to have copies of files with several names.
    shares: AtomicBool,
    /// Whether data is written through before a copy-up becomes visible.
    durable: bool,
    /// The staging folder, locked: whoever has it is the one who changes the layer. The folder above is for users of
    /// this crate to lock.
    lock: Option<OwnedFd>,
}

/// What an upper is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be the one who changes it.
    Serve,
    /// To be looked at.
    Observe,
}

/// Why an upper cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// A folder cannot be opened or prepared.
    #[error("prepare {path:?} of the writable layer")]
    Prepare {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Somebody else serves it.
    #[error("the work folder {work:?} is in use by another mount")]
    InUse {
        /// Its scratch space.
        work: PathBuf,
    },
    /// Renames between the two could not work.
    #[error("{dir:?} and {work:?} are on different filesystems")]
    DifferentFilesystems {
        /// The upper.
        dir: PathBuf,
        /// Its scratch space.
        work: PathBuf,
    },
}

impl UpperLayer {
    /// Opens the layer and finds out which marks it uses; to serve it, also cleans the staging folder.
    ///
    /// `lock` is that of [`lock_upper`] if somebody has taken it before.
    pub(crate) fn open(
        upper: &Upper,
        options: &Options,
        purpose: Purpose,
        lock: Option<OwnedFd>,
    ) -> Result<UpperLayer, UpperError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: Errno| UpperError::Prepare { path, source: error.into() }
        };
        let root = open_directory(&upper.dir).map_err(failed(&upper.dir))?;
        let device = backing::stat(root.as_fd()).map_err(failed(&upper.dir))?.device;
        let durable = !options.volatile;
        let kept_beside = Override::of_upper(root.as_fd(), options.xattr_permissions, purpose == Purpose::Serve);
        let by_name = options.named_whiteouts;
        let owners = Owners::new(kept_beside.map_err(failed(&upper.dir))?, Ids::of(options).squashes());
        let links_path = upper.work.join(LINKS);
        let (staging, links, lock) = if purpose == Purpose::Observe {
            let nowhere = || nowhere().map_err(failed(&upper.work));
            (nowhere()?, open_directory(&links_path).or_else(|_| nowhere())?, None)
        } else {
            let work = open_directory(&upper.work).map_err(failed(&upper.work))?;
            let staging_path = upper.work.join("work");
            let staging = prepare(work.as_fd(), "work").map_err(failed(&staging_path))?;
            let lock = match lock {
                Some(lock) => lock,
                None => lock_staging(upper, staging.as_fd())?,
            };
            let links = prepare(work.as_fd(), LINKS).map_err(failed(&links_path))?;
            empty_directory(staging.as_fd()).map_err(failed(&staging_path))?;
            if backing::stat(staging.as_fd()).map_err(failed(&staging_path))?.device != device {
                return Err(UpperError::DifferentFilesystems { dir: upper.dir.clone(), work: upper.work.clone() });
            }
            (staging, links, Some(lock))
        };
        let links = Links::open(links).map_err(failed(&links_path))?;
        let marks = Namespace::choose(options.userxattr, staging.as_fd());
        Ok(UpperLayer {
            root,
            staging,
            links,
            marks,
            owners,
            server: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            by_name,
            device,
            next_name: AtomicU64::new(1),
            shares: AtomicBool::new(false),
            durable,
            lock,
        })
    }

    /// Returns whether it was opened to be changed.
    pub(crate) fn is_writable(&self) -> bool {
        self.lock.is_some()
    }

    /// Tells whoever wants to serve the layer next that this is about to end and only writes out. `None` if it cannot be
    /// told; dropping it takes that back.
    pub(crate) fn announce_end(&self) -> Option<OwnedFd> {
        let dir = backing::reopen(self.links.dir(), OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        // Others look by taking it for a moment.
        for _ in 0..100 {
            match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(dir),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return None,
            }
        }
        None
    }

    /// Returns whether nothing was ever changed.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let mut empty = true;
        for_each_name(self.root(), &mut |_, _| {
            empty = false;
            Ok(())
        })?;
        Ok(empty)
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn staging(&self) -> BorrowedFd<'_> {
        self.staging.as_fd()
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    /// Returns user and group of the files that this process makes.
    pub(crate) fn server(&self) -> (u32, u32) {
        self.server
    }

    /// Returns how owners, permissions and types are kept.
    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Fails for names that cannot be made.
    pub(crate) fn check_new_name(&self, name: &[u8]) -> Result<()> {
        if self.by_name && by_name::special(name).is_some() { Err(Errno::INVAL) } else { Ok(()) }
    }

    /// Returns whether a directory hides the layers below by a name in it, as another program may have left it.
    pub(crate) fn is_opaque_by_name(&self, dir: BorrowedFd<'_>) -> Result<bool> {
        Ok(self.by_name && by_name::is_opaque(dir)?)
    }

    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    /// Returns the namespace of this layer's marks.
    pub(crate) fn marks(&self) -> Namespace {
        self.marks
    }

    /// Returns a name that nothing in the staging folder has.
    pub(crate) fn staging_name(&self) -> String {
        format!("#{:x}", self.next_name.fetch_add(1, Ordering::Relaxed))
    }

    /// Opens `name` without following it; what somebody mounted here is not ours (EXDEV).
    pub(crate) fn look(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<(OwnedFd, RawStat)>> {
        if self.by_name && by_name::special(name).is_some() {
            return Ok(None);
        }
        let fd = match open_beneath(dir, name, OFlags::PATH, Crossing::Refused) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let raw = self.owners.stat(fd.as_fd())?;
        if raw.device != self.device {
            return Err(Errno::XDEV);
        }
        Ok(Some((fd, raw)))
    }

    /// Makes what stands for the character device 0:0 as `name` in `dir`, where the name is free.
    pub(crate) fn make_null_device(&self, dir: BorrowedFd<'_>, name: &[u8], mode: Mode) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, mode)?;
        self.set_mark(file.as_fd(), marks::NULL_DEVICE, b"0:0").inspect_err(|_| {
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        })
    }

    /// Makes a whiteout in the staging folder.
    pub(crate) fn stage_whiteout(&self) -> Result<String> {
        let name = self.staging_name();
        make_whiteout(self.staging(), name.as_bytes())?;
        Ok(name)
    }

    /// Makes the whiteout `name`, in place of `replaced` if there is one.
    pub(crate) fn put_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], replaced: Replaced) -> Result<()> {
        match replaced {
            Replaced::Nothing => make_whiteout(dir, name),
            Replaced::File => {
                let staged = self.stage_whiteout()?;
                self.put_in_place(&staged, dir, name)
            }
            Replaced::Directory => {
                let staged = self.stage_whiteout()?;
                self.exchange(&staged, dir, name)?;
                self.discard_directory(&staged)
            }
        }
    }

    /// Moves what was staged to its place, over a file or whiteout if one is there; on failure takes it away.
    pub(crate) fn put_in_place(&self, staged: &str, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        rustix::fs::renameat(self.staging(), staged, dir, name).inspect_err(|_| self.discard(staged))
    }

    /// Moves what was staged to its place, which must be free; on failure takes it away.
    pub(crate) fn put_in_free_place(&self, staged: &str, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let result = rustix::fs::renameat_with(self.staging(), staged, dir, name, RenameFlags::NOREPLACE);
        let result = match result {
            // A filesystem without the flag; the caller has looked.
            Err(Errno::INVAL) => rustix::fs::renameat(self.staging(), staged, dir, name),
            result => result,
        };
        result.inspect_err(|_| self.discard(staged))
    }

    /// Exchanges what was staged with what is in place; on failure takes the staged thing away.
    pub(crate) fn exchange(&self, staged: &str, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        rustix::fs::renameat_with(self.staging(), staged, dir, name, RenameFlags::EXCHANGE)
            .inspect_err(|_| self.discard(staged))
    }

    /// Takes a staged file or empty directory away. What fails here is cleaned at the next mount.
    pub(crate) fn discard(&self, staged: &str) {
        if rustix::fs::unlinkat(self.staging(), staged, AtFlags::empty()).is_err() {
            let _ = rustix::fs::unlinkat(self.staging(), staged, AtFlags::REMOVEDIR);
        }
    }

    /// Takes a staged directory away with the whiteouts in it.
    pub(crate) fn discard_directory(&self, staged: &str) -> Result<()> {
        remove_tree(self.staging(), staged.as_bytes())
    }

    pub(crate) fn set_opaque(&self, dir: BorrowedFd<'_>) -> Result<()> {
        self.set_mark(dir, b"opaque", b"y")
    }

    pub(crate) fn set_mark(&self, fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
        self.marks.set(fd, name, value)
    }

    /// Removes a mark if it is there.
    pub(crate) fn remove_mark(&self, fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        match self.marks.remove(fd, name) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    /// Notes for the kernel's overlayfs where a file was copied from; it shows the number of that.
    pub(crate) fn record_origin(&self, fd: BorrowedFd<'_>, origin: &[u8]) -> Result<()> {
        self.hint(fd, marks::ORIGIN, origin)
    }

    /// Remembers how many names of a lower file are covered: for this layer, and in the copy for when it is a lower.
    pub(crate) fn set_link(&self, ino: Ino, link: Link) -> Result<()> {
        self.links.set(ino, link)?;
        if link.copied
            && let Ok(copy) = rustix::fs::openat(self.links.dir(), Links::name(ino), LOOK, Mode::empty())
        {
            self.hint(copy.as_fd(), marks::LEFT, &link.all.saturating_sub(link.covered).to_le_bytes())?;
        }
        Ok(())
    }

    /// Sets a mark that can be done without.
    fn hint(&self, fd: BorrowedFd<'_>, mark: &[u8], value: &[u8]) -> Result<()> {
        match self.set_mark(fd, mark, value) {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) => Ok(()),
            result => result,
        }
    }

    /// Records the number under which the object was shown before it was copied up.
    ///
    /// Where there are no xattrs (symbolic links in the `user.` namespace) the number will be another after a remount.
    pub(crate) fn record_number(&self, fd: BorrowedFd<'_>, number: Recorded) -> Result<()> {
        if number.shared && !self.shares.swap(true, Ordering::Relaxed) {
            self.hint(self.root(), marks::SHARES, b"y")?;
        }
        match self.set_mark(fd, marks::NUMBER, &number.to_bytes()) {
            Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
            result => result,
        }
    }
}

/// What a whiteout takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// The name is free in the upper.
    Nothing,
    /// Anything but a directory.
    File,
    /// A directory that holds nothing but whiteouts.
    Directory,
}

/// Makes a whiteout; the name must be free.
pub(crate) fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Returns whether two files of the layer are one.
pub(crate) fn same(identity: Identity, raw: &RawStat) -> bool {
    identity == backing::identity(raw)
}

/// Calls `visit` with each name in a directory but `.` and `..`.
pub(crate) fn for_each_name(dir: BorrowedFd<'_>, visit: &mut dyn FnMut(&[u8], FileType) -> Result<()>) -> Result<()> {
    let listing = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(listing)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            visit(name, entry.file_type())?;
        }
    }
    Ok(())
}

/// Opens a folder that the user named.
fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Returns a descriptor below which nothing can be found or made.
pub(crate) fn nowhere() -> Result<OwnedFd> {
    rustix::fs::memfd_create("strata-nowhere", rustix::fs::MemfdFlags::CLOEXEC)
}

/// Takes the lock of a layer for whoever will serve it. It is held until all copies of the descriptor are closed.
pub(crate) fn lock_upper(upper: &Upper) -> Result<OwnedFd, UpperError> {
    let failed = |error: Errno| UpperError::Prepare { path: upper.work.clone(), source: error.into() };
    let work = open_directory(&upper.work).map_err(failed)?;
    lock_staging(upper, prepare(work.as_fd(), "work").map_err(failed)?.as_fd())
}

fn lock_staging(upper: &Upper, staging: BorrowedFd<'_>) -> Result<OwnedFd, UpperError> {
    let failed = |error: Errno| UpperError::Prepare { path: upper.work.join("work"), source: error.into() };
    lock(staging, &upper.work).map_err(failed)?.ok_or_else(|| UpperError::InUse { work: upper.work.clone() })
}

/// Locks the staging folder, waiting a moment for a server that is just ending, and for as long as it takes for one that
/// says so; `None` if it does not end.
fn lock(staging: BorrowedFd<'_>, work: &Path) -> Result<Option<OwnedFd>> {
    let dir = rustix::fs::openat(staging, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut started = Instant::now();
    loop {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(dir)),
            Err(Errno::WOULDBLOCK) if started.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            // Then its keeper ends as well, which holds the lock too.
            Err(Errno::WOULDBLOCK) if is_ending(work) => started = Instant::now(),
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Returns whether the server of a layer has said that it is about to end.
fn is_ending(work: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(work.join(LINKS), flags, Mode::empty()) else { return false };
    rustix::fs::flock(&dir, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// Makes a folder of ours if it is not there, and opens it. It gives no access lists to what is made in it.
fn prepare(work: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(work, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let dir = rustix::fs::openat(work, name, LOOK | OFlags::DIRECTORY, Mode::empty())?;
    for list in [acl::DEFAULT, acl::ACCESS] {
        if backing::xattr(dir.as_fd(), list)?.is_some() {
            backing::remove_xattr(dir.as_fd(), list)?;
        }
    }
    Ok(dir)
}

/// Removes all that is in a directory.
pub(crate) fn empty_directory(dir: BorrowedFd<'_>) -> Result<()> {
    let mut names = Vec::new();
    for_each_name(dir, &mut |name, _| {
        names.push(name.to_vec());
        Ok(())
    })?;
    names.iter().try_for_each(|name| remove_tree(dir, name))
}

/// Removes `name` with all that is in it. Depth costs no stack.
fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    let mut open = vec![(open_beneath(dir, name, directory, Crossing::Refused)?, name.to_vec())];
    while let Some((current, _)) = open.last() {
        let mut deeper = None;
        for_each_name(current.as_fd(), &mut |child, _| {
            if deeper.is_some() {
                return Ok(());
            }
            match rustix::fs::unlinkat(current, child, AtFlags::empty()) {
                Ok(()) => Ok(()),
                Err(Errno::ISDIR | Errno::PERM) => {
                    deeper = Some(child.to_vec());
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })?;
        if let Some(child) = deeper {
            let fd = open_beneath(current.as_fd(), &child, directory, Crossing::Refused)?;
            open.push((fd, child));
            continue;
        }
        let Some((_, finished)) = open.pop() else { break };
        let parent = open.last().map_or(dir, |(parent, _)| parent.as_fd());
        rustix::fs::unlinkat(parent, finished, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// How names are looked at: without following, without side effects.
pub(crate) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How long the server of the last mount may take to say that it ends.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where the hard links of lower files are remembered, in the work folder.
const LINKS: &str = "strata-links";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_out_is_waited_for_and_who_serves_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let upper = Upper { dir: temp.path().join("upper"), work: temp.path().join("work") };
        std::fs::create_dir(&upper.dir).unwrap();
        std::fs::create_dir(&upper.work).unwrap();
        let layer = UpperLayer::open(&upper, &Options::default(), Purpose::Serve, None).unwrap();
        assert!(!is_ending(&upper.work));
        let ending = layer.announce_end().unwrap();
        assert!(is_ending(&upper.work));
        let started = Instant::now();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| lock_upper(&upper).unwrap());
            std::thread::sleep(PATIENCE + Duration::from_millis(300));
            drop((layer, ending));
            next.join().unwrap();
        });
        assert!(started.elapsed() > PATIENCE);
        assert!(!is_ending(&upper.work));
    }
}
