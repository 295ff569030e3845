//! File system rows: strata in each of its modes, overlayfs, fuse-overlayfs and a plain folder, interleaved.

pub mod change;
pub mod data;
pub mod peer;
pub mod picture;
pub mod plan;
pub mod programs;
pub mod read;
pub mod requests;
pub mod samples;
pub mod table;
