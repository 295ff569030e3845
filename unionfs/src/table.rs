//! Tables of nodes that give their memory back when what the kernel knew is forgotten.

use std::collections::HashMap;
use std::hash::Hash;

/// Removes an entry. A table that has become nearly empty becomes small; the cost of that is shared by the removals that
/// made it so.
pub(crate) fn remove<K: Eq + Hash, V>(table: &mut HashMap<K, V>, key: &K) -> Option<V> {
    let removed = table.remove(key);
    if table.capacity() > SMALL && table.len() < table.capacity() / 8 {
        table.shrink_to(table.len() * 2);
    }
    removed
}

/// Not worth the trouble.
const SMALL: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shrinks_with_what_is_in_it() {
        let mut table: HashMap<u32, u32> = (0..100_000).map(|number| (number, number)).collect();
        for number in 0..100_000 {
            assert_eq!(remove(&mut table, &number), Some(number));
            assert!(table.capacity() <= SMALL || table.capacity() <= 16 * (table.len() + 1));
        }
        assert_eq!(remove(&mut table, &1), None);
    }
}
