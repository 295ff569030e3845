//! Where all state is.

use std::path::PathBuf;

use anyhow::anyhow;

use crate::failure::Failure;

/// Chooses the root folder: what was asked for, `/var/lib/strata` for root, the user's data folder for a plain user.
pub(crate) fn choose(asked: Option<PathBuf>) -> Result<PathBuf, Failure> {
    // An empty variable is none, as everywhere in a shell.
    let variable = || std::env::var_os("STRATA_ROOT").filter(|value| !value.is_empty()).map(PathBuf::from);
    let asked = asked.or_else(variable);
    if let Some(root) = asked {
        if root.as_os_str().is_empty() {
            return Err(Failure::of_engine(anyhow!("the root folder has an empty name")));
        }
        return Ok(root);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/strata"));
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    data.or_else(|| home().map(|home| home.join(".local/share"))).map(|data| data.join("strata")).ok_or_else(|| {
        Failure::of_engine(anyhow!("there is no place for state: HOME is not set"))
            .hint("set STRATA_ROOT or use --root DIR")
    })
}
