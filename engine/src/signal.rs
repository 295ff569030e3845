//! Signals by name and number.

/// Reads `TERM`, `SIGTERM`, `15`, `RTMIN+3` and the like, in any case; `None` for what is no signal.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(34, offset, 1);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(64, offset, -1);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

fn real_time(base: i32, offset: &str, direction: i32) -> Option<i32> {
    let offset = match offset.strip_prefix(if direction > 0 { '+' } else { '-' }) {
        None if offset.is_empty() => 0,
        None => return None,
        Some(digits) => digits.parse::<i32>().ok()?,
    };
    Some(base + direction * offset).filter(|number| (0..=30).contains(&offset) && (34..=64).contains(number))
}

/// The numbers are those of all architectures that strata runs on.
const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", Some(15)),
            ("sigkill", Some(9)),
            ("SigUsr1", Some(10)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("rtmax-1", Some(63)),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("", None),
            ("SIG", None),
            ("NOPE", None),
            ("RTMIN-1", None),
            ("RTMIN+31", None),
            ("RTMAX+1", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }
}
