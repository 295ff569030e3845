//! What a container changed, and trees as tars. All of it works on the layers on disk, mounted or not.

mod between;
mod differ;
mod tar;

pub use between::{Aspect, Difference, Side, compare};
pub use differ::{Change, ChangeKind, changes};
pub use tar::{WalkError, write_changes, write_merged};
