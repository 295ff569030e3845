//! The stable order of a directory that changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The names of a directory, each with the place that it keeps for as long as it exists.
///
/// Names of the lower keep their position there, so that who began to read before the first change goes on rightly.
/// New names come at the end.
#[derive(Debug, Default)]
pub(super) struct Listing {
    by_place: BTreeMap<u64, Arc<[u8]>>,
    by_name: HashMap<Arc<[u8]>, u64>,
    next: u64,
}

impl Listing {
    /// Makes an empty listing whose new names get places from `next` on.
    pub(super) fn new(next: u64) -> Listing {
        Listing { next, ..Listing::default() }
    }

    /// Adds a name at a given place.
    pub(super) fn insert_at(&mut self, place: u64, name: &[u8]) {
        let name: Arc<[u8]> = name.into();
        if self.by_name.insert(Arc::clone(&name), place).is_none() {
            self.by_place.insert(place, name);
        }
    }

    /// Adds a name at the end, unless it is there.
    pub(super) fn insert(&mut self, name: &[u8]) {
        if !self.by_name.contains_key(name) {
            self.insert_at(self.next, name);
            self.next += 1;
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        if let Some(place) = self.by_name.remove(name) {
            self.by_place.remove(&place);
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
        assert_eq!(next, 101);
    }
}
