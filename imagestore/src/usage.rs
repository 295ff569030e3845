//! How much of the disk the store takes, and what for.
//!
//! Figures are blocks on the disk, as `du` counts them: folders, indexes and other caches included, holes not.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use strata_layer::{ChainId, DiffId, Digest};

use crate::catalog::CatalogGuard;
use crate::disk::{DiskError, OnDisk, exists, names_in};
use crate::gc::held_stack;
use crate::image_id::ImageId;
use crate::layout::FETCHER;
use crate::lease::leased_stacks;
use crate::stack::chain_of;
use crate::store::{Store, StoreError};

/// What takes how many bytes of the disk. The sum of it all is [`DiskUsage::total`].
#[derive(Clone, Debug, Default)]
pub struct DiskUsage {
    /// The images, in the order of their IDs.
    pub images: Vec<ImageId>,
    /// Layers, merged indexes, configurations and manifests.
    parts: Vec<Part>,
    /// What is downloaded, or was until something cut it off.
    pub downloads: u64,
    /// Damaged files that a check has put aside.
    pub quarantine: u64,
    /// What running commands write.
    pub working: u64,
    /// The list of images, leases, what happened, and the folders themselves.
    pub own: u64,
}

/// Something that images need, and its bytes.
#[derive(Clone, Debug)]
struct Part {
    bytes: u64,
    /// Positions in `images`, ascending.
    users: Vec<usize>,
    /// Whether a lease or a mount needs it, apart from images.
    kept: bool,
}

impl DiskUsage {
    /// Returns the bytes of everything.
    pub fn total(&self) -> u64 {
        self.sum(|_| true) + self.downloads + self.quarantine + self.working + self.own
    }

    /// Returns the bytes that an image needs.
    pub fn of_image(&self, image: ImageId) -> u64 {
        self.position(image).map_or(0, |number| self.sum(|part| part.users.contains(&number)))
    }

    /// Returns the bytes that an image needs and no other image has.
    pub fn of_image_alone(&self, image: ImageId) -> u64 {
        self.position(image).map_or(0, |number| self.sum(|part| part.users == [number]))
    }

    /// Returns the bytes that several images need.
    pub fn shared(&self) -> u64 {
        self.sum(|part| part.users.len() > 1)
    }

    /// Returns the bytes of what no image needs, but a container or a mount.
    pub fn kept(&self) -> u64 {
        self.sum(|part| part.users.is_empty() && part.kept)
    }

    /// Returns the bytes of what nothing needs: the next collection takes them.
    pub fn unneeded(&self) -> u64 {
        self.sum(|part| part.users.is_empty() && !part.kept)
    }

    /// Returns the bytes that become free when all images that are not `used` are removed.
    pub fn reclaimable(&self, used: impl Fn(ImageId) -> bool) -> u64 {
        let used: Vec<bool> = self.images.iter().map(|image| used(*image)).collect();
        self.sum(|part| !part.kept && !part.users.iter().any(|user| used[*user])) + self.downloads + self.quarantine
    }

    fn position(&self, image: ImageId) -> Option<usize> {
        self.images.binary_search(&image).ok()
    }

    fn sum(&self, counts: impl Fn(&Part) -> bool) -> u64 {
        self.parts.iter().filter(|part| counts(part)).map(|part| part.bytes).sum()
    }
}

impl Store {
    /// Looks at every file of the store.
    pub fn disk_usage(&self) -> Result<DiskUsage, StoreError> {
        // What is there and who needs it must be of one moment.
        let _shared = CatalogGuard::share(&self.layout)?;
        let catalog = self.catalog()?;
        let mut layers: HashMap<DiffId, Part> = HashMap::new();
        let mut chains: HashMap<ChainId, Part> = HashMap::new();
        let mut blobs: HashMap<Digest, Part> = HashMap::new();
        for (number, (id, record)) in catalog.images.iter().enumerate() {
            for layer in record.layers.iter().collect::<BTreeSet<_>>() {
                layers.entry(*layer).or_insert(Part::UNUSED).users.push(number);
            }
            chains.entry(chain_of(&record.layers)).or_insert(Part::UNUSED).users.push(number);
            for blob in BTreeSet::from([id.0, record.manifest]) {
                blobs.entry(blob).or_insert(Part::UNUSED).users.push(number);
            }
        }
        let mut kept = leased_stacks(&self.layout)?;
        let named = |name: &str| Digest::from_hex(name).ok();
        let mut parts = Vec::new();
        for name in names_if_present(&self.layout.images())? {
            let path = self.layout.images().join(&name);
            let mut part = named(&name).and_then(|digest| chains.remove(&ChainId(digest))).unwrap_or(Part::UNUSED);
            match held_stack(&path) {
                Ok(None) => {}
                Ok(Some(stack)) => {
                    kept.push(stack);
                    part.kept = true;
                }
                // Held, and its list is damaged.
                Err(StoreError::Lease { .. }) => part.kept = true,
                Err(error) => return Err(error),
            }
            parts.push(Part { bytes: disk_space(&path)?, ..part });
        }
        for layer in kept.iter().flatten() {
            layers.entry(*layer).or_insert(Part::UNUSED).kept = true;
        }
        for name in names_if_present(&self.layout.layers())? {
            let part = named(&name).and_then(|digest| layers.remove(&DiffId(digest))).unwrap_or(Part::UNUSED);
            parts.push(Part { bytes: disk_space(&self.layout.layers().join(&name))?, ..part });
        }
        for name in names_if_present(&self.layout.blobs())? {
            let part = named(&name).and_then(|digest| blobs.remove(&digest)).unwrap_or(Part::UNUSED);
            parts.push(Part { bytes: disk_space(&self.layout.blobs().join(&name))?, ..part });
        }
        let mut own = 0;
        for folder in self.layout.folders() {
            own += fs::symlink_metadata(&folder).map_or(0, |metadata| metadata.blocks() * 512);
        }
        for folder in [self.layout.refs(), self.layout.leases()] {
            for name in names_if_present(&folder)? {
                own += disk_space(&folder.join(name))?;
            }
        }
        for path in [self.layout.format(), self.layout.events(), self.layout.root().join(FETCHER)] {
            own += disk_space(&path)?;
        }
        Ok(DiskUsage {
            images: catalog.images.keys().copied().collect(),
            parts,
            downloads: disk_space(&self.layout.downloads())?,
            quarantine: disk_space(&self.layout.quarantine())?,
            working: disk_space(&self.layout.work())?,
            own,
        })
    }
}

impl Part {
    const UNUSED: Part = Part { bytes: 0, users: Vec::new(), kept: false };
}

/// Returns the disk space that a file or a folder takes, with everything in it, as `du` counts: a file with several names
/// once, and what disappears meanwhile not at all.
pub fn disk_space(path: &Path) -> Result<u64, DiskError> {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => result.on_disk("examine", &path)?,
        };
        let first = metadata.is_dir() || metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino()));
        if first {
            bytes += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            match fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                entries => {
                    for entry in entries.on_disk("list", &path)? {
                        pending.push(entry.on_disk("list", &path)?.path());
                    }
                }
            }
        }
    }
    Ok(bytes)
}

/// Returns the names in a folder that need not exist.
fn names_if_present(path: &Path) -> Result<Vec<String>, DiskError> {
    if exists(path)? { names_in(path) } else { Ok(Vec::new()) }
}
