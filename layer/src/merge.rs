//! Stacking: the indexes of several layers become one, with nothing left to resolve.
//!
//! The rules, from the top layer down, for one name:
//! - a whiteout or anything that is no directory ends the search: what is below is hidden;
//! - directories are joined, until one is opaque; attributes are those of the first that is not implicit;
//! - a directory with nothing but markers in it does not make a directory and does not hide a file;
//! - a hard link to a path that its layer does not have is one more name of what the layers below had there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter::Peekable;

use zerocopy::little_endian::{U16, U32};

use crate::index::format::{
    FLAG_BARE, FLAG_EXTENT_TABLE, FLAG_FOREIGN_LINK, FLAG_IMPLICIT, FLAG_OPAQUE, InodeRecord, pair,
};
use crate::index::writer::Writer;
use crate::index::{Child, Children, Index, IndexFull, Kind, NewIndex, NodeId, TableError, implicit_directory};
use crate::table::{Bits, Scratch, Table};
use crate::{path, tar};

/// Merges layers, bottom first, into the bytes of one index.
///
/// A merged index can itself stand in the place of the layers it was made of. The layers of the result are numbered in
/// order: those of the first index, then those of the second, and so on. The same layers always give the same bytes.
pub fn merge(layers: &[&Index]) -> Result<Vec<u8>, MergeError> {
    Ok(merge_index(layers, None)?.into_bytes()?)
}

/// Merges layers as [`merge`] does, without holding the result in memory where it is larger than `scratch` allows.
pub fn merge_index(layers: &[&Index], scratch: Option<&Scratch>) -> Result<NewIndex, MergeError> {
    u16::try_from(layers.len()).map_err(|_| MergeError::TooManyLayers)?;
    let mut first_layer = Vec::new();
    let mut count = 0u16;
    for index in layers {
        first_layer.push(count);
        count = count.checked_add(index.layer_count()).ok_or(MergeError::TooManyLayers)?;
    }
    let numbered = layers.iter().flat_map(|index| (0..index.layer_count()).filter_map(|layer| index.layer(layer)));
    let entries: u64 = layers.iter().map(|index| u64::from(index.entry_count())).sum();
    let scratch = scratch.filter(|scratch| entries.saturating_mul(BYTES_PER_ENTRY) > scratch.limit() as u64);
    let mut writer = Writer::new(numbered, scratch)?;
    let largest = |count: fn(&Index) -> u32| layers.iter().map(|index| count(index) as usize).max().unwrap_or(0);
    writer.reserve(largest(Index::inode_count), largest(Index::entry_count));
    let mut merger = Merger {
        layers,
        first_layer,
        writer,
        links: ForeignLinks::resolve(layers, scratch)?,
        numbers: layers.iter().map(|_| None).collect(),
        queue: Table::new(scratch)?,
        queue_start: 0,
        budget: entries,
        since_forgotten: 0,
        scratch,
    };
    merger.run()?;
    Ok(merger.writer.finish()?)
}

struct Merger<'a> {
    layers: &'a [&'a Index],
    /// The number in the result of each index's first layer.
    first_layer: Vec<u16>,
    writer: Writer,
    links: ForeignLinks,
    /// For each index, the numbers plus 1 of inodes that have or may get several names, 0 for none yet.
    numbers: Vec<Option<Table<u32>>>,
    /// The directories that are to be filled: for each its number and how many make it up, then those, top first.
    queue: Table<u64>,
    /// Where the next one is in the queue.
    queue_start: usize,
    /// Entries that may still be looked at. Each is looked at once, unless an index is damaged.
    budget: u64,
    /// How many were looked at since what was read of the indexes was given back.
    since_forgotten: u64,
    scratch: Option<&'a Scratch>,
}

/// A node of one of the indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    /// Which index, bottom 0.
    index: u16,
    node: NodeId,
}

impl Source {
    /// One number for both, never 0.
    fn pack(self) -> u64 {
        (u64::from(self.index) + 1) << 32 | u64::from(self.node.as_u32())
    }

    fn unpack(packed: u64) -> Option<Source> {
        let index = u16::try_from((packed >> 32).checked_sub(1)?).ok()?;
        #[expect(clippy::cast_possible_truncation, reason = "takes the number apart")]
        let node = NodeId::from_u32(packed as u32);
        Some(Source { index, node })
    }
}

/// What the entries of one name come to.
enum Merged {
    Nothing,
    /// No directory.
    Leaf(Source, Kind),
    /// A directory with these attributes; what it is made up of was added to the list.
    Directory(Source),
}

impl<'a> Merger<'a> {
    fn run(&mut self) -> Result<(), MergeError> {
        let mut contributors = Vec::new();
        let root = match select(self.layers, roots(self.layers.len()), &mut contributors) {
            Merged::Directory(attributes) => self.directory(attributes, 0)?,
            // No layers at all.
            _ => self.writer.add_inode(InodeRecord { flags: U16::ZERO, ..implicit_directory(0) })?,
        };
        self.enqueue(root, &contributors)?;
        while let Some(number) = self.dequeue(&mut contributors)? {
            let first = self.writer.entry_count();
            let subdirectories = self.fill(number, &contributors)?;
            let count = self.writer.entry_count() - first;
            let entry_number = |count: usize| u32::try_from(count).map_err(|_| IndexFull);
            let payload = pair(entry_number(first)?, entry_number(count)?);
            self.writer.update_inode(number, |inode| {
                inode.payload = payload;
                inode.nlink = U32::new(2 + subdirectories);
            })?;
        }
        Ok(())
    }

    /// Puts a directory at the end of the queue.
    fn enqueue(&mut self, number: u32, contributors: &[Source]) -> Result<(), MergeError> {
        self.queue.push(u64::from(number) | (contributors.len() as u64) << 32)?;
        for source in contributors {
            self.queue.push(source.pack())?;
        }
        Ok(())
    }

    /// Takes the first directory out of the queue.
    fn dequeue(&mut self, contributors: &mut Vec<Source>) -> Result<Option<u32>, MergeError> {
        contributors.clear();
        if self.queue_start == self.queue.len() {
            return Ok(None);
        }
        let head = self.queue.get(self.queue_start)?;
        self.queue_start += 1;
        for _ in 0..head >> 32 {
            contributors.extend(Source::unpack(self.queue.get(self.queue_start)?));
            self.queue_start += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "takes the number apart")]
        let number = head as u32;
        Ok(Some(number))
    }

    /// Adds what is in a directory, and returns how many directories that are.
    fn fill(&mut self, number: u32, contributors: &[Source]) -> Result<u32, MergeError> {
        let mut all = 0;
        for source in contributors {
            let count = self.layers[usize::from(source.index)].children(source.node).len() as u64;
            self.budget = self.budget.checked_sub(count).ok_or_else(|| self.damaged(*source))?;
            all += count;
        }
        let mut subdirectories = 0;
        if all > LARGE {
            return self.fill_large(number, contributors);
        }
        let mut entries: Vec<(u16, Child<'a>)> = Vec::with_capacity(usize::try_from(all).unwrap_or(0));
        for source in contributors {
            let children = self.layers[usize::from(source.index)].children(source.node);
            entries.extend(children.map(|child| (source.index, child)));
        }
        if contributors.len() > 1 {
            // Made of sorted runs, and stable: entries of one name stay in the order of their layers.
            entries.sort_by_key(|(_, child)| child.name);
        }
        for group in entries.chunk_by(|(_, a), (_, b)| a.name == b.name) {
            subdirectories += u32::from(self.add_name(number, group)?);
            self.looked_at(group.len() as u64);
        }
        Ok(subdirectories)
    }

    /// The same for a directory whose entries are too many to be held at once.
    fn fill_large(&mut self, number: u32, contributors: &[Source]) -> Result<u32, MergeError> {
        let children =
            |source: &Source| (source.index, self.layers[usize::from(source.index)].children(source.node).peekable());
        let mut left: Vec<_> = contributors.iter().map(children).collect();
        // The first name of each that has any left: the least first, and of one name the topmost.
        let first = |(place, (_, children)): (usize, &mut (u16, Peekable<Children<'a>>))| {
            Some(Reverse((children.peek()?.name, place)))
        };
        let mut heads: BinaryHeap<_> = left.iter_mut().enumerate().filter_map(first).collect();
        let mut group = Vec::new();
        let mut subdirectories = 0;
        while let Some(Reverse((name, _))) = heads.peek().copied() {
            group.clear();
            while heads.peek().is_some_and(|Reverse((next, _))| *next == name) {
                let Some(Reverse((_, place))) = heads.pop() else { break };
                let (index, children) = &mut left[place];
                group.extend(children.next().map(|child| (*index, child)));
                heads.extend(children.peek().map(|child| Reverse((child.name, place))));
            }
            subdirectories += u32::from(self.add_name(number, &group)?);
            self.looked_at(group.len() as u64);
        }
        Ok(subdirectories)
    }

    /// Gives back what was read of large indexes, now and then.
    fn looked_at(&mut self, entries: u64) {
        self.since_forgotten += entries;
        if self.scratch.is_some() && self.since_forgotten > FORGET {
            self.layers.iter().for_each(|index| index.forget());
            self.since_forgotten = 0;
        }
    }

    /// Adds what the entries of one name, top first, come to, and returns whether that is a directory.
    fn add_name(&mut self, parent: u32, entries: &[(u16, Child<'a>)]) -> Result<bool, MergeError> {
        let (index, Child { name, node, .. }) = entries[0];
        if name.is_empty() {
            return Err(self.damaged(Source { index, node }));
        }
        let mut contributors = Vec::new();
        match select(self.layers, entries.iter().copied(), &mut contributors) {
            Merged::Nothing => Ok(false),
            Merged::Leaf(source, kind) => {
                let (number, kind) = self.leaf(source, kind)?;
                self.writer.add_entry(name, number, Some(kind))?;
                Ok(false)
            }
            Merged::Directory(attributes) => {
                let child = self.directory(attributes, parent)?;
                self.writer.add_entry(name, child, Some(Kind::Directory))?;
                self.enqueue(child, &contributors)?;
                Ok(true)
            }
        }
    }

    fn damaged(&self, source: Source) -> MergeError {
        MergeError::Damaged { layer: self.first_layer[usize::from(source.index)] }
    }

    /// Adds a directory and returns its number.
    fn directory(&mut self, attributes: Source, parent: u32) -> Result<u32, MergeError> {
        let mut inode = self.copy(attributes, Kind::Directory)?;
        inode.flags = U16::ZERO;
        inode.link = U32::new(parent);
        Ok(self.writer.add_inode(inode)?)
    }

    /// Adds a name to anything but a directory and returns its inode's number and kind.
    fn leaf(&mut self, source: Source, kind: Kind) -> Result<(u32, Kind), MergeError> {
        // Whatever is looked up by the node's number from here on is there.
        self.record(source)?;
        let (source, kind) = match self.links.resolved(source)? {
            Some(target) => (target, self.kind(target)?),
            None => (source, kind),
        };
        let record = self.record(source)?;
        let may_be_shared = record.nlink.get() > 1 || self.links.is_target(source);
        if !may_be_shared {
            let inode = self.copy(source, kind)?;
            return Ok((self.writer.add_inode(inode)?, kind));
        }
        let (index, node) = (usize::from(source.index), source.node.as_u32() as usize);
        if self.numbers[index].is_none() {
            self.numbers[index] = Some(Table::filled(self.scratch, self.layers[index].inode_count() as usize, 0)?);
        }
        let known = match &mut self.numbers[index] {
            Some(numbers) => numbers.get(node)?,
            None => 0,
        };
        if let Some(number) = known.checked_sub(1) {
            self.writer.update_inode(number, |inode| inode.nlink += 1)?;
            return Ok((number, kind));
        }
        let inode = self.copy(source, kind)?;
        let number = self.writer.add_inode(inode)?;
        if let Some(numbers) = &mut self.numbers[index] {
            numbers.set(node, number + 1)?;
        }
        Ok((number, kind))
    }

    /// Returns the record of a node with all that it points at moved to the result.
    fn copy(&mut self, source: Source, kind: Kind) -> Result<InodeRecord, MergeError> {
        let index = self.layers[usize::from(source.index)];
        let damaged = || MergeError::Damaged { layer: self.first_layer[usize::from(source.index)] };
        let mut inode = *self.record(source)?;
        let layer = self.first_layer[usize::from(source.index)].checked_add(inode.layer.get()).ok_or_else(damaged)?;
        inode.layer = U16::new(layer);
        inode.nlink = U32::new(1);
        if inode.kind() != Some(kind) || inode.has(FLAG_FOREIGN_LINK) {
            return Err(damaged());
        }
        if kind == Kind::Symlink {
            let target = index.symlink_target(source.node).ok_or_else(damaged)?;
            inode.payload = self.writer.add_target(target)?;
        } else if kind == Kind::Regular && inode.has(FLAG_EXTENT_TABLE) {
            let extents = index.extent_records(&inode).ok_or_else(damaged)?;
            inode.payload = self.writer.add_extents(extents)?;
        }
        inode.xattrs = U32::new(self.writer.add_xattr_set(index.xattr_set(source.node).unwrap_or_default())?);
        Ok(inode)
    }

    fn record(&self, source: Source) -> Result<&'a InodeRecord, MergeError> {
        let layer = self.first_layer[usize::from(source.index)];
        self.layers[usize::from(source.index)].inode(source.node).ok_or(MergeError::Damaged { layer })
    }

    fn kind(&self, source: Source) -> Result<Kind, MergeError> {
        let layer = self.first_layer[usize::from(source.index)];
        self.record(source)?.kind().ok_or(MergeError::Damaged { layer })
    }
}

/// Hard links to files that their own layer does not have.
struct ForeignLinks {
    /// For each index with such links, what each node is a name of, packed; 0 for nothing else than itself.
    resolved: Vec<Option<Table<u64>>>,
    /// For each index, the nodes that links of other layers lead to.
    targets: Vec<Option<Bits>>,
}

impl ForeignLinks {
    fn resolve(layers: &[&Index], scratch: Option<&Scratch>) -> Result<ForeignLinks, MergeError> {
        let none = || layers.iter().map(|_| None);
        let mut links = ForeignLinks { resolved: none().collect(), targets: layers.iter().map(|_| None).collect() };
        // From the bottom up, so that a link to a link finds that one resolved.
        for (number, index) in (0..).zip(layers).filter(|(_, index)| index.foreign_link_count() > 0) {
            links.resolved[usize::from(number)] = Some(Table::filled(scratch, index.inode_count() as usize, 0)?);
            let mut below = Below::new(layers, number);
            let mut all = index.nodes().filter_map(|node| {
                if scratch.is_some() && node.as_u32().is_multiple_of(SCAN) {
                    index.forget();
                }
                Some((index.foreign_link(node)?, node))
            });
            loop {
                let mut foreign: Vec<_> = all.by_ref().take(LINKS_AT_ONCE).collect();
                if foreign.is_empty() {
                    break;
                }
                // Neighbours have most of their way in common.
                foreign.sort_by(|(a, _), (b, _)| path::components(a).cmp(path::components(b)));
                for (place, (target, node)) in foreign.into_iter().enumerate() {
                    if scratch.is_some() && (place as u64).is_multiple_of(FORGET) {
                        layers.iter().for_each(|index| index.forget());
                    }
                    let found = below.find(target).ok_or_else(|| MergeError::LinkTarget {
                        layer: number,
                        entry: index.path_of(node).unwrap_or_default(),
                        target: target.to_vec(),
                    })?;
                    if layers[usize::from(found.index)].inode(found.node).is_none() {
                        return Err(MergeError::Damaged { layer: found.index });
                    }
                    let found = links.resolved(found)?.unwrap_or(found);
                    links.add(Source { index: number, node }, found, layers)?;
                }
            }
        }
        Ok(links)
    }

    /// Notes that a link is a name of `target`, which is never itself such a link.
    fn add(&mut self, link: Source, target: Source, layers: &[&Index]) -> Result<(), MergeError> {
        if let Some(resolved) = &mut self.resolved[usize::from(link.index)] {
            resolved.set(link.node.as_u32() as usize, target.pack())?;
        }
        let index = usize::from(target.index);
        let bits = self.targets[index].get_or_insert_with(|| Bits::new(layers[index].inode_count() as usize));
        bits.set(target.node.as_u32() as usize);
        Ok(())
    }

    /// Returns what a link to another layer's file is a name of.
    fn resolved(&mut self, source: Source) -> Result<Option<Source>, MergeError> {
        match &mut self.resolved[usize::from(source.index)] {
            Some(resolved) => Ok(Source::unpack(resolved.get(source.node.as_u32() as usize)?)),
            None => Ok(None),
        }
    }

    fn is_target(&self, source: Source) -> bool {
        let bits = &self.targets[usize::from(source.index)];
        bits.as_ref().is_some_and(|bits| bits.get(source.node.as_u32() as usize))
    }
}

/// The layers below one, to look up paths in.
struct Below<'a> {
    layers: &'a [&'a Index],
    /// The directories that make up the merged root.
    root: Vec<Source>,
    /// The way to where the last path was looked up: names of directories and what makes them up.
    way: Vec<(&'a [u8], Vec<Source>)>,
}

impl<'a> Below<'a> {
    fn new(layers: &'a [&'a Index], above: u16) -> Below<'a> {
        let mut root = Vec::new();
        select(layers, roots(above.into()), &mut root);
        Below { layers, root, way: Vec::new() }
    }

    /// Returns what is at a path, if it is no directory.
    fn find(&mut self, path: &'a [u8]) -> Option<Source> {
        let mut components = path::components(path);
        let name = components.next_back()?;
        let common = self.way.iter().zip(components.clone()).take_while(|((a, _), b)| a == b).count();
        self.way.truncate(common);
        for component in components.skip(common) {
            let mut directories = Vec::new();
            match self.look_up(component, &mut directories) {
                Merged::Directory(_) => self.way.push((component, directories)),
                _ => return None,
            }
        }
        match self.look_up(name, &mut Vec::new()) {
            Merged::Leaf(source, _) => Some(source),
            _ => None,
        }
    }

    /// Looks up a name where the way ends.
    fn look_up(&self, name: &[u8], contributors: &mut Vec<Source>) -> Merged {
        let directories = self.way.last().map_or(&self.root, |(_, directories)| directories);
        let entries = directories.iter().filter_map(|directory| {
            let index = self.layers[usize::from(directory.index)];
            Some((directory.index, index.lookup_child(directory.node, name)?))
        });
        select(self.layers, entries, contributors)
    }
}

/// Decides what the entries of one name, top first, come to. For a directory, adds what it is made up of.
fn select<'c>(
    layers: &[&Index],
    entries: impl Iterator<Item = (u16, Child<'c>)>,
    contributors: &mut Vec<Source>,
) -> Merged {
    let start = contributors.len();
    let mut explicit = None;
    // The lowest that makes a directory: all implicit ones have the same attributes, and this is where they are from.
    let mut implicit = None;
    let mut opaque = false;
    for (index, child) in entries {
        if child.whiteout {
            break;
        }
        let source = Source { index, node: child.node };
        if child.kind != Kind::Directory {
            if implicit.is_some() {
                break;
            }
            contributors.truncate(start);
            return Merged::Leaf(source, child.kind);
        }
        let Some(inode) = layers[usize::from(index)].inode(child.node) else {
            continue;
        };
        if !inode.has(FLAG_BARE) {
            implicit = Some(source);
        }
        if !opaque {
            contributors.push(source);
        }
        opaque |= inode.has(FLAG_OPAQUE);
        if !inode.has(FLAG_IMPLICIT) {
            explicit.get_or_insert(source);
        }
        // Below an opaque directory only the attributes of an implicit one are still of interest.
        if opaque && explicit.is_some() {
            break;
        }
    }
    match explicit.or(implicit) {
        Some(attributes) => Merged::Directory(attributes),
        None => {
            contributors.truncate(start);
            Merged::Nothing
        }
    }
}

/// Returns the roots of so many layers as entries, top first.
fn roots(count: usize) -> impl Iterator<Item = (u16, Child<'static>)> {
    let root = Child { name: b"", node: NodeId::ROOT, kind: Kind::Directory, whiteout: false };
    // `merge` has checked that there are no more layers than this can count.
    (0..u16::try_from(count).unwrap_or(u16::MAX)).rev().map(move |index| (index, root))
}

/// Why layers cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// More than 65,535.
    #[error("too many layers")]
    TooManyLayers,
    /// An index contradicts itself and should be built anew.
    #[error("index of layer {layer} is damaged")]
    Damaged {
        /// Its position in the stack.
        layer: u16,
    },
    /// A hard link to a path that neither its layer nor those below have, or have as a directory.
    #[error("layer {layer}: target {} of the hard link {} does not exist", tar::Escaped(.target), tar::Escaped(.entry))]
    LinkTarget {
        /// Position of the layer in the stack.
        layer: u16,
        /// The link.
        entry: Vec<u8>,
        /// Where it points to.
        target: Vec<u8>,
    },
    /// The result is too large, or there is no place for it.
    #[error(transparent)]
    Table(TableError),
}

/// Whatever a table cannot hold, for either reason.
impl<E> From<E> for MergeError
where
    TableError: From<E>,
{
    fn from(error: E) -> MergeError {
        MergeError::Table(error.into())
    }
}

/// What an entry takes in memory while indexes are merged.
const BYTES_PER_ENTRY: u64 = 100;
/// Directories with more entries are not held in memory as a whole.
const LARGE: u64 = if cfg!(test) { 2 } else { 1 << 16 };
/// After so many entries, what was read of indexes that are too large for memory is given back. Each may have brought in
/// some 64 KiB, as much as the kernel maps around what is read.
const FORGET: u64 = 512;
/// The same for what is read one after the other.
const SCAN: u32 = 1 << 16;
/// How many links are resolved together.
const LINKS_AT_ONCE: usize = 1 << 16;

#[cfg(test)]
mod tests;
