//! The last line: a panic in a request must not end the thread that serves, and with it every container on the mount.
//!
//! None is known. If one comes, its request is answered EIO, because `fuser` answers for a reply that is dropped; locks
//! are not poisoned for the others, as all of them are taken in spite of that.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::adapter::Adapter;

/// Passes requests on and survives them.
#[derive(Debug)]
pub(super) struct Guard(pub(super) Adapter);

/// Runs one request.
pub(super) fn survive(request: &'static str, serve: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(serve)).is_err() {
        tracing::error!(request, "a request failed in a way that should not exist");
    }
}

macro_rules! guarded {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?);)*) => {
        $(fn $name(&self, request: &Request, $($argument: $kind),*) {
            survive(stringify!($name), || self.0.$name(request, $($argument),*));
        })*
    };
}

impl Filesystem for Guard {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.0.init(request, config)
    }

    guarded! {
        fn lookup(parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        fn forget(node: INodeNo, count: u64);
        fn getattr(node: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr);
        fn setattr(
            node: INodeNo,
            mode: Option<u32>,
            uid: Option<u32>,
            gid: Option<u32>,
            size: Option<u64>,
            atime: Option<TimeOrNow>,
            mtime: Option<TimeOrNow>,
            ctime: Option<SystemTime>,
            fh: Option<FileHandle>,
            crtime: Option<SystemTime>,
            chgtime: Option<SystemTime>,
            bkuptime: Option<SystemTime>,
            flags: Option<BsdFileFlags>,
            reply: ReplyAttr,
        );
        fn readlink(node: INodeNo, reply: ReplyData);
        fn mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry);
        fn mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
        fn symlink(parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
        fn unlink(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        fn rmdir(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        fn rename(
            parent: INodeNo,
            name: &OsStr,
            new_parent: INodeNo,
            new_name: &OsStr,
            flags: RenameFlags,
            reply: ReplyEmpty,
        );
        fn link(node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        fn open(node: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        fn create(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate);
        fn read(
            node: INodeNo,
            fh: FileHandle,
            offset: u64,
            size: u32,
            flags: OpenFlags,
            owner: Option<LockOwner>,
            reply: ReplyData,
        );
        fn write(
            node: INodeNo,
            fh: FileHandle,
            offset: u64,
            data: &[u8],
            write_flags: WriteFlags,
            flags: OpenFlags,
            owner: Option<LockOwner>,
            reply: ReplyWrite,
        );
        fn flush(node: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty);
        fn release(
            node: INodeNo,
            fh: FileHandle,
            flags: OpenFlags,
            owner: Option<LockOwner>,
            flush: bool,
            reply: ReplyEmpty,
        );
        fn fsync(node: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        fn opendir(node: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        fn readdir(node: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory);
        fn readdirplus(node: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
        fn fsyncdir(node: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        fn statfs(node: INodeNo, reply: ReplyStatfs);
        fn setxattr(node: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32, reply: ReplyEmpty);
        fn getxattr(node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
        fn listxattr(node: INodeNo, size: u32, reply: ReplyXattr);
        fn removexattr(node: INodeNo, name: &OsStr, reply: ReplyEmpty);
        fn fallocate(node: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty);
        fn lseek(node: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek);
        fn copy_file_range(
            from: INodeNo,
            from_fh: FileHandle,
            from_offset: u64,
            to: INodeNo,
            to_fh: FileHandle,
            to_offset: u64,
            length: u64,
            flags: CopyFileRangeFlags,
            reply: ReplyWrite,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_survived() {
        survive("test", || panic!("on purpose"));
    }
}
