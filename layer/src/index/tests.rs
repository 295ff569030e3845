use super::*;
use crate::objects::Segment;
use crate::{DiffId, Digest};

fn layer() -> Layer {
    Layer { diff_id: DiffId(Digest::of(b"layer")), tar_size: 1 << 20 }
}

fn metadata(permissions: u16) -> Metadata {
    Metadata { permissions, ..Metadata::default() }
}

fn build(fill: impl FnOnce(&mut Builder) -> Result<(), BuildError>) -> Index {
    let mut builder = Builder::new();
    fill(&mut builder).unwrap();
    let bytes = builder.finish(layer()).unwrap().into_bytes().unwrap();
    let index = Index::from_bytes(bytes).unwrap();
    index.verify().unwrap();
    index
}

/// Walks the whole tree and writes one line per entry.
fn listing(index: &Index) -> String {
    let mut lines = Vec::new();
    let mut directories = vec![(NodeId::ROOT, String::new())];
    while let Some((directory, path)) = directories.pop() {
        for child in index.children(directory) {
            let path = format!("{path}/{}", child.name.escape_ascii());
            if child.whiteout {
                lines.push(format!("{path} whiteout"));
                continue;
            }
            let Attributes { kind, permissions, nlink, size, .. } = index.attributes(child.node).unwrap();
            let mut line = format!("{path} {kind:?} {permissions:o} {nlink} {size}");
            if index.is_implicit(child.node) {
                line += " implicit";
            }
            if index.is_opaque(child.node) {
                line += " opaque";
            }
            if let Some(target) = index.symlink_target(child.node).or(index.foreign_link(child.node)) {
                line += &format!(" -> {}", target.escape_ascii());
            }
            lines.push(line);
            if child.kind == Kind::Directory {
                directories.push((child.node, path));
            }
        }
    }
    lines.sort();
    lines.join("\n")
}

fn file(builder: &mut Builder, path: &str, size: u64) -> Result<(), BuildError> {
    let segments = [Segment { offset: 0, length: size, source: 512 }];
    builder.add(path.as_bytes(), metadata(0o644), Content::Regular { size, segments: &segments })
}

fn directory(builder: &mut Builder, path: &str) -> Result<(), BuildError> {
    builder.add(path.as_bytes(), metadata(0o700), Content::Directory)
}

#[test]
fn an_empty_layer_has_a_root() {
    let index = build(|_| Ok(()));
    assert_eq!((index.inode_count(), index.entry_count(), index.layer_count()), (1, 0, 1));
    assert_eq!(index.layer(0), Some(layer()));
    assert_eq!(index.layer(1), None);
    assert_eq!(index.parent(NodeId::ROOT), Some(NodeId::ROOT));
    assert_eq!(index.lookup(NodeId::ROOT, b"x"), None);
    let attributes = index.attributes(NodeId::ROOT).unwrap();
    assert_eq!((attributes.kind, attributes.permissions, attributes.nlink), (Kind::Directory, 0o755, 2));
    assert!(index.is_implicit(NodeId::ROOT));
}

#[test]
fn every_kind_keeps_its_attributes() {
    let mtime = Timestamp { seconds: -5, nanoseconds: 999_999_999 };
    let xattrs = vec![(b"user.b".to_vec(), vec![0; 70_000]), (b"user.a".to_vec(), vec![])];
    let full = Metadata { permissions: 0o7123, uid: u32::MAX - 1, gid: 3_000_000_000, mtime, xattrs };
    let device = Device { major: 4095, minor: 1_048_575 };
    let index = build(|builder| {
        builder.add(b"./", full.clone(), Content::Directory)?;
        builder.add(b"c", full.clone(), Content::CharDevice(device))?;
        builder.add(b"b", full.clone(), Content::BlockDevice(device))?;
        builder.add(b"f", full.clone(), Content::Fifo)?;
        builder.add(b"s", full.clone(), Content::Socket)?;
        builder.add(b"l", full.clone(), Content::Symlink { target: b"../../x" })?;
        builder.add(b"r", full.clone(), Content::Regular { size: 0, segments: &[] })
    });
    let root: Vec<_> = index.xattrs(NodeId::ROOT).map(|(name, _)| name).collect();
    assert_eq!(root, [b"user.a", b"user.b"]);
    for (name, kind) in [
        ("c", Kind::CharDevice),
        ("b", Kind::BlockDevice),
        ("f", Kind::Fifo),
        ("s", Kind::Socket),
        ("l", Kind::Symlink),
        ("r", Kind::Regular),
    ] {
        let node = index.lookup(NodeId::ROOT, name.as_bytes()).unwrap();
        let expected = Attributes {
            kind,
            permissions: 0o7123,
            uid: u32::MAX - 1,
            gid: 3_000_000_000,
            nlink: 1,
            size: if name == "l" { 7 } else { 0 },
            mtime,
            device: if matches!(name, "c" | "b") { device } else { Device::default() },
        };
        assert_eq!(index.attributes(node), Some(expected));
        let xattrs: Vec<_> = index.xattrs(node).collect();
        assert_eq!(xattrs, [(&b"user.a"[..], &b""[..]), (b"user.b", &[0; 70_000])]);
    }
    let link = index.lookup(NodeId::ROOT, b"l").unwrap();
    assert_eq!(index.symlink_target(link), Some(&b"../../x"[..]));
    // The attributes are there once.
    assert!(index.as_bytes().len() < 80_000);
}

#[test]
fn data_is_found_by_extents_and_object() {
    let segments = [
        Segment { offset: 4096, length: 4096, source: 1024 },
        Segment { offset: 12 * 4096, length: 100, source: 1024 + 4096 },
    ];
    let index = build(|builder| {
        builder.add(b"empty", metadata(0o644), Content::Regular { size: 0, segments: &[] })?;
        file(builder, "plain", 10)?;
        builder.add(b"sparse", metadata(0o644), Content::Regular { size: 100_000, segments: &segments })?;
        builder.add(b"hole", metadata(0o644), Content::Regular { size: 5, segments: &[] })
    });
    let node = |name: &str| index.lookup(NodeId::ROOT, name.as_bytes()).unwrap();
    assert_eq!(index.extents(node("empty")).next(), None);
    assert_eq!(index.object(node("empty")), None);
    assert_eq!(index.extents(node("hole")).next(), None);
    let plain: Vec<_> = index.extents(node("plain")).collect();
    assert_eq!(plain, [Extent { offset: 0, length: 10, layer: 0, source: 512 }]);
    assert!(index.object(node("plain")).is_some());
    let sparse: Vec<_> = index.extents(node("sparse")).collect();
    assert_eq!(sparse.len(), 2);
    assert_eq!(sparse[1], Extent { offset: 12 * 4096, length: 100, layer: 0, source: 1024 + 4096 });
    // The second segment ends at an odd place inside the file, which an object cannot express.
    assert_eq!(index.object(node("sparse")), None);
    for (offset, first) in [(0, 4096), (4096, 4096), (8191, 4096), (8192, 49152), (49251, 49152)] {
        assert_eq!(index.extents(node("sparse")).skip_to(offset).next().map(|extent| extent.offset), Some(first));
    }
    assert_eq!(index.extents(node("sparse")).skip_to(49252).next(), None);
    assert_eq!(index.total_size(), 10 + 100_000 + 5);
}

#[test]
fn children_are_sorted_and_have_positions() {
    let names: Vec<String> = (0..1000).map(|i| format!("{:x}", i * 7919 % 1000)).collect();
    let index = build(|builder| names.iter().try_for_each(|name| file(builder, &format!("d/{name}"), 1)));
    let directory = index.lookup(NodeId::ROOT, b"d").unwrap();
    let mut sorted: Vec<_> = names.iter().map(String::as_bytes).collect();
    sorted.sort_unstable();
    let children = index.children(directory);
    assert_eq!(children.len(), 1000);
    assert!(children.clone().map(|child| child.name).eq(sorted.iter().copied()));
    assert!(children.clone().rev().map(|child| child.name).eq(sorted.iter().rev().copied()));
    for position in [0, 1, 500, 999, 1000, u32::MAX] {
        let rest = index.children(directory).skip_to(position);
        assert_eq!(rest.position(), position.min(1000));
        assert!(rest.map(|child| child.name).eq(sorted.iter().skip(position as usize).copied()));
    }
    for name in sorted {
        assert!(index.lookup(directory, name).is_some());
    }
    assert_eq!(index.lookup(directory, b"zzz"), None);
    assert_eq!(index.lookup(NodeId::ROOT, b"1"), None);
}

#[test]
fn the_last_entry_of_a_path_wins() {
    let index = build(|builder| {
        directory(builder, "d")?;
        file(builder, "d/x", 1)?;
        file(builder, "d/x", 2)?;
        // A file removes the directory with what is in it; a directory after that starts empty and hides what is below.
        directory(builder, "e/f")?;
        file(builder, "e/f/g", 1)?;
        file(builder, "e", 3)?;
        directory(builder, "e")?;
        file(builder, "e/h", 4)?;
        // A directory over a directory changes attributes only.
        file(builder, "i/j", 5)?;
        directory(builder, "i")?;
        file(builder, "k/l", 6)?;
        file(builder, "k", 7)
    });
    assert_eq!(
        listing(&index),
        "/d Directory 700 2 0\n/d/x Regular 644 1 2\n/e Directory 700 2 0 opaque\n/e/h Regular 644 1 4\n\
         /i Directory 700 2 0\n/i/j Regular 644 1 5\n/k Regular 644 1 7"
    );
}

#[test]
fn hard_links_are_one_node() {
    let index = build(|builder| {
        file(builder, "a", 1)?;
        builder.hard_link(b"d/b", b"/a")?;
        builder.hard_link(b"c", b"d/b")?;
        file(builder, "a", 2)?;
        builder.hard_link(b"e", b"./below/x")?;
        builder.hard_link(b"f", b"e")
    });
    assert_eq!(
        listing(&index),
        "/a Regular 644 1 2\n/c Regular 644 2 1\n/d Directory 755 2 0 implicit\n/d/b Regular 644 2 1\n\
         /e Regular 0 2 0 -> below/x\n/f Regular 0 2 0 -> below/x"
    );
}

#[test]
fn markers_do_not_depend_on_the_order() {
    let fill = |builder: &mut Builder, order: [usize; 5]| {
        for step in order {
            match step {
                0 => builder.whiteout(b"a")?,
                1 => directory(builder, "a")?,
                2 => file(builder, "a/x", 1)?,
                3 => builder.opaque(b"b/c")?,
                _ => builder.whiteout(b"b/c/gone")?,
            }
        }
        Ok(())
    };
    let expected = "/a Directory 700 2 0 opaque\n/a/x Regular 644 1 1\n/b Directory 755 3 0 implicit\n\
                    /b/c Directory 755 2 0 implicit opaque\n/b/c/gone whiteout";
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        assert_eq!(listing(&build(|builder| fill(builder, order))), expected);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let mut builder = Builder::new();
    file(&mut builder, "file", 1).unwrap();
    directory(&mut builder, "dir").unwrap();
    builder.add(b"link", metadata(0o777), Content::Symlink { target: b"dir" }).unwrap();
    let symlink = |target| Content::Symlink { target };
    let regular = |size, segments| Content::Regular { size, segments };
    let overlap = [Segment { offset: 0, length: 2, source: 0 }, Segment { offset: 1, length: 2, source: 0 }];
    let twice = Metadata { xattrs: vec![(vec![1], vec![]), (vec![1], vec![])], ..Metadata::default() };
    assert_eq!(file(&mut builder, "file/x", 1), Err(BuildError::ParentNotDirectory));
    assert_eq!(file(&mut builder, "link/x", 1), Err(BuildError::ParentNotDirectory));
    assert_eq!(file(&mut builder, "/", 1), Err(BuildError::RootNotDirectory));
    assert_eq!(file(&mut builder, "", 1), Err(BuildError::Path(crate::path::InvalidPath::Empty)));
    assert_eq!(builder.hard_link(b"x", b"dir"), Err(BuildError::LinkToDirectory));
    assert_eq!(builder.hard_link(b"x", b"."), Err(BuildError::LinkToDirectory));
    assert_eq!(builder.hard_link(b"file", b"/file"), Err(BuildError::LinkToItself));
    assert_eq!(builder.hard_link(b".", b"file"), Err(BuildError::RootNotDirectory));
    assert_eq!(builder.hard_link(b"x", b"../y"), Err(BuildError::LinkTarget(crate::path::InvalidPath::Parent)));
    assert_eq!(builder.whiteout(b"./"), Err(BuildError::WhiteoutOfRoot));
    assert_eq!(builder.add(b"x", metadata(0), symlink(b"")), Err(BuildError::SymlinkTarget));
    assert_eq!(builder.add(b"x", metadata(0), symlink(&[b'x'; 4096])), Err(BuildError::SymlinkTarget));
    assert_eq!(builder.add(b"x", metadata(0), regular(3, &overlap)), Err(BuildError::Segments));
    assert_eq!(builder.add(b"x", metadata(0), regular(1, &overlap[..1])), Err(BuildError::Segments));
    assert_eq!(builder.add(b"x", twice, Content::Fifo), Err(BuildError::DuplicateXattr));
    // What failed has left nothing.
    let index = Index::from_bytes(builder.finish(layer()).unwrap().into_bytes().unwrap()).unwrap();
    index.verify().unwrap();
    assert_eq!(listing(&index), "/dir Directory 700 2 0\n/file Regular 644 1 1\n/link Symlink 777 1 3 -> dir");
}

#[test]
fn names_that_collide_in_the_hash_are_still_found() {
    // Enough names for slots to be full around the collisions, chosen to start at the same slot of the final table.
    let count = 2000u32;
    let slots = u32::try_from(format::slots_for(count.into())).unwrap();
    let names: Vec<String> = (0u32..)
        .map(|i| format!("{i}"))
        .filter(|name| format::first_slot(0, name.as_bytes(), slots) == 7)
        .take(count as usize)
        .collect();
    let index = build(|builder| names.iter().try_for_each(|name| file(builder, name, 1)));
    for name in &names {
        assert!(index.lookup(NodeId::ROOT, name.as_bytes()).is_some());
    }
    assert_eq!(index.lookup(NodeId::ROOT, b"absent"), None);
}

#[test]
fn the_bytes_are_reproducible() {
    let build = || {
        let mut builder = Builder::new();
        for i in 0..500 {
            file(&mut builder, &format!("d{}/f{i}", i % 7), i).unwrap();
        }
        builder.finish(layer()).unwrap().into_bytes().unwrap()
    };
    assert_eq!(build(), build());
}

#[test]
fn other_files_are_told_apart() {
    let good = Builder::new().finish(layer()).unwrap().into_bytes().unwrap();
    let open = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Index::from_bytes(bytes)
    };
    assert!(matches!(open(&|bytes| bytes.clear()), Err(IndexError::NotAnIndex)));
    assert!(matches!(open(&|bytes| bytes[0] = 0), Err(IndexError::NotAnIndex)));
    assert!(matches!(open(&|bytes| bytes[8] = 9), Err(IndexError::Version(9))));
    assert!(matches!(open(&|bytes| bytes[24] = 2), Err(IndexError::Features(2))));
    assert!(matches!(open(&|bytes| bytes.push(0)), Err(IndexError::Size { .. })));
    assert!(matches!(open(&|bytes| bytes[80] = 1), Err(IndexError::Damaged(_))));
    // Features that may be ignored are.
    assert!(open(&|bytes| bytes[16] = 0xff).is_ok());
    assert!(matches!(open(&|bytes| bytes[16] = 0xff).unwrap().verify(), Err(IndexError::Checksum)));
}

#[test]
fn damage_is_never_worse_than_a_wrong_answer() {
    let good = {
        let mut builder = Builder::new();
        for i in 0..20 {
            file(&mut builder, &format!("d{}/e/f{i}", i % 3), i).unwrap();
        }
        builder.hard_link(b"link", b"d0/e/f0").unwrap();
        builder.add(b"s", metadata(0o777), Content::Symlink { target: b"d0" }).unwrap();
        let sparse = [Segment { offset: 512, length: 5, source: 512 }];
        builder.add(b"sparse", metadata(0o777), Content::Regular { size: 999, segments: &sparse }).unwrap();
        let xattrs = vec![(b"user.x".to_vec(), b"y".to_vec())];
        builder.add(b"x", Metadata { xattrs, ..metadata(0o644) }, Content::Fifo).unwrap();
        builder.finish(layer()).unwrap().into_bytes().unwrap()
    };
    let mut noticed = 0;
    for position in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = good.clone();
            if bytes[position] == value {
                continue;
            }
            bytes[position] = value;
            if let Ok(index) = Index::from_bytes(bytes) {
                assert!(index.verify().is_err(), "byte {position} set to {value} went unnoticed");
                // Without the checksum some damage is noticed, and none does harm.
                noticed += usize::from(index.verify_structure().is_err());
                touch_everything(&index);
            }
        }
    }
    assert!(noticed > good.len());
}

/// Changes one inode or entry of a good index and says what `verify` finds.
fn damage(table: usize, record: usize, change: &dyn Fn(&mut [u8])) -> String {
    let mut builder = Builder::new();
    file(&mut builder, "d/e/f", 1).unwrap();
    file(&mut builder, "d/e/g", 1).unwrap();
    builder.hard_link(b"h", b"d/e/f").unwrap();
    builder.add(b"s", metadata(0o777), Content::Symlink { target: b"d" }).unwrap();
    let mut bytes = builder.finish(layer()).unwrap().into_bytes().unwrap();
    // The header holds the place of each table.
    let start = usize::try_from(u64::from_le_bytes(bytes[80 + 16 * table..][..8].try_into().unwrap())).unwrap();
    change(&mut bytes[start + record..]);
    match Index::from_bytes(bytes).unwrap().verify_structure() {
        Err(IndexError::Damaged(what)) => what.to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_wrong_structure_is_noticed() {
    const INODES: usize = 1;
    const ENTRIES: usize = 2;
    const SLOTS: usize = 3;
    const NAMES: usize = 5;
    // Inodes: the root, d, h (d/e/f), s, d/e, d/e/g. Entries: d, h, s, e, f, g.
    let inode = |number: usize, at: usize| number * 56 + at;
    let entry = |number: usize, at: usize| number * 12 + at;
    assert_eq!(damage(INODES, 0, &|_| {}), "Ok(())");
    assert_eq!(damage(INODES, inode(2, 1), &|bytes| bytes[0] = 0), "kind of an entry");
    assert_eq!(damage(INODES, inode(2, 2), &|bytes| bytes[0] = 1), "layer of an inode");
    assert_eq!(damage(INODES, inode(3, 40), &|bytes| bytes[0] = 1), "what an inode points at");
    assert_eq!(damage(INODES, inode(3, 32), &|bytes| bytes[0] = 2), "target of a symbolic link");
    assert_eq!(damage(INODES, inode(2, 47), &|bytes| bytes[0] = 1), "extents of a file");
    assert_eq!(damage(INODES, inode(2, 16), &|bytes| bytes[0] = 1), "link count");
    assert_eq!(damage(INODES, inode(1, 16), &|bytes| bytes[0] = 2), "link count of a directory");
    assert_eq!(damage(INODES, inode(1, 40), &|bytes| bytes[0] = 2), "place of a directory's entries");
    assert_eq!(damage(INODES, inode(4, 44), &|bytes| bytes[0] = 1), "entries of no directory");
    assert_eq!(damage(INODES, inode(4, 48), &|bytes| bytes[0] = 0), "parent of a directory");
    assert_eq!(damage(ENTRIES, entry(1, 9), &|bytes| bytes[0] = 0o12), "kind of an entry");
    assert_eq!(damage(ENTRIES, entry(1, 4), &|bytes| bytes[0] = 5), "order of the inodes");
    assert_eq!(damage(ENTRIES, entry(1, 8), &|bytes| bytes[0] = 0), "name of an entry");
    assert_eq!(damage(NAMES, 0, &|bytes| bytes[0] = b'/'), "name of an entry");
    assert_eq!(damage(NAMES, 0, &|bytes| bytes[0] = b'z'), "lookup of an entry");
    assert_eq!(damage(SLOTS, 0, &|bytes| bytes[..40].fill(0)), "lookup of an entry");
}

/// Asks every question about every node.
fn touch_everything(index: &Index) {
    let mut steps = 0;
    for node in index.nodes() {
        index.attributes(node);
        index.parent(node);
        index.symlink_target(node);
        index.foreign_link(node);
        index.object(node);
        steps += index.extents(node).count() + index.xattrs(node).count();
        for child in index.children(node).take(100) {
            steps += 1;
            index.lookup(node, child.name);
            index.attributes(child.node);
        }
    }
    assert!(steps < 1_000_000);
}

#[test]
fn an_index_that_went_through_files_is_the_same() {
    let fill = |builder: &mut Builder| {
        let mut state = 1_u64;
        for number in 0..4000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Most in one directory and in no order, the rest in many.
            let name =
                if number % 3 > 0 { format!("all/{state:x}") } else { format!("d{}/{}", number % 50, state % 7) };
            let xattrs = if number % 5 == 0 {
                vec![(b"user.a".to_vec(), (state % 3).to_le_bytes().to_vec())]
            } else {
                Vec::new()
            };
            let metadata = Metadata { permissions: 0o600, xattrs, ..Metadata::default() };
            let segments = [Segment { offset: 5, length: 10, source: 16 * number }];
            match number % 11 {
                0 => builder.hard_link(format!("links/{number}").as_bytes(), name.as_bytes())?,
                1 => builder.whiteout(name.as_bytes())?,
                2 => builder.add(name.as_bytes(), metadata, Content::Symlink { target: name.as_bytes() })?,
                3 => builder.add(format!("dirs/{name}").as_bytes(), metadata, Content::Directory)?,
                4 => builder.add(name.as_bytes(), metadata, Content::Regular { size: 20, segments: &segments })?,
                _ => builder.add(name.as_bytes(), metadata, Content::Fifo)?,
            }
        }
        Ok::<_, BuildError>(())
    };
    let bytes = |mut builder: Builder| {
        fill(&mut builder).unwrap();
        let bytes = builder.finish(layer()).unwrap().into_bytes().unwrap();
        let index = Index::from_bytes(bytes).unwrap();
        index.verify().unwrap();
        index
    };
    let in_memory = bytes(Builder::new());
    static SOME: crate::Memory = crate::Memory::new(128 << 10);
    for scratch in [crate::table::tiny_scratch(), crate::Scratch::new(&SOME, tempfile::tempfile)] {
        let spilled = bytes(Builder::new().with_scratch(scratch));
        assert!(spilled.as_bytes() == in_memory.as_bytes());
    }
    let merged = |scratch: Option<&crate::Scratch>| {
        let merged = crate::merge::merge_index(&[&in_memory, &in_memory], scratch);
        // Links that this layer does not have lead to the same names in the one below, or nowhere.
        merged.map(|index| index.into_bytes().unwrap())
    };
    assert_eq!(merged(None), merged(Some(&crate::table::tiny_scratch())));
}
