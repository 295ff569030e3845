//! An image as lower: one merged index, with the bytes in the layers' tars.
//!
//! A node's inode number is its slot in the index plus one, so nothing has to be remembered to serve it: only how often
//! the kernel has been told about it, which decides when the upper's side of a node may be dropped.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use strata_layer::DiffId;
use strata_layer::index::{Extent, Extents, Index, IndexError, NodeId};

use super::{Left, LowerChild, Place};
use crate::Result;
use crate::marks::LayerId;
use crate::node::{Ino, Kind, Stat};
use crate::objects::LazyObjectMount;
use crate::source::{LayerData, LayerSource};
use crate::spec::ImageLayer;
use crate::tree::Usage;

/// The layers of an image below one merged index.
#[derive(Debug)]
pub(crate) struct ImageLower {
    id: LayerId,
    index: Index,
    /// Where the bytes are, by layer.
    data: Vec<LayerData>,
    /// The same files for the kernel to open, by layer. Empty where nobody asks.
    objects: Vec<LazyObjectMount>,
    /// What the kernel knows, by slot. Empty where nobody asks.
    known: Box<[Known]>,
}

/// What the kernel has been told about a node.
#[derive(Debug, Default)]
struct Known {
    /// How often.
    references: AtomicU32,
    /// The slot of the directory where it was found last.
    parent: AtomicU32,
}

/// A run of a file's bytes, by the digest of the tar that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerBytes {
    layer: DiffId,
    source: u64,
    offset: u64,
    length: u64,
}

/// Why an image cannot be used as lower.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the store cannot be opened.
    #[error("open {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The merged index cannot be used.
    #[error("read the index {path:?}")]
    Index {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: IndexError,
    },
    /// The index was made of another number of layers.
    #[error("the index {path:?} is of {expected} layers, {found} are given")]
    LayerCount {
        /// The index.
        path: PathBuf,
        /// What it says.
        expected: usize,
        /// What the caller gave.
        found: usize,
    },
}

impl ImageLower {
    /// Opens the index and the tars. `counted` says whether references matter, as they do below an upper.
    pub(crate) fn open(index: &Path, layers: &[ImageLayer], counted: bool) -> Result<ImageLower, ImageError> {
        let open = |path: &Path| File::open(path).map_err(|source| ImageError::Open { path: path.to_owned(), source });
        let path = index;
        let index = Index::open(&open(path)?).map_err(|source| ImageError::Index { path: path.to_owned(), source })?;
        let expected = usize::from(index.layer_count());
        if expected != layers.len() {
            return Err(ImageError::LayerCount { path: path.to_owned(), expected, found: layers.len() });
        }
        let data = |layer: &ImageLayer| {
            let absent = layer.absent.as_ref().map_or(Ok(None), LayerData::of_absent);
            match absent.map_err(|source| ImageError::Open { path: layer.tar.clone(), source })? {
                Some(source) => Ok(source),
                None => open(&layer.tar).map(LayerData::Tar),
            }
        };
        let data = layers.iter().map(data).collect::<Result<_, _>>()?;
        let objects = layers.iter().map(|layer| LazyObjectMount::new(layer.into())).collect();
        Ok(ImageLower { objects, ..ImageLower::new(index, data, counted) })
    }

    /// Makes a lower from what is open already.
    pub(crate) fn new(index: Index, data: Vec<LayerData>, counted: bool) -> ImageLower {
        let slots = if counted { index.inode_count() as usize } else { 0 };
        let known = std::iter::repeat_with(Known::default).take(slots).collect();
        ImageLower { id: LayerId::of_bytes(&index.checksum()), index, data, objects: Vec::new(), known }
    }

    /// Returns what tells this image from others.
    pub(crate) fn id(&self) -> LayerId {
        self.id
    }

    /// Returns the number of slots, which is the highest inode number.
    pub(crate) fn highest_ino(&self) -> u64 {
        self.index.inode_count().into()
    }

    pub(crate) fn contains(&self, ino: Ino) -> bool {
        (1..=self.highest_ino()).contains(&ino.0)
    }

    pub(crate) fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<(Ino, Kind)>> {
        Ok(self.index.lookup_child(slot(dir)?, name).map(|child| (ino(child.node), child.kind)))
    }

    pub(crate) fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        Ok(self.index.lookup(slot(dir)?, name).map(ino))
    }

    pub(crate) fn stat(&self, ino: Ino) -> Result<Stat> {
        let node = slot(ino)?;
        let attributes = self.index.attributes(node).ok_or(Errno::STALE)?;
        let (size, blocks) = match attributes.kind {
            Kind::Directory => (4096, 8),
            Kind::Regular => (attributes.size, blocks(self.index.extents(node))),
            _ => (attributes.size, 0),
        };
        Ok(Stat {
            ino,
            kind: attributes.kind,
            permissions: attributes.permissions,
            nlink: attributes.nlink,
            uid: attributes.uid,
            gid: attributes.gid,
            size,
            blocks,
            block_size: 4096,
            device: attributes.device,
            atime: attributes.mtime,
            mtime: attributes.mtime,
            ctime: attributes.mtime,
            birth: None,
        })
    }

    pub(crate) fn parent(&self, dir: Ino) -> Option<Ino> {
        if dir == Ino::ROOT {
            return Some(dir);
        }
        self.index.parent(slot(dir).ok()?).map(ino)
    }

    /// Returns where the node was found last: looks for it in that directory.
    pub(crate) fn place(&self, ino: Ino) -> Option<Place> {
        let node = slot(ino).ok()?;
        let found = |parent: NodeId| {
            let child = self.index.children(parent).find(|child| child.node == node)?;
            Some(Place { parent: self::ino(parent), name: child.name.to_vec() })
        };
        match self.index.parent(node) {
            Some(parent) => found(parent),
            None => {
                let last = NodeId::from_u32(self.known(ino)?.parent.load(Ordering::Relaxed));
                // Who comes with a number from before the mount has not looked it up.
                found(last).or_else(|| (0..self.index.inode_count()).map(NodeId::from_u32).find_map(found))
            }
        }
    }

    pub(crate) fn child_count(&self, dir: Ino) -> Result<u64> {
        Ok(self.index.children(slot(dir)?).len() as u64)
    }

    pub(crate) fn for_each_child(
        &self,
        dir: Ino,
        position: u64,
        visit: &mut dyn FnMut(LowerChild<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let Ok(skip) = u32::try_from(position) else { return Ok(()) };
        let children = self.index.children(slot(dir)?).skip_to(skip);
        for (position, child) in (position..).zip(children) {
            let child = LowerChild { position, name: child.name, ino: ino(child.node), kind: child.kind };
            if visit(child).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.index.symlink_target(slot(ino)?).map(<[u8]>::to_vec).ok_or(Errno::INVAL)
    }

    pub(crate) fn for_each_xattr(&self, ino: Ino, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        for (name, value) in self.index.xattrs(slot(ino)?) {
            visit(name, value);
        }
        Ok(())
    }

    pub(crate) fn read_at(&self, ino: Ino, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let node = slot(ino)?;
        let size = self.index.attributes(node).ok_or(Errno::STALE)?.size;
        let length = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..length];
        buffer.fill(0);
        let end = offset.saturating_add(length as u64);
        for extent in self.index.extents(node).skip_to(offset) {
            let from = extent.offset.max(offset);
            let to = extent.offset.saturating_add(extent.length).min(end);
            if from >= to {
                break;
            }
            let within =
                |position: u64| usize::try_from(position - offset).expect("at most `length`, which is a usize");
            let (start, stop) = (within(from), within(to));
            let source = extent.source.checked_add(from - extent.offset).ok_or(Errno::IO)?;
            // A tar that is shorter than its index says is damage, not the end of the file.
            let piece = &mut buffer[start..stop];
            let read = match self.data(&extent)? {
                LayerData::Tar(tar) => tar.read_exact_at(piece, source),
                LayerData::Source(layer) => layer.read_exact_at(piece, source),
            };
            read.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
        }
        Ok(length)
    }

    /// Returns whether all layers are here, as those of most images are.
    pub(crate) fn is_whole(&self) -> bool {
        !self.data.iter().any(|data| matches!(data, LayerData::Source(_)))
    }

    /// Returns whether reading these bytes of a file would not wait for them to be fetched.
    pub(crate) fn is_here(&self, ino: Ino, offset: u64, length: u64) -> bool {
        if self.is_whole() {
            return true;
        }
        let Ok(node) = slot(ino) else { return true };
        let end = offset.saturating_add(length);
        self.index.extents(node).skip_to(offset).take_while(|extent| extent.offset < end).all(|extent| {
            let from = extent.offset.max(offset);
            let to = extent.offset.saturating_add(extent.length).min(end);
            let source = extent.source.saturating_add(from - extent.offset);
            from >= to || self.data(&extent).is_ok_and(|data| data.is_here(source, to - from))
        })
    }

    /// Returns where a file's data lies, in terms that mean the same in every image.
    pub(crate) fn data_in_layers(&self, ino: Ino) -> Option<Vec<LayerBytes>> {
        let place = |extent: Extent| {
            let layer = self.index.layer(extent.layer)?.diff_id;
            Some(LayerBytes { layer, source: extent.source, offset: extent.offset, length: extent.length })
        };
        self.index.extents(slot(ino).ok()?).map(place).collect()
    }

    pub(crate) fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        let node = slot(ino)?;
        let size = self.index.attributes(node).ok_or(Errno::STALE)?.size;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let mut position = offset;
        for extent in self.index.extents(node).skip_to(offset) {
            let end = extent.offset.saturating_add(extent.length);
            if end <= position {
                continue;
            }
            match (data, extent.offset <= position) {
                (true, inside) => return Ok(if inside { position } else { extent.offset.min(size) }),
                (false, true) => position = end,
                (false, false) => break,
            }
        }
        if data { Err(Errno::NXIO) } else { Ok(position.min(size)) }
    }

    pub(crate) fn copy_data(&self, ino: Ino, to: BorrowedFd<'_>, length: u64) -> Result<()> {
        rustix::fs::ftruncate(to, length)?;
        for extent in self.index.extents(slot(ino)?) {
            let wanted = length.saturating_sub(extent.offset).min(extent.length);
            match self.data(&extent)? {
                LayerData::Tar(tar) => {
                    crate::copy::copy_range(tar.as_fd(), extent.source, to, extent.offset, wanted)?;
                }
                LayerData::Source(layer) => copy_from_source(&**layer, &extent, to, wanted)?,
            }
        }
        Ok(())
    }

    pub(crate) fn open_object(&self, ino: Ino) -> Option<OwnedFd> {
        let object = self.index.object(slot(ino).ok()?)?;
        // What is fetched while it is read, the kernel cannot read by itself.
        self.data.get(usize::from(object.layer)).filter(|data| data.is_whole())?;
        let mount = self.objects.get(usize::from(object.layer))?.get().ok()?;
        match mount.open_object(object.nid) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::debug!(?object, %error, "cannot open an object, reading the tar instead");
                None
            }
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let blocks = self.index.total_size().div_ceil(4096);
        Usage { blocks, free: 0, available: 0, files: self.highest_ino(), free_files: 0, block_size: 4096 }
    }

    pub(crate) fn remember(&self, ino: Ino, parent: Ino, _name: &[u8]) -> Result<()> {
        if let Some(known) = self.known(ino) {
            known.parent.store(slot(parent)?.as_u32(), Ordering::Relaxed);
            known.references.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    pub(crate) fn restore_references(&self, ino: Ino, references: u64) {
        if let Some(known) = self.known(ino) {
            known.references.store(u32::try_from(references).unwrap_or(u32::MAX), Ordering::Release);
        }
    }

    pub(crate) fn forget(&self, ino: Ino, count: u64) -> Left {
        let Some(known) = self.known(ino) else { return Left::Held };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let before = known
            .references
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| Some(held.saturating_sub(count)))
            .unwrap_or_else(|held| held);
        if before <= count { Left::Nobody { parent: None } } else { Left::Held }
    }

    fn known(&self, ino: Ino) -> Option<&Known> {
        self.known.get(usize::try_from(ino.0.checked_sub(1)?).ok()?)
    }

    fn data(&self, extent: &Extent) -> Result<&LayerData> {
        self.data.get(usize::from(extent.layer)).ok_or(Errno::IO)
    }
}

/// Copies data of a layer that is not whole.
fn copy_from_source(layer: &dyn LayerSource, extent: &Extent, to: BorrowedFd<'_>, length: u64) -> Result<()> {
    let mut buffer = vec![0; COPIED.min(usize::try_from(length).unwrap_or(COPIED))];
    let mut done = 0;
    while done < length {
        let step = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        let source = extent.source.checked_add(done).ok_or(Errno::IO)?;
        let read = layer.read_exact_at(&mut buffer[..step], source);
        read.map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
        let mut written = 0;
        while written < step {
            written += rustix::io::pwrite(to, &buffer[written..step], extent.offset + done + written as u64)?;
        }
        done += step as u64;
    }
    Ok(())
}

/// Bytes copied at a time from a layer that is not whole.
const COPIED: usize = 1 << 20;

/// Returns how much of a file is data, in units of 512 bytes.
fn blocks(extents: Extents<'_>) -> u64 {
    extents.fold(0, |sum: u64, extent| sum.saturating_add(extent.length.div_ceil(512)))
}

fn ino(node: NodeId) -> Ino {
    Ino(u64::from(node.as_u32()) + 1)
}

fn slot(ino: Ino) -> Result<NodeId> {
    let number = ino.0.checked_sub(1).and_then(|number| u32::try_from(number).ok());
    number.map(NodeId::from_u32).ok_or(Errno::STALE)
}
