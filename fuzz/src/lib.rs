//! What the targets share: reading everything that an index has.

#![forbid(unsafe_code)]

use std::hint::black_box;

use strata_layer::index::{Index, NodeId};
use strata_layer::ingest::{IngestedLayer, LayerError, LayerIngest};
use strata_layer::tar::Limits;

/// Asks an index everything about every node, damaged or not; nothing may panic or loop for ever.
pub fn read_everything(index: &Index) {
    black_box((index.layer_count(), index.inode_count(), index.entry_count(), index.total_size()));
    for position in 0..index.layer_count().min(300) {
        black_box(index.layer(position));
    }
    let beyond = [index.inode_count(), u32::MAX - 1, u32::MAX].map(NodeId::from_u32);
    for node in index.nodes().take(10_000).chain(beyond) {
        black_box((index.attributes(node), index.parent(node), index.origin(node), index.object(node)));
        black_box((index.symlink_target(node), index.foreign_link(node)));
        black_box((index.is_opaque(node), index.is_implicit(node)));
        black_box(index.xattrs(node).take(1000).count());
        black_box(index.extents(node).take(1000).count());
        black_box(index.extents(node).skip_to(4096).next());
        let children = index.children(node);
        for child in children.clone().take(1000) {
            black_box(index.lookup(node, child.name));
        }
        black_box(children.clone().skip_to(1).position());
        black_box(children.rev().take(10).count());
        black_box(index.lookup(node, b"no such name"));
    }
}

/// What must hold for an index that was just built or merged: it is whole, and every name is found under its folder.
pub fn check(index: &Index) {
    index.verify().expect("an index that was just built is whole");
    for node in index.nodes() {
        let attributes = index.attributes(node).expect("every node has attributes");
        let children = index.children(node);
        let mut previous: Option<&[u8]> = None;
        for child in children {
            assert!(previous.is_none_or(|previous| previous < child.name), "names are sorted and occur once");
            previous = Some(child.name);
            if !child.whiteout {
                assert_eq!(index.lookup(node, child.name), Some(child.node));
                assert!(index.attributes(child.node).is_some());
            }
        }
        let mut end = 0;
        for extent in index.extents(node) {
            assert!(extent.offset >= end && extent.length > 0, "extents ascend and do not overlap");
            end = extent.offset + extent.length;
            assert!(end <= attributes.size, "extents end within the file");
        }
    }
    read_everything(index);
}

/// Takes in a layer that arrives in pieces.
pub fn ingest<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<IngestedLayer, LayerError> {
    let mut ingest = LayerIngest::new(Limits::default());
    for piece in pieces {
        ingest.push(piece)?;
    }
    ingest.finish()
}

/// Gives every header its right checksum, so that changed headers get past that and deeper into the reader.
pub fn repair(tar: &[u8]) -> Vec<u8> {
    let mut tar = tar.to_vec();
    let mut start = 0;
    while let Some(header) = tar.get_mut(start..start + 512) {
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits =
            header[124..136].iter().skip_while(|&&byte| byte == b' ').take_while(|byte| (b'0'..b'8').contains(byte));
        let size = digits.fold(0_usize, |size, &digit| size * 8 + usize::from(digit - b'0'));
        let has_data = !matches!(header[156], b'1'..=b'6');
        start += 512 + if has_data { size.next_multiple_of(512) } else { 0 };
    }
    tar
}
