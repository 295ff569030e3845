//! Layers that are used before they are whole: the process that fetches them, and what mounts read meanwhile.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use strata_imagestore::{FetchError, Fetcher, ImageId, LazyLayer, LazyProgress, RegistryClient, StackError};
use strata_unionfs::{Absent, LayerSource};

use crate::engine::Engine;

/// The hidden verb of the executable that becomes the process that fetches.
const VERB: &str = "fetch";
const STAY: &str = "--stay";

/// Why an image did not become whole.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// The process that fetches could not be started.
    #[error("start the process that fetches")]
    Start(#[source] io::Error),
    /// The store cannot be read.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] strata_imagestore::ImageError),
    /// Nothing has come for long.
    #[error("{here} of {size} bytes of the image are here, and no more came: {failure}")]
    Stalled {
        /// Bytes that are here.
        here: u64,
        /// Bytes of the layers that are not whole.
        size: u64,
        /// What failed last.
        failure: String,
    },
}

/// Starts the process that fetches, in a session of its own and as nobody's child.
pub fn start_fetching(root: &Path) -> io::Result<()> {
    // Fails only for a process that leads its group already, which then has no terminal to lose.
    let _ = rustix::process::setsid();
    command(root).arg(STAY).spawn().map(drop)
}

/// Runs the process that fetches for the store below `root`, until all its layers are whole.
pub fn fetch(root: &Path, client: RegistryClient) -> Result<(), FetchProcessError> {
    let _ = rustix::thread::set_name(c"strata-fetch");
    let store = strata_imagestore::Store::open(root)?;
    Ok(Fetcher::new(store, client).run()?)
}

/// Why the process that fetches ended early.
#[derive(Debug, thiserror::Error)]
pub enum FetchProcessError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] strata_imagestore::OpenError),
    /// Fetching failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Starts the process that fetches for the store below `root`. If there is one, the new one tells it to look for new layers
/// and ends.
pub(crate) fn start(root: &Path) -> io::Result<()> {
    // It only starts the one that stays, and ends: nobody has to wait for that one.
    let status = command(root).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
}

fn command(root: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("strata").arg("--root").arg(root).arg(VERB).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Lets mounts of this process read layers that are not whole.
pub(crate) fn provide_layers() {
    strata_unionfs::set_layer_sources(open);
}

/// Says where it is written how long a read of what is not here may wait. It is asked when such a layer is opened, in this
/// process and in those that it forks. The first call counts.
pub fn set_fetch_deadline(deadline: fn() -> Option<Duration>) {
    let _ = DEADLINE.set(deadline);
}

static DEADLINE: OnceLock<fn() -> Option<Duration>> = OnceLock::new();

fn open(absent: &Absent) -> io::Result<Option<Arc<dyn LayerSource>>> {
    let diff_id = absent.layer.parse().map_err(io::Error::other)?;
    let layer = LazyLayer::open(&absent.store, diff_id, start).map_err(io::Error::other)?;
    let Some(layer) = layer else { return Ok(None) };
    let layer = match DEADLINE.get().and_then(|deadline| deadline()) {
        Some(deadline) => layer.with_deadline(deadline),
        None => layer,
    };
    Ok(Some(Arc::new(Layer(layer))))
}

/// A layer of the store as the union takes it.
#[derive(Debug)]
struct Layer(LazyLayer);

impl LayerSource for Layer {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn is_here(&self, offset: u64, length: u64) -> bool {
        self.0.is_here(offset, length)
    }

    fn is_whole(&self) -> bool {
        self.0.is_whole()
    }
}

impl Engine {
    /// Starts to fetch what layers of the store lack, in a process of its own.
    pub fn start_fetcher(&self) -> io::Result<()> {
        start(self.root())
    }

    /// Waits until every layer of an image is whole, and has what is absent fetched.
    pub fn complete(&self, image: &ImageId, tell: &mut dyn FnMut(&LazyProgress)) -> Result<(), CompleteError> {
        let layers = self.images().image(image)?.layers;
        let (mut last, mut here) = (Instant::now(), 0);
        let mut started: Option<Instant> = None;
        while let Some(progress) = self.images().lazy_progress(&layers).map_err(StackError::from)? {
            if started.is_none_or(|started| started.elapsed() > RESTART) {
                self.start_fetcher().map_err(CompleteError::Start)?;
                started = Some(Instant::now());
            }
            tell(&progress);
            if progress.here != here {
                (last, here) = (Instant::now(), progress.here);
            }
            // What was refused does not come, however long one waits.
            if progress.refused || last.elapsed() > PATIENCE {
                let failure = progress.failure.unwrap_or_else(|| "the registry does not answer".to_owned());
                return Err(CompleteError::Stalled { here, size: progress.size, failure });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// What the process that fetches has to know of its surroundings: where logins and settings are, and the way out.
pub(crate) const ENVIRONMENT: [&str; 16] = [
    "HOME",
    "DOCKER_CONFIG",
    "XDG_CONFIG_HOME",
    "STRATA_CONFIG",
    "STRATA_CERTS",
    "STRATA_FETCH_DEADLINE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(60);
const RESTART: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);
