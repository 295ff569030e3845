//! The bytes of POSIX ACLs, as far as ids in them have to be mapped.

/// Who may do what with a file.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// What new files of a directory start with.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

pub(crate) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// Passes each user id and (`true`) group id through `map`; `None` if one has no counterpart or this is no ACL.
pub(crate) fn map_ids(acl: &[u8], map: &mut dyn FnMut(u32, bool) -> Option<u32>) -> Option<Vec<u8>> {
    let mut mapped = acl.to_vec();
    let (version, entries) = mapped.split_first_chunk_mut::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY != 0 {
        return None;
    }
    for entry in entries.chunks_exact_mut(ENTRY) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let id = match tag {
            USER => map(id, false)?,
            GROUP => map(id, true)?,
            _ => continue,
        };
        entry[4..].copy_from_slice(&id.to_le_bytes());
    }
    Some(mapped)
}

const VERSION: u32 = 2;
/// Tag, permissions, id.
const ENTRY: usize = 8;
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&[7, 0]);
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn named_users_and_groups_are_mapped_and_nothing_else() {
        let before = acl(&[(0x01, u32::MAX), (USER, 1), (GROUP, 2), (0x20, u32::MAX)]);
        let after = map_ids(&before, &mut |id, group| Some(id + if group { 200 } else { 100 }));
        assert_eq!(after.unwrap(), acl(&[(0x01, u32::MAX), (USER, 101), (GROUP, 202), (0x20, u32::MAX)]));
    }

    #[test]
    fn what_is_not_an_acl_is_refused() {
        for bytes in [&b""[..], &[2, 0, 0], &[1, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert_eq!(map_ids(bytes, &mut |id, _| Some(id)), None);
        }
        assert_eq!(map_ids(&acl(&[(USER, 5)]), &mut |_, _| None), None);
    }
}
