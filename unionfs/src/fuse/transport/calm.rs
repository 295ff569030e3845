//! Whether serving threads may have idle priority: while the machine is calm, and they do not starve.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Tells how many threads run on the machine.
#[derive(Debug)]
pub(super) struct Running {
    /// `/proc/loadavg`
    file: Option<File>,
    cpus: usize,
}

impl Running {
    /// Prepares to look, on a machine of so many CPUs.
    pub(super) fn new(cpus: usize) -> Running {
        Running { file: File::open("/proc/loadavg").ok(), cpus }
    }

    /// Returns whether, besides the calling thread, so few threads run that each has a CPU of its own.
    pub(super) fn is_calm(&self) -> bool {
        let mut text = [0; 128];
        let read = self.file.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let others = read.and_then(|length| running(&text[..length])).map(|running| running.saturating_sub(1));
        others.is_some_and(|others| others < self.cpus)
    }
}

/// Returns the number of threads that run or could (proc_loadavg(5)).
fn running(text: &[u8]) -> Option<usize> {
    let counts = std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(3)?;
    counts.split_once('/')?.0.parse().ok()
}

/// Decides about idle priority, by what was found in each window of requests.
#[derive(Debug, Default)]
pub(super) struct Calmness {
    is: bool,
    /// Windows in a row in which the machine was not calm.
    rough: u32,
    /// Windows until it is tried again.
    shy: u32,
    /// How many they are when it has gone wrong.
    doubt: u32,
    /// Windows since it went wrong or doubt was less.
    well: u32,
}

impl Calmness {
    /// Notes whether the machine was calm at the end of a window. Returns whether to have idle priority from now on.
    pub(super) fn note(&mut self, calm: impl FnOnce() -> bool) -> bool {
        if !self.is {
            self.shy = self.shy.saturating_sub(1);
            self.is = self.shy == 0 && calm();
            return self.is;
        }
        self.rough = if calm() { 0 } else { self.rough + 1 };
        self.well += 1;
        if self.well > self.doubt * WELL {
            (self.doubt, self.well) = (self.doubt / 2, 0);
        }
        if self.rough >= ROUGH {
            self.step_back();
        }
        self.is
    }

    /// Gives it up for a while.
    pub(super) fn step_back(&mut self) {
        self.shy = self.shy.max(SETTLED);
        (self.is, self.rough) = (false, 0);
    }

    /// Gives it up for ever longer: it has gone wrong.
    pub(super) fn gone_wrong(&mut self) {
        self.doubt = (self.doubt * 2).clamp(SETTLED, MOST_DOUBT);
        (self.shy, self.well) = (self.doubt, 0);
        self.step_back();
    }
}

/// So many windows in a row must be rough.
const ROUGH: u32 = 2;
/// So many windows pass at least until it is tried again,
const SETTLED: u32 = 4;
/// and at most so many.
const MOST_DOUBT: u32 = 1024;
/// In so many times the windows of doubt without trouble, that becomes less.
const WELL: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_are_counted() {
        assert_eq!(running(b"0.72 1.03 1.58 12/152 14087\n"), Some(12));
        for text in [&b""[..], b"0.72 1.03 1.58", b"0.72 1.03 1.58 x/152 14087", b"0.72 1.03 1.58 3 14087", b"\xff"] {
            assert_eq!(running(text), None);
        }
        assert!(Running::new(usize::MAX).is_calm());
        assert!(!Running::new(0).is_calm());
    }

    #[test]
    fn it_begins_at_once_and_ends_when_it_stays_rough() {
        let mut calmness = Calmness::default();
        assert!(!calmness.note(|| false));
        assert!(calmness.note(|| true));
        assert!(calmness.note(|| false));
        assert!(calmness.note(|| true));
        assert!(calmness.note(|| false));
        assert!(!calmness.note(|| false));
        let windows = (0..100).position(|_| calmness.note(|| true));
        assert_eq!(windows, Some(3));
    }

    #[test]
    fn what_goes_wrong_is_tried_ever_more_seldom_until_it_goes_well() {
        let mut calmness = Calmness::default();
        let mut waited = || {
            let windows = (1..).find(|_| calmness.note(|| true)).unwrap();
            calmness.gone_wrong();
            windows
        };
        assert_eq!(
            (0..12).map(|_| waited()).collect::<Vec<_>>(),
            [1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024]
        );
        for _ in 0..1_000_000 {
            calmness.note(|| true);
        }
        calmness.gone_wrong();
        assert_eq!((1..).find(|_| calmness.note(|| true)), Some(4));
    }
}
