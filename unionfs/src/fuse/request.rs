//! Requests of the kernel, read from their bytes. Nothing behind this trusts a length or looks for a terminator again.

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::wire::{self, InHeader, fattr, opcode};
use crate::node::{Device, Timestamp, permission_bits};
use crate::tree::{Caller, SetTime};

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    #[allow(dead_code, reason = "for a journal")]
    /// Names the request on this connection; the highest bit says that it has been sent before.
    pub(crate) unique: u64,
    /// The node that it is about.
    pub(crate) node: u64,
    pub(crate) caller: Caller,
    pub(crate) operation: Operation<'a>,
}

/// What is asked for. `kill` says that set-user-id, set-group-id and file capabilities are to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget(Forgets<'a>),
    GetAttributes,
    GetStatx,
    SetAttributes(Change),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MakeNode {
        name: &'a [u8],
        mode: u32,
        umask: u32,
        device: Device,
    },
    MakeDirectory {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RemoveDirectory {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_dir: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a [u8],
    },
    Open {
        flags: i32,
        kill: bool,
    },
    Create {
        name: &'a [u8],
        mode: u32,
        umask: u32,
        flags: i32,
    },
    CreateUnnamed {
        mode: u32,
        umask: u32,
        flags: i32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        kill: bool,
        cached: bool,
    },
    Release {
        handle: u64,
    },
    Flush,
    Sync {
        data_only: bool,
    },
    SyncFilesystem,
    OpenDirectory,
    ReadDirectory {
        cookie: u64,
        size: u32,
        attributes: bool,
    },
    Statfs,
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        /// Whether set-group-id goes with a new access list; `None` if the transport does not tell.
        kill_setgid: Option<bool>,
    },
    GetXattr {
        name: &'a [u8],
        room: u32,
    },
    ListXattrs {
        room: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    Ioctl {
        command: u32,
        input: &'a [u8],
        room: u32,
    },
    Allocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        offset: i64,
        whence: i32,
    },
    CopyRange {
        offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
        wide: bool,
    },
    Interrupt,
    Destroy,
    /// Not served.
    Other,
}

/// What SETATTR changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) permissions: Option<u16>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<SetTime>,
    pub(crate) mtime: Option<SetTime>,
    pub(crate) kill: bool,
}

/// The nodes of a BATCH_FORGET, each with the number of references taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forgets<'a>(&'a [u8]);

/// A request as it came: the part with a fixed layout may lie apart from what follows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    header: InHeader,
    head: &'a [u8],
    body: Option<&'a [u8]>,
}

impl<'a> Frame<'a> {
    /// Takes a message of `/dev/fuse`; `None` if it is too short to be answered.
    pub(crate) fn of_message(message: &'a [u8]) -> Option<Frame<'a>> {
        let (header, head) = InHeader::read_from_prefix(message).ok()?;
        Some(Frame { header, head, body: None })
    }

    #[allow(dead_code, reason = "for a transport whose messages come in parts")]
    /// Takes the parts of an entry of an io_uring queue.
    pub(crate) fn of_parts(header: InHeader, head: &'a [u8], body: &'a [u8]) -> Frame<'a> {
        Frame { header, head, body: Some(body) }
    }

    pub(crate) fn header(&self) -> &InHeader {
        &self.header
    }

    /// Reads the request, or says which error answers it.
    pub(crate) fn parse(&self) -> Result<Request<'a>, Errno> {
        let InHeader { unique, node, uid, gid, pid, .. } = self.header;
        Ok(Request { unique, node, caller: Caller { uid, gid, pid }, operation: self.operation()? })
    }

    fn operation(&self) -> Result<Operation<'a>, Errno> {
        Ok(match self.header.opcode {
            opcode::LOOKUP => Operation::Lookup { name: self.only_name()? },
            opcode::FORGET => Operation::Forget { count: self.take::<wire::ForgetIn>()?.0.count },
            opcode::BATCH_FORGET => {
                let (input, rest) = self.take::<wire::BatchForgetIn>()?;
                let length = (input.count as usize).checked_mul(size_of::<wire::ForgetOne>()).ok_or(Errno::INVAL)?;
                Operation::BatchForget(Forgets(rest.get(..length).ok_or(Errno::INVAL)?))
            }
            opcode::GETATTR => Operation::GetAttributes,
            opcode::STATX => Operation::GetStatx,
            opcode::SETATTR => Operation::SetAttributes(change(&self.take()?.0)?),
            opcode::READLINK => Operation::ReadLink,
            opcode::SYMLINK => {
                let (name, rest) = name(self.variable())?;
                Operation::Symlink { name, target: text(rest)?.0 }
            }
            opcode::MKNOD => {
                let (input, rest) = self.take::<wire::MknodIn>()?;
                let (name, _) = name(rest)?;
                Operation::MakeNode { name, mode: input.mode, umask: input.umask, device: device(input.device) }
            }
            opcode::MKDIR => {
                let (input, rest) = self.take::<wire::MkdirIn>()?;
                Operation::MakeDirectory { name: name(rest)?.0, mode: input.mode, umask: input.umask }
            }
            opcode::UNLINK => Operation::Unlink { name: self.only_name()? },
            opcode::RMDIR => Operation::RemoveDirectory { name: self.only_name()? },
            opcode::RENAME => {
                let (input, rest) = self.take::<wire::RenameIn>()?;
                rename(rest, input.new_dir, 0)?
            }
            opcode::RENAME2 => {
                let (input, rest) = self.take::<wire::Rename2In>()?;
                rename(rest, input.new_dir, input.flags)?
            }
            opcode::LINK => {
                let (input, rest) = self.take::<wire::LinkIn>()?;
                Operation::Link { node: input.node, name: name(rest)?.0 }
            }
            opcode::OPEN => {
                let (input, _) = self.take::<wire::OpenIn>()?;
                let kill = input.open_flags & wire::OPEN_KILL_SUIDGID != 0;
                Operation::Open { flags: input.flags.cast_signed(), kill }
            }
            opcode::CREATE => {
                let (input, rest) = self.take::<wire::CreateIn>()?;
                let (name, _) = name(rest)?;
                Operation::Create { name, mode: input.mode, umask: input.umask, flags: input.flags.cast_signed() }
            }
            opcode::TMPFILE => {
                // It has a name only as a matter of form.
                let (input, _) = self.take::<wire::CreateIn>()?;
                Operation::CreateUnnamed { mode: input.mode, umask: input.umask, flags: input.flags.cast_signed() }
            }
            opcode::READ => {
                let (input, _) = self.take::<wire::ReadIn>()?;
                Operation::Read { offset: input.offset, size: input.size }
            }
            opcode::WRITE => {
                let (input, rest) = self.take::<wire::WriteIn>()?;
                let data = rest.get(..input.size as usize).ok_or(Errno::INVAL)?;
                let kill = input.write_flags & wire::WRITE_KILL_SUIDGID != 0;
                let cached = input.write_flags & wire::WRITE_CACHE != 0;
                Operation::Write { offset: input.offset, data, kill, cached }
            }
            opcode::RELEASE => Operation::Release { handle: self.take::<wire::ReleaseIn>()?.0.handle },
            opcode::FLUSH => Operation::Flush,
            opcode::FSYNC | opcode::FSYNCDIR => {
                let (input, _) = self.take::<wire::FsyncIn>()?;
                Operation::Sync { data_only: input.flags & wire::FSYNC_FDATASYNC != 0 }
            }
            opcode::SYNCFS => Operation::SyncFilesystem,
            opcode::OPENDIR => Operation::OpenDirectory,
            code @ (opcode::READDIR | opcode::READDIRPLUS) => {
                let (input, _) = self.take::<wire::ReadIn>()?;
                let attributes = code == opcode::READDIRPLUS;
                Operation::ReadDirectory { cookie: input.offset, size: input.size, attributes }
            }
            opcode::STATFS => Operation::Statfs,
            opcode::SETXATTR => {
                let (input, rest) = self.take::<wire::SetxattrIn>()?;
                let (name, rest) = text(rest)?;
                let value = rest.get(..input.size as usize).ok_or(Errno::INVAL)?;
                let kill_setgid = Some(input.setxattr_flags & wire::SETXATTR_ACL_KILL_SGID != 0);
                Operation::SetXattr { name, value, flags: input.flags, kill_setgid }
            }
            opcode::GETXATTR => {
                let (input, rest) = self.take::<wire::GetxattrIn>()?;
                Operation::GetXattr { name: text(rest)?.0, room: input.size }
            }
            opcode::LISTXATTR => Operation::ListXattrs { room: self.take::<wire::GetxattrIn>()?.0.size },
            opcode::REMOVEXATTR => Operation::RemoveXattr { name: text(self.variable())?.0 },
            opcode::IOCTL => {
                let (input, rest) = self.take::<wire::IoctlIn>()?;
                let data = rest.get(..input.in_size as usize).ok_or(Errno::INVAL)?;
                Operation::Ioctl { command: input.command, input: data, room: input.out_size }
            }
            opcode::FALLOCATE => {
                let (input, _) = self.take::<wire::FallocateIn>()?;
                Operation::Allocate { offset: input.offset, length: input.length, mode: input.mode }
            }
            opcode::LSEEK => {
                let (input, _) = self.take::<wire::LseekIn>()?;
                Operation::Seek { offset: input.offset.cast_signed(), whence: input.whence.cast_signed() }
            }
            code @ (opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64) => {
                let (input, _) = self.take::<wire::CopyFileRangeIn>()?;
                Operation::CopyRange {
                    offset: input.offset_in,
                    to: input.node_out,
                    to_offset: input.offset_out,
                    length: input.length,
                    wide: code == opcode::COPY_FILE_RANGE_64,
                }
            }
            opcode::INTERRUPT => Operation::Interrupt,
            opcode::DESTROY => Operation::Destroy,
            _ => Operation::Other,
        })
    }

    /// Returns the part with a fixed layout, and what follows it.
    fn take<T: FromBytes>(&self) -> Result<(T, &'a [u8]), Errno> {
        let (value, rest) = T::read_from_prefix(self.head).map_err(|_| Errno::INVAL)?;
        Ok((value, self.body.unwrap_or(rest)))
    }

    /// Returns what there is, if nothing has a fixed layout.
    fn variable(&self) -> &'a [u8] {
        self.body.unwrap_or(self.head)
    }

    fn only_name(&self) -> Result<&'a [u8], Errno> {
        Ok(name(self.variable())?.0)
    }
}

impl Forgets<'_> {
    /// Returns nodes and counts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0
            .chunks_exact(size_of::<wire::ForgetOne>())
            .filter_map(|bytes| wire::ForgetOne::read_from_bytes(bytes).ok())
            .map(|forget| (forget.node, forget.count))
    }
}

impl Operation<'_> {
    /// Returns whether answering takes back references only, which nobody waits for.
    pub(crate) fn is_unanswered(&self) -> bool {
        matches!(self, Operation::Forget { .. } | Operation::BatchForget(_))
    }
}

/// Returns the bytes before the first zero byte, and what follows that.
fn text(bytes: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

/// Returns the name of a directory entry, and what follows it.
fn name(bytes: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let (name, rest) = text(bytes)?;
    if name.len() > NAME_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    if name.is_empty() || name.contains(&b'/') { Err(Errno::INVAL) } else { Ok((name, rest)) }
}

fn rename(bytes: &[u8], new_dir: u64, flags: u32) -> Result<Operation<'_>, Errno> {
    let (old, rest) = name(bytes)?;
    let (new_name, _) = name(rest)?;
    Ok(Operation::Rename { name: old, new_dir, new_name, flags })
}

fn change(input: &wire::SetattrIn) -> Result<Change, Errno> {
    let given = |bit: u32| input.valid & bit != 0;
    let time = |bit, now, seconds: u64, nanoseconds: u32| {
        if given(now) {
            Ok(Some(SetTime::Now))
        } else if !given(bit) {
            Ok(None)
        } else if nanoseconds < 1_000_000_000 {
            Ok(Some(SetTime::At(Timestamp { seconds: seconds.cast_signed(), nanoseconds })))
        } else {
            Err(Errno::INVAL)
        }
    };
    let about_privileges = input.valid & !(fattr::HANDLE | fattr::LOCK_OWNER | fattr::CTIME) == 0;
    Ok(Change {
        permissions: given(fattr::MODE).then(|| permission_bits(input.mode)),
        uid: given(fattr::UID).then_some(input.uid),
        gid: given(fattr::GID).then_some(input.gid),
        size: given(fattr::SIZE).then_some(input.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, input.atime, input.atime_nanoseconds)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, input.mtime, input.mtime_nanoseconds)?,
        // The kernel sends a change of nothing before somebody writes by passthrough who may not keep privileges.
        kill: given(fattr::KILL_SUIDGID) || about_privileges,
    })
}

/// Unpacks a device number (`new_decode_dev`).
pub(super) fn device(number: u32) -> Device {
    Device { major: (number >> 8) & 0xfff, minor: (number & 0xff) | ((number >> 12) & 0xfff00) }
}

/// Longest name of a directory entry.
pub(super) const NAME_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes as _;

    fn message(opcode: u32, parts: &[&[u8]]) -> Vec<u8> {
        let header = InHeader { opcode, unique: 7, node: 3, uid: 1, gid: 2, pid: 4, ..InHeader::default() };
        [&[header.as_bytes()], parts].concat().concat()
    }

    #[test]
    fn the_same_request_in_one_piece_and_in_parts() {
        let input = wire::MknodIn { mode: 0o20600, device: 0x0103, umask: 0o22, padding: 0 };
        let whole = message(opcode::MKNOD, &[input.as_bytes(), b"null\0"]);
        let whole = Frame::of_message(&whole).unwrap();
        let mut head = [0xff; 128];
        head[..16].copy_from_slice(input.as_bytes());
        let parts = Frame::of_parts(*whole.header(), &head, b"null\0");
        for frame in [whole, parts] {
            let request = frame.parse().unwrap();
            assert_eq!((request.unique, request.node, request.caller.pid), (7, 3, 4));
            let Operation::MakeNode { name, mode, umask, device } = request.operation else { panic!("{request:?}") };
            assert_eq!((name, mode, umask), (b"null".as_slice(), 0o20600, 0o22));
            assert_eq!(device, Device { major: 1, minor: 3 });
        }
    }

    #[test]
    fn what_is_cut_short_or_no_name_is_an_error_and_never_a_panic() {
        for code in 0..=64 {
            for length in 0..200 {
                for byte in [0, b'x', 0xff] {
                    let bytes = message(code, &[&vec![byte; length]]);
                    let frame = Frame::of_message(&bytes).unwrap();
                    if let Ok(Request { operation: Operation::BatchForget(forgets), .. }) = frame.parse() {
                        assert!(forgets.iter().count() <= length / 16);
                    }
                }
            }
        }
        assert!(Frame::of_message(&[0; 39]).is_none());
        let parse =
            |name: &[u8]| Frame::of_message(&message(opcode::LOOKUP, &[name])).unwrap().parse().map(|_| ()).err();
        assert_eq!(parse(b"a\0"), None);
        assert_eq!(parse(b"a"), Some(Errno::INVAL));
        assert_eq!(parse(b"\0"), Some(Errno::INVAL));
        assert_eq!(parse(b"a/b\0"), Some(Errno::INVAL));
        assert_eq!(parse(&[&[b'n'; 255][..], b"\0"].concat()), None);
        assert_eq!(parse(&[&[b'n'; 256][..], b"\0"].concat()), Some(Errno::NAMETOOLONG));
        let write = wire::WriteIn { size: 5, ..wire::WriteIn::default() };
        let short = message(opcode::WRITE, &[write.as_bytes(), b"data"]);
        assert_eq!(Frame::of_message(&short).unwrap().parse().unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn a_change_of_nothing_takes_privileges_away() {
        let with = |valid| change(&wire::SetattrIn { valid, mode: 0o104_755, ..wire::SetattrIn::default() }).unwrap();
        assert_eq!(with(0), Change { kill: true, ..Change::default() });
        assert_eq!(with(fattr::HANDLE), Change { kill: true, ..Change::default() });
        assert_eq!(with(fattr::MODE), Change { permissions: Some(0o4755), ..Change::default() });
        assert!(with(fattr::SIZE | fattr::KILL_SUIDGID).kill);
        assert!(!with(fattr::SIZE | fattr::MTIME_NOW).kill);
        let late = wire::SetattrIn {
            valid: fattr::MTIME,
            mtime: u64::MAX,
            mtime_nanoseconds: 5,
            ..wire::SetattrIn::default()
        };
        let moment = SetTime::At(Timestamp { seconds: -1, nanoseconds: 5 });
        assert_eq!(change(&late).unwrap().mtime, Some(moment));
        let wrong = wire::SetattrIn { mtime_nanoseconds: 1_000_000_000, ..late };
        assert_eq!(change(&wrong), Err(Errno::INVAL));
    }
}
