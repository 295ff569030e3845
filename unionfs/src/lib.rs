//! The union filesystem: layer stack, copy-up, FUSE front end.
//!
//! [`Tree`] is the union itself: nodes over a stack `[upper?, lower...]`, with no word of FUSE in it, so that its rules
//! are tested without a mount. [`mount`] shows a tree to the system.
#![forbid(unsafe_code)]

mod acl;
mod apart;
mod backing;
mod beneath;
mod by_name;
mod capability;
mod copy;
mod fuse;
mod handles;
mod helper;
mod idmap;
mod lower;
mod marks;
mod mount;
mod mounted;
mod node;
pub mod objects;
mod override_stat;
mod quota;
mod source;
mod spec;
mod survive;
mod table;
mod tree;
mod upper;
mod walk;

pub use apart::Overlap;
pub use fuse::{Counts, default_transport};
pub use helper::mount_by_helper;
pub use idmap::{IdMap, IdRange, OVERFLOW_ID};
pub use lower::{FolderError, ImageError};
pub use mount::{
    MountError, MountReport, Mounted, ServeError, Target, UnmountError, adopt, adopt_kept, mount, mount_kept, unmount,
};
pub use mounted::{Force, RemountError, Server, remount, server_of, unmount_with};
pub use node::{Device, Ino, Kind, Stat, Timestamp};
pub use quota::{LayerUsage, USAGE_FILE};
pub use source::{Absent, LayerSource, OpenLayerSource, set_layer_sources};
pub use spec::{
    ImageLayer, Limits, Lower, Metacopy, MountSpec, Options, Passthrough, Transport, Upper, UserXattr, XattrPermissions,
};
pub use survive::{Faults, Pinned, Survived, WorkerError};
pub use tree::{
    Access, Caller, DirEntry, ExtendedFlags, New, OpenError, Opened, RenameMode, SetAttributes, SetGroupId, SetTime,
    Tree, Usage,
};
pub use upper::UpperError;
pub use walk::{
    Aspect, Change, ChangeKind, Difference, MountPoints, Side, WalkError, changes, compare, write_changes, write_merged,
};

/// The answer of a filesystem operation: a value, or the errno that the caller sees.
pub type Result<T, E = rustix::io::Errno> = std::result::Result<T, E>;
