//! Random layers over a given tree.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

/// The same numbers for the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

/// Makes the directory of a layer that changes the tree at `below`: new files and directories, replaced ones of the same
/// or another type, deleted ones, opaque directories. Every directory on the way has its own entry.
pub(super) fn make_layer(random: &mut Random, below: &Path, source: &Path, is_first: bool) {
    fs::create_dir(source).unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for step in 0..if is_first { 60 } else { 25 } {
        let depth = 1 + random.below(4);
        let parts: Vec<String> = (0..depth).map(|_| format!("n{}", random.below(5))).collect();
        let (name, parents) = parts.split_last().unwrap();
        let directory = source.join(parents.join("/"));
        // What this layer has as something else is not a directory as well: archives like that are tested elsewhere.
        let blocked = directory.ancestors().any(|path| path.starts_with(source) && path.exists() && !path.is_dir());
        let blocked = blocked || directory.ancestors().any(|path| path.is_symlink());
        let path = directory.join(name);
        if blocked || path.symlink_metadata().is_ok() {
            continue;
        }
        let marker = directory.join(format!(".wh.{name}"));
        match random.below(10) {
            0..=3 => {
                fs::create_dir_all(&directory).unwrap();
                fs::write(&path, format!("{step} {name}").repeat(random.below(200))).unwrap();
                if random.below(4) == 0 {
                    rustix::fs::setxattr(&path, "user.step", step.to_string().as_bytes(), XattrFlags::empty()).unwrap();
                }
                files.push(path);
            }
            4 => fs::create_dir_all(&path).unwrap(),
            5 => {
                fs::create_dir_all(&directory).unwrap();
                symlink(name, &path).unwrap();
            }
            6 if !files.is_empty() => {
                fs::create_dir_all(&directory).unwrap();
                fs::hard_link(&files[random.below(files.len())], &path).unwrap();
            }
            7 | 8 if below.join(parts.join("/")).symlink_metadata().is_ok() => {
                fs::create_dir_all(&directory).unwrap();
                fs::write(&marker, "").unwrap();
            }
            9 if directory != source => {
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join(".wh..wh..opq"), "").unwrap();
            }
            _ => {}
        }
    }
    finish(random, source);
}

/// Gives modes and times to everything, directories last.
fn finish(random: &mut Random, path: &Path) {
    let metadata = path.symlink_metadata().unwrap();
    if metadata.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.iter().for_each(|name| finish(random, name));
    }
    if !metadata.is_symlink() {
        let mode = [0o755, 0o700, 0o1777, 0o4755][random.below(4)];
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let seconds = i64::try_from(1_500_000_000 + random.below(100_000_000)).unwrap();
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::try_from(random.below(1_000_000_000)).unwrap() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
