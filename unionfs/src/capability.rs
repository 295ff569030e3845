//! The bytes of file capabilities, as far as the user namespace they belong to has to be mapped.
//!
//! ```text
//!   magic and flags : u32 | permitted, inheritable : 2 x 2 x u32 | root id : u32 (version 3 only)
//! ```
//!
//! Version 2 is version 3 of the namespace whose root is user 0 of the filesystem, and is stored so.

/// Where they are kept.
pub(crate) const NAME: &[u8] = b"security.capability";

/// Passes the root of the namespace through `map`; `None` if it has no counterpart.
pub(crate) fn map_root(value: &[u8], map: impl Fn(u32) -> Option<u32>) -> Option<Vec<u8>> {
    let Some((magic, rest)) = value.split_first_chunk::<4>() else { return Some(value.to_vec()) };
    let magic = u32::from_le_bytes(*magic);
    let (sets, root) = match (magic & REVISION, rest.split_at_checked(SETS)) {
        (VERSION_2, Some((sets, []))) => (sets, 0),
        (VERSION_3, Some((sets, root))) => (sets, u32::from_le_bytes(root.try_into().ok()?)),
        // Version 1, or nothing the kernel would take: it has no namespace.
        _ => return Some(value.to_vec()),
    };
    let root = map(root)?;
    let flags = magic & !REVISION;
    Some(match root {
        0 => [&(flags | VERSION_2).to_le_bytes(), sets].concat(),
        root => [&(flags | VERSION_3).to_le_bytes(), sets, &root.to_le_bytes()].concat(),
    })
}

const REVISION: u32 = 0xff00_0000;
const VERSION_2: u32 = 0x0200_0000;
const VERSION_3: u32 = 0x0300_0000;
/// Two words each of what is permitted and what is inheritable.
const SETS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_follow_the_root() {
        let sets: Vec<u8> = (1..=16).collect();
        let version_2 = [&[1, 0, 0, 2][..], &sets].concat();
        let version_3 = [&[1, 0, 0, 3][..], &sets, &5_u32.to_le_bytes()].concat();
        assert_eq!(map_root(&version_2, |_| Some(5)), Some(version_3.clone()));
        assert_eq!(map_root(&version_3, |id| (id == 5).then_some(0)), Some(version_2.clone()));
        assert_eq!(map_root(&version_2, Some), Some(version_2.clone()));
        assert_eq!(map_root(&version_3, |_| None), None);
    }

    #[test]
    fn what_is_no_capability_stays_as_it_is() {
        for bytes in [&b""[..], b"abc", &[1, 0, 0, 2, 9], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(map_root(bytes, |_| Some(9)), Some(bytes.to_vec()));
        }
        // A root id of the wrong length.
        assert_eq!(map_root(&[&[0, 0, 0, 3][..], &[0; 17]].concat(), Some), None);
    }
}
