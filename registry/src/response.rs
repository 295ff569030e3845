//! Responses, and how they are put on the wire: as they are, or in the way that a fault demands.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What is answered.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) content: Content,
}

/// The body of a response.
#[derive(Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    File { file: File, offset: u64, length: u64 },
}

impl Content {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { length, .. } => *length,
        }
    }
}

impl Response {
    pub(crate) fn new(status: u16) -> Response {
        Response { status, headers: Vec::new(), content: Content::Bytes(Vec::new()) }
    }

    pub(crate) fn json(status: u16, value: &Value) -> Response {
        let content = Content::Bytes(value.to_string().into_bytes());
        Response { status, headers: Vec::new(), content }.with("Content-Type", "application/json")
    }

    /// An error in the specification's form.
    pub(crate) fn error(status: u16, code: &str, message: impl Into<String>) -> Response {
        let message: String = message.into();
        Response::json(status, &json!({"errors": [{"code": code, "message": message, "detail": null}]}))
    }

    /// An error of the server itself.
    pub(crate) fn internal(error: &io::Error) -> Response {
        Response::error(500, "UNKNOWN", error.to_string())
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Response {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// How a response is delivered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delivery {
    /// The connection is closed after so many bytes of the body.
    pub(crate) cut: Option<u64>,
    /// Nothing is sent for a while after so many bytes of the body.
    pub(crate) stall: Option<(u64, Duration)>,
    /// The byte that is sent wrong.
    pub(crate) flip: Option<u64>,
    /// What is added to the stated length.
    pub(crate) length_error: i64,
    /// How many bytes at the end are neither sent nor counted.
    pub(crate) shortened: u64,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
    /// Sent as chunks instead of with a length.
    pub(crate) chunked: bool,
    /// Headers that are left out, in lower case.
    pub(crate) without: Vec<String>,
    /// Headers that are put in place of others, or added.
    pub(crate) replaced: Vec<(String, String)>,
}

/// Writes a response; returns how many bytes of the body were sent and whether the connection may go on.
pub(crate) fn send(
    out: &mut dyn Write,
    mut response: Response,
    delivery: &Delivery,
    without_body: bool,
) -> io::Result<(u64, bool)> {
    let length = response.content.length().saturating_sub(delivery.shortened);
    for (name, value) in &delivery.replaced {
        response.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        response.headers.push((name.clone(), value.clone()));
    }
    response.headers.retain(|(name, _)| !delivery.without.contains(&name.to_ascii_lowercase()));
    let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let stated = length.checked_add_signed(delivery.length_error).unwrap_or(0);
    if delivery.chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else if !delivery.without.iter().any(|name| name == "content-length") && response.status != 204 {
        head.push_str(&format!("Content-Length: {stated}\r\n"));
    }
    head.push_str("\r\n");
    out.write_all(head.as_bytes())?;
    if without_body {
        out.flush()?;
        return Ok((0, true));
    }
    let sent = send_body(out, &mut response.content, length, delivery)?;
    out.flush()?;
    let whole = sent == length && stated == length && !delivery.without.iter().any(|name| name == "content-length");
    Ok((sent, whole))
}

fn send_body(out: &mut dyn Write, content: &mut Content, length: u64, delivery: &Delivery) -> io::Result<u64> {
    let mut reader: Box<dyn Read> = match content {
        Content::Bytes(bytes) => Box::new(io::Cursor::new(&bytes[..])),
        Content::File { file, offset, .. } => {
            file.seek(SeekFrom::Start(*offset))?;
            Box::new(file)
        }
    };
    let end = delivery.cut.unwrap_or(u64::MAX).min(length);
    let mut sent = 0;
    let mut buffer = vec![0; BUFFER];
    let started = Instant::now();
    let mut stall = delivery.stall;
    while sent < end {
        let mut wanted = (end - sent).min(BUFFER as u64);
        if let Some((at, time)) = stall.filter(|(at, _)| *at < sent + wanted) {
            wanted = at.saturating_sub(sent);
            if wanted == 0 {
                out.flush()?;
                thread::sleep(time);
                stall = None;
                continue;
            }
        }
        if let Some(rate) = delivery.rate {
            wanted = wanted.min((rate / 20).max(1));
        }
        let wanted = usize::try_from(wanted).unwrap_or(BUFFER);
        let count = reader.read(&mut buffer[..wanted])?;
        if count == 0 {
            break;
        }
        if let Some(at) = delivery.flip.and_then(|at| at.checked_sub(sent)).and_then(|at| usize::try_from(at).ok())
            && at < count
        {
            buffer[at] ^= 0xff;
        }
        if delivery.chunked {
            out.write_all(format!("{count:x}\r\n").as_bytes())?;
        }
        out.write_all(&buffer[..count])?;
        if delivery.chunked {
            out.write_all(b"\r\n")?;
        }
        sent += count as u64;
        if let Some(rate) = delivery.rate {
            out.flush()?;
            let due = Duration::from_micros(sent.saturating_mul(1_000_000) / rate.max(1));
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    if delivery.chunked && sent == length {
        out.write_all(b"0\r\n\r\n")?;
    }
    Ok(sent)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

const BUFFER: usize = 256 << 10;
