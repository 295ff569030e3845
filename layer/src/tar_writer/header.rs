//! The ustar header.

use crate::index::{Device, Timestamp};

/// What a header introduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum TypeFlag {
    Regular = b'0',
    HardLink = b'1',
    Symlink = b'2',
    CharDevice = b'3',
    BlockDevice = b'4',
    Directory = b'5',
    Fifo = b'6',
    Pax = b'x',
}

/// A header under construction. A setter returns `false`, and leaves a zero, if the field cannot hold the value.
#[derive(Debug)]
pub(super) struct Header([u8; BLOCK]);

impl Header {
    pub(super) fn new(type_flag: TypeFlag, permissions: u16) -> Header {
        let mut header = Header([0; BLOCK]);
        header.0[156] = type_flag as u8;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header.octal(100, 8, permissions.into());
        // What is not set reads as zero, in the form that strict readers want.
        for (at, width) in [(108, 8), (116, 8), (124, 12), (136, 12)] {
            header.octal(at, width, 0);
        }
        header
    }

    /// Sets the name, divided between name and prefix if it must be. `false` if it fits in no way.
    pub(super) fn set_name(&mut self, name: &[u8]) -> bool {
        if name.len() <= NAME_LENGTH {
            self.0[..name.len()].copy_from_slice(name);
            return true;
        }
        // The slash between the two is left out; neither part may be empty. A trailing slash stays with the name.
        let earliest = name.len() - NAME_LENGTH - 1;
        let latest = PREFIX_LENGTH.min(name.len() - 2);
        let slash = (earliest.max(1)..=latest).find(|at| name.get(*at) == Some(&b'/'));
        let Some(slash) = slash else { return false };
        self.0[345..345 + slash].copy_from_slice(&name[..slash]);
        let rest = &name[slash + 1..];
        self.0[..rest.len()].copy_from_slice(rest);
        true
    }

    pub(super) fn set_link(&mut self, target: &[u8]) -> bool {
        let fits = target.len() <= NAME_LENGTH;
        if fits {
            self.0[157..157 + target.len()].copy_from_slice(target);
        }
        fits
    }

    pub(super) fn set_size(&mut self, size: u64) -> bool {
        self.octal(124, 12, size)
    }

    pub(super) fn set_uid(&mut self, uid: u32) -> bool {
        self.octal(108, 8, uid.into())
    }

    pub(super) fn set_gid(&mut self, gid: u32) -> bool {
        self.octal(116, 8, gid.into())
    }

    /// Sets the time, rounded down; `false` unless that is the whole of it.
    pub(super) fn set_mtime(&mut self, mtime: Timestamp) -> bool {
        u64::try_from(mtime.seconds).is_ok_and(|seconds| self.octal(136, 12, seconds)) && mtime.nanoseconds == 0
    }

    pub(super) fn set_device(&mut self, device: Device) -> bool {
        self.octal(329, 8, device.major.into()) && self.octal(337, 8, device.minor.into())
    }

    /// Returns the header with its checksum.
    pub(super) fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.octal(148, 7, sum);
        self.0
    }

    /// Writes `value` as octal digits and a NUL to the field of `width` bytes at `at`.
    fn octal(&mut self, at: usize, width: usize, value: u64) -> bool {
        let digits = width - 1;
        let fits = value < 1 << (3 * digits);
        let text = format!("{:0digits$o}\0", if fits { value } else { 0 });
        self.0[at..at + width].copy_from_slice(text.as_bytes());
        fits
    }
}

/// Everything in a tar comes in blocks of this many bytes.
pub(super) const BLOCK: usize = 512;
/// Longest name, and longest target of a link, in a header.
pub(super) const NAME_LENGTH: usize = 100;
const PREFIX_LENGTH: usize = 155;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Option<(String, String)> {
        let mut header = Header::new(TypeFlag::Regular, 0);
        let field = |bytes: &[u8]| String::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
        header.set_name(name.as_bytes()).then(|| (field(&header.0[345..500]), field(&header.0[..100])))
    }

    #[test]
    fn long_names_are_divided_at_a_slash() {
        let (a, b) = ("a".repeat(100), "b".repeat(154));
        assert_eq!(name(&a), Some((String::new(), a.clone())));
        assert_eq!(name(&format!("x/{a}")), Some(("x".into(), a.clone())));
        assert_eq!(name(&format!("{b}/{a}")), Some((b.clone(), a.clone())));
        assert_eq!(name(&format!("{b}x/{a}")), Some((format!("{b}x"), a.clone())));
        assert_eq!(name(&format!("{b}xx/{a}")), None, "prefix too long");
        assert_eq!(name(&format!("x/{a}y")), None, "name too long");
        assert_eq!(name(&format!("/{a}")), None, "prefix empty");
        assert_eq!(name(&format!("{a}x/")), None, "name empty");
        assert_eq!(name(&format!("x/{}/", "a".repeat(99))), Some(("x".into(), format!("{}/", "a".repeat(99)))));
    }

    #[test]
    fn numbers_that_do_not_fit_leave_zero() {
        let mut header = Header::new(TypeFlag::Regular, 0o644);
        assert!(header.set_uid(0o7_777_777));
        assert_eq!(&header.0[108..116], b"7777777\0");
        assert!(!header.set_uid(0o10_000_000));
        assert_eq!(&header.0[108..116], b"0000000\0");
        assert!(header.set_size((8 << 30) - 1));
        assert!(!header.set_size(8 << 30));
    }
}
