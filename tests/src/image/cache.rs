//! Where images are kept between runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of kept images: `$STRATA_TEST_CACHE`, or `strata-tests` in the user's cache folder.
pub fn folder() -> PathBuf {
    let named = std::env::var_os("STRATA_TEST_CACHE").map(PathBuf::from);
    named.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        cache.join("strata-tests")
    })
}

/// The kept folder of this name if it is complete.
pub fn get(name: &str) -> Option<PathBuf> {
    let path = folder().join(name);
    path.is_dir().then_some(path)
}

/// Returns the kept folder of this name, made by `make` if there is none yet.
///
/// `make` fills a folder that gets its name only when it has succeeded; a second process waits for the first.
pub fn get_or_make(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = folder();
    fs::create_dir_all(&cache).with_context(|| format!("create {cache:?}"))?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock().with_context(|| format!("wait for another process that makes {name}"))?;
    if let Some(path) = get(name) {
        return Ok(path);
    }
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove what a stopped run left in {partial:?}"))?;
    }
    fs::create_dir(&partial)?;
    make(&partial).with_context(|| format!("make the test image {name}"))?;
    fs::rename(&partial, cache.join(name))?;
    Ok(cache.join(name))
}
