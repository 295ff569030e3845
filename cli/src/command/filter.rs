//! `--filter KEY=VALUE`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// What it is about.
    pub(crate) key: String,
    /// What it must be.
    pub(crate) value: String,
}

/// Reads one filter.
pub(crate) fn parse(text: &str) -> Result<Filter, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(Filter { key: key.trim().to_ascii_lowercase(), value: value.trim().to_owned() })
        }
        _ => Err("bad format of filter (expected name=value)".to_owned()),
    }
}

/// Refuses filters that a verb does not know.
pub(crate) fn check(filters: &[Filter], known: &[&str]) -> Result<()> {
    match filters.iter().find(|filter| !known.contains(&filter.key.as_str())) {
        Some(unknown) => bail!("invalid filter '{}'", unknown.key),
        None => Ok(()),
    }
}

/// Reads the value of a filter that is true or false.
pub(crate) fn truth(filter: &Filter) -> Result<bool> {
    match filter.value.as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => bail!("invalid filter '{}=[{other}]'", filter.key),
    }
}

/// Whether filters fit: those with the same key are alternatives, except labels, which must all be there.
pub(crate) fn all_keys_fit(filters: &[Filter], fits: impl Fn(&Filter) -> bool) -> bool {
    filters.iter().all(|filter| {
        fits(filter) || (filter.key != "label" && filters.iter().any(|other| other.key == filter.key && fits(other)))
    })
}

impl Filter {
    /// Whether a label `NAME` or `NAME=VALUE` is among `labels`.
    pub(crate) fn fits_label(&self, labels: &BTreeMap<String, String>) -> bool {
        match self.value.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(&self.value),
        }
    }
}

/// Whether `text` fits a pattern with `*` and `?`; `*` stops at slashes, as in a shell.
pub(crate) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on after the last star when what follows it does not fit.
    let (mut at_pattern, mut at_text) = (0, 0);
    let mut star = None;
    while at_text < text.len() {
        match pattern.get(at_pattern) {
            Some(b'*') => {
                star = Some((at_pattern, at_text));
                at_pattern += 1;
            }
            Some(byte) if *byte == text[at_text] || (*byte == b'?' && text[at_text] != b'/') => {
                at_pattern += 1;
                at_text += 1;
            }
            _ => match star {
                Some((star_pattern, star_text)) if text[star_text] != b'/' => {
                    star = Some((star_pattern, star_text + 1));
                    at_pattern = star_pattern + 1;
                    at_text = star_text + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[at_pattern..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_keys_are_alternatives_and_labels_are_not() {
        let filters: Vec<Filter> =
            ["status=a", "status=b", "label=x", "label=y=1"].iter().map(|text| parse(text).unwrap()).collect();
        let labels: BTreeMap<String, String> =
            [("x", ""), ("y", "1")].into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let fits = |status: &str, labels: &BTreeMap<String, String>| {
            all_keys_fit(&filters, |filter| match filter.key.as_str() {
                "status" => filter.value == status,
                _ => filter.fits_label(labels),
            })
        };
        assert!(fits("b", &labels));
        assert!(!fits("c", &labels));
        assert!(!fits("a", &BTreeMap::from([("x".to_owned(), String::new())])));
        assert!(parse("status").is_err() && parse("=x").is_err());
        assert!(check(&filters, &["status"]).is_err() && check(&filters, &["status", "label"]).is_ok());
    }

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox", true),
            ("*box", "busybox", true),
            ("b*y*x", "busybox", true),
            ("bus?box", "busybox", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("busy", "busybox", false),
            ("", "", true),
            ("**", "", true),
            ("a*b", "a/b", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
