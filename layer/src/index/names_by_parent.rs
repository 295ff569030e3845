//! Sorting the names of a layer by directory, in memory or not.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use super::draft_names::DraftName;
use crate::table::{Scratch, ScratchError, Table};

/// The ids of all names, directory by directory.
#[derive(Debug)]
pub(super) struct ByParent {
    start: Table<u32>,
    ids: Table<u32>,
}

impl ByParent {
    /// Returns where the ids of a directory's names are.
    pub(super) fn of(&mut self, directory: u32) -> Result<Range<usize>, ScratchError> {
        let directory = directory as usize;
        Ok(self.start.get(directory)? as usize..self.start.get(directory + 1)? as usize)
    }

    pub(super) fn id(&mut self, place: usize) -> Result<u32, ScratchError> {
        self.ids.get(place)
    }
}

/// Sorts the ids of all names by directory, and within one by name.
pub(super) fn by_parent(
    names: &mut Table<DraftName>,
    bytes: &mut Table<u8>,
    directories: usize,
    scratch: Option<&Scratch>,
) -> Result<ByParent, ScratchError> {
    let mut start = Table::filled(scratch, directories + 1, 0_u32)?;
    for id in 0..names.len() {
        start.update(names.get(id)?.parent as usize + 1, |count| *count += 1)?;
    }
    let mut next = Table::new(scratch)?;
    let mut sum = 0;
    for directory in 0..start.len() {
        sum += start.get(directory)?;
        start.set(directory, sum)?;
        next.push(sum)?;
    }
    let mut ids = Table::filled(scratch, names.len(), 0_u32)?;
    for id in 0..names.len() {
        let parent = names.get(id)?.parent as usize;
        let place = next.get(parent)?;
        next.set(parent, place + 1)?;
        // There are not more names than ids.
        ids.set(place as usize, u32::try_from(id).unwrap_or(u32::MAX))?;
    }
    drop(next);
    let mut sorting = Sorting { names, bytes, scratch };
    let mut end = start.get(0)?;
    for directory in 0..directories {
        let first = std::mem::replace(&mut end, start.get(directory + 1)?);
        sorting.sort(&mut ids, first as usize..end as usize)?;
    }
    Ok(ByParent { start, ids })
}

struct Sorting<'a> {
    names: &'a mut Table<DraftName>,
    bytes: &'a mut Table<u8>,
    scratch: Option<&'a Scratch>,
}

impl Sorting<'_> {
    /// Sorts the ids of one directory's names.
    fn sort(&mut self, ids: &mut Table<u32>, range: Range<usize>) -> Result<(), ScratchError> {
        if let (Table::Memory(ids), Table::Memory(names), Table::Memory(bytes)) =
            (&mut *ids, &*self.names, &*self.bytes)
        {
            let name = |id: &u32| {
                let (offset, length) = names[*id as usize].place();
                &bytes[offset..offset + length]
            };
            ids[range].sort_unstable_by(|a, b| name(a).cmp(name(b)));
            return Ok(());
        }
        let mut runs = Vec::new();
        let mut first = range.start;
        while first < range.end {
            let end = self.sort_run(ids, first..range.end)?;
            runs.push(first..end);
            first = end;
        }
        if runs.len() > 1 { self.merge(ids, range.start, runs) } else { Ok(()) }
    }

    /// Sorts as many ids from the beginning of a range on as may be in memory, and returns where they end.
    fn sort_run(&mut self, ids: &mut Table<u32>, range: Range<usize>) -> Result<usize, ScratchError> {
        let mut run: Vec<(Vec<u8>, u32)> = Vec::new();
        let mut taken = 0;
        for place in range.clone() {
            if taken > RUN {
                break;
            }
            let id = ids.get(place)?;
            let name = self.name(id)?;
            taken += name.len() + OVERHEAD;
            run.push((name, id));
        }
        run.sort_unstable();
        for (place, (_, id)) in (range.start..).zip(&run) {
            ids.set(place, *id)?;
        }
        Ok(range.start + run.len())
    }

    /// Merges sorted runs that follow each other from `start` on.
    fn merge(&mut self, ids: &mut Table<u32>, start: usize, runs: Vec<Range<usize>>) -> Result<(), ScratchError> {
        let mut sorted = Table::new(self.scratch)?;
        let mut runs: Vec<Run> = runs.into_iter().map(|left| Run { left, ahead: VecDeque::new() }).collect();
        let mut heads = BinaryHeap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            let head = self.next_of(ids, run)?;
            heads.extend(head.map(|(name, id)| Reverse((name, number, id))));
        }
        while let Some(Reverse((_, number, id))) = heads.pop() {
            sorted.push(id)?;
            let head = self.next_of(ids, &mut runs[number])?;
            heads.extend(head.map(|(name, id)| Reverse((name, number, id))));
        }
        for place in 0..sorted.len() {
            ids.set(start + place, sorted.get(place)?)?;
        }
        Ok(())
    }

    /// Takes the next name out of a run.
    fn next_of(&mut self, ids: &mut Table<u32>, run: &mut Run) -> Result<Option<(Vec<u8>, u32)>, ScratchError> {
        if run.ahead.is_empty() {
            for place in run.left.by_ref().take(AHEAD) {
                let id = ids.get(place)?;
                run.ahead.push_back((self.name(id)?, id));
            }
        }
        Ok(run.ahead.pop_front())
    }

    fn name(&mut self, id: u32) -> Result<Vec<u8>, ScratchError> {
        let (offset, length) = self.names.get(id as usize)?.place();
        let mut name = Vec::with_capacity(length);
        if let Table::Memory(bytes) = self.bytes {
            name.extend_from_slice(&bytes[offset..offset + length]);
        } else {
            self.bytes.range(offset, length, &mut name)?;
        }
        Ok(name)
    }
}

/// What is left of a sorted run, and the names that were read ahead.
struct Run {
    left: Range<usize>,
    ahead: VecDeque<(Vec<u8>, u32)>,
}

/// How many bytes of names, each with what it costs beside, are sorted at once.
const RUN: usize = if cfg!(test) { 4 << 10 } else { 4 << 20 };
const OVERHEAD: usize = 64;
/// How many names of a run are read at once.
const AHEAD: usize = 16;
