//! Mapping of user and group ids between what is on disk and what the mount shows.

use serde::{Deserialize, Serialize};

/// One range of ids that is moved as a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside the container: what the layers and the upper hold.
    pub container: u32,
    /// First id on the host: what the mount shows.
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// A list of ranges, as in `/proc/self/uid_map`. The first range that holds an id decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap(pub Vec<IdRange>);

/// What an id without a mapping is shown as.
pub const OVERFLOW_ID: u32 = 65534;

impl IdMap {
    /// Returns the host's id for an id on disk; [`OVERFLOW_ID`] if there is none.
    pub fn to_host(&self, id: u32) -> u32 {
        self.0
            .iter()
            .find_map(|range| Some(range.host.wrapping_add(offset_in(id, range.container, range.count)?)))
            .unwrap_or(OVERFLOW_ID)
    }

    /// Returns the id to store for a host's id, if there is one.
    pub fn to_disk(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|range| Some(range.container.wrapping_add(offset_in(id, range.host, range.count)?)))
    }
}

/// Both maps of a mount; an absent map changes nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids {
    pub(crate) uid: Option<IdMap>,
    pub(crate) gid: Option<IdMap>,
}

impl Ids {
    pub(crate) fn is_identity(&self) -> bool {
        self.uid.is_none() && self.gid.is_none()
    }

    pub(crate) fn uid_to_host(&self, id: u32) -> u32 {
        self.uid.as_ref().map_or(id, |map| map.to_host(id))
    }

    pub(crate) fn gid_to_host(&self, id: u32) -> u32 {
        self.gid.as_ref().map_or(id, |map| map.to_host(id))
    }

    pub(crate) fn uid_to_disk(&self, id: u32) -> Option<u32> {
        self.uid.as_ref().map_or(Some(id), |map| map.to_disk(id))
    }

    pub(crate) fn gid_to_disk(&self, id: u32) -> Option<u32> {
        self.gid.as_ref().map_or(Some(id), |map| map.to_disk(id))
    }
}

fn offset_in(id: u32, start: u32, count: u32) -> Option<u32> {
    id.checked_sub(start).filter(|offset| *offset < count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> IdMap {
        IdMap(vec![
            IdRange { container: 0, host: 1000, count: 1 },
            IdRange { container: 1, host: 100_000, count: 65_536 },
        ])
    }

    #[test]
    fn both_directions_agree_inside_the_ranges() {
        for id in [0, 1, 42, 65_536] {
            assert_eq!(map().to_disk(map().to_host(id)), Some(id));
        }
        assert_eq!(map().to_host(0), 1000);
        assert_eq!(map().to_host(7), 100_006);
    }

    #[test]
    fn ids_outside_are_shown_as_nobody_and_cannot_be_stored() {
        assert_eq!(map().to_host(70_000), OVERFLOW_ID);
        assert_eq!(map().to_disk(5), None);
        assert_eq!(IdMap::default().to_disk(0), None);
    }

    #[test]
    fn ranges_at_the_end_of_the_numbers_do_not_overflow() {
        let map = IdMap(vec![IdRange { container: u32::MAX, host: u32::MAX, count: u32::MAX }]);
        assert_eq!(map.to_host(u32::MAX), u32::MAX);
        assert_eq!(map.to_disk(u32::MAX), Some(u32::MAX));
    }
}
