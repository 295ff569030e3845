//! One layer that is fetched: what is here of it, what is on its way, and its becoming whole.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use strata_layer::index::{NewIndex, TableError};
use strata_layer::ingest::{LayerError, LayerIngest};
use strata_layer::tar::Limits;
use strata_layer::{DiffId, Digest};

use super::FetchError;
use crate::catalog::CatalogGuard;
use crate::disk::{
    DiskError, Lock, OnDisk, Sharing, create_new, exists, names_in, open_if_present, read_if_present, sync_folder,
};
use crate::ingest::IngestError;
use crate::layout::{BLOB, CHAIN_LAYERS, INDEX, TAR};
use crate::lazy::LAZY;
use crate::lazy::folder::{LazyFolder, MAP};
use crate::lazy::map::{Chunk, Layout};
use crate::registry::{BlobPlace, RegistryClient, RegistryError};
use crate::scratch::{failed_in, scratch_in, write_index};
use crate::stack::open_index;
use crate::store::{Store, StoreError};
use crate::work::{WorkDir, pinned_layers};

/// A layer on its way.
#[derive(Debug)]
pub(super) struct FetchedLayer {
    pub(super) diff_id: DiffId,
    folder: LazyFolder,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    chunks: Vec<ChunkState>,
    /// Where the background goes on.
    next: usize,
    phase: Phase,
    /// Absent chunks that could not be had when they were last asked for.
    failing: HashSet<usize>,
    /// A failure is noted, and was told.
    told: bool,
    /// When it was last tried to make it an ordinary layer.
    tried: Instant,
    /// Nothing is tried in the background before; readers that ask are served.
    not_before: Instant,
    /// How long that is put off the next time.
    pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Absent,
    Coming,
    Here,
}

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Some of it is absent.
    Fetching,
    /// All of it is here and is being verified.
    Completing,
    /// Its tar is there, but a mount still uses what stood in its place.
    InUse,
    /// It is an ordinary layer, or not in the store any more.
    Whole,
    /// It is not the layer that it should be.
    Refused,
}

impl FetchedLayer {
    pub(super) fn new(diff_id: DiffId, folder: LazyFolder) -> Result<FetchedLayer, DiskError> {
        let have = folder.have()?;
        let here = |have: &u8| if *have == 0 { ChunkState::Absent } else { ChunkState::Here };
        let mut chunks: Vec<ChunkState> = have.iter().map(here).collect();
        if folder.is_of_another_boot()? {
            // What was written before a power cut may not have reached the disk.
            for (number, chunk) in chunks.iter_mut().enumerate() {
                if *chunk == ChunkState::Here && !is_intact(&folder, number) {
                    folder.lose(number..number + 1)?;
                    *chunk = ChunkState::Absent;
                }
            }
            folder.note_boot()?;
        }
        if folder.map.layout == Layout::Files {
            // Tails prove nothing by themselves; those that are lost come again.
            let tails = folder.tails()?;
            for (number, chunk) in chunks.iter_mut().enumerate() {
                if *chunk == ChunkState::Here && !tails.contains_key(&number) {
                    folder.lose(number..number + 1)?;
                    *chunk = ChunkState::Absent;
                }
            }
        }
        let phase = if folder.is_refused()? { Phase::Refused } else { Phase::Fetching };
        let now = Instant::now();
        // Which those were that failed before is not noted: all that is absent may be.
        let told = folder.failure()?.is_some();
        let absent = |(number, chunk): (usize, &ChunkState)| (told && *chunk == ChunkState::Absent).then_some(number);
        let failing = chunks.iter().enumerate().filter_map(absent).collect();
        let state = State { chunks, next: 0, phase, failing, told, tried: now, not_before: now, pause: FIRST_PAUSE };
        Ok(FetchedLayer { diff_id, folder, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether nothing can be done about it now.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.lock().phase, Phase::Whole | Phase::Refused | Phase::InUse)
    }

    /// Returns whether it need not be known any more.
    pub(super) fn is_over(&self) -> bool {
        self.lock().phase == Phase::Whole
    }

    /// Returns whether it is still what the store has of this name.
    pub(super) fn is_in_store(&self) -> bool {
        self.folder.is_in_place()
    }

    /// Lets the background leave it alone for some time after a failure, longer each time.
    pub(super) fn put_off(&self) {
        let mut state = self.lock();
        state.not_before = Instant::now() + state.pause;
        state.pause = (state.pause * 2).min(LONGEST_REST);
    }

    /// Returns whether it can be completed, or that be tried again.
    pub(super) fn is_ready(&self) -> bool {
        let state = self.lock();
        let here = || state.chunks.iter().all(|chunk| *chunk == ChunkState::Here);
        match state.phase {
            _ if Instant::now() < state.not_before => false,
            Phase::Fetching => here(),
            Phase::InUse => state.tried.elapsed() > AGAIN,
            Phase::Completing | Phase::Whole | Phase::Refused => false,
        }
    }

    /// Notes what failed; returns whether all was well until now.
    pub(super) fn note_failure(&self, text: &str) -> bool {
        self.folder.note_failure(text);
        !std::mem::replace(&mut self.lock().told, true)
    }

    /// Takes the next absent chunks that lie together in the blob, about as many bytes as said.
    pub(super) fn take_next(&self, bytes: u64) -> Option<Range<usize>> {
        let mut state = self.lock();
        if state.phase != Phase::Fetching || Instant::now() < state.not_before {
            return None;
        }
        let count = state.chunks.len();
        let absent = |n: &usize| state.chunks[*n] == ChunkState::Absent;
        let first = (state.next..count).chain(0..state.next).find(absent)?;
        let taken = self.take_from(&mut state, first, count, bytes);
        state.next = taken.end;
        Some(taken)
    }

    /// Takes absent chunks from `first` on, up to `end` and as long as each begins where the one before it ends.
    fn take_from(&self, state: &mut State, first: usize, end: usize, bytes: u64) -> Range<usize> {
        let chunks = &self.folder.map.chunks;
        let mut last = first;
        while last < end && state.chunks[last] == ChunkState::Absent {
            let follows = |before: &Chunk| before.blob_offset + before.blob_length == chunks[last].blob_offset;
            // Headers may lie between them; a gap of a few kilobytes is cheaper than a request.
            let near = |before: &Chunk| {
                let end = before.blob_offset + before.blob_length;
                chunks[last].blob_offset.checked_sub(end).is_some_and(|gap| gap <= NEAR)
            };
            let joined = last == first || follows(&chunks[last - 1]) || near(&chunks[last - 1]);
            // Gaps count as well: they are fetched too.
            let end = chunks[last].blob_offset + chunks[last].blob_length;
            if !joined || (last > first && end - chunks[first].blob_offset > bytes) {
                break;
            }
            state.chunks[last] = ChunkState::Coming;
            last += 1;
        }
        first..last
    }

    /// Has bytes of the content fetched if they are not here, and waits for them.
    pub(super) fn demand(&self, client: &RegistryClient, offset: u64, length: u64) -> Result<(), FetchError> {
        let end = Instant::now() + PATIENCE;
        let wanted = self.folder.map.covering(offset, length);
        let mut pause = FIRST_PAUSE;
        loop {
            let next = {
                let mut state = self.lock();
                if state.phase == Phase::Refused {
                    return Err(FetchError::Refused { layer: self.diff_id });
                }
                let absent = |n: &usize| state.chunks[*n] == ChunkState::Absent;
                match wanted.clone().find(absent) {
                    // What follows is likely to be read next.
                    Some(first) => {
                        let end = self.folder.map.chunks.len();
                        Some(self.take_from(&mut state, first, end, READ_AHEAD))
                    }
                    None if wanted.clone().all(|n| state.chunks[n] == ChunkState::Here) => return Ok(()),
                    None => {
                        let left = end.saturating_duration_since(Instant::now());
                        drop(self.changed.wait_timeout(state, left.min(LOOK)));
                        None
                    }
                }
            };
            let result = next.map_or(Ok(()), |chunks| self.fetch(client, chunks));
            match result {
                Ok(()) if Instant::now() < end => {}
                Ok(()) => return Err(RegistryError::Deadline { layer: self.diff_id }.into()),
                Err(FetchError::Registry(error)) if error.is_worth_waiting() && Instant::now() + pause < end => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Fetches chunks that were taken, verifies and keeps them. What fails is absent again.
    pub(super) fn fetch(&self, client: &RegistryClient, chunks: Range<usize>) -> Result<(), FetchError> {
        let result = self.fetch_taken(client, chunks.clone());
        let mut state = self.lock();
        for number in chunks {
            if state.chunks[number] == ChunkState::Coming {
                state.chunks[number] = ChunkState::Absent;
                state.failing.insert(number);
            } else {
                state.failing.remove(&number);
            }
        }
        if result.is_ok() {
            (state.not_before, state.pause) = (Instant::now(), FIRST_PAUSE);
            if state.failing.is_empty() && std::mem::take(&mut state.told) {
                self.folder.note_failure("");
            }
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    fn fetch_taken(&self, client: &RegistryClient, chunks: Range<usize>) -> Result<(), FetchError> {
        let map = &self.folder.map;
        let (Some(first), Some(last)) = (map.chunks.get(chunks.start), map.chunks.get(chunks.end.wrapping_sub(1)))
        else {
            return Ok(());
        };
        let start = first.blob_offset;
        let length = last.blob_offset + last.blob_length - start;
        let source = self.folder.source()?.ok_or(RegistryError::NoSource { layer: self.diff_id })?;
        let place = BlobPlace {
            registry: &source.registry,
            repository: &source.repository,
            digest: map.blob,
            size: map.blob_size,
        };
        let bytes = client.blob_range(&place, start, length)?;
        for number in chunks {
            let chunk = map.chunks[number];
            let at = usize::try_from(chunk.blob_offset - start).unwrap_or(usize::MAX);
            let piece =
                usize::try_from(chunk.blob_length).ok().and_then(|length| bytes.get(at..at.checked_add(length)?));
            let piece =
                piece.ok_or(super::super::MapError::Map { blob: map.blob, reason: "chunks are not in order" })?;
            let (content, tail) = map.open_chunk(number, piece)?;
            self.folder.keep(number, &content, &tail)?;
            self.lock().chunks[number] = ChunkState::Here;
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Makes an ordinary layer of one that is all here.
    pub(super) fn complete(&self, store: &Store) -> Result<(), FetchError> {
        let phase = std::mem::replace(&mut self.lock().phase, Phase::Completing);
        let result = match (phase, self.folder.map.layout) {
            (Phase::InUse, _) => self.settle(store),
            (_, Layout::Tar) => self.complete_tar(store),
            (_, Layout::Files) => match self.complete_files(store) {
                Ok(Phase::InUse) => self.settle(store),
                result => result,
            },
        };
        let mut state = self.lock();
        match result {
            Ok(phase) => {
                state.phase = phase;
                Ok(())
            }
            Err(error) => {
                let refused =
                    matches!(error, FetchError::DiffId { .. } | FetchError::Index { .. } | FetchError::Layer { .. });
                // A tar that is there stays there: then only a mount or the disk was in the way.
                state.phase = match phase {
                    _ if refused => Phase::Refused,
                    Phase::InUse => Phase::InUse,
                    _ => Phase::Fetching,
                };
                if refused {
                    // For whoever fetches next, and for a pull, which takes the whole layer then.
                    self.folder.refuse()?;
                    // Readers that have it open ask again, and are refused.
                    self.folder.lose(0..self.folder.map.chunks.len())?;
                }
                Err(error)
            }
        }
    }

    /// The content is the tar, if it has its digest.
    fn complete_tar(&self, store: &Store) -> Result<Phase, FetchError> {
        let place = store.layout.layer(self.diff_id);
        let mut reader = FileReader { file: &self.folder.content, position: 0 };
        let work = WorkDir::create(&store.layout)?;
        let index = self.verify(&mut reader, &mut io::sink(), &work)?;
        let expected = index.checksum().map_err(|error| failed_in(work.path(), error))?;
        self.folder.content.sync_all().on_disk("sync", &self.folder.content_path())?;
        let is_right = open_index(&place.join(INDEX))?.is_some_and(|found| found.is_the_one_of(&expected));
        let _catalog = CatalogGuard::lock(&store.layout)?;
        if !self.folder.is_in_place() {
            // What has its place now was not verified here.
            return Ok(Phase::Whole);
        }
        self.note_blob(&place)?;
        if !is_right {
            // The table of contents has lied about names or attributes, which mounts have shown.
            return Err(FetchError::Index { layer: self.diff_id });
        }
        let tar = place.join(TAR);
        fs::rename(self.folder.content_path(), &tar).on_disk("rename", &tar)?;
        sync_folder(&place)?;
        self.remove_folder();
        Ok(Phase::Whole)
    }

    /// Puts the tar together of the files' data and of the tails, and beside the content.
    fn complete_files(&self, store: &Store) -> Result<Phase, FetchError> {
        let place = store.layout.layer(self.diff_id);
        let work = WorkDir::create(&store.layout)?;
        let aside = work.path().join(TAR);
        let mut out = create_new(&aside)?;
        let tails = self.folder.tails()?;
        let tails_file = self.folder.tails_file()?;
        let mut pieces = Pieces { folder: &self.folder, tails, tails_file, number: 0, left: None };
        let index = self.verify(&mut pieces, &mut out, &work)?;
        out.sync_all().on_disk("sync", &aside)?;
        let next = place.join(NEXT_INDEX);
        let aside_index = work.path().join(INDEX);
        write_index(index, &aside_index)?.sync_all().on_disk("sync", &aside_index)?;
        let _catalog = CatalogGuard::lock(&store.layout)?;
        if !self.folder.is_in_place() {
            return Ok(Phase::Whole);
        }
        fs::rename(&aside_index, &next).on_disk("rename", &next)?;
        self.note_blob(&place)?;
        let tar = place.join(TAR);
        fs::rename(&aside, &tar).on_disk("rename", &tar)?;
        sync_folder(&place)?;
        Ok(Phase::InUse)
    }

    /// Makes an ordinary layer of one whose tar is there, if no mount is in the way.
    fn settle(&self, store: &Store) -> Result<Phase, FetchError> {
        self.lock().tried = Instant::now();
        Ok(if settle(store, self.diff_id)? { Phase::Whole } else { Phase::InUse })
    }

    /// Reads the whole tar, passes it on, and checks that it is this layer; returns its index.
    fn verify(&self, reader: &mut dyn Read, out: &mut dyn Write, work: &WorkDir) -> Result<NewIndex, FetchError> {
        let layer = self.diff_id;
        let refused = |source: LayerError| match source {
            // The disk's fault and not the layer's.
            LayerError::Table(TableError::Scratch(error)) => FetchError::from(failed_in(work.path(), error)),
            source => FetchError::Layer { layer, source: Box::new(IngestError::from(source)) },
        };
        let mut ingest = LayerIngest::new(Limits::default()).with_scratch(scratch_in(work.path()));
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = reader.read(&mut buffer).on_disk("read", &self.folder.content_path())?;
            if count == 0 {
                break;
            }
            ingest.push(&buffer[..count]).map_err(refused)?;
            out.write_all(&buffer[..count]).on_disk("write", self.folder.path())?;
        }
        let (found, index) = ingest.finish_index().map_err(refused)?;
        if found.diff_id != layer {
            return Err(FetchError::DiffId { expected: layer, found: found.diff_id.0 });
        }
        Ok(index)
    }

    fn note_blob(&self, place: &Path) -> Result<(), DiskError> {
        let path = place.join(BLOB);
        fs::write(&path, format!("{}\n", self.folder.map.blob)).on_disk("write", &path)
    }

    fn remove_folder(&self) {
        // What cannot be removed means nothing any more, and goes with the layer.
        let _ = fs::remove_dir_all(self.folder.path());
    }
}

/// Puts the index of a layer's tar in the place of the one of its files, if no mount goes by that; returns whether it is an
/// ordinary layer now.
pub(in crate::lazy) fn settle(store: &Store, layer: DiffId) -> Result<bool, StoreError> {
    let place = store.layout.layer(layer);
    let _catalog = CatalogGuard::lock(&store.layout)?;
    let (next, index) = (place.join(NEXT_INDEX), place.join(INDEX));
    if !exists(&next)? {
        // Somebody else was quicker.
        return Ok(true);
    }
    if !exists(&place.join(TAR))? {
        // A kill or the disk came between the two: it is completed once more.
        return Ok(false);
    }
    if pinned_layers(&store.layout)?.contains(&layer) {
        // Whoever makes a new stack of it just now may have read the old index already.
        return Ok(false);
    }
    let mut locks = Vec::new();
    for name in names_in(&store.layout.images())? {
        let path = store.layout.images().join(name);
        let list = read_if_present(&path.join(CHAIN_LAYERS))?.unwrap_or_default();
        if !String::from_utf8_lossy(&list).lines().any(|line| line.parse() == Ok(layer)) {
            continue;
        }
        let Some(folder) = open_if_present(&path)? else { continue };
        match Lock::attempt(folder, Sharing::Exclusive, &path)? {
            Some(lock) => locks.push((lock, path.join(INDEX))),
            None => return Ok(false),
        }
    }
    // Made again of the new one when it is next used.
    for (_, merged) in &locks {
        remove_if_present(merged)?;
    }
    // With the map goes the old content; whoever finds the new index still beside mends what a kill leaves here. The other
    // way round, the new index would be taken for one of the old content.
    let lazy = place.join(LAZY);
    if exists(&lazy)? {
        remove_if_present(&lazy.join(MAP))?;
        sync_folder(&lazy)?;
    }
    fs::rename(&next, &index).on_disk("rename", &index)?;
    sync_folder(&place)?;
    // What cannot be removed means nothing any more, and goes with the layer.
    let _ = fs::remove_dir_all(lazy);
    Ok(true)
}

fn remove_if_present(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on_disk("remove", path),
        _ => Ok(()),
    }
}

/// Returns whether a chunk that counts as being here is.
fn is_intact(folder: &LazyFolder, number: usize) -> bool {
    let chunk = folder.map.chunks[number];
    let mut bytes = vec![0; usize::try_from(chunk.length).unwrap_or(0)];
    folder.content.read_exact_at(&mut bytes, chunk.offset).is_ok() && Digest::of(&bytes) == chunk.digest
}

/// Reads a file from a position on, whoever else reads it.
struct FileReader<'a> {
    file: &'a File,
    position: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Reads the tar that chunks and tails make, in the order of the chunks.
struct Pieces<'a> {
    folder: &'a LazyFolder,
    tails: HashMap<usize, (u64, u64)>,
    tails_file: Option<File>,
    number: usize,
    /// What is left of the chunk and of its tail: place and length of each.
    left: Option<[(u64, u64); 2]>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(chunk) = self.folder.map.chunks.get(self.number) else { return Ok(0) };
            let tail = self.tails.get(&self.number).copied().unwrap_or_default();
            let left = self.left.get_or_insert([(chunk.offset, chunk.length), tail]);
            for (part, (place, length)) in left.iter_mut().enumerate() {
                if *length == 0 {
                    continue;
                }
                let wanted = buffer.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
                let file = match (part, &self.tails_file) {
                    (0, _) => &self.folder.content,
                    (_, Some(file)) => file,
                    (_, None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                };
                let count = file.read_at(&mut buffer[..wanted], *place)?;
                if count == 0 && wanted > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *place += count as u64;
                *length -= count as u64;
                return Ok(count);
            }
            self.number += 1;
            self.left = None;
        }
    }
}

/// The index of the whole tar, while another one is in use.
pub(crate) const NEXT_INDEX: &str = "index.next";
/// How many bytes that nobody needs are fetched rather than making a further request.
const NEAR: u64 = 16 << 10;
/// How many bytes of the blob are fetched with what is asked for.
const READ_AHEAD: u64 = 512 << 10;
/// How long a demand is pursued. A reader's own deadline is usually shorter.
const PATIENCE: Duration = Duration::from_secs(55);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the background leaves a layer alone that fails again and again.
const LONGEST_REST: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);
/// How long after a mount was in the way it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
