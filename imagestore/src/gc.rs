//! Garbage collection: what no image, lease, mount or running operation needs is removed.
//!
//! Mark and sweep, all of it under the exclusive lock of the catalog, and short: what goes is renamed into a temporary
//! folder and unlinked after the lock is released. There is no counter that could go wrong; a crash leaves layers that
//! nothing needs, or a temporary folder, and both are removed later.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use strata_layer::{ChainId, DiffId, Digest};

use crate::catalog::{Catalog, CatalogGuard};
use crate::disk::{DiskError, Lock, OnDisk, Sharing, exists, names_in, open_if_present, read_if_present};
use crate::fsck::empty_quarantine;
use crate::layout::{CHAIN_LAYERS, Layout};
use crate::lease::leased_stacks;
use crate::registry::remove_abandoned;
use crate::stack::chain_of;
use crate::store::{Store, StoreError};
use crate::usage::disk_space;
use crate::work::{WorkDir, pinned_layers, remove_leftovers};

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The layers.
    pub layers: Vec<DiffId>,
    /// How many merged indexes.
    pub stacks: usize,
    /// How many manifests and configurations.
    pub blobs: usize,
    /// How many bytes of disk space all of it took.
    pub bytes: u64,
}

/// What a collection removes of what may still be of use to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Interrupted downloads, which a pull could continue, that nobody has touched for a day.
    Old,
    /// All interrupted downloads, and the damaged files that a check has put aside.
    All,
}

impl Store {
    /// Removes everything that nothing needs, and what killed processes left.
    pub fn gc(&self) -> Result<Collected, StoreError> {
        self.gc_with(Leftovers::Old)
    }

    /// Collects, and chooses what else is given up. Downloads that go on just now always stay.
    pub fn gc_with(&self, leftovers: Leftovers) -> Result<Collected, StoreError> {
        self.check_writable()?;
        self.with_reserve(StoreError::is_full, || self.collect(leftovers))
    }

    fn collect(&self, leftovers: Leftovers) -> Result<Collected, StoreError> {
        remove_leftovers(&self.layout)?;
        let age = match leftovers {
            Leftovers::Old => ABANDONED,
            Leftovers::All => Duration::ZERO,
        };
        let blobs = if exists(&self.layout.downloads())? { self.layers_by_blob()? } else { HashMap::new() };
        // A pull that was killed when its image was there already has left what it downloaded.
        let is_stored = |blob| blobs.contains_key(&blob) || self.has_layer(DiffId(blob)).unwrap_or(false);
        let mut bytes = remove_abandoned(&self.layout, age, is_stored)?;
        if leftovers == Leftovers::All {
            bytes += empty_quarantine(&self.layout)?;
        }
        let guard = CatalogGuard::lock(&self.layout)?;
        let catalog = guard.read()?;
        let sweep = sweep_locked(&self.layout, &catalog)?;
        drop(guard);
        let mut collected = sweep.finish();
        collected.bytes += bytes;
        Ok(collected)
    }
}

/// What was taken out of the store, but not unlinked yet.
#[derive(Debug)]
#[must_use = "what was swept is unlinked when this is finished or dropped"]
pub(crate) struct Sweep {
    pub(crate) collected: Collected,
    taken: usize,
    trash: WorkDir,
}

impl Sweep {
    /// Unlinks what was swept. Best done without the catalog's lock.
    pub(crate) fn finish(self) -> Collected {
        drop(self.trash);
        self.collected
    }
}

/// Moves everything out of the store that nothing needs.
///
/// # Preconditions
/// The catalog is locked exclusively, and `catalog` is what it holds.
pub(crate) fn sweep_locked(layout: &Layout, catalog: &Catalog) -> Result<Sweep, StoreError> {
    let mut live = Live::of(catalog);
    for stack in leased_stacks(layout)? {
        live.add_stack(&stack);
    }
    live.layers.extend(pinned_layers(layout)?);

    let mut sweep = Sweep { collected: Collected::default(), taken: 0, trash: WorkDir::create(layout)? };
    for name in names_in(&layout.images())? {
        let path = layout.images().join(&name);
        if Digest::from_hex(&name).is_ok_and(|digest| live.chains.contains(&ChainId(digest))) {
            continue;
        }
        match held_stack(&path)? {
            Some(stack) => live.add_stack(&stack),
            None => {
                sweep.take(&path)?;
                sweep.collected.stacks += 1;
            }
        }
    }
    for name in names_in(&layout.layers())? {
        let layer = Digest::from_hex(&name).map(DiffId);
        if layer.is_ok_and(|layer| live.layers.contains(&layer)) {
            continue;
        }
        sweep.take(&layout.layers().join(&name))?;
        sweep.collected.layers.extend(layer);
    }
    for name in names_in(&layout.blobs())? {
        if !Digest::from_hex(&name).is_ok_and(|digest| live.blobs.contains(&digest)) {
            sweep.take(&layout.blobs().join(&name))?;
            sweep.collected.blobs += 1;
        }
    }
    Ok(sweep)
}

/// Everything that must stay.
struct Live {
    blobs: HashSet<Digest>,
    layers: HashSet<DiffId>,
    chains: HashSet<ChainId>,
}

impl Live {
    fn of(catalog: &Catalog) -> Live {
        let mut live = Live { blobs: HashSet::new(), layers: HashSet::new(), chains: HashSet::new() };
        for (id, record) in &catalog.images {
            live.blobs.extend([id.0, record.manifest]);
            live.add_stack(&record.layers);
        }
        live
    }

    fn add_stack(&mut self, layers: &[DiffId]) {
        self.layers.extend(layers);
        self.chains.insert(chain_of(layers));
    }
}

impl Sweep {
    fn take(&mut self, path: &Path) -> Result<(), DiskError> {
        self.collected.bytes += disk_space(path)?;
        let target = self.trash.path().join(self.taken.to_string());
        self.taken += 1;
        fs::rename(path, &target).on_disk("rename", path)
    }
}

/// Returns the layers of a chain that somebody holds, and `None` if nobody does.
pub(crate) fn held_stack(path: &Path) -> Result<Option<Vec<DiffId>>, StoreError> {
    let Some(folder) = open_if_present(path)? else { return Ok(None) };
    if Lock::attempt(folder, Sharing::Exclusive, path)?.is_some() {
        return Ok(None);
    }
    let list = read_if_present(&path.join(CHAIN_LAYERS))?.unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    let layers: Result<Vec<DiffId>, _> = list.lines().map(str::parse).collect();
    layers.map(Some).map_err(|_| StoreError::Lease { name: path.to_string_lossy().into_owned() })
}

/// After how long an interrupted download is not expected to be continued.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
