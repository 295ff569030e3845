//! Mapping of user and group ids between what is on disk and what the mount shows.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::spec::Options;
use crate::{Result, acl, capability};

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

    /// Returns whether an id on disk is one that the map speaks of.
    pub fn has_disk(&self, id: u32) -> bool {
        self.0.iter().any(|range| offset_in(id, range.container, range.count).is_some())
    }

    /// Returns the map that does what this one does and then what `next` does: ids that either lacks are left out.
    pub fn then(&self, next: &IdMap) -> IdMap {
        let mut ranges = Vec::new();
        for first in &self.0 {
            // What the first range leads to, cut along the ranges of the second map; the earlier range decides.
            let mut pending = vec![(0_u64, u64::from(first.count))];
            for second in &next.0 {
                let mut rest = Vec::new();
                for (from, to) in pending {
                    let low = u64::from(second.container).saturating_sub(u64::from(first.host)).clamp(from, to);
                    let end = u64::from(second.container) + u64::from(second.count);
                    let high = end.saturating_sub(u64::from(first.host)).clamp(low, to);
                    if low < high {
                        let into = u64::from(first.host) + low - u64::from(second.container);
                        ranges.extend(range(
                            u64::from(first.container) + low,
                            u64::from(second.host) + into,
                            high - low,
                        ));
                    }
                    rest.extend([(from, low), (high, to)].into_iter().filter(|(from, to)| from < to));
                }
                pending = rest;
            }
        }
        IdMap(ranges)
    }

    /// Reads the numbers of fuse-overlayfs's `uidmapping=`: any number of `ON-DISK:SHOWN:COUNT`, with colons between.
    /// Podman writes a colon before the first one too.
    pub fn parse(text: &str) -> Option<IdMap> {
        let numbers: Option<Vec<u32>> =
            text.split(':').filter(|number| !number.is_empty()).map(|number| number.parse().ok()).collect();
        let numbers = numbers.filter(|numbers| !numbers.is_empty() && numbers.len().is_multiple_of(3))?;
        let ranges = numbers.chunks_exact(3).map(|part| {
            let range = IdRange { container: part[0], host: part[1], count: part[2] };
            // No range may go beyond the last number, and none may be empty.
            let fits = |start: u32| u64::from(start) + u64::from(range.count) <= u64::from(u32::MAX) + 1;
            (range.count > 0 && fits(range.container) && fits(range.host)).then_some(range)
        });
        ranges.collect::<Option<Vec<_>>>().map(IdMap)
    }
}

/// Both maps of a mount; an absent map changes nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids {
    pub(crate) uid: Option<IdMap>,
    pub(crate) gid: Option<IdMap>,
    /// Every file is shown as this user's. What is on disk stays as it is.
    pub(crate) squash_uid: Option<u32>,
    /// Every file is shown as this group's.
    pub(crate) squash_gid: Option<u32>,
}

impl Ids {
    pub(crate) fn of(options: &Options) -> Ids {
        Ids {
            uid: options.uid_map.clone(),
            gid: options.gid_map.clone(),
            squash_uid: options.squash_uid,
            squash_gid: options.squash_gid,
        }
    }

    /// Returns whether owners are shown that nobody can change. Then they need not be kept either: where the layer
    /// cannot hold the owner that was asked for, this is no error, as with fuse-overlayfs.
    pub(crate) fn squashes(&self) -> bool {
        self.squash_uid.is_some() || self.squash_gid.is_some()
    }

    /// Returns the owner to show for one on disk.
    pub(crate) fn uid_to_host(&self, id: u32) -> u32 {
        self.squash_uid.unwrap_or_else(|| self.uid.as_ref().map_or(id, |map| map.to_host(id)))
    }

    /// Returns the group to show for one on disk.
    pub(crate) fn gid_to_host(&self, id: u32) -> u32 {
        self.squash_gid.unwrap_or_else(|| self.gid.as_ref().map_or(id, |map| map.to_host(id)))
    }

    pub(crate) fn uid_to_disk(&self, id: u32) -> Option<u32> {
        self.uid.as_ref().map_or(Some(id), |map| map.to_disk(id))
    }

    pub(crate) fn gid_to_disk(&self, id: u32) -> Option<u32> {
        self.gid.as_ref().map_or(Some(id), |map| map.to_disk(id))
    }

    /// Returns the user and group to store for those of a caller; EOVERFLOW, as the kernel has it, if there are none.
    pub(crate) fn owner_to_disk(&self, uid: u32, gid: u32, server: (u32, u32)) -> Result<(u32, u32)> {
        let stored = |id: Option<u32>, own: u32| match id {
            None if self.squashes() => Ok(own),
            id => id.ok_or(Errno::OVERFLOW),
        };
        Ok((stored(self.uid_to_disk(uid), server.0)?, stored(self.gid_to_disk(gid), server.1)?))
    }

    /// Returns the value of an extended attribute as the mount shows it. Ids occur in ACLs and in file capabilities.
    ///
    /// Squashing leaves ACLs alone: all their entries would become one.
    pub(crate) fn xattr_to_host(&self, name: &[u8], value: Vec<u8>) -> Result<Vec<u8>> {
        if acl::is_acl(name) && (self.uid.is_some() || self.gid.is_some()) {
            let map = |ids: &Option<IdMap>, id| ids.as_ref().map_or(id, |map| map.to_host(id));
            let mut to_host = |id, group| Some(map(if group { &self.gid } else { &self.uid }, id));
            return acl::map_ids(&value, &mut to_host).ok_or(Errno::INVAL);
        }
        match &self.uid {
            // Capabilities of a namespace that has no number here are nobody's.
            Some(map) if name == capability::NAME => {
                let to_host = |id| Some(map.to_host(id)).filter(|_| map.has_disk(id));
                capability::map_root(&value, to_host).ok_or(Errno::NODATA)
            }
            _ => Ok(value),
        }
    }

    /// Returns the value of an extended attribute as the layers hold it.
    pub(crate) fn xattr_to_disk(&self, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        if acl::is_acl(name) {
            let mut to_disk = |id, group| if group { self.gid_to_disk(id) } else { self.uid_to_disk(id) };
            return acl::map_ids(value, &mut to_disk).ok_or(Errno::INVAL);
        }
        match &self.uid {
            Some(map) if name == capability::NAME => {
                capability::map_root(value, |id| map.to_disk(id)).ok_or(Errno::INVAL)
            }
            _ => Ok(value.to_vec()),
        }
    }
}

fn range(container: u64, host: u64, count: u64) -> Option<IdRange> {
    let number = |value: u64| u32::try_from(value).ok();
    Some(IdRange { container: number(container)?, host: number(host)?, count: number(count)? })
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

    #[test]
    fn numbers_of_fuse_overlayfs() {
        let parsed = IdMap::parse("0:1000:1:1:100000:65536").unwrap();
        assert_eq!(parsed, map());
        assert_eq!(IdMap::parse(":0:1000:1:1:100000:65536"), Some(map()));
        for wrong in ["", "0", "0:1", "0:1:2:3", "a:1:2", "0:1:0", "4294967295:0:2", "-1:0:1", ":"] {
            assert_eq!(IdMap::parse(wrong), None, "{wrong}");
        }
        assert!(IdMap::parse("0:0:4294967295").is_some());
    }

    #[test]
    fn one_map_after_another_is_the_map_of_both_steps() {
        let second = IdMap(vec![
            IdRange { container: 1000, host: 0, count: 1 },
            IdRange { container: 100_010, host: 5_000, count: 20 },
            IdRange { container: 100_000, host: 9_000, count: 100 },
        ]);
        let both = map().then(&second);
        for id in 0..200 {
            let step = map().to_host(id);
            let expected = Some(second.to_host(step)).filter(|_| map().has_disk(id) && second.has_disk(step));
            assert_eq!(Some(both.to_host(id)).filter(|_| both.has_disk(id)), expected, "{id}");
        }
        assert_eq!(map().then(&IdMap::default()), IdMap::default());
    }

    #[test]
    fn squashing_shows_one_owner_and_keeps_what_is_stored() {
        let ids = Ids { squash_uid: Some(0), squash_gid: Some(7), uid: Some(map()), ..Ids::default() };
        assert_eq!((ids.uid_to_host(5), ids.gid_to_host(5)), (0, 7));
        // A caller that the map lacks stores what the server is.
        assert_eq!(ids.owner_to_disk(1000, 3, (42, 43)), Ok((0, 3)));
        assert_eq!(ids.owner_to_disk(5, 3, (42, 43)), Ok((42, 3)));
        let strict = Ids { uid: Some(map()), ..Ids::default() };
        assert_eq!(strict.owner_to_disk(5, 3, (42, 43)), Err(Errno::OVERFLOW));
    }

    #[test]
    fn capabilities_belong_to_the_namespace_whose_root_is_shown() {
        let ids = Ids { uid: Some(IdMap(vec![IdRange { container: 0, host: 100_000, count: 10 }])), ..Ids::default() };
        let version_2 = [&[1, 0, 0, 2][..], &[0; 16]].concat();
        let shown = ids.xattr_to_host(capability::NAME, version_2.clone()).unwrap();
        assert_eq!((shown[3], &shown[20..]), (3, &100_000_u32.to_le_bytes()[..]));
        assert_eq!(ids.xattr_to_disk(capability::NAME, &shown).unwrap(), version_2);
        let of_another = [&[1, 0, 0, 3][..], &[0; 16], &77_u32.to_le_bytes()].concat();
        assert_eq!(ids.xattr_to_host(capability::NAME, of_another.clone()), Err(Errno::NODATA));
        assert_eq!(ids.xattr_to_disk(capability::NAME, &of_another), Err(Errno::INVAL));
        assert_eq!(Ids::default().xattr_to_host(capability::NAME, of_another.clone()), Ok(of_another));
    }
}
