//! Compressing a layer on several threads, always to the same bytes.
//!
//! A layer is cut into pieces of fixed size, and each becomes a gzip member or a zstd frame of its own, which together
//! are one stream by both formats' definitions. So the result does not depend on how many threads there are, and the
//! digest of a layer that is compressed again is the same again.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use flate2::GzBuilder;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionFormat {
    /// What every registry and every client takes.
    #[default]
    Gzip,
    /// Smaller and several times faster on both sides.
    Zstd,
    /// Not at all.
    None,
}

impl CompressionFormat {
    /// The name that notes in the store have.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CompressionFormat::Gzip => "gzip",
            CompressionFormat::Zstd => "zstd",
            CompressionFormat::None => "none",
        }
    }
}

/// The compressed form of a source, made while it is read.
pub(crate) struct Compressing {
    pieces: Receiver<(Permit, Receiver<io::Result<Vec<u8>>>)>,
    /// The piece that is read, and what allows it to be there.
    piece: (Vec<u8>, Option<Permit>),
    position: usize,
}

impl Compressing {
    /// Begins to compress a source.
    pub(crate) fn new(source: impl Read + Send + 'static, format: CompressionFormat) -> io::Result<Compressing> {
        let (ordered, pieces) = channel();
        thread::Builder::new().name("compress".to_owned()).spawn(move || feed(source, &ordered, format))?;
        Ok(Compressing { pieces, piece: (Vec::new(), None), position: 0 })
    }

    /// Returns the next piece that is compressed by itself; `None` at the end.
    pub(crate) fn next_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        // The one before it is done with.
        self.piece.1 = None;
        let Ok((permit, next)) = self.pieces.recv() else { return Ok(None) };
        let piece = next.recv().map_err(|_| io::Error::other("a thread that compresses has ended"))??;
        self.piece.1 = Some(permit);
        Ok(Some(piece))
    }
}

impl Read for Compressing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.piece.0.len() {
            let Some(next) = self.next_piece()? else { return Ok(0) };
            (self.piece.0, self.position) = (next, 0);
        }
        let rest = &self.piece.0[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }
}

/// Allows one piece of a source to be in memory. Without, what is compressed but not taken yet would have no bound.
struct Permit {
    account: Arc<Account>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Account { pool, number } = &*self.account;
        if let Some(held) = pool.lock().get_mut(number) {
            *held -= 1;
        }
        pool.returned.notify_all();
    }
}

/// The pieces that may be in memory: one that each source always has to itself, so that a source whose pieces nobody
/// takes holds up no other, and some that are shared out evenly among the sources there are.
struct Pool {
    /// How many are shared out.
    shared: usize,
    /// How many each source holds.
    held: Mutex<BTreeMap<u64, usize>>,
    returned: Condvar,
}

impl Pool {
    const fn new(shared: usize) -> Pool {
        Pool { shared, held: Mutex::new(BTreeMap::new()), returned: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a source that holds so many pieces may have one more.
    fn allows(&self, held: &BTreeMap<u64, usize>, own: usize) -> bool {
        let beyond_the_first = |held: &usize| held.saturating_sub(1);
        let taken: usize = held.values().map(beyond_the_first).sum();
        let share = self.shared.div_ceil(held.len().max(1));
        own == 0 || (taken < self.shared && beyond_the_first(&own) < share)
    }
}

/// A source's part in a pool, until its last piece is gone.
struct Account {
    pool: &'static Pool,
    number: u64,
}

impl Account {
    fn open(pool: &'static Pool) -> Arc<Account> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        pool.lock().insert(number, 0);
        Arc::new(Account { pool, number })
    }

    /// Waits until the source may have one more piece in memory.
    fn wait(self: &Arc<Account>) -> Permit {
        let mut held = self.pool.lock();
        loop {
            let own = held.get(&self.number).copied().unwrap_or(0);
            if self.pool.allows(&held, own) {
                held.insert(self.number, own + 1);
                return Permit { account: Arc::clone(self) };
            }
            held = self.pool.returned.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.pool.lock().remove(&self.number);
        // The others' shares have grown.
        self.pool.returned.notify_all();
    }
}

/// The pool of all sources of this process: enough that no thread waits for another one's piece to be sent.
fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(threads() * 2 + 2))
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

/// A piece to compress, and where to send it.
struct Job {
    piece: Vec<u8>,
    format: CompressionFormat,
    done: SyncSender<io::Result<Vec<u8>>>,
}

/// Returns where jobs go: to threads that all sources share, as there is one per processor to do them.
fn workers() -> &'static SyncSender<Job> {
    static WORKERS: OnceLock<SyncSender<Job>> = OnceLock::new();
    WORKERS.get_or_init(|| {
        let (jobs, queue) = sync_channel::<Job>(1);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads() {
            let queue = Arc::clone(&queue);
            let work = move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    // The sender is never dropped.
                    let Ok(Job { piece, format, done }) = job else { return };
                    // Whoever has lost interest is no reason to end.
                    let _ = done.send(compress(&piece, format));
                }
            };
            // With fewer threads it takes longer; without any, whoever waits is told.
            let _ = thread::Builder::new().name("compress".to_owned()).spawn(work);
        }
        jobs
    })
}

/// Cuts the source into pieces, until it ends or nobody reads any more.
fn feed(mut source: impl Read, ordered: &Sender<(Permit, Receiver<io::Result<Vec<u8>>>)>, format: CompressionFormat) {
    let account = Account::open(pool());
    let mut is_first = true;
    loop {
        let permit = account.wait();
        let mut piece = Vec::with_capacity(PIECE);
        let read = source.by_ref().take(PIECE as u64).read_to_end(&mut piece);
        let (done, result) = sync_channel(1);
        match read {
            Err(error) => {
                let _ = done.send(Err(error));
                let _ = ordered.send((permit, result));
                return;
            }
            // An empty source is one empty piece.
            Ok(0) if !is_first => return,
            Ok(_) => {}
        }
        is_first = false;
        let is_last = piece.len() < PIECE;
        if ordered.send((permit, result)).is_err() || workers().send(Job { piece, format, done }).is_err() || is_last {
            return;
        }
    }
}

fn compress(piece: &[u8], format: CompressionFormat) -> io::Result<Vec<u8>> {
    match format {
        CompressionFormat::None => Ok(piece.to_vec()),
        CompressionFormat::Gzip => {
            // Without a time and a name, which would make it different each time.
            let out = Vec::with_capacity(piece.len() / 2);
            let mut encoder = GzBuilder::new().write(out, flate2::Compression::new(GZIP_LEVEL));
            encoder.write_all(piece)?;
            encoder.finish()
        }
        CompressionFormat::Zstd => {
            let mut encoder = zstd::stream::Encoder::new(Vec::with_capacity(piece.len() / 2), ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            encoder.set_pledged_src_size(Some(piece.len() as u64))?;
            encoder.write_all(piece)?;
            encoder.finish()
        }
    }
}

/// Large enough that little is lost at the edges, small enough for the memory of several layers at once.
pub(crate) const PIECE: usize = 1 << 20;
const MAX_THREADS: usize = 8;
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::{Compression, Decompressor};

    #[test]
    fn what_was_compressed_comes_back_and_is_always_the_same() {
        let mut state = 1_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u8::try_from(state >> 28).unwrap()
        };
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5] {
            let content: Vec<u8> = (0..length).map(|_| byte()).collect();
            for format in [CompressionFormat::Gzip, CompressionFormat::Zstd, CompressionFormat::None] {
                let run = || {
                    let mut bytes = Vec::new();
                    let source = io::Cursor::new(content.clone());
                    Compressing::new(source, format).unwrap().read_to_end(&mut bytes).unwrap();
                    bytes
                };
                let compressed = run();
                assert!(compressed == run(), "{format:?} {length}");
                let mut back = Vec::new();
                let kind = Compression::of(&compressed);
                Decompressor::new(&compressed[..], kind).unwrap().read_to_end(&mut back).unwrap();
                assert!(back == content, "{format:?} {length}");
            }
        }
    }

    #[test]
    fn a_source_that_stands_still_holds_up_no_other() {
        static POOL: Pool = Pool::new(4);
        let still = Account::open(&POOL);
        // One to itself and all that are shared, as there is nobody else.
        let _held: Vec<Permit> = (0..5).map(|_| still.wait()).collect();
        let is_allowed = |account: &Account| {
            let held = POOL.lock();
            POOL.allows(&held, held[&account.number])
        };
        assert!(!is_allowed(&still));
        let other = Account::open(&POOL);
        let own = other.wait();
        assert!(!is_allowed(&other), "nothing is left to share");
        drop(own);
        drop(other.wait());
    }

    #[test]
    fn what_is_shared_is_shared_evenly() {
        static POOL: Pool = Pool::new(4);
        let (one, other) = (Account::open(&POOL), Account::open(&POOL));
        let first: Vec<Permit> = (0..3).map(|_| one.wait()).collect();
        let is_allowed = |account: &Account| {
            let held = POOL.lock();
            POOL.allows(&held, held[&account.number])
        };
        assert!(!is_allowed(&one) && is_allowed(&other));
        let second: Vec<Permit> = (0..3).map(|_| other.wait()).collect();
        assert!(!is_allowed(&other));
        // Whoever ends leaves everything to the one that is left.
        drop((second, other));
        assert!(is_allowed(&one));
        drop(first);
        assert_eq!(POOL.lock()[&one.number], 0);
    }

    #[test]
    fn a_source_that_fails_fails_the_reader() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::other("broken"));
                }
                let count = buffer.len().min(self.0);
                self.0 -= count;
                Ok(count)
            }
        }
        let mut compressing = Compressing::new(Broken(2 * PIECE), CompressionFormat::Zstd).unwrap();
        assert!(compressing.read_to_end(&mut Vec::new()).is_err());
    }
}
