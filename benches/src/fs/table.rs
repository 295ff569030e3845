//! The figures as text.

use super::plan::aims;
use super::requests::Counts;
use super::samples::{RowKey, Samples};
use crate::report::Report;

/// Prints medians with spreads, ratios with aims, and requests.
pub fn print(samples: &Samples, peers: &[String], report: &mut Report) {
    medians(samples, peers, report);
    ratios(samples, peers, report);
    requests(samples, peers, report);
    if !samples.failures.is_empty() {
        report.say("not measured:");
        for failure in &samples.failures {
            report.say(format!("  {failure}"));
        }
    }
}

fn medians(samples: &Samples, peers: &[String], report: &mut Report) {
    report.say(
        "microseconds per operation, for whole programs milliseconds (ms); median, and half of the range in percent\n",
    );
    let mut rows = vec![header(peers.iter().cloned())];
    for key in &samples.order {
        let cells = peers.iter().map(|peer| match (samples.median(key, peer), samples.spread(key, peer)) {
            (Some(median), Some(spread)) => {
                let shown = if is_whole(samples, key) { median / 1000.0 } else { median };
                format!("{} ±{:.0}", number(shown), spread * 100.0)
            }
            _ => "-".to_owned(),
        });
        let name = if is_whole(samples, key) { format!("{} (ms)", key.name) } else { key.name.to_owned() };
        rows.push([name, key.layers.to_string()].into_iter().chain(cells).collect());
    }
    report.table(&rows);
}

fn ratios(samples: &Samples, peers: &[String], report: &mut Report) {
    let Some(fuse) = peers.iter().rfind(|peer| peer.starts_with("fuse-overlayfs")) else {
        return ratios_to(samples, peers, &["overlayfs"], report);
    };
    ratios_to(samples, peers, &["overlayfs", fuse], report);
}

/// Each mode of ours, and the aim.
fn ratios_to(samples: &Samples, peers: &[String], others: &[&str], report: &mut Report) {
    for other in others {
        report.say(format!("time as a multiple of {other}'s; the aim stands last, ! is over it\n"));
        let shown: Vec<&String> = peers.iter().filter(|peer| peer != other && !peer.starts_with("plain")).collect();
        let mut rows = vec![header(shown.iter().map(|peer| (*peer).clone()).chain(["aim".to_owned()]))];
        for key in &samples.order {
            let (overlayfs, fuse) = aims(key);
            let aim = if *other == "overlayfs" { overlayfs } else { fuse };
            let cells = shown.iter().map(|peer| match samples.ratio(key, peer, other) {
                Some(ratio) => {
                    let over = peer.starts_with("strata") && aim.is_some_and(|aim| ratio > aim * 1.005);
                    format!("{ratio:.2}{}", if over { "!" } else { " " })
                }
                None => "- ".to_owned(),
            });
            if samples.median(key, other).is_some() && samples.operations.get(key) != Some(&0) {
                let last = aim.map_or("-".to_owned(), |aim| format!("{aim}"));
                let first = [key.name.to_owned(), key.layers.to_string()];
                rows.push(first.into_iter().chain(cells).chain([last]).collect());
            }
        }
        report.table(&rows);
    }
}

fn requests(samples: &Samples, peers: &[String], report: &mut Report) {
    let Some(peer) = peers.iter().find(|peer| samples.requests.values().any(|row| row.contains_key(*peer))) else {
        return;
    };
    report.say(format!("what the kernel asks {peer}, requests per operation (for whole programs: in all)\n"));
    for key in &samples.order {
        if let Some(counts) = samples.requests.get(key).and_then(|row| row.get(peer)) {
            let operations = samples.operations.get(key).copied().unwrap_or(1).max(1);
            let name = format!("{} [{}]", key.name, key.layers);
            report.say(format!("{name:<40} {}", describe(counts, operations)));
        }
    }
    report.say("");
}

fn describe(counts: &Counts, operations: u64) -> String {
    let mut kinds: Vec<(&String, &u64)> = counts.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let all: u64 = counts.values().sum();
    let each = |count: u64| match operations {
        1 => count.to_string(),
        _ => format!("{:.2}", count as f64 / operations as f64),
    };
    let mut text = each(all);
    for (kind, count) in kinds {
        if each(*count) != "0.00" {
            text.push_str(&format!("  {} {}", kind.to_lowercase(), each(*count)));
        }
    }
    text
}

fn header(peers: impl Iterator<Item = String>) -> Vec<String> {
    ["".to_owned(), "layers".to_owned()].into_iter().chain(peers).collect()
}

/// One operation that is a whole program.
fn is_whole(samples: &Samples, key: &RowKey) -> bool {
    samples.operations.get(key) == Some(&1)
}

fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_over_its_aim_is_marked() {
        let mut samples = Samples::default();
        let key = RowKey { name: "rename", layers: 1 };
        samples.add(&key, "strata", 10, 41.0);
        samples.add(&key, "strata/ring", 10, 39.0);
        samples.add(&key, "overlayfs", 10, 10.0);
        samples
            .requests
            .entry(key)
            .or_default()
            .insert("strata".to_owned(), Counts::from([("RENAME2".to_owned(), 10), ("LOOKUP".to_owned(), 25)]));
        let mut report = Report::default();
        print(&samples, &["strata", "strata/ring", "overlayfs"].map(str::to_owned), &mut report);
        let lines: Vec<&str> = report.text().lines().collect();
        assert!(lines.contains(&"rename       1  41.0 ±0      39.0 ±0    10.0 ±0"), "{}", report.text());
        assert!(lines.contains(&"rename       1   4.10!        3.90     4"), "{}", report.text());
        assert!(
            lines.contains(&"rename [1]                               3.50  lookup 2.50  rename2 1.00"),
            "{}",
            report.text()
        );
    }
}
