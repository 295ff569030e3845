//! Sizes and ages as people read them, in Docker's words.

use strata_engine::Timestamp;

/// Writes a number of bytes in decimal units with three significant digits: `72.8MB`.
pub(crate) fn size(bytes: u64) -> String {
    decimal_size(bytes, 3)
}

/// Writes a number of bytes in decimal units with four significant digits, as Docker does for space: `72.81MB`.
pub(crate) fn space(bytes: u64) -> String {
    decimal_size(bytes, 4)
}

fn decimal_size(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut unit = 0;
    // Exact enough: three digits are shown.
    #[expect(clippy::cast_precision_loss, reason = "three significant digits are printed")]
    let mut value = bytes as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), UNITS[unit])
}

/// Writes a number of bytes in binary units with at most four significant digits, as Docker does for memory: `1.95GiB`.
pub(crate) fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "four significant digits are printed")]
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 1000.0 {
        0
    } else if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// So many significant digits, without trailing zeros.
fn significant(value: f64, digits: usize) -> String {
    let whole = if value >= 100.0 {
        3
    } else if value >= 10.0 {
        2
    } else {
        1
    };
    let decimals = digits.saturating_sub(whole);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Says how long ago `then` was: `2 weeks ago`; `N/A` for a moment that is not known.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    if then.seconds <= 0 {
        return "N/A".to_owned();
    }
    format!("{} ago", duration(seconds_between(then, now)))
}

/// Whole seconds from one moment to a later one; zero if it is not later.
pub(crate) fn seconds_between(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.seconds.saturating_sub(then.seconds)).unwrap_or(0)
}

/// Writes a moment as Go prints it: `2023-11-14 22:13:20 +0000 UTC`.
pub(crate) fn moment(moment: Timestamp) -> String {
    let text = Timestamp { nanoseconds: 0, ..moment }.to_string();
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// Cuts a text to `width` characters, the last of which then says that there is more.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

/// Says roughly how long `seconds` are: `About an hour`.
pub(crate) fn duration(seconds: u64) -> String {
    let minutes = seconds / 60;
    // As Docker rounds: half an hour more makes the next hour.
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// Replaces what would steer the terminal: texts come from images and archives that anybody may have made.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_significant_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1536, "1.54kB"),
            (72_800_000, "72.8MB"),
            (123_456_789, "123MB"),
            (4_261_550, "4.26MB"),
            (1_230_000_000, "1.23GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(space(1_981_800), "1.982MB");
        assert_eq!(space(123_456), "123.5kB");
        assert_eq!(space(0), "0B");
    }

    #[test]
    fn memory_has_four_significant_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (64 << 20, "64MiB"),
            (2_093_796_557, "1.95GiB"),
            (123_456_789, "117.7MiB"),
        ] {
            assert_eq!(binary_size(bytes), text);
        }
    }

    #[test]
    fn ages_use_docker_s_steps() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (730 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
        let now = Timestamp { seconds: 1_000_000, nanoseconds: 0 };
        assert_eq!(age(Timestamp { seconds: 999_970, nanoseconds: 0 }, now), "30 seconds ago");
        assert_eq!(age(Timestamp { seconds: -62_135_596_800, nanoseconds: 0 }, now), "N/A");
        assert_eq!(moment(Timestamp { seconds: 1_700_000_000, nanoseconds: 5 }), "2023-11-14 22:13:20 +0000 UTC");
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!(ellipsis("abcdef", 6), "abcdef");
        assert_eq!(ellipsis("abcdefg", 6), "abcde…");
        assert_eq!(ellipsis("äöüäöüä", 6), "äöüäö…");
    }

    #[test]
    fn texts_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\u{9b}c\nd"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c\nd");
    }
}
