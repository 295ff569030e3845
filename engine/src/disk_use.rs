//! How much a folder takes on the disk.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The bytes of all files below a folder, each counted once however many names it has. What cannot be read counts
/// nothing.
pub(crate) fn of(folder: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() && (metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino()))) {
                total += metadata.len();
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    #[test]
    fn files_count_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        std::fs::write(folder.path().join("deep/a"), [0; 100]).unwrap();
        std::fs::hard_link(folder.path().join("deep/a"), folder.path().join("b")).unwrap();
        std::os::unix::fs::symlink("deep", folder.path().join("c")).unwrap();
        assert_eq!(super::of(folder.path()), 100);
    }
}
