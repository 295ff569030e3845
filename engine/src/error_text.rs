//! Errors as one line for people.

/// Writes an error and its causes on one line: `open store: access "/x": Permission denied`.
///
/// A cause that is quoted already is not repeated, and the numbers that Rust adds to the system's words are left out.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = without_numbers(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = without_numbers(&error.to_string());
        if !text.to_lowercase().contains(&reason.to_lowercase()) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

/// Takes ` (os error 2)` out.
fn without_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        out.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layered {
        text: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn causes_follow_each_other_once_and_without_numbers() {
        let denied = || std::io::Error::from_raw_os_error(13);
        for (text, expected) in [
            ("open \"/x\"", "open \"/x\": Permission denied"),
            ("exec: permission denied: unknown", "exec: permission denied: unknown"),
        ] {
            assert_eq!(error_chain(&Layered { text, source: denied() }), expected);
        }
        assert_eq!(without_numbers("a (os error 5): b (os error 6)"), "a: b");
    }
}
