//! Archives made byte by byte.

use super::archive::{Archive, GNU, RawHeader, USTAR, V7, pax_records};
use super::*;
use crate::index::{Device, Timestamp};
use crate::objects::Segment;

impl Archive {
    fn read(self) -> Result<Vec<Entry>, Problem> {
        read(&self.end())
    }

    fn one(self) -> Result<Entry, Problem> {
        let mut entries = self.read()?;
        assert_eq!(entries.len(), 1);
        Ok(entries.remove(0))
    }
}

/// Reads an archive in one piece and byte by byte, which must be the same.
fn read(archive: &[u8]) -> Result<Vec<Entry>, Problem> {
    let whole = read_in_pieces(archive, archive.len().max(1));
    for size in [1, 511, 513] {
        let pieces = read_in_pieces(archive, size);
        assert_eq!(whole, pieces);
    }
    whole.map(|(entries, _)| entries).map_err(|error| error.problem)
}

fn read_in_pieces(archive: &[u8], size: usize) -> Result<(Vec<Entry>, Vec<u8>), TarError> {
    let mut parser = Parser::new(Limits::default());
    let mut entries: Vec<Entry> = Vec::new();
    let mut data = Vec::new();
    for mut piece in archive.chunks(size) {
        while let Some(event) = parser.next_event(&mut piece)? {
            match event {
                Event::Entry(entry) => entries.push(*entry),
                Event::Data(bytes) => data.extend_from_slice(bytes),
            }
        }
    }
    parser.finish()?;
    let expected: Vec<u8> = entries
        .iter()
        .flat_map(|entry| {
            &archive[usize::try_from(entry.data.start).unwrap()..usize::try_from(entry.data.end).unwrap()]
        })
        .copied()
        .collect();
    assert_eq!(data, expected, "the data that came is the data that the entries point at");
    Ok((entries, data))
}

#[test]
fn a_file_has_all_its_fields() {
    let entry = Archive::default().file("dir/name", b"hello").one().unwrap();
    let expected = Entry {
        path: b"dir/name".to_vec(),
        kind: EntryKind::Regular,
        permissions: 0o644,
        uid: 1000,
        gid: 100,
        mtime: Timestamp { seconds: 0o14_400_000_000, nanoseconds: 0 },
        xattrs: vec![],
        size: 5,
        data: 512..517,
        sparse: None,
        offset: 0,
    };
    assert_eq!(entry, expected);
}

#[test]
fn every_type_is_known_or_refused() {
    for type_flag in 0..=255u8 {
        let mut header = RawHeader::new(USTAR, type_flag, "name", 0);
        header.set(157, "target").set(329, "0000010\0").set(337, "0000003\0");
        let device = Device { major: 8, minor: 3 };
        let target = b"target".to_vec();
        let expected = match type_flag {
            0 | b'0' | b'7' => Ok(EntryKind::Regular),
            b'1' => Ok(EntryKind::HardLink { target }),
            b'2' => Ok(EntryKind::Symlink { target }),
            b'3' => Ok(EntryKind::CharDevice(device)),
            b'4' => Ok(EntryKind::BlockDevice(device)),
            b'5' => Ok(EntryKind::Directory),
            b'6' => Ok(EntryKind::Fifo),
            b'g' | b'V' => {
                assert_eq!(Archive::default().header(&header).read(), Ok(vec![]));
                continue;
            }
            b'x' | b'L' | b'K' => Err(Problem::NoEntry),
            b'S' => Err(Problem::Sparse("of an unknown form")),
            other => Err(Problem::Type(other)),
        };
        assert_eq!(Archive::default().header(&header).one().map(|entry| entry.kind), expected, "{type_flag}");
    }
}

#[test]
fn the_three_formats_differ_behind_the_link_name() {
    let mut header = RawHeader::new(USTAR, b'3', "name", 0);
    header.set(345, "prefix").set(329, "0000001\0");
    assert_eq!(Archive::default().header(&header).one().unwrap().path, b"prefix/name");
    for (magic, major) in [(GNU, 1), (V7, 0)] {
        header.set_bytes(257, magic);
        let entry = Archive::default().header(&header).one().unwrap();
        assert_eq!(entry.path, b"name");
        assert_eq!(entry.kind, EntryKind::CharDevice(Device { major, minor: 0 }));
    }
    let full = RawHeader::new(USTAR, b'0', &"n".repeat(100), 0);
    assert_eq!(Archive::default().header(&full).one().unwrap().path, [b'n'; 100]);
}

#[test]
fn a_slash_at_the_end_makes_a_directory() {
    for type_flag in [0, b'0', b'7'] {
        let header = RawHeader::new(V7, type_flag, "d/", 0);
        assert_eq!(Archive::default().header(&header).one().unwrap().kind, EntryKind::Directory);
        let archive = Archive::default().entry(type_flag, "d/", b"data");
        assert_eq!(archive.one(), Err(Problem::UnexpectedData(4)));
    }
}

#[test]
fn only_files_have_data() {
    for type_flag in *b"23456" {
        assert_eq!(Archive::default().entry(type_flag, "x", b"data").one(), Err(Problem::UnexpectedData(4)));
    }
    // Hard links say how long the file is, but nothing follows.
    let link = RawHeader::new(USTAR, b'1', "x", 1 << 30);
    let entries = Archive::default().header(&link).file("y", b"").read().unwrap();
    assert_eq!((entries.len(), entries[0].size), (2, 0));
}

#[test]
fn symbolic_links_have_all_permissions() {
    assert_eq!(Archive::default().entry(b'2', "x", b"").one().unwrap().permissions, 0o777);
}

#[test]
fn signed_checksums_are_accepted_and_wrong_ones_not() {
    let mut header = RawHeader::new(USTAR, b'0', "\u{e9}", 0);
    let signed: i32 = header.0[..148].iter().chain(&header.0[156..]).map(|&byte| i32::from(byte.cast_signed())).sum();
    header.0[148..156].copy_from_slice(format!("{:06o}\0 ", signed + 8 * 32).as_bytes());
    assert!(Archive::default().header(&header).one().is_ok());
    header.0[0] ^= 1;
    assert_eq!(Archive::default().header(&header).one(), Err(Problem::Checksum));
    assert_eq!(read(&[b'x'; 1024]), Err(Problem::Checksum));
}

#[test]
fn the_end_may_be_missing_but_nothing_else() {
    let whole = Archive::default().file("a", &[b'x'; 600]).end();
    assert_eq!(whole.len(), 512 + 1024 + 1024);
    for length in 0..=whole.len() {
        let result = read(&whole[..length]).map(|entries| entries.len());
        // Cut between the entry and the end, or in the second block of the end.
        let expected = match length {
            0 => Ok(0),
            1536 | 2048.. => Ok(1),
            _ => Err(Problem::Truncated),
        };
        assert_eq!(result, expected, "{length}");
    }
}

#[test]
fn only_zeros_follow_the_end() {
    let end = Archive::default().file("a", b"").end();
    assert_eq!(read(&[&end[..], &[0; 10240 + 7]].concat()).unwrap().len(), 1);
    assert_eq!(read(&[&end[..], b"x"].concat()), Err(Problem::TrailingData));
    assert_eq!(read(&[&end[..], &[0; 700], b"x"].concat()), Err(Problem::TrailingData));
    // One block of zeros is the end already.
    assert_eq!(read(&[&end[..1024], &end[..512]].concat()), Err(Problem::TrailingData));
}

#[test]
fn long_names_of_gnu_tar() {
    let name = "directory/".repeat(30) + "file";
    let archive = Archive::default()
        .header(&RawHeader::new(GNU, b'K', "././@LongLink", name.len() as u64 + 1))
        .data(name.as_bytes())
        .header(&RawHeader::new(GNU, b'L', "././@LongLink", name.len() as u64 + 1))
        .data(format!("{name}\0").as_bytes())
        .header(&RawHeader::new(GNU, b'2', &name[..99], 0));
    let entry = archive.one().unwrap();
    assert_eq!(entry.path, name.as_bytes());
    assert_eq!(entry.kind, EntryKind::Symlink { target: name.into_bytes() });
    assert_eq!(entry.offset, 0);
    let hidden = Archive::default().entry(b'L', "x", b"seen\0hidden").file("x", b"");
    assert_eq!(hidden.one(), Err(Problem::Nul("path")));
    let hidden = Archive::default().entry(b'K', "x", b"seen\0hidden").file("x", b"");
    assert_eq!(hidden.one(), Err(Problem::Nul("link target")));
    assert_eq!(Archive::default().entry(b'L', "x", b"").file("x", b"").one(), Err(Problem::EmptyName));
}

#[test]
fn pax_records_win_over_the_header() {
    let records = ["path=long", "size=3", "uid=3000000000", "gid=4294967294", "mtime=1.25", "SCHILY.xattr.user.a=b"];
    let entry = Archive::default().pax(&records).file("short", b"abc").file("next", b"").read().unwrap();
    assert_eq!(entry[0].path, b"long");
    assert_eq!((entry[0].uid, entry[0].gid), (3_000_000_000, 4_294_967_294));
    assert_eq!(entry[0].mtime, Timestamp { seconds: 1, nanoseconds: 250_000_000 });
    assert_eq!(entry[0].xattrs, [(b"user.a".to_vec(), b"b".to_vec())]);
    assert_eq!((entry[0].offset, entry[0].data.clone()), (0, 1536..1539));
    // They are for one entry only.
    assert_eq!((&entry[1].path[..], entry[1].uid, entry[1].offset), (&b"next"[..], 1000, 2048));
}

#[test]
fn a_size_record_decides_where_the_next_header_is() {
    let header = RawHeader::new(USTAR, b'0', "a", 0);
    let archive = Archive::default().pax(&["size=600"]).header(&header).data(&[1; 600]).file("b", b"");
    let entries = archive.read().unwrap();
    assert_eq!((entries[0].size, &entries[1].path[..]), (600, &b"b"[..]));
}

#[test]
fn global_headers_hold_until_changed() {
    let global = |records: &[&str]| pax_records(records);
    let entries = Archive::default()
        .entry(b'g', "g", &global(&["comment=x", "mtime=5", "uid=6"]))
        .pax(&["mtime=7"])
        .file("a", b"")
        .file("b", b"")
        .entry(b'g', "g", &global(&["uid="]))
        .file("c", b"")
        .read()
        .unwrap();
    let seen: Vec<_> = entries.iter().map(|entry| (entry.mtime.seconds, entry.uid)).collect();
    assert_eq!(seen, [(7, 6), (5, 6), (5, 1000)]);
    let path = Archive::default().entry(b'g', "g", &global(&["path=x"])).file("a", b"");
    assert!(matches!(path.read(), Err(Problem::Global(_))));
}

#[test]
fn headers_that_contradict_each_other_are_refused() {
    let contradiction = Err(Problem::Contradiction);
    let archive = Archive::default;
    assert_eq!(archive().pax(&["path=a"]).pax(&["path=b"]).file("x", b"").one(), contradiction);
    assert_eq!(archive().entry(b'L', "", b"a").entry(b'L', "", b"b").file("x", b"").one(), contradiction);
    assert_eq!(archive().entry(b'L', "", b"a").pax(&["path=b"]).file("x", b"").one(), contradiction);
    assert_eq!(archive().pax(&["linkpath=b"]).entry(b'K', "", b"a").file("x", b"").one(), contradiction);
    assert_eq!(archive().pax(&["uid=5"]).entry(b'g', "", b"").file("x", b"").one(), contradiction);
    // The same said twice is fine, in either order.
    assert_eq!(archive().entry(b'L', "", b"a").pax(&["path=a"]).file("x", b"").one().unwrap().path, b"a");
    assert_eq!(archive().pax(&["path=a"]).entry(b'L', "", b"a").file("x", b"").one().unwrap().path, b"a");
    assert_eq!(archive().pax(&["path=a"]).read(), Err(Problem::NoEntry));
    assert_eq!(read(&archive().pax(&["path=a"]).0), Err(Problem::NoEntry));
}

#[test]
fn a_volume_label_is_no_entry() {
    let archive = Archive::default().entry(b'V', "label", b"").file("a", b"x");
    assert_eq!(archive.one().unwrap().path, b"a");
    assert_eq!(Archive::default().entry(b'V', "label", b"data").read(), Err(Problem::UnexpectedData(4)));
    let pending = Archive::default().pax(&["path=x"]).entry(b'V', "label", b"").file("a", b"");
    assert_eq!(pending.read(), Err(Problem::NoEntry));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let with = |at: usize, field: &[u8]| {
        let mut header = RawHeader::new(USTAR, b'0', "x", 0);
        header.set_bytes(at, field);
        Archive::default().header(&header).one()
    };
    let pax = |record: &str| Archive::default().pax(&[record]).file("x", b"").one();
    assert_eq!(with(108, b"\x80\0\0\0\xff\xff\xff\xfe").unwrap().uid, u32::MAX - 1);
    assert_eq!(with(108, b"\x80\0\0\0\xff\xff\xff\xff"), Err(Problem::Owner("uid")));
    assert_eq!(with(116, b"\x80\0\0\x01\0\0\0\0"), Err(Problem::Owner("gid")));
    assert_eq!(with(116, b"\xff\xff\xff\xff\xff\xff\xff\xff"), Err(Problem::Number("gid")));
    assert_eq!(with(108, b"0000008\0"), Err(Problem::Number("uid")));
    assert_eq!(pax("uid=4294967295"), Err(Problem::Owner("uid")));
    assert_eq!(pax("gid=99999999999999999999"), Err(Problem::Value("gid".into())));
    assert_eq!(with(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap().mtime.seconds, -2);
    assert_eq!(with(136, b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap().mtime.seconds, i64::MAX);
    assert_eq!(pax("mtime=-1e5"), Err(Problem::Value("mtime".into())));
    assert_eq!(with(100, b"0100644\0").unwrap().permissions, 0o644);
    assert_eq!(with(100, b"\xff\xff\xff\xff\xff\xff\xff\xff"), Err(Problem::Number("mode")));
    // 8 EiB, in every spelling, and a negative size.
    assert_eq!(with(124, b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), Err(Problem::FileTooLarge(1 << 63)));
    assert_eq!(pax("size=9223372036854775808"), Err(Problem::FileTooLarge(1 << 63)));
    assert_eq!(pax("size=18446744073709551615"), Err(Problem::FileTooLarge(u64::MAX)));
    assert_eq!(with(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), Err(Problem::Number("size")));
    assert_eq!(with(124, b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), Err(Problem::Number("size")));
}

#[test]
fn extended_headers_are_bounded() {
    for type_flag in *b"xgLK" {
        let header = RawHeader::new(USTAR, type_flag, "x", (1 << 20) + 1);
        let archive = Archive::default().header(&header);
        assert_eq!(read(&archive.0), Err(Problem::HeaderTooLarge((1 << 20) + 1)));
    }
    // The largest one is read.
    let record = format!("comment={}", "x".repeat((1 << 20) - 8 - 9));
    assert_eq!(pax_records(&[&record]).len(), 1 << 20);
    let archive = Archive::default().pax(&[&record]).file("x", b"").end();
    assert_eq!(read_in_pieces(&archive, 4096).unwrap().0.len(), 1);
}

#[test]
fn extended_attributes_are_bounded() {
    let xattr = |name: &str, value: &str| {
        let record = format!("SCHILY.xattr.{name}={value}");
        Archive::default().pax(&[&record]).file("x", b"").one()
    };
    assert!(xattr(&"n".repeat(255), &"v".repeat(65536)).is_ok());
    assert!(matches!(xattr(&"n".repeat(256), ""), Err(Problem::Xattr(_))));
    assert!(matches!(xattr("", ""), Err(Problem::Xattr(_))));
    assert!(matches!(xattr("n", &"v".repeat(65537)), Err(Problem::Xattr(_))));
    let many: Vec<String> = (0..8000).map(|i| format!("SCHILY.xattr.user.{i:04}=")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(matches!(Archive::default().pax(&many).file("x", b"").one(), Err(Problem::Xattr(_))));
    let nul = Archive::default().pax(&["LIBARCHIVE.xattr.user.%00=AA"]).file("x", b"").one();
    assert!(matches!(nul, Err(Problem::Xattr(_))));
}

fn slot(offset: u64, length: u64) -> Vec<u8> {
    format!("{offset:011o}\0{length:011o}\0").into_bytes()
}

#[test]
fn old_gnu_sparse_files_have_slots_in_the_header_and_behind_it() {
    let mut header = RawHeader::new(GNU, b'S', "sparse", 30);
    let slots = [slot(0, 1), slot(10, 1), slot(20, 1), slot(30, 1)].concat();
    header.set_bytes(386, &slots).set_bytes(482, &[1]).set(483, "00000010000\0");
    let first: Vec<u8> = (4..25).flat_map(|i| slot(i * 10, 1)).collect();
    let second = [slot(250, 5), slot(4096, 0)].concat();
    let mut archive = Archive::default().header(&header);
    archive.0.extend(&first);
    archive.0.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    let entry = archive.data(&second).data(&[7; 30]).file("next", b"").read().unwrap().remove(0);
    assert_eq!((entry.size, entry.data.clone()), (4096, 1536..1566));
    let segments = entry.sparse.unwrap();
    assert_eq!(segments.len(), 26);
    assert_eq!(segments[25], Segment { offset: 250, length: 5, source: 1561 });
}

#[test]
fn pax_sparse_files_of_all_versions_are_the_same() {
    let expected =
        Some(vec![Segment { offset: 1024, length: 512, source: 0 }, Segment { offset: 4096, length: 10, source: 512 }]);
    let data = [7; 522];
    let common = ["GNU.sparse.size=5000", "GNU.sparse.numblocks=2"];
    let zero =
        ["GNU.sparse.offset=1024", "GNU.sparse.numbytes=512", "GNU.sparse.offset=4096", "GNU.sparse.numbytes=10"];
    let one = ["GNU.sparse.name=dir/real", "GNU.sparse.map=1024,512,4096,10"];
    let head = ["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=dir/real", "GNU.sparse.realsize=5000"];
    let mut mapped = b"3\n1024\n512\n4096\n10\n5000\n0\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend(data);
    let archives = [
        Archive::default().pax(&[&common[..], &zero[..], &["path=dir/real"]].concat()).file("x", &data),
        Archive::default().pax(&[&common[..], &one[..]].concat()).file("x", &data),
        Archive::default().pax(&head).file("dir/GNUSparseFile.1/real", &mapped),
    ];
    for archive in archives {
        let entry = archive.file("next", b"").read().unwrap().remove(0);
        assert_eq!((&entry.path[..], entry.size, entry.data.end - entry.data.start), (&b"dir/real"[..], 5000, 522));
        let start = entry.data.start;
        let relative = entry.sparse.map(|segments| {
            segments.into_iter().map(|segment| Segment { source: segment.source - start, ..segment }).collect()
        });
        assert_eq!(relative, expected);
    }
}

#[test]
fn sparse_files_that_lie_are_refused() {
    let refused = |records: &[&str], data: &[u8]| {
        let result = Archive::default().pax(records).file("x", data).one();
        assert!(matches!(result, Err(Problem::Sparse(_) | Problem::FileTooLarge(_))), "{records:?}: {result:?}");
    };
    refused(&["GNU.sparse.map=0,1", "GNU.sparse.size=1", "GNU.sparse.numblocks=2"], b"x");
    refused(&["GNU.sparse.map=0,1", "GNU.sparse.size=1"], b"x");
    refused(&["GNU.sparse.map=0,1", "GNU.sparse.numblocks=1"], b"x");
    refused(&["GNU.sparse.map=0,1,0,1", "GNU.sparse.size=2", "GNU.sparse.numblocks=2"], b"xx");
    refused(&["GNU.sparse.map=0,2", "GNU.sparse.size=1", "GNU.sparse.numblocks=1"], b"xx");
    refused(&["GNU.sparse.map=0,1", "GNU.sparse.size=9223372036854775807", "GNU.sparse.numblocks=1"], b"x");
    refused(&["GNU.sparse.major=2", "GNU.sparse.minor=0", "GNU.sparse.realsize=1"], b"x");
    refused(&["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=1"], b"");
    refused(&["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=1"], b"1\n0\n1\n");
    refused(&["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=1"], &[b'1'; 512]);
    refused(&["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.map=0,1", "GNU.sparse.realsize=1"], b"x");
    let directory = Archive::default().pax(&["GNU.sparse.map=", "GNU.sparse.size=0"]).entry(b'5', "x", b"");
    assert!(matches!(directory.one(), Err(Problem::Sparse(_))));
}

#[test]
fn errors_say_where_and_which_entry() {
    let archive = Archive::default().file("good", b"data").file("bad\n\u{e9}", b"").end();
    let mut broken = archive.clone();
    broken[1024 + 108..1024 + 116].copy_from_slice(b"\x80\0\0\x01\0\0\0\0");
    let mut sum = RawHeader(broken[1024..1536].try_into().unwrap());
    sum.set(0, "");
    broken[1024..1536].copy_from_slice(&sum.0);
    let error = read_in_pieces(&broken, 4096).unwrap_err();
    assert_eq!(error.to_string(), "tar entry \"bad\\né\" at offset 1024: uid is out of range");
    let error = read_in_pieces(&archive[..700], 4096).unwrap_err();
    assert_eq!(error.to_string(), "tar entry \"good\" at offset 700: archive is truncated");
    let error = read_in_pieces(&[1; 700], 4096).unwrap_err();
    assert_eq!(error.to_string(), "tar at offset 0: not a tar header (wrong checksum)");
}
