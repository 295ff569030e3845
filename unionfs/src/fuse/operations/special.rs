//! Operations that few programs know.

use rustix::io::Errno;

use super::{Operations, answer};
use crate::Result;
use crate::fuse::backing::Register;
use crate::fuse::reply::{self, Reply};
use crate::fuse::wire::{Statx, StatxOut, StatxTime};
use crate::node::{Ino, Stat, Timestamp, permission_bits};
use crate::tree::{Caller, ExtendedFlags};

impl Operations {
    /// Serves STATX, which has a time that GETATTR has not.
    pub(super) fn statx(&self, node: u64, result: Result<Stat>) -> Reply {
        answer(result, |stat| {
            let attr = reply::attributes(&stat);
            let stat = Statx {
                mask: if stat.birth.is_some() { BASIC | BIRTH } else { BASIC },
                block_size: stat.block_size,
                nlink: stat.nlink,
                uid: stat.uid,
                gid: stat.gid,
                // Sixteen bits by definition.
                mode: u16::try_from(attr.mode & 0xffff).unwrap_or(0),
                ino: stat.ino.0,
                size: stat.size,
                blocks: stat.blocks,
                atime: time(stat.atime),
                ctime: time(stat.ctime),
                mtime: time(stat.mtime),
                btime: stat.birth.map(time).unwrap_or_default(),
                device_major: stat.device.major,
                device_minor: stat.device.minor,
                ..Statx::default()
            };
            Reply::Statx(Box::new(StatxOut { attr_valid: self.validity(node), stat, ..StatxOut::default() }))
        })
    }

    /// Serves TMPFILE.
    pub(super) fn create_unnamed(
        &self,
        dir: Ino,
        mode: u32,
        umask: u32,
        flags: i32,
        caller: &Caller,
        register: &dyn Register,
    ) -> Reply {
        match self.tree.create_unnamed(dir, permission_bits(mode), permission_bits(umask), caller) {
            Ok(stat) => self.created(&stat, flags, register),
            Err(error) => Reply::Error(error),
        }
    }

    /// Serves those requests of `ioctl` that every filesystem with flags has.
    pub(super) fn ioctl(&self, ino: Ino, command: u32, input: &[u8], room: u32) -> Reply {
        let reply = |bytes: &[u8]| {
            if bytes.len() == room as usize { Reply::Ioctl(bytes.to_vec()) } else { Reply::Error(Errno::INVAL) }
        };
        let set = |result: Result<()>| answer(result, |()| Reply::Ioctl(Vec::new()));
        match command {
            GET_FLAGS => answer(self.tree.flags(ino), |flags| reply(&flags.to_ne_bytes())),
            SET_FLAGS => match input.try_into() {
                Ok(bytes) => set(self.tree.set_flags(ino, u32::from_ne_bytes(bytes))),
                Err(_) => Reply::Error(Errno::INVAL),
            },
            GET_EXTENDED => answer(self.tree.fsxattr(ino), |flags| reply(&flags.to_bytes())),
            SET_EXTENDED => match ExtendedFlags::from_bytes(input) {
                Some(flags) => set(self.tree.set_fsxattr(ino, &flags)),
                None => Reply::Error(Errno::INVAL),
            },
            _ => Reply::Error(Errno::NOTTY),
        }
    }

    /// Returns whether a request of `ioctl` changes the node.
    pub(super) fn ioctl_changes(command: u32) -> bool {
        matches!(command, SET_FLAGS | SET_EXTENDED)
    }

    pub(super) fn seek(&self, ino: Ino, offset: i64, whence: i32) -> Reply {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Reply::Error(Errno::INVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return Reply::Error(Errno::NXIO) };
        answer(self.tree.seek(ino, offset, data), Reply::Position)
    }
}

fn time(time: Timestamp) -> StatxTime {
    StatxTime { seconds: time.seconds, nanoseconds: time.nanoseconds, reserved: 0 }
}

/// `STATX_BASIC_STATS`
const BASIC: u32 = 0x7ff;
/// `STATX_BTIME`
const BIRTH: u32 = 0x800;

/// `FS_IOC_GETFLAGS`; declared with a `long`, as every filesystem has it, though it is about an `int`.
const GET_FLAGS: u32 = request(2, size_of::<libc::c_long>(), b'f', 1);
/// `FS_IOC_SETFLAGS`
const SET_FLAGS: u32 = request(1, size_of::<libc::c_long>(), b'f', 2);
/// `FS_IOC_FSGETXATTR`
const GET_EXTENDED: u32 = request(2, 28, b'X', 31);
/// `FS_IOC_FSSETXATTR`
const SET_EXTENDED: u32 = request(1, 28, b'X', 32);

/// Puts together the number of a request of `ioctl`.
#[allow(clippy::cast_possible_truncation, reason = "sizes are small, and `try_from` is not for constants")]
const fn request(direction: u32, size: usize, kind: u8, number: u32) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernel_s_numbers() {
        assert_eq!(u64::from(GET_FLAGS), libc::FS_IOC_GETFLAGS);
        assert_eq!(u64::from(SET_FLAGS), libc::FS_IOC_SETFLAGS);
        assert_eq!((GET_EXTENDED, SET_EXTENDED), (0x801c_581f, 0x401c_5820));
    }
}
