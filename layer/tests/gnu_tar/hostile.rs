//! Archives that were tampered with: what we accept, GNU tar and Python's tarfile read in the same way.
//!
//! What we refuse is not compared: most of it other readers take in some way or other, each in its own. Neither is the
//! little that one of them refuses: they read numbers that mean nothing, such as the owner of an extended header.
//! `STRATA_TAR_CASES` asks for a long run, `STRATA_SEED` for other cases.

use std::fs;
use std::path::Path;
use std::process::Command;

use strata_layer::LayerIngest;
use strata_layer::tar::Limits;

use crate::random::Random;
use crate::seen_by_us;

/// An entry as all readers tell of it; each byte of the names is a character.
#[derive(Debug, PartialEq)]
struct Line {
    path: String,
    kind: char,
    size: u64,
    link: String,
}

#[test]
fn what_is_accepted_others_read_in_the_same_way() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let (cases, seed) = (number("STRATA_TAR_CASES").unwrap_or(1500), number("STRATA_SEED").unwrap_or(1));
    if Command::new("python3").arg("--version").output().is_err() {
        println!("SKIPPED: needs python3");
        return;
    }
    let seeds = seeds();
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut random = Random::new(seed as u64);
    let mut accepted = Vec::new();
    for case in 0..cases {
        let tar = tamper(&mut random, &seeds);
        if is_accepted(&tar) && !is_read_otherwise(&tar) {
            fs::write(folder.path().join(case.to_string()), &tar).unwrap();
            accepted.push((case, ours(&tar)));
        }
    }
    assert!(accepted.len() > cases / 20, "only {} of {cases} were accepted", accepted.len());
    let python = by_python(folder.path(), &accepted);
    assert_eq!(python.len(), accepted.len());
    let (mut refused, mut differences) = (0, Vec::new());
    for ((case, ours), python) in accepted.iter().zip(python) {
        let names = ours.iter().flat_map(|line| names(&line.path)).collect::<Vec<_>>();
        let gnu_tar = by_gnu_tar(&folder.path().join(case.to_string()));
        match (python, gnu_tar) {
            (Some(python), _) if python != *ours => {
                differences.push(format!("case {case} of {seed}: Python {python:?}\n ours {ours:?}"));
            }
            (_, Some(gnu_tar)) if gnu_tar != names => {
                differences.push(format!("case {case} of {seed}: GNU tar {gnu_tar:?}\n ours {names:?}"));
            }
            (python, gnu_tar) => refused += usize::from(python.is_none() || gnu_tar.is_none()),
        }
    }
    if !differences.is_empty() {
        let (kept, shown) = (folder.keep(), differences.len().min(10));
        panic!("{} differ, kept in {kept:?}:\n{}", differences.len(), differences[..shown].join("\n"));
    }
    assert!(refused < accepted.len() / 20, "others refuse {refused} of {}", accepted.len());
    println!("{} of {cases} accepted, {refused} not by others, the rest the same", accepted.len());
}

fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/tar");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    // The first byte tells the fuzz target in which pieces the archive comes.
    paths.iter().map(|path| fs::read(path).unwrap()[1..].to_vec()).collect()
}

/// Changes some headers and moves some blocks.
fn tamper(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = seeds[random.below(seeds.len())].clone();
    if random.below(4) == 0 {
        let other = &seeds[random.below(seeds.len())];
        let cut = random.below(tar.len() / 512 + 1) * 512;
        tar.truncate(cut);
        tar.extend_from_slice(&other[random.below(other.len() / 512 + 1) * 512..]);
    }
    for _ in 0..random.below(4) {
        if tar.len() < 1024 {
            break;
        }
        let block = random.below(tar.len() / 512) * 512;
        match random.below(8) {
            0 => drop(tar.drain(block..block + 512)),
            1 => {
                let copy = tar[block..block + 512].to_vec();
                tar.splice(block..block, copy);
            }
            2 => tar[block + 156] = b"01234567LKxgSVDMN\0"[random.below(18)],
            3 => tar[block + random.below(100)] = b"/.\\ \0a\xff"[random.below(7)],
            4 => tar[block + 157 + random.below(100)] = b"/.\0b"[random.below(4)],
            5 => tar[block + 124 + random.below(12)] = b"0123 7\0\x80"[random.below(8)],
            6 => tar[block + 257..block + 265]
                .copy_from_slice([b"ustar\x0000", b"ustar  \0", b"\0\0\0\0\0\0\0\0"][random.below(3)]),
            _ => tar[block + random.below(512)] = u8::try_from(random.below(256)).unwrap(),
        }
    }
    if random.below(10) == 0 {
        tar.truncate(random.below(tar.len() + 1));
    }
    repair(&mut tar);
    tar
}

/// Gives what looks like a header its right checksum.
fn repair(tar: &mut [u8]) {
    for block in tar.as_chunks_mut::<512>().0 {
        let is_header = block[257..262] == *b"ustar" || block[148..156].ends_with(b"\0 ");
        if is_header {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

fn is_accepted(tar: &[u8]) -> bool {
    let mut layer = LayerIngest::new(Limits::default());
    layer.push(tar).is_ok() && layer.finish().is_ok()
}

/// Archives that others are known to read otherwise, and why that is right.
fn is_read_otherwise(tar: &[u8]) -> bool {
    tar.chunks_exact(512).enumerate().any(|(number, block)| {
        // Python takes the times that GNU tar has there for a part of the name.
        let times = block[257..265] == *b"ustar  \0" && block[345..500].iter().any(|byte| *byte != 0);
        // Volume labels are no files; Python lists them as such.
        let label = block[156] == b'V';
        // Python reads a long name on behind its end, up to a NUL.
        let long_name = matches!(block[156], b'L' | b'K') && {
            let size = usize::from_str_radix(&text(&block[124..135]), 8).unwrap_or(0);
            size > 0 && tar.get((number + 1) * 512 + size - 1).is_some_and(|last| *last != 0)
        };
        times || label || long_name
    })
}

fn ours(tar: &[u8]) -> Vec<Line> {
    let line = |seen: crate::Seen| Line {
        path: plain(&text(&seen.path)),
        kind: char::from(seen.kind),
        size: if seen.kind == b'0' { seen.contents.len() as u64 } else { 0 },
        link: text(&seen.link),
    };
    seen_by_us(tar).into_iter().map(line).collect()
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Without slashes at the end, which say no more than the type does.
fn plain(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" if path.starts_with('/') => "/".to_owned(),
        path => path.to_owned(),
    }
}

/// What Python's tarfile reads of each archive; `None` if it fails.
fn by_python(folder: &Path, cases: &[(usize, Vec<Line>)]) -> Vec<Option<Vec<Line>>> {
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON]).arg(folder).args(cases.iter().map(|(case, _)| case.to_string()));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = |hex: &str| {
        let byte = |at: usize| char::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        (0..hex.len()).step_by(2).map(byte).collect::<String>()
    };
    let line = |entry: &str| {
        let fields: Vec<&str> = entry.split(',').collect();
        let (path, link) = (plain(&bytes(fields[0])), bytes(fields[3]));
        Line { path, kind: fields[1].chars().next().unwrap(), size: fields[2].parse().unwrap(), link }
    };
    let of = |text: &str| (text != "!").then(|| text.split_whitespace().map(line).collect());
    String::from_utf8(output.stdout).unwrap().lines().map(of).collect()
}

const PYTHON: &str = r#"
import sys, tarfile
def text(name): return name.encode("utf-8", "surrogateescape").hex()
kinds = [("isfile", "0"), ("islnk", "1"), ("issym", "2"), ("ischr", "3"), ("isblk", "4"), ("isdir", "5"), ("isfifo", "6")]
for case in sys.argv[2:]:
    try:
        with tarfile.open(sys.argv[1] + "/" + case, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            found = []
            for entry in archive:
                kind = next(kind for test, kind in kinds if getattr(entry, test)())
                # A slash at the end of a name makes a directory since v7; for Python only where the type is NUL.
                if kind == "0" and entry.name.endswith("/"): kind = "5"
                link = text(entry.linkname) if kind in "12" else ""
                found.append(f"{text(entry.name)},{kind},{entry.size if kind == '0' else 0},{link}")
            # It takes a header that it does not understand for the end.
            archive.fileobj.seek(archive.offset)
            print("!" if any(archive.fileobj.read(512)) else " ".join(found))
    except tarfile.TarError:
        print("!")
"#;

/// The names that GNU tar lists; `None` if it fails.
fn by_gnu_tar(tar: &Path) -> Option<Vec<String>> {
    let mut command = Command::new("tar");
    command.args(["--list", "--quoting-style=literal", "--absolute-names", "--file"]).arg(tar);
    let output = command.env("LC_ALL", "C").output().unwrap();
    output.status.success().then(|| names(&text(&output.stdout)))
}

/// The names of a list, one on a line. A name with a newline counts as two.
fn names(list: &str) -> Vec<String> {
    list.split('\n').filter(|name| !name.is_empty()).map(plain).collect()
}
