//! Docker's form: one JSON object per line, with `log`, `stream` and `time`.

use serde::{Deserialize, Serialize};
use strata_imagestore::Timestamp;

use super::{LogRecord, LogStream};

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: std::borrow::Cow<'a, str>,
    stream: std::borrow::Cow<'a, str>,
    time: String,
}

/// Appends a record to `out`. Bytes that are no text are replaced, as Docker does.
pub(super) fn encode(stream: LogStream, at: Timestamp, text: &[u8], out: &mut Vec<u8>) {
    let stream = match stream {
        LogStream::Output => "stdout",
        LogStream::Error => "stderr",
    };
    let line = Line { log: String::from_utf8_lossy(text), stream: stream.into(), time: at.to_string() };
    serde_json::to_writer(&mut *out, &line).expect("strings, written to memory");
    out.push(b'\n');
}

/// Reads the record at the beginning of `bytes` and how long it is; `None` when it is not whole, or is none.
pub(super) fn decode(bytes: &[u8]) -> Option<(LogRecord, usize)> {
    let length = length(bytes)?;
    let line: Line<'_> = serde_json::from_slice(&bytes[..length]).ok()?;
    let stream = if line.stream == "stderr" { LogStream::Error } else { LogStream::Output };
    Some((LogRecord { stream, at: line.time.parse().ok()?, text: line.log.into_owned().into_bytes() }, length))
}

/// The length of the line that begins here.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    Some(bytes.iter().position(|byte| *byte == b'\n')? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_docker_s() {
        let at = Timestamp { seconds: 1_700_000_000, nanoseconds: 120_000_000 };
        let record = LogRecord { stream: LogStream::Output, at, text: b"say \"hi\"\n".to_vec() };
        let mut bytes = Vec::new();
        encode(record.stream, record.at, &record.text, &mut bytes);
        let expected = r#"{"log":"say \"hi\"\n","stream":"stdout","time":"2023-11-14T22:13:20.12Z"}"#;
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), format!("{expected}\n"));
        assert_eq!(decode(&bytes), Some((record, bytes.len())));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
    }
}
