//! What a push sends: layers as they are kept, or compressed while they are sent. Either can be read again from the middle.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use super::upload::BlobSource;
use crate::compress::{Compressing, CompressionFormat, PIECE};
use crate::progress::{Event, Progress};

/// A blob that is a file.
pub(super) struct Kept<'a> {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) layer: String,
    pub(super) progress: &'a dyn Progress,
}

impl BlobSource for Kept<'_> {
    fn read_from(&mut self, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.file.seek(SeekFrom::Start(offset))?;
        Ok(Box::new(Watched { reader: &self.file, layer: &self.layer, position: offset, progress: self.progress }))
    }

    fn size(&self) -> Option<u64> {
        Some(self.size)
    }
}

/// A tar that is compressed while it is read.
pub(super) struct Packed<'a> {
    pub(super) tar: File,
    pub(super) format: CompressionFormat,
    /// Where each piece ends in the blob, as far as that is known.
    pub(super) ends: Mutex<Vec<u64>>,
    pub(super) layer: String,
    pub(super) progress: &'a dyn Progress,
}

impl BlobSource for Packed<'_> {
    fn read_from(&mut self, offset: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        // Compressed again from the piece on that has the offset: pieces always give the same bytes.
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = ends.partition_point(|end| *end <= offset);
        let start = piece.checked_sub(1).map_or(0, |before| ends[before]);
        drop(ends);
        let position = (piece * PIECE) as u64;
        if piece > 0 && position >= self.tar.metadata()?.len() {
            // All of it was sent. Compressed, nothing would be something.
            return Ok(Box::new(io::empty()));
        }
        let tar = TarFrom { file: self.tar.try_clone()?, position };
        let pieces = Compressing::new(tar, self.format)?;
        let noted = Noted { pieces, number: piece, end: start, ends: &self.ends, piece: Vec::new(), position: 0 };
        let mut reader = Watched { reader: noted, layer: &self.layer, position: start, progress: self.progress };
        let skipped = io::copy(&mut reader.by_ref().take(offset - start), &mut io::sink())?;
        if skipped < offset - start {
            return Err(io::Error::other("the registry claims to have more of the layer than there is"));
        }
        Ok(Box::new(reader))
    }

    fn size(&self) -> Option<u64> {
        None
    }
}

/// A file from a position on, whoever else reads it.
struct TarFrom {
    file: File,
    position: u64,
}

impl Read for TarFrom {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Reads pieces and notes where they end.
struct Noted<'a> {
    pieces: Compressing,
    /// The number of the next piece, and where it begins in the blob.
    number: usize,
    end: u64,
    ends: &'a Mutex<Vec<u64>>,
    piece: Vec<u8>,
    position: usize,
}

impl Read for Noted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.piece.len() {
            let Some(next) = self.pieces.next_piece()? else { return Ok(0) };
            self.end += next.len() as u64;
            let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            if ends.len() == self.number {
                ends.push(self.end);
            }
            (self.piece, self.position, self.number) = (next, 0, self.number + 1);
        }
        let rest = &self.piece[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        Ok(count)
    }
}

/// Reports how much of a layer has been sent.
struct Watched<'a, R> {
    reader: R,
    layer: &'a str,
    position: u64,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        let before = self.position;
        self.position += count as u64;
        if before >> 20 != self.position >> 20 {
            self.progress.report(Event::Advanced { layer: self.layer, bytes: self.position });
        }
        Ok(count)
    }
}
