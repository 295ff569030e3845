//! Requests in, operations of the tree called, replies out.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};

use super::reply::{FOREVER, absent, attributes, errno, file_type, ino};
use crate::Result;
use crate::node::Stat;
use crate::tree::Tree;

/// The tree as `fuser` wants to see it.
#[derive(Debug)]
pub(super) struct Adapter {
    tree: Arc<Tree>,
}

impl Adapter {
    pub(super) fn new(tree: Arc<Tree>) -> Adapter {
        Adapter { tree }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // What an older kernel lacks only costs speed.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_readahead(MAX_WRITE);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.lookup(ino(parent), name.as_bytes()) {
            Ok(stat) => reply.entry(&FOREVER, &attributes(&stat), GENERATION),
            Err(rustix::io::Errno::NOENT) => reply.entry(&FOREVER, &absent(), GENERATION),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        self.tree.forget(ino(node), count);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.stat(ino(node)) {
            Ok(stat) => reply.attr(&FOREVER, &attributes(&stat)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        match self.tree.read_link(ino(node)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _request: &Request, _node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.tree.read(ino(node), &mut buffer[..size], offset) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn flush(&self, _request: &Request, _node: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // There is nothing to do on close; this answer makes the kernel stop asking.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Listing keeps no state, so the kernel need not open directories: this answer makes it stop.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, node: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.tree.read_dir(ino(node), offset, false, &mut |entry| {
            let name = OsStr::from_bytes(entry.name);
            flow(reply.add(INodeNo(entry.ino.0), entry.cookie, file_type(entry.kind), name))
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = self.tree.read_dir(ino(node), offset, true, &mut |entry| {
            let Some(stat) = &entry.stat else { return ControlFlow::Break(()) };
            let name = OsStr::from_bytes(entry.name);
            flow(reply.add(INodeNo(entry.ino.0), entry.cookie, name, &FOREVER, &attributes(stat), GENERATION))
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match self.tree.statfs() {
            Ok(usage) => reply.statfs(
                usage.blocks,
                usage.free,
                usage.available,
                usage.files,
                usage.free_files,
                usage.block_size,
                255,
                usage.block_size,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        sized(self.tree.xattr(ino(node), name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        sized(self.tree.list_xattrs(ino(node)), size, reply);
    }
}

/// Answers with the value or, if the caller left no room, with its size.
fn sized(value: Result<Vec<u8>>, room: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if room == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

/// `fuser` says "full", the tree asks "go on?".
fn flow(full: bool) -> ControlFlow<()> {
    if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

thread_local! {
    /// Where READ collects its data; grows to the largest read.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Inode numbers are never reused while the kernel knows them, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// Largest read and write.
const MAX_WRITE: u32 = 1 << 20;

/// What we ask of the kernel, where it can.
const WANTED: [InitFlags; 10] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_EXPORT_SUPPORT,
];
