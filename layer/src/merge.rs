//! Stacking: the indexes of several layers become one, with nothing left to resolve.
//!
//! The rules, from the top layer down, for one name:
//! - a whiteout or anything that is no directory ends the search: what is below is hidden;
//! - directories are joined, until one is opaque; attributes are those of the first that is not implicit;
//! - a directory with nothing but markers in it does not make a directory and does not hide a file;
//! - a hard link to a path that its layer does not have is one more name of what the layers below had there.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use zerocopy::little_endian::{U16, U32};

use crate::index::format::{
    FLAG_BARE, FLAG_EXTENT_TABLE, FLAG_FOREIGN_LINK, FLAG_IMPLICIT, FLAG_OPAQUE, InodeRecord, pair,
};
use crate::index::writer::Writer;
use crate::index::{Child, Index, IndexFull, Kind, NodeId, implicit_directory};
use crate::{path, tar};

/// Merges layers, bottom first, into the bytes of one index.
///
/// A merged index can itself stand in the place of the layers it was made of. The layers of the result are numbered in
/// order: those of the first index, then those of the second, and so on. The same layers always give the same bytes.
pub fn merge(layers: &[&Index]) -> Result<Vec<u8>, MergeError> {
    u16::try_from(layers.len()).map_err(|_| MergeError::TooManyLayers)?;
    let mut first_layer = Vec::new();
    let mut count = 0u16;
    for index in layers {
        first_layer.push(count);
        count = count.checked_add(index.layer_count()).ok_or(MergeError::TooManyLayers)?;
    }
    let numbered = layers.iter().flat_map(|index| (0..index.layer_count()).filter_map(|layer| index.layer(layer)));
    let mut writer = Writer::new(numbered);
    let largest = |count: fn(&Index) -> u32| layers.iter().map(|index| count(index) as usize).max().unwrap_or(0);
    writer.reserve(largest(Index::inode_count), largest(Index::entry_count));
    let mut merger = Merger {
        layers,
        first_layer,
        writer,
        links: ForeignLinks::resolve(layers)?,
        numbers: HashMap::new(),
        contributors: Vec::new(),
        budget: layers.iter().map(|index| u64::from(index.entry_count())).sum(),
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
    /// The numbers of inodes that have or may get several names.
    numbers: HashMap<Source, u32>,
    /// The directories that make up each merged one, top first.
    contributors: Vec<Source>,
    /// Entries that may still be looked at. Each is looked at once, unless an index is damaged.
    budget: u64,
}

/// A node of one of the indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source {
    /// Which index, bottom 0.
    index: u16,
    node: NodeId,
}

/// What the entries of one name come to.
enum Merged {
    Nothing,
    /// No directory.
    Leaf(Source, Kind),
    /// A directory that is made up of these contributors.
    Directory {
        contributors: Range<usize>,
        attributes: Source,
    },
}

impl<'a> Merger<'a> {
    fn run(&mut self) -> Result<(), MergeError> {
        let mut directories = match select(self.layers, roots(self.layers.len()), &mut self.contributors) {
            Merged::Directory { contributors, attributes } => vec![(self.directory(attributes, 0)?, contributors)],
            // No layers at all.
            _ => {
                let root = InodeRecord { flags: U16::ZERO, ..implicit_directory(0) };
                vec![(self.writer.add_inode(root)?, 0..0)]
            }
        };
        let mut scratch = Vec::new();
        let mut filled = 0;
        while let Some((number, contributors)) = directories.get(filled).cloned() {
            filled += 1;
            let first = self.writer.entry_count();
            let mut subdirectories = 0;
            self.collect(contributors, &mut scratch)?;
            for group in scratch.chunk_by(|(_, a), (_, b)| a.name == b.name) {
                let name = group[0].1.name;
                match select(self.layers, group.iter().copied(), &mut self.contributors) {
                    Merged::Nothing => {}
                    Merged::Leaf(source, kind) => {
                        let (number, kind) = self.leaf(source, kind)?;
                        self.writer.add_entry(name, number, Some(kind))?;
                    }
                    Merged::Directory { contributors, attributes } => {
                        let child = self.directory(attributes, number)?;
                        self.writer.add_entry(name, child, Some(Kind::Directory))?;
                        directories.push((child, contributors));
                        subdirectories += 1;
                    }
                }
            }
            let count = self.writer.entry_count() - first;
            let entry_number = |count: usize| u32::try_from(count).map_err(|_| IndexFull);
            let inode = self.writer.inode_mut(number);
            inode.payload = pair(entry_number(first)?, entry_number(count)?);
            inode.nlink = U32::new(2 + subdirectories);
        }
        Ok(())
    }

    /// Gathers the entries of directories, by name, the top layer's first.
    fn collect(&mut self, contributors: Range<usize>, entries: &mut Vec<(u16, Child<'a>)>) -> Result<(), MergeError> {
        entries.clear();
        for source in &self.contributors[contributors.clone()] {
            let children = self.layers[usize::from(source.index)].children(source.node);
            let damaged = MergeError::Damaged { layer: self.first_layer[usize::from(source.index)] };
            let Some(budget) = self.budget.checked_sub(children.len() as u64) else {
                return Err(damaged);
            };
            self.budget = budget;
            for child in children {
                if child.name.is_empty() {
                    return Err(damaged);
                }
                entries.push((source.index, child));
            }
        }
        if contributors.len() > 1 {
            // Made of sorted runs, and stable: entries of one name stay in the order of their layers.
            entries.sort_by_key(|(_, child)| child.name);
        }
        Ok(())
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
        let (source, kind) = match self.links.resolved.get(&source) {
            Some(&target) => (target, self.kind(target)?),
            None => (source, kind),
        };
        let record = self.record(source)?;
        let may_be_shared = record.nlink.get() > 1 || self.links.targets.contains(&source);
        if may_be_shared && let Some(&number) = self.numbers.get(&source) {
            self.writer.inode_mut(number).nlink += 1;
            return Ok((number, kind));
        }
        let inode = self.copy(source, kind)?;
        let number = self.writer.add_inode(inode)?;
        if may_be_shared {
            self.numbers.insert(source, number);
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
#[derive(Default)]
struct ForeignLinks {
    /// What each of them is a name of; never itself such a link.
    resolved: HashMap<Source, Source>,
    targets: HashSet<Source>,
}

impl ForeignLinks {
    fn resolve(layers: &[&Index]) -> Result<ForeignLinks, MergeError> {
        let mut links = ForeignLinks::default();
        // From the bottom up, so that a link to a link finds that one resolved.
        for (number, index) in (0..).zip(layers).filter(|(_, index)| index.foreign_link_count() > 0) {
            let foreign = index.nodes().filter_map(|node| Some((index.foreign_link(node)?, node)));
            let mut foreign: Vec<_> = foreign.collect();
            // Neighbours have most of their way in common.
            foreign.sort_by(|(a, _), (b, _)| path::components(a).cmp(path::components(b)));
            let mut below = Below::new(layers, number);
            for (target, node) in foreign {
                let found = below.find(target).ok_or_else(|| MergeError::LinkTarget {
                    layer: number,
                    entry: index.path_of(node).unwrap_or_default(),
                    target: target.to_vec(),
                })?;
                let found = links.resolved.get(&found).copied().unwrap_or(found);
                links.resolved.insert(Source { index: number, node }, found);
                links.targets.insert(found);
            }
        }
        Ok(links)
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
                Merged::Directory { .. } => self.way.push((component, directories)),
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
        Some(attributes) => Merged::Directory { contributors: start..contributors.len(), attributes },
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
    /// The result is too large.
    #[error(transparent)]
    Full(#[from] IndexFull),
}

#[cfg(test)]
mod tests;
