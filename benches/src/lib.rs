//! Whole-workload figures: strata beside the kernel's overlayfs, fuse-overlayfs, crun, runc, podman and dockerd.
//!
//! Everything is measured in one run on one machine, with ordinary scheduling; a peer that is not installed, or does not
//! run here, is named with the reason.

#![forbid(unsafe_code)]

pub mod load;
pub mod machine;
pub mod measure;
pub mod report;
pub mod run;
pub mod walk;
