//! What the tar writer writes, as others read it.

#![allow(clippy::unwrap_used, reason = "a test")]

mod random;
mod tree;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use strata_layer::LayerIngest;
use strata_layer::index::{Device, Index, NodeId, Timestamp};
use strata_layer::listing::{Options, list_directory, list_index};
use strata_layer::tar::Limits;
use strata_layer::tar_writer::{SkippedPart, TarEntry, TarKind, TarWriteError, TarWriter};

/// An entry with nothing special.
fn entry<'a>(path: &'a [u8], kind: TarKind<'a>) -> TarEntry<'a> {
    let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    TarEntry { path, kind, permissions: 0o644, uid: 0, gid: 0, mtime, xattrs: &[] }
}

fn finish(writer: TarWriter<Vec<u8>>) -> Vec<u8> {
    writer.finish().unwrap().0
}

fn index_of(tar: &[u8]) -> Index {
    let mut ingest = LayerIngest::new(Limits::default());
    ingest.push(tar).unwrap();
    Index::from_bytes(ingest.finish().unwrap().index).unwrap()
}

/// Extracts with GNU tar and returns the listing.
fn extracted(tar: &Path, into: &Path) -> String {
    let status = Command::new("tar")
        .args([
            "--extract",
            "--numeric-owner",
            "--preserve-permissions",
            "--xattrs",
            "--xattrs-include=*",
            "--warning=no-timestamp",
            "--file",
        ])
        .arg(tar)
        .arg("--directory")
        .arg(into)
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    assert_eq!(String::from_utf8_lossy(&status.stderr), "", "GNU tar has nothing to say");
    list_directory(into, &Options::default()).unwrap()
}

#[test]
fn gnu_tar_restores_every_kind_of_file() {
    let folder = tempfile::tempdir().unwrap();
    let (original, copy, tar) = (folder.path().join("original"), folder.path().join("copy"), folder.path().join("tar"));
    std::fs::create_dir(&original).unwrap();
    std::fs::create_dir(&copy).unwrap();
    tree::make(&original);
    let skipped = tree::archive(&original, File::create(&tar).unwrap());
    let sockets: Vec<_> = skipped.iter().filter(|skipped| skipped.what == SkippedPart::Socket).collect();
    assert_eq!(sockets.len(), 1);
    std::fs::remove_file(original.join("socket")).unwrap();
    tree::restore_root_mtime(&original);
    let (expected, found) = (list_directory(&original, &Options::default()).unwrap(), extracted(&tar, &copy));
    let difference = tree::difference(&expected, &found);
    assert!(difference.is_empty(), "{difference}");
    assert!(expected.lines().count() > 40);
}

#[test]
fn our_parser_reads_back_every_kind_of_file() {
    let folder = tempfile::tempdir().unwrap();
    let (original, tar) = (folder.path().join("original"), folder.path().join("tar"));
    std::fs::create_dir(&original).unwrap();
    tree::make(&original);
    tree::archive(&original, File::create(&tar).unwrap());
    std::fs::remove_file(original.join("socket")).unwrap();
    tree::restore_root_mtime(&original);
    let index = index_of(&std::fs::read(&tar).unwrap());
    let expected = list_directory(&original, &Options::default()).unwrap();
    let found = list_index(&index, &[File::open(&tar).unwrap()], &Options::default()).unwrap();
    let difference = tree::difference(&expected, &found);
    assert!(difference.is_empty(), "{difference}");
    assert_eq!(expected, found);
    let sparse = index.lookup(NodeId::ROOT, b"sparse").unwrap();
    assert_eq!(index.extents(sparse).count(), 2, "the holes of a sparse file are holes");
}

#[test]
fn our_parser_understands_markers() {
    let mut writer = TarWriter::new(Vec::new());
    writer.append(&entry(b"a", TarKind::Directory)).unwrap();
    writer.append(&entry(b"a", TarKind::Opaque)).unwrap();
    writer.append(&entry(b"a/gone", TarKind::Whiteout)).unwrap();
    let index = index_of(&finish(writer));
    let a = index.lookup(NodeId::ROOT, b"a").unwrap();
    assert!(index.is_opaque(a));
    let children: Vec<_> = index.children(a).map(|child| (child.name, child.whiteout)).collect();
    assert_eq!(children, [(&b"gone"[..], true)]);
}

#[test]
fn ordinary_entries_are_one_header_each() {
    let mut writer = TarWriter::new(Vec::new());
    writer.append(&entry(b"", TarKind::Directory)).unwrap();
    writer.append(&entry(b"dir", TarKind::Directory)).unwrap();
    writer.append_with(&entry(b"dir/file", TarKind::Regular { size: 3 }), &mut &b"abc"[..]).unwrap();
    writer.append(&entry(b"dir/link", TarKind::HardLink { target: b"dir/file" })).unwrap();
    let tar = finish(writer);
    assert_eq!(tar.len(), 512 * (1 + 1 + 2 + 1 + 2));
    assert_eq!(&tar[..3], b"./\0");
    assert_eq!(&tar[512..517], b"dir/\0");
    assert_eq!(&tar[1536..1540], b"abc\0");
}

#[test]
fn the_same_entries_give_the_same_bytes() {
    let make = |xattrs| {
        let mut writer = TarWriter::new(Vec::new());
        let mtime = Timestamp { seconds: -1, nanoseconds: 1 };
        let entry = TarEntry { mtime, uid: u32::MAX, xattrs, ..entry(&[b'x'; 200], TarKind::Regular { size: 1 }) };
        writer.append_with(&entry, &mut &b"y"[..]).unwrap();
        finish(writer)
    };
    let tar = make(&[(b"user.a", b"1"), (b"user.b", b"2")]);
    assert_eq!(tar, make(&[(b"user.b", b"2"), (b"user.a", b"1")]));
    let text = String::from_utf8_lossy(&tar);
    assert!(text.contains("uid=4294967295\n22 mtime=-0.999999999\n25 SCHILY.xattr.user.a=1\n"), "{text}");
}

#[test]
fn a_large_hole_costs_little_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (source, tar, copy) = (folder.path().join("s"), folder.path().join("t"), folder.path().join("copy"));
    let mut file = File::options().write(true).read(true).create_new(true).open(&source).unwrap();
    file.write_all(b"beginning").unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 5 << 30).unwrap();
    file.set_len((10 << 30) + 5).unwrap();
    let mut writer = TarWriter::new(File::create(&tar).unwrap());
    let path = [&b"directory/"[..], &[b'n'; 120]].concat();
    writer.append_file(&entry(&path, TarKind::Regular { size: (10 << 30) + 5 }), &file).unwrap();
    writer.append_with(&entry(b"after", TarKind::Regular { size: 5 }), &mut &b"after"[..]).unwrap();
    writer.finish().unwrap();
    assert!(tar.metadata().unwrap().len() < 64 * 1024);

    std::fs::create_dir(&copy).unwrap();
    let status = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&copy).status().unwrap();
    assert!(status.success());
    let restored = File::open(copy.join(String::from_utf8(path).unwrap())).unwrap();
    assert_eq!(restored.metadata().unwrap().len(), (10 << 30) + 5);
    assert!(restored.metadata().unwrap().blocks() < 100, "the hole is a hole again");
    let index = index_of(&std::fs::read(&tar).unwrap());
    let listing = list_index(&index, &[], &Options { contents: false, ..Options::default() }).unwrap();
    assert!(listing.contains("size=10737418245"), "{listing}");
    for (offset, expected) in [(0, &b"beginning\0"[..]), (5 << 30, b"middle\0"), (10 << 30, b"\0\0\0\0\0")] {
        let mut found = vec![1; expected.len()];
        std::os::unix::fs::FileExt::read_exact_at(&restored, &mut found, offset).unwrap();
        assert_eq!(found, expected, "at {offset}");
    }
    assert_eq!(std::fs::read(copy.join("after")).unwrap(), b"after");
}

#[test]
fn deletions_are_markers() {
    let mut writer = TarWriter::new(Vec::new());
    writer.append(&entry(b"gone", TarKind::Whiteout)).unwrap();
    writer.append(&entry(b"a/b/gone", TarKind::Whiteout)).unwrap();
    writer.append(&entry(b"a/c", TarKind::Opaque)).unwrap();
    writer.append(&entry(b"", TarKind::Opaque)).unwrap();
    let tar = finish(writer);
    let names: Vec<_> = tar.chunks(512).map(|block| block.split(|byte| *byte == 0).next().unwrap()).collect();
    assert_eq!(names[..4], [&b".wh.gone"[..], b"a/b/.wh.gone", b"a/c/.wh..wh..opq", b".wh..wh..opq"]);
    assert!(names[4..].iter().all(|name| name.is_empty()));
}

#[test]
fn names_that_would_not_come_back_are_refused() {
    let regular = TarKind::Regular { size: 0 };
    let refusal = |path: &[u8], kind| {
        let mut writer = TarWriter::new(Vec::new());
        let error = writer.append(&entry(path, kind)).unwrap_err();
        assert_eq!(finish(writer).len(), 1024, "nothing was written");
        error
    };
    for path in [&b".wh.x"[..], b"a/.wh.x", b".wh.x/a", b".wh..wh..opq", b".wh."] {
        let error = refusal(path, regular);
        assert!(matches!(error, TarWriteError::ReservedName { .. }), "{error}");
        assert!(matches!(refusal(b"link", TarKind::HardLink { target: path }), TarWriteError::ReservedName { .. }));
        assert!(matches!(refusal(path, TarKind::Whiteout), TarWriteError::ReservedName { .. }));
    }
    for path in [&b"/a"[..], b"a//b", b"a/", b"./a", b"a/../b", b"..", b"a\0b", b""] {
        let error = refusal(path, regular);
        assert!(matches!(error, TarWriteError::InvalidPath { .. }), "{error}");
        assert!(matches!(refusal(b"link", TarKind::HardLink { target: path }), TarWriteError::InvalidPath { .. }));
    }
    assert!(matches!(refusal(&[b'x'; 252], TarKind::Whiteout), TarWriteError::WhiteoutTooLong { .. }));
    assert!(matches!(refusal(b"l", TarKind::Symlink { target: b"" }), TarWriteError::InvalidTarget { .. }));
    let device = Device { major: 1 << 21, minor: 0 };
    assert!(matches!(refusal(b"d", TarKind::CharDevice(device)), TarWriteError::InvalidDevice { .. }));
}

#[test]
fn content_that_ends_early_is_an_error() {
    let mut writer = TarWriter::new(Vec::new());
    let error = writer.append_with(&entry(b"a", TarKind::Regular { size: 4 }), &mut &b"abc"[..]).unwrap_err();
    assert!(matches!(error, TarWriteError::Shrunk { .. }), "{error}");
}

#[test]
fn maps_that_lie_are_refused() {
    for map in [&[(5, 5)][..], &[(0, 5), (4, 6)], &[(6, 7), (0, 1)], &[(0, 11)], &[(7, 3)]] {
        let map: Vec<_> = map.iter().map(|(start, end)| *start..*end).collect();
        let mut writer = TarWriter::new(Vec::new());
        let file = entry(b"a", TarKind::Regular { size: 10 });
        let error = writer.append_sparse(&file, &map, &mut std::io::repeat(1)).unwrap_err();
        assert!(matches!(error, TarWriteError::InvalidMap { .. }), "{map:?}: {error}");
    }
}

#[test]
fn an_attribute_that_pax_cannot_name_is_reported() {
    let mut writer = TarWriter::new(Vec::new());
    let xattrs: &[(&[u8], &[u8])] = &[(b"user.a=b", b"1")];
    writer.append(&TarEntry { xattrs, ..entry(b"a", TarKind::Regular { size: 0 }) }).unwrap();
    let (tar, skipped) = writer.finish().unwrap();
    assert_eq!(tar.len(), 1536);
    assert_eq!(skipped[0].what, SkippedPart::Xattr(b"user.a=b".to_vec()));
}
