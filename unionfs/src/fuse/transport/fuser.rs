//! The `fuser` crate as the transport: the portable baseline. No type of it leaves this file, but for the numbers of
//! backing files.
//!
//! It has one field for node and inode number, so nodes that supersede another show a number of their own for as long as
//! it takes the kernel to ask again. It carries neither O_TMPFILE nor statx nor the flags by which the kernel says that
//! privileges are to go; what it does not carry is judged by the caller.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Session, SessionACL, TimeOrNow, WriteFlags,
};
use zerocopy::FromBytes as _;

use super::Transport;
use crate::fuse::backing::{Backing, Register};
use crate::fuse::handshake::{MAX_WRITE, Wishes};
use crate::fuse::operations::{Operations, Outcome};
use crate::fuse::reply::{FOREVER, Open, Reply};
use crate::fuse::request::{Change, NAME_MAX, Operation, Request, device};
use crate::fuse::wire::{Attr, Dirent, EntryOut, opcode};
use crate::node::{Kind, Timestamp, kind_of, permission_bits};
use crate::tree::{Caller, SetTime};

/// A session that waits to be served.
#[derive(Debug)]
pub(crate) struct Fuser {
    session: Session<Front>,
    operations: Arc<OnceLock<Arc<Operations>>>,
}

/// Our operations as `fuser` wants to see them.
#[derive(Debug)]
struct Front {
    wishes: Wishes,
    operations: Arc<OnceLock<Arc<Operations>>>,
}

impl Fuser {
    /// Shakes hands with the kernel.
    pub(crate) fn new(device: OwnedFd, threads: usize, wishes: Wishes) -> io::Result<Fuser> {
        let operations = Arc::new(OnceLock::new());
        let front = Front { wishes, operations: Arc::clone(&operations) };
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads);
        config.clone_fd = true;
        Ok(Fuser { session: Session::from_fd(front, device, SessionACL::All, config)?, operations })
    }
}

impl Transport for Fuser {
    fn serve(self: Box<Self>, operations: &Arc<Operations>, ready: &(dyn Fn() + Sync)) -> io::Result<()> {
        ready();
        let _ = self.operations.set(Arc::clone(operations));
        match self.session.run() {
            // A thread was just taking a request when the mount went away.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            result => result,
        }
    }
}

/// What `fuser` wants an answer to be put into.
trait Answer: Send + Sized + 'static {
    fn error(self, error: Errno);

    /// Sends an answer that is no error.
    fn send(self, reply: &Reply, room: &[u8]);

    fn register(&self, _file: BorrowedFd<'_>) -> io::Result<BackingId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn answer(self, reply: &Reply, room: &[u8]) {
        match reply {
            Reply::Error(error) => self.error(Errno::from_i32(error.raw_os_error())),
            reply => self.send(reply, room),
        }
    }
}

struct Via<'a, A>(&'a A);

impl<A: Answer> Register for Via<'_, A> {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Backing> {
        self.0.register(file).map(Backing::OfFuser)
    }
}

/// Who has no use for an answer.
struct Nobody;

impl Answer for Nobody {
    fn error(self, _error: Errno) {}
    fn send(self, _reply: &Reply, _room: &[u8]) {}
}

macro_rules! answers {
    ($($kind:ident($this:ident, $pattern:pat, $room:ident) => $send:expr;)*) => {
        $(impl Answer for $kind {
            fn error(self, error: Errno) {
                $kind::error(self, error);
            }

            fn send(self, reply: &Reply, $room: &[u8]) {
                let $this = self;
                match reply {
                    $pattern => $send,
                    _ => $kind::error($this, Errno::EIO),
                }
            }
        })*
    };
}

answers! {
    ReplyEmpty(this, Reply::Done, _room) => this.ok();
    ReplyEntry(this, Reply::Entry(entry), _room) => {
        let (attr, ttl) = entry_attributes(entry);
        this.entry_with_ttls(&ttl, &Duration::from_secs(entry.entry_valid), &attr, Generation(0));
    };
    ReplyAttr(this, Reply::Attributes(out), _room) => {
        this.attr(&Duration::from_secs(out.attr_valid), &file_attributes(&out.attr));
    };
    ReplyXattr(this, reply @ (Reply::Needs(_) | Reply::Bytes(_)), _room) => match reply {
        Reply::Needs(size) => this.size(*size),
        Reply::Bytes(bytes) => this.data(bytes),
        _ => {}
    };
    ReplyData(this, reply @ (Reply::InRoom(_) | Reply::Bytes(_)), room) => match reply {
        Reply::InRoom(length) => this.data(room.get(..*length).unwrap_or_default()),
        Reply::Bytes(bytes) => this.data(bytes),
        _ => {}
    };
    ReplyWrite(this, Reply::Written(size), _room) => this.written(*size);
    ReplyLseek(this, Reply::Position(offset), _room) => this.offset(offset.cast_signed());
    ReplyIoctl(this, Reply::Ioctl(data), _room) => this.ioctl(0, data);
    ReplyStatfs(this, Reply::Statfs(s), _room) => {
        this.statfs(s.blocks, s.free, s.available, s.files, s.free_files, s.block_size, s.name_length, s.fragment_size);
    };
}

impl Answer for ReplyOpen {
    fn error(self, error: Errno) {
        ReplyOpen::error(self, error);
    }

    fn register(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(file)
    }

    fn send(self, reply: &Reply, _room: &[u8]) {
        let Reply::Opened(open) = reply else { return ReplyOpen::error(self, Errno::EIO) };
        let (handle, flags) = (FileHandle(open.handle), open_flags(open));
        match open.backing.as_deref() {
            Some(Backing::OfFuser(backing)) => self.opened_passthrough(handle, flags, backing),
            _ => self.opened(handle, flags),
        }
    }
}

impl Answer for ReplyCreate {
    fn error(self, error: Errno) {
        ReplyCreate::error(self, error);
    }

    fn register(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(file)
    }

    fn send(self, reply: &Reply, _room: &[u8]) {
        let Reply::Created(entry, open) = reply else { return ReplyCreate::error(self, Errno::EIO) };
        let (attr, ttl) = entry_attributes(entry);
        let (handle, flags) = (FileHandle(open.handle), open_flags(open));
        match open.backing.as_deref() {
            Some(Backing::OfFuser(backing)) => {
                self.created_passthrough(&ttl, &attr, Generation(0), handle, flags, backing);
            }
            _ => self.created(&ttl, &attr, Generation(0), handle, flags),
        }
    }
}

/// `fuser` packs a directory in its own way.
macro_rules! lists_directories {
    ($($kind:ident, $known:expr, $add:expr;)*) => {
        $(impl Answer for $kind {
            fn error(self, error: Errno) {
                $kind::error(self, error);
            }

            fn send(mut self, reply: &Reply, room: &[u8]) {
                let Reply::InRoom(length) = reply else { return $kind::error(self, Errno::EIO) };
                let mut rest = room.get(..*length).unwrap_or_default();
                while let Some((entry, dirent, name)) = next_dirent(&mut rest, $known) {
                    // It has as much room as we had.
                    let add: fn(&mut Self, EntryOut, Dirent, &OsStr) -> bool = $add;
                    let _full = add(&mut self, entry, dirent, OsStr::from_bytes(name));
                }
                self.ok();
            }
        })*
    };
}

lists_directories! {
    ReplyDirectory, false, |reply, _, dirent, name| {
        reply.add(INodeNo(dirent.ino), dirent.offset, dirent_type(dirent.kind), name)
    };
    ReplyDirectoryPlus, true, |reply, entry, dirent, name| {
        let (attr, ttl) = entry_attributes(&entry);
        reply.add(attr.ino, dirent.offset, name, &ttl, &attr, Generation(0))
    };
}

fn next_dirent<'a>(bytes: &mut &'a [u8], known: bool) -> Option<(EntryOut, Dirent, &'a [u8])> {
    let mut entry = EntryOut::default();
    if known {
        (entry, *bytes) = EntryOut::read_from_prefix(bytes).ok()?;
    }
    let (dirent, rest) = Dirent::read_from_prefix(bytes).ok()?;
    let length = dirent.name_length as usize;
    let name = rest.get(..length)?;
    *bytes = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
    Some((entry, dirent, name))
}

impl Front {
    fn serve<A: Answer>(&self, request: &fuser::Request, code: u32, node: u64, operation: Operation<'_>, answer: A) {
        let Some(operations) = self.operations.get() else { return answer.error(Errno::EIO) };
        operations.counts().add(code);
        if names(&operation).into_iter().flatten().any(|name| name.len() > NAME_MAX) {
            return answer.error(Errno::ENAMETOOLONG);
        }
        let request = Request { unique: request.unique().0, node, caller: caller(request), operation };
        ROOM.with_borrow_mut(|room| {
            let size = match operation {
                Operation::Read { size, .. } | Operation::ReadDirectory { size, .. } => size as usize,
                _ => 0,
            };
            if room.len() < size {
                room.resize(size, 0);
            }
            match operations.serve(&request, &mut room[..size], &Via(&answer)) {
                Outcome::Now(reply) => answer.answer(&reply, room),
                Outcome::Later(job) => operations.slow().run(move || {
                    let reply = job(&Via(&answer));
                    answer.answer(&reply, &[]);
                }),
                Outcome::Fetched(job) => operations.fetching().run(move || {
                    let reply = job(&Via(&answer));
                    answer.answer(&reply, &[]);
                }),
            }
        });
    }
}

impl Filesystem for Front {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            // What an older kernel lacks only costs speed.
            let _ = config.add_capabilities(flag);
        }
        if self.wishes.passthrough && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            // The least that allows it, so that a container may still stack an overlay on us.
            let _ = config.set_max_stack_depth(1);
        }
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_readahead(MAX_WRITE);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(request, opcode::LOOKUP, parent.0, Operation::Lookup { name: name.as_bytes() }, reply);
    }

    fn forget(&self, request: &fuser::Request, node: INodeNo, count: u64) {
        self.serve(request, opcode::FORGET, node.0, Operation::Forget { count }, Nobody);
    }

    fn getattr(&self, request: &fuser::Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(request, opcode::GETATTR, node.0, Operation::GetAttributes, reply);
    }

    fn setattr(
        &self,
        request: &fuser::Request,
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
        let mut change = Change {
            permissions: mode.map(permission_bits),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill: false,
        };
        change.kill = change == Change::default() || (size.is_some() && request.uid() != 0);
        self.serve(request, opcode::SETATTR, node.0, Operation::SetAttributes(change), reply);
    }

    fn readlink(&self, request: &fuser::Request, node: INodeNo, reply: ReplyData) {
        self.serve(request, opcode::READLINK, node.0, Operation::ReadLink, reply);
    }

    fn mknod(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let operation = Operation::MakeNode { name: name.as_bytes(), mode, umask, device: device(rdev) };
        self.serve(request, opcode::MKNOD, parent.0, operation, reply);
    }

    fn mkdir(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let operation = Operation::MakeDirectory { name: name.as_bytes(), mode, umask };
        self.serve(request, opcode::MKDIR, parent.0, operation, reply);
    }

    fn symlink(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let operation = Operation::Symlink { name: name.as_bytes(), target: target.as_os_str().as_bytes() };
        self.serve(request, opcode::SYMLINK, parent.0, operation, reply);
    }

    fn unlink(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(request, opcode::UNLINK, parent.0, Operation::Unlink { name: name.as_bytes() }, reply);
    }

    fn rmdir(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(request, opcode::RMDIR, parent.0, Operation::RemoveDirectory { name: name.as_bytes() }, reply);
    }

    fn rename(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::Rename {
            name: name.as_bytes(),
            new_dir: new_parent.0,
            new_name: new_name.as_bytes(),
            flags: flags.bits(),
        };
        self.serve(request, opcode::RENAME2, parent.0, operation, reply);
    }

    fn link(&self, request: &fuser::Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let operation = Operation::Link { node: node.0, name: name.as_bytes() };
        self.serve(request, opcode::LINK, parent.0, operation, reply);
    }

    fn open(&self, request: &fuser::Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let operation = Operation::Open { flags: flags.0, kill: request.uid() != 0 };
        self.serve(request, opcode::OPEN, node.0, operation, reply);
    }

    fn create(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let operation = Operation::Create { name: name.as_bytes(), mode, umask, flags };
        self.serve(request, opcode::CREATE, parent.0, operation, reply);
    }

    fn read(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(request, opcode::READ, node.0, Operation::Read { offset, size }, reply);
    }

    fn write(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.serve(request, opcode::WRITE, node.0, Operation::Write { offset, data, kill, cached }, reply);
    }

    fn flush(&self, request: &fuser::Request, node: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.serve(request, opcode::FLUSH, node.0, Operation::Flush, reply);
    }

    fn release(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(request, opcode::RELEASE, node.0, Operation::Release { handle: fh.0 }, reply);
    }

    fn fsync(&self, request: &fuser::Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve(request, opcode::FSYNC, node.0, Operation::Sync { data_only: datasync }, reply);
    }

    fn opendir(&self, request: &fuser::Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(request, opcode::OPENDIR, node.0, Operation::OpenDirectory, reply);
    }

    fn readdir(&self, request: &fuser::Request, node: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let operation = Operation::ReadDirectory { cookie: offset, size: LIST_ROOM, attributes: false };
        self.serve(request, opcode::READDIR, node.0, operation, reply);
    }

    fn readdirplus(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let operation = Operation::ReadDirectory { cookie: offset, size: LIST_ROOM, attributes: true };
        self.serve(request, opcode::READDIRPLUS, node.0, operation, reply);
    }

    fn fsyncdir(&self, request: &fuser::Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve(request, opcode::FSYNCDIR, node.0, Operation::Sync { data_only: datasync }, reply);
    }

    fn statfs(&self, request: &fuser::Request, node: INodeNo, reply: ReplyStatfs) {
        self.serve(request, opcode::STATFS, node.0, Operation::Statfs, reply);
    }

    fn setxattr(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = flags.cast_unsigned();
        let operation = Operation::SetXattr { name: name.as_bytes(), value, flags, kill_setgid: None };
        self.serve(request, opcode::SETXATTR, node.0, operation, reply);
    }

    fn getxattr(&self, request: &fuser::Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let operation = Operation::GetXattr { name: name.as_bytes(), room: size };
        self.serve(request, opcode::GETXATTR, node.0, operation, reply);
    }

    fn listxattr(&self, request: &fuser::Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(request, opcode::LISTXATTR, node.0, Operation::ListXattrs { room: size }, reply);
    }

    fn removexattr(&self, request: &fuser::Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(request, opcode::REMOVEXATTR, node.0, Operation::RemoveXattr { name: name.as_bytes() }, reply);
    }

    fn ioctl(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let operation = Operation::Ioctl { command: cmd, input: in_data, room: out_size };
        self.serve(request, opcode::IOCTL, node.0, operation, reply);
    }

    fn fallocate(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let operation = Operation::Allocate { offset, length, mode: mode.cast_unsigned() };
        self.serve(request, opcode::FALLOCATE, node.0, operation, reply);
    }

    fn lseek(
        &self,
        request: &fuser::Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(request, opcode::LSEEK, node.0, Operation::Seek { offset, whence }, reply);
    }

    fn copy_file_range(
        &self,
        request: &fuser::Request,
        from: INodeNo,
        _from_fh: FileHandle,
        offset: u64,
        to: INodeNo,
        _to_fh: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let operation = Operation::CopyRange { offset, to: to.0, to_offset, length, wide: false };
        self.serve(request, opcode::COPY_FILE_RANGE, from.0, operation, reply);
    }
}

fn caller(request: &fuser::Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// Returns the names of directory entries in a request, which our own reading of requests has checked.
fn names<'a>(operation: &Operation<'a>) -> [Option<&'a [u8]>; 2] {
    match *operation {
        Operation::Rename { name, new_name, .. } => [Some(name), Some(new_name)],
        Operation::Lookup { name }
        | Operation::Symlink { name, .. }
        | Operation::MakeNode { name, .. }
        | Operation::MakeDirectory { name, .. }
        | Operation::Unlink { name }
        | Operation::RemoveDirectory { name }
        | Operation::Link { name, .. }
        | Operation::Create { name, .. } => [Some(name), None],
        _ => [None, None],
    }
}

/// Returns attributes under the number of the node, and how long they are valid.
fn entry_attributes(entry: &EntryOut) -> (FileAttr, Duration) {
    let attr = FileAttr { ino: INodeNo(entry.node), ..file_attributes(&entry.attr) };
    (attr, Duration::from_secs(if entry.node == 0 { FOREVER } else { entry.attr_valid }))
}

fn file_attributes(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime.cast_signed(), attr.atime_nanoseconds),
        mtime: system_time(attr.mtime.cast_signed(), attr.mtime_nanoseconds),
        ctime: system_time(attr.ctime.cast_signed(), attr.ctime_nanoseconds),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind_of(attr.mode).map_or(FileType::RegularFile, file_type),
        perm: permission_bits(attr.mode),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: attr.block_size,
        flags: 0,
    }
}

fn dirent_type(kind: u32) -> FileType {
    kind_of(kind << 12).map_or(FileType::RegularFile, file_type)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Regular => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn open_flags(open: &Open) -> FopenFlags {
    FopenFlags::from_bits_retain(open.flags)
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// Returns the moment that the kernel meant.
///
/// For moments before 1970, `fuser` subtracts the nanoseconds where it has to add them.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanoseconds: after.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            Timestamp { seconds, nanoseconds: before.subsec_nanos() }
        }
    }
}

/// Returns the moment, or the nearest one that `SystemTime` can hold.
fn system_time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let part = Duration::from_nanos(nanoseconds.min(999_999_999).into());
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let moment = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    };
    moment.and_then(|moment| moment.checked_add(part)).unwrap_or(SystemTime::UNIX_EPOCH)
}

thread_local! {
    /// Where long answers are put together; grows to the longest.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// `fuser` does not tell how much room there is for a directory; this is what the kernel asks for at least.
const LIST_ROOM: u32 = 4096;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_out_of_range_do_not_panic() {
        for seconds in [i64::MIN, -1, 0, 1, i64::MAX] {
            system_time(seconds, u32::MAX);
        }
    }

    #[test]
    fn moments_before_1970_keep_their_nanoseconds() {
        let as_fuser_says = SystemTime::UNIX_EPOCH - Duration::new(2, 500);
        assert_eq!(timestamp(as_fuser_says), Timestamp { seconds: -2, nanoseconds: 500 });
    }
}
