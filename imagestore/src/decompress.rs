//! Decompression that is told by content and bounded in what it puts out.
//!
//! What a media type or a file name says about compression is often wrong; the first bytes are not. gzip may have any
//! number of members and NUL padding after the last, zstd any number of frames and skippable frames. Anything else
//! after the end is refused, as it would be part of the blob's digest but not of its content.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Tells the compression by the first bytes.
    pub(crate) fn of(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Returns what `source` holds, decompressed if it is compressed with gzip or zstd. Everything happens in this process.
pub fn decompressed(mut source: impl Read) -> io::Result<impl Read> {
    let start = read_start(&mut source, 4)?;
    let compression = Compression::of(&start);
    Decompressor::new(io::Cursor::new(start).chain(source), compression)
}

/// Reads the decompressed form of a source.
pub(crate) enum Decompressor<R: Read> {
    Plain(R),
    Gzip(Box<GzipReader<BufReader<R>>>),
    Zstd(Box<ZstdDecoder<'static, BufReader<R>>>),
}

impl<R: Read> Decompressor<R> {
    /// Makes a reader for a source that is known to start with what `compression` starts with.
    pub(crate) fn new(source: R, compression: Compression) -> io::Result<Decompressor<R>> {
        Ok(match compression {
            Compression::None => Decompressor::Plain(source),
            Compression::Gzip => {
                let source = BufReader::with_capacity(INPUT_BUFFER, source);
                Decompressor::Gzip(Box::new(GzipReader { state: GzipState::Between(source) }))
            }
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::with_buffer(BufReader::with_capacity(INPUT_BUFFER, source))?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Decompressor::Zstd(Box::new(decoder))
            }
        })
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The zstd library takes an empty buffer for a caller that makes no progress.
        if buffer.is_empty() {
            return Ok(0);
        }
        match self {
            Decompressor::Plain(source) => source.read(buffer),
            Decompressor::Gzip(reader) => reader.read(buffer),
            Decompressor::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Reads gzip members one after the other.
pub(crate) struct GzipReader<B: BufRead> {
    state: GzipState<B>,
}

enum GzipState<B: BufRead> {
    Member(Box<GzDecoder<B>>),
    Between(B),
    Taken,
}

impl<B: BufRead> Read for GzipReader<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.state {
                GzipState::Member(decoder) => {
                    let count = decoder.read(buffer)?;
                    if count > 0 {
                        return Ok(count);
                    }
                    let GzipState::Member(decoder) = std::mem::replace(&mut self.state, GzipState::Taken) else {
                        unreachable!("matched above")
                    };
                    let mut source = decoder.into_inner();
                    skip_padding(&mut source)?;
                    self.state = GzipState::Between(source);
                }
                GzipState::Between(source) => {
                    if source.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let GzipState::Between(source) = std::mem::replace(&mut self.state, GzipState::Taken) else {
                        unreachable!("matched above")
                    };
                    self.state = GzipState::Member(Box::new(GzDecoder::new(source)));
                }
                GzipState::Taken => return Err(io::Error::other("read after an error")),
            }
        }
    }
}

/// Skips NULs, which tape-minded tools put after the last member. They must reach to the end.
fn skip_padding(source: &mut impl BufRead) -> io::Result<()> {
    let mut skipped = false;
    loop {
        let available = source.fill_buf()?;
        let zeros = available.iter().take_while(|byte| **byte == 0).count();
        let rest = available.len() - zeros;
        skipped |= zeros > 0;
        source.consume(zeros);
        match (rest, zeros) {
            (0, 0) => return Ok(()),
            (0, _) => {}
            _ if skipped => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "garbage after the end of the gzip data"));
            }
            _ => return Ok(()),
        }
    }
}

/// Reads the first bytes of a source, fewer than `count` only where it ends.
pub(crate) fn read_start(source: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(count);
    source.take(count as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// Reads up to a number of bytes and fails if there are more.
pub(crate) struct Bounded<R> {
    pub(crate) source: R,
    pub(crate) left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "decompressed content exceeds the limit"))?;
        Ok(count)
    }
}

const INPUT_BUFFER: usize = 256 << 10;
/// 128 MiB: what `zstd --long` makes at most without asking its users for the same option on decompression.
const MAX_WINDOW_LOG: u32 = 27;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    /// Gives one byte at a time, as a slow pipe does.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(buffer.len()).min(1);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn decompress(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompressor::new(Trickle(bytes), Compression::of(bytes))?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn skippable(text: &[u8]) -> Vec<u8> {
        [&[0x51, 0x2a, 0x4d, 0x18], &u32::try_from(text.len()).unwrap().to_le_bytes()[..], text].concat()
    }

    #[test]
    fn several_members_and_frames_are_one_content() {
        let zstd = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
        for bytes in [
            b"hello world".to_vec(),
            gzip(b"hello world"),
            [gzip(b"hello "), gzip(b""), gzip(b"world")].concat(),
            [gzip(b"hello world"), vec![0; 1000]].concat(),
            zstd(b"hello world"),
            [zstd(b"hello "), skippable(b"table"), zstd(b"world")].concat(),
            [skippable(b""), zstd(b"hello world"), skippable(b"toc")].concat(),
        ] {
            assert_eq!(decompress(&bytes).unwrap(), b"hello world");
        }
        assert_eq!(decompress(b"").unwrap(), b"");
    }

    #[test]
    fn what_follows_the_end_or_is_cut_off_is_refused() {
        let zstd = zstd::encode_all(&b"hello world"[..], 1).unwrap();
        for bytes in [
            [gzip(b"x"), b"garbage".to_vec()].concat(),
            [gzip(b"x"), vec![0; 10], b"garbage".to_vec()].concat(),
            [gzip(b"x"), vec![0; 10], gzip(b"y")].concat(),
            gzip(b"hello world")[..20].to_vec(),
            [zstd.clone(), b"garbage".to_vec()].concat(),
            zstd[..zstd.len() - 1].to_vec(),
        ] {
            assert!(decompress(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn bounded_output_stops() {
        let mut out = Vec::new();
        assert_eq!(Bounded { source: &b"12345"[..], left: 5 }.read_to_end(&mut out).unwrap(), 5);
        let error = Bounded { source: &b"123456"[..], left: 5 }.read_to_end(&mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
