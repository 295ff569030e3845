//! HTTP/1.1: one request after the other on connections that are kept.
//!
//! Bodies are read with two limits on patience and one on length, and every way in which they can end wrongly has its
//! own error.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::connect::{Connection, USER_AGENT, connect};
use super::dns::Resolver;
use super::error::RegistryError;
use super::settings::{Settings, Timeouts};
use super::tls::{Proof, client_config};
use super::url::{Origin, Scheme, Url};

/// Makes requests and keeps connections.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) settings: Settings,
    pool: Arc<Pool>,
    configs: Mutex<HashMap<(Origin, Proof), Arc<ClientConfig>>>,
    resolver: Resolver,
}

type Pool = Mutex<HashMap<(Origin, Proof), Vec<(Connection, Instant)>>>;

/// What is sent.
#[derive(Default)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Payload<'a>,
}

/// The body of a request.
#[derive(Default)]
pub(super) enum Payload<'a> {
    #[default]
    None,
    Bytes(&'a [u8]),
    /// As many bytes as the reader gives.
    Stream(&'a mut dyn Read),
    /// So many bytes of the reader.
    Sized(&'a mut dyn Read, u64),
}

/// What comes back.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) url: Url,
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Body,
}

/// The body of a response.
#[derive(Debug)]
pub(super) struct Body {
    url: String,
    connection: Option<Connection>,
    framing: Framing,
    received: u64,
    patience: Patience,
    home: Option<(Arc<Pool>, (Origin, Proof))>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length {
        left: u64,
        total: u64,
    },
    Chunk(u64),
    Size {
        after_chunk: bool,
    },
    /// Until the connection ends.
    Close,
    End,
}

/// Watches that enough comes in time.
#[derive(Debug)]
struct Patience {
    stall: Duration,
    least: u64,
    since: Instant,
    /// Received in the current span of time.
    recent: u64,
}

impl Http {
    pub(super) fn new(settings: Settings) -> Http {
        Http { settings, pool: Arc::default(), configs: Mutex::default(), resolver: Resolver::default() }
    }

    /// Returns whether an origin may be used without proof of who it is: by its name or its addresses.
    pub(super) fn is_insecure(&self, origin: &Origin) -> bool {
        let Origin { host, .. } = origin;
        if self.settings.is_insecure(host, origin.port) {
            return true;
        }
        // What is behind a proxy need not have an address here.
        let direct = matches!(self.settings.proxies.of(origin), Ok(None));
        let ask = self.settings.has_insecure_addresses();
        direct && self.resolver.is_at(host, ask, |address| self.settings.is_insecure_address(address))
    }

    /// Sends one request and reads the head of the answer.
    pub(super) fn send(&self, url: &Url, proof: Proof, mut request: Request<'_>) -> Result<Response, RegistryError> {
        let key = (url.origin.clone(), proof);
        // A stream can be sent only once, so it gets a connection that the server cannot have closed meanwhile.
        let streams = matches!(request.body, Payload::Stream(_) | Payload::Sized(..));
        if let Some(connection) = self.take(&key).filter(|_| !streams) {
            match self.exchange(url, &key, connection, &mut request) {
                // The server has closed it meanwhile, which is its right.
                Err(RegistryError::Broken { .. }) => {}
                result => return result,
            }
        }
        let connection = connect(
            &url.origin,
            (url.origin.scheme == Scheme::Https).then(|| self.tls(&key)).transpose()?,
            &self.settings.proxies,
            |proxy| self.tls(&(proxy.clone(), Proof::Required)),
            &self.resolver,
            &self.settings.timeouts,
        )?;
        self.exchange(url, &key, connection, &mut request)
    }

    fn tls(&self, key: &(Origin, Proof)) -> Result<Arc<ClientConfig>, RegistryError> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(key) {
            return Ok(Arc::clone(config));
        }
        let config = client_config(&self.settings.certificate_folders, &key.0, key.1)?;
        Ok(Arc::clone(configs.entry(key.clone()).or_insert(Arc::new(config))))
    }

    /// Takes a connection that has not rested for long.
    fn take(&self, key: &(Origin, Proof)) -> Option<Connection> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let resting = pool.get_mut(key)?;
        resting.retain(|(_, since)| since.elapsed() < MAX_REST);
        resting.pop().map(|(connection, _)| connection)
    }

    fn exchange(
        &self,
        url: &Url,
        key: &(Origin, Proof),
        mut connection: Connection,
        request: &mut Request<'_>,
    ) -> Result<Response, RegistryError> {
        let shown = url.shown();
        let timeouts = &self.settings.timeouts;
        let failed = |error| transport_error(&shown, error, timeouts);
        // A server may refuse, and close its side, before it has read everything: its answer is what counts.
        let sent = send_request(&mut connection, url, request);
        let head = match (read_head(&mut connection, &shown, timeouts), sent) {
            (Ok(head), _) => head,
            (Err(_), Err(error)) => return Err(failed(error)),
            (Err(error), Ok(())) => return Err(error),
        };
        let framing = framing_of(&head, request.method, &shown)?;
        let keeps = head.version == 1 && !head.has("connection", "close") && framing != Framing::Close;
        if let Some(encoding) = head.header("content-encoding").filter(|encoding| *encoding != "identity") {
            return Err(RegistryError::Encoding { url: shown, encoding: encoding.to_owned() });
        }
        let mut body = Body {
            url: shown,
            connection: Some(connection),
            framing,
            received: 0,
            patience: Patience { stall: timeouts.stall, least: timeouts.slow, since: Instant::now(), recent: 0 },
            home: keeps.then(|| (Arc::clone(&self.pool), key.clone())),
        };
        body.settle();
        Ok(Response { url: url.clone(), status: head.status, headers: head.headers, body })
    }
}

impl Response {
    /// Returns a header, by its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header_in(&self.headers, name)
    }

    /// Returns all headers of one name.
    pub(super) fn headers(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Reads a whole body of at most so many bytes.
    pub(super) fn read_all(mut self, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = self.body.read(&mut buffer)?;
            if count == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&buffer[..count]);
            if bytes.len() as u64 > limit {
                let size = self.body.length().unwrap_or(bytes.len() as u64);
                return Err(RegistryError::TooLarge { what: self.url.shown(), size, limit });
            }
        }
    }
}

impl Body {
    /// Returns how long the body is, where that is said beforehand.
    pub(super) fn length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length { total, .. } => Some(total),
            Framing::End => Some(self.received),
            _ => None,
        }
    }

    /// Reads more of the body; 0 is its proper end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(0) };
            let left = match self.framing {
                Framing::End => return Ok(0),
                Framing::Size { after_chunk } => {
                    let next = next_chunk(&mut connection.stream, after_chunk);
                    match next {
                        Ok(framing) => self.framing = framing,
                        Err(error) => return Err(self.fail(error)),
                    }
                    self.settle();
                    continue;
                }
                Framing::Length { left, .. } | Framing::Chunk(left) => left,
                Framing::Close => u64::MAX,
            };
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match connection.stream.read(&mut buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.fail(error)),
                Ok(count) => count,
            };
            if count == 0 && wanted > 0 && self.framing != Framing::Close {
                return Err(self.fail(io::ErrorKind::UnexpectedEof.into()));
            }
            self.received += count as u64;
            self.framing = match self.framing {
                Framing::Length { left, total } => Framing::Length { left: left - count as u64, total },
                Framing::Chunk(left) if left == count as u64 => Framing::Size { after_chunk: true },
                Framing::Chunk(left) => Framing::Chunk(left - count as u64),
                Framing::Close if count == 0 => Framing::End,
                other => other,
            };
            if let Err(error) = self.patience.note(&self.url, count as u64) {
                self.connection = None;
                return Err(error);
            }
            self.settle();
            return Ok(count);
        }
    }

    /// Gives the connection back when nothing more comes on it.
    fn settle(&mut self) {
        if matches!(self.framing, Framing::Length { left: 0, .. }) {
            self.framing = Framing::End;
        }
        if self.framing != Framing::End {
            return;
        }
        if let (Some(connection), Some((pool, key))) = (self.connection.take(), self.home.take()) {
            let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
            let resting = pool.entry(key).or_default();
            if resting.len() < MAX_RESTING {
                resting.push((connection, Instant::now()));
            }
        }
    }

    fn fail(&mut self, error: io::Error) -> RegistryError {
        self.connection = None;
        if let (Framing::Length { total, .. }, io::ErrorKind::UnexpectedEof) = (self.framing, error.kind()) {
            return RegistryError::Length { url: self.url.clone(), expected: total, received: self.received };
        }
        let timeouts = Timeouts { stall: self.patience.stall, ..Timeouts::default() };
        transport_error(&self.url, error, &timeouts)
    }

    /// Reads what is left, if it is little, so that the connection can be used again.
    pub(super) fn drain(mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..MAX_DRAIN / buffer.len() {
            match self.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

impl Patience {
    fn note(&mut self, url: &str, count: u64) -> Result<(), RegistryError> {
        self.recent += count;
        if self.since.elapsed() < self.stall {
            return Ok(());
        }
        if self.recent < self.least {
            let seconds = self.stall.as_secs();
            return Err(RegistryError::TooSlow { url: url.to_owned(), bytes: self.least, seconds });
        }
        self.since = Instant::now();
        self.recent = 0;
        Ok(())
    }
}

fn send_request(connection: &mut Connection, url: &Url, request: &mut Request<'_>) -> io::Result<()> {
    let target = match &connection.through_proxy {
        Some(_) => format!("{}{}", url.origin, url.target),
        None => url.target.clone(),
    };
    let mut head = format!(
        "{} {target} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {USER_AGENT}\r\nAccept-Encoding: identity\r\n",
        request.method,
        url.origin.authority()
    );
    if let Some(Some(authorization)) = &connection.through_proxy {
        head.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match &request.body {
        Payload::None if matches!(request.method, "POST" | "PUT" | "PATCH") => head.push_str("Content-Length: 0\r\n"),
        Payload::None => {}
        Payload::Bytes(bytes) => head.push_str(&format!("Content-Length: {}\r\n", bytes.len())),
        Payload::Stream(_) => head.push_str("Transfer-Encoding: chunked\r\n"),
        Payload::Sized(_, size) => head.push_str(&format!("Content-Length: {size}\r\n")),
    }
    head.push_str("\r\n");
    let out = connection.stream.get_mut();
    out.write_all(head.as_bytes())?;
    match &mut request.body {
        Payload::None => {}
        Payload::Bytes(bytes) => out.write_all(bytes)?,
        Payload::Sized(reader, size) => {
            let copied = io::copy(&mut reader.take(*size), out)?;
            if copied != *size {
                return Err(io::Error::other("what is to be sent is shorter than it was"));
            }
        }
        Payload::Stream(reader) => {
            let mut buffer = vec![0; STREAM_CHUNK];
            loop {
                let count = reader.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                out.write_all(format!("{count:x}\r\n").as_bytes())?;
                out.write_all(&buffer[..count])?;
                out.write_all(b"\r\n")?;
            }
            out.write_all(b"0\r\n\r\n")?;
        }
    }
    out.flush()
}

/// The head of an answer.
struct Head {
    version: u8,
    status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        header_in(&self.headers, name)
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.header(name).is_some_and(|text| text.split(',').any(|word| word.trim().eq_ignore_ascii_case(value)))
    }
}

fn header_in<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn read_head(connection: &mut Connection, url: &str, timeouts: &Timeouts) -> Result<Head, RegistryError> {
    let malformed = |reason| RegistryError::Malformed { url: url.to_owned(), reason };
    let started = Instant::now();
    loop {
        let mut bytes = Vec::new();
        loop {
            let before = bytes.len();
            let limit = (MAX_HEAD - before) as u64;
            let count = connection
                .stream
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut bytes)
                .map_err(|error| transport_error(url, error, timeouts))?;
            if count == 0 && before < MAX_HEAD {
                return Err(transport_error(url, io::ErrorKind::UnexpectedEof.into(), timeouts));
            }
            if before == 0 && !bytes.starts_with(b"HTTP/") {
                return Err(malformed("it is not HTTP"));
            }
            if bytes.len() >= MAX_HEAD {
                return Err(malformed("its head is too long"));
            }
            // A head that comes a byte at a time is a stall.
            if started.elapsed() > 2 * timeouts.stall {
                return Err(RegistryError::Stalled { url: url.to_owned(), seconds: timeouts.stall.as_secs() });
            }
            if matches!(&bytes[before..], b"\r\n" | b"\n") {
                break;
            }
        }
        let head = parse_head(&bytes).ok_or_else(|| malformed("its head cannot be understood"))?;
        // Interim answers, such as 100 Continue.
        if (100..200).contains(&head.status) && head.status != 101 {
            continue;
        }
        return Ok(head);
    }
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut storage);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return None,
    }
    let headers = response
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_owned()))
        .collect();
    Some(Head { version: response.version?, status: response.code?, headers })
}

/// Reads a head and the frame of a body out of memory, for fuzz targets.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(bytes: &[u8]) {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let (head, mut body) = bytes.split_at(end);
    let Some(head) = parse_head(head) else { return };
    let _ = head.has("connection", "close");
    let Ok(Framing::Size { mut after_chunk }) = framing_of(&head, "GET", "") else { return };
    while let Ok(Framing::Chunk(size)) = next_chunk(&mut body, after_chunk) {
        body = usize::try_from(size).ok().and_then(|size| body.get(size..)).unwrap_or_default();
        after_chunk = true;
    }
}

fn framing_of(head: &Head, method: &str, url: &str) -> Result<Framing, RegistryError> {
    let malformed = |reason| RegistryError::Malformed { url: url.to_owned(), reason };
    let mut lengths = head.headers.iter().filter(|(name, _)| name == "content-length").map(|(_, value)| value);
    let length = match lengths.next() {
        None => None,
        Some(first) => {
            if lengths.any(|other| other != first) {
                return Err(malformed("it has two lengths"));
            }
            let valid = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
            let parsed = first.parse::<u64>().ok().filter(|_| valid);
            Some(parsed.ok_or_else(|| malformed("its length is no number"))?)
        }
    };
    if method == "HEAD" || matches!(head.status, 204 | 304) {
        return Ok(Framing::End);
    }
    match (head.header("transfer-encoding"), length) {
        (Some(encoding), None) if encoding.eq_ignore_ascii_case("chunked") => Ok(Framing::Size { after_chunk: false }),
        (Some(_), Some(_)) => Err(malformed("its body is framed in two ways")),
        (Some(_), None) => Err(malformed("its transfer encoding is unknown")),
        (None, Some(length)) => Ok(Framing::Length { left: length, total: length }),
        (None, None) => Ok(Framing::Close),
    }
}

fn next_chunk(stream: &mut impl BufRead, after_chunk: bool) -> io::Result<Framing> {
    let mut line = || -> io::Result<String> {
        let mut bytes = Vec::new();
        stream.by_ref().take(MAX_CHUNK_LINE).read_until(b'\n', &mut bytes)?;
        if bytes.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        String::from_utf8(bytes).map(|line| line.trim_end().to_owned()).map_err(io::Error::other)
    };
    if after_chunk && !line()?.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk is longer than it says"));
    }
    let size = line()?;
    let digits = size.split(';').next().unwrap_or("").trim();
    match u64::from_str_radix(digits, 16) {
        Ok(0) => {
            for _ in 0..MAX_HEADERS {
                if line()?.is_empty() {
                    return Ok(Framing::End);
                }
            }
            Err(io::Error::new(io::ErrorKind::InvalidData, "too many trailers"))
        }
        Ok(size) => Ok(Framing::Chunk(size)),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk's size is no number")),
    }
}

/// Names what went wrong on the way.
fn transport_error(url: &str, error: io::Error, timeouts: &Timeouts) -> RegistryError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            RegistryError::Stalled { url: url.to_owned(), seconds: timeouts.stall.as_secs() }
        }
        _ => RegistryError::Broken { url: url.to_owned(), source: error },
    }
}

/// Servers close connections that rest longer, some after half a minute.
const MAX_REST: Duration = Duration::from_secs(20);
const MAX_RESTING: usize = 8;
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 100;
const MAX_CHUNK_LINE: u64 = 4 << 10;
const MAX_DRAIN: usize = 64 << 10;
const STREAM_CHUNK: usize = 256 << 10;
