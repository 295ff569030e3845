//! What monitors and commands say to each other: a stream of frames.
//!
//! ```text
//! kind u8 | 3 zero bytes | length u32, big-endian | payload
//! ```
//!
//! The form of the header is that of Docker's multiplexed streams.

use serde::{Deserialize, Serialize};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// JSON: what a command asks for. The first frame of a connection.
    Request = 1,
    /// JSON: what came of it.
    Reply,
    /// Bytes for the process's standard input.
    Input,
    /// There are no more.
    InputEnd,
    /// A signal for the process: i32, little-endian.
    Signal,
    /// The size of the user's terminal: rows and columns, u16 each, little-endian.
    Size,
    /// Bytes from its standard output.
    Output,
    /// Bytes from its standard error.
    ErrorOutput,
    /// It has ended: exit code, i32, little-endian. The last frame of a connection.
    Ended,
    /// Text: what the audit of its policy found. Before the end.
    Audit,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        const ALL: [Kind; 10] = [
            Kind::Request,
            Kind::Reply,
            Kind::Input,
            Kind::InputEnd,
            Kind::Signal,
            Kind::Size,
            Kind::Output,
            Kind::ErrorOutput,
            Kind::Ended,
            Kind::Audit,
        ];
        ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
}

/// A stream that holds something else than frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of strata")]
pub(crate) struct InvalidFrame;

/// Appends a frame to `out`.
pub(crate) fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    for piece in pieces(payload) {
        let length = u32::try_from(piece.len()).expect("pieces are short");
        out.extend([kind as u8, 0, 0, 0]);
        out.extend(length.to_be_bytes());
        out.extend(piece);
    }
}

/// Appends a frame that carries JSON to `out`.
pub(crate) fn encode_json(kind: Kind, value: &impl Serialize, out: &mut Vec<u8>) {
    let body = serde_json::to_vec(value).expect("messages have only string keys");
    encode(kind, &body, out);
}

/// Only bytes may come in several frames, and only they are ever this long.
fn pieces(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = payload.is_empty().then_some(payload);
    empty.into_iter().chain(payload.chunks(MAX_PAYLOAD))
}

/// Puts frames together from pieces of the stream.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: Vec<u8>,
    begin: usize,
}

impl Decoder {
    /// Adds what was received.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.begin == self.buffer.len() {
            self.buffer.clear();
            self.begin = 0;
            self.buffer.shrink_to(16 << 10);
        }
        self.buffer.extend(bytes);
    }

    /// Takes the next whole frame out.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, InvalidFrame> {
        let rest = &self.buffer[self.begin..];
        let Some(header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, zero @ .., _, _, _, _] = header;
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let length = usize::try_from(length).map_err(|_| InvalidFrame)?;
        let kind = Kind::from_byte(*kind).ok_or(InvalidFrame)?;
        if *zero != [0; 3] || length > MAX_PAYLOAD {
            return Err(InvalidFrame);
        }
        let Some(payload) = rest.get(HEADER..HEADER + length) else { return Ok(None) };
        let frame = Frame { kind, payload: payload.to_vec() };
        self.begin += HEADER + length;
        Ok(Some(frame))
    }
}

impl Frame {
    /// Reads the JSON in it.
    pub(crate) fn json<T: for<'a> Deserialize<'a>>(&self) -> Result<T, InvalidFrame> {
        serde_json::from_slice(&self.payload).map_err(|_| InvalidFrame)
    }

    /// Reads the number in it.
    pub(crate) fn number(&self) -> Result<i32, InvalidFrame> {
        self.payload.as_slice().try_into().map(i32::from_le_bytes).map_err(|_| InvalidFrame)
    }

    /// Reads the rows and columns in it.
    pub(crate) fn size(&self) -> Result<(u16, u16), InvalidFrame> {
        let [a, b, c, d] = self.payload.as_slice().try_into().map_err(|_| InvalidFrame)?;
        Ok((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
    }
}

const HEADER: usize = 8;
const MAX_PAYLOAD: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut bytes = Vec::new();
        encode(Kind::Output, b"hello", &mut bytes);
        encode(Kind::InputEnd, b"", &mut bytes);
        encode(Kind::Ended, &(-3_i32).to_le_bytes(), &mut bytes);
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                decoder.push(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 3, "{cut}");
            assert_eq!(frames[0], Frame { kind: Kind::Output, payload: b"hello".to_vec() });
            assert_eq!((frames[1].kind, frames[2].number()), (Kind::InputEnd, Ok(-3)));
        }
    }

    #[test]
    fn long_output_comes_in_several_frames() {
        let mut bytes = Vec::new();
        encode(Kind::Output, &vec![7; 3 * MAX_PAYLOAD + 1], &mut bytes);
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let mut total = 0;
        while let Some(frame) = decoder.next().unwrap() {
            total += frame.payload.len();
        }
        assert_eq!(total, 3 * MAX_PAYLOAD + 1);
    }

    #[test]
    fn what_is_no_frame_is_refused_before_memory_is_taken() {
        for bytes in [&[0_u8, 0, 0, 0, 0, 0, 0, 1][..], &[1, 0, 0, 0, 255, 255, 255, 255], &[1, 1, 0, 0, 0, 0, 0, 0]] {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            assert_eq!(decoder.next(), Err(InvalidFrame), "{bytes:?}");
        }
    }
}
