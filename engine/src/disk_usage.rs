//! What takes how much of the disk: `system df`.

use strata_imagestore::{DiskError, DiskUsage, ImageId, StoreError, disk_space};

use crate::container::{Container, RecordError};
use crate::engine::{Engine, image_id};

/// What takes how many bytes below a root folder. All of it together is what `du` says.
#[derive(Debug)]
pub struct Usage {
    /// The images.
    pub store: DiskUsage,
    /// The containers, the newest first, with the bytes of their writable layers, logs and records.
    pub containers: Vec<(Container, u64)>,
    /// Everything else: folders of containers' names, what is being removed, measurements.
    pub other: u64,
}

impl Usage {
    /// Returns the bytes of everything.
    pub fn total(&self) -> u64 {
        self.store.total() + self.containers.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.other
    }

    /// Returns how many containers were made from an image.
    pub fn uses(&self, image: ImageId) -> usize {
        self.containers.iter().filter(|(container, _)| image_id(container) == Some(image)).count()
    }
}

/// The disk cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The containers.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Other files.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Engine {
    /// Looks at every file below the root.
    pub fn disk_usage(&self) -> Result<Usage, UsageError> {
        let store = self.images().disk_usage()?;
        let mut containers = Vec::new();
        let mut sum = 0;
        for container in self.containers()? {
            let bytes = disk_space(container.folder())?;
            sum += bytes;
            containers.push((container, bytes));
        }
        let total = disk_space(self.root())?;
        // What is removed or written while we look may be in one of these and not in the other.
        let other = total.saturating_sub(store.total() + sum);
        Ok(Usage { store, containers, other })
    }
}
