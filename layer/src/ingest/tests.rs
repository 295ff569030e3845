//! Each row of the table of bad input in `docs/formats/layer.md`, as far as it is about names and entries. What is wrong
//! inside of headers is tested with the tar reader.

use super::*;
use crate::index::{Index, Kind, NodeId};
use crate::tar::archive::{Archive, GNU, RawHeader, USTAR};

fn ingest(tar: &[u8]) -> Result<IngestedLayer, LayerError> {
    let mut whole = LayerIngest::new(Limits::default());
    let ingested = whole.push(tar).and_then(|()| whole.finish());
    // Through files it comes to the same.
    let mut spilled = LayerIngest::new(Limits::default()).with_scratch(crate::table::tiny_scratch());
    match (&ingested, spilled.push(tar).and_then(|()| spilled.finish())) {
        (Ok(ingested), Ok(spilled)) => assert!(*ingested == spilled),
        (Err(error), Err(spilled)) => assert_eq!(error.to_string(), spilled.to_string()),
        (ingested, spilled) => panic!("{ingested:?} but {spilled:?}"),
    }
    ingested
}

fn ingest_with(limits: Limits, tar: &[u8]) -> Result<IngestedLayer, LayerError> {
    let mut layer = LayerIngest::new(limits);
    layer.push(tar)?;
    layer.finish()
}

/// One line per entry: path, type, and what is special about it.
fn listing(archive: Archive) -> String {
    let layer = ingest(&archive.end()).unwrap();
    let index = Index::from_bytes(layer.index).unwrap();
    index.verify().unwrap();
    let mut lines = Vec::new();
    let mut directories = vec![(NodeId::ROOT, String::new())];
    while let Some((directory, path)) = directories.pop() {
        for child in index.children(directory) {
            let path = format!("{path}{}", child.name.escape_ascii());
            if child.whiteout {
                lines.push(format!("{path} gone"));
                continue;
            }
            let target = index.symlink_target(child.node).or(index.foreign_link(child.node)).unwrap_or_default();
            let size = index.attributes(child.node).unwrap().size;
            lines.push(match child.kind {
                Kind::Directory if index.is_opaque(child.node) => format!("{path}/ opaque"),
                Kind::Directory => format!("{path}/"),
                Kind::Symlink => format!("{path} -> {}", target.escape_ascii()),
                Kind::Regular if !target.is_empty() => format!("{path} => {}", target.escape_ascii()),
                Kind::Regular => format!("{path} {size}"),
                kind => format!("{path} {kind:?}"),
            });
            if child.kind == Kind::Directory {
                directories.push((child.node, path + "/"));
            }
        }
    }
    lines.sort();
    lines.join("\n")
}

fn refusal(archive: Archive) -> EntryProblem {
    match ingest(&archive.end()) {
        Err(LayerError::Entry { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

/// An archive of empty files.
fn files(names: &[&str]) -> Archive {
    names.iter().fold(Archive::default(), |archive, name| archive.file(name, b""))
}

fn link(type_flag: u8, name: &str, target: &str) -> RawHeader {
    let mut header = RawHeader::new(USTAR, type_flag, name, 0);
    header.set(157, target);
    header
}

/// A name too long for a header.
fn long(type_flag: u8, name: &str) -> Archive {
    Archive::default().entry(b'L', "././@LongLink", name.as_bytes()).entry(type_flag, "x", b"")
}

#[test]
fn digest_size_and_index_are_of_the_bytes_pushed() {
    let tar = Archive::default().file("a", b"hello").entry(b'5', "d", b"").file("d/b", &[7; 1000]).end();
    let whole = ingest(&tar).unwrap();
    assert_eq!((whole.diff_id, whole.tar_size, whole.entries), (DiffId(Digest::of(&tar)), tar.len() as u64, 3));
    for size in [1, 100, 512, 5000] {
        let mut pieces = LayerIngest::new(Limits::default());
        tar.chunks(size).for_each(|piece| pieces.push(piece).unwrap());
        assert_eq!(pieces.finish().unwrap(), whole);
    }
    let index = Index::from_bytes(whole.index).unwrap();
    assert_eq!(index.layer(0), Some(Layer { diff_id: whole.diff_id, tar_size: whole.tar_size }));
    let file = index.lookup(index.lookup(NodeId::ROOT, b"d").unwrap(), b"b").unwrap();
    let extent = index.extents(file).next().unwrap();
    let start = usize::try_from(extent.source).unwrap();
    assert_eq!(tar[start..start + 1000], [7; 1000]);
}

#[test]
fn an_empty_archive_is_an_empty_layer() {
    assert_eq!(ingest(&[]).unwrap().entries, 0);
    assert_eq!(listing(Archive::default()), "");
}

#[test]
fn zeros_that_fill_up_the_last_record_may_be_missing() {
    let whole = files(&["a", "b"]).end();
    let mut padded = whole.clone();
    padded.resize(padded.len().next_multiple_of(10240), 0);
    let expected = DiffId(Digest::of(&padded));
    let missing = |tar: &[u8], expected: DiffId| {
        let mut layer = LayerIngest::new(Limits::default());
        layer.push(tar).unwrap();
        layer.missing_zeros(expected)
    };
    assert_eq!(missing(&whole, expected), Some(padded.len() - whole.len()));
    // Without the two blocks of the end, too.
    assert_eq!(missing(&whole[..whole.len() - 1024], expected), Some(padded.len() - whole.len() + 1024));
    assert_eq!(missing(&padded, expected), None, "nothing is missing");
    assert_eq!(missing(&whole, DiffId(Digest::of(b"another"))), None);
    assert_eq!(missing(&whole[..whole.len() - 1025], expected), None, "not at the end");
    let mut longer = padded.clone();
    longer.resize(longer.len() + 512, 0);
    assert_eq!(missing(&whole, DiffId(Digest::of(&longer))), None, "more than a record");
}

#[test]
fn names_cannot_leave_the_layer() {
    assert_eq!(
        listing(files(&["/etc/passwd", "./usr//bin/./x", "a/"])),
        "a/\netc/\netc/passwd 0\nusr/\nusr/bin/\nusr/bin/x 0"
    );
    for name in ["..", "../x", "a/../../x", "/..", "a/.."] {
        assert_eq!(refusal(files(&[name])), EntryProblem::Path(InvalidPath::Parent), "{name}");
    }
}

#[test]
fn names_have_bounds() {
    let component = "c".repeat(255);
    assert_eq!(listing(long(b'0', &component)), format!("{component} 0"));
    assert_eq!(refusal(long(b'0', &format!("{component}c"))), EntryProblem::Path(InvalidPath::NameTooLong));
    let deep = "d/".repeat(2047) + "f";
    assert_eq!(listing(long(b'0', &deep)).lines().count(), 2048);
    assert_eq!(refusal(long(b'0', &format!("d/{deep}"))), EntryProblem::Path(InvalidPath::PathTooLong));
    assert_eq!(listing(files(&["new\nline", "\u{e9}"])), "\\xc3\\xa9 0\nnew\\nline 0");
}

#[test]
fn the_root_is_a_directory() {
    for name in [".", "/", "./"] {
        assert_eq!(listing(Archive::default().entry(b'5', name, b"")), "");
        let symlink = Archive::default().header(&link(b'2', name, "/etc"));
        assert_eq!(refusal(symlink), EntryProblem::Build(BuildError::RootNotDirectory));
    }
    assert_eq!(refusal(files(&["."])), EntryProblem::Build(BuildError::RootNotDirectory));
    assert_eq!(refusal(files(&["a"]).header(&link(b'1', "/", "a"))), EntryProblem::Build(BuildError::RootNotDirectory));
}

#[test]
fn nothing_goes_through_a_symbolic_link_or_a_file() {
    for parent in [link(b'2', "a", "/etc"), link(b'2', "a", "b"), RawHeader::new(USTAR, b'0', "a", 0)] {
        let archive = files(&["b/x"]).header(&parent).file("a/passwd", b"");
        assert_eq!(refusal(archive), EntryProblem::Build(BuildError::ParentNotDirectory));
    }
    // Where a link points to is the container's business.
    let archive = Archive::default().header(&link(b'2', "a", "../../../etc")).header(&link(b'2', "b", "b"));
    assert_eq!(listing(archive), "a -> ../../../etc\nb -> b");
    // A directory may take the place of the link.
    let archive = Archive::default().header(&link(b'2', "a", "/etc")).entry(b'5', "a", b"").file("a/passwd", b"");
    assert_eq!(listing(archive), "a/ opaque\na/passwd 0");
}

#[test]
fn hard_links_stay_inside() {
    let with = |target: &str| files(&["d/f"]).header(&link(b'1', "link", target));
    for target in ["d/f", "/d/f", "./d//f"] {
        assert_eq!(listing(with(target)), "d/\nd/f 0\nlink 0");
    }
    assert_eq!(refusal(with("../d/f")), EntryProblem::Build(BuildError::LinkTarget(InvalidPath::Parent)));
    assert_eq!(refusal(with("")), EntryProblem::Build(BuildError::LinkTarget(InvalidPath::Empty)));
    assert_eq!(refusal(with("d")), EntryProblem::Build(BuildError::LinkToDirectory));
    assert_eq!(refusal(with("link")), EntryProblem::Build(BuildError::LinkToItself));
    // Elsewhere, or not here yet: the layers below decide.
    assert_eq!(listing(with("lower/file")), "d/\nd/f 0\nlink => lower/file");
    let forward = Archive::default().header(&link(b'1', "link", "f")).file("f", b"x");
    assert_eq!(listing(forward), "f 1\nlink => f");
    let to_symlink = Archive::default().header(&link(b'2', "s", "x")).header(&link(b'1', "link", "s"));
    assert_eq!(listing(to_symlink), "link -> x\ns -> x");
}

#[test]
fn markers_go_by_their_name() {
    let archive = files(&["d/.wh.a", "d/.wh..wh..opq", ".wh.b"])
        .file("d/.wh.full", b"ignored")
        .header(&link(b'2', ".wh.link", "x"))
        .header(&link(b'1', ".wh.hard", "x"));
    assert_eq!(listing(archive), "b gone\nd/ opaque\nd/a gone\nd/full gone\nhard gone\nlink gone");
    assert_eq!(listing(files(&[".wh..wh.plnk/1.2", ".wh..wh.aufs", "a/.wh..wh.orph"])), "");
    for name in [".wh.", ".wh..", ".wh...", "d/.wh."] {
        assert_eq!(refusal(files(&[name])), EntryProblem::Marker(InvalidMarker::NoName), "{name}");
    }
    for archive in [files(&[".wh.a/b"]), Archive::default().entry(b'5', ".wh.a", b"")] {
        assert_eq!(refusal(archive), EntryProblem::Marker(InvalidMarker::UsedAsDirectory));
    }
    let directory = Archive::default().entry(b'5', "d/.wh..wh..opq/", b"");
    assert_eq!(refusal(directory), EntryProblem::Marker(InvalidMarker::UsedAsDirectory));
}

#[test]
fn markers_and_entries_of_one_name_do_not_meet() {
    for names in [["d/.wh.a", "d/a"], ["d/a", "d/.wh.a"]] {
        assert_eq!(listing(files(&names)), "d/\nd/a 0");
    }
    for names in [[".wh.d", "d/a", "d/.wh..wh..opq"], ["d/a", "d/.wh..wh..opq", ".wh.d"]] {
        assert_eq!(listing(files(&names)), "d/ opaque\nd/a 0");
    }
}

#[test]
fn the_last_of_several_entries_wins() {
    assert_eq!(listing(Archive::default().file("a", b"1").file("./a", b"12").file("/a", b"123")), "a 3");
    let archive = files(&["d/x", "d/y/z"]).file("d", b"1");
    assert_eq!(listing(archive), "d 1");
    let archive = files(&["d/x"]).entry(b'5', "d", b"");
    assert_eq!(listing(archive), "d/\nd/x 0");
}

#[test]
fn devices_are_kept_and_none_is_a_whiteout() {
    let device = |type_flag, name| {
        let mut header = RawHeader::new(USTAR, type_flag, name, 0);
        header.set(329, "0000000\0").set(337, "0000000\0");
        header
    };
    let archive = Archive::default()
        .header(&device(b'3', "zero"))
        .header(&device(b'4', "block"))
        .header(&RawHeader::new(GNU, b'6', "pipe", 0));
    assert_eq!(listing(archive), "block BlockDevice\npipe Fifo\nzero CharDevice");
}

#[test]
fn private_and_foreign_attributes_are_left_out() {
    let names = [
        "user.mine",
        "trusted.mine",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.whiteout",
        "user.fuseoverlayfs.origin",
        "security.selinux",
        "security.ima",
        "system.nfs4_acl",
        "other",
    ];
    let records: Vec<String> = names.iter().map(|name| format!("SCHILY.xattr.{name}=v")).collect();
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let layer = ingest(&Archive::default().pax(&records).file("f", b"").end()).unwrap();
    let index = Index::from_bytes(layer.index).unwrap();
    let file = index.lookup(NodeId::ROOT, b"f").unwrap();
    let kept: Vec<&[u8]> = index.xattrs(file).map(|(name, _)| name).collect();
    let mut expected: Vec<&[u8]> = names[..5].iter().map(|name| name.as_bytes()).collect();
    expected.sort_unstable();
    assert_eq!(kept, expected);
}

#[test]
fn layers_have_bounds() {
    let tar = files(&["a", "b", "c"]).end();
    let limits = |entries, metadata_bytes| Limits { entries, metadata_bytes, ..Limits::default() };
    assert_eq!(ingest_with(limits(3, 3), &tar).unwrap().entries, 3);
    assert!(matches!(ingest_with(limits(2, 3), &tar), Err(LayerError::TooManyEntries(2))));
    assert!(matches!(ingest_with(limits(3, 2), &tar), Err(LayerError::TooMuchMetadata(2))));
    // Directories that nobody asked for count as well.
    let deep = files(&["a/b/c/d", "e"]).end();
    assert!(matches!(ingest_with(limits(4, 100), &deep), Err(LayerError::TooManyEntries(4))));
    assert!(ingest_with(limits(5, 100), &deep).is_ok());
    let xattrs = Archive::default().pax(&["SCHILY.xattr.user.a="]).file("f", b"").end();
    assert!(matches!(ingest_with(limits(1, 100), &xattrs), Err(LayerError::TooMuchMetadata(100))));
    let small = Limits { file_size: 4, ..Limits::default() };
    let error = ingest_with(small, &Archive::default().file("large", b"12345").end()).unwrap_err();
    assert_eq!(error.to_string(), "tar entry \"large\" at offset 0: file of 5 bytes is too large");
}

#[test]
fn refusals_name_the_entry_and_the_place() {
    let error = ingest(&files(&["good", "b\u{e4}d/../x"]).end()).unwrap_err();
    assert_eq!(error.to_string(), "layer entry \"bäd/../x\" at offset 512: path contains \"..\"");
    let error = ingest(&files(&["f", "f/x"]).end()).unwrap_err();
    let reason = "a parent of the entry is not a directory in this layer";
    assert_eq!(error.to_string(), format!("layer entry \"f/x\" at offset 512: {reason}"));
    let archive = files(&["a"]).header(&link(b'1', "b", "../a")).end();
    let reason = "target of the hard link: path contains \"..\"";
    assert_eq!(ingest(&archive).unwrap_err().to_string(), format!("layer entry \"b\" at offset 512: {reason}"));
}

#[test]
fn every_cut_of_an_archive_is_refused_or_whole() {
    let tar = Archive::default().file("a", &[1; 700]).entry(b'x', "x", b"6 a=b\n").file("b", b"x").end();
    for length in 0..tar.len() {
        let result = ingest(&tar[..length]);
        let may_end = matches!(length, 0 | 1536 | 3584 | 4096..);
        assert_eq!(result.is_ok(), may_end, "{length}");
    }
}

/// An archive with some of everything.
fn rich() -> Vec<u8> {
    let mut sparse = RawHeader::new(GNU, b'S', "sparse", 512);
    sparse.set_bytes(386, b"00000010000\x0000000001000\0").set_bytes(482, &[1]).set(483, "00000020000\0");
    let head = ["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=d/holes", "GNU.sparse.realsize=9000"];
    let mut map = b"2\n0\n10\n4096\n20\n".to_vec();
    map.resize(512, 0);
    map.extend([1; 30]);
    Archive::default()
        .entry(b'5', "./", b"")
        .entry(b'g', "global", b"14 comment=ab\n8 uid=5\n")
        .entry(b'5', "d/", b"")
        .file("d/file", &[7; 700])
        .entry(b'L', "././@LongLink", "d/long/".repeat(30).as_bytes())
        .entry(b'5', "x", b"")
        .pax(&["path=d/\u{e9}", "mtime=-1.5", "SCHILY.xattr.user.a=b", "LIBARCHIVE.xattr.user.c=AAAA", "size=3"])
        .file("short", b"abc")
        .header(&sparse)
        .data(&[&[0; 504][..], &[0; 8]].concat())
        .data(&[1; 512])
        .pax(&head)
        .file("d/GNUSparseFile.1/holes", &map)
        .header(&link(b'1', "d/hard", "d/file"))
        .header(&link(b'1', "d/foreign", "below"))
        .header(&link(b'2', "d/soft", "../file"))
        .header(&RawHeader::new(USTAR, b'3', "d/null", 0))
        .header(&RawHeader::new(USTAR, b'6', "d/pipe", 0))
        .file("d/.wh.gone", b"")
        .file("e/.wh..wh..opq", b"")
        .file("d/file", b"again")
        .end()
}

#[test]
fn the_rich_archive_is_good() {
    let index = Index::from_bytes(ingest(&rich()).unwrap().index).unwrap();
    index.verify().unwrap();
    assert!(index.inode_count() > 40);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 3000, ..Default::default() })]
    /// With the checksums of headers made right again, so that the damage gets past them.
    #[test]
    fn whatever_an_archive_says_the_index_is_whole(
        changes in proptest::collection::vec((0..20_000usize, proptest::prelude::any::<u8>()), 1..6),
        cut in proptest::option::of(0..20_000usize),
    ) {
        let original = rich();
        let mut tar = original.clone();
        for (position, value) in changes {
            let position = position % tar.len();
            tar[position] = value;
        }
        for (block, old) in tar.as_chunks_mut::<512>().0.iter_mut().zip(original.as_chunks::<512>().0) {
            if old[148..156].ends_with(b"\0 ") {
                let mut header = RawHeader(*block);
                header.set(0, "");
                *block = header.0;
            }
        }
        tar.truncate(cut.unwrap_or(tar.len()).max(512));
        if let Ok(layer) = ingest(&tar) {
            let index = Index::from_bytes(layer.index).unwrap();
            index.verify().unwrap();
            match crate::merge(&[&index]) {
                Ok(merged) => Index::from_bytes(merged).unwrap().verify().unwrap(),
                Err(error) => assert!(matches!(error, crate::MergeError::LinkTarget { .. }), "{error}"),
            }
        }
    }
}
