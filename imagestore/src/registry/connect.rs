//! Connections: addresses, proxies, encryption.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::dns::Resolver;
use super::error::RegistryError;
use super::settings::{Proxies, Timeouts};
use super::url::{Origin, Scheme, Url};

/// A byte stream in both directions, encrypted or not.
pub(super) trait Transport: Read + Write + Send {}

impl<T: Read + Write + Send> Transport for T {}

/// A connection to a server or to a proxy that passes on to it.
pub(super) struct Connection {
    pub(super) stream: BufReader<Box<dyn Transport>>,
    /// Whether requests are to be sent as to a proxy, with the whole address.
    pub(super) through_proxy: Option<Option<String>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Connects to an origin; `tls` is for encrypted ones.
pub(super) fn connect(
    origin: &Origin,
    tls: Option<Arc<ClientConfig>>,
    proxies: &Proxies,
    proxy_tls: impl Fn(&Origin) -> Result<Arc<ClientConfig>, RegistryError>,
    resolver: &Resolver,
    timeouts: &Timeouts,
) -> Result<Connection, RegistryError> {
    let Some(proxy) = proxies.of(origin)? else {
        let stream: Box<dyn Transport> = Box::new(dial(origin, resolver, timeouts)?);
        return finish(origin, stream, tls, None);
    };
    let authorization = proxy.user.as_deref().map(|user| format!("Basic {}", STANDARD.encode(user)));
    let mut stream: Box<dyn Transport> = Box::new(dial(&proxy.origin, resolver, timeouts)?);
    if proxy.origin.scheme == Scheme::Https {
        stream = encrypt(&proxy.origin, stream, proxy_tls(&proxy.origin)?)?;
    }
    if origin.scheme == Scheme::Http {
        return finish(origin, stream, None, Some(authorization));
    }
    open_tunnel(origin, &proxy, authorization.as_deref(), &mut stream)?;
    finish(origin, stream, tls, None)
}

fn finish(
    origin: &Origin,
    stream: Box<dyn Transport>,
    tls: Option<Arc<ClientConfig>>,
    through_proxy: Option<Option<String>>,
) -> Result<Connection, RegistryError> {
    let stream = match tls {
        Some(config) => encrypt(origin, stream, config)?,
        None => stream,
    };
    Ok(Connection { stream: BufReader::with_capacity(BUFFER, stream), through_proxy })
}

/// Connects to the first of the host's addresses that answers.
fn dial(origin: &Origin, resolver: &Resolver, timeouts: &Timeouts) -> Result<TcpStream, RegistryError> {
    let addresses = resolver.resolve(&origin.host);
    let addresses = addresses.map_err(|source| RegistryError::Resolve { host: origin.host.clone(), source })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for address in addresses {
        let address = SocketAddr::new(address, origin.port);
        let connected = TcpStream::connect_timeout(&address, timeouts.connect).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeouts.stall))?;
            stream.set_write_timeout(Some(timeouts.stall))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(RegistryError::Connect { address: format!("{}:{}", origin.host, origin.port), source: last })
}

fn encrypt(
    origin: &Origin,
    stream: Box<dyn Transport>,
    config: Arc<ClientConfig>,
) -> Result<Box<dyn Transport>, RegistryError> {
    let address = || origin.authority();
    let name = match origin.host.parse::<IpAddr>() {
        Ok(address) => rustls::pki_types::ServerName::from(address),
        Err(_) => rustls::pki_types::ServerName::try_from(origin.host.clone())
            .map_err(|error| RegistryError::Tls { address: address(), reason: error.to_string() })?,
    };
    let connection = ClientConnection::new(config, name)
        .map_err(|error| RegistryError::Tls { address: address(), reason: error.to_string() })?;
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
            return Err(handshake_error(address(), error));
        }
    }
    Ok(Box::new(stream))
}

/// Tells a network that failed from a peer that cannot be trusted or does not encrypt.
fn handshake_error(address: String, error: io::Error) -> RegistryError {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => RegistryError::Connect { address, source: error },
            // What a plain server does with a greeting that it does not understand.
            _ => RegistryError::Tls { address, reason: format!("connection broken during the handshake: {error}") },
        };
    };
    let reason = match tls {
        rustls::Error::InvalidMessage(_) => "http: server gave HTTP response to HTTPS client".to_owned(),
        other => other.to_string(),
    };
    RegistryError::Tls { address, reason }
}

/// Asks a proxy to pass everything on to the origin.
fn open_tunnel(
    origin: &Origin,
    proxy: &Url,
    authorization: Option<&str>,
    stream: &mut Box<dyn Transport>,
) -> Result<(), RegistryError> {
    let shown = proxy.origin.to_string();
    let broken = |source| RegistryError::Broken { url: shown.clone(), source };
    let address = origin.authority_with_port();
    let mut request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: {USER_AGENT}\r\n");
    if let Some(authorization) = authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(broken)?;
    // Byte by byte, as what follows the head belongs to the origin.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(broken)?;
        head.push(byte[0]);
        if head.len() > MAX_PROXY_HEAD {
            return Err(RegistryError::Malformed { url: shown, reason: "the proxy's answer is too long" });
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(&head).ok().and(response.code) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(RegistryError::Proxy { proxy: shown, status }),
        None => Err(RegistryError::Malformed { url: shown, reason: "the proxy does not speak HTTP" }),
    }
}

/// Reads a file that must be there.
pub(super) fn read_certificate_file(path: &std::path::Path) -> Result<Vec<u8>, RegistryError> {
    fs::read(path)
        .map_err(|error| RegistryError::Certificate { path: path.display().to_string(), reason: error.to_string() })
}

/// What we call ourselves. Some registries treat Docker's clients and unknown ones differently.
pub(super) const USER_AGENT: &str = concat!("strata/", env!("CARGO_PKG_VERSION"));
const BUFFER: usize = 128 << 10;
const MAX_PROXY_HEAD: usize = 16 << 10;
