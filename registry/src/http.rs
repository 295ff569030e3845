//! HTTP/1.1 on a byte stream: the head of a request, and its body as a reader.

use std::io::{self, BufRead, BufReader, Read, Write};

/// A connection, encrypted or not.
pub(crate) trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// A connection with what was read ahead of it.
pub(crate) type Connection = BufReader<Box<dyn Stream>>;

/// What is asked for, without the body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// The path with its percent escapes resolved.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// Returns a header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns a parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns all parameters of one name.
    pub(crate) fn parameters(&self, name: &str) -> Vec<&str> {
        self.query.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Returns whether the client wants the connection to end after this.
    pub(crate) fn is_last(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Reads the head of the next request; `None` when the client has closed the connection.
pub(crate) fn read_head(connection: &mut Connection) -> io::Result<Option<Head>> {
    let mut bytes = Vec::new();
    let first = connection.fill_buf()?.first().copied();
    if first.is_some_and(|first| !first.is_ascii_uppercase() && !first.is_ascii_whitespace()) {
        // A client that wants to encrypt, for one. It may wait for an answer without ending its line.
        return Err(invalid("not an HTTP request"));
    }
    loop {
        let before = bytes.len();
        let limit = (MAX_HEAD - before) as u64;
        let count = connection.by_ref().take(limit).read_until(b'\n', &mut bytes)?;
        if count == 0 {
            return if before == 0 { Ok(None) } else { Err(invalid("the request ends in its head")) };
        }
        let line = &bytes[before..];
        // Empty lines before a request are allowed, and end it after one.
        if matches!(line, b"\r\n" | b"\n") {
            if before > 0 {
                break;
            }
            bytes.clear();
        }
        if bytes.len() >= MAX_HEAD {
            return Err(invalid("the request's head is too long"));
        }
    }
    let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut storage);
    match request.parse(&bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Err(invalid("not an HTTP request")),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(invalid("not an HTTP request"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = request
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_owned()))
        .collect();
    Ok(Some(Head { method: method.to_owned(), path: unescape(path), query: parse_form(query), headers }))
}

/// Parses what is written behind the question mark of an address, or sent by a form.
pub(crate) fn parse_form(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescape(&name.replace('+', " ")), unescape(&value.replace('+', " ")))
        })
        .collect()
}

/// Resolves percent escapes; what is no escape stays.
pub(crate) fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut position = 0;
    while position < bytes.len() {
        let escaped = (bytes[position] == b'%')
            .then(|| bytes.get(position + 1..position + 3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                position += 3;
            }
            None => {
                out.push(bytes[position]);
                position += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Writes text so that it is one value in a query.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The body of a request, read from the connection as it comes.
pub(crate) struct Body<'c> {
    connection: &'c mut Connection,
    framing: Framing,
    /// Whether the client waits for leave to send it.
    awaited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// So many bytes of the current chunk are left.
    Chunk(u64),
    /// A chunk's size comes next; whether the end of another chunk comes before it.
    Size {
        after_chunk: bool,
    },
    End,
}

impl<'c> Body<'c> {
    pub(crate) fn new(connection: &'c mut Connection, head: &Head) -> io::Result<Body<'c>> {
        let chunked = head.header("transfer-encoding").map(str::to_ascii_lowercase);
        let framing = match (chunked.as_deref(), head.header("content-length")) {
            (Some("chunked"), None) => Framing::Size { after_chunk: false },
            (Some(_), _) => return Err(invalid("a body that is framed in two ways, or in an unknown one")),
            (None, None) => Framing::End,
            (None, Some(length)) => {
                Framing::Length(length.parse().map_err(|_| invalid("the length of the body is no number"))?)
            }
        };
        let awaited = head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        Ok(Body { connection, framing, awaited })
    }

    /// Returns how many bytes come, where the client says so.
    pub(crate) fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::End => Some(0),
            _ => None,
        }
    }

    /// Reads what the handler left; returns whether the connection is at the start of the next request.
    pub(crate) fn drain(mut self) -> bool {
        if self.awaited && self.framing != Framing::End && self.framing != Framing::Length(0) {
            // The client may or may not send it now.
            return false;
        }
        let mut left = MAX_DRAIN;
        let mut buffer = [0; 8192];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) if left > count => left -= count,
                _ => return false,
            }
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.connection.by_ref().take(MAX_CHUNK_LINE).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        String::from_utf8(line).map(|line| line.trim_end().to_owned()).map_err(|_| invalid("a chunk's size is no text"))
    }

    fn next_chunk(&mut self, after_chunk: bool) -> io::Result<()> {
        if after_chunk && !self.read_line()?.is_empty() {
            return Err(invalid("a chunk is longer than it says"));
        }
        let line = self.read_line()?;
        let digits = line.split(';').next().unwrap_or("").trim();
        let size = u64::from_str_radix(digits, 16).map_err(|_| invalid("a chunk's size is no number"))?;
        self.framing = match size {
            0 => {
                while !self.read_line()?.is_empty() {}
                Framing::End
            }
            size => Framing::Chunk(size),
        };
        Ok(())
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.awaited {
            self.awaited = false;
            let stream = self.connection.get_mut();
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            stream.flush()?;
        }
        loop {
            let left = match self.framing {
                Framing::End | Framing::Length(0) => return Ok(0),
                Framing::Size { after_chunk } => {
                    self.next_chunk(after_chunk)?;
                    continue;
                }
                Framing::Length(left) | Framing::Chunk(left) => left,
            };
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = self.connection.read(&mut buffer[..wanted])?;
            if count == 0 && wanted > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let left = left - count as u64;
            self.framing = match self.framing {
                Framing::Length(_) => Framing::Length(left),
                _ if left == 0 => Framing::Size { after_chunk: true },
                _ => Framing::Chunk(left),
            };
            return Ok(count);
        }
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 64;
const MAX_CHUNK_LINE: u64 = 4 << 10;
/// What is not worth a new connection.
const MAX_DRAIN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection on which bytes have arrived; what is sent back goes nowhere.
    struct Arrived(io::Cursor<Vec<u8>>);

    impl Read for Arrived {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Arrived {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn arrived(text: &str) -> Connection {
        BufReader::new(Box::new(Arrived(io::Cursor::new(text.as_bytes().to_vec()))))
    }

    #[test]
    fn requests_follow_each_other_on_one_connection() {
        let mut connection = arrived(
            "PATCH /v2/a%2fb?x=1&y=a%3Ab+c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        );
        let head = read_head(&mut connection).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str()), ("PATCH", "/v2/a/b"));
        assert_eq!(head.parameter("y"), Some("a:b c"));
        let mut text = String::new();
        Body::new(&mut connection, &head).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcde");
        let head = read_head(&mut connection).unwrap().unwrap();
        assert!(head.is_last());
        assert!(read_head(&mut connection).unwrap().is_none());
    }

    #[test]
    fn bodies_that_are_cut_off_or_framed_twice_are_errors() {
        for text in [
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ] {
            let mut connection = arrived(text);
            let head = read_head(&mut connection).unwrap().unwrap();
            let read = Body::new(&mut connection, &head).and_then(|mut body| body.read_to_end(&mut Vec::new()));
            assert!(read.is_err(), "{text}");
        }
        assert!(read_head(&mut arrived("\u{16}\u{3}\u{1}")).is_err());
        assert!(read_head(&mut arrived("nonsense\r\n\r\n")).is_err());
        assert!(read_head(&mut arrived("GET / HTTP/1.1\r\nHost")).is_err());
    }
}
