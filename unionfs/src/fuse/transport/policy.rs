//! The decision which threads read, by what requests are like and how much runs on the machine.

use super::calm::Calmness;

/// Who reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Way {
    /// All threads.
    #[default]
    All,
    /// The first, wherever the scheduler puts it.
    One,
    /// The first, on its client's CPU and at idle priority.
    Beside,
}

/// Decides who reads, by what the requests are like.
#[derive(Debug, Default)]
pub(super) struct Policy {
    pub(super) way: Way,
    /// Whether one may read alone without being beside its client.
    pub(super) may_be_one: bool,
    /// The thread that asked last, and how often in a row.
    last: u32,
    row: u32,
    /// Requests in this window, and how often another thread asked than before.
    seen: u32,
    changes: u32,
    /// How often it was looked where the client was, and how often it was where it is served.
    looks: u32,
    met: u32,
    /// Windows in a row in which the reader that is to be beside its client was mostly elsewhere.
    missed: u32,
    /// Windows in which it need not be looked.
    rest: u32,
    /// How many it is after one reader has turned out worse.
    doubt: u32,
    calmness: Calmness,
}

impl Policy {
    /// Notes a request of a thread of a client; `meets` looks whether its CPU is this one, and `calm` whether little runs
    /// on the machine.
    pub(super) fn note(&mut self, thread: u32, meets: impl FnOnce() -> Option<bool>, calm: impl FnOnce() -> bool) {
        // What nobody waits for has no client.
        if thread == 0 {
            return;
        }
        self.seen += 1;
        self.row += 1;
        if std::mem::replace(&mut self.last, thread) != thread {
            self.changes += 1;
            self.row = 1;
        }
        if self.is_to_look()
            && let Some(met) = meets()
        {
            self.looks += 1;
            self.met += u32::from(met);
        }
        if self.seen >= WINDOW {
            self.decide(calm);
        }
    }

    fn is_to_look(&self) -> bool {
        match self.way {
            // At the first request, and whenever there is another client that stays.
            Way::Beside => self.seen % FOLLOW_EVERY == 1 || self.row == 2,
            Way::All | Way::One => self.rest == 0 && self.seen.is_multiple_of(LOOK_EVERY),
        }
    }

    /// Decides at the end of a window.
    fn decide(&mut self, calm: impl FnOnce() -> bool) {
        let several = self.changes > WINDOW / 4;
        // The reader cannot be beside two, and hardly comes to read what the one asks while the other computes.
        let alone = self.changes <= WINDOW / 16;
        let looked = self.looks >= WINDOW / LOOK_EVERY / 2;
        let beside = self.met * 8 > self.looks * 5;
        let misses = self.met * 2 < self.looks || self.looks == 0;
        self.missed = if self.way == Way::Beside && misses { self.missed + 1 } else { 0 };
        (self.seen, self.changes, self.looks, self.met) = (0, 0, 0, 0);
        if self.way == Way::Beside && !alone {
            self.calmness.step_back();
        } else if self.way == Way::Beside && self.missed >= MISSED {
            self.calmness.gone_wrong();
        } else if alone && self.calmness.note(calm) {
            self.way = Way::Beside;
            return;
        }
        let was_one = self.way != Way::All;
        let one = !several
            && self.may_be_one
            && match self.way {
                Way::All => looked && !beside,
                Way::One => !looked || beside,
                Way::Beside => self.missed == 0,
            };
        if !looked {
            self.rest = self.rest.saturating_sub(1);
        } else if one == was_one {
            self.rest = SETTLED;
        }
        if self.way == Way::Beside || one != was_one {
            self.way = if one { Way::One } else { Way::All };
            if one {
                self.rest = 0;
            } else {
                self.doubt = if several { 1 } else { (self.doubt * 2).clamp(1, MOST_DOUBT) };
                self.rest = self.doubt;
            }
        }
    }

    /// Notes that the reader has starved at idle priority.
    pub(super) fn has_starved(&mut self) {
        self.calmness.gone_wrong();
        if self.way == Way::Beside {
            self.way = if self.may_be_one { Way::One } else { Way::All };
            (self.seen, self.changes, self.looks, self.met, self.rest) = (0, 0, 0, 0, 0);
        }
    }

    /// Begins anew with all readers.
    pub(super) fn set_all(&mut self) {
        let calmness = std::mem::take(&mut self.calmness);
        *self = Policy { may_be_one: self.may_be_one, doubt: self.doubt, rest: SETTLED, calmness, ..Policy::default() };
        self.calmness.step_back();
    }
}

/// So many requests are looked at together.
const WINDOW: u32 = 64;
/// One in so many is one to look where its client is,
const LOOK_EVERY: u32 = 8;
/// and where the reader is to be beside it, one in so many.
const FOLLOW_EVERY: u32 = 8;
/// In so many windows in a row the reader must have been elsewhere: the scheduler moves a client every few milliseconds.
const MISSED: u32 = 4;
/// So many windows pass until it is looked again whether all is still well.
const SETTLED: u32 = 4;
/// And at most so many until one reader is tried again.
const MOST_DOUBT: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy { may_be_one: true, ..Policy::default() }
    }

    /// Notes so many requests of the threads in turn and returns what was decided, on a machine where much runs.
    fn after(policy: &mut Policy, requests: u32, threads: &[u32], meets: impl FnMut(Way) -> bool) -> Vec<Way> {
        after_while(policy, requests, threads, meets, || false)
    }

    fn after_while(
        policy: &mut Policy,
        requests: u32,
        threads: &[u32],
        mut meets: impl FnMut(Way) -> bool,
        mut calm: impl FnMut() -> bool,
    ) -> Vec<Way> {
        let mut decided = Vec::new();
        for (_, thread) in (0..requests).zip(threads.iter().cycle()) {
            let before = policy.way;
            policy.note(*thread, || Some(meets(before)), &mut calm);
            decided.extend((policy.way != before).then_some(policy.way));
        }
        decided
    }

    #[test]
    fn clients_that_are_met_keep_all_readers() {
        assert_eq!(after(&mut policy(), 100_000, &[7], |_| true), []);
    }

    #[test]
    fn one_client_that_is_missed_has_one_reader_as_long_as_that_meets_it() {
        let mut policy = policy();
        let mut turn = false;
        let busy = |way| {
            turn = !turn;
            way == Way::One || turn
        };
        assert_eq!(after(&mut policy, 100_000, &[7], busy), [Way::One]);
        // From now on all would meet it.
        let decided = after(&mut policy, 1_000_000, &[7], |way| way == Way::All);
        assert_eq!(decided, [Way::All]);
    }

    #[test]
    fn where_neither_meets_one_reader_is_tried_ever_more_seldom() {
        let mut policy = policy();
        let first = after(&mut policy, 10_000, &[7], |_| false).len();
        after(&mut policy, 100_000, &[7], |_| false);
        let later = after(&mut policy, 10_000, &[7], |_| false).len();
        assert!(first >= 10 && later <= 6, "{first}, {later}");
    }

    #[test]
    fn several_clients_have_all_readers() {
        let mut policy = policy();
        assert_eq!(after_while(&mut policy, 100_000, &[7, 8], |_| false, || true), []);
        assert_eq!(after(&mut policy, 10_000, &[7], |way| way == Way::One), [Way::One]);
        assert_eq!(after(&mut policy, 10_000, &[7, 0, 8], |_| true), [Way::All]);
        // One after the other is one at a time.
        let turns: Vec<u32> = (1..200).flat_map(|thread| [thread; 30]).collect();
        assert_eq!(after(&mut policy, 10_000, &turns, |way| way == Way::One), [Way::One]);
    }

    #[test]
    fn what_cannot_be_looked_at_changes_nothing() {
        let mut policy = policy();
        for _ in 0..100_000 {
            policy.note(7, || None, || false);
            policy.note(0, || Some(false), || true);
            assert_eq!(policy.way, Way::All);
        }
    }

    #[test]
    fn one_client_on_a_calm_machine_has_a_reader_beside_it() {
        let mut policy = policy();
        assert_eq!(after_while(&mut policy, 100_000, &[7], |_| true, || true), [Way::Beside]);
        // As one runs from now on, and then none.
        assert_eq!(after(&mut policy, 10_000, &[7], |_| true), [Way::One]);
        assert_eq!(after_while(&mut policy, 10_000, &[7], |_| true, || true), [Way::Beside]);
        assert_eq!(after_while(&mut policy, 10_000, &[7, 8], |_| true, || true), [Way::All]);
        assert_eq!(after_while(&mut policy, 10_000, &[7], |_| true, || true), [Way::Beside]);
        policy.has_starved();
        assert_eq!(policy.way, Way::One);
        assert_eq!(after_while(&mut policy, 10_000, &[7], |_| true, || true), [Way::Beside]);
        policy.set_all();
        assert_eq!(policy.way, Way::All);
    }

    #[test]
    fn a_client_that_cannot_be_followed_is_followed_ever_more_seldom() {
        let mut policy = policy();
        let mut tries = |requests| {
            let decided = after_while(&mut policy, requests, &[7], |_| false, || true);
            decided.into_iter().filter(|way| *way == Way::Beside).count()
        };
        let first = tries(10_000);
        tries(1_000_000);
        let later = tries(100_000);
        assert!(first >= 4 && later <= 2, "{first}, {later}");
    }

    #[test]
    fn the_reader_looks_at_once_where_a_client_that_stays_is() {
        let mut policy = Policy { way: Way::Beside, ..policy() };
        let mut looked = Vec::new();
        for (number, thread) in [7, 7, 7, 7, 8, 7, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9].into_iter().enumerate() {
            let look = || {
                looked.push(number);
                Some(true)
            };
            policy.note(thread, look, || true);
        }
        assert_eq!(looked, [0, 1, 7, 8, 16]);
    }
}
