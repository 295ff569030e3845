//! Whole-workload figures: strata beside the kernel's overlayfs, fuse-overlayfs, crun, runc, podman and dockerd.
//!
//! Everything is measured in one run on one machine, with ordinary scheduling; a peer that is not installed, or does not
//! run here, is named with the reason.

#![forbid(unsafe_code)]

pub mod code_order;
pub mod fs;
pub mod images;
pub mod load;
pub mod machine;
pub mod measure;
pub mod report;
pub mod sandbox;
pub mod walk;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The binary under test: `$STRATA_BIN`, else what `cargo dist` made.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("STRATA_BIN") {
        return Ok(PathBuf::from(path));
    }
    // This program is in target/release, the static binary in target/HOST/release.
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("a program in the build folder")?;
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let path = target.join(host).join("release/strata");
    if !path.is_file() {
        bail!("{path:?} is missing: run `cargo dist` first, or name a binary in STRATA_BIN");
    }
    Ok(path)
}
