//! Opening and closing files: which mode a node gets.

use std::cell::RefCell;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Operations;
use super::nodes::{HEAD, Mode, Node, NodeNumber, suits_passthrough};
use crate::backing;
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
    /// The data was copied up since it was looked for.
    Moved,
    /// Others have it by passthrough to a file that cannot be read past the page cache.
    NotDirect,
}

/// What whoever opens a file wants.
#[derive(Clone, Copy)]
struct Wish {
    /// To change it.
    changes: bool,
    /// No other node: the kernel cannot be sent to one.
    nameless: bool,
    /// No page cache (`O_DIRECT`).
    direct: bool,
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
        if access.truncate && !access.write && self.nodes.with_known(node, |state| state.executed > 0) == Some(true) {
            // The kernel refuses this too, but asks us first. Opens for writing do not come here.
            return Reply::Error(Errno::TXTBSY);
        }
        // Opens with a descriptor, not a name, cannot be sent anywhere else.
        let nameless = self.nodes.sent_away.comes_back(caller.pid, node);
        if self.nodes.is_superseded(node) {
            if !nameless {
                return self.send_away(node, caller.pid);
            }
            match self.join_old_readers(node, changes) {
                Some(Ok(backing)) => return self.opened(node, Opened::Lower, Answer::Passed(backing), flags),
                Some(Err(busy)) => return Reply::Error(busy),
                None => {}
            }
        }
        loop {
            let opened = match self.tree.open_file(ino, access) {
                Ok(opened) => opened,
                // The kernel looks again for this as well, and what is there then he must be able to open.
                Err(Errno::STALE) if !nameless => return self.send_away(node, caller.pid),
                Err(error) => return Reply::Error(error),
            };
            let wish = Wish { changes, nameless, direct: flags & libc::O_DIRECT != 0 };
            let answer = self.choose(node, ino, opened, wish, register);
            match answer {
                Answer::Cached { .. } => return self.opened(node, opened, answer, flags),
                Answer::Passed(_) => {
                    if flags & libc::O_ACCMODE == libc::O_RDWR {
                        self.nodes.note_mapped(node);
                    }
                    return self.opened(node, opened, answer, flags);
                }
                Answer::Moved => {}
                Answer::NotDirect => return Reply::Error(Errno::INVAL),
                Answer::Again => {
                    if opened == Opened::Upper {
                        self.tree.release(ino);
                    }
                    self.outdate_attributes(node);
                    return self.send_away(node, caller.pid);
                }
            }
        }
    }

    fn opened(&self, node: NodeNumber, opened: Opened, answer: Answer, flags: i32) -> Reply {
        let mut open = self.describe(opened, answer);
        if flags & FOR_EXECUTION != 0 {
            self.nodes.with_known(node, |state| state.executed += 1);
            open.handle |= EXECUTED;
        }
        Reply::Opened(open)
    }

    /// Has the kernel look the name up again.
    fn send_away(&self, node: NodeNumber, thread: u32) -> Reply {
        self.nodes.sent_away.add(thread, node);
        Reply::Error(Errno::STALE)
    }

    /// Answers CREATE for a file that was just made, open.
    pub(super) fn created(&self, stat: &Stat, flags: i32, register: &dyn Register) -> Reply {
        let node = self.nodes.tell(stat.ino);
        let wish = Wish { changes: true, nameless: true, direct: false };
        let answer = self.choose(node, stat.ino, Opened::Upper, wish, register);
        if flags & libc::O_ACCMODE == libc::O_RDWR && matches!(answer, Answer::Passed(_)) {
            self.nodes.note_mapped(node);
        }
        Reply::Created(self.entry(stat, node), self.describe(Opened::Upper, answer))
    }

    /// Takes back an open of an earlier server that was not answered.
    pub(super) fn unopen(&self, node: NodeNumber) {
        self.release(node, 0);
    }

    /// Serves RELEASE.
    pub(super) fn release(&self, node: NodeNumber, handle: u64) {
        let in_upper = handle & IN_UPPER != 0;
        let counted = self.nodes.with_known(node, |state| {
            state.opens = state.opens.saturating_sub(1);
            // An open that is taken back does not say what it was for.
            let executed = state.executed.saturating_sub(u64::from(handle & EXECUTED != 0));
            state.executed = executed.min(state.opens);
            if handle >> GENERATION == self.nodes.generation {
                return in_upper;
            }
            // The tree was told of all that were open when this server began, and not of what.
            let counted = state.counted > 0;
            state.counted = state.counted.saturating_sub(1);
            counted
        });
        if counted.unwrap_or(in_upper) {
            self.tree.release(self.nodes.ino(node));
        }
    }

    /// Lets new opens of a node whose file was changed by its name go to another node, if readers hold the old bytes.
    pub(super) fn outdate_lower_readers(&self, node: NodeNumber) {
        self.nodes.with_known(node, |state| {
            if state.opens > 0 && state.mode == Mode::Lower {
                self.nodes.supersede(self.nodes.ino(node));
            }
        });
    }

    /// Opens a superseded node for who has a descriptor of it only: beside those who read the old bytes, if there are any.
    fn join_old_readers(&self, node: NodeNumber, changes: bool) -> Option<Result<Arc<Backing>, Errno>> {
        self.nodes.with_known(node, |state| match (state.mode, &state.backing) {
            _ if state.opens == 0 => None,
            (Mode::Lower, Some(backing)) if !changes => {
                let backing = Arc::clone(backing);
                state.opens += 1;
                Some(Ok(backing))
            }
            (Mode::Lower, _) => Some(Err(Errno::TXTBSY)),
            _ => None,
        })?
    }

    /// Chooses how an opened file is served and counts the open.
    fn choose(&self, node: NodeNumber, ino: Ino, opened: Opened, wish: Wish, register: &dyn Register) -> Answer {
        let Wish { changes, nameless, direct } = wish;
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
            // Superseded since the open began: who comes now must not join what a writer could not share.
            if !nameless && self.nodes.is_superseded(node) {
                return (Answer::Again, false);
            }
            if state.opens > 0 {
                if direct && state.mode == Mode::Lower && !changes && !self.can_be_direct(ino) {
                    return (Answer::NotDirect, false);
                }
                return (self.join(state, ino, changes), false);
            }
            let sharable = self.nodes.supersedes(node) || self.nodes.is_superseded(node);
            let mode = match opened {
                Opened::Upper => Mode::Upper,
                Opened::Lower if sharable || direct && !self.can_be_direct(ino) => Mode::Cached,
                Opened::Lower if *state.suits.get_or_insert_with(|| self.suits(ino)) => Mode::Lower,
                Opened::Lower => Mode::Cached,
            };
            // Whoever copies it up comes here next: if that is not over by now, he will find this reader.
            if mode == Mode::Lower && self.tree.has_own_data(ino) {
                return (Answer::Moved, false);
            }
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
        if state.opens > 0 || state.sent_along || !self.tree.is_here(ino, 0, SMALL as u64) {
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
    fn join(&self, state: &mut Node, ino: Ino, changes: bool) -> Answer {
        match (state.mode, &state.backing) {
            (Mode::Lower, _) if changes => {
                self.nodes.supersede(ino);
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

    /// Returns whether a lower file can be opened past the page cache where it would be passed through to, which the kernel
    /// does with the client's flags: not in an image's objects (EROFS). It fails with EIO if not.
    fn can_be_direct(&self, ino: Ino) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECT;
        self.tree.backing_file(ino).is_none_or(|file| backing::reopen(file.as_fd(), flags).is_ok())
    }

    /// Returns whether a lower file is one to pass through.
    fn suits(&self, ino: Ino) -> bool {
        if self.tree.is_read_only() {
            return true;
        }
        let mut head = [0; HEAD];
        // What is not here yet has no object either.
        if !self.tree.is_here(ino, 0, HEAD as u64) {
            return false;
        }
        let Ok(stat) = self.tree.stat(ino) else { return false };
        let Ok(length) = self.tree.read(ino, &mut head, 0) else { return false };
        suits_passthrough(stat.size, &head[..length])
    }

    /// Describes an opened file. RELEASE has to know whether the tree counted the open, and which server's tree.
    fn describe(&self, opened: Opened, answer: Answer) -> Open {
        let in_upper = match opened {
            Opened::Lower => 0,
            Opened::Upper => IN_UPPER,
        };
        let (keep, backing) = match answer {
            Answer::Cached { keep } => (keep, None),
            Answer::Passed(backing) => (false, Some(backing)),
            Answer::Again | Answer::Moved | Answer::NotDirect => (false, None),
        };
        let flags = if keep { fopen::KEEP_CACHE | fopen::NOFLUSH } else { fopen::NOFLUSH };
        Open { handle: self.nodes.generation << GENERATION | in_upper, flags, backing }
    }
}

thread_local! {
    /// The content of a small file on its way.
    static CONTENT: RefCell<[u8; SMALL]> = const { RefCell::new([0; SMALL]) };
}

/// In handles of open files.
const IN_UPPER: u64 = 1;
const EXECUTED: u64 = 2;
/// From this bit on: which server has opened the file.
const GENERATION: u32 = 8;
/// `__FMODE_EXEC`, which no program can set: the file is opened to be executed.
const FOR_EXECUTION: i32 = 0x20;
/// Largest file whose content comes with its opening.
const SMALL: usize = 32 << 10;
