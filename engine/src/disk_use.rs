//! How much a folder takes on the disk.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::container::Container;
use crate::engine::Engine;

/// What a container's files take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerSize {
    /// The files that it made or changed.
    pub writable: u64,
    /// Those, and the files of its image.
    pub root: u64,
}

impl Engine {
    /// Returns what a container's files take. Looks at what it changed, never at what is in its image.
    pub fn container_size(&self, container: &Container) -> ContainerSize {
        let writable = of(&container.upper());
        let image = crate::engine::image_id(container).and_then(|id| self.images().image(&id).ok());
        let below = match image {
            Some(image) => image.size,
            // Removed by force: its layers are kept for the container.
            None => self.stack_of(container).map_or(0, |stack| {
                stack.layers.iter().map(|layer| layer.tar.metadata().map_or(0, |tar| tar.len())).sum()
            }),
        };
        ContainerSize { writable, root: below.saturating_add(writable) }
    }
}

/// The bytes that the disk holds for all files below a folder, each counted once however many names it has, folders not
/// at all. What cannot be read counts nothing.
pub(crate) fn of(folder: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino())) {
                total += metadata.blocks() * 512;
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
        std::fs::write(folder.path().join("deep/a"), [1; 8192]).unwrap();
        std::fs::File::create(folder.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        std::fs::hard_link(folder.path().join("deep/a"), folder.path().join("b")).unwrap();
        std::os::unix::fs::symlink("deep", folder.path().join("c")).unwrap();
        assert_eq!(super::of(folder.path()), 8192);
    }
}
