//! Listing what an index describes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::{Escaped, Facts, ListingError, Options, join, path_or_dot};
use crate::Digest;
use crate::index::{Extent, Index, Kind, NodeId};

/// Lists the tree of an index of one layer or of a merged one. `tars` are the tars of its layers, bottom first; they are
/// not looked at if the options want no contents.
pub fn list_index(index: &Index, tars: &[File], options: &Options) -> Result<String, ListingError> {
    let mut walk = Walk { index, tars, options, text: String::new(), seen: HashMap::new() };
    walk.visit(NodeId::ROOT, Vec::new())?;
    Ok(walk.text)
}

struct Walk<'a> {
    index: &'a Index,
    tars: &'a [File],
    options: &'a Options,
    text: String,
    /// First path of every file that has several.
    seen: HashMap<NodeId, Vec<u8>>,
}

impl Walk<'_> {
    /// Lists everything from the directory `root` on. Not by recursion: depth is the image's choice.
    fn visit(&mut self, root: NodeId, path: Vec<u8>) -> Result<(), ListingError> {
        let mut pending = vec![(Some(root), path)];
        // A damaged index can have a directory below itself.
        let mut left = u64::from(self.index.entry_count()) + 1;
        while let Some((node, path)) = pending.pop() {
            left = left.checked_sub(1).ok_or_else(|| damaged(&path))?;
            let Some(node) = node else {
                self.text += &format!("{} whiteout\n", Escaped(&path));
                continue;
            };
            let facts = self.describe(node, &path)?;
            facts.write(&mut self.text, &path);
            if facts.kind == Kind::Directory {
                let children = self.index.children(node).rev();
                pending
                    .extend(children.map(|child| ((!child.whiteout).then_some(child.node), join(&path, child.name))));
            }
        }
        Ok(())
    }

    fn describe(&mut self, node: NodeId, path: &[u8]) -> Result<Facts, ListingError> {
        let attributes = self.index.attributes(node).ok_or_else(|| damaged(path))?;
        let is_directory = attributes.kind == Kind::Directory;
        let mut same = None;
        if !is_directory && attributes.nlink > 1 {
            let first = self.seen.entry(node).or_insert_with(|| path.to_vec());
            same = (first != path).then(|| first.clone());
        }
        let digest = match attributes.kind {
            Kind::Regular if self.options.contents => Some(self.digest(node, attributes.size, path)?),
            _ => None,
        };
        let marks = [(self.index.is_opaque(node), "opaque"), (self.index.is_implicit(node), "implicit")];
        let xattrs = self.index.xattrs(node).filter(|(name, _)| (self.options.keep_xattr)(name));
        Ok(Facts {
            kind: attributes.kind,
            permissions: attributes.permissions,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            size: attributes.size,
            nlink: attributes.nlink.into(),
            device: attributes.device,
            target: self.index.symlink_target(node).unwrap_or_default().to_vec(),
            same,
            entry_type: None,
            marks: marks.into_iter().filter_map(|(set, mark)| (set && is_directory).then_some(mark)).collect(),
            digest,
            xattrs: xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        })
    }

    /// Digests the content of a file, holes as zeros.
    fn digest(&self, node: NodeId, size: u64, path: &[u8]) -> Result<Digest, ListingError> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut at = 0;
        for extent in self.index.extents(node) {
            let end = extent.offset.checked_add(extent.length).filter(|end| extent.offset >= at && *end <= size);
            let end = end.ok_or_else(|| damaged(path))?;
            zeros(&mut hasher, extent.offset - at);
            let tar = self.tars.get(usize::from(extent.layer)).ok_or_else(|| damaged(path))?;
            copy(&mut hasher, &mut buffer, tar, &extent).map_err(|source| ListingError::Io {
                operation: "read from the tar",
                path: to_path(path),
                source,
            })?;
            at = end;
        }
        zeros(&mut hasher, size - at);
        Ok(Digest::from_bytes(hasher.finalize().into()))
    }
}

fn copy(hasher: &mut Sha256, buffer: &mut [u8], tar: &File, extent: &Extent) -> io::Result<()> {
    let mut done = 0;
    while done < extent.length {
        let length = chunk(extent.length - done);
        tar.read_exact_at(&mut buffer[..length], extent.source + done)?;
        hasher.update(&buffer[..length]);
        done += length as u64;
    }
    Ok(())
}

fn zeros(hasher: &mut Sha256, mut length: u64) {
    while length > 0 {
        let step = chunk(length);
        hasher.update(&ZEROS[..step]);
        length -= step as u64;
    }
}

fn chunk(length: u64) -> usize {
    usize::try_from(length).unwrap_or(BUFFER).min(BUFFER)
}

fn damaged(path: &[u8]) -> ListingError {
    ListingError::Damaged { path: to_path(path) }
}

fn to_path(path: &[u8]) -> PathBuf {
    std::ffi::OsString::from_vec(path_or_dot(path).to_vec()).into()
}

const BUFFER: usize = 64 * 1024;
static ZEROS: [u8; BUFFER] = [0; BUFFER];
