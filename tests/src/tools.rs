//! Programs that tests use and no distribution packages, installed with cargo beside the test images.

use std::path::PathBuf;

use crate::image::cache;
use crate::union::on_path;

/// Finds a program in the test cache or on the path.
pub fn program(name: &str) -> Option<PathBuf> {
    let cached = cache::folder().join("tools/bin").join(name);
    if cached.is_file() { Some(cached) } else { on_path(name) }
}
