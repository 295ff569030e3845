//! How much a writable layer holds, and how much it may hold.
//!
//! Counted is what the layer's filesystem has allocated (`st_blocks`) for everything that has an inode in the layer,
//! files without a name included as long as somebody holds them; whiteouts are not. Each change of a file adds the
//! difference it made. The two sums are kept in the work folder while nobody serves the layer:
//!
//! ```text
//! work/strata-usage:   strata-usage 1
//!                      bytes <sum>
//!                      inodes <number>
//!                      staging <inode> <seconds>.<nanoseconds>
//! ```
//!
//! The file is taken away when the layer is opened for changes and written when that ends. So if it is there, it is
//! right; if not, after a crash, the layer is counted by walking it, before the mount can be used. `staging` is the
//! change time of the staging folder: other programs that use the layer make that folder anew, which tells that they
//! were there. Changes that somebody makes in the folder by hand are not noticed.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::Result;
use crate::backing;
use crate::spec::Limits;
use crate::upper::{LOOK, UpperLayer, for_each_name};

/// What a writable layer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Files, directories and everything else that has an inode.
    pub inodes: u64,
}

/// The running sums of one layer.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    /// The unit in which the layer's filesystem allocates.
    block: u64,
    bytes: AtomicU64,
    inodes: AtomicU64,
    /// What changes that are under way may take at most.
    reserved: AtomicU64,
    /// Files that nobody has a name of or has open, and that are about to be forgotten.
    leaving: AtomicU64,
    /// Held while space is so scarce that only one at a time may look for it.
    narrow: Mutex<()>,
}

/// Space that a change may take. Given back when dropped: by then what was taken is counted.
#[derive(Debug)]
#[must_use = "dropping it gives the space back"]
pub(crate) struct Room<'a> {
    ledger: &'a Ledger,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.ledger.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The right to make one inode. Given back when dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the inode back"]
pub(crate) struct Admission<'a> {
    ledger: &'a Ledger,
    _room: Room<'a>,
    used: bool,
}

impl Admission<'_> {
    /// Says that the inode was made.
    pub(crate) fn used(mut self) {
        self.used = true;
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if !self.used {
            self.ledger.inodes.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Ledger {
    /// Begins to count for a layer that is opened for changes; without limits only takes away a count that will be wrong.
    pub(crate) fn open(upper: &UpperLayer, limits: Limits) -> Result<Option<Ledger>> {
        let kept = take_kept(upper)?;
        if limits.is_none() {
            return Ok(None);
        }
        let usage = match kept {
            Some(usage) => usage,
            None => count(upper)?,
        };
        let block = rustix::fs::fstatvfs(upper.root())?.f_frsize.clamp(512, 1 << 20);
        Ok(Some(Ledger {
            limits,
            block,
            bytes: AtomicU64::new(usage.bytes),
            inodes: AtomicU64::new(usage.inodes),
            reserved: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            narrow: Mutex::default(),
        }))
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn usage(&self) -> LayerUsage {
        LayerUsage { bytes: self.bytes.load(Ordering::Relaxed), inodes: self.inodes.load(Ordering::Relaxed) }
    }

    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    /// Returns the most that writing `length` bytes at `offset` allocates for data.
    pub(crate) fn span(&self, offset: u64, length: u64) -> u64 {
        let first = offset / self.block;
        let behind = offset.saturating_add(length).div_ceil(self.block);
        behind.saturating_sub(first).saturating_mul(self.block)
    }

    /// Takes hold of space if there is that much.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<Room<'_>> {
        let room = Room { ledger: self, bytes };
        let reserved = self.reserved.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let Some(limit) = self.limits.bytes else { return Some(room) };
        // Dropping gives back what there was no room for. What takes nothing may be done as long as all is in order.
        (self.bytes.load(Ordering::Relaxed).saturating_add(reserved) <= limit).then_some(room)
    }

    /// The same, but waits a moment for others who may not need what they hold, and for files that were just deleted.
    pub(crate) fn wait_for_room(&self, bytes: u64) -> Option<Room<'_>> {
        let started = Instant::now();
        loop {
            if let Some(room) = self.reserve(bytes) {
                return Some(room);
            }
            let hope = self.reserved.load(Ordering::Relaxed) + self.leaving.load(Ordering::Relaxed) > 0;
            let possible = self.limits.bytes.is_none_or(|limit| bytes <= limit);
            if !hope || !possible || started.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(STEP);
        }
    }

    /// Makes sure that only one looks for the last space.
    pub(crate) fn narrow(&self) -> MutexGuard<'_, ()> {
        self.narrow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows one inode more, which will take at most `bytes` at first.
    pub(crate) fn admit(&self, bytes: u64) -> Result<Admission<'_>> {
        let started = Instant::now();
        loop {
            let inodes = self.inodes.fetch_add(1, Ordering::Relaxed) + 1;
            if self.limits.inodes.is_none_or(|limit| inodes <= limit) {
                break;
            }
            self.inodes.fetch_sub(1, Ordering::Relaxed);
            if self.leaving.load(Ordering::Relaxed) == 0 || started.elapsed() > PATIENCE {
                return Err(Errno::NOSPC);
            }
            std::thread::sleep(STEP);
        }
        let room = self.reserve(bytes).or_else(|| {
            let _narrow = self.narrow();
            self.wait_for_room(bytes)
        });
        let Some(room) = room else {
            self.inodes.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::NOSPC);
        };
        Ok(Admission { ledger: self, _room: room, used: false })
    }

    /// Returns whether more is taken than allowed.
    pub(crate) fn is_over(&self) -> bool {
        self.limits.bytes.is_some_and(|limit| self.bytes.load(Ordering::Relaxed) > limit)
    }

    /// Counts that a file has grown or shrunk.
    pub(crate) fn changed(&self, before: u64, now: u64) {
        if now >= before {
            self.bytes.fetch_add(now - before, Ordering::Relaxed);
        } else {
            subtract(&self.bytes, before - now);
        }
    }

    /// Counts an inode that was here before, whatever the limits say.
    pub(crate) fn restored(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.inodes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that an inode is gone with all it had.
    pub(crate) fn gone(&self, bytes: u64) {
        subtract(&self.bytes, bytes);
        subtract(&self.inodes, 1);
    }

    /// Counts files that are about to go.
    pub(crate) fn leaving(&self) {
        self.leaving.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes that back: it has gone.
    pub(crate) fn left(&self) {
        subtract(&self.leaving, 1);
    }

    /// Writes the sums to the work folder, for the next who opens the layer. All changes are on the disk, if the layer is
    /// durable: sums that are there without what they count would be wrong.
    pub(crate) fn keep(&self, upper: &UpperLayer) -> Result<()> {
        let usage = self.usage();
        let work = work_of(upper)?;
        let text =
            format!("{MAGIC}\nbytes {}\ninodes {}\nstaging {}\n", usage.bytes, usage.inodes, fingerprint(upper)?);
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&work, NEW_FILE, flags, Mode::RUSR | Mode::WUSR)?;
        crate::copy::write_all_at(file.as_fd(), text.as_bytes(), 0)?;
        if upper.is_durable() {
            rustix::fs::fsync(&file)?;
        }
        rustix::fs::renameat(&work, NEW_FILE, &work, USAGE_FILE)
    }
}

/// Counts wrap nowhere: what is taken away twice would be worse than a sum that is too high.
fn subtract(counter: &AtomicU64, amount: u64) {
    let less = |value: u64| Some(value.saturating_sub(amount));
    // It never refuses.
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// Reads the sums that were kept, and takes them away, since they are about to be wrong.
fn take_kept(upper: &UpperLayer) -> Result<Option<LayerUsage>> {
    let work = work_of(upper)?;
    let file =
        match rustix::fs::openat(&work, USAGE_FILE, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
    let mut buffer = [0; 512];
    let length = rustix::io::pread(&file, &mut buffer, 0)?;
    rustix::fs::unlinkat(&work, USAGE_FILE, AtFlags::empty())?;
    if upper.is_durable() {
        rustix::fs::fsync(backing::reopen(work.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?)?;
    }
    let current = fingerprint(upper)?;
    Ok(std::str::from_utf8(&buffer[..length]).ok().and_then(|text| parse(text, &current)))
}

fn parse(text: &str, staging: &str) -> Option<LayerUsage> {
    let mut lines = text.lines();
    if lines.next()? != MAGIC {
        return None;
    }
    let bytes = lines.next()?.strip_prefix("bytes ")?.parse().ok()?;
    let inodes = lines.next()?.strip_prefix("inodes ")?.parse().ok()?;
    (lines.next()?.strip_prefix("staging ")? == staging).then_some(LayerUsage { bytes, inodes })
}

fn work_of(upper: &UpperLayer) -> Result<OwnedFd> {
    rustix::fs::openat(upper.staging(), "..", LOOK | OFlags::DIRECTORY, Mode::empty())
}

fn fingerprint(upper: &UpperLayer) -> Result<String> {
    let raw = backing::stat(upper.staging())?;
    Ok(format!("{} {}.{}", raw.ino, raw.ctime.seconds, raw.ctime.nanoseconds))
}

/// Walks the layer.
fn count(upper: &UpperLayer) -> Result<LayerUsage> {
    let mut usage = LayerUsage::default();
    let mut linked = HashSet::new();
    let mut add = |raw: &backing::RawStat| {
        if raw.nlink > 1 && raw.mode & libc::S_IFMT != libc::S_IFDIR && !linked.insert(raw.ino) {
            return;
        }
        usage.inodes += 1;
        usage.bytes += allocated(raw);
    };
    add(&backing::stat(upper.root())?);
    // Up and down with one descriptor, since neither depth nor width may cost many: the names still to visit at each
    // level above.
    let mut dir = rustix::io::fcntl_dupfd_cloexec(upper.root(), 0)?;
    let mut levels = vec![count_names(upper, &dir, &mut add)?];
    while let Some(names) = levels.last_mut() {
        let (next, below) = match names.pop() {
            Some(name) => (rustix::fs::openat(&dir, name, LOOK | OFlags::DIRECTORY, Mode::empty())?, true),
            None if levels.len() == 1 => break,
            None => (rustix::fs::openat(&dir, "..", LOOK | OFlags::DIRECTORY, Mode::empty())?, false),
        };
        dir = next;
        if below {
            levels.push(count_names(upper, &dir, &mut add)?);
        } else {
            levels.pop();
        }
    }
    // Copies of lower files that have no name in the layer but this.
    for_each_name(upper.links().dir(), &mut |name, _| {
        let raw = backing::stat_name(upper.links().dir(), name)?;
        if !name.contains(&b'.') {
            add(&raw);
        }
        Ok(())
    })?;
    Ok(usage)
}

/// Counts what is in a directory and returns the names of the directories there.
fn count_names(upper: &UpperLayer, dir: &OwnedFd, add: &mut impl FnMut(&backing::RawStat)) -> Result<Vec<Vec<u8>>> {
    let mut directories = Vec::new();
    for_each_name(dir.as_fd(), &mut |name, _| {
        let file = match rustix::fs::openat(dir, name, LOOK, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        let raw = backing::stat(file.as_fd())?;
        let foreign = raw.device != upper.device();
        if foreign || upper.marks().shown_kind(file.as_fd(), &raw)?.is_none() {
            return Ok(());
        }
        add(&raw);
        if raw.mode & libc::S_IFMT == libc::S_IFDIR {
            directories.push(name.to_vec());
        }
        Ok(())
    })?;
    Ok(directories)
}

/// Returns how many bytes are allocated for a file.
pub(crate) fn allocated(raw: &backing::RawStat) -> u64 {
    raw.blocks.saturating_mul(512)
}

/// Returns the space that is allocated for an open file.
pub(crate) fn allocated_of(file: BorrowedFd<'_>) -> Result<u64> {
    Ok(allocated(&backing::stat(file)?))
}

const MAGIC: &str = "strata-usage 1";
/// The sums, in the work folder. Whoever changes the layer behind the filesystem's back takes it away.
pub const USAGE_FILE: &str = "strata-usage";
const NEW_FILE: &str = "strata-usage.new";
/// How long a change waits for files that were just deleted: the kernel tells in the background that they are gone.
const PATIENCE: Duration = Duration::from_millis(100);
const STEP: Duration = Duration::from_micros(200);

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(bytes: Option<u64>, inodes: Option<u64>) -> Ledger {
        Ledger {
            limits: Limits { bytes, inodes },
            block: 4096,
            bytes: AtomicU64::new(0),
            inodes: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            narrow: Mutex::default(),
        }
    }

    #[test]
    fn room_is_given_back_and_never_given_twice() {
        let ledger = ledger(Some(10_000), None);
        let first = ledger.reserve(6000).unwrap();
        assert!(ledger.reserve(6000).is_none());
        let second = ledger.reserve(4000).unwrap();
        ledger.changed(0, 6000);
        drop((first, second));
        assert!(ledger.reserve(4001).is_none());
        drop(ledger.reserve(4000).unwrap());
        ledger.changed(6000, 0);
        assert_eq!(ledger.usage(), LayerUsage::default());
        ledger.gone(5);
        assert_eq!(ledger.usage(), LayerUsage::default(), "nothing wraps");
    }

    #[test]
    fn inodes_are_limited_by_number() {
        let ledger = ledger(None, Some(2));
        ledger.admit(0).unwrap().used();
        drop(ledger.admit(1 << 40).unwrap());
        ledger.admit(0).unwrap().used();
        assert_eq!(ledger.admit(0).unwrap_err(), Errno::NOSPC);
        ledger.gone(0);
        ledger.admit(0).unwrap().used();
    }

    #[test]
    fn a_span_covers_all_touched_blocks() {
        let ledger = ledger(None, None);
        assert_eq!(ledger.span(0, 0), 0);
        assert_eq!(ledger.span(0, 1), 4096);
        assert_eq!(ledger.span(4095, 2), 8192);
        assert_eq!(ledger.span(u64::MAX - 1, 10), 4096);
    }

    #[test]
    fn kept_sums_count_only_for_the_same_staging_folder() {
        let text = "strata-usage 1\nbytes 12\ninodes 3\nstaging 7 1.2\n";
        assert_eq!(parse(text, "7 1.2"), Some(LayerUsage { bytes: 12, inodes: 3 }));
        assert_eq!(parse(text, "7 1.3"), None);
        for wrong in ["", "strata-usage 2\nbytes 1\ninodes 1\nstaging 7 1.2", "strata-usage 1\nbytes x\ninodes 1"] {
            assert_eq!(parse(wrong, "7 1.2"), None);
        }
    }
}
