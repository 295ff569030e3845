//! What to mount: lowers, upper and options, as plain data that travels between processes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::idmap::IdMap;
use crate::source::Absent;

/// Everything that one union mount is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// The read-only layers.
    pub lower: Lower,
    /// The writable layer, or `None` for a mount that cannot be written.
    pub upper: Option<Upper>,
    /// How it behaves.
    pub options: Options,
}

/// The read-only layers of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lower {
    /// The layers of an image, already merged into one index.
    Image {
        /// The merged index.
        index: PathBuf,
        /// The layers in the order of the index's layer numbers: bottom first.
        layers: Vec<ImageLayer>,
    },
    /// Folders, topmost first, as in overlayfs's `lowerdir=`.
    Folders(Vec<PathBuf>),
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The uncompressed tar.
    pub tar: PathBuf,
    /// The index of this layer alone.
    pub index: PathBuf,
    /// Where its EROFS object table is, or is to be written on first use.
    pub objects: PathBuf,
    /// How to find what stands in for a tar that may not be whole.
    #[serde(default)]
    pub absent: Option<Absent>,
}

/// The writable layer, in overlayfs's on-disk form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    /// The changes.
    pub dir: PathBuf,
    /// Scratch space on the same filesystem.
    pub work: PathBuf,
}

/// How a mount behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Refuses every change even if there is an upper.
    pub read_only: bool,
    /// Whether file data may bypass this process.
    pub passthrough: Passthrough,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// User ids: what is on disk and what is shown.
    pub uid_map: Option<IdMap>,
    /// Group ids: what is on disk and what is shown.
    pub gid_map: Option<IdMap>,
    /// Shows every file as this user's, whatever is on disk. An owner that cannot be stored is no error then.
    pub squash_uid: Option<u32>,
    /// Shows every file as this group's, likewise.
    pub squash_gid: Option<u32>,
    /// Lets users other than the one who mounts in. Always so for root.
    pub allow_other: bool,
    /// The mount's source, as `/proc/self/mountinfo` shows it.
    pub source: String,
    /// The part of the filesystem type behind `fuse.`.
    pub subtype: String,
    /// Ignores set-user-id and set-group-id bits.
    pub nosuid: bool,
    /// Ignores device nodes.
    pub nodev: bool,
    /// Refuses to execute.
    pub noexec: bool,
    /// Leaves access times alone.
    pub noatime: bool,
    /// Leaves access times of directories alone.
    pub nodiratime: bool,
    /// Follows no symbolic links.
    pub nosymfollow: bool,
    /// Writes through, as `sync` does.
    pub sync: bool,
    /// Writes changes of directories through.
    pub dirsync: bool,
    /// Has no ACLs: there are none to see, and none can be set.
    pub noacl: bool,
    /// Has no extended attributes at all.
    pub noxattrs: bool,
    /// Shows every directory with one link.
    pub static_nlink: bool,
    /// Refuses (EXDEV) to move folders of the lowers rather than note where they came from.
    pub noredirect: bool,
    /// Whether changing a lower file's attributes copies only them.
    pub metacopy: Metacopy,
    /// Believes whiteouts by name (`.wh.NAME`) in folders; such names can then be neither seen nor made.
    pub named_whiteouts: bool,
    /// Where owners, permissions and types are kept that the upper's filesystem would refuse to store.
    pub xattr_permissions: XattrPermissions,
    /// How much the upper may hold.
    pub limits: Limits,
    /// Which xattr namespace marks whiteouts, opaque folders and the like in the upper.
    pub userxattr: UserXattr,
    /// Never waits for the disk, as overlayfs's `volatile`: after a crash the upper is worthless.
    pub volatile: bool,
    /// Serving threads; `None` is one per CPU, at least two.
    pub threads: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            passthrough: Passthrough::Auto,
            transport: Transport::Auto,
            uid_map: None,
            gid_map: None,
            squash_uid: None,
            squash_gid: None,
            allow_other: false,
            source: "strata".to_owned(),
            subtype: "strata".to_owned(),
            nosuid: false,
            nodev: false,
            noexec: false,
            noatime: false,
            nodiratime: false,
            nosymfollow: false,
            sync: false,
            dirsync: false,
            noacl: false,
            noxattrs: false,
            static_nlink: false,
            noredirect: false,
            named_whiteouts: false,
            metacopy: Metacopy::Auto,
            xattr_permissions: XattrPermissions::Off,
            limits: Limits::default(),
            userxattr: UserXattr::Auto,
            volatile: false,
            threads: None,
        }
    }
}

/// Whether reads and writes may go straight from the kernel to a backing file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Passthrough {
    /// Where the kernel and our privileges allow it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// How requests come from the kernel and answers get back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// The best that works.
    #[default]
    Auto,
    /// `/dev/fuse`, read and written by a thread per CPU.
    Device,
    /// The queues of an io_uring, one per CPU.
    Ring,
    /// The `fuser` crate.
    Fuser,
}

impl Transport {
    /// Returns what the mount option calls it.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Auto => "auto",
            Transport::Device => "device",
            Transport::Ring => "ring",
            Transport::Fuser => "fuser",
        }
    }
}

/// Whether a file can have its attributes in the upper and its data in the lower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metacopy {
    /// Where overlayfs could read it with `metacopy=on`: with marks in `trusted.`, and where redirects are allowed.
    #[default]
    Auto,
    /// Always, even if overlayfs could not mount the upper then.
    On,
    /// Never: all data is copied before the first change of anything. Such files that are there already are read.
    Off,
}

/// The xattr namespace of the marks in the upper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserXattr {
    /// `trusted.overlay.` where we may set it, else `user.overlay.`.
    #[default]
    Auto,
    /// `user.overlay.`, as overlayfs's option `userxattr`.
    On,
    /// `trusted.overlay.`.
    Off,
}

/// How much a writable layer may hold; `None` is as much as its filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Space, in bytes.
    pub bytes: Option<u64>,
    /// Files, directories and everything else that has an inode.
    pub inodes: Option<u64>,
}

impl Limits {
    /// Returns whether there is no limit.
    pub fn is_none(&self) -> bool {
        self.bytes.is_none() && self.inodes.is_none()
    }
}

/// Where a file's owner, permissions and type are kept, in fuse-overlayfs's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrPermissions {
    /// In the file itself.
    #[default]
    Off,
    /// In an attribute that only the privileged may set (`xattr_permissions=1`).
    Privileged,
    /// In an attribute that everybody may set (`xattr_permissions=2`).
    User,
}
