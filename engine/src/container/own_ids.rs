//! The ids of a container that has a user namespace of its own.

use serde::{Deserialize, Deserializer, Serialize};
use strata_sandbox::userns::{self, AUTO_SIZE, IdMaps};
use strata_unionfs::{IdMap, IdRange};

/// What the ids of a container are where strata runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnIds {
    /// For user ids.
    pub uids: IdMap,
    /// For group ids.
    pub gids: IdMap,
}

impl OwnIds {
    fn block(first: u32) -> OwnIds {
        IdMaps::block(first, AUTO_SIZE).into()
    }

    /// The first id of a block of its own, if `auto` chose these.
    pub(crate) fn first_of_block(&self) -> Option<u32> {
        match self.uids.0[..] {
            [IdRange { container: 0, host, count: AUTO_SIZE }] if host >= AUTO_SIZE => Some(host),
            _ => None,
        }
    }

    /// The maps that its namespace is given.
    pub(crate) fn of_namespace(&self) -> IdMaps {
        let convert = |map: &IdMap| map.0.iter().map(|range| to_sandbox(*range)).collect();
        IdMaps { uids: convert(&self.uids), gids: convert(&self.gids) }
    }

    /// What its filesystem has to do to owners, users and groups, so that the container sees those of the layers.
    pub(crate) fn of_filesystem(&self) -> (Option<IdMap>, Option<IdMap>) {
        (needed(&self.uids), needed(&self.gids))
    }

    /// User and group of the container's root outside; `None` for a container without root.
    pub(crate) fn root(&self) -> Option<(u32, u32)> {
        let root = |map: &IdMap| map.has_disk(0).then(|| map.to_host(0));
        root(&self.uids).zip(root(&self.gids))
    }

    /// Whether all ids are what they are outside.
    pub(crate) fn are_unchanged(&self) -> bool {
        [&self.uids, &self.gids].iter().all(|map| map.0.iter().all(|range| range.container == range.host))
    }
}

/// `None` where owners are as they should be. Who is the only one there can neither be given files of others nor give his
/// own away: all of them are his.
fn needed(map: &IdMap) -> Option<IdMap> {
    let unchanged = map.0.iter().all(|range| range.container == range.host);
    let alone = matches!(map.0[..], [IdRange { host: 0, count: 1, .. }]);
    (!unchanged && !alone).then(|| map.clone())
}

impl From<IdMaps> for OwnIds {
    fn from(maps: IdMaps) -> OwnIds {
        let convert = |ranges: Vec<userns::IdRange>| {
            let range =
                |range: userns::IdRange| IdRange { container: range.container, host: range.host, count: range.size };
            IdMap(ranges.into_iter().map(range).collect())
        };
        OwnIds { uids: convert(maps.uids), gids: convert(maps.gids) }
    }
}

fn to_sandbox(range: IdRange) -> userns::IdRange {
    userns::IdRange { container: range.container, host: range.host, size: range.count }
}

/// Reads the maps, or the first id of a block, as records had it.
pub(super) fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Option<OwnIds>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Block(u32),
        Maps(OwnIds),
    }
    Ok(Option::<Written>::deserialize(from)?.map(|written| match written {
        Written::Block(first) => OwnIds::block(first),
        Written::Maps(maps) => maps,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ranges: &[(u32, u32, u32)]) -> OwnIds {
        let map = IdMap(ranges.iter().map(|&(container, host, count)| IdRange { container, host, count }).collect());
        OwnIds { uids: map.clone(), gids: map }
    }

    #[test]
    fn both_forms_are_read_and_one_is_written() {
        #[derive(Deserialize)]
        struct Record {
            #[serde(default, alias = "id_base", deserialize_with = "read")]
            own_ids: Option<OwnIds>,
        }
        let parse = |text: &str| serde_json::from_str::<Record>(text).map(|record| record.own_ids);
        assert_eq!(parse("{}").unwrap(), None);
        assert_eq!(parse("{\"id_base\": 1073741824}").unwrap(), Some(ids(&[(0, 1_073_741_824, 65536)])));
        let maps = ids(&[(0, 1, 1000), (1000, 0, 1)]);
        let text = format!("{{\"own_ids\": {}}}", serde_json::to_string(&maps).unwrap());
        assert_eq!(parse(&text).unwrap(), Some(maps));
        assert!(parse("{\"own_ids\": \"all\"}").is_err());
    }

    #[test]
    fn the_filesystem_maps_only_what_must_be() {
        let block = ids(&[(0, 100_000, 65536)]);
        assert_eq!(block.of_filesystem(), (Some(block.uids.clone()), Some(block.gids.clone())));
        assert_eq!(ids(&[(0, 0, u32::MAX)]).of_filesystem(), (None, None));
        assert_eq!(ids(&[(1000, 0, 1)]).of_filesystem(), (None, None));
        assert!(ids(&[(0, 0, 1), (1, 1, 5)]).are_unchanged() && !ids(&[(1000, 0, 1)]).are_unchanged());
    }
}
