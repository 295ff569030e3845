//! Opening and closing files: which mode a node gets.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, ReplyCreate, ReplyOpen};

use super::Shared;
use super::adapter::GENERATION;
use super::nodes::{HEAD, Mode, Node, NodeNumber, suits_passthrough};
use super::reply::{FOREVER, attributes, errno};
use crate::node::{Ino, Stat};
use crate::tree::{Access, Caller, Opened};

/// How an open is to be answered.
enum Answer {
    Cached {
        keep: bool,
    },
    Passed(Arc<BackingId>),
    /// Look the name up again.
    Again,
    /// A reopen through a descriptor, which cannot be sent anywhere else.
    Busy,
}

impl Shared {
    /// Serves OPEN.
    pub(super) fn open(&self, caller: &Caller, node: NodeNumber, flags: i32, reply: ReplyOpen) {
        let ino = self.nodes.ino(node);
        let access = Access {
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            truncate: flags & libc::O_TRUNC != 0,
            kill_privileges: caller.uid != 0,
        };
        let changes = access.write || access.truncate;
        if let Some(answer) = self.superseded(node, changes, caller.pid) {
            return self.answer_superseded(answer, reply);
        }
        let opened = match self.tree.open_file(ino, access) {
            Ok(opened) => opened,
            Err(error) => return reply.error(errno(error)),
        };
        let answer = self.choose(node, ino, opened, changes, caller.pid, &|fd| reply.open_backing(fd.as_fd()));
        if flags & libc::O_ACCMODE == libc::O_RDWR && matches!(answer, Answer::Passed(_)) {
            self.note_mapped(node);
        }
        let handle = handle(opened);
        match answer {
            Answer::Cached { keep } => reply.opened(handle, cached_flags(keep)),
            Answer::Passed(backing) => reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing),
            Answer::Again | Answer::Busy => {
                if opened == Opened::Upper {
                    self.tree.release(ino);
                }
                self.outdate_attributes(node);
                reply.error(Errno::ESTALE);
            }
        }
    }

    /// Answers CREATE for a file that was just made, open.
    pub(super) fn created(&self, stat: &Stat, flags: i32, reply: ReplyCreate) {
        let node = stat.ino.0;
        let answer = self.choose(node, stat.ino, Opened::Upper, true, 0, &|fd| reply.open_backing(fd.as_fd()));
        let attributes = attributes(stat);
        let handle = handle(Opened::Upper);
        match answer {
            Answer::Passed(backing) => {
                let mut ttl = FOREVER;
                if flags & libc::O_ACCMODE == libc::O_RDWR {
                    self.note_mapped(node);
                    ttl = Duration::ZERO;
                }
                reply.created_passthrough(&ttl, &attributes, GENERATION, handle, FopenFlags::FOPEN_NOFLUSH, &backing);
            }
            _ => reply.created(&FOREVER, &attributes, GENERATION, handle, cached_flags(true)),
        }
    }

    /// Serves RELEASE.
    pub(super) fn release(&self, node: NodeNumber, handle: FileHandle) {
        {
            let mut shard = self.nodes.lock(node);
            if let Some(state) = shard.get_mut(&node) {
                state.opens = state.opens.saturating_sub(1);
            }
        }
        if handle.0 == IN_UPPER {
            self.tree.release(self.nodes.ino(node));
        }
    }

    /// Lets new opens of a node whose file was changed by its name go to another node, if readers hold the old bytes.
    pub(super) fn outdate_lower_readers(&self, node: NodeNumber) {
        let mut shard = self.nodes.lock(node);
        if let Some(state) = shard.get_mut(&node)
            && state.opens > 0
            && state.mode == Mode::Lower
            && state.superseded.is_none()
        {
            state.superseded = Some(HashSet::new());
            self.nodes.supersede(self.nodes.ino(node));
        }
    }

    /// Decides about an open of a node that another has superseded; `None` if it is to be opened as usual.
    fn superseded(&self, node: NodeNumber, changes: bool, thread: u32) -> Option<Answer> {
        let mut shard = self.nodes.lock(node);
        let state = shard.get_mut(&node)?;
        let told = state.superseded.as_mut()?;
        if state.opens == 0 {
            // Nobody holds the old bytes any more.
            state.superseded = None;
            return None;
        }
        if told.insert(thread) {
            return Some(Answer::Again);
        }
        // It was sent to look up the name and came back without: it has no name, only a descriptor.
        match (&state.backing, changes) {
            (Some(backing), false) => {
                state.opens += 1;
                Some(Answer::Passed(Arc::clone(backing)))
            }
            _ => Some(Answer::Busy),
        }
    }

    fn answer_superseded(&self, answer: Answer, reply: ReplyOpen) {
        match answer {
            Answer::Passed(backing) => {
                reply.opened_passthrough(handle(Opened::Lower), FopenFlags::FOPEN_NOFLUSH, &backing);
            }
            Answer::Busy => reply.error(Errno::ETXTBSY),
            Answer::Again | Answer::Cached { .. } => reply.error(Errno::ESTALE),
        }
    }

    /// Chooses how an opened file is served and counts the open.
    fn choose(
        &self,
        node: NodeNumber,
        ino: Ino,
        opened: Opened,
        changes: bool,
        thread: u32,
        register: &dyn Fn(&OwnedFd) -> std::io::Result<BackingId>,
    ) -> Answer {
        if !self.passthrough.load(Ordering::Relaxed) {
            return Answer::Cached { keep: true };
        }
        let mut shard = self.nodes.lock(node);
        let state = shard.entry(node).or_default();
        if state.opens > 0 {
            match (state.mode, &state.backing) {
                (Mode::Lower, _) if changes => {
                    if state.superseded.get_or_insert_default().insert(thread) {
                        self.nodes.supersede(ino);
                    }
                    return Answer::Again;
                }
                (Mode::Lower | Mode::Upper, Some(backing)) => {
                    let backing = Arc::clone(backing);
                    state.opens += 1;
                    return Answer::Passed(backing);
                }
                _ => {
                    state.opens += 1;
                    return Answer::Cached { keep: !state.stale_cache };
                }
            }
        }
        let mode = match opened {
            Opened::Upper => Mode::Upper,
            Opened::Lower if *state.suits.get_or_insert_with(|| self.suits(ino)) => Mode::Lower,
            Opened::Lower => Mode::Cached,
        };
        state.opens = 1;
        let new = self.give_backing(state, ino, mode, register);
        let answer = match (&state.backing, state.mode) {
            (Some(backing), Mode::Lower | Mode::Upper) => Answer::Passed(Arc::clone(backing)),
            _ => Answer::Cached { keep: !state.stale_cache },
        };
        if matches!(answer, Answer::Passed(_)) {
            // Changes made there do not reach the node's own pages.
            state.stale_cache |= state.mode == Mode::Upper;
        } else {
            state.stale_cache = false;
        }
        drop(shard);
        if new {
            self.nodes.added_backing();
        }
        answer
    }

    /// Makes a closed node ready for `mode`, or for the cached one if the kernel takes no backing file for it. Returns
    /// whether it has a backing file that it had not before.
    fn give_backing(
        &self,
        state: &mut Node,
        ino: Ino,
        mode: Mode,
        register: &dyn Fn(&OwnedFd) -> std::io::Result<BackingId>,
    ) -> bool {
        if mode == Mode::Cached {
            state.mode = mode;
            return false;
        }
        if state.mode == mode && state.backing.is_some() {
            return false;
        }
        let had = state.backing.take().is_some();
        state.mode = Mode::Cached;
        let registered = self.tree.backing_file(ino).and_then(|file| register(&file).ok());
        if let Some(backing) = registered {
            state.backing = Some(Arc::new(backing));
            state.mode = mode;
        }
        state.backing.is_some() && !had
    }

    /// Returns whether a lower file is one to pass through.
    fn suits(&self, ino: Ino) -> bool {
        if self.tree.is_read_only() {
            return true;
        }
        let mut head = [0; HEAD];
        let Ok(stat) = self.tree.stat(ino) else { return false };
        let Ok(length) = self.tree.read(ino, &mut head, 0) else { return false };
        suits_passthrough(stat.size, &head[..length])
    }

    fn note_mapped(&self, node: NodeNumber) {
        if let Some(state) = self.nodes.lock(node).get_mut(&node) {
            state.mapped = true;
        }
    }

    /// Makes the kernel ask for the attributes of a node again.
    fn outdate_attributes(&self, node: NodeNumber) {
        if let Some(notifier) = self.notifier.get() {
            // The node may be gone by now.
            let _ = notifier.inval_inode(INodeNo(node), -1, 0);
        }
    }
}

/// RELEASE has to know whether the tree counted the open.
fn handle(opened: Opened) -> FileHandle {
    FileHandle(match opened {
        Opened::Lower => 0,
        Opened::Upper => IN_UPPER,
    })
}

fn cached_flags(keep: bool) -> FopenFlags {
    if keep { FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::FOPEN_NOFLUSH }
}

const IN_UPPER: u64 = 1;
