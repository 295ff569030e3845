//! Building the index of one layer from its entries, in whatever order they come.

use zerocopy::FromZeros as _;
use zerocopy::little_endian::{I64, U16, U32, U64};

use super::draft_names::{DraftName, DraftNames};
use super::format::{
    ExtentRecord, FLAG_EXTENT_TABLE, FLAG_FOREIGN_LINK, FLAG_IMPLICIT, FLAG_OPAQUE, InodeRecord, NO_NODE, NO_XATTRS,
    pair,
};
use super::types::{Device, Kind, Timestamp};
use super::writer::{IndexFull, TableError, xattr_set};
use crate::objects::Segment;
use crate::path::{self, InvalidPath};
use crate::table::{Claim, Scratch, ScratchError, Table};

/// Collects the entries of a layer.
///
/// The rules are those of unpacking the entries one after the other: the last entry of a path wins, a directory over a
/// directory keeps what is in it, anything else over a directory removes that. Markers concern the layers below and do
/// not depend on the order. Directories that are used but never added are *implicit*.
#[derive(Debug)]
pub struct Builder {
    /// Inodes whose payloads point into the fields below. Those that lost their name stay and are left out at the end.
    pub(super) inodes: Table<InodeRecord>,
    pub(super) names: DraftNames,
    pub(super) targets: Table<u8>,
    pub(super) extents: Table<ExtentRecord>,
    /// Sets of extended attributes as the index has them, each after its length.
    pub(super) xattrs: Table<u8>,
    /// The set that was added last, and where: neighbours tend to have the same.
    recent_xattrs: (Vec<u8>, u32),
    /// The directory that the last entry was in: entries mostly come directory by directory.
    recent: (Vec<u8>, u32),
    /// Where everything goes when there is too much of it.
    pub(super) scratch: Option<Scratch>,
    /// The memory that it may take until then.
    claim: Claim,
    /// Whether it has gone there.
    pub(super) spilled: bool,
}

/// What every entry has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The lower twelve bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Names and values of the extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Its length.
        size: u64,
        /// Where its bytes lie in the tar, in ascending order without overlap. What is left out is a hole.
        segments: &'a [Segment],
    },
    /// A symbolic link.
    Symlink {
        /// Where it points to.
        target: &'a [u8],
    },
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Builder {
    /// Starts a layer without entries, all of which will be in memory.
    pub fn new() -> Builder {
        Builder {
            inodes: Table::Memory(vec![implicit_directory(ROOT)]),
            names: DraftNames::new(),
            targets: Table::Memory(Vec::new()),
            extents: Table::Memory(Vec::new()),
            xattrs: Table::Memory(Vec::new()),
            recent_xattrs: (Vec::new(), NO_XATTRS),
            recent: (Vec::new(), ROOT),
            scratch: None,
            claim: Claim::default(),
            spilled: false,
        }
    }

    /// Lets the entries go into temporary files once there is no more memory for them.
    #[must_use]
    pub fn with_scratch(self, scratch: Scratch) -> Builder {
        Builder { scratch: Some(scratch), ..self }
    }

    /// Moves everything out of memory if it takes too much.
    fn bound_memory(&mut self) -> Result<(), ScratchError> {
        let Some(scratch) = self.scratch.as_ref().filter(|_| !self.spilled) else { return Ok(()) };
        let tables = self.inodes.memory() + self.targets.memory() + self.extents.memory() + self.xattrs.memory();
        if !self.claim.covers(scratch, tables + self.names.memory()) {
            self.inodes.spill(scratch)?;
            self.names.spill(scratch)?;
            self.targets.spill(scratch)?;
            self.extents.spill(scratch)?;
            self.xattrs.spill(scratch)?;
            self.spilled = true;
            self.claim = Claim::default();
        }
        Ok(())
    }

    /// Returns how many inodes are held, those of replaced entries and of implicit directories included.
    pub fn inode_count(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// Adds an entry, or replaces the one of that path.
    pub fn add(&mut self, path: &[u8], metadata: Metadata, content: Content<'_>) -> Result<(), BuildError> {
        path::check(path)?;
        self.bound_memory()?;
        let directory = matches!(content, Content::Directory);
        let Some(name) = self.name_at(path)? else {
            if !directory {
                return Err(BuildError::RootNotDirectory);
            }
            let inode = self.inode_of(metadata, content)?;
            return Ok(self.replace_directory(ROOT, inode)?);
        };
        let mut inode = self.inode_of(metadata, content)?;
        if directory {
            let DraftName { node: old, parent, .. } = self.names.get(name)?;
            inode.link = U32::new(parent);
            match self.kind_of(old)? {
                Some(Some(Kind::Directory)) => return Ok(self.replace_directory(old, inode)?),
                // Something that is no directory was here for a moment; like any file it hid what is below.
                Some(_) => inode.flags = U16::new(FLAG_OPAQUE),
                None => {}
            }
        }
        self.set_node(name, inode)
    }

    /// Adds a hard link to `target`, as it is at this moment. A target that this layer does not have is looked for in
    /// the layers below when the layer is merged.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), BuildError> {
        path::check(path)?;
        self.bound_memory()?;
        let target = path::normalise(target).map_err(BuildError::LinkTarget)?;
        if path::components(path).eq(path::components(&target)) {
            return Err(BuildError::LinkToItself);
        }
        let found = self.find(&target)?;
        let to_directory = match found {
            Some(node) => self.is_directory(node)?,
            None => target.is_empty(),
        };
        if to_directory {
            return Err(BuildError::LinkToDirectory);
        }
        let name = self.name_at(path)?.ok_or(BuildError::RootNotDirectory)?;
        match found {
            Some(node) => {
                self.forget_recent(name)?;
                Ok(self.names.set_node(name, node)?)
            }
            None => {
                let mut inode = InodeRecord::new_zeroed();
                inode.mode = U16::new(Kind::Regular.to_mode());
                inode.flags = U16::new(FLAG_FOREIGN_LINK);
                inode.xattrs = U32::new(NO_XATTRS);
                inode.payload = self.add_target(&target)?;
                self.set_node(name, inode)
            }
        }
    }

    /// Adds the marker that the layers below have nothing at `path`.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), BuildError> {
        path::check(path)?;
        self.bound_memory()?;
        let name = self.name_at(path)?.ok_or(BuildError::WhiteoutOfRoot)?;
        Ok(self.names.set_whiteout(name)?)
    }

    /// Adds the marker that the directory at `path` shows nothing of the layers below.
    pub fn opaque(&mut self, path: &[u8]) -> Result<(), BuildError> {
        path::check(path)?;
        self.bound_memory()?;
        let directory = self.directory_at(path::components(path))?;
        Ok(self.inodes.update(directory as usize, |inode| inode.flags |= U16::new(FLAG_OPAQUE))?)
    }

    /// Makes an inode, its payload pointing into the builder's own tables.
    fn inode_of(&mut self, metadata: Metadata, content: Content<'_>) -> Result<InodeRecord, BuildError> {
        let (kind, size, payload, flags) = match content {
            Content::Directory => (Kind::Directory, 0, U64::ZERO, 0),
            Content::Regular { size, segments } => match *segments {
                [Segment { offset: 0, length, source }] if length == size => (Kind::Regular, size, U64::new(source), 0),
                [] if size == 0 => (Kind::Regular, 0, U64::ZERO, 0),
                _ => (Kind::Regular, size, self.add_segments(size, segments)?, FLAG_EXTENT_TABLE),
            },
            Content::Symlink { target } => {
                if target.is_empty() || target.len() > path::MAX_PATH || target.contains(&0) {
                    return Err(BuildError::SymlinkTarget);
                }
                (Kind::Symlink, target.len() as u64, self.add_target(target)?, 0)
            }
            Content::CharDevice(device) => (Kind::CharDevice, 0, pair(device.major, device.minor), 0),
            Content::BlockDevice(device) => (Kind::BlockDevice, 0, pair(device.major, device.minor), 0),
            Content::Fifo => (Kind::Fifo, 0, U64::ZERO, 0),
            Content::Socket => (Kind::Socket, 0, U64::ZERO, 0),
        };
        let mut inode = InodeRecord::new_zeroed();
        inode.mode = U16::new(kind.to_mode() | metadata.permissions & 0o7777);
        inode.flags = U16::new(flags);
        inode.uid = U32::new(metadata.uid);
        inode.gid = U32::new(metadata.gid);
        inode.mtime_seconds = I64::new(metadata.mtime.seconds);
        inode.mtime_nanoseconds = U32::new(metadata.mtime.nanoseconds);
        inode.size = U64::new(size);
        inode.payload = payload;
        inode.xattrs = U32::new(self.add_xattrs(metadata.xattrs)?);
        Ok(inode)
    }

    fn add_segments(&mut self, size: u64, segments: &[Segment]) -> Result<U64, BuildError> {
        let first = u32::try_from(self.extents.len()).map_err(|_| IndexFull)?;
        let count = u32::try_from(segments.len()).map_err(|_| IndexFull)?;
        let mut covered = 0;
        let mut extents = Vec::with_capacity(segments.len());
        for segment in segments {
            let end = segment.offset.checked_add(segment.length).filter(|&end| end <= size);
            let Some(end) = end.filter(|_| segment.length > 0 && segment.offset >= covered) else {
                return Err(BuildError::Segments);
            };
            covered = end;
            extents.push(ExtentRecord {
                offset: U64::new(segment.offset),
                length: U64::new(segment.length),
                source: U64::new(segment.source),
            });
        }
        self.extents.extend(&extents)?;
        Ok(pair(first, count))
    }

    fn add_target(&mut self, target: &[u8]) -> Result<U64, TableError> {
        let offset = u32::try_from(self.targets.len()).map_err(|_| IndexFull)?;
        let length = u32::try_from(target.len()).map_err(|_| IndexFull)?;
        self.targets.extend(target)?;
        Ok(pair(offset, length))
    }

    fn add_xattrs(&mut self, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<u32, BuildError> {
        if xattrs.is_empty() {
            return Ok(NO_XATTRS);
        }
        xattrs.sort();
        if xattrs.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(BuildError::DuplicateXattr);
        }
        let set = xattr_set(xattrs.iter().map(|(name, value)| (&name[..], &value[..])))?;
        if self.recent_xattrs.0 != set {
            let place = u32::try_from(self.xattrs.len()).ok().filter(|&place| place < NO_XATTRS).ok_or(IndexFull)?;
            let length = u32::try_from(set.len()).map_err(|_| IndexFull)?;
            self.xattrs.extend(&length.to_le_bytes())?;
            self.xattrs.extend(&set)?;
            self.recent_xattrs = (set, place);
        }
        Ok(self.recent_xattrs.1)
    }

    /// Returns the name that `path` ends in, making it and the directories on the way where absent; `None` for the root.
    fn name_at(&mut self, path: &[u8]) -> Result<Option<u32>, BuildError> {
        // Mostly it is one more file in the directory of the last one.
        if let Some(slash) = path.iter().rposition(|&byte| byte == b'/') {
            let (directory, name) = (&path[..slash], &path[slash + 1..]);
            if !name.is_empty() && name != b"." {
                if self.recent.0 != directory {
                    let node = self.directory_at(path::components(directory))?;
                    self.recent.0.clear();
                    self.recent.0.extend_from_slice(directory);
                    self.recent.1 = node;
                }
                return Ok(Some(self.names.add(self.recent.1, name)?));
            }
        }
        let mut components = path::components(path);
        let Some(name) = components.next_back() else {
            return Ok(None);
        };
        let directory = self.directory_at(components)?;
        Ok(Some(self.names.add(directory, name)?))
    }

    /// Returns the directory at the end of `components`, making what is absent.
    fn directory_at<'a>(&mut self, components: impl Iterator<Item = &'a [u8]>) -> Result<u32, BuildError> {
        let mut directory = ROOT;
        for component in components {
            let id = self.names.add(directory, component)?;
            let node = self.names.get(id)?.node;
            directory = match self.kind_of(node)? {
                Some(Some(Kind::Directory)) => node,
                Some(_) => return Err(BuildError::ParentNotDirectory),
                None => {
                    let node = self.add_inode(implicit_directory(directory))?;
                    self.names.set_node(id, node)?;
                    node
                }
            };
        }
        Ok(directory)
    }

    /// Returns the inode at a normal path, if this layer has one.
    fn find(&mut self, path: &[u8]) -> Result<Option<u32>, ScratchError> {
        let mut node = ROOT;
        for component in path::components(path) {
            // Names below something that is no directory do not exist: its number is the parent of none.
            let Some(id) = self.names.find(node, component)? else { return Ok(None) };
            node = self.names.get(id)?.node;
            if node == NO_NODE {
                return Ok(None);
            }
        }
        Ok(Some(node))
    }

    /// Puts new attributes on a directory, which keeps what is in it and what was said about the layers below.
    fn replace_directory(&mut self, node: u32, attributes: InodeRecord) -> Result<(), ScratchError> {
        self.inodes.update(node as usize, |directory| {
            let opaque = directory.flags & U16::new(FLAG_OPAQUE);
            let parent = directory.link;
            *directory = attributes;
            directory.flags |= opaque;
            directory.link = parent;
        })
    }

    /// Gives a name a new inode in place of what it had.
    fn set_node(&mut self, name: u32, inode: InodeRecord) -> Result<(), BuildError> {
        self.forget_recent(name)?;
        let node = self.add_inode(inode)?;
        Ok(self.names.set_node(name, node)?)
    }

    /// Drops the remembered directory if `name` is about to stop being one, as it may be or contain the remembered one.
    fn forget_recent(&mut self, name: u32) -> Result<(), ScratchError> {
        let node = self.names.get(name)?.node;
        if self.is_directory(node)? {
            self.recent = (Vec::new(), ROOT);
        }
        Ok(())
    }

    fn add_inode(&mut self, inode: InodeRecord) -> Result<u32, TableError> {
        let node = u32::try_from(self.inodes.len()).ok().filter(|&node| node < NO_NODE).ok_or(IndexFull)?;
        self.inodes.push(inode)?;
        Ok(node)
    }

    /// Returns the kind of an inode; `None` if there is none.
    fn kind_of(&mut self, node: u32) -> Result<Option<Option<Kind>>, ScratchError> {
        if node as usize >= self.inodes.len() {
            return Ok(None);
        }
        Ok(Some(self.inodes.get(node as usize)?.kind()))
    }

    pub(super) fn is_directory(&mut self, node: u32) -> Result<bool, ScratchError> {
        Ok(self.kind_of(node)? == Some(Some(Kind::Directory)))
    }
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

/// Why an entry cannot be in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Its name is not one.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// The root is a directory and nothing else.
    #[error("the root of a layer must be a directory")]
    RootNotDirectory,
    /// The layer itself has something else where the entry needs a directory. It is not followed even if it is a
    /// symbolic link.
    #[error("a parent of the entry is not a directory in this layer")]
    ParentNotDirectory,
    /// The target of a hard link is not a name inside the layer.
    #[error("target of the hard link: {0}")]
    LinkTarget(#[source] InvalidPath),
    /// Directories have one name.
    #[error("hard link to a directory")]
    LinkToDirectory,
    /// The two names are one.
    #[error("hard link to itself")]
    LinkToItself,
    /// It is empty, has a NUL byte or more than 4095 bytes.
    #[error("invalid target of a symbolic link")]
    SymlinkTarget,
    /// Segments of a file overlap, descend, are empty or leave the file.
    #[error("the map of the file's data is invalid")]
    Segments,
    /// One attribute has two values.
    #[error("extended attribute given twice")]
    DuplicateXattr,
    /// The root cannot be deleted.
    #[error("whiteout of the root")]
    WhiteoutOfRoot,
    /// The layer is too large, or there is no place for what it makes us hold.
    #[error(transparent)]
    Table(TableError),
}

/// Whatever a table cannot hold, for either reason.
impl<E> From<E> for BuildError
where
    TableError: From<E>,
{
    fn from(error: E) -> BuildError {
        BuildError::Table(error.into())
    }
}

/// Permissions of a directory that no layer has an entry for. It belongs to root and has the first of all times.
const IMPLICIT_PERMISSIONS: u16 = 0o755;

pub(crate) fn implicit_directory(parent: u32) -> InodeRecord {
    let mut inode = InodeRecord::new_zeroed();
    inode.mode = U16::new(Kind::Directory.to_mode() | IMPLICIT_PERMISSIONS);
    inode.flags = U16::new(FLAG_IMPLICIT);
    inode.link = U32::new(parent);
    inode.xattrs = U32::new(NO_XATTRS);
    inode
}

/// The first inode, which the root is from the start.
pub(super) const ROOT: u32 = 0;
