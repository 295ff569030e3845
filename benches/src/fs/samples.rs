//! What was measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use super::requests::{Counts, Requests};

/// A row of the table: what was done, on how many layers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// What was done.
    pub name: &'static str,
    /// Layers below.
    pub layers: usize,
}

/// Everything measured so far, in the order in which rows first came up.
#[derive(Debug, Default)]
pub struct Samples {
    /// The rows in their order.
    pub order: Vec<RowKey>,
    /// Microseconds per operation, by row and peer.
    pub times: BTreeMap<RowKey, BTreeMap<String, Vec<f64>>>,
    /// Operations of one run.
    pub operations: BTreeMap<RowKey, u64>,
    /// Requests of one run, by row and peer.
    pub requests: BTreeMap<RowKey, BTreeMap<String, Counts>>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

impl Samples {
    /// Adds one.
    pub fn add(&mut self, key: &RowKey, peer: &str, operations: u64, microseconds: f64) {
        if !self.times.contains_key(key) {
            self.order.push(key.clone());
        }
        self.operations.insert(key.clone(), operations);
        self.times.entry(key.clone()).or_default().entry(peer.to_owned()).or_default().push(microseconds);
    }

    /// The median of a cell.
    pub fn median(&self, key: &RowKey, peer: &str) -> Option<f64> {
        median(self.times.get(key)?.get(peer)?)
    }

    /// Half of the distance between the fastest and the slowest, as a share of the median.
    pub fn spread(&self, key: &RowKey, peer: &str) -> Option<f64> {
        let values = self.times.get(key)?.get(peer)?;
        let least = values.iter().copied().reduce(f64::min)?;
        let most = values.iter().copied().reduce(f64::max)?;
        let median = median(values)?;
        Some(if most > least { (most - least) / 2.0 / median } else { 0.0 })
    }

    /// One's time as a multiple of the other's.
    pub fn ratio(&self, key: &RowKey, of: &str, to: &str) -> Option<f64> {
        let base = self.median(key, to)?;
        Some(self.median(key, of)? / base).filter(|_| base > 0.0)
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some((upper + lower) / 2.0)
}

/// Times the parts of one run on one mount.
#[derive(Debug)]
pub struct Stopwatch<'a> {
    /// Where the samples go.
    pub samples: &'a mut Samples,
    /// Who is measured.
    pub peer: &'a str,
    /// Layers below.
    pub layers: usize,
    /// The mount.
    pub point: PathBuf,
    /// Counts requests instead of time.
    pub requests: Option<&'a Requests>,
    /// Only these rows are kept.
    pub wanted: &'a [String],
}

impl Stopwatch<'_> {
    /// Does `work`, which is `operations` operations, and keeps how long it took.
    pub fn time<T>(&mut self, name: &'static str, operations: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let key = RowKey { name, layers: self.layers };
        if let Some(requests) = self.requests {
            requests.start(&self.point)?;
            let result = work();
            let counts = requests.stop()?;
            if result.is_ok() && is_wanted(self.wanted, name) {
                self.samples.requests.entry(key).or_default().insert(self.peer.to_owned(), counts);
            }
            return result;
        }
        let started = Instant::now();
        let result = work()?;
        let elapsed = started.elapsed();
        self.note(name, operations, elapsed.as_secs_f64() * 1e6 / operations.max(1) as f64);
        Ok(result)
    }

    /// Keeps a figure that was taken otherwise.
    pub fn note(&mut self, name: &'static str, operations: u64, microseconds: f64) {
        if self.requests.is_none() && is_wanted(self.wanted, name) {
            self.samples.add(&RowKey { name, layers: self.layers }, self.peer, operations, microseconds);
        }
    }
}

/// Whether a row was asked for: any of the words is part of its name, or there are none.
pub fn is_wanted(wanted: &[String], name: &str) -> bool {
    wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let mut samples = Samples::default();
        let key = RowKey { name: "row", layers: 1 };
        for (peer, value) in [("a", 4.0), ("a", 1.0), ("a", 3.0), ("a", 2.0), ("b", 5.0)] {
            samples.add(&key, peer, 1, value);
        }
        assert_eq!(samples.median(&key, "a"), Some(2.5));
        assert_eq!(samples.spread(&key, "a"), Some(0.6));
        assert_eq!(samples.ratio(&key, "a", "b"), Some(0.5));
        assert_eq!(samples.ratio(&key, "a", "c"), None);
    }
}
