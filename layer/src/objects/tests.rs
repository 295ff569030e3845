//! Random files through placing, the table, and a reader of tables that was written from the format's description.

use proptest::prelude::*;

use super::{BLOCK, ObjectPlacer, SLOT, Segment, TableBuilder};

/// A file of a tar: how long its pieces are, alternately data and hole, in blocks; and how much the last one lacks.
#[derive(Clone, Debug)]
struct Shape {
    starts_with_hole: bool,
    pieces: Vec<u64>,
    short: u64,
    /// Bytes by which the data is out of step with the blocks of the tar, which makes it no object.
    skew: u64,
}

fn shape() -> impl Strategy<Value = Shape> {
    let piece = prop_oneof![1..4u64, 1..200u64, Just(8), Just(2048)];
    let skew = prop_oneof![9 => Just(0), 1 => 1..BLOCK];
    (any::<bool>(), prop::collection::vec(piece, 0..6), 0..BLOCK, skew)
        .prop_map(|(starts_with_hole, pieces, short, skew)| Shape { starts_with_hole, pieces, short, skew })
}

struct File {
    content: Vec<u8>,
    segments: Vec<Segment>,
    nid: Option<u64>,
}

/// Adds a file to the tar as an archiver would.
fn store(shape: &Shape, tar: &mut Vec<u8>, placer: &mut ObjectPlacer) -> File {
    tar.resize(tar.len() + 512 + length(shape.skew), 0xee);
    let (mut content, mut segments) = (Vec::new(), Vec::new());
    for (number, blocks) in shape.pieces.iter().enumerate() {
        let is_last = number + 1 == shape.pieces.len();
        let bytes = blocks * BLOCK - if is_last { shape.short } else { 0 };
        let offset = content.len() as u64;
        if (number % 2 == 0) == shape.starts_with_hole {
            content.resize(content.len() + length(bytes), 0);
        } else {
            let data: Vec<u8> = (0..bytes).map(|at| (at * 31 + tar.len() as u64 / 7 + 1).to_le_bytes()[0]).collect();
            segments.push(Segment { offset, length: bytes, source: tar.len() as u64 });
            tar.extend_from_slice(&data);
            content.extend_from_slice(&data);
        }
    }
    tar.resize(tar.len().next_multiple_of(512), 0xee);
    let nid = placer.place(content.len() as u64, segments.iter().copied());
    File { content, segments, nid }
}

/// Reads the file `nid` as the kernel would.
fn read(table: &[u8], tar: &[u8], nid: u64) -> Vec<u8> {
    let inode = &table[1536 + length(nid * SLOT)..];
    let word = |at: usize| u64::from(u32::from_le_bytes(inode[at..at + 4].try_into().unwrap()));
    let device = &table[128 * usize::from(u16::from_le_bytes([table[1112], table[1113]]))..];
    let start = u64::from(u32::from_le_bytes(device[68..72].try_into().unwrap()));
    let copy = |content: &mut Vec<u8>, block: u64, bytes: u64| {
        content.extend_from_slice(&tar[length(block * BLOCK)..length(block * BLOCK + bytes)]);
    };
    assert_eq!(&inode[4..6], &(0o100_444u16).to_le_bytes());
    let mut content = Vec::new();
    match u16::from_le_bytes([inode[0], inode[1]]) {
        0 => copy(&mut content, word(16) - start, word(8)),
        1 => copy(&mut content, word(16) - start, word(8) | word(12) << 32),
        9 => {
            let size = word(8) | word(12) << 32;
            assert_eq!(word(16) & !0x1f, 0x20);
            let chunk = BLOCK << (word(16) & 0x1f);
            for number in 0..size.div_ceil(chunk) {
                let bytes = chunk.min(size - number * chunk);
                match word(64 + 8 * length(number) + 4) {
                    0xffff_ffff => content.resize(content.len() + length(bytes), 0),
                    block => copy(&mut content, block, bytes),
                }
            }
        }
        format => panic!("format {format}"),
    }
    content
}

fn length(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

proptest! {
    #[test]
    fn files_read_back_through_the_table(shapes in prop::collection::vec(shape(), 0..20)) {
        let (mut tar, mut placer) = (Vec::new(), ObjectPlacer::new());
        let files: Vec<_> = shapes.iter().map(|shape| store(shape, &mut tar, &mut placer)).collect();
        let mut builder = TableBuilder::new(tar.len() as u64);
        // In any order: an index may number its files differently.
        for file in files.iter().rev() {
            if let Some(nid) = file.nid {
                builder.add(nid, file.content.len() as u64, &file.segments).unwrap();
            }
        }
        let table = builder.finish(b"owner");
        prop_assert!(table.len() <= tar.len() + 8192);
        for (shape, file) in shapes.iter().zip(&files) {
            match file.nid {
                Some(nid) => prop_assert_eq!(&read(&table, &tar, nid), &file.content),
                // Only for a reason.
                None => prop_assert!(shape.skew != 0 || file.content.is_empty() || file.segments.len() != 1
                    || file.segments[0].length != file.content.len() as u64),
            }
        }
    }
}
