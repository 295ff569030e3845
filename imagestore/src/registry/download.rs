//! Downloading blobs: several at once, large ones in several parts at once, continued where a cut or a kill ended it.
//!
//! A blob lies in a folder of its own while it comes, `downloads/<hex>/<number of the part>`. Parts are only ever appended
//! to, so the length of the file says how far it is, whoever wrote it. Whoever downloads holds a lock on the folder.
//! Nothing in it counts as anything until the whole has been read and has the right digest, which happens while it
//! comes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strata_layer::Digest;

use super::client::{Endpoint, Remote};
use super::error::RegistryError;
use super::http::Response;
use super::url::Url;
use crate::disk::{DiskError, Lock, OnDisk, Sharing, make_folder, names_in, open_if_present};
use crate::layout::Layout;
use crate::progress::{Event, Progress};
use crate::store::StoreError;
use crate::usage::disk_space;

/// A blob that is being downloaded.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) digest: Digest,
    pub(super) size: u64,
    folder: PathBuf,
    parts: Vec<Part>,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether something was there from an earlier time, which may be damaged.
    pub(super) resumed: bool,
    _lock: Lock,
}

/// A piece of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    length: u64,
}

#[derive(Debug)]
struct State {
    /// How much of each part is there.
    done: Vec<u64>,
    /// Which parts somebody works on.
    taken: Vec<bool>,
    /// The server sends only whole blobs, and whoever has this part reads one.
    whole_by: Option<usize>,
    /// Nothing more will come.
    failed: bool,
}

impl Download {
    /// Takes over what there is of a blob. Waits while another process downloads it.
    pub(super) fn open(layout: &Layout, digest: Digest, size: u64) -> Result<Download, DiskError> {
        make_folder(&layout.downloads())?;
        let folder = layout.downloads().join(digest.hex());
        let lock = lock_folder(&folder)?;
        let parts = split(size);
        let mut done = Vec::with_capacity(parts.len());
        for (number, part) in parts.iter().enumerate() {
            let path = folder.join(number.to_string());
            let length = open_if_present(&path)?.map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()));
            let length = length.on_disk("examine", &path)?;
            if length > part.length {
                fs::remove_file(&path).on_disk("remove", &path)?;
            }
            done.push(if length > part.length { 0 } else { length });
        }
        let resumed = done.iter().any(|done| *done > 0);
        let taken = vec![false; parts.len()];
        let state = Mutex::new(State { done, taken, whole_by: None, failed: false });
        Ok(Download { digest, size, folder, parts, state, changed: Condvar::new(), resumed, _lock: lock })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many bytes are there.
    pub(super) fn received(&self) -> u64 {
        self.lock().done.iter().sum()
    }

    /// Takes the next part that nobody works on.
    fn take_part(&self) -> Option<usize> {
        let mut state = self.lock();
        if state.failed || state.whole_by.is_some() {
            return None;
        }
        let next = (0..self.parts.len()).find(|n| !state.taken[*n] && state.done[*n] < self.parts[*n].length)?;
        state.taken[next] = true;
        Some(next)
    }

    fn give_back(&self, part: usize) {
        self.lock().taken[part] = false;
        self.changed.notify_all();
    }

    /// Ends everybody's waiting for more.
    pub(super) fn fail(&self) {
        self.lock().failed = true;
        self.changed.notify_all();
    }

    /// Removes what was downloaded.
    pub(super) fn discard(&self) {
        // What cannot be removed now is removed by a collection.
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// Writes the whole blob into one file, which takes its place.
    pub(super) fn keep_as(&self, path: &Path) -> Result<(), DiskError> {
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).on_disk("create", path)?;
        for number in 0..self.parts.len() {
            let part = self.folder.join(number.to_string());
            let mut file = File::open(&part).on_disk("open", &part)?;
            io::copy(&mut file, &mut out).on_disk("write", path)?;
        }
        Ok(())
    }

    /// Returns a reader of the blob that waits for what has not come yet.
    pub(super) fn reader(self: &Arc<Download>) -> DownloadReader {
        DownloadReader { download: Arc::clone(self), part: 0, position: 0, file: None }
    }

    fn append(&self, part: usize, file: &mut File, bytes: &[u8]) -> Result<(), DiskError> {
        file.write_all(bytes).on_disk("write", &self.folder)?;
        self.lock().done[part] += bytes.len() as u64;
        self.changed.notify_all();
        Ok(())
    }

    fn open_part(&self, part: usize) -> Result<File, DiskError> {
        let path = self.folder.join(part.to_string());
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path).on_disk("open", &path)
    }
}

/// Reads a blob while it is downloaded.
#[derive(Debug)]
pub(super) struct DownloadReader {
    download: Arc<Download>,
    part: usize,
    position: u64,
    file: Option<File>,
}

impl Read for DownloadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(part) = self.download.parts.get(self.part) else { return Ok(0) };
            if self.position == part.length {
                (self.part, self.position, self.file) = (self.part + 1, 0, None);
                continue;
            }
            let done = {
                let mut state = self.download.lock();
                while state.done[self.part] <= self.position && !state.failed {
                    state = self.download.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.done[self.part]
            };
            if done <= self.position {
                return Err(io::Error::other("the download has failed"));
            }
            if self.file.is_none() {
                self.file = Some(File::open(self.download.folder.join(self.part.to_string()))?);
            }
            let Some(file) = &self.file else { continue };
            let wanted = buffer.len().min(usize::try_from(done - self.position).unwrap_or(usize::MAX));
            let count = file.read_at(&mut buffer[..wanted], self.position)?;
            if count == 0 && wanted > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.position += count as u64;
            return Ok(count);
        }
    }
}

/// Everything that one operation downloads.
pub(super) struct Downloader<'a> {
    pub(super) remotes: Vec<Remote<'a>>,
    pub(super) path: &'a str,
    pub(super) progress: &'a dyn Progress,
}

impl Downloader<'_> {
    /// Downloads until nothing is left to do; to be run by several threads at once.
    pub(super) fn run(&self, downloads: &[Arc<Download>]) -> Result<(), RegistryError> {
        while let Some((download, part)) = downloads.iter().find_map(|download| Some((download, download.take_part()?)))
        {
            let result = self.fetch_part(download, part);
            download.give_back(part);
            result?;
        }
        Ok(())
    }

    fn fetch_part(&self, download: &Download, part: usize) -> Result<(), RegistryError> {
        let name = download.digest.to_string();
        let mut failures = 0;
        let mut remotes = self.remotes.iter();
        let Some(mut remote) = remotes.next() else { return Ok(()) };
        loop {
            let before = download.received();
            let error = match self.attempt(remote, download, part) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A cut after some progress is not held against the server, up to a limit; slowness is.
            let progressed = download.received() > before;
            let slow = matches!(error, RegistryError::Stalled { .. } | RegistryError::TooSlow { .. });
            failures = if progressed && !slow { 1 } else { failures + 1 };
            let patience = match remote.endpoint.is_mirror {
                true => 1,
                false => remote.client.settings().timeouts.retries,
            };
            if (!error.is_transient() || failures > patience) && error.is_of_this_server() {
                // What was received from one place is as good as from the next.
                if let Some(next) = remotes.find(|next| next.endpoint.may_help(&error)) {
                    (remote, failures) = (next, 0);
                    continue;
                }
            }
            remote.client.pause(self.progress, &name, failures, error)?;
        }
    }

    fn attempt(&self, remote: &Remote<'_>, download: &Download, part: usize) -> Result<(), RegistryError> {
        let Part { start, length } = download.parts[part];
        let url = Url::new(remote.endpoint.origin.clone(), format!("/v2/{}/blobs/{}", self.path, download.digest));
        let (done, is_whole_ours) = {
            let state = download.lock();
            (state.done[part], state.whole_by == Some(part))
        };
        // Nobody else will fetch the other parts, whether or not ours is there.
        if is_whole_ours {
            return self.fetch_whole(remote, &url, None, download, part);
        }
        if done == length {
            return Ok(());
        }
        let whole = download.parts.len() == 1 && done == 0;
        let (from, last) = (start + done, start + length - 1);
        let mut headers = Vec::new();
        if !whole {
            headers.push(("Range", format!("bytes={from}-{last}")));
        }
        let response = match remote.call(&url, "GET", &headers, None) {
            Err(RegistryError::Status { status: 416, .. }) if !whole => {
                return self.fetch_whole(remote, &url, None, download, part);
            }
            result => result?,
        };
        match response.status {
            206 => {
                let got = response.header("content-range").unwrap_or("").to_owned();
                if !range_fits(&got, from, last, download.size) {
                    let wanted = format!("{from}-{last}");
                    return Err(RegistryError::Range { url: url.shown(), wanted, got });
                }
                self.store_part(response, download, part, last + 1 - from)
            }
            _ if whole => self.store_part(response, download, part, length),
            // The range was ignored.
            _ => self.fetch_whole(remote, &url, Some(response), download, part),
        }
    }

    /// Appends a body of known length to a part.
    fn store_part(
        &self,
        mut response: Response,
        download: &Download,
        part: usize,
        wanted: u64,
    ) -> Result<(), RegistryError> {
        let url = response.url.shown();
        if let Some(received) = response.body.length().filter(|length| *length != wanted) {
            return Err(RegistryError::Length { url, expected: wanted, received });
        }
        let mut file = download.open_part(part).map_err(StoreError::from)?;
        let mut buffer = vec![0; BUFFER];
        let mut left = wanted;
        loop {
            let count = response.body.read(&mut buffer)?;
            if count == 0 && left > 0 {
                return Err(RegistryError::Length { url, expected: wanted, received: wanted - left });
            }
            if count == 0 {
                return Ok(());
            }
            let fitting = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            download.append(part, &mut file, &buffer[..fitting]).map_err(StoreError::from)?;
            left -= fitting as u64;
            if fitting < count {
                return Err(RegistryError::Length { url, expected: wanted, received: wanted + 1 });
            }
            self.report(download);
        }
    }

    /// Reads a blob from its beginning, as the server knows no ranges, and keeps what is not there yet.
    fn fetch_whole(
        &self,
        remote: &Remote<'_>,
        url: &Url,
        response: Option<Response>,
        download: &Download,
        own_part: usize,
    ) -> Result<(), RegistryError> {
        if *download.lock().whole_by.get_or_insert(own_part) != own_part {
            // Somebody does it already.
            return Ok(());
        }
        let mut response = match response {
            Some(response) => response,
            None => remote.call(url, "GET", &[], None)?,
        };
        if let Some(received) = response.body.length().filter(|length| *length != download.size) {
            return Err(RegistryError::Length { url: url.shown(), expected: download.size, received });
        }
        let mut buffer = vec![0; BUFFER];
        for (number, part) in download.parts.iter().enumerate() {
            if number != own_part {
                let mut state = download.lock();
                while state.taken[number] && !state.failed {
                    let waited = download.changed.wait_timeout(state, Duration::from_millis(50));
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            let mut file = download.open_part(number).map_err(StoreError::from)?;
            let mut position = 0;
            while position < part.length {
                let wanted = BUFFER.min(usize::try_from(part.length - position).unwrap_or(BUFFER));
                let count = response.body.read(&mut buffer[..wanted])?;
                if count == 0 {
                    let received = part.start + position;
                    return Err(RegistryError::Length { url: url.shown(), expected: download.size, received });
                }
                let done = download.lock().done[number];
                let known = usize::try_from(done.saturating_sub(position)).unwrap_or(usize::MAX).min(count);
                position += count as u64;
                download.append(number, &mut file, &buffer[known..count]).map_err(StoreError::from)?;
                self.report(download);
            }
        }
        Ok(())
    }

    fn report(&self, download: &Download) {
        let name = download.digest.to_string();
        self.progress.report(Event::Advanced { layer: &name, bytes: download.received() });
    }
}

/// Checks `bytes FIRST-LAST/TOTAL`.
pub(super) fn range_fits(text: &str, first: u64, last: u64, size: u64) -> bool {
    let parse = || {
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = range.split_once('-')?;
        let total_fits = total == "*" || total.parse::<u64>() == Ok(size);
        Some(start.parse() == Ok(first) && end.parse() == Ok(last) && total_fits)
    };
    parse() == Some(true)
}

fn split(size: u64) -> Vec<Part> {
    if size <= 2 * PART {
        return vec![Part { start: 0, length: size }];
    }
    (0..size.div_ceil(PART)).map(|n| Part { start: n * PART, length: PART.min(size - n * PART) }).collect()
}

/// Makes and locks a folder, which its former holder may be removing.
fn lock_folder(folder: &Path) -> Result<Lock, DiskError> {
    loop {
        make_folder(folder)?;
        let Some(file) = open_if_present(folder)? else { continue };
        let lock = Lock::wait(file, Sharing::Exclusive, folder)?;
        let locked = lock.as_file().metadata().on_disk("examine", folder)?;
        match fs::metadata(folder) {
            Ok(present) if present.ino() == locked.ino() && present.dev() == locked.dev() => return Ok(lock),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).on_disk("examine", folder),
        }
    }
}

/// Removes downloads that nobody will continue: unlocked, and untouched for some time or of what the store has by now.
/// Returns how many bytes they took.
pub(crate) fn remove_abandoned(
    layout: &Layout,
    age: Duration,
    is_stored: impl Fn(Digest) -> bool,
) -> Result<u64, DiskError> {
    let mut bytes = 0;
    if open_if_present(&layout.downloads())?.is_none() {
        return Ok(bytes);
    }
    for name in names_in(&layout.downloads())? {
        let folder = layout.downloads().join(&name);
        let Some(file) = open_if_present(&folder)? else { continue };
        let modified = file.metadata().and_then(|metadata| metadata.modified()).on_disk("examine", &folder)?;
        if modified.elapsed().unwrap_or_default() < age && !Digest::from_hex(&name).is_ok_and(&is_stored) {
            continue;
        }
        if let Some(_lock) = Lock::attempt(file, Sharing::Exclusive, &folder)? {
            let space = disk_space(&folder)?;
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).on_disk("remove", &folder),
                _ => bytes += space,
            }
        }
    }
    Ok(bytes)
}

/// Makes the remotes that have a repository's blobs, from the endpoint that had its manifest on.
pub(super) fn remotes<'c>(remote: &Remote<'c>, endpoints: &[Endpoint]) -> Vec<Remote<'c>> {
    let position = endpoints.iter().position(|endpoint| *endpoint == remote.endpoint).unwrap_or(0);
    let further =
        endpoints[position + 1..].iter().map(|endpoint| Remote { endpoint: endpoint.clone(), ..remote.clone() });
    std::iter::once(remote.clone()).chain(further).collect()
}

/// Large enough that a request for each costs nothing, small enough that several fit into what is large.
const PART: u64 = 16 << 20;
const BUFFER: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_split_without_gaps() {
        for size in [0, 1, PART, 2 * PART, 2 * PART + 1, 3 * PART, 10 * PART + 7] {
            let parts = split(size);
            let mut end = 0;
            for part in &parts {
                assert_eq!(part.start, end);
                end += part.length;
            }
            assert_eq!(end, size);
        }
    }

    #[test]
    fn only_the_range_that_was_asked_for_fits() {
        assert!(range_fits("bytes 5-9/20", 5, 9, 20));
        assert!(range_fits("bytes 5-9/*", 5, 9, 20));
        for text in ["", "5-9/20", "bytes 4-9/20", "bytes 5-8/20", "bytes 5-9/21", "bytes 5-9", "bytes */20"] {
            assert!(!range_fits(text, 5, 9, 20), "{text}");
        }
    }

    #[test]
    fn what_is_there_is_taken_over_and_given_up_later() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().to_owned());
        let digest = Digest::of(b"x");
        let download = Download::open(&layout, digest, 10).unwrap();
        assert!(!download.resumed);
        let mut file = download.open_part(0).unwrap();
        download.append(0, &mut file, b"abcd").unwrap();
        remove_abandoned(&layout, Duration::ZERO, |_| false).unwrap();
        drop((download, file));
        let download = Arc::new(Download::open(&layout, digest, 10).unwrap());
        assert!(download.resumed);
        assert_eq!((download.received(), download.take_part()), (4, Some(0)));
        let mut start = [0; 4];
        download.reader().read_exact(&mut start).unwrap();
        assert_eq!(&start, b"abcd");
        drop(download);
        remove_abandoned(&layout, Duration::from_secs(60), |_| false).unwrap();
        assert!(layout.downloads().join(digest.hex()).exists());
        // What is in the store needs no download.
        remove_abandoned(&layout, Duration::from_secs(60), |blob| blob == digest).unwrap();
        assert!(!layout.downloads().join(digest.hex()).exists());
    }
}
