//! The process that fetches: what readers ask for at once, and everything else in the background.
//!
//! There is at most one for a store, told by a lock. It serves a socket in `fetcher/`, looks for layers that are not
//! whole, and ends when there are none, or when nothing could be had for long; whoever needs it then starts the next.

pub(crate) mod layer;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use strata_layer::{DiffId, Digest};

use super::LAZY;
use super::folder::{FolderAccess, LazyFolder};
use super::reader::{ENDING, REQUEST, SOCKET, wake};
use crate::disk::{DiskError, Lock, OnDisk, Sharing, make_folder, names_in};
use crate::fsck::with_causes;
use crate::layout::{FETCHER, TAR};
use crate::reference::ImageRef;
use crate::registry::{RegistryClient, RegistryError};
use crate::store::{Store, StoreError};
use crate::timestamp::Timestamp;
use layer::FetchedLayer;

/// Why the fetcher ended early.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The socket cannot be served.
    #[error("listen on the socket of the fetcher")]
    Socket(#[source] io::Error),
    /// What a layer needs cannot be had from its registry.
    #[error(transparent)]
    Registry(#[from] Box<RegistryError>),
    /// What came is not what it should be.
    #[error(transparent)]
    Map(#[from] super::MapError),
    /// All of a layer is here, and it is another one.
    #[error("layer {expected} turned out to have the digest {found}; nothing of it is served any more")]
    DiffId {
        /// The layer.
        expected: DiffId,
        /// What it is.
        found: Digest,
    },
    /// All of a layer is here, and its names or attributes are not those that were told before.
    #[error("the table of contents of layer {layer} told of other files than it has; nothing of it is served any more")]
    Index {
        /// The layer.
        layer: DiffId,
    },
    /// It was found out before that a layer is not what it should be.
    #[error("layer {layer} is not what the image says")]
    Refused {
        /// The layer.
        layer: DiffId,
    },
    /// All of a layer is here, and it is no layer.
    #[error("layer {layer} cannot be read")]
    Layer {
        /// The layer.
        layer: DiffId,
        /// Why.
        source: Box<crate::ingest::IngestError>,
    },
}

impl From<DiskError> for FetchError {
    fn from(error: DiskError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<RegistryError> for FetchError {
    fn from(error: RegistryError) -> Self {
        FetchError::Registry(Box::new(error))
    }
}

/// Fetches what layers of a store lack.
#[derive(Debug)]
pub struct Fetcher {
    store: Store,
    client: RegistryClient,
    layers: Mutex<HashMap<DiffId, Arc<FetchedLayer>>>,
    /// Set when somebody says that there may be new layers.
    awake: AtomicBool,
    /// Set when it is too late to ask.
    ending: AtomicBool,
    /// Requests in work.
    asked: AtomicU64,
    /// When something was last received or asked for.
    alive: Mutex<Instant>,
    /// Held while a layer is opened.
    opening: Mutex<()>,
    /// Layers that could not be opened and were told of.
    unusable: Mutex<HashSet<DiffId>>,
    /// Counts what was taken in the background.
    turn: AtomicUsize,
    /// How long it stays when there is nothing to do.
    linger: Duration,
}

impl Fetcher {
    /// Prepares to fetch.
    pub fn new(store: Store, client: RegistryClient) -> Fetcher {
        Fetcher {
            store,
            client,
            layers: Mutex::default(),
            awake: AtomicBool::new(true),
            ending: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            alive: Mutex::new(Instant::now()),
            opening: Mutex::default(),
            unusable: Mutex::default(),
            turn: AtomicUsize::new(0),
            linger: LINGER,
        }
    }

    /// Sets how long it stays when there is nothing to do.
    #[must_use]
    pub fn with_linger(self, linger: Duration) -> Fetcher {
        Fetcher { linger, ..self }
    }

    /// Fetches until every layer of the store is whole. Returns at once if another process does it.
    pub fn run(self) -> Result<(), FetchError> {
        let folder = self.store.layout.root().join(FETCHER);
        make_folder(&folder)?;
        let lock_path = folder.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = loop {
            let file = options.open(&lock_path).on_disk("open", &lock_path)?;
            if let Some(lock) = Lock::attempt(file, Sharing::Exclusive, &lock_path)? {
                break lock;
            }
            // The other one may have looked for layers before there was one; if it is about to end, this is the next.
            if wake(self.store.layout.root()) {
                return Ok(());
            }
            thread::sleep(YIELD);
        };
        let listener = listen(&folder).map_err(FetchError::Socket)?;
        let fetcher = Arc::new(self);
        let serving = Arc::clone(&fetcher);
        thread::Builder::new()
            .name("ask".to_owned())
            .spawn(move || serving.accept(&listener))
            .map_err(FetchError::Socket)?;
        for _ in 0..PREFETCHERS {
            let working = Arc::clone(&fetcher);
            thread::Builder::new()
                .name("prefetch".to_owned())
                .spawn(move || working.prefetch())
                .map_err(FetchError::Socket)?;
        }
        let result = fetcher.watch();
        fetcher.ending.store(true, Ordering::Release);
        // So that nobody waits for readers any more.
        wake(fetcher.store.layout.root());
        // A name that nobody listens to; whoever connects too late starts the next.
        let _ = fs::remove_file(folder.join(SOCKET));
        drop(lock);
        result
    }

    /// Looks for layers and completes them, until there is nothing left to do.
    fn watch(&self) -> Result<(), FetchError> {
        let mut idle_since = Instant::now();
        loop {
            let woken = self.awake.swap(false, Ordering::AcqRel);
            self.look_for_layers()?;
            self.complete_layers();
            let done = self.layers().values().all(|layer| layer.is_settled());
            if !done || woken || self.asked.load(Ordering::Acquire) > 0 {
                idle_since = Instant::now();
            }
            let alive = *self.alive.lock().unwrap_or_else(PoisonError::into_inner);
            if idle_since.elapsed() > self.linger || alive.elapsed() > GIVEN_UP {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    }

    fn layers(&self) -> std::sync::MutexGuard<'_, HashMap<DiffId, Arc<FetchedLayer>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds layers that are not whole and not known yet.
    fn look_for_layers(&self) -> Result<(), FetchError> {
        for name in names_in(&self.store.layout.layers())? {
            let Ok(diff_id) = Digest::from_hex(&name).map(DiffId) else { continue };
            if self.known(diff_id).is_none() {
                // One that cannot be opened must not keep the others from coming. Its readers are told.
                if let Err(error) = self.open_layer(diff_id)
                    && self.unusable.lock().unwrap_or_else(PoisonError::into_inner).insert(diff_id)
                {
                    self.log(diff_id, &with_causes(&error));
                }
            }
        }
        // Nobody uses what was removed from the store.
        self.layers().retain(|_, layer| !layer.is_over() && layer.is_in_store());
        Ok(())
    }

    /// Returns a layer that is known, unless it was removed from the store: then another one may have its place.
    fn known(&self, diff_id: DiffId) -> Option<Arc<FetchedLayer>> {
        self.layers().get(&diff_id).filter(|layer| layer.is_in_store()).cloned()
    }

    fn open_layer(&self, diff_id: DiffId) -> Result<Option<Arc<FetchedLayer>>, DiskError> {
        // Two at once would take back chunks that the other one has just fetched.
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = self.known(diff_id) {
            return Ok(Some(layer));
        }
        let path = self.store.layout.layer(diff_id).join(LAZY);
        let Some(folder) = LazyFolder::open(&path, FolderAccess::Write)? else { return Ok(None) };
        let layer = Arc::new(FetchedLayer::new(diff_id, folder)?);
        self.layers().insert(diff_id, Arc::clone(&layer));
        Ok(Some(layer))
    }

    /// Makes ordinary layers of those that are all here.
    fn complete_layers(&self) {
        let ready: Vec<Arc<FetchedLayer>> = self.layers().values().filter(|layer| layer.is_ready()).cloned().collect();
        for layer in ready {
            match layer.complete(&self.store) {
                Ok(()) => {}
                Err(error) => {
                    layer.put_off();
                    self.note(&layer, &error);
                }
            }
        }
    }

    /// Fetches in the background.
    fn prefetch(&self) {
        while !self.ending.load(Ordering::Acquire) {
            let next = self.take_next();
            // Readers come first: they wait, and the link is one.
            if self.asked.load(Ordering::Acquire) > 0 {
                thread::sleep(YIELD);
            }
            let Some((layer, chunks)) = next else {
                thread::sleep(LOOK);
                continue;
            };
            match layer.fetch(&self.client, chunks) {
                Ok(()) => self.note_life(),
                Err(error) => {
                    layer.put_off();
                    self.note(&layer, &error);
                }
            }
        }
    }

    /// Takes the next chunks of one layer, each time of another one: none waits for the others, nor for one that fails.
    fn take_next(&self) -> Option<(Arc<FetchedLayer>, Range<usize>)> {
        let layers = self.layers();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % layers.len().max(1);
        layers.values().cycle().skip(turn).take(layers.len()).find_map(|layer| {
            let chunks = layer.take_next(PREFETCHED)?;
            Some((Arc::clone(layer), chunks))
        })
    }

    fn note_life(&self) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for connection in listener.incoming().flatten().take_while(|_| !self.ending.load(Ordering::Acquire)) {
            let fetcher = Arc::clone(self);
            // Refused for want of a thread: the connection is closed, and the reader tries again.
            let _ = thread::Builder::new().name("answer".to_owned()).spawn(move || fetcher.answer(connection));
        }
    }

    /// Answers the requests of one reader.
    fn answer(&self, mut connection: UnixStream) {
        let mut request = [0; REQUEST];
        while connection.read_exact(&mut request).is_ok() {
            self.asked.fetch_add(1, Ordering::AcqRel);
            let errno = self.serve(&request);
            self.asked.fetch_sub(1, Ordering::AcqRel);
            if connection.write_all(&errno.to_le_bytes()).is_err() {
                return;
            }
        }
    }

    fn serve(&self, request: &[u8; REQUEST]) -> i32 {
        let failed = rustix::io::Errno::IO.raw_os_error();
        let number = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().expect("eight bytes"));
        let (offset, length) = (number(32), number(40));
        self.note_life();
        if self.ending.load(Ordering::Acquire) {
            return ENDING;
        }
        if offset == u64::MAX {
            self.awake.store(true, Ordering::Release);
            return 0;
        }
        let diff_id = DiffId(Digest::from_bytes(request[..32].try_into().expect("32 bytes")));
        let layer = match self.known(diff_id).map_or_else(|| self.open_layer(diff_id), |layer| Ok(Some(layer))) {
            Ok(Some(layer)) => layer,
            // It became an ordinary layer just now, and the reader has all of it.
            Ok(None) if self.store.layout.layer(diff_id).join(TAR).exists() => return 0,
            Ok(None) | Err(_) => return failed,
        };
        match layer.demand(&self.client, offset, length) {
            Ok(()) => {
                self.note_life();
                0
            }
            Err(error) => {
                self.note(&layer, &error);
                failed
            }
        }
    }

    /// Tells people what failed: beside the layer, where `inspect` finds it, in the log, and as an event.
    fn note(&self, layer: &FetchedLayer, error: &FetchError) {
        let text = with_causes(error);
        self.log(layer.diff_id, &text);
        if layer.note_failure(&format!("{} {text}", Timestamp::now())) {
            self.note_event(layer.diff_id, &text);
        }
    }

    /// Tells, once until all is well again, that images cannot be read whole.
    fn note_event(&self, layer: DiffId, text: &str) {
        let Ok(catalog) = self.store.catalog() else { return };
        for (image, _) in catalog.images.iter().filter(|(_, record)| record.layers.contains(&layer)) {
            let name = catalog.names_of(*image).next().map_or_else(|| image.to_string(), ImageRef::familiar);
            let mut attributes = self.store.labels_of(*image);
            attributes.extend([("layer".to_owned(), layer.to_string()), ("error".to_owned(), text.to_owned())]);
            self.store.note("fetch_failed", &image.to_string(), &name, attributes);
        }
    }

    fn log(&self, layer: DiffId, text: &str) {
        let path = self.store.layout.root().join(FETCHER).join(LOG);
        let mut options = OpenOptions::new();
        let is_full = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_LOG);
        let log = options.create(true).append(!is_full).write(true).truncate(is_full).mode(0o600).open(&path);
        // Without a log there is still what lies beside the layer.
        if let Ok(mut log) = log {
            let _ = writeln!(log, "{} layer {layer}: {text}", Timestamp::now());
        }
    }
}

/// Makes the socket anew. The path of the store may be longer than the address of a socket can be.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(folder.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let opened = File::open(folder)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd()))
}

const LOCK: &str = "lock";
const LOG: &str = "log";
const MAX_LOG: u64 = 256 << 10;
/// Threads that fetch in the background.
const PREFETCHERS: usize = 3;
/// How many bytes of a blob are asked for at once in the background.
const PREFETCHED: u64 = 4 << 20;
/// How often new layers are looked for.
const LOOK: Duration = Duration::from_millis(200);
const YIELD: Duration = Duration::from_millis(20);
/// How long it stays when there is nothing to do.
const LINGER: Duration = Duration::from_secs(3);
/// How long it tries when nothing comes and nobody asks.
const GIVEN_UP: Duration = Duration::from_secs(15 * 60);
