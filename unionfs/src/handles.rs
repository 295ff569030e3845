//! A bounded set of open descriptors, the least recently used closed first.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps descriptors open that are likely to be wanted again. Whoever got one keeps it open; the set only forgets.
pub(crate) struct Handles<K> {
    shards: [Mutex<HashMap<K, Held>>; SHARDS],
    per_shard: usize,
    clock: AtomicU64,
}

struct Held {
    fd: Arc<OwnedFd>,
    used: u64,
}

impl<K: Eq + Hash + Copy> Handles<K> {
    /// Makes a set of at most about `capacity` descriptors.
    pub(crate) fn new(capacity: usize) -> Handles<K> {
        Handles {
            shards: std::array::from_fn(|_| Mutex::default()),
            per_shard: (capacity / SHARDS).max(4),
            clock: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, key: K) -> Option<Arc<OwnedFd>> {
        let mut shard = self.shard(&key);
        let held = shard.get_mut(&key)?;
        held.used = self.clock.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(&held.fd))
    }

    pub(crate) fn insert(&self, key: K, fd: Arc<OwnedFd>) {
        let used = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(&key);
        if shard.len() >= self.per_shard {
            let mut times: Vec<u64> = shard.values().map(|held| held.used).collect();
            let (_, median, _) = times.select_nth_unstable(self.per_shard / 2);
            let median = *median;
            shard.retain(|_, held| held.used > median);
        }
        shard.insert(key, Held { fd, used });
    }

    pub(crate) fn remove(&self, key: K) {
        self.shard(&key).remove(&key);
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, Held>> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let number = usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0);
        // Nothing that can panic runs under the lock.
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> fmt::Debug for Handles<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").field("per_shard", &self.per_shard).finish_non_exhaustive()
    }
}

/// Raises the limit of open descriptors as far as we may and returns how many a set may hold.
pub(crate) fn capacity() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Refused only where it is raised beyond what it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(65_536);
    // The rest is for files that clients hold open and for layers.
    usize::try_from(current / 4).unwrap_or(usize::MAX).clamp(32, 8192)
}

const SHARDS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_bounded_and_keeps_what_was_used_last() {
        let handles = Handles::new(64);
        let fd = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        for key in 0..10_000_u32 {
            handles.insert(key, Arc::clone(&fd));
            assert!(handles.get(0).is_some(), "0 was used just before {key}");
        }
        assert!(Arc::strong_count(&fd) <= 65);
    }
}
