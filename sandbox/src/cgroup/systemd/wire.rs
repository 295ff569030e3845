//! D-Bus messages: the part of the wire format that talking to systemd takes (D-Bus Specification, 0.43).
//!
//! ```text
//! order u8 | type u8 | flags u8 | version u8 | body length u32 | serial u32 | header fields a(yv) | pad to 8 | body
//! ```

use std::io;

/// A value, with its signature in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `g`
    Signature(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
    /// `a(sv)`
    Properties(Vec<(&'static str, Value)>),
    /// `a(sa(sv))`, of which systemd wants none.
    NoUnits,
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::U64(_) => "t",
            Value::Text(_) => "s",
            Value::Path(_) => "o",
            Value::Signature(_) => "g",
            Value::Bytes(_) => "ay",
            Value::Numbers(_) => "au",
            Value::Pairs(_) => "a(ss)",
            Value::Properties(_) => "a(sv)",
            Value::NoUnits => "a(sa(sv))",
        }
    }
}

/// A message that was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    /// The call that this answers.
    pub(super) reply_to: Option<u32>,
    pub(super) member: Option<String>,
    pub(super) error: Option<String>,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

pub(super) const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// Where a call goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// Writes a call.
pub(super) fn call(serial: u32, method: Method<'_>, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer::default();
    let mut signature = String::new();
    for argument in arguments {
        signature += argument.signature();
        body.value(argument);
    }
    let mut fields = vec![
        (1, Value::Path(method.path.to_owned())),
        (2, Value::Text(method.interface.to_owned())),
        (3, Value::Text(method.member.to_owned())),
        (6, Value::Text(method.destination.to_owned())),
    ];
    if !signature.is_empty() {
        fields.push((8, Value::Signature(signature)));
    }
    message(METHOD_CALL, serial, &fields, &body.bytes)
}

fn message(kind: u8, serial: u32, fields: &[(u8, Value)], body: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes.extend([b'l', kind, 0, 1]);
    out.u32(length(body.len()));
    out.u32(serial);
    out.array(8, fields, |out, (code, value)| {
        out.align(8);
        out.bytes.push(*code);
        out.variant(value);
    });
    out.align(8);
    out.bytes.extend(body);
    out.bytes
}

#[derive(Debug, Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        self.value(value);
    }

    /// Elements that begin at multiples of `alignment`; the gap before the first does not count as length.
    fn array<T>(&mut self, alignment: usize, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u32(0);
        let place = self.bytes.len() - 4;
        self.align(alignment);
        let begin = self.bytes.len();
        for item in items {
            write(self, item);
        }
        let written = length(self.bytes.len() - begin);
        self.bytes[place..place + 4].copy_from_slice(&written.to_le_bytes());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(value) => self.u32(u32::from(*value)),
            Value::U64(value) => {
                self.align(8);
                self.bytes.extend(value.to_le_bytes());
            }
            Value::Text(text) | Value::Path(text) => self.text(text),
            Value::Signature(text) => self.signature(text),
            Value::Bytes(bytes) => self.array(1, bytes, |out, byte| out.bytes.push(*byte)),
            Value::Numbers(numbers) => self.array(4, numbers, |out, number| out.u32(*number)),
            Value::Pairs(pairs) => self.array(8, pairs, |out, (first, second)| {
                out.align(8);
                out.text(first);
                out.text(second);
            }),
            Value::Properties(properties) => self.array(8, properties, |out, (name, value)| {
                out.align(8);
                out.text(name);
                out.variant(value);
            }),
            Value::NoUnits => self.array::<()>(8, &[], |_, ()| {}),
        }
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// How many bytes the message has that begins with these 16; an error for what is none.
pub(super) fn size(head: &[u8; 16]) -> io::Result<usize> {
    let reader = Reader::new(head, head[0] == b'B');
    if !matches!(head[0], b'l' | b'B') || head[3] != 1 {
        return Err(malformed());
    }
    let (body, fields) = (reader.u32_at(4)?, reader.u32_at(12)?);
    let size = (16 + u64::from(fields)).next_multiple_of(8) + u64::from(body);
    usize::try_from(size).ok().filter(|size| *size <= LONGEST).ok_or_else(malformed)
}

/// Reads a whole message.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Message> {
    let big = bytes.first() == Some(&b'B');
    let mut reader = Reader::new(bytes, big);
    let mut message = Message { kind: *bytes.get(1).ok_or_else(malformed)?, ..Message::default() };
    let fields_end = 16 + usize::try_from(reader.u32_at(12)?).map_err(|_| malformed())?;
    reader.at = 16;
    while reader.at < fields_end {
        reader.align(8);
        let code = reader.u8()?;
        match (code, reader.signature()?.as_str()) {
            (3, "s") => message.member = Some(reader.text()?),
            (4, "s") => message.error = Some(reader.text()?),
            (5, "u") => message.reply_to = Some(reader.u32()?),
            (8, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.u32()?),
            _ => return Err(malformed()),
        }
    }
    reader.at = fields_end;
    reader.align(8);
    // Bodies are read as little-endian only: that is what systemd writes where we are.
    if big && reader.at < bytes.len() {
        return Err(malformed());
    }
    message.body = bytes.get(reader.at..).ok_or_else(malformed)?.to_vec();
    Ok(message)
}

/// Reads values in their order.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], big: bool) -> Self {
        Self { bytes, at: 0, big }
    }

    /// Of the body of a message.
    pub(super) fn of_body(message: &'a Message) -> Self {
        Self::new(&message.body, false)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or_else(malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32_at(&self, at: usize) -> io::Result<u32> {
        let bytes = *self.bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(malformed)?;
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    pub(super) fn u32(&mut self) -> io::Result<u32> {
        self.align(4);
        let number = self.u32_at(self.at)?;
        self.at += 4;
        Ok(number)
    }

    pub(super) fn text(&mut self) -> io::Result<String> {
        let length = usize::try_from(self.u32()?).map_err(|_| malformed())?;
        self.terminated(length)
    }

    pub(super) fn signature(&mut self) -> io::Result<String> {
        let length = usize::from(self.u8()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> io::Result<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| malformed())?;
        match self.u8()? {
            0 => Ok(text),
            _ => Err(malformed()),
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed D-Bus message")
}

/// `max_message_size` of the reference implementation.
const LONGEST: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_bytes_that_the_specification_says() {
        let method = Method { destination: "a.b", path: "/", interface: "c.d", member: "E" };
        let bytes = call(7, method, &[Value::Text("x".to_owned()), Value::U64(5)]);
        let mut expected = vec![b'l', 1, 0, 1, 16, 0, 0, 0, 7, 0, 0, 0];
        // Fields: 4 structures at multiples of 8 and the signature.
        expected.extend([69, 0, 0, 0]);
        expected.extend([1, 1, b'o', 0, 1, 0, 0, 0, b'/', 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([2, 1, b's', 0, 3, 0, 0, 0, b'c', b'.', b'd', 0, 0, 0, 0, 0]);
        expected.extend([3, 1, b's', 0, 1, 0, 0, 0, b'E', 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([6, 1, b's', 0, 3, 0, 0, 0, b'a', b'.', b'b', 0, 0, 0, 0, 0]);
        expected.extend([8, 1, b'g', 0, 2, b's', b't', 0]);
        expected[12] = u8::try_from(expected.len() - 16).unwrap();
        expected.extend([1, 0, 0, 0, b'x', 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes, expected);
        assert_eq!(size(bytes.first_chunk().unwrap()).unwrap(), bytes.len());
        let parsed = parse(&bytes).unwrap();
        assert_eq!((parsed.kind, parsed.member.as_deref(), parsed.signature.as_str()), (METHOD_CALL, Some("E"), "st"));
        let mut reader = Reader::of_body(&parsed);
        assert_eq!(reader.text().unwrap(), "x");
    }

    #[test]
    fn what_is_cut_or_wrong_is_an_error() {
        let method = Method { destination: "a.b", path: "/", interface: "c.d", member: "E" };
        let whole = call(1, method, &[Value::U64(7), Value::Text("abc".to_owned())]);
        for end in 0..whole.len() {
            if let Ok(message) = parse(&whole[..end]) {
                let mut reader = Reader::of_body(&message);
                let read = reader.u32().and_then(|_| reader.u32()).and_then(|_| reader.text());
                assert!(read.is_err(), "{end}");
            }
        }
        let mut other = whole.clone();
        other[3] = 2;
        assert!(size(other.first_chunk().unwrap()).is_err());
        other[..8].copy_from_slice(&[b'l', 1, 0, 1, 255, 255, 255, 255]);
        assert!(size(other.first_chunk().unwrap()).is_err());
    }
}
