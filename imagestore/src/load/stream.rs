//! An archive that passes by once.
//!
//! A layer may come before the document that names it, so every member is judged by its first bytes: what looks like
//! a tar, gzip or zstd is taken in as a layer at once, other small members are kept as documents, and the rest is
//! skipped. Whether a layer is needed, and right, turns out at the end; one that was refused is only an error if some
//! image needs it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Mutex;

use strata_layer::tar::BLOCK;
use strata_layer::{DiffId, Digest};

use super::archive::{LayerSource, Region, follow};
use super::members::{Content, Member, Members, SKIP_BUFFER, Source};
use super::plan::digest_in_name;
use super::{LoadError, StreamContext};
use crate::decompress::{Compression, Decompressor, read_start};
use crate::disk::{OnDisk, create_new};
use crate::ingest::{IngestError, NewLayer, ingest_layer};
use crate::model::MAX_CONFIG;
use crate::progress::Event;
use crate::store::StoreError;

/// What was kept of a stream.
#[derive(Debug)]
pub(super) struct StreamArchive {
    members: HashMap<String, Kept>,
    /// The documents, one after the other.
    documents: File,
}

/// What was kept of a member.
#[derive(Debug)]
enum Kept {
    Document {
        offset: u64,
        size: u64,
    },
    Layer(NewLayer),
    /// It looked like a layer and was refused. Why is told once, and then the load is over.
    Refused(Mutex<Option<IngestError>>),
    /// The store has the layer that this is, by its name.
    Present {
        diff_id: DiffId,
    },
    /// It can be nothing that is needed.
    Skipped {
        size: u64,
    },
    Link(String),
    Other,
}

impl StreamArchive {
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    pub(super) fn layer(&self, name: &str) -> Result<LayerSource<'_>, LoadError> {
        let member = || name.to_owned();
        let kept = follow(&self.members, name, |kept| match kept {
            Kept::Link(target) => Some(target),
            _ => None,
        });
        match kept.ok_or_else(|| LoadError::Missing { member: member() })? {
            Kept::Document { offset, size } => {
                let reader = Region { file: &self.documents, offset: *offset, left: *size };
                Ok(LayerSource::Reader { reader: Box::new(reader), size: *size })
            }
            Kept::Layer(new) => Ok(LayerSource::Taken(new)),
            Kept::Present { diff_id } => Ok(LayerSource::Present(*diff_id)),
            Kept::Refused(reason) => Err(match reason.lock().expect("no holder panics").take() {
                Some(source) => LoadError::layer(name, source),
                None => LoadError::NotAFile { member: member() },
            }),
            Kept::Skipped { size } => {
                Err(LoadError::DocumentTooLarge { member: member(), size: *size, limit: MAX_CONFIG })
            }
            Kept::Link(_) | Kept::Other => Err(LoadError::NotAFile { member: member() }),
        }
    }
}

/// Reads a whole stream.
pub(super) fn read<'a>(
    mut stream: Box<dyn Read + Send + 'a>,
    context: &StreamContext<'_>,
) -> Result<StreamArchive, LoadError> {
    let start = read_start(&mut stream, SNIFF_COMPRESSION).map_err(LoadError::Read)?;
    let compression = Compression::of(&start);
    let reader = Decompressor::new(io::Cursor::new(start).chain(stream), compression).map_err(LoadError::Decompress)?;
    let path = context.work.path().join("documents");
    let archive = StreamArchive { members: HashMap::new(), documents: create_new(&path).map_err(StoreError::from)? };
    let reading = Reading { context, known: context.store.layers_by_blob()?, archive, spooled: 0, layers: 0 };
    reading.run(Members::new(Forward { reader, compression }))
}

struct Reading<'a> {
    context: &'a StreamContext<'a>,
    /// The layers in the store, by the compressed blobs that they came from.
    known: HashMap<Digest, DiffId>,
    archive: StreamArchive,
    spooled: u64,
    layers: usize,
}

impl Reading<'_> {
    fn run<S: Source>(mut self, mut members: Members<S>) -> Result<StreamArchive, LoadError> {
        while let Some(member) = members.next()? {
            let kept = match &member.content {
                Content::Folder => continue,
                Content::Other => Kept::Other,
                Content::Link(target) => Kept::Link(target.clone()),
                Content::File => self.take_file(&member, &mut members)?,
            };
            if self.archive.members.insert(member.name.clone(), kept).is_some() {
                return Err(LoadError::Repeated { member: member.name });
            }
        }
        Ok(self.archive)
    }

    fn take_file<S: Source>(&mut self, member: &Member, content: &mut Members<S>) -> Result<Kept, LoadError> {
        let start = read_start(content, SNIFF).map_err(|error| content.error(error))?;
        if looks_like_layer(&start) {
            self.take_layer(member, &start, content)
        } else if member.size <= MAX_CONFIG {
            self.take_document(member, start, content)
        } else {
            Ok(Kept::Skipped { size: member.size })
        }
    }

    fn take_document<S: Source>(
        &mut self,
        member: &Member,
        start: Vec<u8>,
        content: &mut Members<S>,
    ) -> Result<Kept, LoadError> {
        let offset = self.spooled;
        self.spooled += member.size;
        if self.spooled > MAX_SPOOLED {
            return Err(LoadError::TooManyMembers);
        }
        // At most MAX_CONFIG bytes.
        let mut bytes = start;
        content.read_to_end(&mut bytes).map_err(|error| content.error(error))?;
        let path = self.context.work.path().join("documents");
        self.archive.documents.write_all(&bytes).on_disk("write", &path).map_err(StoreError::from)?;
        Ok(Kept::Document { offset, size: member.size })
    }

    fn take_layer<S: Source>(
        &mut self,
        member: &Member,
        start: &[u8],
        content: &mut Members<S>,
    ) -> Result<Kept, LoadError> {
        let StreamContext { store, work, options, progress } = *self.context;
        let named = digest_in_name(&member.name);
        if let Some(blob) = named {
            let diff_id = self.known.get(&blob).copied().unwrap_or(DiffId(blob));
            if store.pin_present(work, &[diff_id])? == [diff_id] {
                progress.report(Event::Present { layer: &diff_id.to_string() });
                return Ok(Kept::Present { diff_id });
            }
        }
        let folder = work.path().join(format!("stream-{}", self.layers));
        self.layers += 1;
        progress.report(Event::Started { layer: &member.name, bytes: Some(member.size) });
        let mut advanced = |bytes| progress.report(Event::Advanced { layer: &member.name, bytes });
        // What an image says that it is may come later only.
        let expected = named.and_then(|blob| self.known.get(&blob)).copied();
        let source = start.chain(&mut *content);
        let new = match ingest_layer(source, folder.clone(), options.max_layer_size, expected, &mut advanced) {
            Ok(new) => new,
            Err(error) if error.is_content() => {
                // It may be something that no image needs; the rest of it is skipped.
                std::fs::remove_dir_all(&folder).on_disk("remove", &folder).map_err(StoreError::from)?;
                return Ok(Kept::Refused(Mutex::new(Some(error))));
            }
            Err(IngestError::Source(error)) => return Err(content.error(error)),
            Err(error) => return Err(LoadError::layer(&member.name, error)),
        };
        progress.report(Event::Finished { layer: &member.name });
        Ok(Kept::Layer(new))
    }
}

/// A stream of which what nobody wants is read and dropped.
struct Forward<R: Read> {
    reader: Decompressor<R>,
    compression: Compression,
}

impl<R: Read> Read for Forward<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl<R: Read> Source for Forward<R> {
    fn skip(&mut self, count: u64) -> io::Result<bool> {
        let mut left = count;
        let mut buffer = vec![0; SKIP_BUFFER.min(usize::try_from(count).unwrap_or(SKIP_BUFFER))];
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match self.reader.read(&mut buffer[..wanted]) {
                Ok(0) => return Ok(false),
                Ok(count) => left -= count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn error(&self, error: io::Error) -> LoadError {
        match self.compression {
            Compression::None => LoadError::Read(error),
            Compression::Gzip | Compression::Zstd => LoadError::Decompress(error),
        }
    }
}

/// Returns whether this is how a layer begins: compressed, or with a header or an end marker of a tar.
fn looks_like_layer(start: &[u8]) -> bool {
    if Compression::of(start) != Compression::None {
        return true;
    }
    let Some(block) = start.first_chunk::<BLOCK>() else { return false };
    // The checksum is in octal at 148 and counts itself as eight spaces.
    let digits: String = block[148..156].iter().map(|byte| char::from(*byte)).filter(char::is_ascii_digit).collect();
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
    let is_header = u64::from_str_radix(&digits, 8).is_ok_and(|stated| stated == sum - own + 8 * u64::from(b' '));
    is_header || block.iter().all(|byte| *byte == 0)
}

const SNIFF_COMPRESSION: usize = 4;
/// As many bytes as tell what a member is.
const SNIFF: usize = BLOCK;
/// The most bytes that all documents of an archive may have.
const MAX_SPOOLED: u64 = 1 << 30;
