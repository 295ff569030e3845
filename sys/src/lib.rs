//! System calls that rustix does not cover.

pub mod bpf;
pub mod clone;
pub mod entry;
pub mod extents;
pub mod file_flags;
pub mod file_handle;
pub mod filesystem_uuid;
pub mod fork;
pub mod fuse;
pub mod fuse_ring;
pub mod heap;
mod io_uring;
pub mod landlock;
pub mod map;
pub mod mount_attributes;
pub mod namespace;
pub mod network;
pub mod pidfd;
pub mod process;
pub mod process_stat;
pub mod scheduling;
pub mod seccomp;
pub mod seccomp_notify;
pub mod shared;
pub mod ustat;
pub mod verity;
pub mod writeback;
