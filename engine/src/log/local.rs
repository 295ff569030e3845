//! Our own form: small, and read without parsing text.
//!
//! ```text
//! "strlog1\n"   record   record   ...
//! record = length u32 | stream u8 | 3 zero bytes | seconds i64 | nanoseconds u32 | check u32 | text      (little-endian)
//! ```

use strata_imagestore::Timestamp;

use super::{LogRecord, LogStream, MAX_RECORD};

/// What every file begins with.
pub(super) const MAGIC: &[u8; 8] = b"strlog1\n";
const HEADER: usize = 24;

/// Appends a record to `out`.
pub(super) fn encode(stream: LogStream, at: Timestamp, text: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(text.len()).expect("records are short");
    let stream = match stream {
        LogStream::Output => 1,
        LogStream::Error => 2,
    };
    out.extend(length.to_le_bytes());
    out.extend([stream, 0, 0, 0]);
    out.extend(at.seconds.to_le_bytes());
    out.extend(at.nanoseconds.to_le_bytes());
    out.extend(check(length, stream).to_le_bytes());
    out.extend(text);
}

/// Reads the record at the beginning of `bytes` and how long it is; `None` when it is not whole, or is none.
pub(super) fn decode(bytes: &[u8]) -> Option<(LogRecord, usize)> {
    let length = length(bytes)?;
    let header = bytes.get(..HEADER)?;
    let text = bytes.get(HEADER..length)?.to_vec();
    let stream = if header[4] == 1 { LogStream::Output } else { LogStream::Error };
    let seconds = i64::from_le_bytes(header[8..16].try_into().ok()?);
    let nanoseconds = u32::from_le_bytes(header[16..20].try_into().ok()?);
    Some((LogRecord { stream, at: Timestamp { seconds, nanoseconds }, text }, length))
}

/// The length of the record that begins here, header included; `None` when no record begins here.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?);
    let nanoseconds = u32::from_le_bytes(header[16..20].try_into().ok()?);
    let found = u32::from_le_bytes(header[20..24].try_into().ok()?);
    let whole = usize::try_from(length).ok()?;
    let valid = whole <= MAX_RECORD
        && matches!(header[4], 1 | 2)
        && header[5..8] == [0; 3]
        && nanoseconds < 1_000_000_000
        && found == check(length, header[4]);
    valid.then_some(HEADER + whole)
}

/// Tells a header from what a power cut left: zeros, or the middle of something else.
fn check(length: u32, stream: u8) -> u32 {
    (length ^ u32::from(stream).rotate_left(24)) ^ 0x7374_6c67
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_torn_ones_are_told() {
        let at = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
        let record = LogRecord { stream: LogStream::Error, at, text: b"a line\n".to_vec() };
        let mut bytes = Vec::new();
        encode(record.stream, record.at, &record.text, &mut bytes);
        assert_eq!(decode(&bytes), Some((record, bytes.len())));
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None, "{length}");
        }
        assert_eq!(decode(&[0; 64]), None);
        assert_eq!(length(b"strlog1\nstrlog1\nstrlog1\nstrlog1\n"), None);
    }
}
