//! The journal: for each request in work, what it has done so far that cannot be done twice.
//!
//! A slot is taken when a request has been read and given back when its reply has been written. If the worker dies in
//! between, the kernel sends the request again and the next worker finds its slot by the request's number:
//!
//! - *effects* are changes of counters. They are taken back, and the request is executed as if it were new. Each is
//!   noted with the counter's old value under the counter's lock, so that after a death in between there is no doubt.
//! - an *intent* says what the names were like before the request changed them. The kernel keeps the directories
//!   locked until it has its answer, so the names tell whether it was done.
//!
//! A slot whose request is not sent again belonged to one whose reply arrived; all it says is true. Requests that came
//! in the queues of an io_uring are not sent again, but lie there still ([`Journal::expect_only`]).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::memory::{EFFECTS_PER_SLOT, End, Header, Memory, SLOT_WORDS, load_bytes, store_bytes, usize_of};

/// The journal of one worker.
#[derive(Debug)]
pub(crate) struct Journal {
    memory: Arc<Memory>,
    /// What earlier workers left: slots by the number of the request.
    past: Mutex<HashMap<u64, usize>>,
    /// There are some of which it is not known whether they will come again.
    has_past: AtomicBool,
    /// An earlier worker may have changed nodes that the kernel has not heard of.
    left_outdated: bool,
    started: Instant,
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It is new.
    New,
    /// It has been in work before, and has changed these counters by so much.
    Again(Vec<(usize, i64)>),
    /// Workers die of it.
    Poison,
}

/// A request in work, on its way to another thread.
#[derive(Debug)]
#[must_use = "the request's slot is lost if nobody goes on with it"]
pub(crate) struct Ticket(Option<Current>);

#[derive(Debug)]
struct Current {
    memory: Arc<Memory>,
    slot: usize,
    /// What the names were like before, according to the worker that died of it.
    intent: Option<Vec<u8>>,
}

impl Journal {
    /// Opens the journal. What an earlier worker was in the middle of is settled.
    pub(crate) fn open(memory: Arc<Memory>) -> Journal {
        let mut past = HashMap::new();
        let mut left_outdated = false;
        let ended = |end: End| memory.read_header(Header::End) == end as u64;
        let blame = if ended(End::Killed) { 1 } else { FAULT * u64::from(ended(End::Fault)) };
        for number in 0..memory.slot_count() {
            let slot = memory.slot(number);
            let unique = slot[UNIQUE].load(Ordering::Acquire);
            if unique == 0 {
                continue;
            }
            settle(&memory, number);
            slot[BLAME].fetch_add(blame, Ordering::Relaxed);
            left_outdated |= slot[OUTDATES].load(Ordering::Relaxed) != 0;
            past.insert(unique, number);
        }
        let has_past = AtomicBool::new(!past.is_empty());
        Journal { memory, past: Mutex::new(past), has_past, left_outdated, started: Instant::now() }
    }

    /// Returns the memory that it is in.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Calls `visit` with the intent of every request that was not finished.
    pub(crate) fn for_each_intent(&self, visit: &mut dyn FnMut(&[u8])) {
        for slot in self.past().values() {
            if let Some(intent) = read_intent(&self.memory, *slot) {
                visit(&intent);
            }
        }
    }

    /// Returns whether an earlier worker may have died before it had told the kernel of all nodes that it has changed.
    pub(crate) fn left_outdated(&self) -> bool {
        self.left_outdated
    }

    /// Says that the requests of these numbers will come again, and no others.
    pub(crate) fn expect_only(&self, uniques: &[u64]) {
        self.has_past.store(false, Ordering::Relaxed);
        self.past().retain(|unique, slot| {
            let expected = uniques.contains(unique);
            if !expected {
                self.drop_slot(*slot);
            }
            expected
        });
    }

    /// Begins a request.
    pub(crate) fn begin(&self, unique: u64, opcode: u32) -> Begun {
        let plain = unique & !RESENT;
        let mut begun = Begun::New;
        let mut intent = None;
        let mut slot = None;
        if unique & RESENT == 0 {
            self.forget_the_past();
        } else {
            self.memory.count(Header::Resent);
            slot = self.past().remove(&plain);
            if let Some(slot) = slot {
                let blame = self.memory.slot(slot)[BLAME].load(Ordering::Relaxed);
                if blame >= LIMIT {
                    self.memory.count(Header::Poisoned);
                    begun = Begun::Poison;
                } else if self.memory.read_header(Header::Forgetful) == 0 {
                    begun = Begun::Again(net_effects(&self.memory, slot));
                    intent = read_intent(&self.memory, slot);
                    if intent.is_some() {
                        self.memory.count(Header::Intended);
                    }
                }
            }
        }
        let Some(slot) = slot.or_else(|| self.take(plain, opcode)) else { return begun };
        CURRENT.set(Some(Current { memory: Arc::clone(&self.memory), slot, intent }));
        let deadly = self.memory.read_header(Header::Deadly);
        if deadly != 0 && deadly == u64::from(opcode) && begun != Begun::Poison {
            std::process::abort();
        }
        begun
    }

    fn take(&self, unique: u64, opcode: u32) -> Option<usize> {
        let slot = self.memory.take_slot().or_else(|| self.oldest())?;
        let words = self.memory.slot(slot);
        words[EFFECTS].store(0, Ordering::Relaxed);
        words[BLAME].store(0, Ordering::Relaxed);
        words[INTENT].store(0, Ordering::Relaxed);
        words[OUTDATES].store(0, Ordering::Relaxed);
        words[OPCODE].store(opcode.into(), Ordering::Relaxed);
        words[GENERATION].store(self.memory.read_header(Header::Generation), Ordering::Relaxed);
        words[UNIQUE].store(unique, Ordering::Release);
        Some(slot)
    }

    /// Takes the slot of the request that has waited longest to be sent again: it never will be.
    fn oldest(&self) -> Option<usize> {
        let mut past = self.past();
        let unique = *past.keys().min()?;
        past.remove(&unique)
    }

    /// The kernel hands out what it sends again before anything new. Some time after the first new request, nothing of
    /// that is on its way to us any more.
    fn forget_the_past(&self) {
        if !self.has_past.load(Ordering::Relaxed) || self.started.elapsed() < SETTLED {
            return;
        }
        self.has_past.store(false, Ordering::Relaxed);
        for (_, slot) in std::mem::take(&mut *self.past()) {
            self.drop_slot(slot);
        }
    }

    fn drop_slot(&self, slot: usize) {
        self.memory.slot(slot)[UNIQUE].store(0, Ordering::Release);
        self.memory.give_slot(slot);
    }

    fn past(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the request that this thread is working on: its reply has been written.
pub(crate) fn finish() {
    if let Some(current) = CURRENT.take() {
        current.memory.slot(current.slot)[UNIQUE].store(0, Ordering::Release);
        current.memory.give_slot(current.slot);
        current.memory.count(Header::Answered);
    }
}

/// Takes the request from this thread, for another to go on with.
pub(crate) fn detach() -> Ticket {
    Ticket(CURRENT.take())
}

/// Goes on with a request in this thread.
pub(crate) fn attach(ticket: Ticket) {
    if let Some(current) = &ticket.0 {
        super::faults::expose(&current.memory);
    }
    CURRENT.set(ticket.0);
}

/// Says that the effects of the present request have been taken back.
pub(crate) fn effects_undone() {
    with_current(|current| current.memory.slot(current.slot)[EFFECTS].store(0, Ordering::Release));
}

/// Notes what the names are like that the present request is about to change.
pub(crate) fn intend(intent: impl FnOnce() -> Vec<u8>) {
    with_current(|current| {
        let bytes = intent();
        let words = current.memory.slot(current.slot);
        words[INTENT].store(0, Ordering::Release);
        if bytes.len() <= (SLOT_WORDS - INTENT_BYTES) * 8 {
            store_bytes(&words[INTENT_BYTES..], &bytes);
            words[INTENT].store(bytes.len() as u64, Ordering::Release);
        } else {
            current.memory.lose();
        }
    });
}

/// Notes that the present request has changed nodes beside the one it is about, or is about to tell the kernel of such.
pub(crate) fn outdates() {
    with_current(|current| current.memory.slot(current.slot)[OUTDATES].store(1, Ordering::Release));
}

/// Returns what the names were like before the present request, if an earlier worker was about to change them.
pub(crate) fn past_intent() -> Option<Vec<u8>> {
    CURRENT.with_borrow_mut(|current| current.as_mut()?.intent.take())
}

/// Counts a request that an earlier worker had executed.
pub(crate) fn was_executed() {
    with_current(|current| current.memory.count(Header::Executed));
}

impl Memory {
    /// Changes a counter, for the request that this thread is working on. Returns the new value.
    pub(super) fn add(&self, word: usize, delta: i64) -> u64 {
        let _counter = self.counters[word % self.counters.len()].lock().unwrap_or_else(PoisonError::into_inner);
        let counter = self.word(word);
        let old = counter.load(Ordering::Acquire);
        let new = old.saturating_add_signed(delta);
        let slot = CURRENT.with_borrow(|current| current.as_ref().map(|current| current.slot));
        match slot {
            Some(slot) => {
                let state = &self.slot(slot)[EFFECTS];
                let count = usize_of(state.load(Ordering::Relaxed)) >> 1;
                let small = i16::try_from(delta).ok().filter(|_| count < EFFECTS_PER_SLOT);
                let Some(small) = small else {
                    counter.store(new, Ordering::Release);
                    return new;
                };
                let effect = self.effect(slot, count);
                effect[0].store((word as u64) << 16 | u64::from(small.cast_unsigned()), Ordering::Relaxed);
                effect[1].store(old, Ordering::Relaxed);
                state.store((count as u64) << 1 | BUSY, Ordering::Release);
                counter.store(new, Ordering::Release);
                state.store((count as u64 + 1) << 1, Ordering::Release);
            }
            None => counter.store(new, Ordering::Release),
        }
        new
    }
}

/// Takes back a change that a worker died in the middle of.
fn settle(memory: &Memory, slot: usize) {
    let state = &memory.slot(slot)[EFFECTS];
    let value = state.load(Ordering::Acquire);
    if value & BUSY != 0 {
        let effect = memory.effect(slot, usize_of(value >> 1));
        let word = usize_of(effect[0].load(Ordering::Relaxed) >> 16);
        memory.word(word).store(effect[1].load(Ordering::Relaxed), Ordering::Release);
        state.store(value & !BUSY, Ordering::Release);
    }
}

/// Returns by how much a request has changed which counters.
fn net_effects(memory: &Memory, slot: usize) -> Vec<(usize, i64)> {
    let count = usize_of(memory.slot(slot)[EFFECTS].load(Ordering::Acquire) >> 1);
    let mut net: Vec<(usize, i64)> = Vec::new();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for number in 0..count {
        let packed = memory.effect(slot, number)[0].load(Ordering::Relaxed);
        let word = usize_of(packed >> 16);
        let low = u16::try_from(packed & 0xffff).unwrap_or(0);
        let place = *places.entry(word).or_insert_with(|| {
            net.push((word, 0));
            net.len() - 1
        });
        net[place].1 += i64::from(low.cast_signed());
    }
    net.retain(|(_, delta)| *delta != 0);
    net
}

fn read_intent(memory: &Memory, slot: usize) -> Option<Vec<u8>> {
    let words = memory.slot(slot);
    let length = usize_of(words[INTENT].load(Ordering::Acquire));
    let mut bytes = Vec::new();
    load_bytes(&words[INTENT_BYTES..], length, &mut bytes);
    (length > 0).then_some(bytes)
}

fn with_current(act: impl FnOnce(&Current)) {
    CURRENT.with_borrow(|current| {
        if let Some(current) = current {
            act(current);
        }
    });
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// In `unique`: the request has been sent before.
pub(crate) const RESENT: u64 = 1 << 63;
/// In the word of the effects: the one behind the last is being done.
const BUSY: u64 = 1;
/// Words of a slot.
const UNIQUE: usize = 0;
const OPCODE: usize = 1;
/// Their number, shifted by one, and [`BUSY`].
const EFFECTS: usize = 2;
const BLAME: usize = 3;
/// Length of the intent in bytes; 0 for none.
const INTENT: usize = 4;
const GENERATION: usize = 5;
/// Not 0: nodes beside the one that was asked for were changed, of which the kernel may not have heard.
const OUTDATES: usize = 6;
const INTENT_BYTES: usize = 8;
/// How much a request is to blame for a worker's death by a fault; for one by a signal from outside, 1.
const FAULT: u64 = 4;
/// A request to blame this much is not tried again: at its third redelivery after faults.
const LIMIT: u64 = 3 * FAULT;
/// How long after its start a worker has certainly begun all that was sent again.
const SETTLED: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survive::memory::SLOTS;

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new().unwrap())
    }

    /// What a new worker does, in a thread of its own, as if the old one had died.
    fn die() {
        CURRENT.take().unwrap();
    }

    #[test]
    fn effects_are_known_to_the_next_worker_and_finished_requests_are_not() {
        let memory = memory();
        let node = memory.node_word(memory.take_node().unwrap(), 1);
        let journal = Journal::open(Arc::clone(&memory));
        assert_eq!(journal.begin(10, 1), Begun::New);
        memory.add(node, 5);
        finish();
        assert_eq!(journal.begin(12, 1), Begun::New);
        memory.add(node, 1);
        memory.add(node, 1);
        intend(|| b"before".to_vec());
        die();
        let journal = Journal::open(Arc::clone(&memory));
        assert_eq!(journal.begin(10 | RESENT, 1), Begun::New);
        finish();
        assert_eq!(journal.begin(12 | RESENT, 1), Begun::Again(vec![(node, 2)]));
        assert_eq!(past_intent().unwrap(), b"before");
        memory.add(node, -2);
        effects_undone();
        assert_eq!(memory.add(node, 1), 6);
        die();
        let journal = Journal::open(Arc::clone(&memory));
        assert_eq!(journal.begin(12 | RESENT, 1), Begun::Again(vec![(node, 1)]));
        finish();
    }

    #[test]
    fn a_change_in_progress_is_taken_back() {
        let memory = memory();
        let node = memory.node_word(memory.take_node().unwrap(), 1);
        for after_the_store in [false, true] {
            memory.word(node).store(41, Ordering::Relaxed);
            let journal = Journal::open(Arc::clone(&memory));
            journal.begin(2, 1);
            let slot = CURRENT.with_borrow(|current| current.as_ref().unwrap().slot);
            memory.effect(slot, 0)[0].store((node as u64) << 16 | 1, Ordering::Relaxed);
            memory.effect(slot, 0)[1].store(41, Ordering::Relaxed);
            memory.slot(slot)[EFFECTS].store(BUSY, Ordering::Relaxed);
            if after_the_store {
                memory.word(node).store(42, Ordering::Relaxed);
            }
            die();
            let journal = Journal::open(Arc::clone(&memory));
            assert_eq!(memory.word(node).load(Ordering::Relaxed), 41);
            assert_eq!(journal.begin(2 | RESENT, 1), Begun::Again(Vec::new()));
            finish();
        }
    }

    #[test]
    fn a_request_that_workers_die_of_is_given_up() {
        let memory = memory();
        Journal::open(Arc::clone(&memory)).begin(2, 1);
        memory.header(Header::End).store(End::Fault as u64, Ordering::Relaxed);
        for end in [End::Fault, End::Unready, End::Fault] {
            die();
            memory.header(Header::End).store(end as u64, Ordering::Relaxed);
            assert_eq!(Journal::open(Arc::clone(&memory)).begin(2 | RESENT, 1), Begun::Again(Vec::new()));
        }
        die();
        assert_eq!(Journal::open(Arc::clone(&memory)).begin(2 | RESENT, 1), Begun::Poison);
        finish();
    }

    #[test]
    fn what_will_not_come_again_is_dropped_and_the_rest_kept_for_as_long_as_it_takes() {
        let memory = memory();
        let journal = Journal::open(Arc::clone(&memory));
        for unique in [2, 4] {
            journal.begin(unique, 1);
            intend(|| unique.to_string().into_bytes());
            die();
        }
        let journal = Journal::open(Arc::clone(&memory));
        journal.expect_only(&[4, 6]);
        assert_eq!(journal.begin(8, 1), Begun::New);
        finish();
        assert_eq!(journal.begin(6 | RESENT, 1), Begun::New);
        finish();
        assert_eq!(journal.begin(4 | RESENT, 1), Begun::Again(Vec::new()));
        assert_eq!(past_intent().unwrap(), b"4");
        finish();
        assert!((0..SLOTS).all(|slot| memory.slot(slot)[UNIQUE].load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn that_the_kernel_was_to_be_told_of_something_is_known_until_the_request_is_answered() {
        let memory = memory();
        let journal = Journal::open(Arc::clone(&memory));
        journal.begin(2, 1);
        outdates();
        finish();
        journal.begin(4, 1);
        die();
        assert!(!Journal::open(Arc::clone(&memory)).left_outdated());
        Journal::open(Arc::clone(&memory)).begin(4 | RESENT, 1);
        outdates();
        die();
        assert!(Journal::open(memory).left_outdated());
    }

    #[test]
    fn slots_of_the_past_are_used_again_when_there_are_no_others() {
        let memory = memory();
        let journal = Journal::open(Arc::clone(&memory));
        for unique in 1..=SLOTS as u64 {
            journal.begin(unique, 1);
            die();
        }
        let journal = Journal::open(Arc::clone(&memory));
        journal.begin(5000, 1);
        die();
        assert_eq!(journal.begin(7 | RESENT, 1), Begun::Again(Vec::new()));
        assert_eq!(journal.begin(1 | RESENT, 1), Begun::New, "the oldest had to go");
        finish();
    }
}
