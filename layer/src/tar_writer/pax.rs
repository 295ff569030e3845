//! PAX records: `length key=value\n`, the length counting itself.

use crate::index::Timestamp;

/// Records of one extended header, in the order they were added.
#[derive(Debug, Default)]
pub(super) struct Records(Vec<u8>);

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, key: &str, value: &[u8]) {
        self.add_bytes(key.as_bytes(), value);
    }

    pub(super) fn add_number(&mut self, key: &str, value: u64) {
        self.add(key, value.to_string().as_bytes());
    }

    /// Adds a record whose key is not text. It must not contain `=`.
    pub(super) fn add_bytes(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        // The digits of the length count too; adding them can need one more.
        while rest + digits(length) != length {
            length = rest + digits(length);
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    pub(super) fn append(&mut self, mut other: Records) {
        self.0.append(&mut other.0);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Returns a time as a decimal number, with nine digits behind the point if there is a fraction.
pub(super) fn time(time: Timestamp) -> String {
    match time {
        Timestamp { seconds, nanoseconds: 0 } => seconds.to_string(),
        // A fraction counts away from zero in the text, but forward in time in the structure.
        Timestamp { seconds, nanoseconds } if seconds < 0 => {
            format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
        }
        Timestamp { seconds, nanoseconds } => format!("{seconds}.{nanoseconds:09}"),
    }
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_counts_its_own_digits() {
        let record = |value: usize| {
            let mut records = Records::default();
            records.add("path", &vec![b'x'; value]);
            let bytes = records.into_bytes();
            let text = String::from_utf8(bytes.clone()).unwrap();
            let length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, bytes.len(), "value of {value} bytes");
        };
        (0..2000).for_each(record);
    }

    #[test]
    fn times_before_1970_count_backwards() {
        let text = |seconds, nanoseconds| time(Timestamp { seconds, nanoseconds });
        assert_eq!(text(5, 0), "5");
        assert_eq!(text(5, 7), "5.000000007");
        assert_eq!(text(-5, 0), "-5");
        assert_eq!(text(-1, 500_000_000), "-0.500000000");
        assert_eq!(text(-2, 1), "-1.999999999");
        assert_eq!(text(i64::MIN, 1), "-9223372036854775807.999999999");
    }
}
