//! GNU tar as the oracle: what it unpacks is what our indexes describe.

#![allow(clippy::unwrap_used, reason = "a test")]

mod hostile;
mod random;
mod sample;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;

use strata_layer::index::Index;
use strata_layer::listing::{Options, list_directory, list_index};
use strata_layer::tar::{EntryKind, Event, Limits, Parser};
use strata_layer::{LayerIngest, merge, whiteout};

fn ingest(tar: &Path) -> Index {
    let mut file = File::open(tar).unwrap();
    let mut layer = LayerIngest::new(Limits::default());
    let mut buffer = vec![0; 100_000];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            count => layer.push(&buffer[..count]).unwrap(),
        }
    }
    let index = Index::from_bytes(layer.finish().unwrap().index).unwrap();
    index.verify().unwrap();
    index
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Packs a directory, its own entry first.
fn pack(directory: &Path, tar: &Path, options: &[&str]) {
    let mut command = Command::new("tar");
    command.args(["--create", "--numeric-owner", "--sort=name"]).args(options);
    run(command.arg("--file").arg(tar).arg("--directory").arg(directory).arg("."));
}

fn unpack(tar: &Path, directory: &Path) {
    let mut command = Command::new("tar");
    command.args(["--extract", "--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]);
    run(command.arg("--file").arg(tar).arg("--directory").arg(directory));
}

/// Compares texts line by line, so that a failure is short.
fn assert_same_lines(ours: &str, theirs: &str, what: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (ours, theirs) = (lines(ours), lines(theirs));
    let only_ours: Vec<_> = ours.difference(&theirs).take(10).collect();
    let only_theirs: Vec<_> = theirs.difference(&ours).take(10).collect();
    assert!(only_ours.is_empty() && only_theirs.is_empty(), "{what}: ours {only_ours:#?} theirs {only_theirs:#?}");
}

#[test]
fn every_format_reads_as_it_unpacks() {
    let folder = tempfile::tempdir().unwrap();
    for (number, options) in [
        &["--format=posix", "--xattrs", "--sparse"][..],
        &["--format=posix", "--xattrs", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--xattrs", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0", "--pax-option=delete=mtime"],
        &["--format=posix", "--pax-option=globexthdr.name=g,comment=hello,mtime=1234567890"],
        &["--format=gnu", "--sparse"],
        &["--format=oldgnu", "--sparse"],
        &["--format=gnu", "--blocking-factor=1"],
        &["--format=ustar"],
        &["--format=v7"],
    ]
    .into_iter()
    .enumerate()
    {
        let original = folder.path().join(format!("original-{number}"));
        let extent = match *options.last().unwrap() {
            "--format=v7" => sample::Extent::V7,
            "--format=ustar" => sample::Extent::Ustar,
            _ => sample::Extent::Full,
        };
        sample::make(&original, extent);
        let tar = folder.path().join(format!("{number}.tar"));
        pack(&original, &tar, options);
        let unpacked = folder.path().join(format!("unpacked-{number}"));
        fs::create_dir(&unpacked).unwrap();
        unpack(&tar, &unpacked);
        let ours = list_index(&ingest(&tar), &[File::open(&tar).unwrap()], &Options::default()).unwrap();
        let theirs = list_directory(&unpacked, &Options::default()).unwrap();
        assert!(theirs.lines().count() > 10);
        assert_same_lines(&ours, &theirs, &format!("{options:?}"));
    }
}

#[test]
fn layers_merge_as_they_unpack_over_each_other() {
    for seed in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        let result = folder.path().join("result");
        fs::create_dir(&result).unwrap();
        let (mut indexes, mut tars) = (Vec::new(), Vec::new());
        let mut random = random::Random::new(seed);
        for number in 0..6 {
            let source = folder.path().join(format!("source-{number}"));
            random::make_layer(&mut random, &result, &source, number == 0);
            let tar = folder.path().join(format!("{number}.tar"));
            pack(&source, &tar, &["--format=posix", "--xattrs"]);
            apply(&source, &tar, &result);
            indexes.push(ingest(&tar));
            tars.push(File::open(&tar).unwrap());
            let merged = Index::from_bytes(merge(&indexes.iter().collect::<Vec<_>>()).unwrap()).unwrap();
            merged.verify().unwrap();
            let ours = list_index(&merged, &tars, &Options::default()).unwrap();
            let theirs = list_directory(&result, &Options::default()).unwrap();
            assert_same_lines(&ours, &theirs, &format!("seed {seed}, layer {number}"));
        }
    }
}

/// Applies a layer as engines that unpack do: what its markers name goes, what stands in the way goes, tar does the rest.
fn apply(source: &Path, tar: &Path, result: &Path) {
    let mut directories = vec![source.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let target = result.join(directory.strip_prefix(source).unwrap());
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if name.as_bytes() == whiteout::OPAQUE {
                for old in fs::read_dir(&target).into_iter().flatten().map(Result::unwrap) {
                    remove(&old.path());
                }
            } else if let Some(gone) = name.as_bytes().strip_prefix(whiteout::PREFIX) {
                remove(&target.join(std::ffi::OsStr::from_bytes(gone)));
            } else if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
                let old = target.join(&name);
                if fs::symlink_metadata(&old).is_ok_and(|old| !old.is_dir()) {
                    remove(&old);
                }
            } else {
                remove(&target.join(&name));
            }
        }
    }
    let mut command = Command::new("tar");
    command.args(["--extract", "--numeric-owner", "--preserve-permissions", "--xattrs", "--xattrs-include=*"]);
    command.arg("--exclude=.wh.*").arg("--file").arg(tar).arg("--directory").arg(result);
    run(&mut command);
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
    }
}

/// What two readers can agree on: time in seconds, no attributes, contents with the holes filled.
#[derive(Debug, PartialEq)]
struct Seen {
    path: Vec<u8>,
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    mtime: i64,
    link: Vec<u8>,
    contents: Vec<u8>,
}

#[test]
fn the_tar_crate_sees_the_same_entries() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    sample::make(&original, sample::Extent::Full);
    for options in [&["--format=gnu"][..], &["--format=gnu", "--sparse"], &["--format=posix"]] {
        let tar = folder.path().join("tar");
        pack(&original, &tar, options);
        assert_same_entries(&fs::read(&tar).unwrap());
    }
    // And what that crate writes.
    for sparse in [false, true] {
        let mut builder = tar::Builder::new(Vec::new());
        builder.follow_symlinks(false);
        builder.sparse(sparse);
        builder.append_dir_all("", &original).unwrap();
        assert_same_entries(&builder.into_inner().unwrap());
    }
}

fn assert_same_entries(bytes: &[u8]) {
    let (ours, theirs) = (seen_by_us(bytes), seen_by_the_crate(bytes));
    assert!(ours.len() > 10);
    assert_eq!(ours.len(), theirs.len());
    for (ours, mut theirs) in ours.into_iter().zip(theirs) {
        // That crate does not take times from PAX records. It takes negative ones for unsigned, and writes them as such.
        if theirs.mtime <= 0 {
            theirs.mtime = ours.mtime;
        }
        assert!(
            ours == theirs,
            "{:?} and {:?}",
            Seen { contents: vec![], ..ours },
            Seen { contents: vec![], ..theirs }
        );
    }
}

fn seen_by_the_crate(bytes: &[u8]) -> Vec<Seen> {
    let mut archive = tar::Archive::new(bytes);
    let see = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let header = entry.header();
        let kind = match header.entry_type() {
            tar::EntryType::GNUSparse => b'0',
            other => other.as_byte(),
        };
        let mut seen = Seen {
            path: entry.path_bytes().into_owned(),
            kind,
            mode: if kind == b'2' { 0o777 } else { header.mode().unwrap() & 0o7777 },
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            mtime: header.mtime().unwrap().cast_signed(),
            link: entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
            contents: Vec::new(),
        };
        entry.read_to_end(&mut seen.contents).unwrap();
        seen
    };
    archive.entries().unwrap().map(see).collect()
}

fn seen_by_us(bytes: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut parser = Parser::new(Limits::default());
    let mut rest = bytes;
    let place = |offset: u64| usize::try_from(offset).unwrap();
    while let Some(event) = parser.next_event(&mut rest).unwrap() {
        let Event::Entry(entry) = event else { continue };
        let mut contents = bytes[place(entry.data.start)..place(entry.data.end)].to_vec();
        if let Some(segments) = &entry.sparse {
            contents = vec![0; place(entry.size)];
            for segment in segments {
                let source = &bytes[place(segment.source)..][..place(segment.length)];
                contents[place(segment.offset)..][..source.len()].copy_from_slice(source);
            }
        }
        let (kind, link) = match entry.kind {
            EntryKind::Regular => (b'0', vec![]),
            EntryKind::HardLink { target } => (b'1', target),
            EntryKind::Symlink { target } => (b'2', target),
            EntryKind::CharDevice(_) => (b'3', vec![]),
            EntryKind::BlockDevice(_) => (b'4', vec![]),
            EntryKind::Directory => (b'5', vec![]),
            EntryKind::Fifo => (b'6', vec![]),
        };
        seen.push(Seen {
            path: entry.path,
            kind,
            mode: entry.permissions.into(),
            owner: (entry.uid.into(), entry.gid.into()),
            mtime: entry.mtime.seconds,
            link,
            contents,
        });
    }
    parser.finish().unwrap();
    seen
}
