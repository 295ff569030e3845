//! Test images and the archives that carry them.

pub mod archive;
pub mod busybox;
pub mod cache;
pub mod debian;
pub mod layer;
pub mod snapshot;
pub mod synthetic;
