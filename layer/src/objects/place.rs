//! Assigning inode numbers while an index is built.

use super::{FIRST_NID, Layout, MAX_NID, Segment};

/// Hands out the nids of one layer's object table.
///
/// Files are placed one after the other in the order of the calls; the same calls give the same nids.
#[derive(Clone, Debug)]
pub struct ObjectPlacer {
    next: u64,
}

impl ObjectPlacer {
    /// Starts an empty table.
    pub fn new() -> ObjectPlacer {
        ObjectPlacer { next: FIRST_NID }
    }

    /// Returns the nid of a regular file of `size` bytes whose data lies at `segments`, or `None` if the table cannot
    /// express it (see [`Layout::of`]); such a file has no object and is read from the tar by its extents.
    ///
    /// A nid that is not used afterwards (the entry was replaced by a later one) only leaves a gap in the table.
    pub fn place<I>(&mut self, size: u64, segments: I) -> Option<u64>
    where
        I: IntoIterator<Item = Segment>,
    {
        let layout = Layout::of(size, segments)?;
        let nid = self.next.next_multiple_of(layout.alignment());
        let end = nid + layout.slots();
        if end > MAX_NID {
            return None;
        }
        self.next = end;
        Some(nid)
    }
}

impl Default for ObjectPlacer {
    fn default() -> ObjectPlacer {
        ObjectPlacer::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(size: u64, source: u64) -> [Segment; 1] {
        [Segment { offset: 0, length: size, source }]
    }

    #[test]
    fn files_follow_each_other() {
        let mut placer = ObjectPlacer::new();
        assert_eq!(placer.place(1, whole(1, 512)), Some(4));
        assert_eq!(placer.place(0, []), None);
        assert_eq!(placer.place(7, whole(7, 1536)), Some(5));
        assert_eq!(placer.place(7, whole(7, 1)), None);
        assert_eq!(placer.place(7, whole(7, 2560)), Some(6));
    }

    #[test]
    fn large_inodes_are_aligned_and_take_their_index_along() {
        let mut placer = ObjectPlacer::new();
        assert_eq!(placer.place(1, whole(1, 512)), Some(4));
        assert_eq!(placer.place(5 << 30, whole(5 << 30, 1536)), Some(6));
        // 5 chunks of 8 bytes: two more slots behind the inode.
        assert_eq!(placer.place(5 << 20, [Segment { offset: 1 << 20, length: 1 << 20, source: 512 }]), Some(8));
        assert_eq!(placer.place(1, whole(1, 512)), Some(12));
    }
}
