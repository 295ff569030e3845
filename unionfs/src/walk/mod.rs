//! What a container changed, and trees as tars. All of it works on the layers on disk, mounted or not.

mod between;
mod differ;
mod mount_points;
mod tar;

pub use between::{Aspect, Difference, Side, compare};
pub use differ::{Change, ChangeKind, changes};
pub use mount_points::MountPoints;
pub use tar::{WalkError, write_changes, write_merged};
