//! Opening and closing files: which mode a node gets.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Operations;
use super::nodes::{HEAD, Mode, Node, NodeNumber, suits_passthrough};
use crate::fuse::backing::{Backing, Register};
use crate::fuse::notify;
use crate::fuse::reply::{Open, Reply};
use crate::fuse::wire::fopen;
use crate::node::{Ino, Stat};
use crate::tree::{Access, Caller, Opened};

/// How an open is to be answered.
enum Answer {
    Cached {
        keep: bool,
    },
    Passed(Arc<Backing>),
    /// Look the name up again.
    Again,
    /// A reopen through a descriptor, which cannot be sent anywhere else.
    Busy,
}

impl Operations {
    /// Serves OPEN.
    pub(super) fn open(
        &self,
        caller: &Caller,
        node: NodeNumber,
        flags: i32,
        kill: bool,
        register: &dyn Register,
    ) -> Reply {
        if self.tree.is_read_only() && !self.passthrough.load(Ordering::Relaxed) {
            // Nothing here depends on who has what open, so this makes the kernel stop telling.
            return Reply::Error(Errno::NOSYS);
        }
        let ino = self.nodes.ino(node);
        let access = Access {
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            truncate: flags & libc::O_TRUNC != 0,
            kill_privileges: kill,
        };
        let changes = access.write || access.truncate;
        if let Some(answer) = self.superseded(node, changes, caller.pid) {
            return match answer {
                Answer::Passed(backing) => Reply::Opened(open(Opened::Lower, Answer::Passed(backing))),
                Answer::Busy => Reply::Error(Errno::TXTBSY),
                Answer::Again | Answer::Cached { .. } => Reply::Error(Errno::STALE),
            };
        }
        let opened = match self.tree.open_file(ino, access) {
            Ok(opened) => opened,
            Err(error) => return Reply::Error(error),
        };
        let answer = self.choose(node, ino, opened, changes, caller.pid, register);
        match answer {
            Answer::Cached { .. } => Reply::Opened(open(opened, answer)),
            Answer::Passed(_) => {
                if flags & libc::O_ACCMODE == libc::O_RDWR {
                    self.note_mapped(node);
                }
                Reply::Opened(open(opened, answer))
            }
            Answer::Again | Answer::Busy => {
                if opened == Opened::Upper {
                    self.tree.release(ino);
                }
                self.outdate_attributes(node);
                Reply::Error(Errno::STALE)
            }
        }
    }

    /// Answers CREATE for a file that was just made, open.
    pub(super) fn created(&self, stat: &Stat, flags: i32, register: &dyn Register) -> Reply {
        let node = stat.ino.0;
        self.nodes.remember(node);
        let answer = self.choose(node, stat.ino, Opened::Upper, true, 0, register);
        if flags & libc::O_ACCMODE == libc::O_RDWR && matches!(answer, Answer::Passed(_)) {
            self.note_mapped(node);
        }
        Reply::Created(self.entry(stat), open(Opened::Upper, answer))
    }

    /// Takes back an open that was not answered.
    pub(super) fn unopen(&self, node: NodeNumber) {
        let ino = self.nodes.ino(node);
        let handle = if self.tree.is_in_upper(ino) { IN_UPPER } else { 0 };
        self.release(node, handle);
    }

    /// Serves RELEASE.
    pub(super) fn release(&self, node: NodeNumber, handle: u64) {
        self.nodes.with_known(node, |state| state.opens = state.opens.saturating_sub(1));
        if handle == IN_UPPER {
            self.tree.release(self.nodes.ino(node));
        }
    }

    /// Lets new opens of a node whose file was changed by its name go to another node, if readers hold the old bytes.
    pub(super) fn outdate_lower_readers(&self, node: NodeNumber) {
        self.nodes.with_known(node, |state| {
            if state.opens > 0 && state.mode == Mode::Lower && state.superseded.is_none() {
                state.superseded = Some(HashSet::new());
                self.nodes.supersede(self.nodes.ino(node));
            }
        });
    }

    /// Decides about an open of a node that another has superseded; `None` if it is to be opened as usual.
    fn superseded(&self, node: NodeNumber, changes: bool, thread: u32) -> Option<Answer> {
        self.nodes.with_known(node, |state| {
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
        })?
    }

    /// Chooses how an opened file is served and counts the open.
    fn choose(
        &self,
        node: NodeNumber,
        ino: Ino,
        opened: Opened,
        changes: bool,
        thread: u32,
        register: &dyn Register,
    ) -> Answer {
        if !self.passthrough.load(Ordering::Relaxed) {
            if opened == Opened::Lower && !changes {
                self.nodes.with(node, |state| {
                    self.send_along(state, node, ino);
                    state.opens += 1;
                });
            } else {
                self.nodes.with(node, |state| state.opens += 1);
            }
            return Answer::Cached { keep: true };
        }
        let mut old = None;
        let (answer, new) = self.nodes.with(node, |state| {
            if state.opens > 0 {
                return (self.join(state, ino, changes, thread), false);
            }
            let mode = match opened {
                Opened::Upper => Mode::Upper,
                Opened::Lower if *state.suits.get_or_insert_with(|| self.suits(ino)) => Mode::Lower,
                Opened::Lower => Mode::Cached,
            };
            if mode == Mode::Cached && !changes && !state.stale_cache {
                self.send_along(state, node, ino);
            }
            state.opens = 1;
            let new = self.give_backing(state, ino, mode, register, &mut old);
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
            (answer, new)
        });
        // Given back only now that the next server would not be told of it any more.
        drop(old);
        if new {
            self.nodes.added_backing();
        }
        answer
    }

    /// Puts the content of a small lower file into the kernel's cache when it is opened for the first time: whoever
    /// opens it will read it, and so need not ask.
    ///
    /// The state is locked, and that no open is counted means that no read is under way, for which the kernel would hold
    /// pages that this would wait for. Whoever brings the file into the upper takes the lock before he answers, so that
    /// the kernel forgets this content after he has got it and not before.
    fn send_along(&self, state: &mut Node, node: NodeNumber, ino: Ino) {
        if state.opens > 0 || state.sent_along {
            return;
        }
        state.sent_along = true;
        CONTENT.with_borrow_mut(|content| {
            let Ok(stat) = self.tree.stat(ino) else { return };
            let length = match usize::try_from(stat.size) {
                Ok(length) if length > 0 && length <= content.len() && !self.tree.is_in_upper(ino) => length,
                _ => return,
            };
            if self.tree.read(ino, &mut content[..length], 0) == Ok(length) {
                // If the kernel does not take it, it asks.
                let _ = notify::store(&self.device, node, &content[..length]);
            }
        });
    }

    /// Opens a node that is open already, which has a mode.
    fn join(&self, state: &mut Node, ino: Ino, changes: bool, thread: u32) -> Answer {
        match (state.mode, &state.backing) {
            (Mode::Lower, _) if changes => {
                if state.superseded.get_or_insert_default().insert(thread) {
                    self.nodes.supersede(ino);
                }
                Answer::Again
            }
            (Mode::Lower | Mode::Upper, Some(backing)) => {
                let backing = Arc::clone(backing);
                state.opens += 1;
                Answer::Passed(backing)
            }
            _ => {
                state.opens += 1;
                Answer::Cached { keep: !state.stale_cache }
            }
        }
    }

    /// Makes a closed node ready for `mode`, or for the cached one if the kernel takes no backing file for it. Returns
    /// whether it has a backing file that it had not before; what it had is `old` then.
    fn give_backing(
        &self,
        state: &mut Node,
        ino: Ino,
        mode: Mode,
        register: &dyn Register,
        old: &mut Option<Arc<Backing>>,
    ) -> bool {
        if mode == Mode::Cached {
            state.mode = mode;
            return false;
        }
        if state.mode == mode && state.backing.is_some() {
            return false;
        }
        *old = state.backing.take();
        let had = old.is_some();
        state.mode = Mode::Cached;
        let registered = self.tree.backing_file(ino).and_then(|file| register.register(file.as_fd()).ok());
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
        self.nodes.with_known(node, |state| state.mapped = true);
    }
}

/// Describes an opened file. RELEASE has to know whether the tree counted the open.
fn open(opened: Opened, answer: Answer) -> Open {
    let handle = match opened {
        Opened::Lower => 0,
        Opened::Upper => IN_UPPER,
    };
    let (keep, backing) = match answer {
        Answer::Cached { keep } => (keep, None),
        Answer::Passed(backing) => (false, Some(backing)),
        Answer::Again | Answer::Busy => (false, None),
    };
    Open { handle, flags: if keep { fopen::KEEP_CACHE | fopen::NOFLUSH } else { fopen::NOFLUSH }, backing }
}

thread_local! {
    /// The content of a small file on its way.
    static CONTENT: RefCell<[u8; SMALL]> = const { RefCell::new([0; SMALL]) };
}

const IN_UPPER: u64 = 1;
/// Largest file whose content comes with its opening.
const SMALL: usize = 32 << 10;
