//! A disk that remembers in which order it was written, and can be had as it was at any moment.
//!
//! One file, served over FUSE, below a loop device. What a file system writes arrives as writes of that file, and what it
//! flushes as `fsync`. Everything before a flush is on the disk when the flush ends; of what comes after it, a power cut
//! may leave any part.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use crate::random::Random;

/// The recording disk. Dropped, it goes.
#[derive(Debug)]
pub struct Recorder {
    log: Arc<Mutex<Log>>,
    folder: PathBuf,
    session: Option<BackgroundSession>,
}

/// Something that happened to the disk.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were written.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// What was written before is on the disk.
    Flush,
}

/// What a disk contains: blocks that are not zero.
#[derive(Clone, Debug, Default)]
pub struct Content {
    blocks: HashMap<u64, Arc<[u8; BLOCK]>>,
    size: u64,
}

#[derive(Debug, Default)]
struct Log {
    now: Content,
    events: Vec<Event>,
}

impl Recorder {
    /// Makes a disk of so many bytes, all zero; `folder` exists and is empty.
    pub fn start(folder: &Path, size: u64) -> Result<Recorder> {
        let log = Arc::new(Mutex::new(Log { now: Content { size, ..Content::default() }, events: Vec::new() }));
        let disk = Disk { log: Arc::clone(&log), size };
        let session = fuser::spawn_mount(disk, folder, &Config::default()).context("mount the recording disk")?;
        Ok(Recorder { log, folder: folder.to_owned(), session: Some(session) })
    }

    /// The file that is the disk.
    pub fn file(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// How many events there were so far.
    pub fn position(&self) -> usize {
        lock(&self.log).events.len()
    }

    /// Everything that happened.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.log).events.clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Unmounts; nobody uses it any more.
        drop(self.session.take());
    }
}

impl Content {
    /// An empty disk of this size.
    pub fn of_size(size: u64) -> Content {
        Content { size, ..Content::default() }
    }

    /// Does what an event did.
    pub fn apply(&mut self, event: &Event) {
        if let Event::Write { offset, data } = event {
            self.write(*offset, data);
        }
    }

    /// Does a part of an event: a random set of its blocks. A block is written as a whole or not, as disks promise of their
    /// physical sectors and as file systems rely on for their superblocks.
    pub fn apply_torn(&mut self, event: &Event, random: &mut Random) {
        let Event::Write { offset, data } = event else { return };
        let (mut offset, mut data) = (*offset, &data[..]);
        while !data.is_empty() {
            let left = BLOCK - usize::try_from(offset % BLOCK as u64).unwrap_or(0);
            let (piece, rest) = data.split_at(left.min(data.len()));
            if random.below(2) == 0 {
                self.write(offset, piece);
            }
            offset += piece.len() as u64;
            data = rest;
        }
    }

    fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (number, start) = (offset / BLOCK as u64, usize::try_from(offset % BLOCK as u64).unwrap_or(0));
            let count = data.len().min(BLOCK - start);
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[start..start + count].copy_from_slice(&data[..count]);
            offset += count as u64;
            data = &data[count..];
        }
    }

    fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut data = vec![0; size.min(left)];
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let start = usize::try_from(at % BLOCK as u64).unwrap_or(0);
            let count = (data.len() - done).min(BLOCK - start);
            if let Some(block) = self.blocks.get(&(at / BLOCK as u64)) {
                data[done..done + count].copy_from_slice(&block[start..start + count]);
            }
            done += count;
        }
        data
    }

    /// Writes the content into a new file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = File::create(path)?;
        file.set_len(self.size)?;
        for (number, block) in &self.blocks {
            file.write_all_at(&block[..], number * BLOCK as u64)?;
        }
        Ok(())
    }
}

/// The file system with the one file.
struct Disk {
    log: Arc<Mutex<Log>>,
    size: u64,
}

impl Disk {
    fn attributes(&self, number: INodeNo) -> FileAttr {
        let is_root = number == INodeNo::ROOT;
        FileAttr {
            ino: number,
            size: if is_root { 0 } else { self.size },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: if is_root { 0o755 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(number));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Without a cache in between, a write arrives when it is made.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&lock(&self.log).now.read(offset, size as usize));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let event = Event::Write { offset, data: data.to_vec() };
        let mut log = lock(&self.log);
        log.now.apply(&event);
        log.events.push(event);
        drop(log);
        reply.written(u32::try_from(data.len()).unwrap_or(0));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.log).events.push(Event::Flush);
        reply.ok();
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
const BLOCK: usize = 4096;
const FOREVER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_across_blocks_are_read_back() {
        let mut content = Content::of_size(20_000);
        content.apply(&Event::Write { offset: 4000, data: vec![7; 5000] });
        assert_eq!(content.read(3999, 3), [0, 7, 7]);
        assert_eq!(content.read(8999, 2), [7, 0]);
        assert_eq!(content.read(19_999, 10), [0]);
        assert!(content.read(30_000, 10).is_empty());
    }
}
