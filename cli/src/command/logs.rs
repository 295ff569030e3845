//! `strata logs`

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use clap::Args;
use strata_engine::{LogOptions, LogStream, Timestamp};

use super::{Context, Outcome};

/// Show what a container wrote
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on showing what it writes
    #[arg(short, long)]
    follow: bool,
    /// Show nothing before a time, such as 2013-01-02T13:23:37Z, or 42m for minutes ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Show nothing after a time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Show only so many lines from the end
    #[arg(short = 'n', long, visible_alias = "lines", value_name = "NUMBER", default_value = "all")]
    tail: String,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Show the attributes that were given to the log
    #[arg(long)]
    details: bool,
    /// The container, by name, id or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Writes a container's log to both outputs.
pub(crate) fn run(context: &Context, logs: &Logs) -> Outcome {
    let engine = context.engine()?;
    let options = LogOptions {
        since: logs.since,
        until: logs.until,
        // As in Docker, whatever is no number means all.
        tail: logs.tail.parse().ok(),
        follow: logs.follow,
    };
    let (_, mut reader) = engine.logs(&logs.container, options)?;
    let (mut out, mut error) = (io::stdout().lock(), io::stderr().lock());
    while let Some(record) = reader.next_record()? {
        let mut line = Vec::with_capacity(record.text.len() + 32);
        if logs.timestamps {
            line.extend(fixed(record.at).as_bytes());
            line.push(b' ');
        }
        if logs.details {
            // No attributes are ever given here.
            line.push(b' ');
        }
        line.extend(&record.text);
        match record.stream {
            LogStream::Output => out.write_all(&line)?,
            LogStream::Error => error.write_all(&line)?,
        }
        out.flush()?;
    }
    Ok(0)
}

/// A time with all nine digits, so that lines are aligned.
pub(super) fn fixed(at: Timestamp) -> String {
    let seconds = Timestamp { nanoseconds: 0, ..at }.to_string();
    format!("{}.{:09}Z", seconds.trim_end_matches('Z'), at.nanoseconds)
}

/// Reads a moment: RFC 3339, seconds since 1970, or how long ago it was as Go writes it.
pub(super) fn moment(text: &str) -> Result<Timestamp> {
    let invalid = || anyhow!("failed to parse value as time or duration: {text:?}");
    if let Some(ago) = duration(text) {
        return Timestamp::from_nanoseconds(Timestamp::now().in_nanoseconds() - ago).ok_or_else(invalid);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && !text.is_empty() {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let seconds = seconds.parse().map_err(|_| invalid())?;
        let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
        return Ok(Timestamp { seconds, nanoseconds: digits.parse().map_err(|_| invalid())? });
    }
    // Docker takes shorter forms, and those without a zone as local time; ours is UTC.
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 => format!("{text}:00Z"),
        _ if text[text.find('T').unwrap_or(0)..].contains(['Z', '+', '-']) => text.to_owned(),
        _ => format!("{text}Z"),
    };
    whole.parse().map_err(|_| invalid())
}

/// Reads `1h30m`, `2.5s`, `10ms` in nanoseconds.
fn duration(text: &str) -> Option<i128> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, unit) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let (factor, length) = match unit.as_bytes() {
            [b'n', b's', ..] => (1.0, 2),
            [b'u', b's', ..] => (1e3, 2),
            [b'm', b's', ..] => (1e6, 2),
            [b's', ..] => (1e9, 1),
            [b'm', ..] => (60e9, 1),
            [b'h', ..] => (3600e9, 1),
            _ => return None,
        };
        total += number * factor;
        rest = &unit[length..];
    }
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and nobody asks for centuries")]
    (!text.is_empty()).then_some(total as i128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_docker_does() {
        let at = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        for (text, expected) in [
            ("2023-11-14T22:13:20Z", at(1_700_000_000, 0)),
            ("2023-11-14T23:13:20+01:00", at(1_700_000_000, 0)),
            ("2023-11-14T22:13:20.5", at(1_700_000_000, 500_000_000)),
            ("2023-11-14T22:13", at(1_699_999_980, 0)),
            ("2023-11-14", at(1_699_920_000, 0)),
            ("1700000000", at(1_700_000_000, 0)),
            ("1700000000.25", at(1_700_000_000, 250_000_000)),
        ] {
            assert_eq!(moment(text).unwrap(), expected, "{text}");
        }
        let ago = Timestamp::now().seconds - moment("1h30m").unwrap().seconds;
        assert!((5399..=5401).contains(&ago), "{ago}");
        for text in ["", "yesterday", "10x", "-5m", "."] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_aligned() {
        assert_eq!(fixed(Timestamp { seconds: 0, nanoseconds: 5 }), "1970-01-01T00:00:00.000000005Z");
    }
}
