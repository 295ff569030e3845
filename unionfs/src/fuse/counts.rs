//! How often the kernel asked for what.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::opcode;

/// The number of requests of each kind.
pub struct Counts([AtomicU64; opcode::COUNT]);

impl Counts {
    /// Counts a request.
    pub(super) fn add(&self, opcode: u32) {
        if let Some(count) = self.0.get(opcode as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the kinds that were asked for and how often, most frequent first.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().zip(0..).map(|(count, code)| (opcode::name(code), count.load(Ordering::Relaxed)));
        let mut list: Vec<_> = counts.filter(|(_, count)| *count > 0).collect();
        list.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        list
    }
}

impl Default for Counts {
    fn default() -> Counts {
        Counts(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.list()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_listed_by_how_often_they_came() {
        let counts = Counts::default();
        for code in [opcode::OPEN, opcode::LOOKUP, opcode::LOOKUP, 4096] {
            counts.add(code);
        }
        assert_eq!(counts.list(), [("LOOKUP", 2), ("OPEN", 1)]);
    }
}
