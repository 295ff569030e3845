//! The extended attributes by which overlayfs marks whiteouts, opaque directories and the like.
//!
//! A mount believes one of the two namespaces, in all of its layers: `trusted.overlay.`, which only root can set, or
//! `user.overlay.`, as overlayfs's `userxattr` asks. Names of users that look like marks are stored with the word
//! `overlay.` once more, see [`escaped`].

use std::borrow::Cow;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use crate::Result;
use crate::backing::{self, RawStat};
use crate::capability;
use crate::node::{Ino, Kind};
use crate::spec::UserXattr;

/// The namespace of a mount's marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Namespace(&'static [u8]);

/// The marks of a file or directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Layers below are hidden under this directory.
    pub(crate) opaque: bool,
    /// The directory may hold what came from layers below.
    pub(crate) impure: bool,
    /// Where in the layers below it came from: a name beside it, or a path from the root.
    pub(crate) redirect: Option<Vec<u8>>,
    /// The file has only its attributes in this layer, and its data in one below.
    pub(crate) metacopy: bool,
    /// The empty file stands for a whiteout.
    pub(crate) whiteout: bool,
    /// The empty file is shown as the character device 0:0, which itself would be a whiteout.
    pub(crate) null_device: bool,
    /// It was copied up by the kernel.
    pub(crate) origin: bool,
    /// The number under which it was shown before it was copied up.
    pub(crate) number: Option<Recorded>,
    /// A root below which there are copies of files with several names.
    pub(crate) shares: bool,
    /// How many names further down lead to this copy.
    pub(crate) left: Option<u32>,
    /// The capabilities that it had before its data was being copied, which takes them away.
    pub(crate) capability: Option<Vec<u8>>,
}

/// A recorded inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) ino: Ino,
    /// The lower folder that it was copied from, see [`LayerId`]. With other lowers the number means nothing.
    pub(crate) layer: LayerId,
    /// It had several names, of which this layer need not have all: others may still lead to the old file.
    pub(crate) shared: bool,
}

/// Tells layers from each other: a hash of what only this folder, or this image's index, has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LayerId(pub(crate) u32);

impl LayerId {
    /// Makes the id of a folder: it stays when the folder is moved or another one is mounted over or under it, and is
    /// another one for a copy of it.
    pub(crate) fn of_folder(root: &RawStat) -> LayerId {
        let birth = root.birth.unwrap_or_default();
        let words = [root.ino, birth.seconds.cast_unsigned(), birth.nanoseconds.into()];
        LayerId::of_bytes(&words.map(u64::to_le_bytes).concat())
    }

    /// FNV-1a: the value is on disk, so it must not depend on anything but the bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> LayerId {
        LayerId(bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)))
    }
}

impl Namespace {
    pub(crate) const TRUSTED: Namespace = Namespace(b"trusted.overlay.");
    pub(crate) const USER: Namespace = Namespace(b"user.overlay.");

    /// Chooses the namespace: `trusted.` where we may set it, tried on `file`, unless one is asked for.
    pub(crate) fn choose(wanted: UserXattr, file: BorrowedFd<'_>) -> Namespace {
        match wanted {
            UserXattr::Off => Namespace::TRUSTED,
            UserXattr::On => Namespace::USER,
            UserXattr::Auto => match Namespace::TRUSTED.set(file, b"strata.probe", b"") {
                Ok(()) => Namespace::TRUSTED,
                Err(_) => Namespace::USER,
            },
        }
    }

    /// Reads the marks of a file or directory. Nearly all have none, which one call tells.
    pub(crate) fn read(self, file: BorrowedFd<'_>) -> Result<Marks> {
        let mut marks = Marks::default();
        for name in backing::list_xattrs(file)?.split(|byte| *byte == 0) {
            let Some(mark) = name.strip_prefix(self.0) else { continue };
            let value = || Ok::<_, rustix::io::Errno>(backing::xattr(file, name)?.unwrap_or_default());
            match mark {
                b"opaque" => marks.opaque = value()? == b"y",
                b"impure" => marks.impure = value()? == b"y",
                b"redirect" => marks.redirect = Some(value()?).filter(|target| is_usable_redirect(target)),
                b"metacopy" => marks.metacopy = true,
                b"whiteout" => marks.whiteout = true,
                ORIGIN => marks.origin = true,
                NULL_DEVICE => marks.null_device = true,
                SHARES => marks.shares = true,
                LEFT => marks.left = value()?.try_into().ok().map(u32::from_le_bytes),
                CAPABILITY => marks.capability = Some(value()?),
                NUMBER => marks.number = Recorded::parse(&value()?),
                _ => {}
            }
        }
        Ok(marks)
    }

    pub(crate) fn set(self, file: BorrowedFd<'_>, mark: &[u8], value: &[u8]) -> Result<()> {
        backing::set_xattr(file, &self.name(mark), value, XattrFlags::empty())
    }

    pub(crate) fn remove(self, file: BorrowedFd<'_>, mark: &[u8]) -> Result<()> {
        backing::remove_xattr(file, &self.name(mark))
    }

    /// Returns the type under which a file of a layer is shown; `None` for a whiteout, be it a device or a regular file.
    pub(crate) fn shown_kind(self, file: BorrowedFd<'_>, raw: &RawStat) -> Result<Option<Kind>> {
        let empty = raw.mode & libc::S_IFMT == libc::S_IFREG && raw.size == 0;
        let marks = if empty { self.read(file)? } else { Marks::default() };
        marks.shown_kind(raw)
    }

    /// Adds the name of the capabilities to those of a file's attributes, if they are only noted: a copy of its data that
    /// did not come to its end has taken them away.
    pub(crate) fn add_noted_capability(self, names: &mut Vec<u8>) {
        let has = |wanted: &[u8]| names.split(|byte| *byte == 0).any(|name| name == wanted);
        if has(&self.name(CAPABILITY)) && !has(capability::NAME) {
            names.extend_from_slice(capability::NAME);
            names.push(0);
        }
    }

    /// Returns the name under which a mark is stored.
    pub(crate) fn name(self, mark: &[u8]) -> Vec<u8> {
        [self.0, mark].concat()
    }
}

impl Marks {
    /// Returns the type under which the file with these marks is shown; `None` for a whiteout.
    pub(crate) fn shown_kind(&self, raw: &RawStat) -> Result<Option<Kind>> {
        let kind = backing::kind(raw)?;
        Ok(match kind {
            _ if backing::is_whiteout(raw) => None,
            Kind::Regular if raw.size == 0 && self.whiteout => None,
            Kind::Regular if raw.size == 0 && self.null_device => Some(Kind::CharDevice),
            kind => Some(kind),
        })
    }
}

impl Recorded {
    /// The number and the layer, little-endian, and a byte that says whether it is shared.
    pub(crate) fn to_bytes(self) -> [u8; 13] {
        let mut bytes = [0; 13];
        bytes[..8].copy_from_slice(&self.ino.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.layer.0.to_le_bytes());
        bytes[12] = self.shared.into();
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Recorded> {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        let (layer, rest) = rest.split_first_chunk::<4>()?;
        let ino = Ino(u64::from_le_bytes(*number));
        let layer = LayerId(u32::from_le_bytes(*layer));
        let &[shared @ (0 | 1)] = rest else { return None };
        (ino > Ino::ROOT).then_some(Recorded { ino, layer, shared: shared == 1 })
    }
}

/// Puts a file handle into the form that overlayfs knows (`struct ovl_fb`): version, magic, length, flags, type of the
/// handle, UUID of the filesystem, handle.
pub(crate) fn origin(uuid: &[u8; 16], kind: i32, handle: &[u8]) -> Option<Vec<u8>> {
    const VERSION: u8 = 0;
    const MAGIC: u8 = 0xfb;
    const HEADER: usize = 21;
    let flags = u8::from(cfg!(target_endian = "big"));
    let length = u8::try_from(HEADER + handle.len()).ok()?;
    let header = [VERSION, MAGIC, length, flags, u8::try_from(kind).ok()?];
    Some([&header, &uuid[..], handle].concat())
}

/// Returns the name under which a layer stores what users call `name`.
///
/// Both namespaces are escaped, whichever the mount believes: else what a user wrote as an ordinary attribute would mean
/// something once the layer is mounted with the other one.
pub(crate) fn escaped(name: &[u8]) -> Cow<'_, [u8]> {
    match split(name) {
        Some((prefix, rest)) => Cow::Owned([prefix, ESCAPE, rest].concat()),
        None => Cow::Borrowed(name),
    }
}

/// Returns what users see of a stored name, or `None` for a mark.
pub(crate) fn shown(name: &[u8]) -> Option<Cow<'_, [u8]>> {
    match split(name) {
        Some((prefix, rest)) => rest.strip_prefix(ESCAPE).map(|rest| Cow::Owned([prefix, rest].concat())),
        None => Some(Cow::Borrowed(name)),
    }
}

/// Returns whether a redirect is a path from the root or a single name.
fn is_usable_redirect(target: &[u8]) -> bool {
    let is_name = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    let parts = target.strip_prefix(b"/").unwrap_or(target);
    let single = target.starts_with(b"/") || !target.contains(&b'/');
    single && !target.contains(&0) && parts.split(|byte| *byte == b'/').all(is_name)
}

fn split(name: &[u8]) -> Option<(&'static [u8], &[u8])> {
    [Namespace::TRUSTED, Namespace::USER]
        .into_iter()
        .find_map(|namespace| name.strip_prefix(namespace.0).map(|rest| (namespace.0, rest)))
}

/// The mark with the inode number.
pub(crate) const NUMBER: &[u8] = b"strata.ino";
/// The mark of an upper's root: some of what was copied had several names.
pub(crate) const SHARES: &[u8] = b"strata.shares";
/// The mark of such a copy with the number of names that are not in this layer.
pub(crate) const LEFT: &[u8] = b"strata.left";
/// The mark with overlayfs's name for the lower file.
pub(crate) const ORIGIN: &[u8] = b"origin";
/// The mark of an empty regular file that is shown as the character device 0:0.
pub(crate) const NULL_DEVICE: &[u8] = b"strata.device";
/// The mark with the capabilities of a file whose data is being copied.
pub(crate) const CAPABILITY: &[u8] = b"strata.capability";
const ESCAPE: &[u8] = b"overlay.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_back_and_marks_are_not_shown() {
        for name in
            ["user.a", "trusted.overlay.opaque", "user.overlay.x", "trusted.overlay.overlay.y", "trusted.overlay."]
        {
            let stored = escaped(name.as_bytes());
            assert_eq!(shown(&stored).unwrap(), name.as_bytes(), "{name}");
        }
        assert_eq!(shown(b"trusted.overlay.opaque"), None);
        assert_eq!(shown(b"user.overlay.metacopy"), None);
    }

    #[test]
    fn redirects_are_paths_or_names() {
        for good in ["a", "/a", "/a/b", "..."] {
            assert!(is_usable_redirect(good.as_bytes()), "{good}");
        }
        for bad in ["", "/", ".", "..", "a/b", "/a/../b", "/a//b", "/a/", "//a", "/a\0b", "/.", "a/"] {
            assert!(!is_usable_redirect(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn origins_are_as_overlayfs_writes_them() {
        let uuid = *b"sixteen bytes of";
        let origin = origin(&uuid, 1, &[9; 8]).unwrap();
        assert_eq!(origin[..5], [0, 0xfb, 29, u8::from(cfg!(target_endian = "big")), 1]);
        assert_eq!((&origin[5..21], &origin[21..]), (&uuid[..], &[9; 8][..]));
        assert_eq!(super::origin(&uuid, 1000, &[9; 8]), None);
    }

    #[test]
    fn recorded_numbers_are_read_as_written_and_garbage_is_not() {
        for shared in [false, true] {
            let recorded = Recorded { ino: Ino(0x1234_5678_9abc), layer: LayerId(0x8765_4321), shared };
            assert_eq!(Recorded::parse(&recorded.to_bytes()), Some(recorded));
        }
        for bytes in [&[][..], &[5; 8], &[1; 12], &[0; 13], &[1; 14], &[5; 13]] {
            assert_eq!(Recorded::parse(bytes), None);
        }
    }
}
