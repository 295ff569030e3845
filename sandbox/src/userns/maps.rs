//! Which ids a container's own user namespace has, and what they are outside.

use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::{GID_MAP, UID_MAP, UserNamespaceError, is_initial, own_map, subordinate};

/// One range of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the container.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// The maps of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// For user ids.
    pub uids: Vec<IdRange>,
    /// For group ids.
    pub gids: Vec<IdRange>,
}

impl IdMaps {
    /// Maps `size` ids from 0 in the container to `host` and up outside.
    #[must_use]
    pub fn block(host: u32, size: u32) -> Self {
        let range = IdRange { container: 0, host, size };
        Self { uids: vec![range], gids: vec![range] }
    }

    /// Returns the maps in the spec's form: users, groups.
    #[must_use]
    pub fn to_oci(&self) -> (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>) {
        let convert = |ranges: &[IdRange]| {
            let mapping = |range: &IdRange| {
                LinuxIdMappingBuilder::default()
                    .container_id(range.container)
                    .host_id(range.host)
                    .size(range.size)
                    .build()
                    .expect("all three fields are set")
            };
            ranges.iter().map(mapping).collect()
        };
        (convert(&self.uids), convert(&self.gids))
    }
}

/// Chooses maps for `--userns auto`: [`AUTO_SIZE`] ids that no other container of this root uses.
///
/// `taken` lists the blocks in use (their first host ids). In the initial namespace the range comes from the
/// `/etc/subuid` and `/etc/subgid` entry of `strata` or `containers` if there is one, else from ids far above those of
/// people. In a nested namespace it is cut from what is mapped there.
///
/// # Errors
/// [`UserNamespaceError::NoFreeRange`].
pub fn auto(taken: &[u32]) -> Result<IdMaps, UserNamespaceError> {
    let (first, end) = if is_initial() {
        let configured = ["strata", "containers"].into_iter().find_map(|owner| {
            let uids = subordinate(Path::new("/etc/subuid"), owner, None).into_iter().max_by_key(|range| range.1)?;
            let gids = subordinate(Path::new("/etc/subgid"), owner, None);
            gids.contains(&uids).then_some(uids)
        });
        let (first, size) = configured.unwrap_or((AUTO_FIRST, AUTO_END - AUTO_FIRST));
        (first, first.saturating_add(size))
    } else {
        // Ids of this namespace itself: below 65536 they are the rootless containers' own.
        let map = own_map("/proc/self/uid_map", &UID_MAP);
        (AUTO_SIZE, map.iter().map(|range| range.container.saturating_add(range.size)).max().unwrap_or(0))
    };
    let mut candidate = first;
    while candidate.checked_add(AUTO_SIZE).is_some_and(|next| next <= end) {
        let overlaps = |other: &u32| candidate < other.saturating_add(AUTO_SIZE) && *other < candidate + AUTO_SIZE;
        match taken.iter().copied().filter(overlaps).max() {
            None => return Ok(IdMaps::block(candidate, AUTO_SIZE)),
            Some(other) => candidate = other.saturating_add(AUTO_SIZE),
        }
    }
    Err(UserNamespaceError::NoFreeRange)
}

/// The maps of `--userns keep-id`, and whom the container runs as unless told otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The maps.
    pub maps: IdMaps,
    /// The user inside who is the caller outside.
    pub uid: u32,
    /// His group.
    pub gid: u32,
}

/// Chooses maps in which the plain user who entered this namespace is `uid` and `gid`, or has the numbers he has outside of
/// it; all other ids that he has surround these. As Podman's, for root (of the machine or of a namespace that is not a
/// plain user's) all ids stay what they are, and the container runs as `uid` and `gid`, or root.
///
/// # Errors
/// [`UserNamespaceError::InvalidId`].
pub fn keep_id(uid: Option<u32>, gid: Option<u32>) -> Result<Kept, UserNamespaceError> {
    if let Some(id) = [uid, gid].into_iter().flatten().find(|id| *id == u32::MAX) {
        return Err(UserNamespaceError::InvalidId(id));
    }
    let (uids, gids) = (own_map("/proc/self/uid_map", &UID_MAP), own_map("/proc/self/gid_map", &GID_MAP));
    let Some((user, group)) = plain_user(uids, gids) else {
        let maps = IdMaps { uids: unchanged(uids), gids: unchanged(gids) };
        return Ok(Kept { maps, uid: uid.unwrap_or(0), gid: gid.unwrap_or(0) });
    };
    let (uid, gid) = (uid.unwrap_or(user), gid.unwrap_or(group));
    Ok(Kept { maps: IdMaps { uids: around(uid, total(uids)), gids: around(gid, total(gids)) }, uid, gid })
}

/// Chooses maps without the plain user who entered this namespace: of his ids, the subordinate ones alone.
///
/// # Errors
/// [`UserNamespaceError::NoMapOfRoot`], [`UserNamespaceError::NoMapOfOne`].
pub fn nomap() -> Result<IdMaps, UserNamespaceError> {
    let (uids, gids) = (own_map("/proc/self/uid_map", &UID_MAP), own_map("/proc/self/gid_map", &GID_MAP));
    if plain_user(uids, gids).is_none() {
        return Err(UserNamespaceError::NoMapOfRoot);
    }
    let others = |map| match total(map) - 1 {
        0 => Err(UserNamespaceError::NoMapOfOne),
        size => Ok(vec![IdRange { container: 0, host: 1, size }]),
    };
    Ok(IdMaps { uids: others(uids)?, gids: others(gids)? })
}

/// Who this process is outside of the namespace that [`enter_rootless`](super::enter_rootless) made.
#[must_use]
pub fn uid_outside() -> u32 {
    outside(rustix::process::geteuid().as_raw(), own_map("/proc/self/uid_map", &UID_MAP))
}

/// The same of its group.
#[must_use]
pub fn gid_outside() -> u32 {
    outside(rustix::process::getegid().as_raw(), own_map("/proc/self/gid_map", &GID_MAP))
}

fn outside(own: u32, map: &[IdRange]) -> u32 {
    let outside = |range: &IdRange| range.host + (own - range.container);
    let has = |range: &&IdRange| own.checked_sub(range.container).is_some_and(|offset| offset < range.size);
    map.iter().find(has).map_or(own, outside)
}

/// What user ids outside are in this process's namespace, in pieces; `None` if it does not have all of them.
pub(crate) fn uid_inside(range: IdRange) -> Option<Vec<IdRange>> {
    inside(range, own_map("/proc/self/uid_map", &UID_MAP))
}

/// The same for groups.
pub(crate) fn gid_inside(range: IdRange) -> Option<Vec<IdRange>> {
    inside(range, own_map("/proc/self/gid_map", &GID_MAP))
}

fn inside(range: IdRange, own: &[IdRange]) -> Option<Vec<IdRange>> {
    let end = |range: &IdRange| u64::from(range.host) + u64::from(range.size);
    let mut found = Vec::new();
    for part in own {
        let first = range.host.max(part.host);
        let Ok(size) = u32::try_from(end(&range).min(end(part)).saturating_sub(u64::from(first))) else { continue };
        if size > 0 {
            // The spec's numbers may be anything; the kernel's own do not overflow.
            let container = range.container.checked_add(first - range.host)?;
            let host = part.container + (first - part.host);
            found.push(IdRange { container, host, size });
        }
    }
    let sizes: u64 = found.iter().map(|range| u64::from(range.size)).sum();
    (sizes == u64::from(range.size)).then_some(found)
}

/// The user and group outside that [`enter_rootless`](super::enter_rootless) made root of this namespace.
fn plain_user(uids: &[IdRange], gids: &[IdRange]) -> Option<(u32, u32)> {
    let single =
        |map: &[IdRange]| map.first().filter(|range| range.container == 0 && range.size == 1).map(|own| own.host);
    single(uids).zip(single(gids))
}

/// How many ids there are from 0 without a gap.
fn total(map: &[IdRange]) -> u32 {
    map.iter().fold(0, |next, range| if range.container == next { next.saturating_add(range.size) } else { next })
}

/// Root of this namespace as `id`, and what other ids there are around it, in their order.
fn around(id: u32, total: u32) -> Vec<IdRange> {
    let others = total.saturating_sub(1);
    [
        IdRange { container: 0, host: 1, size: id.min(others) },
        IdRange { container: id, host: 0, size: 1 },
        IdRange { container: id.saturating_add(1), host: id.saturating_add(1), size: others.saturating_sub(id) },
    ]
    .into_iter()
    .filter(|range| range.size > 0)
    .collect()
}

fn unchanged(map: &[IdRange]) -> Vec<IdRange> {
    map.iter().map(|range| IdRange { host: range.container, ..*range }).collect()
}

/// How many ids a container of its own namespace gets.
pub const AUTO_SIZE: u32 = 65_536;
/// Where blocks are taken from when nothing is configured: above what `useradd` hands out, below the sign bit.
const AUTO_FIRST: u32 = 0x4000_0000;
const AUTO_END: u32 = 0x7000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_blocks_do_not_overlap() {
        if !is_initial() {
            return;
        }
        let first = auto(&[]).unwrap().uids[0].host;
        let second = auto(&[first]).unwrap().uids[0].host;
        assert!(second >= first + AUTO_SIZE);
        let between = auto(&[first + 1]).unwrap().uids[0].host;
        assert!(between > first + AUTO_SIZE);
    }

    fn ranges(list: &[(u32, u32, u32)]) -> Vec<IdRange> {
        list.iter().map(|&(container, host, size)| IdRange { container, host, size }).collect()
    }

    #[test]
    fn the_kept_id_is_surrounded_by_the_others() {
        assert_eq!(around(1000, 65537), ranges(&[(0, 1, 1000), (1000, 0, 1), (1001, 1001, 64536)]));
        assert_eq!(around(0, 65537), ranges(&[(0, 0, 1), (1, 1, 65536)]));
        // Above all others, right behind them, and without any.
        assert_eq!(around(100_000, 65537), ranges(&[(0, 1, 65536), (100_000, 0, 1)]));
        assert_eq!(around(65536, 65537), ranges(&[(0, 1, 65536), (65536, 0, 1)]));
        assert_eq!(around(1000, 1), ranges(&[(1000, 0, 1)]));
    }

    #[test]
    fn ids_outside_are_found_inside() {
        let own = ranges(&[(0, 1000, 1), (1, 100_000, 65536)]);
        let inside = |container, host, size| inside(IdRange { container, host, size }, &own);
        assert_eq!(inside(0, 1000, 1), Some(ranges(&[(0, 0, 1)])));
        assert_eq!(inside(5, 100_010, 20), Some(ranges(&[(5, 11, 20)])));
        assert_eq!((inside(0, 999, 2), inside(0, 165_530, 10), inside(0, 0, u32::MAX)), (None, None, None));
        assert_eq!(inside(u32::MAX, 1000, 100_000), None);
        let split = ranges(&[(0, 1000, 1), (1, 1001, 5)]);
        let found = super::inside(IdRange { container: 0, host: 1000, size: 3 }, &split);
        assert_eq!(found, Some(ranges(&[(0, 0, 1), (1, 1, 2)])));
    }

    #[test]
    fn a_plain_user_is_known_by_his_namespace() {
        let own = ranges(&[(0, 1000, 1), (1, 100_000, 65536), (65537, 300_000, 10)]);
        assert_eq!(plain_user(&own, &ranges(&[(0, 100, 1), (1, 100_000, 5)])), Some((1000, 100)));
        assert_eq!((total(&own), total(&own[1..])), (65547, 0));
        let nested = ranges(&[(0, 100_000, 65536)]);
        assert_eq!(plain_user(&nested, &nested), None);
        assert_eq!(unchanged(&nested), ranges(&[(0, 0, 65536)]));
    }
}
