//! Maps of sparse files.
//!
//! However a map is written down, in the end it is a list of offsets and lengths; the data of the file is those pieces
//! one after the other. Old GNU headers hold the list in slots of two 12-byte fields, PAX 0.0 and 0.1 in records, and
//! PAX 1.0 in decimal lines at the head of the data.

use super::BLOCK;
use super::error::Problem;
use super::number;
use crate::objects::Segment;

/// A map while it is being read: offsets and lengths in turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Map(Vec<u64>);

impl Map {
    pub(super) fn new(numbers: Vec<u64>) -> Map {
        Map(numbers)
    }

    /// Adds the slots of an old GNU header or of an extension of it, up to the first free one.
    pub(super) fn add_slots(&mut self, slots: &[u8]) -> Result<(), Problem> {
        for slot in slots.chunks_exact(24) {
            if slot[0] == 0 || slot[12] == 0 {
                break;
            }
            for field in [&slot[..12], &slot[12..]] {
                let number = number::field(field).and_then(|number| u64::try_from(number).ok());
                self.0.push(number.ok_or(Problem::Sparse("a slot is no number"))?);
            }
        }
        Ok(())
    }

    pub(super) fn byte_size(&self) -> usize {
        self.0.len() * size_of::<u64>()
    }

    pub(super) fn segment_count(&self) -> usize {
        self.0.len() / 2
    }

    /// Places the pieces of a file of `size` bytes onto its `stored` bytes of data, which begin at `source`.
    ///
    /// Pieces must ascend without overlap, stay inside the file and use up the data exactly. Empty ones, which writers
    /// use to mark the end, are left out, and adjacent ones joined.
    pub(super) fn place(&self, size: u64, source: u64, stored: u64) -> Result<Vec<Segment>, Problem> {
        let (pieces, []) = self.0.as_chunks::<2>() else {
            return Err(Problem::Sparse("an offset without a length"));
        };
        let mut segments: Vec<Segment> = Vec::new();
        let mut covered = 0u64;
        let mut used = 0u64;
        for &[offset, length] in pieces {
            if offset < covered {
                return Err(Problem::Sparse("pieces overlap or descend"));
            }
            covered =
                offset.checked_add(length).filter(|&end| end <= size).ok_or(Problem::Sparse("beyond the file"))?;
            if length > stored - used {
                return Err(Problem::Sparse("more than the data"));
            }
            match segments.last_mut() {
                _ if length == 0 => {}
                Some(last) if last.offset + last.length == offset => last.length += length,
                _ => segments.push(Segment { offset, length, source: source + used }),
            }
            used += length;
        }
        if used != stored {
            return Err(Problem::Sparse("less than the data"));
        }
        Ok(segments)
    }
}

/// Reads the map at the head of a file's data: the number of pieces, then their offsets and lengths, each on a line of
/// its own, filled up to a whole block.
#[derive(Clone, Debug)]
pub(super) struct HeadMap {
    map: Map,
    /// Numbers still to come; `None` before the count was read.
    missing: Option<u64>,
    line: Vec<u8>,
}

impl HeadMap {
    pub(super) fn new() -> HeadMap {
        HeadMap { map: Map::default(), missing: None, line: Vec::new() }
    }

    /// Adds a block; true if it was the last one of the map.
    pub(super) fn add_block(&mut self, block: &[u8; BLOCK]) -> Result<bool, Problem> {
        for &byte in block {
            if self.missing == Some(0) {
                return Ok(true);
            }
            if byte != b'\n' {
                // The longest number there is has 20 digits.
                if self.line.len() >= 20 {
                    return Err(Problem::Sparse("a line is no number"));
                }
                self.line.push(byte);
                continue;
            }
            let number = number::decimal(&self.line).ok_or(Problem::Sparse("a line is no number"))?;
            self.line.clear();
            self.missing = Some(match self.missing {
                None => number.checked_mul(2).ok_or(Problem::Sparse("too many pieces"))?,
                Some(missing) => {
                    self.map.0.push(number);
                    missing - 1
                }
            });
        }
        Ok(self.missing == Some(0))
    }

    pub(super) fn byte_size(&self) -> usize {
        self.map.byte_size()
    }

    pub(super) fn into_map(self) -> Map {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, length: u64, source: u64) -> Segment {
        Segment { offset, length, source }
    }

    fn place(numbers: &[u64], size: u64, stored: u64) -> Result<Vec<Segment>, Problem> {
        Map::new(numbers.to_vec()).place(size, 512, stored)
    }

    #[test]
    fn pieces_lie_one_after_the_other_in_the_data() {
        assert_eq!(place(&[0, 10, 20, 5], 30, 15), Ok(vec![segment(0, 10, 512), segment(20, 5, 522)]));
        assert_eq!(place(&[0, 10, 10, 5, 30, 0], 30, 15), Ok(vec![segment(0, 15, 512)]));
        assert_eq!(place(&[], 30, 0), Ok(vec![]));
        assert_eq!(place(&[1 << 62, 0], 1 << 62, 0), Ok(vec![]));
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let cases: [(&[u64], u64, u64); 9] = [
            (&[0, 10, 5, 10], 30, 20),
            (&[10, 5, 0, 5], 30, 10),
            (&[20, 11], 30, 11),
            (&[u64::MAX, 2], 30, 2),
            (&[u64::MAX - 1, u64::MAX], u64::MAX, u64::MAX),
            (&[0, 10], 30, 5),
            (&[0, 10], 30, 15),
            (&[0], 30, 0),
            (&[0, 0, 31, 0], 30, 0),
        ];
        for (numbers, size, stored) in cases {
            assert!(matches!(place(numbers, size, stored), Err(Problem::Sparse(_))), "{numbers:?} {size} {stored}");
        }
    }

    #[test]
    fn a_map_at_the_head_of_the_data_may_span_blocks() {
        let text: String = std::iter::once(200).chain(0..400).map(|number| format!("{number}\n")).collect();
        let mut bytes = text.into_bytes();
        let length = bytes.len().next_multiple_of(BLOCK);
        bytes.resize(length, 0);
        let mut map = HeadMap::new();
        let done: Vec<bool> = bytes.as_chunks().0.iter().map(|block| map.add_block(block).unwrap()).collect();
        assert_eq!(done, [false, false, true]);
        assert_eq!(map.into_map().0, (0..400).collect::<Vec<u64>>());
    }

    #[test]
    fn heads_that_are_no_maps_are_refused() {
        for head in ["x\n", "\n", "-1\n", "1\n0\nx\n", "123456789012345678901", "18446744073709551615\n"] {
            let mut block = [0; BLOCK];
            block[..head.len()].copy_from_slice(head.as_bytes());
            assert!(HeadMap::new().add_block(&block).is_err(), "{head:?}");
        }
    }
}
