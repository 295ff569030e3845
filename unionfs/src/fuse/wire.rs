//! The FUSE protocol as it is on the wire, up to version 7.45 (`include/uapi/linux/fuse.h`).
//!
//! Every structure has the kernel's layout and no padding of the compiler's. Numbers are in the machine's byte order.
#![allow(dead_code, reason = "a table of the protocol, whether we use all of it or not")]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Declares a structure of the protocol.
macro_rules! wire {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $kind),* })*
    };
}

wire! {
    /// Before each request.
    struct InHeader {
        len: u32, opcode: u32, unique: u64, node: u64, uid: u32, gid: u32, pid: u32, extensions: u16, padding: u16,
    }
    /// Before each reply.
    struct OutHeader { len: u32, error: i32, unique: u64 }
    /// The kernel's part of the handshake.
    struct InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    /// Our part of the handshake.
    struct InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_granularity: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// Attributes.
    struct Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atime_nanoseconds: u32,
        mtime_nanoseconds: u32, ctime_nanoseconds: u32, mode: u32, nlink: u32, uid: u32, gid: u32, device: u32,
        block_size: u32, flags: u32,
    }
    /// A node that the kernel is told about.
    struct EntryOut {
        node: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nanoseconds: u32,
        attr_valid_nanoseconds: u32, attr: Attr,
    }
    struct AttrOut { attr_valid: u64, attr_valid_nanoseconds: u32, padding: u32, attr: Attr }
    struct ForgetIn { count: u64 }
    struct BatchForgetIn { count: u32, padding: u32 }
    struct ForgetOne { node: u64, count: u64 }
    struct SetattrIn {
        valid: u32, padding: u32, handle: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atime_nanoseconds: u32, mtime_nanoseconds: u32, ctime_nanoseconds: u32, mode: u32, unused4: u32, uid: u32,
        gid: u32, unused5: u32,
    }
    struct MknodIn { mode: u32, device: u32, umask: u32, padding: u32 }
    struct MkdirIn { mode: u32, umask: u32 }
    struct RenameIn { new_dir: u64 }
    struct Rename2In { new_dir: u64, flags: u32, padding: u32 }
    struct LinkIn { node: u64 }
    struct OpenIn { flags: u32, open_flags: u32 }
    struct CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    struct OpenOut { handle: u64, open_flags: u32, backing: u32 }
    struct ReleaseIn { handle: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    struct ReadIn {
        handle: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    struct WriteIn {
        handle: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    struct WriteOut { size: u32, padding: u32 }
    struct StatfsOut {
        blocks: u64, free: u64, available: u64, files: u64, free_files: u64, block_size: u32, name_length: u32,
        fragment_size: u32, padding: u32, spare: [u32; 6],
    }
    struct FsyncIn { handle: u64, flags: u32, padding: u32 }
    struct SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    struct GetxattrIn { size: u32, padding: u32 }
    struct GetxattrOut { size: u32, padding: u32 }
    struct IoctlIn { handle: u64, flags: u32, command: u32, argument: u64, in_size: u32, out_size: u32 }
    struct IoctlOut { result: i32, flags: u32, in_vectors: u32, out_vectors: u32 }
    struct FallocateIn { handle: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    struct LseekIn { handle: u64, offset: u64, whence: u32, padding: u32 }
    struct LseekOut { offset: u64 }
    struct CopyFileRangeIn {
        handle_in: u64, offset_in: u64, node_out: u64, handle_out: u64, offset_out: u64, length: u64, flags: u64,
    }
    struct CopyFileRangeOut { copied: u64 }
    struct StatxTime { seconds: i64, nanoseconds: u32, reserved: i32 }
    struct Statx {
        mask: u32, block_size: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64,
        size: u64, blocks: u64, attributes_mask: u64, atime: StatxTime, btime: StatxTime, ctime: StatxTime,
        mtime: StatxTime, device_major: u32, device_minor: u32, own_device_major: u32, own_device_minor: u32,
        spare2: [u64; 14],
    }
    struct StatxOut {
        attr_valid: u64, attr_valid_nanoseconds: u32, flags: u32, spare: [u64; 2], stat: Statx,
    }
    /// Before each name of READDIR.
    struct Dirent { ino: u64, offset: u64, name_length: u32, kind: u32 }
    struct InvalInodeOut { node: u64, offset: i64, length: i64 }
    struct StoreOut { node: u64, offset: u64, size: u32, padding: u32 }
}

/// What a request asks for.
pub(crate) mod opcode {
    /// Declares the operation codes and their names.
    macro_rules! opcodes {
        ($($name:ident = $number:literal,)*) => {
            $(pub(crate) const $name: u32 = $number;)*

            /// Returns what an operation is called.
            pub(crate) fn name(opcode: u32) -> &'static str {
                match opcode {
                    $($name => stringify!($name),)*
                    _ => "?",
                }
            }
        };
    }

    opcodes! {
        LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9, UNLINK = 10,
        RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17, RELEASE = 18, FSYNC = 20,
        SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25, INIT = 26, OPENDIR = 27,
        READDIR = 28, RELEASEDIR = 29, FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33, ACCESS = 34, CREATE = 35,
        INTERRUPT = 36, BMAP = 37, DESTROY = 38, IOCTL = 39, POLL = 40, NOTIFY_REPLY = 41, BATCH_FORGET = 42,
        FALLOCATE = 43, READDIRPLUS = 44, RENAME2 = 45, LSEEK = 46, COPY_FILE_RANGE = 47, SETUPMAPPING = 48,
        REMOVEMAPPING = 49, SYNCFS = 50, TMPFILE = 51, STATX = 52, COPY_FILE_RANGE_64 = 53,
    }

    /// Operations have numbers below this.
    pub(crate) const COUNT: usize = 64;
}

/// What both sides of the handshake can do: `flags` and, shifted by 32, `flags2`.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const EXPORT_SUPPORT: u64 = 1 << 4;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const IOCTL_DIR: u64 = 1 << 11;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const ABORT_ERROR: u64 = 1 << 21;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(crate) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const PASSTHROUGH: u64 = 1 << 37;
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
    pub(crate) const OVER_IO_URING: u64 = 1 << 41;
}

/// Which fields of [`SetattrIn`] count.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const HANDLE: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const LOCK_OWNER: u32 = 1 << 9;
    pub(crate) const CTIME: u32 = 1 << 10;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// Flags of the reply to OPEN.
pub(crate) mod fopen {
    pub(crate) const KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const NOFLUSH: u32 = 1 << 5;
    pub(crate) const PASSTHROUGH: u32 = 1 << 7;
}

/// `FUSE_OPEN_KILL_SUIDGID`
pub(crate) const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_WRITE_CACHE`
pub(crate) const WRITE_CACHE: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_SETXATTR_ACL_KILL_SGID`
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`
pub(crate) const FSYNC_FDATASYNC: u32 = 1;
/// `FUSE_NOTIFY_INVAL_INODE`
pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_STORE`
pub(crate) const NOTIFY_STORE: i32 = 4;
/// `FUSE_NOTIFY_RESEND`
pub(crate) const NOTIFY_RESEND: i32 = 7;
/// Set in `unique` of a request that is sent again.
pub(crate) const UNIQUE_RESENT: u64 = 1 << 63;
/// The protocol's major version.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor version that is understood here.
pub(crate) const MINOR: u32 = 45;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_has_the_kernel_s_size() {
        macro_rules! sizes {
            ($($name:ident: $size:literal,)*) => {
                $(assert_eq!(size_of::<$name>(), $size, stringify!($name));)*
            };
        }
        sizes! {
            InHeader: 40, OutHeader: 16, InitIn: 64, InitOut: 64, Attr: 88, EntryOut: 128, AttrOut: 104, ForgetIn: 8,
            BatchForgetIn: 8, ForgetOne: 16, SetattrIn: 88, MknodIn: 16, MkdirIn: 8, RenameIn: 8, Rename2In: 16,
            LinkIn: 8, OpenIn: 8, CreateIn: 16, OpenOut: 16, ReleaseIn: 24, ReadIn: 40, WriteIn: 40, WriteOut: 8,
            StatfsOut: 80, FsyncIn: 16, SetxattrIn: 16, GetxattrIn: 8, GetxattrOut: 8, IoctlIn: 32,
            IoctlOut: 16, FallocateIn: 32, LseekIn: 24, LseekOut: 8, CopyFileRangeIn: 56, CopyFileRangeOut: 8,
            StatxTime: 16, Statx: 256, StatxOut: 288, Dirent: 24, InvalInodeOut: 24, StoreOut: 24,
        }
    }

    #[test]
    fn operations_have_names() {
        assert_eq!(opcode::name(opcode::STATX), "STATX");
        assert_eq!(opcode::name(7), "?");
    }
}
