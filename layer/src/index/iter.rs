//! Iterators over the parts of a node.

use std::iter::FusedIterator;
use std::ops::Range;

use zerocopy::FromBytes as _;

use super::format::{ExtentRecord, NO_NODE, XattrHeader};
use super::reader::Index;
use super::types::{Extent, Kind, NodeId};

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The node; not a valid one for a whiteout.
    pub node: NodeId,
    /// The type; of no meaning for a whiteout.
    pub kind: Kind,
    /// The entry says that the layers below have nothing of this name. Only in the index of a single layer.
    pub whiteout: bool,
}

/// The entries of a directory, sorted by name.
///
/// The place of an entry in this order is its *position*, counted from 0; it never changes and serves as a cookie.
/// On a damaged index an entry can have an empty name.
#[derive(Clone, Debug)]
pub struct Children<'a> {
    index: &'a Index,
    directory: NodeId,
    /// Number of the directory's first entry.
    first: u32,
    rest: Range<u32>,
}

impl<'a> Children<'a> {
    pub(super) fn new(index: &'a Index, directory: NodeId, rest: Range<u32>) -> Children<'a> {
        Children { index, directory, first: rest.start, rest }
    }

    /// Goes to the entry at `position` of the whole directory, or to the end if there is none.
    #[must_use = "the iterator that starts there is returned"]
    pub fn skip_to(mut self, position: u32) -> Children<'a> {
        self.rest.start = self.first.saturating_add(position).min(self.rest.end);
        self
    }

    /// Returns the position of the entry that comes next.
    pub fn position(&self) -> u32 {
        self.rest.start - self.first
    }

    fn child(&self, number: u32) -> Child<'a> {
        self.index.child(self.directory, number).unwrap_or(Child {
            name: &[],
            node: NodeId::from_u32(NO_NODE),
            kind: Kind::Regular,
            whiteout: false,
        })
    }
}

impl<'a> Iterator for Children<'a> {
    type Item = Child<'a>;

    fn next(&mut self) -> Option<Child<'a>> {
        self.rest.next().map(|number| self.child(number))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rest.size_hint()
    }

    fn nth(&mut self, n: usize) -> Option<Child<'a>> {
        self.rest.nth(n).map(|number| self.child(number))
    }
}

impl DoubleEndedIterator for Children<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.rest.next_back().map(|number| self.child(number))
    }
}

impl ExactSizeIterator for Children<'_> {}
impl FusedIterator for Children<'_> {}

/// The extended attributes of a node: names and values, sorted by name.
#[derive(Clone, Debug)]
pub struct Xattrs<'a>(&'a [u8]);

impl<'a> Xattrs<'a> {
    pub(super) fn new(set: &'a [u8]) -> Xattrs<'a> {
        Xattrs(set)
    }

    /// Returns whether nothing is left, as opposed to something that is no attribute.
    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, rest) = XattrHeader::ref_from_prefix(self.0).ok()?;
        let (name, rest) = rest.split_at_checked(header.name_length.get().into())?;
        let (value, rest) = rest.split_at_checked(header.value_length.get() as usize)?;
        self.0 = rest;
        Some((name, value))
    }
}

/// Where the bytes of a file lie, in file order.
#[derive(Clone, Debug)]
pub struct Extents<'a> {
    layer: u16,
    contiguous: Option<Extent>,
    records: &'a [ExtentRecord],
}

impl<'a> Extents<'a> {
    pub(super) fn none() -> Extents<'a> {
        Extents { layer: 0, contiguous: None, records: &[] }
    }

    pub(super) fn contiguous(layer: u16, length: u64, source: u64) -> Extents<'a> {
        let extent = Extent { offset: 0, length, layer, source };
        Extents { layer, contiguous: (length > 0).then_some(extent), records: &[] }
    }

    pub(super) fn mapped(layer: u16, records: &'a [ExtentRecord]) -> Extents<'a> {
        Extents { layer, contiguous: None, records }
    }

    /// Goes to the first extent that ends behind `offset`.
    #[must_use = "the iterator that starts there is returned"]
    pub fn skip_to(mut self, offset: u64) -> Extents<'a> {
        let ends_before = |extent_offset: u64, length: u64| extent_offset.saturating_add(length) <= offset;
        self.contiguous = self.contiguous.filter(|extent| !ends_before(extent.offset, extent.length));
        let skip = self.records.partition_point(|record| ends_before(record.offset.get(), record.length.get()));
        self.records = &self.records[skip..];
        self
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if let Some(extent) = self.contiguous.take() {
            return Some(extent);
        }
        let (record, rest) = self.records.split_first()?;
        self.records = rest;
        Some(Extent {
            offset: record.offset.get(),
            length: record.length.get(),
            layer: self.layer,
            source: record.source.get(),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let length = self.records.len() + usize::from(self.contiguous.is_some());
        (length, Some(length))
    }
}

impl ExactSizeIterator for Extents<'_> {}
impl FusedIterator for Extents<'_> {}
