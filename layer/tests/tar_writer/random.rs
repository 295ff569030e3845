//! Random entries through the writer and our parser.

use std::collections::BTreeMap;

use proptest::prelude::*;
use strata_layer::index::{Attributes, Device, Index, Kind, NodeId, Timestamp};
use strata_layer::tar_writer::{TarEntry, TarKind, TarWriter};

use crate::{finish, index_of};

#[derive(Clone, Debug)]
enum Content {
    Directory,
    /// Data and holes in turn, in blocks.
    Regular(Vec<u8>),
    Symlink(Vec<u8>),
    Device(Kind, Device),
    Fifo,
}

#[derive(Clone, Debug)]
struct Item {
    content: Content,
    permissions: u16,
    ids: (u32, u32),
    mtime: Timestamp,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Mostly around the widths of fields, where mistakes are.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![1..20usize, 95..105usize, 150..160usize, 240..252usize]
}

fn bytes(length: impl Strategy<Value = usize>) -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![4 => b'a'..=b'z', 1 => any::<u8>().prop_filter("no part of a name", |byte| !b"\0/".contains(byte))];
    length.prop_flat_map(move |length| prop::collection::vec(byte.clone(), length))
}

/// A name that no marker and no parent has.
fn name() -> impl Strategy<Value = Vec<u8>> {
    bytes(length()).prop_map(|name| [b"f".to_vec(), name].concat())
}

fn content() -> impl Strategy<Value = Content> {
    let number = prop_oneof![0..300u32, Just(1 << 20)];
    let device = (number.clone(), number).prop_map(|(major, minor)| Device { major, minor });
    prop_oneof![
        Just(Content::Directory),
        prop_oneof![0..20usize, 500..520usize, 5000..5010usize].prop_map(|size| Content::Regular(vec![b'c'; size])),
        bytes(length()).prop_map(Content::Symlink),
        (prop_oneof![Just(Kind::CharDevice), Just(Kind::BlockDevice)], device)
            .prop_map(|(kind, device)| Content::Device(kind, device)),
        Just(Content::Fifo),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let id = || prop_oneof![0..10u32, 2_097_140..2_097_160u32, any::<u32>()];
    let seconds =
        prop_oneof![-3..3i64, 0..2_000_000_000i64, (8i64 << 30) - 2..(8i64 << 30) + 2, -(1i64 << 40)..(1i64 << 40)];
    let mtime = (seconds, prop_oneof![Just(0), 0..1_000_000_000u32]);
    let xattr = ("user\\.[a-z]{1,20}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..200));
    (content(), 0..0o10000u16, (id(), id()), mtime, prop::collection::btree_map(xattr.0, xattr.1, 0..3)).prop_map(
        |(content, permissions, ids, (seconds, nanoseconds), xattrs)| {
            let mtime = Timestamp { seconds, nanoseconds };
            Item { content, permissions, ids, mtime, xattrs }
        },
    )
}

fn write(tree: &BTreeMap<Vec<u8>, Item>) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (path, item) in tree {
        let xattrs: Vec<(&[u8], &[u8])> = item.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let (kind, mut data) = match &item.content {
            Content::Directory => (TarKind::Directory, &[][..]),
            Content::Regular(data) => (TarKind::Regular { size: data.len() as u64 }, &data[..]),
            Content::Symlink(target) => (TarKind::Symlink { target }, &[][..]),
            Content::Device(Kind::CharDevice, device) => (TarKind::CharDevice(*device), &[][..]),
            Content::Device(_, device) => (TarKind::BlockDevice(*device), &[][..]),
            Content::Fifo => (TarKind::Fifo, &[][..]),
        };
        let entry = TarEntry {
            path,
            kind,
            permissions: item.permissions,
            uid: item.ids.0,
            gid: item.ids.1,
            mtime: item.mtime,
            xattrs: &xattrs,
        };
        writer.append_with(&entry, &mut data).unwrap();
    }
    finish(writer)
}

fn check(index: &Index, tar: &[u8], path: &[u8], item: &Item) -> Result<(), TestCaseError> {
    let mut node = NodeId::ROOT;
    for name in path.split(|byte| *byte == b'/') {
        node = index.lookup(node, name).unwrap();
    }
    let found = index.attributes(node).unwrap();
    let (kind, size, device) = match &item.content {
        Content::Directory => (Kind::Directory, 0, Device::default()),
        Content::Regular(data) => (Kind::Regular, data.len() as u64, Device::default()),
        Content::Symlink(target) => (Kind::Symlink, target.len() as u64, Device::default()),
        Content::Device(kind, device) => (*kind, 0, *device),
        Content::Fifo => (Kind::Fifo, 0, Device::default()),
    };
    // The mode of a symbolic link means nothing.
    let permissions = if kind == Kind::Symlink { 0o777 } else { item.permissions };
    let ((uid, gid), mtime) = (item.ids, item.mtime);
    let expected = Attributes { kind, permissions, uid, gid, nlink: found.nlink, size, mtime, device };
    prop_assert_eq!(found, expected);
    let xattrs: BTreeMap<_, _> = index.xattrs(node).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    prop_assert_eq!(&xattrs, &item.xattrs);
    match &item.content {
        Content::Symlink(target) => prop_assert_eq!(index.symlink_target(node), Some(&target[..])),
        Content::Regular(data) => {
            let read: Vec<u8> = index
                .extents(node)
                .flat_map(|extent| {
                    &tar[usize::try_from(extent.source).unwrap()..][..usize::try_from(extent.length).unwrap()]
                })
                .copied()
                .collect();
            prop_assert_eq!(&read, data);
        }
        _ => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        parents in prop::collection::vec((name(), item()), 1..3),
        items in prop::collection::vec((any::<prop::sample::Index>(), name(), item()), 0..12),
    ) {
        let mut tree = BTreeMap::new();
        for (name, parent) in &parents {
            tree.insert([&b"d"[..], name].concat(), Item { content: Content::Directory, ..parent.clone() });
        }
        for (parent, name, item) in items {
            let parent = &parents[parent.index(parents.len())].0;
            tree.insert([&b"d"[..], parent, b"/", &name].concat(), item);
        }
        let tar = write(&tree);
        let index = index_of(&tar);
        index.verify().unwrap();
        prop_assert_eq!(index.inode_count() as usize, tree.len() + 1);
        for (path, item) in &tree {
            check(&index, &tar, path, item)?;
        }
    }
}
