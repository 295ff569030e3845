//! Reading a layer that is not whole: what is here from the disk, what is not after asking the fetcher for it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use strata_layer::DiffId;

use super::folder::{FolderAccess, LazyFolder};
use super::map::Layout;
use super::{FILES_BASE, LAZY};
use crate::disk::DiskError;
use crate::layout::{FETCHER, TAR};

/// Starts the process that fetches for the store below a root, unless there is one.
pub type StartFetcher = fn(&Path) -> io::Result<()>;

/// The content of a layer that was not whole when it was opened.
#[derive(Debug)]
pub struct LazyLayer {
    root: PathBuf,
    diff_id: DiffId,
    folder: LazyFolder,
    /// The layer's tar once it is there.
    tar: PathBuf,
    whole: AtomicBool,
    /// What counts as here was compared since the machine was started.
    compared: AtomicBool,
    /// Connections to the fetcher that nobody uses right now.
    idle: Mutex<Vec<UnixStream>>,
    start: StartFetcher,
    deadline: Duration,
}

impl LazyLayer {
    /// Opens what there is of a layer of the store below `root`; `None` if the layer is whole.
    pub fn open(root: &Path, diff_id: DiffId, start: StartFetcher) -> Result<Option<LazyLayer>, DiskError> {
        let layer = crate::layout::Layout::new(root.to_owned()).layer(diff_id);
        let Some(folder) = LazyFolder::open(&layer.join(LAZY), FolderAccess::Read)? else { return Ok(None) };
        Ok(Some(LazyLayer {
            root: root.to_owned(),
            diff_id,
            folder,
            tar: layer.join(TAR),
            whole: AtomicBool::new(false),
            compared: AtomicBool::new(false),
            idle: Mutex::default(),
            start,
            deadline: DEADLINE,
        }))
    }

    /// Sets how long readers wait.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> LazyLayer {
        LazyLayer { deadline, ..self }
    }

    /// Returns whether the layer has become an ordinary one: its tar is verified, and what was opened is that tar.
    pub fn is_whole(&self) -> bool {
        if self.whole.load(Ordering::Relaxed) {
            return true;
        }
        // The content becomes the tar by its name alone. Of files without their tar, it stays what it is.
        let same = |tar: std::fs::Metadata| {
            let opened = self.folder.content.metadata();
            opened.is_ok_and(|opened| (opened.dev(), opened.ino()) == (tar.dev(), tar.ino()))
        };
        let whole = self.folder.map.layout == Layout::Tar && self.tar.metadata().is_ok_and(same);
        if whole {
            self.whole.store(true, Ordering::Relaxed);
        }
        whole
    }

    /// Returns whether reading these bytes needs nothing to be fetched.
    pub fn is_here(&self, offset: u64, length: u64) -> bool {
        self.whole.load(Ordering::Relaxed)
            || self.place(offset).is_ok_and(|place| self.has(place, length))
            || self.is_whole()
    }

    /// Returns whether these bytes of the content are here and verified.
    fn has(&self, place: u64, length: u64) -> bool {
        self.is_compared() && self.folder.has(self.folder.map.covering(place, length)).unwrap_or(false)
    }

    /// Returns whether what counts as here can be believed. After a power cut only the fetcher knows what of it has reached
    /// the disk: it compares everything before it answers.
    fn is_compared(&self) -> bool {
        let compared =
            self.compared.load(Ordering::Relaxed) || self.folder.is_of_another_boot().is_ok_and(|another| !another);
        self.compared.store(compared, Ordering::Relaxed);
        compared
    }

    /// Fills a buffer from an address of the layer's index on. Waits for what is not here, up to the deadline; then, and
    /// when it cannot be had, the error is EIO.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let place = self.place(offset)?;
        if !self.is_here(offset, buffer.len() as u64) {
            self.fetch(place, buffer.len() as u64)?;
        }
        self.folder.content.read_exact_at(buffer, place)
    }

    /// Translates an address of the index into a place in the content.
    fn place(&self, offset: u64) -> io::Result<u64> {
        let base = match self.folder.map.layout {
            Layout::Tar => 0,
            Layout::Files => FILES_BASE,
        };
        // The index is of the tar, and this is not, or the other way round.
        offset.checked_sub(base).filter(|place| *place <= self.folder.map.size).ok_or_else(failed)
    }

    /// Has bytes fetched.
    fn fetch(&self, place: u64, length: u64) -> io::Result<()> {
        let end = Instant::now() + self.deadline;
        let mut request = [0; REQUEST];
        request[..32].copy_from_slice(self.diff_id.0.as_bytes());
        request[32..40].copy_from_slice(&place.to_le_bytes());
        request[40..].copy_from_slice(&length.to_le_bytes());
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let is_kept = kept.is_some();
            let asked = match kept {
                Some(connection) => ask(connection, &request, end),
                None => connect(&self.root).and_then(|connection| ask(connection, &request, end)),
            };
            match asked {
                Ok((connection, 0)) => {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                    if self.has(place, length) || self.is_whole() {
                        return Ok(());
                    }
                    // The answer was about another object: what this one lacks nobody fetches any more once it was
                    // removed from the store, and the fetcher looks again otherwise.
                    if !self.folder.is_in_place() || Instant::now() >= end {
                        return Err(failed());
                    }
                    std::thread::sleep(RETRY);
                }
                Ok((_, errno)) if errno == ENDING => std::thread::sleep(RETRY),
                Ok((_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(failed());
                }
                // It was from a fetcher that has ended meanwhile.
                Err(_) if is_kept => {}
                Err(_) if Instant::now() >= end => return Err(failed()),
                Err(_) => {
                    // Somebody else may be starting it, or the last one be ending.
                    let _ = (self.start)(&self.root);
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}

fn ask(mut connection: UnixStream, request: &[u8], end: Instant) -> io::Result<(UnixStream, i32)> {
    let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    connection.set_read_timeout(Some(left))?;
    connection.set_write_timeout(Some(left))?;
    connection.write_all(request)?;
    let mut answer = [0; 4];
    connection.read_exact(&mut answer)?;
    Ok((connection, i32::from_le_bytes(answer)))
}

/// Connects to the fetcher of a store.
fn connect(root: &Path) -> io::Result<UnixStream> {
    let folder = File::open(root.join(FETCHER))?;
    // The path of the store may be longer than the address of a socket.
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// Tells the fetcher of a store, if one runs, that there may be new layers; returns whether one runs.
pub(crate) fn wake(root: &Path) -> bool {
    let mut request = [0; REQUEST];
    request[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    let asked = connect(root).and_then(|connection| ask(connection, &request, Instant::now() + WAKE));
    asked.is_ok_and(|(_, answer)| answer == 0)
}

fn failed() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

/// The name of the socket in the fetcher's folder.
pub(crate) const SOCKET: &str = "socket";
/// The answer of a fetcher that is about to end: the next one is to be asked.
pub(crate) const ENDING: i32 = rustix::io::Errno::AGAIN.raw_os_error();
/// A request: a diff_id, an offset in the content and a length. The answer is an errno, 0 for none, in four bytes.
pub(crate) const REQUEST: usize = 48;
/// How long a read waits for what is not here, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(50);
const WAKE: Duration = Duration::from_secs(2);
