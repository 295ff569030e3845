//! A tree with everything in it, and writing a tree with the tar writer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use strata_layer::index::{Device, Timestamp};
use strata_layer::tar_writer::{Skipped, TarEntry, TarKind, TarWriter};

/// Makes one of each, and what only root can make if that is who we are.
pub(crate) fn make(root: &Path) {
    let at = |name: &[u8]| root.join(OsStr::from_bytes(name));
    let long = |length| vec![b'n'; length];
    std::fs::create_dir(at(b"dir")).unwrap();
    for (name, length) in [(&b"empty"[..], 0), (b"one", 1), (b"block", 512), (b"dir/large", 1 << 20)] {
        std::fs::write(at(name), vec![b'c'; length]).unwrap();
    }
    for name in
        [&b"not \xff\xfe utf-8"[..], b"new\nline", b"back\\slash", b" space ", b"..x", b".whx", b"wh.", b"eq=ual"]
    {
        std::fs::write(at(name), name).unwrap();
    }
    for length in [99, 100, 101, 155, 200, 255] {
        std::fs::write(at(&long(length)), b"long name").unwrap();
        let deep = [&long(length)[1..], b"d"].concat();
        std::fs::create_dir(at(&deep)).unwrap();
        std::fs::write(at(&[&deep, &b"/"[..], &long(length)].concat()), b"long path").unwrap();
    }
    let not_utf8 = [&[0xff; 150][..], b"/", &[0xfe; 200]].concat();
    std::fs::create_dir(at(&[0xff; 150])).unwrap();
    std::fs::write(at(&not_utf8), b"long and not utf-8").unwrap();

    symlink("one", at(b"link")).unwrap();
    symlink("/nowhere/../at all", at(b"dangling")).unwrap();
    symlink(OsStr::from_bytes(&[b't'; 100]), at(b"link-100")).unwrap();
    symlink(OsStr::from_bytes(&[b't'; 4000]), at(b"link-4000")).unwrap();
    std::fs::hard_link(at(b"one"), at(b"one-more")).unwrap();
    std::fs::hard_link(at(b"one"), at(b"dir/one-more")).unwrap();
    std::fs::hard_link(at(&long(200)), at(b"long-more")).unwrap();
    std::fs::hard_link(at(b"dangling"), at(b"dangling-more")).unwrap();

    let sparse = File::create(at(b"sparse")).unwrap();
    sparse.write_all_at(&[b's'; 5000], 1 << 20).unwrap();
    sparse.write_all_at(&[b't'; 5000], 3 << 20).unwrap();
    sparse.set_len((4 << 20) + 1).unwrap();
    File::create(at(b"hole")).unwrap().set_len(1 << 20).unwrap();
    File::create(at(b"small-hole")).unwrap().set_len(5000).unwrap();

    drop(UnixListener::bind(at(b"socket")).unwrap());
    rustix::fs::mknodat(CWD, at(b"fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    for (number, permissions) in [0o0, 0o7, 0o1777, 0o2755, 0o4711].into_iter().enumerate() {
        let name = at(format!("mode-{number}").as_bytes());
        std::fs::write(&name, b"").unwrap();
        rustix::fs::chmod(&name, Mode::from_raw_mode(permissions)).unwrap();
    }
    let times =
        [(0, 0), (1, 1), (1_700_000_000, 123_456_789), (-1, 0), (-1, 999_999_999), (-2_000, 1), (4_102_444_800, 0)];
    for (number, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        let name = at(format!("time-{number}").as_bytes());
        std::fs::write(&name, b"").unwrap();
        set_mtime(&name, seconds, nanoseconds);
    }
    rustix::fs::setxattr(at(b"one"), "user.one", b"1\0=\n", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(at(b"dir"), "user.of a dir", &[b'v'; 1000], XattrFlags::empty()).unwrap();

    if rustix::process::geteuid().is_root() {
        for (name, file_type, major, minor) in
            [("null", FileType::CharacterDevice, 1, 3), ("disk", FileType::BlockDevice, 300, 1_000_000)]
        {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(CWD, root.join(name), file_type, Mode::from_raw_mode(0o666), device).unwrap();
        }
        for (number, id) in [1, 2_097_151, 2_097_152, 4_000_000_000u32].into_iter().enumerate() {
            let name = at(format!("owner-{number}").as_bytes());
            std::fs::write(&name, b"").unwrap();
            std::os::unix::fs::chown(&name, Some(id), Some(id - 1)).unwrap();
        }
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        std::fs::write(at(b"capable"), b"").unwrap();
        rustix::fs::setxattr(at(b"capable"), "security.capability", capability, XattrFlags::empty()).unwrap();
        rustix::fs::lsetxattr(at(b"link"), "trusted.on.a.link", b"value", XattrFlags::empty()).unwrap();
    }
    restore_root_mtime(root);
}

/// Sets the root's time to a known one.
pub(crate) fn restore_root_mtime(root: &Path) {
    set_mtime(root, 1_600_000_000, 5);
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Writes the tree to a tar.
pub(crate) fn archive(root: &Path, out: File) -> Vec<Skipped> {
    let mut writer = TarWriter::new(std::io::BufWriter::new(out));
    add(&mut writer, root, b"", &mut HashMap::new());
    let (out, skipped) = writer.finish().unwrap();
    out.into_inner().unwrap();
    skipped
}

fn add<W: std::io::Write>(
    writer: &mut TarWriter<W>,
    file: &Path,
    path: &[u8],
    seen: &mut HashMap<(u64, u64), Vec<u8>>,
) {
    let metadata = file.symlink_metadata().unwrap();
    let link = std::fs::read_link(file).unwrap_or_default();
    let first = seen.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_vec()).clone();
    let kind = match metadata.file_type() {
        kind if kind.is_dir() => TarKind::Directory,
        kind if kind.is_socket() => TarKind::Socket,
        _ if first != path => TarKind::HardLink { target: &first },
        kind if kind.is_symlink() => TarKind::Symlink { target: link.as_os_str().as_bytes() },
        kind if kind.is_fifo() => TarKind::Fifo,
        kind if kind.is_char_device() => TarKind::CharDevice(device(&metadata)),
        kind if kind.is_block_device() => TarKind::BlockDevice(device(&metadata)),
        _ => TarKind::Regular { size: metadata.len() },
    };
    let xattrs = xattrs(file);
    let xattrs: Vec<(&[u8], &[u8])> = xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let entry = TarEntry {
        path,
        kind,
        permissions: u16::try_from(metadata.mode() & 0o7777).unwrap(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: Timestamp { seconds: metadata.mtime(), nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap() },
        xattrs: if matches!(kind, TarKind::HardLink { .. }) { &[] } else { &xattrs },
    };
    match kind {
        TarKind::Regular { .. } => writer.append_file(&entry, &File::open(file).unwrap()).unwrap(),
        _ => writer.append(&entry).unwrap(),
    }
    if kind == TarKind::Directory {
        let mut names: Vec<_> = std::fs::read_dir(file).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let below = if path.is_empty() { name.as_bytes().to_vec() } else { [path, b"/", name.as_bytes()].concat() };
            add(writer, &file.join(&name), &below, seen);
        }
    }
}

fn device(metadata: &Metadata) -> Device {
    Device { major: rustix::fs::major(metadata.rdev()), minor: rustix::fs::minor(metadata.rdev()) }
}

fn xattrs(file: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut buffer = vec![0; 65536];
    let length = rustix::fs::llistxattr(file, &mut buffer).unwrap();
    let names: Vec<_> =
        buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    names
        .into_iter()
        .map(|name| {
            let length = rustix::fs::lgetxattr(file, &name[..], &mut buffer).unwrap();
            (name, buffer[..length].to_vec())
        })
        .collect()
}

/// Returns the lines that only one of two listings has.
pub(crate) fn difference(expected: &str, found: &str) -> String {
    let only = |a: &str, b: &str, sign: char| -> String {
        let b: std::collections::HashSet<_> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).map(|line| format!("{sign}{line}\n")).collect()
    };
    only(expected, found, '-') + &only(found, expected, '+')
}
