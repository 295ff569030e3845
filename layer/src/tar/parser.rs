//! The state machine that turns bytes into entries.

use super::BLOCK;
use super::compose::Extended;
use super::entry::{Entry, EntryKind};
use super::error::{Problem, TarError};
use super::header::{Format, Header};
use super::limits::Limits;
use super::pax::{Pax, PaxSparse};
use super::sparse::{HeadMap, Map};

/// Reads an archive that is pushed in pieces of any size.
///
/// ```
/// # use strata_layer::tar::{Event, Limits, Parser};
/// # fn read(archive: &[u8]) -> Result<(), strata_layer::tar::TarError> {
/// let mut parser = Parser::new(Limits::default());
/// for mut piece in archive.chunks(4096) {
///     while let Some(event) = parser.next_event(&mut piece)? {
///         match event {
///             Event::Entry(entry) => { /* its headers are complete */ }
///             Event::Data(bytes) => { /* of the file that came last */ }
///         }
///     }
/// }
/// parser.finish()
/// # }
/// # read(&[0; 1024]).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Parser {
    limits: Limits,
    state: State,
    /// Bytes consumed.
    offset: u64,
    /// A block that has not come completely yet.
    block: [u8; BLOCK],
    filled: usize,
    /// Where the headers of the next entry began.
    entry_offset: u64,
    /// Name of the current entry, for messages.
    current: Vec<u8>,
    extended: Extended,
    global: Pax,
}

/// What a parser has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// An entry begins.
    Entry(Box<Entry>),
    /// The next bytes of the data of the last entry.
    Data(&'i [u8]),
}

/// What the next bytes are.
#[derive(Clone, Debug)]
enum State {
    /// A header, or the end of the archive.
    Header,
    /// The contents of an extended header.
    Extension { kind: Extension, remaining: u64, bytes: Vec<u8> },
    /// Further blocks of an old GNU sparse map.
    SparseSlots { entry: Box<Entry>, stored: u64, map: Map },
    /// A sparse map at the head of the data.
    SparseHead { entry: Box<Entry>, stored: u64, map: HeadMap },
    /// The data of a file, followed by the padding to the next block.
    Data { remaining: u64, padding: u64 },
    /// The first of the two blocks at the end has come; only zeros may follow.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    Local,
    Global,
    LongName,
    LongLink,
}

impl Parser {
    /// Starts at the beginning of an archive.
    pub fn new(limits: Limits) -> Parser {
        Parser {
            limits,
            state: State::Header,
            offset: 0,
            block: [0; BLOCK],
            filled: 0,
            entry_offset: 0,
            current: Vec::new(),
            extended: Extended::default(),
            global: Pax::default(),
        }
    }

    /// Consumes `input` up to the next event and returns that, or `None` once all of `input` is consumed.
    ///
    /// After an error the archive is given up; what further calls return has no meaning.
    pub fn next_event<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, TarError> {
        while !input.is_empty() {
            let event = self.step(input).map_err(|problem| self.error(problem))?;
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Checks that the archive may end here. The two blocks of zeros that should end it may be missing.
    pub fn finish(&self) -> Result<(), TarError> {
        let problem = match &self.state {
            State::End => None,
            State::Header | State::Data { remaining: 0, padding: 0 } if self.filled == 0 => {
                self.extended.is_pending().then_some(Problem::NoEntry)
            }
            _ => Some(Problem::Truncated),
        };
        problem.map_or(Ok(()), |problem| Err(self.error(problem)))
    }

    /// Returns the number of bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn error(&self, problem: Problem) -> TarError {
        let entry = (!self.current.is_empty()).then(|| self.current.clone());
        TarError { offset: self.offset, entry, problem }
    }

    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Problem> {
        match &mut self.state {
            State::Data { remaining: 0, padding: 0 } => {
                self.current.clear();
                self.state = State::Header;
                Ok(None)
            }
            State::Data { remaining: 0, padding } => {
                let skipped = take(input, padding).len();
                self.offset += skipped as u64;
                Ok(None)
            }
            State::Data { remaining, .. } => {
                let data = take(input, remaining);
                self.offset += data.len() as u64;
                Ok(Some(Event::Data(data)))
            }
            State::Extension { remaining, bytes, .. } if *remaining > 0 => {
                let part = take(input, remaining);
                bytes.extend_from_slice(part);
                self.offset += part.len() as u64;
                if *remaining == 0 {
                    self.end_extension()?;
                }
                Ok(None)
            }
            State::Extension { .. } => self.end_extension().map(|()| None),
            State::End => {
                if let Some(garbage) = input.iter().position(|&byte| byte != 0) {
                    self.offset += garbage as u64;
                    return Err(Problem::TrailingData);
                }
                self.offset += input.len() as u64;
                *input = &[];
                Ok(None)
            }
            State::Header | State::SparseSlots { .. } | State::SparseHead { .. } => {
                let Some(block) = self.take_block(input) else {
                    return Ok(None);
                };
                let event = self.take_in(&block)?;
                self.offset += BLOCK as u64;
                Ok(event.map(Event::Entry))
            }
        }
    }

    /// Collects a whole block.
    fn take_block(&mut self, input: &mut &[u8]) -> Option<[u8; BLOCK]> {
        if self.filled == 0
            && let Some((block, rest)) = input.split_first_chunk()
        {
            *input = rest;
            return Some(*block);
        }
        let count = input.len().min(BLOCK - self.filled);
        let (part, rest) = input.split_at(count);
        self.block[self.filled..self.filled + count].copy_from_slice(part);
        self.filled += count;
        *input = rest;
        if self.filled < BLOCK {
            return None;
        }
        self.filled = 0;
        Some(self.block)
    }

    /// Takes in a block that is no data. `self.offset` is where it begins.
    fn take_in(&mut self, block: &[u8; BLOCK]) -> Result<Option<Box<Entry>>, Problem> {
        let after = self.offset + BLOCK as u64;
        match std::mem::replace(&mut self.state, State::Header) {
            State::SparseSlots { entry, stored, mut map } => {
                map.add_slots(&block[..504])?;
                self.continue_sparse_slots(entry, stored, map, block[504] != 0, after)
            }
            State::SparseHead { mut entry, stored, mut map } => {
                let complete = map.add_block(block)?;
                let stored = stored.checked_sub(BLOCK as u64).ok_or(Problem::Sparse("longer than the data"))?;
                if map.byte_size() > self.limits.header_bytes.saturating_mul(HEAD_MAP_FACTOR) {
                    return Err(Problem::Sparse("too many pieces"));
                }
                if !complete {
                    self.state = State::SparseHead { entry, stored, map };
                    return Ok(None);
                }
                entry.sparse = Some(map.into_map().place(entry.size, after, stored)?);
                Ok(Some(self.begin_data(entry, after, stored)))
            }
            _ => self.take_in_header(block, after),
        }
    }

    fn take_in_header(&mut self, block: &[u8; BLOCK], after: u64) -> Result<Option<Box<Entry>>, Problem> {
        if block.iter().all(|&byte| byte == 0) {
            if self.extended.is_pending() {
                return Err(Problem::NoEntry);
            }
            self.state = State::End;
            return Ok(None);
        }
        if !self.extended.is_pending() {
            self.entry_offset = self.offset;
        }
        let header = Header::parse(block)?;
        let extension = match header.type_flag() {
            b'x' => Extension::Local,
            b'g' => Extension::Global,
            b'L' => Extension::LongName,
            b'K' => Extension::LongLink,
            // The label of a volume: not an entry, and not what an extended header could be meant for.
            b'V' if self.extended.is_pending() => return Err(Problem::NoEntry),
            b'V' => {
                return match header.size()? {
                    0 => Ok(None),
                    size => Err(Problem::UnexpectedData(size)),
                };
            }
            type_flag => return self.begin_entry(&header, type_flag, after),
        };
        self.begin_extension(extension, header.size()?)?;
        Ok(None)
    }

    fn begin_extension(&mut self, kind: Extension, size: u64) -> Result<(), Problem> {
        let limit = self.limits.header_bytes;
        let length =
            usize::try_from(size).ok().filter(|&length| length <= limit).ok_or(Problem::HeaderTooLarge(size))?;
        let again = match kind {
            Extension::Local => self.extended.pax.is_some(),
            Extension::LongName => self.extended.long_name.is_some(),
            Extension::LongLink => self.extended.long_link.is_some(),
            // Between the headers of one entry it would be unclear which entry it is meant for.
            Extension::Global => self.extended.is_pending(),
        };
        if again {
            return Err(Problem::Contradiction);
        }
        // Room for what will be there in good archives; the size itself may be a lie.
        self.state = State::Extension { kind, remaining: size, bytes: Vec::with_capacity(length.min(4096)) };
        Ok(())
    }

    fn end_extension(&mut self) -> Result<(), Problem> {
        let State::Extension { kind, bytes, .. } = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(());
        };
        match kind {
            Extension::Local => self.extended.pax = Some(Pax::local(&bytes)?),
            Extension::Global => self.global.add_global(&bytes)?,
            Extension::LongName => {
                self.extended.long_name = Some(c_string(&bytes).ok_or(Problem::Nul("path"))?);
            }
            Extension::LongLink => {
                self.extended.long_link = Some(c_string(&bytes).ok_or(Problem::Nul("link target"))?);
            }
        }
        self.state = State::Data { remaining: 0, padding: padding(bytes.len() as u64) };
        Ok(())
    }

    fn begin_entry(&mut self, header: &Header<'_>, type_flag: u8, after: u64) -> Result<Option<Box<Entry>>, Problem> {
        let extended = std::mem::take(&mut self.extended);
        self.current = extended.path(header)?;
        let path = self.current.clone();
        let (mut entry, stored, sparse) = extended.into_entry(path, header, type_flag, &self.global)?;
        entry.offset = self.entry_offset;
        self.check_size(stored, after)?;
        if type_flag == b'S' {
            if sparse.is_present() || header.format() != Format::Gnu {
                return Err(Problem::Sparse("of an unknown form"));
            }
            return self.begin_sparse_slots(entry, header, stored, after);
        }
        if !sparse.is_present() {
            return Ok(Some(self.begin_data(entry, after, stored)));
        }
        if entry.kind != EntryKind::Regular {
            return Err(Problem::Sparse("not a regular file"));
        }
        self.begin_pax_sparse(entry, sparse, stored, after)
    }

    fn begin_sparse_slots(
        &mut self,
        mut entry: Box<Entry>,
        header: &Header<'_>,
        stored: u64,
        after: u64,
    ) -> Result<Option<Box<Entry>>, Problem> {
        let (slots, extended, size) = header.sparse()?;
        self.check_size(size, 0)?;
        entry.size = size;
        let mut map = Map::default();
        map.add_slots(slots)?;
        self.continue_sparse_slots(entry, stored, map, extended, after)
    }

    fn continue_sparse_slots(
        &mut self,
        mut entry: Box<Entry>,
        stored: u64,
        map: Map,
        extended: bool,
        after: u64,
    ) -> Result<Option<Box<Entry>>, Problem> {
        if map.byte_size() > self.limits.header_bytes.saturating_mul(HEAD_MAP_FACTOR) {
            return Err(Problem::Sparse("too many pieces"));
        }
        if extended {
            self.state = State::SparseSlots { entry, stored, map };
            return Ok(None);
        }
        entry.sparse = Some(map.place(entry.size, after, stored)?);
        Ok(Some(self.begin_data(entry, after, stored)))
    }

    fn begin_pax_sparse(
        &mut self,
        mut entry: Box<Entry>,
        sparse: PaxSparse,
        stored: u64,
        after: u64,
    ) -> Result<Option<Box<Entry>>, Problem> {
        let size = sparse.real_size.ok_or(Problem::Sparse("without a size"))?;
        self.check_size(size, 0)?;
        entry.size = size;
        match (sparse.major, sparse.minor, sparse.map) {
            (Some(1), Some(0), None) => {
                self.state = State::SparseHead { entry, stored, map: HeadMap::new() };
                Ok(None)
            }
            (None, None, Some(numbers)) | (Some(0), Some(0 | 1), Some(numbers)) => {
                let map = Map::new(numbers);
                if sparse.block_count != Some(map.segment_count() as u64) {
                    return Err(Problem::Sparse("wrong number of pieces"));
                }
                entry.sparse = Some(map.place(size, after, stored)?);
                Ok(Some(self.begin_data(entry, after, stored)))
            }
            _ => Err(Problem::Sparse("of an unknown form")),
        }
    }

    fn begin_data(&mut self, mut entry: Box<Entry>, start: u64, stored: u64) -> Box<Entry> {
        entry.data = start..start + stored;
        self.state = State::Data { remaining: stored, padding: padding(stored) };
        entry
    }

    /// Checks a length before anything is added to it. `start` is where so many bytes would begin.
    fn check_size(&self, size: u64, start: u64) -> Result<(), Problem> {
        let fits = size <= self.limits.file_size && start.checked_add(size).is_some_and(|end| end < MAX_OFFSET);
        if fits { Ok(()) } else { Err(Problem::FileTooLarge(size)) }
    }
}

/// Takes up to `remaining` bytes off `input` and counts them.
fn take<'i>(input: &mut &'i [u8], remaining: &mut u64) -> &'i [u8] {
    let count = usize::try_from(*remaining).map_or(input.len(), |remaining| remaining.min(input.len()));
    let (part, rest) = input.split_at(count);
    *input = rest;
    *remaining -= count as u64;
    part
}

/// Returns how many bytes fill up the last block of `size` bytes.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// Returns the text before the first NUL; `None` if there is more than NULs behind it.
fn c_string(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes[end..].iter().all(|&byte| byte == 0).then(|| bytes[..end].to_vec())
}

/// Maps outside of extended headers may be so many times as large as one.
const HEAD_MAP_FACTOR: usize = 16;
/// No archive reaches this offset; it leaves room for what is added.
const MAX_OFFSET: u64 = 1 << 62;
