//! What the requests of the kernel mean for the tree. One implementation, whatever brings the requests.

mod directory;
mod mapped;
mod nodes;
mod open;
mod sent_away;
mod spare;
mod special;
mod superseded;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::backing::Register;
use super::counts::Counts;
use super::guard::survive;
use super::notify;
use super::reply::{self, FOREVER, Reply, absent};
use super::request::{Change, Operation, Request};
use super::slow::Slow;
use super::wire::{AttrOut, EntryOut};
use crate::Result;
use crate::node::{Device, Ino, Kind, Stat, kind_of};
use crate::survive::{self as journal, Begun, Counter, Header, Journal, Keep, Point};
use crate::tree::{Caller, Long, New, RenameMode, SetAttributes, SetGroupId, Tree};
use nodes::{NodeNumber, Nodes};
use spare::Spare;

/// Threads for what takes long.
const SLOW_THREADS: usize = 3;
/// Threads for what waits for data to be fetched.
const FETCHING_THREADS: usize = 16;

/// The tree as the kernel sees it, shared by all serving threads.
#[derive(Debug)]
pub(crate) struct Operations {
    tree: Arc<Tree>,
    nodes: Nodes,
    /// Whether the kernel lets us name backing files. Known after the handshake.
    passthrough: AtomicBool,
    /// The connection, for notes to the kernel.
    device: Arc<OwnedFd>,
    /// Where requests in work are noted for the next server.
    journal: Option<Journal>,
    counts: Arc<Counts>,
    slow: Slow,
    spare: Spare,
    fetching: Slow,
}

/// What came of a request.
pub(crate) enum Outcome {
    /// The answer.
    Now(Reply),
    /// It takes long. The transport is to run it in another thread and then to send what it returns.
    Later(Job),
    /// As `Later`, but it waits for others rather than working: many at once cost nothing.
    Fetched(Job),
}

/// Work that takes long.
pub(crate) type Job = Box<dyn FnOnce(&dyn Register) -> Reply + Send>;

impl Outcome {
    /// Leaves work to other threads that takes long for this reason.
    fn long(why: Long, job: impl FnOnce(&dyn Register) -> Reply + Send + 'static) -> Outcome {
        match why {
            Long::Works => Outcome::Later(Box::new(job)),
            Long::Waits => Outcome::Fetched(Box::new(job)),
        }
    }
}

impl Operations {
    pub(crate) fn new(tree: Arc<Tree>, device: Arc<OwnedFd>) -> Arc<Operations> {
        Arc::new(Operations::with(tree, device, Nodes::new(None), None))
    }

    /// Goes on where an earlier server of the connection has stopped, if there was one, and leaves `keep` to the next.
    pub(crate) fn kept(tree: Arc<Tree>, device: Arc<OwnedFd>, keep: &Arc<Keep>) -> Arc<Operations> {
        let nodes = Nodes::new(Some(Arc::clone(keep)));
        let known = keep.known(tree.gapless());
        if keep.is_left() {
            nodes.restore(known, &device, |ino| tree.counts_opens(ino));
        }
        let journal = Journal::open(Arc::clone(keep.memory()));
        let mut intents = Vec::new();
        journal.for_each_intent(&mut |intent| intents.push(intent.to_vec()));
        tree.settle(&intents);
        let mut outdated = Vec::new();
        if journal.left_outdated() {
            tree.recover_capabilities();
            outdated = tree.in_upper();
        }
        if keep.is_left() && !tree.finds_names_at_once() {
            // The kernel knows names already, and need not look one up before it has it changed.
            let tree = Arc::clone(&tree);
            let search = std::thread::Builder::new().name("search".to_owned());
            let _ = search.spawn(move || tree.search_layers());
        }
        let operations = Operations::with(tree, device, nodes, Some(journal));
        for ino in outdated {
            operations.outdate_attributes(operations.nodes.current(ino));
        }
        Arc::new(operations)
    }

    fn with(tree: Arc<Tree>, device: Arc<OwnedFd>, nodes: Nodes, journal: Option<Journal>) -> Operations {
        let spare = Spare::new(journal.as_ref().map(|journal| Arc::clone(journal.memory())));
        Operations {
            tree,
            nodes,
            passthrough: AtomicBool::new(false),
            device,
            journal,
            counts: Arc::default(),
            slow: Slow::new(SLOW_THREADS),
            spare,
            fetching: Slow::new(FETCHING_THREADS),
        }
    }

    /// Lets this thread die on purpose, if a test wants that.
    pub(crate) fn expose_this_thread(&self) {
        if let Some(journal) = &self.journal {
            journal::expose(journal.memory());
        }
    }

    /// Says which requests of an earlier server come to this one again, where the kernel does not send them.
    pub(crate) fn expect_only(&self, uniques: &[u64]) {
        if let Some(journal) = &self.journal {
            journal.expect_only(uniques);
        }
    }

    /// Returns whether to go by what an earlier server has left; only a test says no.
    pub(crate) fn is_forgetful(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.memory().read_header(Header::Forgetful) != 0)
    }

    /// Notes that a request is in work; returns the answer if there is nothing left to do for it.
    pub(crate) fn begin(&self, request: &Request<'_>, opcode: u32) -> Option<Reply> {
        let journal = self.journal.as_ref()?;
        journal::pass(Point::Read);
        if request.operation.is_unanswered() {
            return None;
        }
        let reply = match journal.begin(request.unique, opcode) {
            Begun::New => None,
            Begun::Poison => Some(Reply::Error(Errno::IO)),
            // Its node may be another by now: the kernel does not hold it over the request.
            Begun::Again(effects) if matches!(request.operation, Operation::Release { .. }) => {
                (!effects.is_empty()).then_some(Reply::Done)
            }
            Begun::Again(effects) => {
                self.undo(&effects);
                None
            }
        };
        journal::pass(Point::Begun);
        reply
    }

    /// Takes back what a request has changed that was not answered.
    fn undo(&self, effects: &[(usize, i64)]) {
        let known = self.nodes.known();
        // The last first: a file is forgotten when it is not open any more.
        for (word, delta) in effects.iter().rev() {
            let Some((node, counter)) = known.and_then(|known| known.counter(*word)) else { continue };
            let count = u64::try_from(*delta).unwrap_or(0);
            match counter {
                Counter::Lookups => self.forget(node, count),
                Counter::Opens => (0..count).for_each(|_| self.unopen(node)),
            }
        }
        journal::effects_undone();
    }

    /// Lets file data bypass us from now on.
    pub(crate) fn allow_passthrough(&self) {
        self.passthrough.store(true, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    pub(crate) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Returns the threads for [`Outcome::Later`].
    pub(crate) fn slow(&self) -> &Slow {
        &self.slow
    }

    /// Returns the threads for [`Outcome::Fetched`].
    pub(crate) fn fetching(&self) -> &Slow {
        &self.fetching
    }

    /// Executes a request; one that panics is answered EIO. Data of the answer that is long goes to the start of `room`,
    /// which is as large as the request says.
    pub(crate) fn serve(self: &Arc<Self>, request: &Request<'_>, room: &mut [u8], register: &dyn Register) -> Outcome {
        let silent = request.operation.is_unanswered();
        let outcome = survive(|| self.dispatch(request, room, register));
        self.tell_outdated();
        let telling = |job: Job| -> Job {
            let this = Arc::clone(self);
            Box::new(move |register| {
                let reply = job(register);
                this.tell_outdated();
                reply
            })
        };
        match outcome {
            Some(Outcome::Later(job)) => Outcome::Later(telling(job)),
            Some(Outcome::Fetched(job)) => Outcome::Fetched(telling(job)),
            Some(now) => now,
            None => Outcome::Now(if silent { Reply::Silent } else { Reply::Error(Errno::IO) }),
        }
    }

    fn dispatch(self: &Arc<Self>, request: &Request<'_>, room: &mut [u8], register: &dyn Register) -> Outcome {
        let Request { node, caller, .. } = *request;
        let ino = self.nodes.ino(node);
        let tree = &self.tree;
        Outcome::Now(match request.operation {
            Operation::Lookup { name } if !tree.finds_names_at_once() => {
                let (this, name) = (Arc::clone(self), name.to_vec());
                return Outcome::Later(Box::new(move |_| {
                    this.tree.search_layers();
                    this.lookup(ino, &name, &caller)
                }));
            }
            Operation::Lookup { name } => self.lookup(ino, name, &caller),
            Operation::Forget { count } => {
                self.forget(node, count);
                Reply::Silent
            }
            Operation::BatchForget(forgets) => {
                forgets.iter().for_each(|(node, count)| self.forget(node, count));
                Reply::Silent
            }
            Operation::GetAttributes => self.attributes(node, tree.stat(ino)),
            Operation::GetStatx => self.statx(node, tree.stat(ino)),
            Operation::SetAttributes(change) => {
                if change.size != Some(0)
                    && let Some(why) = tree.copies_long(ino)
                {
                    let this = Arc::clone(self);
                    return Outcome::long(why, move |_| this.change(node, ino, &change));
                }
                self.change(node, ino, &change)
            }
            Operation::ReadLink => answer(tree.read_link(ino), Reply::Bytes),
            Operation::Symlink { name, target } => self.make(ino, name, New::Symlink(target), 0o777, 0, &caller),
            Operation::MakeNode { name, mode, umask, device } => match new_node(mode, device) {
                Some(new) => self.make(ino, name, new, mode, umask, &caller),
                None => Reply::Error(Errno::INVAL),
            },
            Operation::MakeDirectory { name, mode, umask } => {
                self.make(ino, name, New::Directory, mode, umask, &caller)
            }
            Operation::Unlink { name } => match tree.unlink_at_once(ino, name) {
                Ok(false) => {
                    let (this, name) = (Arc::clone(self), name.to_vec());
                    return Outcome::Later(Box::new(move |_| done(this.tree.unlink(ino, &name))));
                }
                result => done(result.map(drop)),
            },
            Operation::RemoveDirectory { name } => done(tree.rmdir(ino, name)),
            Operation::Rename { name, new_dir, new_name, flags } => match rename_mode(flags) {
                Some(mode) => {
                    let new_dir = self.nodes.ino(new_dir);
                    let exchanged = || tree.moves_long(new_dir, new_name).filter(|_| mode == RenameMode::Exchange);
                    if let Some(why) = tree.moves_long(ino, name).or_else(exchanged) {
                        let (this, name, new_name) = (Arc::clone(self), name.to_vec(), new_name.to_vec());
                        return Outcome::long(why, move |_| {
                            done(this.tree.rename(ino, &name, new_dir, &new_name, mode))
                        });
                    }
                    done(tree.rename(ino, name, new_dir, new_name, mode))
                }
                None => Reply::Error(Errno::INVAL),
            },
            Operation::Link { node: linked, name } => {
                let linked = self.nodes.ino(linked);
                if let Some(why) = tree.copies_long(linked) {
                    let (this, name) = (Arc::clone(self), name.to_vec());
                    return Outcome::long(why, move |_| this.known(this.tree.link(linked, ino, &name)));
                }
                self.known(tree.link(linked, ino, name))
            }
            Operation::Open { flags, kill } => {
                let changes = flags & (libc::O_ACCMODE | libc::O_TRUNC);
                let copies = changes != libc::O_RDONLY && changes & libc::O_TRUNC == 0;
                if copies && let Some(why) = tree.copies_long(ino) {
                    let this = Arc::clone(self);
                    return Outcome::long(why, move |register| this.open(&caller, node, flags, kill, register));
                }
                self.open(&caller, node, flags, kill, register)
            }
            Operation::Create { name, mode, umask, flags } => {
                match tree.create(ino, name, New::File { open: true }, mode, umask, &caller) {
                    Ok(stat) => self.created(&stat, flags, register),
                    Err(error) => Reply::Error(error),
                }
            }
            Operation::CreateUnnamed { mode, umask, flags } => {
                self.create_unnamed(ino, mode, umask, flags, &caller, register)
            }
            Operation::Read { offset, size } => {
                let length = room.len().min(size as usize);
                if !tree.is_here(ino, offset, length as u64) {
                    let this = Arc::clone(self);
                    return Outcome::Fetched(Box::new(move |_| {
                        let mut bytes = vec![0; length];
                        let read = this.tree.read(ino, &mut bytes, offset);
                        answer(read, |read| {
                            bytes.truncate(read);
                            Reply::Bytes(bytes)
                        })
                    }));
                }
                answer(tree.read(ino, &mut room[..length], offset), Reply::InRoom)
            }
            Operation::Write { offset, data, kill, cached } => match tree.write(ino, data, offset, kill) {
                // The kernel does not look at how much of its own pages was written.
                Ok(written) if written < data.len() && cached => Reply::Error(Errno::NOSPC),
                result => answer(result, |written| Reply::Written(saturate(written))),
            },
            Operation::Release { handle } => {
                self.release(node, handle);
                Reply::Done
            }
            Operation::Sync { data_only } if tree.sync_waits(ino) => {
                let this = Arc::clone(self);
                return Outcome::Later(Box::new(move |_| done(this.tree.sync(ino, data_only))));
            }
            Operation::Sync { .. } => Reply::Done,
            Operation::SyncFilesystem => {
                let this = Arc::clone(self);
                return Outcome::Later(Box::new(move |_| done(this.tree.write_through())));
            }
            Operation::ReadDirectory { cookie, size, attributes } => {
                let length = room.len().min(size as usize);
                if !tree.finds_names_at_once() {
                    let this = Arc::clone(self);
                    return Outcome::Later(Box::new(move |_| {
                        this.tree.search_layers();
                        let mut bytes = vec![0; length];
                        match this.read_directory(ino, cookie, attributes, &mut bytes) {
                            Reply::InRoom(used) => {
                                bytes.truncate(used);
                                Reply::Bytes(bytes)
                            }
                            reply => reply,
                        }
                    }));
                }
                self.read_directory(ino, cookie, attributes, &mut room[..length])
            }
            Operation::Statfs => answer(tree.statfs(), |usage| Reply::Statfs(reply::statfs(&usage))),
            Operation::SetXattr { name, value, flags, kill_setgid } => {
                let setgid = match kill_setgid {
                    Some(true) => SetGroupId::Drop,
                    Some(false) => SetGroupId::Keep,
                    None => SetGroupId::Judge(caller),
                };
                let flags = XattrFlags::from_bits_truncate(flags);
                if let Some(why) = tree.copies_long(ino) {
                    let (this, name, value) = (Arc::clone(self), name.to_vec(), value.to_vec());
                    return Outcome::long(why, move |_| done(this.tree.set_xattr(ino, &name, &value, flags, setgid)));
                }
                done(tree.set_xattr(ino, name, value, flags, setgid))
            }
            Operation::GetXattr { name, room } => sized(tree.xattr(ino, name), room),
            Operation::ListXattrs { room } => sized(tree.list_xattrs(ino, caller.uid == 0), room),
            Operation::RemoveXattr { name } => {
                if let Some(why) = tree.copies_long(ino) {
                    let (this, name) = (Arc::clone(self), name.to_vec());
                    return Outcome::long(why, move |_| done(this.tree.remove_xattr(ino, &name)));
                }
                done(tree.remove_xattr(ino, name))
            }
            Operation::Ioctl { command, input, room } => {
                if Operations::ioctl_changes(command)
                    && let Some(why) = tree.copies_long(ino)
                {
                    let (this, input) = (Arc::clone(self), input.to_vec());
                    return Outcome::long(why, move |_| this.ioctl(ino, command, &input, room));
                }
                self.ioctl(ino, command, input, room)
            }
            Operation::Allocate { offset, length, mode } => {
                if let Some(why) = tree.copies_long(ino) {
                    let this = Arc::clone(self);
                    return Outcome::long(why, move |_| done(this.tree.allocate(ino, mode, offset, length)));
                }
                done(tree.allocate(ino, mode, offset, length))
            }
            Operation::Seek { offset, whence } => self.seek(ino, offset, whence),
            Operation::CopyRange { offset, to, to_offset, length, wide } => {
                let (from, to) = ((ino, offset), (self.nodes.ino(to), to_offset));
                let copy = move |tree: &Tree| {
                    answer(tree.copy_range(from, to, length), |copied| {
                        if wide {
                            Reply::Copied(copied)
                        } else {
                            Reply::Written(u32::try_from(copied).unwrap_or(u32::MAX))
                        }
                    })
                };
                let absent = || (!tree.is_here(ino, offset, length)).then_some(Long::Waits);
                if let Some(why) = tree.copies_long(to.0).or_else(absent) {
                    let this = Arc::clone(self);
                    return Outcome::long(why, move |_| copy(&this.tree));
                }
                copy(tree)
            }
            Operation::Destroy => Reply::Done,
            // "Not served" makes the kernel stop asking: there is nothing to do on close, listing keeps no state, and
            // what is under way is not taken back.
            Operation::Flush | Operation::OpenDirectory | Operation::Interrupt | Operation::Other => {
                Reply::Error(Errno::NOSYS)
            }
        })
    }

    fn lookup(&self, dir: Ino, name: &[u8], caller: &Caller) -> Reply {
        match self.tree.lookup(dir, name) {
            Err(Errno::NOENT) => {
                self.nodes.sent_away.finds_nothing(caller.pid);
                Reply::Entry(absent())
            }
            result => {
                if let Ok(stat) = &result
                    && self.nodes.sent_away.looks_up(caller.pid)
                    && stat.kind == Kind::Regular
                    && self.nodes.make_way(stat.ino)
                {
                    self.outdate_attributes(stat.ino.0);
                }
                self.known(result)
            }
        }
    }

    fn forget(&self, node: NodeNumber, count: u64) {
        self.tree.forget(self.nodes.ino(node), count);
        self.nodes.forget(node, count);
        self.spare.one_forgotten();
    }

    fn make(&self, dir: Ino, name: &[u8], new: New<'_>, mode: u32, umask: u32, caller: &Caller) -> Reply {
        self.known(self.tree.create(dir, name, new, mode, umask, caller))
    }

    fn change(&self, node: NodeNumber, ino: Ino, change: &Change) -> Reply {
        let attributes = SetAttributes {
            permissions: change.permissions,
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: change.atime,
            mtime: change.mtime,
            kill_privileges: change.kill,
        };
        let result = self.tree.set_attributes(ino, &attributes);
        if change.size.is_some() && result.is_ok() {
            self.outdate_lower_readers(node);
        }
        self.attributes(node, result)
    }

    /// Answers with a node that the kernel is to know.
    fn known(&self, result: Result<Stat>) -> Reply {
        match result {
            Ok(stat) => Reply::Entry(self.entry(&stat, self.nodes.tell(stat.ino))),
            Err(error) => Reply::Error(error),
        }
    }

    /// Describes a node.
    fn entry(&self, stat: &Stat, node: NodeNumber) -> EntryOut {
        EntryOut {
            node,
            generation: self.tree.generation(stat).into(),
            entry_valid: FOREVER,
            attr_valid: self.validity(node),
            attr: reply::attributes(stat),
            ..EntryOut::default()
        }
    }

    fn attributes(&self, node: NodeNumber, result: Result<Stat>) -> Reply {
        answer(result, |stat| {
            let attr = reply::attributes(&stat);
            Reply::Attributes(AttrOut { attr_valid: self.validity(node), attr, ..AttrOut::default() })
        })
    }

    /// Returns how long the kernel may keep the attributes of a node, in seconds.
    fn validity(&self, node: NodeNumber) -> u64 {
        if self.nodes.attributes_stay(node) { FOREVER } else { 0 }
    }

    /// Tells the kernel about nodes that a request has changed beside the one that it was about.
    fn tell_outdated(&self) {
        for ino in self.tree.take_outdated() {
            self.outdate_attributes(self.nodes.current(ino));
        }
    }

    /// Makes the kernel ask for the attributes of a node again.
    fn outdate_attributes(&self, node: NodeNumber) {
        // The node may be gone by now.
        let _: io::Result<()> = notify::outdate_attributes(&self.device, node);
    }
}

fn answer<T>(result: Result<T>, reply: impl FnOnce(T) -> Reply) -> Reply {
    result.map_or_else(Reply::Error, reply)
}

fn done(result: Result<()>) -> Reply {
    answer(result, |()| Reply::Done)
}

/// Answers with the value or, if the caller left no room, with its size.
fn sized(value: Result<Vec<u8>>, room: u32) -> Reply {
    answer(value, |value| match room {
        0 => Reply::Needs(saturate(value.len())),
        room if value.len() > room as usize => Reply::Error(Errno::RANGE),
        _ => Reply::Bytes(value),
    })
}

fn saturate(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn new_node(mode: u32, device: Device) -> Option<New<'static>> {
    match kind_of(mode)? {
        Kind::Regular => Some(New::File { open: false }),
        kind @ (Kind::CharDevice | Kind::BlockDevice) => Some(New::Node(kind, device)),
        kind @ (Kind::Fifo | Kind::Socket) => Some(New::Node(kind, Device::default())),
        Kind::Directory | Kind::Symlink => None,
    }
}

fn rename_mode(flags: u32) -> Option<RenameMode> {
    const WHITEOUT_NO_REPLACE: u32 = libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE;
    match flags {
        0 => Some(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        libc::RENAME_WHITEOUT => Some(RenameMode::Whiteout),
        WHITEOUT_NO_REPLACE => Some(RenameMode::WhiteoutNoReplace),
        _ => None,
    }
}
