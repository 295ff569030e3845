//! Markers: how a layer says that something below it is gone.
//!
//! In a tar a marker is an entry with a reserved name. In a directory used as an upper layer the same is said by a
//! character device 0:0 and by extended attributes; those names are here too, so that every crate means the same.

use crate::path::{self, MAX_NAME};

/// What a name must start with to be a marker.
pub const PREFIX: &[u8] = b".wh.";
/// What names start with that only AUFS gave a meaning to. None but [`OPAQUE`] means anything here.
pub const META_PREFIX: &[u8] = b".wh..wh.";
/// The marker that makes the directory it is in opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// Extended attribute of an opaque directory in an upper, where overlayfs runs with privileges.
pub const TRUSTED_OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Extended attribute of an opaque directory in an upper, where overlayfs is mounted with `userxattr`.
pub const USER_OPAQUE: &[u8] = b"user.overlay.opaque";
/// Value of both.
pub const OPAQUE_VALUE: &[u8] = b"y";

/// Extended attributes that union file systems keep for themselves. A layer that carries them could forge whiteouts,
/// redirects and owners, so they are never taken from one nor written to one.
pub const PRIVATE_XATTR_PREFIXES: [&[u8]; 5] = [
    b"trusted.overlay.",
    b"user.overlay.",
    b"trusted.fuseoverlayfs.",
    b"user.fuseoverlayfs.",
    b"security.fuseoverlayfs.",
];

/// Returns whether an extended attribute belongs to a union file system and not to the file.
pub fn is_private_xattr(name: &[u8]) -> bool {
    PRIVATE_XATTR_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What an entry of a layer's tar means by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A file or directory of that name.
    Entry,
    /// Layers below have nothing at this path.
    Whiteout(Vec<u8>),
    /// The directory at this path (empty: the root) shows nothing of the layers below.
    Opaque(Vec<u8>),
    /// Bookkeeping of AUFS: nothing at all.
    Ignored,
}

impl Meaning {
    /// Reads the meaning of `path`, which is one that [`path::check`] accepts.
    pub fn of(path: &[u8]) -> Result<Meaning, InvalidMarker> {
        // The most frequent case, decided without taking the path apart.
        if !path.windows(PREFIX.len()).any(|window| window == PREFIX) {
            return Ok(Meaning::Entry);
        }
        let components = path::components(path);
        let mut directories = components.clone();
        let last = directories.next_back().unwrap_or_default();
        if components.clone().any(|component| component.starts_with(META_PREFIX) && component != OPAQUE) {
            return Ok(Meaning::Ignored);
        }
        if directories.clone().any(|component| component.starts_with(PREFIX)) {
            return Err(InvalidMarker::UsedAsDirectory);
        }
        if last == OPAQUE {
            return Ok(Meaning::Opaque(path::join(directories)));
        }
        let Some(name) = last.strip_prefix(PREFIX) else {
            return Ok(Meaning::Entry);
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(InvalidMarker::NoName);
        }
        Ok(Meaning::Whiteout(path::join(directories.chain([name]))))
    }
}

/// Returns the name of the whiteout for `name`, or `None` where a tar cannot say it: the marker would be longer than a
/// name can be.
pub fn marker_for(name: &[u8]) -> Option<Vec<u8>> {
    let marker = [PREFIX, name].concat();
    (marker.len() <= MAX_NAME).then_some(marker)
}

/// Returns whether a file of this name cannot be in a layer, because its name would be taken for a marker.
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// Why a name that starts like a marker is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMarker {
    /// `.wh.`, `.wh..` or `.wh...`.
    #[error("whiteout without a name")]
    NoName,
    /// A marker with something in it, or one that is a directory.
    #[error("whiteout used as a directory")]
    UsedAsDirectory,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_the_specification_says() {
        let whiteout = |path: &str| Ok(Meaning::Whiteout(path.into()));
        let opaque = |path: &str| Ok(Meaning::Opaque(path.into()));
        let cases = [
            ("a", Ok(Meaning::Entry)),
            ("/", Ok(Meaning::Entry)),
            ("a/x.wh.y", Ok(Meaning::Entry)),
            (".whx", Ok(Meaning::Entry)),
            (".wh.a", whiteout("a")),
            ("./d//.wh.a/", whiteout("d/a")),
            ("d/.wh...a", whiteout("d/..a")),
            (".wh..a", whiteout(".a")),
            (".wh..wh..opq", opaque("")),
            ("/d/e/.wh..wh..opq", opaque("d/e")),
            (".wh.", Err(InvalidMarker::NoName)),
            ("d/.wh..", Err(InvalidMarker::NoName)),
            ("d/.wh...", Err(InvalidMarker::NoName)),
            (".wh.a/b", Err(InvalidMarker::UsedAsDirectory)),
            ("d/.wh..wh..opq/b", Err(InvalidMarker::UsedAsDirectory)),
            (".wh..wh.plnk", Ok(Meaning::Ignored)),
            (".wh..wh.plnk/12.34", Ok(Meaning::Ignored)),
            (".wh..wh.aufs", Ok(Meaning::Ignored)),
            ("d/.wh..wh..opqx", Ok(Meaning::Ignored)),
        ];
        for (path, expected) in cases {
            assert_eq!(Meaning::of(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn markers_read_back_as_what_they_were_made_for() {
        for name in ["a", ".a", "..a", "wh.", "...", "\n"] {
            let marker = marker_for(name.as_bytes()).unwrap();
            assert!(is_reserved(&marker));
            assert_eq!(Meaning::of(&marker), Ok(Meaning::Whiteout(name.into())));
        }
        assert!(marker_for(&[b'x'; 251]).is_some());
        assert_eq!(marker_for(&[b'x'; 252]), None);
    }

    #[test]
    fn private_attributes_are_known() {
        assert!(is_private_xattr(b"trusted.overlay.opaque"));
        assert!(is_private_xattr(b"user.fuseoverlayfs.override_stat"));
        assert!(!is_private_xattr(b"user.overlay"));
        assert!(!is_private_xattr(b"security.capability"));
    }
}
