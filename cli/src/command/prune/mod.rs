//! `strata container prune`, `image prune`, `system prune`: removing what nobody uses.

pub(crate) mod containers;
pub(crate) mod images;
pub(crate) mod system;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use anyhow::Result;
use strata_engine::{Removed, Timestamp};

use super::filter::{self, Filter};
use super::logs::moment;

/// The conditions of `--filter`: `label`, `label!` and `until`, all of which must hold.
#[derive(Debug)]
struct Conditions<'a> {
    filters: &'a [Filter],
    /// Only what was made up to the earliest of these.
    until: Option<Timestamp>,
}

impl<'a> Conditions<'a> {
    /// Reads the filters, and refuses others than `known`.
    fn of(filters: &'a [Filter], known: &[&str]) -> Result<Conditions<'a>> {
        filter::check(filters, known)?;
        let until = filters.iter().filter(|filter| filter.key == "until");
        let until = until.map(|filter| moment(&filter.value)).collect::<Result<Vec<_>>>()?;
        Ok(Conditions { filters, until: until.into_iter().min() })
    }

    /// Whether something with these labels, made at this time, is to be removed.
    fn hold(&self, labels: &BTreeMap<String, String>, created: Option<Timestamp>) -> bool {
        self.filters.iter().all(|filter| match filter.key.as_str() {
            "label" => filter.fits_label(labels),
            "label!" => !filter.fits_label(labels),
            _ => true,
        }) && self.until.is_none_or(|until| created.is_none_or(|created| created <= until))
    }
}

/// Asks whether it is meant, where the answer to the command itself goes, as Docker does.
fn confirm(warning: &str, out: &mut impl Write) -> io::Result<bool> {
    write!(out, "WARNING! {warning}\nAre you sure you want to continue? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Writes the steps of removing images.
fn write_images(removed: &[Removed], out: &mut impl Write) -> io::Result<()> {
    if removed.is_empty() {
        return Ok(());
    }
    writeln!(out, "Deleted Images:")?;
    for step in removed {
        match step {
            Removed::Untagged(name) => writeln!(out, "untagged: {}", name.familiar())?,
            Removed::Deleted(id) => writeln!(out, "deleted: {id}")?,
            Removed::DeletedLayer(chain) => writeln!(out, "deleted: {chain}")?,
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_conditions_must_hold() {
        let filters: Vec<Filter> =
            ["label=a", "label!=b=1", "until=100"].iter().map(|text| filter::parse(text).unwrap()).collect();
        let conditions = Conditions::of(&filters, &["label", "label!", "until"]).unwrap();
        let at = |seconds| Some(Timestamp { seconds, nanoseconds: 0 });
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert!(conditions.hold(&labels(&[("a", "")]), at(100)));
        assert!(conditions.hold(&labels(&[("a", ""), ("b", "2")]), None));
        assert!(!conditions.hold(&labels(&[("a", "")]), at(101)));
        assert!(!conditions.hold(&labels(&[]), at(1)));
        assert!(!conditions.hold(&labels(&[("a", ""), ("b", "1")]), at(1)));
        assert!(Conditions::of(&filters, &["label"]).is_err());
    }
}
