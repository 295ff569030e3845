//! Numbers as archives write them.

use crate::index::Timestamp;

/// Reads a field of a header: octal digits in spaces and NULs, or a base-256 number if the first bit is set.
/// A field without digits is 0.
pub(super) fn field(bytes: &[u8]) -> Option<i128> {
    if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { base256(bytes) } else { octal(bytes).map(i128::from) }
}

fn octal(bytes: &[u8]) -> Option<u64> {
    let digits = bytes.trim_ascii_start();
    let end = digits.iter().position(|byte| !matches!(byte, b'0'..=b'7')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if rest.iter().any(|&byte| byte != b' ' && byte != 0) {
        return None;
    }
    // Fields have 12 bytes at most: 36 bits.
    Some(digits.iter().fold(0, |number, digit| number << 3 | u64::from(digit - b'0')))
}

/// Reads a big-endian two's complement number whose topmost bit only says that it is one.
fn base256(bytes: &[u8]) -> Option<i128> {
    let (&first, rest) = bytes.split_first()?;
    let negative = first & 0x40 != 0;
    let start = if negative { i128::from(first) - 0x100 } else { i128::from(first & 0x3f) };
    // Fields have 12 bytes at most: 95 bits.
    let number = rest.iter().fold(start, |number, &byte| number << 8 | i128::from(byte));
    Some(number)
}

/// Reads digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads seconds with a sign and a fraction. Times beyond what 64 bits can count are the last ones that they can;
/// fractions are cut to nanoseconds, towards the past as always with times.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    if !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let seconds =
        whole.iter().try_fold(0i64, |number, digit| number.checked_mul(10)?.checked_add(i64::from(digit - b'0')));
    let nanoseconds =
        (0..9).fold(0, |number, place| number * 10 + fraction.get(place).map_or(0, |digit| u32::from(digit - b'0')));
    let cut = fraction.iter().skip(9).any(|&digit| digit != b'0');
    Some(match (seconds, negative) {
        (Some(seconds), false) => Timestamp { seconds, nanoseconds },
        (Some(seconds), true) => before_1970(seconds, nanoseconds + u32::from(cut)),
        (None, false) => Timestamp { seconds: i64::MAX, nanoseconds: 0 },
        (None, true) => Timestamp { seconds: i64::MIN, nanoseconds: 0 },
    })
}

/// Returns the time that is so long before the start of 1970.
fn before_1970(seconds: i64, nanoseconds: u32) -> Timestamp {
    if nanoseconds == 0 {
        Timestamp { seconds: -seconds, nanoseconds: 0 }
    } else {
        Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_octal_or_base_256() {
        let cases: [(&[u8], Option<i128>); 17] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"77777777777 ", Some(0o77_777_777_777)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"", Some(0)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"0000x44\0", None),
            (b"644\0\x001\0\0", None),
            (b"6 4 4\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0", Some(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX as i128)),
            (b"\xc0\0\0\0\0\0\0\0", Some(-(1 << 62))),
        ];
        for (bytes, expected) in cases {
            assert_eq!(field(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn decimals_are_digits() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "+1", "-1", " 1", "1 ", "0x1", "18446744073709551616"] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn times_have_a_sign_and_a_fraction() {
        let cases = [
            ("0", Some((0, 0))),
            ("1700000000.2366667", Some((1_700_000_000, 236_666_700))),
            ("1.", Some((1, 0))),
            (".5", Some((0, 500_000_000))),
            ("1.9999999999", Some((1, 999_999_999))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("-0.0000000001", Some((-1, 999_999_999))),
            ("-1.0000000000", Some((-1, 0))),
            ("1000000000000000000000000000000", Some((i64::MAX, 0))),
            ("-1000000000000000000000000000000.5", Some((i64::MIN, 0))),
            ("", None),
            ("-", None),
            (".", None),
            ("1e3", None),
            ("1.5.5", None),
            ("+1", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
            assert_eq!(time(text.as_bytes()), expected, "{text:?}");
        }
    }
}
