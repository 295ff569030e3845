//! Requests in, operations of the tree called, replies out.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::XattrFlags;

use super::reply::{self, FOREVER, absent, attributes, errno, file_type};
use super::{Shared, affinity};
use crate::Result;
use crate::node::{Device, Ino, Kind, Stat, kind_of, permission_bits};
use crate::tree::{Caller, New, RenameMode, SetAttributes, SetTime};

/// The tree as `fuser` wants to see it.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) shared: Arc<Shared>,
}

impl Adapter {
    fn ino(&self, node: INodeNo) -> Ino {
        affinity::pin_this_thread();
        self.shared.nodes.ino(node.0)
    }

    /// Answers with a node that the kernel is to know.
    fn reply_entry(&self, result: Result<Stat>, reply: ReplyEntry) {
        match result {
            Ok(stat) => {
                let (attributes, ttl) = self.entry(&stat);
                self.shared.nodes.remember(attributes.ino.0);
                reply.entry_with_ttls(&ttl, &FOREVER, &attributes, GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Returns attributes under the number of the node that stands for them, and how long they are valid.
    pub(super) fn entry(&self, stat: &Stat) -> (fuser::FileAttr, Duration) {
        let node = self.shared.nodes.current(stat.ino);
        let ttl = if self.shared.nodes.attributes_stay(node) { FOREVER } else { Duration::ZERO };
        // `fuser` has one field for both numbers. The right one comes with the next GETATTR, which is at once.
        (fuser::FileAttr { ino: INodeNo(node), ..attributes(stat) }, ttl)
    }

    fn reply_attributes(&self, node: INodeNo, result: Result<Stat>, reply: ReplyAttr) {
        match result {
            Ok(stat) => {
                let stay = self.shared.nodes.attributes_stay(node.0);
                reply.attr(if stay { &FOREVER } else { &Duration::ZERO }, &attributes(&stat));
            }
            Err(error) => reply.error(errno(error)),
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // What an older kernel lacks only costs speed.
            let _ = config.add_capabilities(flag);
        }
        if self.shared.wants_passthrough && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            // The least that allows it, so that a container may still stack an overlay on us.
            let _ = config.set_max_stack_depth(1);
        }
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_readahead(MAX_WRITE);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.shared.tree.lookup(self.ino(parent), name.as_bytes()) {
            Err(rustix::io::Errno::NOENT) => reply.entry(&FOREVER, &absent(), GENERATION),
            result => {
                if let Ok(stat) = &result {
                    self.shared.nodes.looked_up(stat.ino, request.pid());
                }
                self.reply_entry(result, reply);
            }
        }
    }

    fn forget(&self, _request: &Request, node: INodeNo, count: u64) {
        self.shared.tree.forget(self.ino(node), count);
        self.shared.nodes.forget(node.0, count);
    }

    fn getattr(&self, _request: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attributes(node, self.shared.tree.stat(self.ino(node)), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttributes {
            permissions: mode.map(permission_bits),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill_privileges: false,
        };
        let kill_privileges = change == SetAttributes::default() || size.is_some() && request.uid() != 0;
        let change = SetAttributes { kill_privileges, ..change };
        let ino = self.ino(node);
        if size.is_none_or(|size| size > 0) && self.shared.tree.copies_much(ino) {
            let adapter = Adapter { shared: Arc::clone(&self.shared) };
            return self.shared.slow.run(move || adapter.change(node, ino, &change, reply));
        }
        self.change(node, ino, &change, reply);
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        match self.shared.tree.read_link(self.ino(node)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let new = match kind_of(mode) {
            Some(Kind::Regular) => New::File { open: false },
            Some(kind @ (Kind::CharDevice | Kind::BlockDevice)) => New::Node(kind, reply::device(rdev)),
            Some(kind @ (Kind::Fifo | Kind::Socket)) => New::Node(kind, Device::default()),
            _ => return reply.error(Errno::EINVAL),
        };
        self.reply_entry(self.make(request, parent, name, new, mode, umask), reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.reply_entry(self.make(request, parent, name, New::Directory, mode, umask), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = New::Symlink(target.as_os_str().as_bytes());
        self.reply_entry(self.make(request, parent, name, new, 0o777, 0), reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.shared.tree.unlink(self.ino(parent), name.as_bytes()), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.shared.tree.rmdir(self.ino(parent), name.as_bytes()), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        let (from, to) = (self.ino(parent), self.ino(new_parent));
        reply_empty(self.shared.tree.rename(from, name.as_bytes(), to, new_name.as_bytes(), mode), reply);
    }

    fn link(&self, _request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.reply_entry(self.shared.tree.link(self.ino(node), self.ino(parent), name.as_bytes()), reply);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        affinity::pin_this_thread();
        let caller = caller(request);
        let changes = flags.0 & (libc::O_ACCMODE | libc::O_TRUNC);
        let copies = changes != libc::O_RDONLY && changes & libc::O_TRUNC == 0;
        if copies && self.shared.tree.copies_much(self.ino(node)) {
            let shared = Arc::clone(&self.shared);
            return self.shared.slow.run(move || shared.open(&caller, node.0, flags.0, reply));
        }
        self.shared.open(&caller, node.0, flags.0, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(request, parent, name, New::File { open: true }, mode, umask) {
            Ok(stat) => self.shared.created(&stat, flags, reply),
            Err(error) => reply.error(errno(error)),
        }
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
            match self.shared.tree.read(self.ino(node), &mut buffer[..size], offset) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let foreign = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.shared.tree.write(self.ino(node), data, offset, foreign) {
            // The kernel does not look at how much of its own pages was written.
            Ok(written) if written < data.len() && write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) => {
                reply.error(Errno::ENOSPC);
            }
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _request: &Request, _node: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // There is nothing to do on close; this answer makes the kernel stop asking.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.release(node.0, fh);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply_empty(self.shared.tree.sync(self.ino(node), datasync), reply);
    }

    fn opendir(&self, _request: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Listing keeps no state, so the kernel need not open directories: this answer makes it stop.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _request: &Request, node: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.shared.tree.read_dir(self.ino(node), offset, false, &mut |entry| {
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
        let result = self.shared.tree.read_dir(self.ino(node), offset, true, &mut |entry| {
            let Some(stat) = &entry.stat else { return ControlFlow::Break(()) };
            let name = OsStr::from_bytes(entry.name);
            let (attributes, ttl) = self.entry(stat);
            let full = reply.add(attributes.ino, entry.cookie, name, &ttl, &attributes, GENERATION);
            if !full && entry.name != b"." && entry.name != b".." {
                self.shared.nodes.remember(attributes.ino.0);
            }
            flow(full)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fsyncdir(&self, _request: &Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply_empty(self.shared.tree.sync(self.ino(node), datasync), reply);
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match self.shared.tree.statfs() {
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

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_truncate(flags.cast_unsigned());
        let ino = self.ino(node);
        reply_empty(self.shared.tree.set_xattr(ino, name.as_bytes(), value, flags, &caller(request)), reply);
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        sized(self.shared.tree.xattr(self.ino(node), name.as_bytes()), size, reply);
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        sized(self.shared.tree.list_xattrs(self.ino(node), request.uid() == 0), size, reply);
    }

    fn removexattr(&self, _request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.shared.tree.remove_xattr(self.ino(node), name.as_bytes()), reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.shared.tree.allocate(self.ino(node), mode.cast_unsigned(), offset, length), reply);
    }

    fn lseek(&self, _request: &Request, node: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.shared.tree.seek(self.ino(node), offset, data) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        from: INodeNo,
        _from_fh: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_fh: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((self.ino(from), from_offset), (self.ino(to), to_offset));
        match self.shared.tree.copy_range(from, to, length) {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }
}

impl Adapter {
    fn change(&self, node: INodeNo, ino: Ino, change: &SetAttributes, reply: ReplyAttr) {
        let result = self.shared.tree.set_attributes(ino, change);
        if change.size.is_some() && result.is_ok() {
            self.shared.outdate_lower_readers(node.0);
        }
        self.reply_attributes(node, result, reply);
    }

    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: New<'_>,
        mode: u32,
        umask: u32,
    ) -> Result<Stat> {
        self.shared.tree.create(self.ino(parent), name.as_bytes(), new, mode, umask, &caller(request))
    }
}

fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    const WHITEOUT: RenameFlags = RenameFlags::RENAME_WHITEOUT;
    const NO_REPLACE: RenameFlags = RenameFlags::RENAME_NOREPLACE;
    let whiteout_no_replace = WHITEOUT | NO_REPLACE;
    Some(match flags {
        flags if flags.is_empty() => RenameMode::Replace,
        NO_REPLACE => RenameMode::NoReplace,
        RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
        WHITEOUT => RenameMode::Whiteout,
        flags if flags == whiteout_no_replace => RenameMode::WhiteoutNoReplace,
        _ => return None,
    })
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn reply_empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(reply::timestamp(time)),
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
pub(super) const GENERATION: Generation = Generation(0);

/// Largest read and write.
const MAX_WRITE: u32 = 1 << 20;

/// What we ask of the kernel, where it can.
const WANTED: [InitFlags; 11] = [
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
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
