//! The stable order of a directory that changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The names of a directory, each with the place that it keeps for as long as it exists.
///
/// Names of the lower keep their position there, so that who began to read before the first change goes on rightly; even
/// one that is deleted gets it again when it comes back. Others come behind, in the order of a hash of the name. So the
/// places follow from the names alone, and are the same in the server that comes after this one.
#[derive(Debug, Default)]
pub(super) struct Listing {
    by_place: BTreeMap<u64, Arc<[u8]>>,
    by_name: HashMap<Arc<[u8]>, u64>,
    /// Places of deleted names of the lower.
    reserved: HashMap<Arc<[u8]>, u64>,
    /// Where the others begin.
    behind: u64,
}

impl Listing {
    /// Makes an empty listing; places below `behind` are for names of the lower.
    pub(super) fn new(behind: u64) -> Listing {
        Listing { behind, ..Listing::default() }
    }

    /// Keeps a place for a name that is deleted now.
    pub(super) fn reserve(&mut self, place: u64, name: &[u8]) {
        self.reserved.insert(name.into(), place);
    }

    /// Adds a name at a given place.
    pub(super) fn insert_at(&mut self, place: u64, name: &[u8]) {
        let name: Arc<[u8]> = name.into();
        if self.by_name.insert(Arc::clone(&name), place).is_none() {
            self.by_place.insert(place, name);
        }
    }

    /// Adds a name, unless it is there.
    pub(super) fn insert(&mut self, name: &[u8]) {
        if self.by_name.contains_key(name) {
            return;
        }
        let place = self.reserved.get(name).copied().unwrap_or_else(|| {
            let mut place = self.behind.saturating_add(hash(name));
            while self.by_place.contains_key(&place) {
                place += 1;
            }
            place
        });
        self.insert_at(place, name);
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        if let Some(place) = self.by_name.remove(name)
            && let Some(name) = self.by_place.remove(&place)
            && place < self.behind
        {
            self.reserved.insert(name, place);
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_place.clear();
        self.by_name.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }

    /// Returns the names from `place` on.
    pub(super) fn from(&self, place: u64) -> impl Iterator<Item = (u64, &[u8])> {
        self.by_place.range(place..).map(|(place, name)| (*place, &**name))
    }
}

/// Returns 48 bits that depend on all of the name (FNV-1a). Cookies must stay below 63 bits, with room for neighbours.
fn hash(name: &[u8]) -> u64 {
    let hash = name
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ hash >> 48) & ((1 << 48) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_each_survivor_once_while_others_delete_and_create() {
        let mut listing = Listing::new(100);
        for place in 0..100 {
            listing.insert_at(place, format!("{place}").as_bytes());
        }
        let (mut seen, mut next) = (Vec::new(), 0);
        let after = |listing: &Listing, place| {
            listing.from(place).next().map(|(place, name)| (place, String::from_utf8(name.to_vec()).unwrap()))
        };
        while let Some((place, name)) = after(&listing, next) {
            next = place + 1;
            if name != "new" {
                seen.push(name.clone());
            }
            listing.remove(name.as_bytes());
            listing.remove(format!("{}", place + 50).as_bytes());
            if place == 10 {
                listing.insert(b"new");
                listing.insert(b"new");
            }
        }
        assert_eq!(seen, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
        assert!(listing.is_empty());
        assert!(next > 100);
    }

    #[test]
    fn places_follow_from_the_names_whatever_has_happened() {
        let names: Vec<Vec<u8>> = (0..2000).map(|number| format!("name {number}").into_bytes()).collect();
        let mut changed = Listing::new(10);
        changed.insert_at(4, b"of the lower");
        changed.remove(b"of the lower");
        for name in names.iter().rev().chain(&names) {
            changed.insert(name);
        }
        for name in names.iter().step_by(2) {
            changed.remove(name);
            changed.insert(name);
        }
        changed.insert(b"of the lower");
        let mut fresh = Listing::new(10);
        fresh.reserve(4, b"of the lower");
        fresh.insert(b"of the lower");
        names.iter().for_each(|name| fresh.insert(name));
        assert!(changed.from(0).eq(fresh.from(0)));
        assert_eq!(changed.from(0).count(), 2001);
        assert!(changed.from(0).last().unwrap().0 < 1 << 49);
    }
}
