//! What folders as lower leave to the next server: all that is known of each node, in which order filesystems were met, and
//! what a walk over a whole layer has found.

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::linked::{Copied, Copies};
use super::{Node, Source};
use crate::backing::Identity;
use crate::node::{Device, Ino, Stat, Timestamp, kind_of, permission_bits};
use crate::survive::{Keep, RecordId};

/// The way to the next server.
#[derive(Debug, Default)]
pub(super) struct Kept {
    keep: OnceLock<Arc<Keep>>,
    devices: Mutex<Option<RecordId>>,
}

/// What a record of the last server says.
pub(super) enum Restored {
    /// The filesystems that were met.
    Devices(Vec<u64>),
    Node(Box<Node>),
    /// The copies of files with several names in a layer.
    Copies(u16, Copies),
}

impl Kept {
    pub(super) fn start(&self, keep: &Arc<Keep>) {
        let _ = self.keep.set(Arc::clone(keep));
    }

    /// Writes a node; the caller holds its places.
    pub(super) fn write_node(&self, node: &Node, places: &[(Ino, Box<[u8]>)]) {
        // The root is found again without.
        let Some(keep) = self.keep.get().filter(|_| node.stat.ino != Ino::ROOT) else { return };
        let mut writer = Writer(vec![NODE]);
        writer.stat(&node.stat);
        writer.numbers(&[node.identity.device, node.identity.ino, node.complete.into(), node.sources.len() as u64]);
        for Source { layer, path, impure } in &node.sources {
            writer.numbers(&[(*layer).into(), (*impure).into()]);
            writer.text(path);
        }
        for (parent, name) in places {
            writer.numbers(&[parent.0]);
            writer.text(name);
        }
        if let Some(record) = keep.memory().put(node.record.get().copied(), &writer.0) {
            let _ = node.record.set(record);
        }
    }

    /// Writes the filesystems that were met.
    pub(super) fn write_devices(&self, devices: &[u64]) {
        let Some(keep) = self.keep.get() else { return };
        let mut record = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let mut writer = Writer(vec![DEVICES]);
        writer.numbers(devices);
        *record = keep.memory().put(*record, &writer.0);
    }

    /// Writes the copies of files with several names in a layer. Without, the next server would have to search for them
    /// while somebody waits.
    pub(super) fn write_copies(&self, layer: u16, copies: &Copies) {
        let Some(keep) = self.keep.get() else { return };
        let mut writer = Writer(vec![COPIES]);
        writer.numbers(&[layer.into()]);
        for (ino, Copied { path, names, left }) in copies {
            writer.numbers(&[ino.0, (*names).into(), (*left).into()]);
            writer.text(path);
        }
        // Rather than take the room that everything else needs.
        if writer.0.len() <= COPIES_MAX {
            keep.memory().put(None, &writer.0);
        }
    }

    pub(super) fn remove(&self, record: Option<RecordId>) {
        if let (Some(keep), Some(record)) = (self.keep.get(), record) {
            keep.memory().remove(record);
        }
    }

    /// Reads a record of the last server; `None` if it is not of folders.
    pub(super) fn decode(&self, record: RecordId, bytes: &[u8]) -> Option<Restored> {
        match bytes.split_first()? {
            (&DEVICES, rest) => {
                *self.devices.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
                let mut reader = Reader(rest);
                Some(Restored::Devices(std::iter::from_fn(|| reader.number()).collect()))
            }
            (&NODE, rest) => {
                let node = node(&mut Reader(rest))?;
                let _ = node.record.set(record);
                Some(Restored::Node(Box::new(node)))
            }
            (&COPIES, rest) => copies(&mut Reader(rest)),
            _ => None,
        }
    }
}

fn node(reader: &mut Reader<'_>) -> Option<Node> {
    let stat = reader.stat()?;
    let identity = Identity { device: reader.number()?, ino: reader.number()? };
    let complete = reader.number()? == 1;
    let count = reader.number()?;
    let source = |_| {
        let (layer, impure) = (u16::try_from(reader.number()?).ok()?, reader.number()? == 1);
        Some(Source { layer, path: reader.text()?.into(), impure })
    };
    let sources: Vec<Source> = (0..count).map(source).collect::<Option<_>>()?;
    let mut places = Vec::new();
    while let Some(parent) = reader.number() {
        places.push((Ino(parent), reader.text()?.into()));
    }
    Some(Node {
        stat,
        identity,
        sources: sources.into(),
        complete,
        places: Mutex::new(places),
        children: OnceLock::new(),
        references: AtomicU64::new(0),
        searches: AtomicU32::new(0),
        record: OnceLock::new(),
    })
}

fn copies(reader: &mut Reader<'_>) -> Option<Restored> {
    let layer = u16::try_from(reader.number()?).ok()?;
    let mut copies = Copies::new();
    while let Some(ino) = reader.number() {
        let (names, left) = (reader.small()?, reader.small()?);
        copies.insert(Ino(ino), Copied { path: reader.text()?.into(), names, left });
    }
    Some(Restored::Copies(layer, copies))
}

struct Writer(Vec<u8>);

impl Writer {
    /// Most numbers are small, and there is a record for each node: seven bits in a byte, the lowest first, and the eighth
    /// says whether there are more.
    fn numbers(&mut self, numbers: &[u64]) {
        for number in numbers {
            let mut rest = *number;
            while rest > 0x7f {
                self.0.push(rest.to_le_bytes()[0] | 0x80);
                rest >>= 7;
            }
            self.0.push(rest.to_le_bytes()[0]);
        }
    }

    fn text(&mut self, text: &[u8]) {
        self.numbers(&[text.len() as u64]);
        self.0.extend_from_slice(text);
    }

    fn stat(&mut self, stat: &Stat) {
        let Stat { ino, nlink, uid, gid, size, blocks, block_size, device, atime, mtime, ctime, birth, .. } = *stat;
        self.numbers(&[
            ino.0,
            stat.mode().into(),
            nlink.into(),
            uid.into(),
            gid.into(),
            size,
            blocks,
            block_size.into(),
        ]);
        self.numbers(&[device.major.into(), device.minor.into(), birth.is_some().into()]);
        for Timestamp { seconds, nanoseconds } in [atime, mtime, ctime, birth.unwrap_or_default()] {
            self.numbers(&[seconds.cast_unsigned(), nanoseconds.into()]);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> Option<u64> {
        let length = self.0.iter().position(|byte| byte & 0x80 == 0)? + 1;
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        let seven_more = |number: u64, byte: &u8| number << 7 | u64::from(byte & 0x7f);
        (length <= 10).then(|| bytes.iter().rev().fold(0, seven_more))
    }

    fn small(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text.to_vec())
    }

    fn time(&mut self) -> Option<Timestamp> {
        Some(Timestamp { seconds: self.number()?.cast_signed(), nanoseconds: self.small()? })
    }

    fn stat(&mut self) -> Option<Stat> {
        let (ino, mode) = (Ino(self.number()?), self.small()?);
        let (nlink, uid, gid) = (self.small()?, self.small()?, self.small()?);
        let (size, blocks, block_size) = (self.number()?, self.number()?, self.small()?);
        let device = Device { major: self.small()?, minor: self.small()? };
        let born = self.number()? == 1;
        let [atime, mtime, ctime, birth] = [self.time()?, self.time()?, self.time()?, self.time()?];
        Some(Stat {
            ino,
            kind: kind_of(mode)?,
            permissions: permission_bits(mode),
            nlink,
            uid,
            gid,
            size,
            blocks,
            block_size,
            device,
            atime,
            mtime,
            ctime,
            birth: born.then_some(birth),
        })
    }
}

/// Begin a record.
const NODE: u8 = b'n';
const DEVICES: u8 = b'd';
const COPIES: u8 = b'c';
/// Most bytes for the copies in one layer: those of about a million files.
const COPIES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Kind;

    #[test]
    fn what_was_written_reads_back() {
        let time = |seconds| Timestamp { seconds, nanoseconds: 5 };
        let stat = Stat {
            ino: Ino(1 << 50),
            kind: Kind::Regular,
            permissions: 0o4755,
            nlink: 2,
            uid: 1,
            gid: 2,
            size: 3,
            blocks: 4,
            block_size: 4096,
            device: Device { major: 8, minor: 1 },
            atime: time(-1),
            mtime: time(2),
            ctime: time(3),
            birth: Some(time(4)),
        };
        let keep = Arc::new(Keep::new().unwrap());
        let kept = Kept::default();
        kept.start(&keep);
        let made = Node {
            stat,
            identity: Identity { device: 6, ino: 7 },
            sources: vec![Source { layer: 3, path: b"a/b".to_vec().into(), impure: true }].into(),
            complete: true,
            places: Mutex::new(vec![(Ino(9), vec![0xff; 255].into()), (Ino(10), b"x".to_vec().into())]),
            children: OnceLock::new(),
            references: AtomicU64::new(0),
            searches: AtomicU32::new(0),
            record: OnceLock::new(),
        };
        kept.write_node(&made, &made.places.lock().unwrap());
        kept.write_devices(&[4, u64::MAX, 0x80]);
        let copied = |left| Copied { path: b"a/b".to_vec().into(), names: 2, left };
        let copies = || Copies::from([(Ino(300), copied(1)), (Ino(u64::MAX), copied(0))]);
        kept.write_copies(2, &copies());
        let (mut nodes, mut devices, mut found_copies) = (Vec::new(), Vec::new(), None);
        keep.memory().for_each_record(&mut |record, bytes| match kept.decode(record, bytes).unwrap() {
            Restored::Node(node) => nodes.push(*node),
            Restored::Devices(found) => devices = found,
            Restored::Copies(layer, found) => found_copies = Some((layer, found)),
        });
        assert_eq!(found_copies, Some((2, copies())));
        assert_eq!(format!("{:?}", nodes[0]), format!("{made:?}"));
        assert_eq!((nodes.len(), devices), (1, vec![4, u64::MAX, 0x80]));
    }
}
