//! The union: nodes over a stack of one writable and any number of read-only layers.
//!
//! # Locks
//!
//! In this order, each taken only after those above it:
//!
//! ```text
//! a shard of the open nodes  (`fuse/operations/nodes.rs`) held while it is chosen how a node is served
//! Object::copying        one node's copy-up, held while its data is copied
//!   Tree::namespace      write: names change; read: everything that follows names. Never taken twice by one thread
//!     Object::listing    the order of one directory
//!       Objects shard    the table, and the reference counts
//!         Object::state  short, nothing waits under it
//!         FolderLower::nodes, then ::loose, a node's places, ::devices
//! ```
//!
//! `Tree::forgotten`, `Tree::outdated`, `Links`, `Handles`, `Object::heritage` and `Object::absent` are taken with any of
//! these held, and nothing under them.
//!
//! What [`Tree::read_dir`] calls with each entry runs under `namespace` and `listing`: it must take no shard of the open
//! nodes and call nothing here that takes either again. A reader too waits for a writer that waits.

mod accounting;
mod attributes;
mod compare;
mod copy_up;
mod create;
mod directory;
mod file;
mod flags;
mod forgotten;
mod habits;
mod intent;
mod last_name;
mod listing;
mod metacopy;
mod object;
mod origin;
mod outdated;
mod readdir;
mod record;
mod remove;
mod rename;
mod restore;
mod statfs;
#[cfg(test)]
mod tests;
mod unmoved;
mod xattr;

pub use attributes::{SetAttributes, SetTime};
pub(crate) use copy_up::Long;
pub use create::{Caller, New};
pub use file::{Access, Opened};
pub use flags::ExtendedFlags;
pub use readdir::DirEntry;
pub use rename::RenameMode;
pub use statfs::Usage;
pub(crate) use xattr::SERVER;
pub use xattr::SetGroupId;

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::io::Errno;

use crate::Result;
use crate::apart::{self, Overlap};
use crate::backing;
use crate::handles::{self, Handles};
use crate::idmap::Ids;
use crate::lower::{FolderError, FolderLower, ImageError, ImageLower, Left, LowerTree};
use crate::marks::{Marks, Namespace};
use crate::node::{Ino, Kind, Stat};
use crate::override_stat;
use crate::quota::Ledger;
use crate::spec::{Lower, MountSpec, Options};
use crate::survive::Keep;
use crate::upper::{self, Purpose, UpperError, UpperLayer};
use directory::Hold;
use forgotten::Forgotten;
use habits::Habits;
use last_name::Searches;
use object::{Object, Objects, State};
use outdated::Outdated;

/// A union of layers, as a mount shows it.
#[derive(Debug)]
pub struct Tree {
    lower: LowerTree,
    upper: Option<UpperLayer>,
    ids: Ids,
    habits: Habits,
    /// What the upper holds, if that is limited.
    ledger: Option<Ledger>,
    /// In which namespace the layers are marked.
    marks: Namespace,
    objects: Objects,
    /// Open files of the upper (`O_PATH`).
    handles: Handles<Ino>,
    /// Where to look for nodes that the kernel has forgotten.
    forgotten: Forgotten,
    /// What the kernel has to hear of beside the answers.
    outdated: Outdated,
    searches: Searches,
    /// The upper's root; there is one if there is an upper.
    root_file: Option<Arc<OwnedFd>>,
    /// Tells others that this is about to end, once it is. Given back after the upper.
    ending: OnceLock<OwnedFd>,
    /// Guards the names in the upper and the places in the objects. No panic can leave them half changed.
    namespace: RwLock<()>,
    /// How often names may have changed. Written with `namespace` held for writing.
    changes: AtomicU64,
}

/// Why the layers of a mount cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The writable layer cannot be used.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The folders are not apart.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// A descriptor could not be had.
    #[error("open the root of the union")]
    Root(#[source] std::io::Error),
}

impl Tree {
    /// Opens the layers. An upper is cleaned of what a crash has left.
    pub fn open(spec: &MountSpec) -> Result<Tree, OpenError> {
        apart::check(spec)?;
        Tree::open_for(spec, Purpose::Serve, None, None)
    }

    /// Opens the layers as one of several servers that come one after another and leave each other `keep`. `lock` is
    /// that of [`lock_upper`](crate::upper::lock_upper), if there is an upper.
    pub(crate) fn open_kept(spec: &MountSpec, keep: &Arc<Keep>, lock: Option<OwnedFd>) -> Result<Tree, OpenError> {
        let tree = Tree::open_for(spec, Purpose::Serve, Some(keep), lock)?;
        if keep.is_left() {
            tree.restore(keep);
            tree.account_restored();
        }
        Ok(tree)
    }

    /// Opens the layers to look at them, while another process may serve them: nothing on disk is touched, and nothing
    /// can be changed.
    pub fn observe(spec: &MountSpec) -> Result<Tree, OpenError> {
        Tree::open_for(spec, Purpose::Observe, None, None)
    }

    /// Returns how many nodes are numbered from 1 on without gaps.
    pub(crate) fn gapless(&self) -> u64 {
        self.lower.gapless()
    }

    fn open_for(
        spec: &MountSpec,
        purpose: Purpose,
        keep: Option<&Arc<Keep>>,
        lock: Option<OwnedFd>,
    ) -> Result<Tree, OpenError> {
        let root = |error: Errno| OpenError::Root(error.into());
        let options = &spec.options;
        let capacity = handles::capacity();
        let upper = match spec.upper.as_ref() {
            Some(upper) => Some(UpperLayer::open(upper, options, purpose, lock)?),
            None => None,
        };
        let marks = match &upper {
            Some(upper) => upper.marks(),
            None => upper::nowhere().map(|file| Namespace::choose(options.userxattr, file.as_fd())).map_err(root)?,
        };
        let lower = match &spec.lower {
            Lower::Image { index, layers } => LowerTree::Image(ImageLower::open(index, layers, upper.is_some())?),
            Lower::Folders(folders) => {
                let devices = upper.iter().map(UpperLayer::device).collect();
                LowerTree::Folders(FolderLower::open(
                    folders,
                    devices,
                    capacity,
                    marks,
                    override_stat::deceives_nobody(options),
                    options.named_whiteouts,
                )?)
            }
        };
        Tree::new(lower, upper, (options, marks), capacity, keep.cloned()).map_err(root)
    }

    fn new(
        lower: LowerTree,
        upper: Option<UpperLayer>,
        (options, marks): (&Options, Namespace),
        capacity: usize,
        keep: Option<Arc<Keep>>,
    ) -> Result<Tree> {
        if let Some(keep) = &keep {
            lower.keep(keep);
        }
        let objects = Objects::new(keep);
        let mut root_file = None;
        if let Some(upper) = &upper {
            let raw = backing::stat(upper.root())?;
            let Marks { opaque, impure, .. } = marks.read(upper.root())?;
            let identity = Some(backing::identity(&raw));
            let state = State { upper: identity, merged: !opaque, opaque, impure, ..State::default() };
            objects.insert(Object::new(Ino::ROOT, Kind::Directory, true, state));
            root_file = Some(Arc::new(rustix::io::fcntl_dupfd_cloexec(upper.root(), 0)?));
            if upper.is_writable() && matches!(lower, LowerTree::Image(_)) && upper.is_empty()? {
                // An image says what its root is like; an upper made for it is to begin with that.
                let stat = lower.stat(Ino::ROOT)?;
                upper.owners().set_owner(upper.root(), Some(stat.uid), Some(stat.gid))?;
                upper.owners().set_permissions(upper.root(), stat.permissions)?;
                backing::restore_times(upper.root(), stat.atime, stat.mtime)?;
            }
        }
        let namespace = RwLock::default();
        let ledger = match upper.as_ref().filter(|upper| upper.is_writable()) {
            Some(upper) => Ledger::open(upper, options.limits)?,
            None => None,
        };
        let (ids, habits) = (Ids::of(options), Habits::of(options, marks));
        Ok(Tree {
            lower,
            upper,
            ids,
            habits,
            ledger,
            marks,
            objects,
            handles: Handles::new(capacity),
            forgotten: Forgotten::default(),

            outdated: Outdated::default(),
            searches: Searches::default(),
            root_file,
            ending: OnceLock::new(),
            namespace,
            changes: AtomicU64::new(0),
        })
    }

    /// Returns whether names are found without looking at whole layers first. Otherwise they are found all the same,
    /// but everybody waits meanwhile who changes names: [`search_layers`](Self::search_layers) is better called before.
    pub(crate) fn finds_names_at_once(&self) -> bool {
        self.lower.knows_copies()
    }

    /// Looks at whole layers, if that is needed to find names, while others can go on.
    pub(crate) fn search_layers(&self) {
        self.lower.find_copies();
    }

    /// Returns whether nothing can be changed because there is nowhere to write.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Finds `name` in the directory `dir` and counts a reference to it, which [`forget`](Self::forget) takes back.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Stat> {
        let _names = self.read_names();
        match name {
            // The kernel asks for these when it has a file handle only.
            b"." => return self.by_number_locked(dir),
            b".." => return self.by_number_locked(self.parent_of(dir)?),
            _ => {}
        }
        let directory = self.directory(dir)?;
        self.lookup_in(&directory, name)
    }

    /// Takes back `count` references to a node.
    pub fn forget(&self, ino: Ino, count: u64) {
        if ino == Ino::ROOT {
            return;
        }
        if self.upper.is_none() {
            if let Left::Nobody { parent: Some(parent) } = self.lower.forget(ino, count) {
                self.forgotten.note(ino, parent);
            }
            return;
        }
        let mut parent = None;
        // Under the lock: the next object of the number counts from what the file has then.
        let account = |object: Option<&Arc<Object>>| {
            if let (Some(object), true) = (object, self.ledger.is_some()) {
                self.account_last(object, self.handles.get(ino).as_deref());
            }
        };
        let dropped = self.objects.drop_if(ino, |object| match object {
            Some(object) if !object.over_lower => {
                let held = object.references.load(Ordering::Relaxed).saturating_sub(count);
                object.references.store(held, Ordering::Relaxed);
                if held == 0 {
                    account(Some(object));
                }
                held == 0
            }
            _ => match self.lower.forget(ino, count) {
                Left::Held => false,
                Left::Nobody { parent: found } => {
                    parent = found;
                    account(object);
                    true
                }
            },
        });
        if let Some(object) = dropped {
            self.account_gone(&object);
            self.handles.remove(ino);
            let held = {
                let mut state = object.state();
                parent = state.places.first().map(|place| place.parent);
                state.held.take()
            };
            if let Some(held) = held {
                self.lower.forget(held, 1);
            }
        }
        if let Some(parent) = parent {
            self.forgotten.note(ino, parent);
        }
    }

    /// Returns the directory that holds the directory `dir`.
    pub fn parent(&self, dir: Ino) -> Result<Ino> {
        let _names = self.read_names();
        self.parent_of(dir)
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        let _names = self.read_names();
        match self.upper_object(ino) {
            Some(object) if object.kind != Kind::Symlink => Err(Errno::INVAL),
            Some(object) => backing::read_link(self.upper_file(&object)?.as_fd()),
            None => self.lower.read_link(ino),
        }
    }

    /// Returns the number of nodes that the union keeps something about.
    pub fn object_count(&self) -> usize {
        self.objects.len()
    }

    /// Returns the number of nodes of the lowers that something is kept about; an image needs nothing for its nodes.
    pub fn lower_count(&self) -> usize {
        self.lower.known_count()
    }

    /// Finds a name and counts a reference. The caller holds `namespace`.
    fn lookup_in(&self, directory: &directory::Directory, name: &[u8]) -> Result<Stat> {
        for _ in 0..RACES {
            let looked = self.name(directory, name)?;
            let Some(found) = looked.found else {
                if let (Some(object), None, false) = (&directory.object, looked.covered, looked.whiteout) {
                    *object.absent() = Some((self.changes.load(Ordering::Relaxed), name.to_vec()));
                }
                return Err(Errno::NOENT);
            };
            let adopted =
                if self.upper.is_some() { self.adopt(directory.ino, name, &found, Hold::Yes) } else { Ok(None) };
            match adopted {
                Ok(Some(object)) => {
                    let stat = match &found.upper {
                        Some((_, raw)) => self.object_stat_with(&object, Some(raw)).map(|stat| self.to_shown(stat)),
                        None => self.stat_of(found.ino),
                    };
                    return stat.inspect_err(|_| self.forget(found.ino, 1));
                }
                Ok(None) => return self.hold(found.ino, directory.ino, name),
                // The kernel forgot it after it was found and before it was held.
                Err(Errno::STALE) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::STALE)
    }

    /// Counts a reference to a node found as `name` in `dir`. The caller holds `namespace`.
    fn hold(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Stat> {
        self.count_one(ino, dir, name)?;
        self.stat_of(ino).inspect_err(|_| self.forget(ino, 1))
    }

    fn count_one(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<()> {
        if self.upper.is_none() {
            return self.lower.remember(ino, dir, name);
        }
        self.objects.counted(ino, |object| match object {
            Some(object) if !object.over_lower => {
                object.references.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            _ => self.lower.remember(ino, dir, name),
        })
    }

    /// Finds a node by its number alone, as who has a file handle does, and counts a reference to it.
    pub fn by_number(&self, ino: Ino) -> Result<Stat> {
        let _names = self.read_names();
        self.by_number_locked(ino)
    }

    fn by_number_locked(&self, ino: Ino) -> Result<Stat> {
        if ino == Ino::ROOT {
            return self.stat_of(ino);
        }
        let place = match self.object(ino) {
            Some(object) => object.state().places.first().cloned(),
            // Below an upper, what a node was in the lower says nothing about what it is now.
            None => self.lower.place(ino).filter(|_| self.upper.is_none()),
        };
        match place {
            Some(place) => self.hold(ino, place.parent, &place.name),
            // A node of an image that has no name is still a node; nobody counts there.
            None if self.upper.is_none() && self.lower.contains(ino) => self.stat_of(ino),
            None => self.find_again(ino),
        }
    }

    fn parent_of(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino::ROOT {
            return Ok(dir);
        }
        match self.object(dir) {
            // A removed directory is its own parent.
            Some(object) => Ok(object.state().places.first().map_or(dir, |place| place.parent)),
            None => self.lower.parent(dir).ok_or(Errno::STALE),
        }
    }

    /// Returns the upper if it may be changed.
    fn writable_upper(&self) -> Result<&UpperLayer> {
        self.upper.as_ref().filter(|upper| upper.is_writable()).ok_or(Errno::ROFS)
    }

    /// Returns the object of a node, if it has one.
    fn object(&self, ino: Ino) -> Option<Arc<Object>> {
        if self.upper.is_none() { None } else { self.objects.get(ino) }
    }

    /// Returns the object of a node that has a file in the upper.
    fn upper_object(&self, ino: Ino) -> Option<Arc<Object>> {
        self.object(ino).filter(|object| object.is_in_upper())
    }

    fn read_names(&self) -> RwLockReadGuard<'_, ()> {
        self.namespace.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_names(&self) -> RwLockWriteGuard<'_, ()> {
        let names = self.namespace.write().unwrap_or_else(PoisonError::into_inner);
        self.changes.fetch_add(1, Ordering::Relaxed);
        names
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.keep_accounts();
    }
}

/// How often a node may be forgotten just when it was found.
const RACES: usize = 100;
