//! What the union knows about nodes that the upper has a part in.
//!
//! A lower node that nothing happened to needs no object. One is made when the node is copied up, or removed while
//! somebody holds it, or when a name leads to something in the upper; it goes when the kernel forgets the node.

use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::accounting::Account;
use super::create::Heritage;
use super::listing::Listing;
use super::record;
use super::unmoved::Unmoved;
use rustix::io::Errno;

use crate::backing::Identity;
use crate::lower::Place;
use crate::node::{Ino, Kind};
use crate::survive::{Keep, RecordId};
use crate::table;
use crate::upper::Link;

/// A node with a side in the upper.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) ino: Ino,
    pub(super) kind: Kind,
    /// The lower knows the node under this number and counts its references.
    pub(super) over_lower: bool,
    /// References of the kernel, if the lower does not count them. Guarded by the table's shard.
    pub(super) references: AtomicU64,
    /// Held while the node is copied up, so that this happens once. Taken before `Tree::namespace`.
    pub(super) copying: Mutex<()>,
    state: Mutex<State>,
    /// Where the state is written as well, from the moment that the object is in the table.
    kept: OnceLock<Kept>,
    /// The names in their stable order, once somebody listed the directory. Taken after `Tree::namespace`.
    listing: Mutex<Option<Listing>>,
    /// What is made in the directory inherits, once that was asked for. Set with `Tree::namespace` held for writing,
    /// forgotten with it held at all.
    heritage: Mutex<Option<Heritage>>,
    /// May have file capabilities. False only of what had none when it came into the upper, until it is given some.
    capable: AtomicBool,
    /// A name that is neither in the directory nor hidden there, and the state of all names when that was found.
    absent: Mutex<Option<(u64, Vec<u8>)>>,
    pub(super) account: Account,
}

/// The part of an object that changes.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The file in the upper.
    pub(super) upper: Option<Identity>,
    /// Where the data of a regular file in the upper is.
    pub(super) content: Content,
    /// The node of the lower that is held for its data; `None` if that is counted anyway, being the same node.
    pub(super) held: Option<Ino>,
    /// A directory that is marked to hold what came from the lowers.
    pub(super) impure: bool,
    /// A directory through which the lower's one of the same number shows.
    pub(super) merged: bool,
    /// A directory whose own marks say that nothing below shows.
    pub(super) opaque: bool,
    /// The names that lead here, as far as known. Empty: removed, but held. The root has none either.
    pub(super) places: Vec<Place>,
    /// Made without a name, which it may still get.
    pub(super) unnamed: bool,
    /// Held because no name leads here any more, or none yet; open as a path.
    pub(super) pinned: Option<Arc<OwnedFd>>,
    /// The open file for reading and writing data, while anybody has the node open.
    pub(super) data: Option<Data>,
    /// How often the node is open.
    pub(super) opens: u64,
    /// The lower file has several names.
    pub(super) link: Option<Link>,
    /// What a directory shows while nothing but copies has come into it.
    pub(super) unmoved: Option<Unmoved>,
}

impl State {
    /// Notes a file in the upper that is found in place: of an object that has just been made, or a copy that was not noted.
    pub(super) fn copy_is_found(&mut self, identity: Identity, content: Content, link: Option<Link>) {
        (self.upper, self.content) = (Some(identity), content);
        if self.link.is_some() && link.is_some() {
            self.link = link;
        }
    }
}

/// Where an object's state is written for the next server.
#[derive(Debug)]
struct Kept {
    keep: Arc<Keep>,
    written: Mutex<Written>,
}

/// What has been written of an object.
#[derive(Debug, Default)]
struct Written {
    record: Option<RecordId>,
    /// Its file lies with the pins.
    pinned: bool,
    /// The object has left the table.
    gone: bool,
}

/// An object's state, locked. When it was changed, it is written for the next server before the lock is gone.
#[derive(Debug)]
pub(super) struct StateGuard<'a> {
    object: &'a Object,
    state: MutexGuard<'a, State>,
    changed: bool,
}

impl Kept {
    /// Taken after the object's state.
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.changed = true;
        &mut self.state
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        if self.changed {
            self.object.write(&self.state);
        }
    }
}

/// Where the data of a file in the upper is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Content {
    /// In the file itself, as for everything but regular files.
    #[default]
    Own,
    /// Still in this file of the lower; the upper's has attributes only (`metacopy`).
    Lower(Ino),
    /// The upper says that it is in the lower, which has no such file.
    Missing,
}

/// An open regular file of the upper.
#[derive(Clone, Debug)]
pub(super) struct Data {
    pub(super) file: Arc<OwnedFd>,
    pub(super) writable: bool,
}

impl Object {
    pub(super) fn new(ino: Ino, kind: Kind, over_lower: bool, state: State) -> Object {
        Object {
            ino,
            kind,
            over_lower,
            references: AtomicU64::new(0),
            copying: Mutex::default(),
            state: Mutex::new(state),
            kept: OnceLock::new(),
            listing: Mutex::default(),
            heritage: Mutex::default(),
            capable: AtomicBool::new(true),
            absent: Mutex::default(),
            account: Account::default(),
        }
    }

    /// Nothing that can panic runs under this lock, and nothing that waits.
    pub(super) fn state(&self) -> StateGuard<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        StateGuard { object: self, state, changed: false }
    }

    /// Returns what is made in the directory inherits, if that is known.
    pub(super) fn heritage(&self) -> MutexGuard<'_, Option<Heritage>> {
        self.heritage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is kept of a directory's attributes, which are about to change. The caller holds `Tree::namespace`.
    pub(super) fn attributes_change(&self) {
        *self.heritage() = None;
        let mut state = self.state();
        if state.unmoved.is_some() {
            state.unmoved = None;
        }
    }

    /// Returns whether the file in the upper may have capabilities. They need not be asked for otherwise, nor taken away.
    pub(super) fn is_capable(&self) -> bool {
        self.capable.load(Ordering::Acquire)
    }

    /// Notes whether it may have them: when it comes into the upper, and before it is given some.
    pub(super) fn set_capable(&self, capable: bool) {
        self.capable.store(capable, Ordering::Release);
    }

    /// Returns the name that was last found to be absent.
    pub(super) fn absent(&self) -> MutexGuard<'_, Option<(u64, Vec<u8>)>> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the state for the next server from now on; it may have been written by an earlier one.
    pub(super) fn keep(&self, keep: &Arc<Keep>, record: Option<RecordId>) {
        // The root is found again without.
        if self.ino == Ino::ROOT {
            return;
        }
        let written = Mutex::new(Written { record, ..Written::default() });
        if self.kept.set(Kept { keep: Arc::clone(keep), written }).is_ok() && record.is_none() {
            self.write(&self.state());
        }
    }

    /// Gives an object its file back that the last server had pinned.
    pub(super) fn restore_file(&self, file: Arc<OwnedFd>) {
        // Not by the guard: it is pinned already.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pinned = Some(file);
        if let Some(kept) = self.kept.get() {
            kept.written().pinned = true;
        }
    }

    /// Sets how often the node is open.
    pub(super) fn restore_opens(&self, opens: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).opens = opens;
    }

    /// Takes back what was written for the next server.
    fn leave(&self) {
        let _state = self.state();
        let Some(kept) = self.kept.get() else { return };
        let written = std::mem::replace(&mut *kept.written(), Written { gone: true, ..Written::default() });
        if let Some(record) = written.record {
            kept.keep.memory().remove(record);
        }
        if written.pinned {
            kept.keep.pins().unpin(self.ino.0);
        }
    }

    /// Writes the state. The caller holds its lock.
    fn write(&self, state: &State) {
        let Some(kept) = self.kept.get() else { return };
        let mut written = kept.written();
        if written.gone {
            return;
        }
        // The file first: a record that promises one is of no use without.
        match &state.pinned {
            Some(file) if !written.pinned => written.pinned = kept.keep.pin(self.ino, file),
            None if written.pinned => {
                kept.keep.pins().unpin(self.ino.0);
                written.pinned = false;
            }
            _ => {}
        }
        written.record = kept.keep.memory().put(written.record, &record::encode(self, state));
    }

    pub(super) fn listing(&self) -> MutexGuard<'_, Option<Listing>> {
        self.listing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether no name leads here any more.
    pub(super) fn is_removed(&self) -> bool {
        self.ino != Ino::ROOT && self.state().places.is_empty()
    }

    pub(super) fn is_in_upper(&self) -> bool {
        self.state().upper.is_some()
    }

    pub(super) fn add_place(&self, parent: Ino, name: &[u8]) {
        let mut state = self.state();
        if !state.places.iter().any(|place| place.parent == parent && place.name == name) {
            state.places.push(Place { parent, name: name.to_vec() });
        }
    }

    pub(super) fn remove_place(&self, parent: Ino, name: &[u8]) {
        self.state().places.retain(|place| place.parent != parent || place.name != name);
    }

    /// Adds a name to the listing, if there is one.
    pub(super) fn list(&self, name: &[u8]) {
        if let Some(listing) = self.listing().as_mut() {
            listing.insert(name);
        }
    }

    /// Takes a name off the listing, if there is one.
    pub(super) fn unlist(&self, name: &[u8]) {
        if let Some(listing) = self.listing().as_mut() {
            listing.remove(name);
        }
    }
}

/// All objects, by the number that users see.
///
/// A number cannot come to mean something else while its object is here: an object that lost its last name keeps its
/// file open, so that the backing filesystem cannot give the number away.
pub(super) struct Objects {
    shards: [RwLock<HashMap<Ino, Arc<Object>>>; SHARDS],
    keep: Option<Arc<Keep>>,
}

impl Objects {
    /// Makes an empty table; with `keep`, what is in it is written for the next server.
    pub(super) fn new(keep: Option<Arc<Keep>>) -> Objects {
        Objects { shards: std::array::from_fn(|_| RwLock::default()), keep }
    }

    fn made(&self, object: Object) -> Arc<Object> {
        if let Some(keep) = &self.keep {
            object.keep(keep, None);
        }
        Arc::new(object)
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Object>> {
        self.read(ino).get(&ino).cloned()
    }

    /// Returns the object of a number, made by `make` if there is none.
    pub(super) fn get_or_insert(&self, ino: Ino, make: impl FnOnce() -> Object) -> Arc<Object> {
        Arc::clone(self.write(ino).entry(ino).or_insert_with(|| self.made(make())))
    }

    /// The same, and calls `count` under the lock that `forget` takes, so that the object is not dropped in between. If
    /// that fails the object is dropped: with `STALE`, nobody holds it.
    pub(super) fn get_or_insert_counted<T>(
        &self,
        ino: Ino,
        make: impl FnOnce() -> Object,
        count: impl FnOnce(&Object) -> crate::Result<T>,
    ) -> crate::Result<(Arc<Object>, T)> {
        let mut shard = self.write(ino);
        let mut new = false;
        let object = Arc::clone(shard.entry(ino).or_insert_with(|| {
            new = true;
            self.made(make())
        }));
        match count(&object) {
            Ok(counted) => Ok((object, counted)),
            Err(error) => {
                if new || error == Errno::STALE {
                    table::remove(&mut shard, &ino);
                    object.leave();
                }
                Err(error)
            }
        }
    }

    /// Puts a new object in, in place of what has its number.
    pub(super) fn insert(&self, object: Object) -> Arc<Object> {
        let object = self.made(object);
        let replaced = self.write(object.ino).insert(object.ino, Arc::clone(&object));
        if let Some(replaced) = replaced {
            replaced.leave();
        }
        object
    }

    /// Puts an object of the last server in, whose record is there.
    pub(super) fn restore(&self, object: Object) -> Arc<Object> {
        let object = Arc::new(object);
        self.write(object.ino).insert(object.ino, Arc::clone(&object));
        object
    }

    /// Calls `count` with the object under the lock that `forget` takes.
    pub(super) fn counted<T>(&self, ino: Ino, count: impl FnOnce(Option<&Arc<Object>>) -> T) -> T {
        count(self.read(ino).get(&ino))
    }

    /// Calls `left` under the lock, and drops the object if it says that nobody knows it any more.
    pub(super) fn drop_if(&self, ino: Ino, left: impl FnOnce(Option<&Arc<Object>>) -> bool) -> Option<Arc<Object>> {
        let mut shard = self.write(ino);
        let dropped = if left(shard.get(&ino)) { table::remove(&mut shard, &ino) } else { None };
        if let Some(object) = &dropped {
            object.leave();
        }
        dropped
    }

    /// Returns all objects.
    pub(super) fn all(&self) -> Vec<Arc<Object>> {
        let shards = self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner));
        shards.flat_map(|shard| shard.values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Calls `visit` with each object. It must not ask for others.
    pub(super) fn for_each(&self, visit: &mut dyn FnMut(&Object)) {
        for shard in &self.shards {
            shard.read().unwrap_or_else(PoisonError::into_inner).values().for_each(|object| visit(object));
        }
    }

    /// Returns the number of objects.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    fn read(&self, ino: Ino) -> RwLockReadGuard<'_, HashMap<Ino, Arc<Object>>> {
        self.shard(ino).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, ino: Ino) -> RwLockWriteGuard<'_, HashMap<Ino, Arc<Object>>> {
        self.shard(ino).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, ino: Ino) -> &RwLock<HashMap<Ino, Arc<Object>>> {
        let number = usize::try_from(ino.0 % SHARDS as u64).unwrap_or(0);
        &self.shards[number]
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("len", &self.len()).finish_non_exhaustive()
    }
}

const SHARDS: usize = 16;
