//! A tree with one of everything.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// What the format of the archive can express.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
    V7,
    Ustar,
    Full,
}

pub(super) fn make(root: &Path, extent: Extent) {
    fs::create_dir(root).unwrap();
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("dir/sub")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("empty-file"), "").unwrap();
    fs::write(path("dir/file"), "hello").unwrap();
    for (name, size) in [("511", 511), ("512", 512), ("513", 513), ("large", 300_000)] {
        fs::write(path(name), vec![b'x'; size]).unwrap();
    }
    fs::hard_link(path("dir/file"), path("dir/sub/link")).unwrap();
    fs::hard_link(path("dir/file"), path("a-link")).unwrap();
    symlink("dir/../nowhere", path("symlink")).unwrap();
    symlink("/absolute", path("dir/absolute")).unwrap();
    for (name, mode) in [("511", 0o4755), ("512", 0o2711), ("513", 0), ("empty", 0o1777), ("dir/sub", 0o700)] {
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"latin-\xe9\xff")), "bytes").unwrap();
    fs::write(path("new\nline and space"), "").unwrap();
    if extent >= Extent::Ustar {
        let long = format!("{}/{}", "d".repeat(60), "e".repeat(60));
        fs::create_dir_all(path(&long)).unwrap();
        fs::write(path(&long).join("file"), "long").unwrap();
        rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
        if rustix::process::geteuid().is_root() {
            let device = rustix::fs::makedev(8, 17);
            rustix::fs::mknodat(CWD, path("block"), FileType::BlockDevice, Mode::from(0o600), device).unwrap();
            let device = rustix::fs::makedev(4095, 255);
            rustix::fs::mknodat(CWD, path("char"), FileType::CharacterDevice, Mode::from(0o600), device).unwrap();
        }
    }
    if extent == Extent::Full {
        make_the_rest(root);
    }
    let own = |name: &str, uid, gid| {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(path(name), Some(uid), Some(gid)).unwrap();
        }
    };
    own("large", 1000, 2000);
    own("symlink", 5, 6);
    if extent == Extent::Full {
        own("empty-file", 3_000_000_000, 4_294_967_293);
    }
    set_times(root, extent);
}

fn make_the_rest(root: &Path) {
    let path = |name: &str| root.join(name);
    let deep = (0..40).map(|i| format!("level-{i}")).collect::<Vec<_>>().join("/");
    fs::create_dir_all(path(&deep)).unwrap();
    fs::write(path(&deep).join("n".repeat(255)), "deep").unwrap();
    fs::hard_link(path(&deep).join("n".repeat(255)), path("to-the-deep")).unwrap();
    symlink("t".repeat(4000), path("long-symlink")).unwrap();
    symlink("t".repeat(100), path("symlink-100")).unwrap();
    let xattr = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::setxattr(path(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    xattr("dir/file", "user.a", b"value");
    xattr("dir/file", "user.binary", &[0, b'\n', b'=', 255]);
    xattr("dir/file", "user.empty", b"");
    xattr("dir", "user.with=and%25", b"x");
    if rustix::process::geteuid().is_root() {
        xattr("large", "trusted.t", &[7; 1000]);
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        xattr("512", "security.capability", &capability);
    }
    // Two pieces, more than fit a header and more than fit one block behind it; a hole alone; a hole at the end.
    for (name, pieces) in [("sparse-2", 2u64), ("sparse-20", 20), ("sparse-200", 200), ("sparse-0", 0)] {
        let file = File::create(path(name)).unwrap();
        for piece in 0..pieces {
            file.write_all_at(&[b'a'; 5000], (piece * 3 + 1) * 8192).unwrap();
        }
        file.set_len(pieces * 25_000 + 100_001).unwrap();
    }
    let file = File::create(path("sparse-end")).unwrap();
    file.write_all_at(b"end", 1 << 22).unwrap();
}

/// Gives everything its own time, directories after what is in them.
fn set_times(root: &Path, extent: Extent) {
    let mut paths = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            paths.extend(names);
        }
    }
    for (number, path) in paths.iter().enumerate().rev() {
        let number = i64::try_from(number).unwrap();
        let seconds = match (number % 4, extent) {
            (3, Extent::Full) => -1_000_000 * number,
            (2, Extent::Full) => 1 << 33,
            _ => 1_600_000_000 + number,
        };
        let time = Timespec { tv_sec: seconds, tv_nsec: 1_234_567 * number % 1_000_000_000 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
