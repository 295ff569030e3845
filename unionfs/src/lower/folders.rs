//! Folders as lower: merged lazily, one directory at a time, and cached.
//!
//! Inode numbers are those of the lowest folder that has the object, or the one under which it was shown before it was
//! copied up into a folder (`strata.ino`), tagged with the filesystem where several are involved: so they stay when an
//! upper becomes a lower. Folders do not change while mounted, so a number names one object for the life of the mount;
//! of two that claim one number, the second gets another.

mod kept;
mod linked;
mod search;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use rustix::fs::{AtFlags, Dir, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{Left, LowerChild, Place};
use crate::Result;
use crate::backing::{self, Identity, RawStat};
use crate::beneath::{Crossing, open_beneath};
use crate::by_name::{self, Special};
use crate::capability;
use crate::handles::Handles;
use crate::marks::{self, LayerId, Marks, Namespace};
use crate::node::{Ino, Kind, Stat};
use crate::override_stat::Override;
use crate::survive::{Keep, RecordId};
use crate::table;
use crate::tree::Usage;
use kept::{Kept, Restored};
use linked::Copies;
use search::Found;

/// A stack of read-only folders.
#[derive(Debug)]
pub(crate) struct FolderLower {
    /// The roots, topmost first.
    layers: Vec<Layer>,
    /// Whiteouts by name count.
    by_name: bool,
    marks: Namespace,
    /// Capabilities that a file only notes are its own: nobody but who may give some can have written them, or they
    /// deceive nobody but him.
    believes_notes: bool,
    /// The filesystems seen so far; the place in the list is the tag.
    devices: Mutex<Vec<u64>>,
    nodes: RwLock<HashMap<Ino, Arc<Node>>>,
    /// Nodes that nobody holds, looked at in passing; the oldest are dropped. Taken after `nodes`.
    loose: Mutex<VecDeque<Ino>>,
    /// Open directories (`O_PATH`) and files (for reading), by node and layer.
    handles: Handles<(Ino, u16)>,
    /// What was found last: who finds a name mostly looks it up next.
    last_found: Mutex<Option<LastFound>>,
    kept: Kept,
}

/// A directory, a name in it, and what that is.
type LastFound = (Ino, Box<[u8]>, Found);

/// One folder of the stack.
#[derive(Debug)]
struct Layer {
    root: OwnedFd,
    /// It is behind a read-only mount of our own, so that nothing can write into it whatever happens.
    sealed: bool,
    id: LayerId,
    /// The UUID of its filesystem, or zeros, once somebody asked.
    uuid: OnceLock<[u8; 16]>,
    /// It has copies of files with several names.
    shares: bool,
    /// Those, by the number of the file, once somebody asked.
    copies: OnceLock<Copies>,
    /// Its root may hold what was copied up.
    impure: bool,
    kept_beside: Override,
}

impl Layer {
    /// Returns the UUID of the layer's filesystem, zeros if it has none.
    fn uuid(&self) -> [u8; 16] {
        *self.uuid.get_or_init(|| {
            let root = backing::reopen(self.root.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(io::Error::from);
            let uuid = root.and_then(|root| strata_sys::filesystem_uuid::filesystem_uuid(root.as_fd()));
            // As overlayfs has it.
            uuid.unwrap_or_default()
        })
    }

    /// Without a mount of our own, other filesystems may be mounted on the layer's folders.
    fn crossing(&self) -> Crossing {
        if self.sealed { Crossing::Allowed } else { Crossing::Refused }
    }

    fn stat(&self, file: BorrowedFd<'_>) -> Result<RawStat> {
        let mut raw = backing::stat(file)?;
        self.kept_beside.apply(file, &mut raw)?;
        Ok(raw)
    }

    fn stat_at(&self, dir: &OwnedFd, name: &[u8]) -> Result<RawStat> {
        if self.kept_beside.is_active() {
            return self.stat(rustix::fs::openat(dir, name, LOOK, NO_MODE)?.as_fd());
        }
        backing::stat_name(dir.as_fd(), name)
    }
}

/// Why a folder cannot be used as lower.
#[derive(Debug, thiserror::Error)]
#[error("open the lower folder {path:?}")]
pub struct FolderError {
    path: PathBuf,
    source: io::Error,
}

/// One merged object that somebody knows of.
#[derive(Debug)]
struct Node {
    /// As in the topmost layer; nothing can change it.
    stat: Stat,
    /// The file in the topmost layer.
    identity: Identity,
    /// Where it lies: a directory in each layer that takes part in it, topmost first. A file with its attributes, and
    /// with its data if that is elsewhere.
    sources: Box<[Source]>,
    /// Its data was found, if it is a file.
    complete: bool,
    /// The directory it was found in and its name there; several for a file with hard links.
    places: Mutex<Vec<(Ino, Box<[u8]>)>>,
    children: OnceLock<Arc<[Child]>>,
    /// How often something was searched in it while it was not listed.
    searches: AtomicU32,
    references: AtomicU64,
    record: OnceLock<RecordId>,
}

impl Node {
    fn place(&self) -> Option<Place> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.first().map(|(parent, name)| Place { parent: *parent, name: name.to_vec() })
    }

    fn parent(&self) -> Option<Ino> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).first().map(|(parent, _)| *parent)
    }
}

#[derive(Clone, Debug)]
struct Source {
    layer: u16,
    /// Relative to the layer's root; empty for the root itself.
    path: Box<[u8]>,
    /// The directory may hold what was copied up.
    impure: bool,
}

#[derive(Debug)]
struct Child {
    name: Box<[u8]>,
    ino: Ino,
    kind: Kind,
    /// The topmost layer that has it.
    layer: u16,
    /// It takes a search to know all about it.
    searched: bool,
    /// A directory that may hold what was copied up.
    impure: bool,
}

impl FolderLower {
    /// Opens the folders, topmost first. `devices` lists filesystems that must get the first tags.
    ///
    /// `trusting` is about attributes that say who owns a file, see [`Override::of_lower`].
    pub(crate) fn open(
        folders: &[PathBuf],
        devices: Vec<u64>,
        capacity: usize,
        marks: Namespace,
        trusting: bool,
        by_name: bool,
    ) -> Result<FolderLower, FolderError> {
        let open = |path: &PathBuf| {
            open_root(path, marks, trusting).map_err(|error| FolderError { path: path.clone(), source: error.into() })
        };
        let layers = folders.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let lower = FolderLower {
            layers,
            by_name,
            marks,
            believes_notes: marks == Namespace::TRUSTED || trusting,
            devices: Mutex::new(devices),
            nodes: RwLock::default(),
            loose: Mutex::default(),
            handles: Handles::new(capacity),
            last_found: Mutex::default(),
            kept: Kept::default(),
        };
        let (Some(top), Some(path)) = (lower.layers.first(), folders.first()) else {
            return Err(FolderError { path: PathBuf::new(), source: io::ErrorKind::NotFound.into() });
        };
        let root = top.stat(top.root.as_fd()).and_then(|raw| lower.insert_root(&raw));
        let root = root.map_err(|error| FolderError { path: path.clone(), source: error.into() })?;
        root.references.store(1, Ordering::Relaxed);
        Ok(lower)
    }

    fn insert_root(&self, raw: &RawStat) -> Result<Arc<Node>> {
        let root = |(layer, folder): (u16, &Layer)| Source { layer, path: Box::default(), impure: folder.impure };
        let mut sources: Vec<Source> = (0..).zip(&self.layers).map(root).collect();
        if self.by_name {
            for (above, layer) in self.layers.iter().enumerate() {
                if by_name::is_opaque(layer.root.as_fd())? {
                    sources.truncate(above + 1);
                    break;
                }
            }
        }
        // Where the filesystems get their tags does not depend on what is looked at first. Bottom first: layers are
        // added on top.
        for layer in self.layers.iter().rev() {
            self.number(backing::identity(&backing::stat(layer.root.as_fd())?));
        }
        let mut stat = backing::to_stat(raw, Ino::ROOT)?;
        if sources.len() > 1 {
            stat.nlink = 1;
        }
        Ok(self.insert(Found { stat, identity: backing::identity(raw), sources, complete: false }, None))
    }

    /// Returns the number under which an object of some filesystem is shown.
    pub(crate) fn number(&self, identity: Identity) -> Ino {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let tag = devices.iter().position(|device| *device == identity.device).unwrap_or_else(|| {
            devices.push(identity.device);
            self.kept.write_devices(&devices);
            devices.len() - 1
        });
        let tagged = identity.ino ^ ((tag as u64) << TAG_SHIFT);
        // 1 is the root of the mount, 0 stands for "nothing".
        Ino(if tagged <= 1 { tagged | OTHER } else { tagged })
    }

    /// Returns the number if it is free or that of this file already, else another one.
    fn free_number(&self, number: Ino, identity: Identity) -> Ino {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let is_free = |number: &Ino| nodes.get(number).is_none_or(|node| node.identity == identity);
        let own = self.number(identity);
        [number, own, Ino(own.0 ^ OTHER)].into_iter().find(is_free).unwrap_or(number)
    }

    /// Returns whether a node is the copy of a file that has names further down too.
    pub(crate) fn is_joined(&self, ino: Ino) -> bool {
        let first = self.node(ino).ok().and_then(|node| node.sources.first().map(|source| source.layer));
        first.is_some_and(|layer| self.copied(ino, layer).is_some())
    }

    /// Returns the layer that a node's number is from.
    pub(crate) fn layer_of(&self, ino: Ino) -> Option<LayerId> {
        let node = self.node(ino).ok()?;
        Some(self.layer(node.sources.last()?.layer).ok()?.id)
    }

    pub(crate) fn has_layer(&self, id: LayerId) -> bool {
        self.layers.iter().any(|layer| layer.id == id)
    }

    pub(crate) fn known_count(&self) -> usize {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn layer_count(&self) -> u16 {
        u16::try_from(self.layers.len()).unwrap_or(u16::MAX)
    }

    /// Returns whether a layer keeps owners in an attribute that users of the mount must not see.
    pub(crate) fn keeps_owners_beside(&self) -> bool {
        self.layers.iter().any(|layer| layer.kept_beside.is_active())
    }

    fn layer(&self, layer: u16) -> Result<&Layer> {
        self.layers.get(usize::from(layer)).ok_or(Errno::STALE)
    }

    pub(crate) fn contains(&self, ino: Ino) -> bool {
        self.node(ino).is_ok()
    }

    /// Finds a name without remembering it.
    pub(crate) fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<(Ino, Kind)>> {
        let node = self.node(dir)?;
        if let Some(children) = self.listed(dir, &node) {
            return Ok(child_named(&children, name).map(|child| (child.ino, child.kind)));
        }
        let Some(found) = self.search(dir, &node, name, 0)? else { return Ok(None) };
        let seen = (found.stat.ino, found.stat.kind);
        *self.last_found() = Some((dir, name.into(), found));
        Ok(Some(seen))
    }

    pub(crate) fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let node = self.node(dir)?;
        let just_found = self.last_found().take().filter(|(place, known, _)| *place == dir && **known == *name);
        let found = match (just_found, self.listed(dir, &node)) {
            // Another file may have been given its number since.
            (Some((_, _, found)), _) if self.free_number(found.stat.ino, found.identity) == found.stat.ino => {
                Some(found)
            }
            (_, None) => self.search(dir, &node, name, 0)?,
            (_, Some(children)) => match child_named(&children, name) {
                None => None,
                // The listing has found out where it lies, and that is all; but a file may have its data further down.
                Some(child)
                    if !child.searched && (child.kind != Kind::Regular || child.layer + 1 == self.layer_count()) =>
                {
                    self.take(dir, &node, child)?
                }
                Some(child) => self.search(dir, &node, name, child.layer)?,
            },
        };
        let Some(found) = found else { return Ok(None) };
        let ino = found.stat.ino;
        self.insert(found, Some((dir, name)));
        Ok(Some(ino))
    }

    /// Returns the names of a directory if they are known, or if so much was searched in it that knowing them costs less.
    fn listed(&self, dir: Ino, node: &Node) -> Option<Arc<[Child]>> {
        if let Some(children) = node.children.get() {
            return Some(Arc::clone(children));
        }
        let searches = node.searches.fetch_add(1, Ordering::Relaxed) as usize;
        if node.stat.kind != Kind::Directory || searches * node.sources.len() < WORTH_A_LISTING {
            return None;
        }
        // A directory may be one that we can look names up in, but not read.
        self.children(dir).inspect_err(|_| node.searches.store(0, Ordering::Relaxed)).ok()
    }

    fn last_found(&self) -> MutexGuard<'_, Option<LastFound>> {
        self.last_found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stat(&self, ino: Ino) -> Result<Stat> {
        Ok(self.node(ino)?.stat)
    }

    pub(crate) fn parent(&self, dir: Ino) -> Option<Ino> {
        if dir == Ino::ROOT {
            return Some(dir);
        }
        self.place(dir).map(|place| place.parent)
    }

    /// Returns a name of the node.
    pub(crate) fn place(&self, ino: Ino) -> Option<Place> {
        self.node(ino).ok()?.place()
    }

    pub(crate) fn child_count(&self, dir: Ino) -> Result<u64> {
        Ok(self.children(dir)?.len() as u64)
    }

    pub(crate) fn for_each_child(
        &self,
        dir: Ino,
        position: u64,
        visit: &mut dyn FnMut(LowerChild<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let children = self.children(dir)?;
        let Ok(skip) = usize::try_from(position) else { return Ok(()) };
        for (position, child) in (position..).zip(children.iter().skip(skip)) {
            let child = LowerChild { position, name: &child.name, ino: child.ino, kind: child.kind };
            if visit(child).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        backing::read_link(self.open_path(ino, &*self.node(ino)?)?.as_fd())
    }

    pub(crate) fn for_each_xattr(&self, ino: Ino, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let file = self.open_path(ino, &*self.node(ino)?)?;
        self.for_each_xattr_of(file.as_fd(), visit)
    }

    /// As `for_each_xattr`, and returns by what the kernel's overlayfs finds a file with one name again in the folder that
    /// it is seen in, if that has such things.
    pub(crate) fn for_each_xattr_with_origin(
        &self,
        ino: Ino,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Vec<u8>>> {
        let node = self.node(ino)?;
        let source = node.sources.first().ok_or(Errno::STALE)?;
        // What is open is asked with less effort.
        let open = || self.open_source(source, OFlags::RDONLY | OFlags::NONBLOCK).map(Arc::new).ok();
        let open = if node.stat.kind == Kind::Regular { open() } else { None };
        let file = open.map_or_else(|| self.open_path(ino, &node), Ok)?;
        self.for_each_xattr_of(file.as_fd(), visit)?;
        if node.stat.kind == Kind::Directory || node.stat.nlink != 1 {
            return Ok(None);
        }
        let uuid = self.layer(source.layer)?.uuid();
        let handle = strata_sys::file_handle::name_to_handle_at(file.as_fd(), c"", AtFlags::EMPTY_PATH).ok();
        Ok(handle.and_then(|handle| marks::origin(&uuid, handle.kind(), handle.bytes())))
    }

    fn for_each_xattr_of(&self, fd: BorrowedFd<'_>, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut names = backing::list_xattrs(fd)?;
        if self.believes_notes {
            self.marks.add_noted_capability(&mut names);
        }
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = backing::xattr(fd, name)?;
            if value.is_none() && name == capability::NAME {
                value = backing::xattr(fd, &self.marks.name(marks::CAPABILITY))?;
            }
            if let Some(value) = value {
                visit(name, &value);
            }
        }
        Ok(())
    }

    pub(crate) fn read_at(&self, ino: Ino, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.data(ino)?;
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&*file, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    pub(crate) fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        // A description of its own: the shared one's position is nobody's business, but moving it is not atomic.
        let file = self.data(ino)?;
        let from = if data { rustix::fs::SeekFrom::Data(offset) } else { rustix::fs::SeekFrom::Hole(offset) };
        rustix::fs::seek(&*file, from)
    }

    pub(crate) fn copy_data(&self, ino: Ino, to: BorrowedFd<'_>, length: u64) -> Result<()> {
        crate::copy::copy_file(self.data(ino)?.as_fd(), to, length)
    }

    pub(crate) fn open_object(&self, ino: Ino) -> Option<OwnedFd> {
        let node = self.node(ino).ok()?;
        let source = node.sources.last().filter(|_| node.complete && node.stat.kind == Kind::Regular)?;
        // The kernel opens it again with whatever flags a client has.
        self.layers.get(usize::from(source.layer)).filter(|layer| layer.sealed)?;
        self.open_source(source, OFlags::RDONLY | OFlags::NONBLOCK).ok()
    }

    pub(crate) fn open_for_flags(&self, ino: Ino) -> Result<OwnedFd> {
        let node = self.node(ino)?;
        let source = node.sources.first().ok_or(Errno::STALE)?;
        self.open_source(source, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    pub(crate) fn usage(&self) -> Usage {
        let Some(Ok(space)) = self.layers.first().map(|layer| rustix::fs::fstatvfs(&layer.root)) else {
            return Usage::default();
        };
        Usage {
            blocks: space.f_blocks,
            free: 0,
            available: 0,
            files: space.f_files,
            free_files: 0,
            block_size: u32::try_from(space.f_bsize).unwrap_or(4096),
        }
    }

    pub(crate) fn remember(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<()> {
        for _ in 0..RACES {
            {
                // Under the lock that `forget` takes to drop a node.
                let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(node) = nodes.get(&ino) {
                    node.references.fetch_add(1, Ordering::AcqRel);
                    return Ok(());
                }
            }
            if self.lookup(parent, name)? != Some(ino) {
                break;
            }
        }
        Err(Errno::STALE)
    }

    pub(crate) fn forget(&self, ino: Ino, count: u64) -> Left {
        if ino == Ino::ROOT {
            return Left::Held;
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = nodes.get(&ino) else { return Left::Nobody { parent: None } };
        let held = node.references.load(Ordering::Acquire).saturating_sub(count);
        node.references.store(held, Ordering::Release);
        if held > 0 {
            return Left::Held;
        }
        let parent = node.parent();
        self.kept.remove(node.record.get().copied());
        table::remove(&mut nodes, &ino);
        Left::Nobody { parent }
    }

    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&ino).cloned().ok_or(Errno::STALE)
    }

    /// Writes what is known for the next server, from now on.
    pub(crate) fn keep(&self, keep: &Arc<Keep>) {
        self.kept.start(keep);
    }

    /// Takes over what an earlier server knew: reads one of its records, if it is of folders.
    pub(crate) fn restore(&self, record: RecordId, bytes: &[u8]) {
        match self.kept.decode(record, bytes) {
            Some(Restored::Devices(devices)) => {
                *self.devices.lock().unwrap_or_else(PoisonError::into_inner) = devices;
            }
            Some(Restored::Node(node)) => {
                let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
                nodes.insert(node.stat.ino, Arc::from(node));
            }
            Some(Restored::Copies(place, copies)) => {
                let _ = self.layers.get(usize::from(place)).map(|layer| layer.copies.set(copies));
            }
            None => {}
        }
    }

    /// Sets how often the kernel holds a node that an earlier server knew.
    pub(crate) fn restore_references(&self, ino: Ino, references: u64) {
        if let Ok(node) = self.node(ino) {
            node.references.store(references, Ordering::Release);
        }
    }

    fn insert(&self, found: Found, place: Option<(Ino, &[u8])>) -> Arc<Node> {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let ino = found.stat.ino;
        let node = match nodes.entry(ino) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => {
                let node = Arc::clone(entry.insert(Arc::new(Node {
                    stat: found.stat,
                    identity: found.identity,
                    sources: found.sources.into(),
                    complete: found.complete,
                    places: Mutex::default(),
                    children: OnceLock::new(),
                    searches: AtomicU32::new(0),
                    references: AtomicU64::new(0),
                    record: OnceLock::new(),
                })));
                self.drop_loose(&mut nodes, ino);
                node
            }
        };
        let mut places = node.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut news = node.record.get().is_none();
        if let Some((parent, name)) = place
            && !places.iter().any(|(known, known_name)| *known == parent && **known_name == *name)
        {
            places.push((parent, name.into()));
            news = true;
        }
        if news {
            self.kept.write_node(&node, &places);
        }
        drop(places);
        node
    }

    /// Notes a node that nobody holds yet, and drops those looked at long ago that nobody came to hold.
    fn drop_loose(&self, nodes: &mut HashMap<Ino, Arc<Node>>, ino: Ino) {
        let mut loose = self.loose.lock().unwrap_or_else(PoisonError::into_inner);
        loose.push_back(ino);
        if loose.len() > MAX_LOOSE
            && let Some(oldest) = loose.pop_front()
            && nodes.get(&oldest).is_some_and(|node| node.references.load(Ordering::Acquire) == 0)
            && let Some(node) = table::remove(nodes, &oldest)
        {
            self.kept.remove(node.record.get().copied());
        }
    }

    /// Looks at what the listing of the directory says is there.
    fn take(&self, dir: Ino, node: &Node, child: &Child) -> Result<Option<Found>> {
        let source = node.sources.iter().find(|source| source.layer == child.layer).ok_or(Errno::STALE)?;
        let directory = self.directory(dir, source)?;
        let raw = self.layer(child.layer)?.stat_at(&directory, &child.name)?;
        if child.kind != Kind::Directory && raw.nlink > 1 && self.may_be_copied(child.layer) {
            return self.search(dir, node, &child.name, child.layer);
        }
        let identity = backing::identity(&raw);
        let stat = backing::to_stat(&raw, self.free_number(self.number(identity), identity))?;
        let stat = Stat { kind: child.kind, ..stat };
        let sources = vec![Source { layer: child.layer, path: join(&source.path, &child.name), impure: child.impure }];
        Ok(Some(Found { stat, identity, sources, complete: true }))
    }

    /// Returns the sorted, merged names of a directory.
    fn children(&self, dir: Ino) -> Result<Arc<[Child]>> {
        let node = self.node(dir)?;
        if let Some(children) = node.children.get() {
            return Ok(Arc::clone(children));
        }
        if node.stat.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        // What each name is; `None` for what is deleted there.
        let mut seen: HashMap<Box<[u8]>, Option<Child>> = HashMap::new();
        for source in &node.sources {
            self.list_source(dir, source, &mut seen)?;
        }
        let mut children: Vec<Child> = seen.into_values().flatten().collect();
        for child in children.iter_mut().filter(|child| child.searched) {
            if let Some(found) = self.search(dir, &node, &child.name, child.layer)? {
                child.ino = found.stat.ino;
            }
        }
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Arc::clone(node.children.get_or_init(|| children.into())))
    }

    /// Adds the names that a directory has in one layer and in none above.
    fn list_source(&self, dir: Ino, source: &Source, seen: &mut HashMap<Box<[u8]>, Option<Child>>) -> Result<()> {
        let layer = self.layer(source.layer)?;
        let directory = self.directory(dir, source)?;
        let last = source.layer + 1 == self.layer_count();
        let listing = rustix::fs::openat(&*directory, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, NO_MODE)?;
        let mut hidden_below: Vec<Box<[u8]>> = Vec::new();
        for entry in Dir::new(listing)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if let Some(special) = by_name::special(name).filter(|_| self.by_name) {
                if let Special::Whiteout(target) = special {
                    hidden_below.push(target.into());
                }
                continue;
            }
            if let Some(above) = seen.get_mut(name) {
                if let Some(above) = above.as_mut().filter(|above| above.kind == Kind::Directory) {
                    // What is joined has the number of the lowest.
                    above.searched = true;
                }
                continue;
            }
            let raw = layer.stat_at(&directory, name)?;
            let mut kind = Some(backing::kind(&raw)?).filter(|_| !backing::is_whiteout(&raw));
            if kind == Some(Kind::Regular) && raw.size == 0 {
                let fd = rustix::fs::openat(&*directory, name, LOOK, NO_MODE)?;
                kind = self.marks.shown_kind(fd.as_fd(), &raw)?;
            }
            let Some(kind) = kind else {
                seen.insert(name.into(), None);
                continue;
            };
            // A redirected directory has the number of another, and so has what was copied up.
            let (mut searched, mut impure) = (source.impure && !last, false);
            if kind == Kind::Directory && !searched && !last {
                let fd = rustix::fs::openat(&*directory, name, LOOK, NO_MODE)?;
                let marks = self.marks.read(fd.as_fd())?;
                (searched, impure) = (marks.redirect.is_some(), marks.impure);
            }
            let ino = self.number(backing::identity(&raw));
            let child = Child { name: name.into(), ino, kind, layer: source.layer, searched, impure };
            seen.insert(name.into(), Some(child));
        }
        for name in hidden_below {
            seen.entry(name).or_default();
        }
        Ok(())
    }

    /// Opens the object itself, in the topmost layer that has it.
    fn open_path(&self, ino: Ino, node: &Node) -> Result<Arc<OwnedFd>> {
        let source = node.sources.first().ok_or(Errno::STALE)?;
        if node.stat.kind == Kind::Directory {
            return self.directory(ino, source);
        }
        Ok(Arc::new(self.open_source(source, OFlags::PATH)?))
    }

    /// Opens a directory in one layer, or takes it from the cache.
    fn directory(&self, dir: Ino, source: &Source) -> Result<Arc<OwnedFd>> {
        let key = (dir, source.layer);
        if let Some(fd) = self.handles.get(key) {
            return Ok(fd);
        }
        let fd = Arc::new(self.open_source(source, OFlags::PATH | OFlags::DIRECTORY)?);
        self.handles.insert(key, Arc::clone(&fd));
        Ok(fd)
    }

    /// Opens a regular file for reading, or takes it from the cache.
    fn data(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let node = self.node(ino)?;
        if node.stat.kind != Kind::Regular {
            return Err(Errno::INVAL);
        }
        let source = node.sources.last().filter(|_| node.complete).ok_or(Errno::IO)?;
        let key = (ino, source.layer);
        if let Some(fd) = self.handles.get(key) {
            return Ok(fd);
        }
        let fd = Arc::new(self.open_source(source, OFlags::RDONLY | OFlags::NONBLOCK)?);
        self.handles.insert(key, Arc::clone(&fd));
        Ok(fd)
    }

    fn open_source(&self, source: &Source, flags: OFlags) -> Result<OwnedFd> {
        let layer = self.layer(source.layer)?;
        open_beneath(layer.root.as_fd(), &source.path, flags, layer.crossing())
    }
}

/// Opens a layer's root, behind a read-only mount of our own where we may make one: then nothing can ever write into the
/// layer through us, and mounts on top of its folders are out of the way.
fn open_root(path: &Path, marks: Namespace, trusting: bool) -> Result<Layer> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let plain = rustix::fs::open(path, flags, NO_MODE)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let private = open_tree(&plain, "", clone)
        .ok()
        .filter(|mount| strata_sys::mount_attributes::set_read_only(mount.as_fd()).is_ok());
    let sealed = private.is_some();
    let root = private.unwrap_or(plain);
    let kept_beside = Override::of_lower(root.as_fd(), trusting)?;
    let Marks { impure, shares, .. } = marks.read(root.as_fd())?;
    let id = LayerId::of_folder(&backing::stat(root.as_fd())?);
    Ok(Layer { root, sealed, id, uuid: OnceLock::new(), shares, copies: OnceLock::new(), impure, kept_beside })
}

fn child_named<'a>(children: &'a [Child], name: &[u8]) -> Option<&'a Child> {
    children.binary_search_by(|child| (*child.name).cmp(name)).ok().map(|place| &children[place])
}

fn join(path: &[u8], name: &[u8]) -> Box<[u8]> {
    if path.is_empty() { name.into() } else { [path, b"/", name].concat().into() }
}

/// How names are looked at: without following, without side effects.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NO_MODE: rustix::fs::Mode = rustix::fs::Mode::empty();
/// In so many folders something may be searched before the whole directory is listed: a listing costs about as much.
const WORTH_A_LISTING: usize = 24;
/// How often a node may be forgotten just when it was found.
const RACES: usize = 100;
/// Inode numbers of real filesystems stay below this bit.
const TAG_SHIFT: u32 = 48;
/// Set in numbers that would otherwise be somebody else's. Below the numbers that only the kernel's nodes have.
const OTHER: u64 = 1 << 61;
/// Most nodes that are kept though nobody holds them.
const MAX_LOOSE: usize = 4096;
