//! What folders as lower leave to the next server: where each node was found, and in which order filesystems were met.
//!
//! The next server looks for a node again when it is asked about it, by its place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::Place;
use crate::node::Ino;
use crate::survive::{Keep, RecordId};

/// The way to the next server, and what has come from the last one.
#[derive(Debug, Default)]
pub(super) struct Kept {
    keep: OnceLock<Arc<Keep>>,
    devices: Mutex<Option<RecordId>>,
    left: Mutex<HashMap<Ino, Left>>,
    any_left: AtomicBool,
}

/// A node that the last server knew and this one does not yet.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) places: Vec<Place>,
    pub(super) references: u64,
    pub(super) record: RecordId,
}

impl Kept {
    pub(super) fn start(&self, keep: &Arc<Keep>) {
        let _ = self.keep.set(Arc::clone(keep));
    }

    /// Writes where a node was found.
    pub(super) fn write_node(
        &self,
        record: Option<RecordId>,
        ino: Ino,
        places: &[(Ino, Box<[u8]>)],
    ) -> Option<RecordId> {
        let memory = self.keep.get()?.memory();
        let mut bytes = vec![NODE];
        bytes.extend(ino.0.to_le_bytes());
        for (parent, name) in places {
            bytes.extend(parent.0.to_le_bytes());
            bytes.extend(u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(name);
        }
        memory.put(record, &bytes)
    }

    /// Writes the filesystems that were met.
    pub(super) fn write_devices(&self, devices: &[u64]) {
        let Some(keep) = self.keep.get() else { return };
        let mut record = lock(&self.devices);
        let mut bytes = vec![DEVICES];
        bytes.extend(devices.iter().flat_map(|device| device.to_le_bytes()));
        *record = keep.memory().put(*record, &bytes);
    }

    pub(super) fn remove(&self, record: Option<RecordId>) {
        if let (Some(keep), Some(record)) = (self.keep.get(), record) {
            keep.memory().remove(record);
        }
    }

    /// Reads a record of the last server; returns the filesystems if it is of those.
    pub(super) fn restore(&self, record: RecordId, bytes: &[u8]) -> Option<Vec<u64>> {
        match bytes.split_first()? {
            (&DEVICES, rest) => {
                *lock(&self.devices) = Some(record);
                Some(rest.as_chunks::<8>().0.iter().map(|device| u64::from_le_bytes(*device)).collect())
            }
            (&NODE, rest) => {
                let (ino, mut rest) = rest.split_first_chunk::<8>()?;
                let mut places = Vec::new();
                while let Some((parent, after)) = rest.split_first_chunk::<8>() {
                    let (length, after) = after.split_first_chunk::<2>()?;
                    let (name, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
                    places.push(Place { parent: Ino(u64::from_le_bytes(*parent)), name: name.to_vec() });
                    rest = after;
                }
                lock(&self.left).insert(Ino(u64::from_le_bytes(*ino)), Left { places, references: 0, record });
                self.any_left.store(true, Ordering::Release);
                None
            }
            _ => None,
        }
    }

    pub(super) fn restore_references(&self, ino: Ino, references: u64) {
        if let Some(left) = lock(&self.left).get_mut(&ino) {
            left.references = references;
        }
    }

    pub(super) fn has_left(&self, ino: Ino) -> bool {
        self.any_left.load(Ordering::Acquire) && lock(&self.left).contains_key(&ino)
    }

    pub(super) fn place(&self, ino: Ino) -> Option<Place> {
        lock(&self.left).get(&ino)?.places.first().cloned()
    }

    /// Hands out what is left of a node that was just found again.
    pub(super) fn take(&self, ino: Ino) -> Option<Left> {
        if !self.any_left.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.left).remove(&ino)
    }

    /// Takes back `count` references to a node that was not asked about since; returns whether none is left.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> bool {
        if !self.any_left.load(Ordering::Acquire) {
            return true;
        }
        let mut left = lock(&self.left);
        let Some(node) = left.get_mut(&ino) else { return true };
        node.references = node.references.saturating_sub(count);
        if node.references > 0 {
            return false;
        }
        let record = node.record;
        left.remove(&ino);
        drop(left);
        self.remove(Some(record));
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begin a record.
const NODE: u8 = b'n';
const DEVICES: u8 = b'd';
