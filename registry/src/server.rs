//! The server: connections, encryption, what goes wrong on demand, and the log of what was asked.

use std::fs;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::access::Access;
use crate::api;
use crate::fault::{Fault, Faults, Misbehaviour, delivery};
use crate::http::{Body, Connection, Head, Stream, read_head};
use crate::response::{Response, send};
use crate::storage::Storage;

/// How to serve.
#[derive(Debug)]
pub struct Options {
    /// Where to listen, such as `127.0.0.1:5000`; port 0 takes a free one.
    pub address: String,
    /// Where everything is kept.
    pub folder: PathBuf,
    /// Who may do what.
    pub access: Access,
    /// Certificate and key; plain HTTP without.
    pub tls: Option<Tls>,
    /// Nothing may be pushed or deleted.
    pub read_only: bool,
    /// Whether every exchange is remembered, for [`Server::exchanges`].
    pub record: bool,
}

impl Options {
    /// Serves a folder to everybody over plain HTTP on a free port of this machine.
    pub fn local(folder: &Path) -> Options {
        Options {
            address: "127.0.0.1:0".to_owned(),
            folder: folder.to_owned(),
            access: Access::open(),
            tls: None,
            read_only: false,
            record: false,
        }
    }
}

/// What encrypted connections need.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate and those that lead to its authority, PEM.
    pub certificate: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
    /// The authority that clients must have a certificate of, PEM.
    pub client_authority: Option<Vec<u8>>,
}

/// Why a registry does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The folder cannot be used.
    #[error("open {folder:?}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("certificate or key: {reason}")]
    Tls {
        /// Why.
        reason: String,
    },
}

/// One request and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
    /// The status; 0 if there was no answer.
    pub status: u16,
    /// How many bytes of the answer's body were sent.
    pub sent: u64,
}

/// A running registry. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) storage: Storage,
    pub(crate) access: Access,
    pub(crate) read_only: bool,
    scheme: &'static str,
    faults: Faults,
    exchanges: Option<Mutex<Vec<Exchange>>>,
    stopping: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Server {
    /// Starts to serve.
    pub fn start(options: Options) -> Result<Server, ServeError> {
        let storage = Storage::open(&options.folder)
            .map_err(|source| ServeError::Folder { folder: options.folder.clone(), source })?;
        let tls = options.tls.as_ref().map(server_config).transpose()?.map(Arc::new);
        let listen = |source| ServeError::Listen { address: options.address.clone(), source };
        let listener = TcpListener::bind(&options.address).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let shared = Arc::new(Shared {
            storage,
            access: options.access,
            read_only: options.read_only,
            scheme: if tls.is_some() { "https" } else { "http" },
            faults: Faults::default(),
            exchanges: options.record.then(Mutex::default),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || accept(&listener, &for_thread, tls.as_ref()))
            .map_err(listen)?;
        Ok(Server { address, shared, thread: Some(thread) })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes something go wrong from now on.
    pub fn misbehave(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Makes everything right again.
    pub fn behave(&self) {
        self.shared.faults.clear();
    }

    /// Returns what was asked and answered since the last call, where that is recorded.
    pub fn exchanges(&self) -> Vec<Exchange> {
        let Some(exchanges) = &self.shared.exchanges else { return Vec::new() };
        std::mem::take(&mut *exchanges.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        for connection in self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, tls: Option<&Arc<ServerConfig>>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        // Out of descriptors, or a client that has gone already: the next one may fare better.
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let (shared, tls) = (Arc::clone(shared), tls.cloned());
        let started = thread::Builder::new().name("connection".to_owned()).spawn(move || {
            // What goes wrong on a connection is the client's to notice.
            let _ = serve_connection(stream, &shared, tls);
        });
        drop(started);
    }
}

fn serve_connection(stream: TcpStream, shared: &Shared, tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let raw = stream.try_clone()?;
    shared.connections.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone()?);
    let stream: Box<dyn Stream> = match tls {
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            Box::new(StreamOwned::new(connection, stream))
        }
        None => Box::new(stream),
    };
    let mut connection = BufReader::with_capacity(READ_BUFFER, stream);
    let result = serve_requests(&mut connection, shared);
    // With a FIN, and not with the reset that closing an unread connection would be.
    let _ = raw.shutdown(Shutdown::Write);
    let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
    let own = raw.peer_addr().ok();
    connections.retain(|other| other.peer_addr().ok() != own);
    result
}

fn serve_requests(connection: &mut Connection, shared: &Shared) -> io::Result<()> {
    loop {
        let head = match read_head(connection) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let refusal = Response::error(400, "UNSUPPORTED", error.to_string()).with("Connection", "close");
                send(connection.get_mut(), refusal, &Default::default(), false)?;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let faults = shared.faults.of(&head);
        if faults.contains(&Misbehaviour::ExpireTokens) {
            shared.access.expire_tokens();
        }
        if faults.contains(&Misbehaviour::Reset) {
            shared.note(&head, 0, 0);
            return Ok(());
        }
        if faults.contains(&Misbehaviour::Garbage) {
            shared.note(&head, 0, 0);
            let stream = connection.get_mut();
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")?;
            return stream.flush();
        }
        let (response, in_step) = {
            let mut body = Body::new(connection, &head)?;
            let response = api::answer(shared, &head, &mut body, &faults);
            let cut = faults.iter().any(|fault| matches!(fault, Misbehaviour::CutUpload(_)));
            (response, !cut && body.drain())
        };
        if faults.iter().any(|fault| matches!(fault, Misbehaviour::CutUpload(_))) {
            shared.note(&head, 0, 0);
            return Ok(());
        }
        let delivery = delivery(&faults, response.content.length());
        let status = response.status;
        let response = if in_step && !head.is_last() { response } else { response.with("Connection", "close") };
        let sent = send(connection.get_mut(), response, &delivery, head.method == "HEAD");
        shared.note(&head, status, sent.as_ref().map_or(0, |(sent, _)| *sent));
        if !sent?.1 || !in_step || head.is_last() {
            return Ok(());
        }
    }
}

impl Shared {
    /// Returns how the client reached this server.
    pub(crate) fn origin(&self, head: &Head) -> String {
        format!("{}://{}", self.scheme, head.header("host").unwrap_or("localhost"))
    }

    fn note(&self, head: &Head, status: u16, sent: u64) {
        let Some(exchanges) = &self.exchanges else { return };
        let header = |name: &str| head.header(name).map(str::to_owned);
        exchanges.lock().unwrap_or_else(PoisonError::into_inner).push(Exchange {
            method: head.method.clone(),
            path: head.path.clone(),
            authorization: header("authorization"),
            range: header("range"),
            status,
            sent,
        });
    }
}

fn server_config(tls: &Tls) -> Result<ServerConfig, ServeError> {
    let wrong = |reason: String| ServeError::Tls { reason };
    let certificates = CertificateDer::pem_slice_iter(&tls.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&tls.key).map_err(|error| wrong(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    let builder = match &tls.client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(authority) {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| wrong(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(certificates, key).map_err(|error| wrong(error.to_string()))
}

impl Tls {
    /// Reads certificate, key and, if clients must have a certificate, the authority of those from files.
    pub fn from_files(certificate: &Path, key: &Path, client_authority: Option<&Path>) -> Result<Tls, ServeError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| ServeError::Tls { reason: format!("{}: {error}", path.display()) })
        };
        let client_authority = client_authority.map(read).transpose()?;
        Ok(Tls { certificate: read(certificate)?, key: read(key)?, client_authority })
    }
}

/// How long a connection may rest.
const IDLE: Duration = Duration::from_secs(300);
const READ_BUFFER: usize = 256 << 10;
