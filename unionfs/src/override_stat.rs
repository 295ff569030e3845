//! Owners, permissions and types kept in an extended attribute, for layers whose filesystem would refuse to store them.
//!
//! ```text
//!   uid:gid:mode[:type]      decimal, decimal, octal; file, dir, symlink, pipe, socket, char-MAJOR-MINOR, block-...
//! ```
//!
//! The attribute is fuse-overlayfs's and that of containers/storage. A layer is in this form if its root has one. Only
//! directories and regular files can carry it; what is of another type is a regular file.

use std::os::fd::BorrowedFd;

use crate::Result;
use crate::backing::{self, RawStat};
use crate::node::{Device, Kind, type_bits};
use crate::spec::{Options, XattrPermissions};

/// The attribute of one layer, if it is in this form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Override(Option<&'static [u8]>);

/// What an attribute says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) permissions: u32,
    /// Absent in values of older programs.
    pub(crate) kind: Option<(Kind, Device)>,
}

impl Override {
    /// Finds out whether a lower layer is in this form.
    ///
    /// Attributes that anybody may set are believed only where nobody is deceived by them (`trusting`): else whoever
    /// owns a folder could have root mount a set-user-id program of "root" from it.
    pub(crate) fn of_lower(root: BorrowedFd<'_>, trusting: bool) -> Result<Override> {
        let names = if trusting { &NAMES[..] } else { &NAMES[..1] };
        Override::present(root, names)
    }

    /// Chooses the attribute for an upper layer: the one that its root has, else the usual one, with which the root is
    /// marked then if the layer may be changed.
    pub(crate) fn of_upper(root: BorrowedFd<'_>, wanted: XattrPermissions, writable: bool) -> Result<Override> {
        let names = match wanted {
            XattrPermissions::Off => return Ok(Override(None)),
            XattrPermissions::Privileged => &NAMES[..1],
            XattrPermissions::User => &NAMES[1..],
        };
        let present = Override::present(root, names)?;
        if present.is_active() {
            return Ok(present);
        }
        let chosen = Override(names.first().copied());
        if writable {
            let raw = backing::stat(root)?;
            let permissions = raw.mode & 0o7777;
            let kind = Some((Kind::Directory, Device::default()));
            chosen.write(root, &Shown { uid: raw.uid, gid: raw.gid, permissions, kind })?;
        }
        Ok(chosen)
    }

    fn present(root: BorrowedFd<'_>, names: &[&'static [u8]]) -> Result<Override> {
        for name in names {
            if backing::xattr(root, name)?.is_some() {
                return Ok(Override(Some(name)));
            }
        }
        Ok(Override(None))
    }

    pub(crate) fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// Puts what the attribute says in the place of what the filesystem says. A value that makes no sense is none.
    pub(crate) fn apply(&self, file: BorrowedFd<'_>, raw: &mut RawStat) -> Result<()> {
        let Some(name) = self.0 else { return Ok(()) };
        let own = raw.mode & libc::S_IFMT;
        if own != libc::S_IFREG && own != libc::S_IFDIR {
            return Ok(());
        }
        let Some(shown) = backing::xattr(file, name)?.and_then(|value| parse(&value)) else { return Ok(()) };
        raw.uid = shown.uid;
        raw.gid = shown.gid;
        let mut bits = own;
        if let Some((kind @ (Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket), device)) = shown.kind
            && own == libc::S_IFREG
        {
            bits = type_bits(kind);
            raw.stands_for = device;
        }
        raw.mode = bits | shown.permissions;
        Ok(())
    }

    /// Writes the attribute.
    pub(crate) fn write(&self, file: BorrowedFd<'_>, shown: &Shown) -> Result<()> {
        let Some(name) = self.0 else { return Ok(()) };
        backing::set_xattr(file, name, format(shown).as_bytes(), rustix::fs::XattrFlags::empty())
    }
}

/// Returns whether attributes that anybody may set can be believed in lower layers: if they were asked for, or if what
/// is mounted has no more rights than whoever mounts it.
pub(crate) fn deceives_nobody(options: &Options) -> bool {
    let is_whole = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
    let host_root = rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| is_whole(&map));
    options.xattr_permissions == XattrPermissions::User || !host_root
}

/// Returns whether the name is that of such an attribute.
pub(crate) fn is_override(name: &[u8]) -> bool {
    NAMES.contains(&name)
}

fn parse(value: &[u8]) -> Option<Shown> {
    let mut fields = std::str::from_utf8(value).ok()?.trim_end_matches('\0').split(':');
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let permissions = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
    let kind = match fields.next() {
        None => None,
        Some(text) => Some(parse_kind(text)?),
    };
    Some(Shown { uid, gid, permissions, kind })
}

fn parse_kind(text: &str) -> Option<(Kind, Device)> {
    let plain = |kind| Some((kind, Device::default()));
    match text {
        "file" => return plain(Kind::Regular),
        "dir" => return plain(Kind::Directory),
        "symlink" => return plain(Kind::Symlink),
        "pipe" => return plain(Kind::Fifo),
        "socket" => return plain(Kind::Socket),
        _ => {}
    }
    let mut parts = text.split('-');
    let kind = match parts.next()? {
        "char" => Kind::CharDevice,
        "block" => Kind::BlockDevice,
        _ => return None,
    };
    let device = Device { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? };
    // A character device 0:0 would be a whiteout, which is never made like this.
    let whiteout = kind == Kind::CharDevice && device == Device::default();
    (parts.next().is_none() && !whiteout).then_some((kind, device))
}

fn format(shown: &Shown) -> String {
    let Shown { uid, gid, permissions, kind } = shown;
    let mut text = format!("{uid}:{gid}:0{permissions:o}");
    if let Some((kind, device)) = kind {
        text.push(':');
        text.push_str(match kind {
            Kind::Regular => "file",
            Kind::Directory => "dir",
            Kind::Symlink => "symlink",
            Kind::Fifo => "pipe",
            Kind::Socket => "socket",
            Kind::CharDevice => "char",
            Kind::BlockDevice => "block",
        });
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            text.push_str(&format!("-{}-{}", device.major, device.minor));
        }
    }
    text
}

/// The one that only the privileged may set, that of containers/storage, and that of older programs.
const NAMES: [&[u8]; 3] =
    [b"security.fuseoverlayfs.override_stat", b"user.containers.override_stat", b"user.fuseoverlayfs.override_stat"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        let kinds = [
            None,
            Some((Kind::Regular, Device::default())),
            Some((Kind::Directory, Device::default())),
            Some((Kind::Fifo, Device::default())),
            Some((Kind::Socket, Device::default())),
            Some((Kind::CharDevice, Device { major: 1, minor: 3 })),
            Some((Kind::BlockDevice, Device { major: 259, minor: 70_000 })),
        ];
        for kind in kinds {
            let shown = Shown { uid: 1, gid: u32::MAX, permissions: 0o4755, kind };
            assert_eq!(parse(format(&shown).as_bytes()), Some(shown));
        }
        // As fuse-overlayfs 1.x and containers/storage write it.
        let shown = Shown { uid: 5, gid: 7, permissions: 0o644, kind: None };
        assert_eq!(parse(b"5:7:644"), Some(shown));
        assert_eq!(parse(b"5:7:0644"), Some(shown));
        // With the type in the mode.
        assert_eq!(parse(b"5:7:100644"), Some(shown));
        assert_eq!(format(&Shown { kind: Some((Kind::Regular, Device::default())), ..shown }), "5:7:0644:file");
    }

    #[test]
    fn nonsense_is_no_value() {
        for text in ["", "1", "1:2", "1:2:9", "-1:2:644", "1:2:644:what", "1:2:644:char-1", "1:2:644:char-0-0"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(b"1:2:644:char-1-2-3"), None);
        assert_eq!(parse(&[0xff, 0xfe]), None);
    }
}
