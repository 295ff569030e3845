//! Rows that only look.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::data::Noise;
use super::samples::Stopwatch;

/// What to look at in a tree, the same in each run.
#[derive(Clone, Debug)]
pub struct Places {
    /// Everything there is.
    pub entries: u64,
    /// Files in a random order.
    pub files: Vec<PathBuf>,
    /// Names that do not exist, in folders that do.
    pub missing: Vec<PathBuf>,
    /// Small regular files in a random order.
    pub small: Vec<PathBuf>,
}

impl Places {
    /// Chooses at most `most` of each kind below a folder.
    pub fn choose(root: &Path, most: usize) -> Result<Places> {
        let (mut entries, mut files, mut folders) = (0, Vec::new(), vec![root.to_owned()]);
        let mut next = 0;
        while let Some(folder) = folders.get(next).cloned() {
            next += 1;
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                entries += 1;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    files.push(entry.path());
                }
            }
        }
        let relative = |path: &PathBuf| path.strip_prefix(root).map(Path::to_owned);
        let mut files = files.iter().map(relative).collect::<Result<Vec<_>, _>>()?;
        files.sort();
        let mut folders = folders.iter().map(relative).collect::<Result<Vec<_>, _>>()?;
        folders.sort();
        let mut noise = Noise::new(8);
        for last in (1..files.len()).rev() {
            files.swap(last, usize::try_from(noise.next())? % (last + 1));
        }
        let mut missing = Vec::new();
        for number in 0..most {
            let folder = &folders[usize::try_from(noise.next())? % folders.len()];
            missing.push(folder.join(format!("no-file-{number}")));
        }
        let small = files.iter().filter(|path| path.to_string_lossy().contains("file-")).take(most).cloned().collect();
        files.truncate(most);
        Ok(Places { entries, files, missing, small })
    }
}

/// Visits and stats everything, three times: after the first, FUSE asks once more for the attributes of each folder that
/// was read, as that has changed its access time.
pub fn walk(watch: &mut Stopwatch<'_>, places: &Places) -> Result<()> {
    let point = watch.point.clone();
    for name in ["walk + stat, fresh", "walk + stat, second", "walk + stat, repeated"] {
        let seen = watch.time(name, places.entries, || walk_all(&point))?;
        ensure!(seen == places.entries, "{seen} entries, not {}", places.entries);
    }
    Ok(())
}

fn walk_all(root: &Path) -> Result<u64> {
    let mut entries = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut listing = Dir::new(rustix::fs::open(&folder, flags, Mode::empty())?)?;
        while let Some(entry) = listing.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            entries += 1;
            black_box(rustix::fs::statat(listing.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?);
            if entry.file_type() == FileType::Directory {
                pending.push(folder.join(name.to_str()?));
            }
        }
    }
    Ok(entries)
}

/// Stats files by their paths, twice.
pub fn stat(watch: &mut Stopwatch<'_>, places: &Places) -> Result<()> {
    let paths: Vec<PathBuf> = places.files.iter().map(|path| watch.point.join(path)).collect();
    for name in ["stat by list, fresh", "stat by list, repeated"] {
        watch.time(name, paths.len() as u64, || {
            for path in &paths {
                black_box(rustix::fs::lstat(path).with_context(|| format!("stat {path:?}"))?);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Looks for what is not there, twice.
pub fn missing(watch: &mut Stopwatch<'_>, places: &Places) -> Result<()> {
    let paths: Vec<PathBuf> = places.missing.iter().map(|path| watch.point.join(path)).collect();
    for name in ["negative lookup, fresh", "negative lookup, repeated"] {
        watch.time(name, paths.len() as u64, || {
            for path in &paths {
                ensure!(rustix::fs::lstat(path).err() == Some(rustix::io::Errno::NOENT), "{path:?} exists");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Reads small files, twice.
pub fn small(watch: &mut Stopwatch<'_>, places: &Places) -> Result<()> {
    let paths: Vec<PathBuf> = places.small.iter().map(|path| watch.point.join(path)).collect();
    let mut buffer = vec![0; 1 << 16];
    for name in ["open+read+close, first", "open+read+close, repeated"] {
        watch.time(name, paths.len() as u64, || {
            for path in &paths {
                let mut file = File::open(path).with_context(|| format!("open {path:?}"))?;
                let mut read = 0;
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        more => read += more,
                    }
                }
                ensure!(read > 0, "{path:?} is empty");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Reads one large file in each way, per MiB or per 4 KiB.
pub fn large(watch: &mut Stopwatch<'_>) -> Result<()> {
    let path = watch.point.join("large");
    let size = path.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    for name in ["large file, sequential, first", "large file, sequential, repeated"] {
        watch.time(name, size >> 20, || {
            let mut file = File::open(&path)?;
            while file.read(&mut buffer)? > 0 {}
            Ok(())
        })?;
    }
    let file = File::open(&path)?;
    watch.time("large file, random 4k", 20_000, || {
        let mut noise = Noise::new(9);
        for _ in 0..20_000 {
            file.read_exact_at(&mut buffer[..4096], noise.next() % (size >> 12) * 4096)?;
        }
        Ok(())
    })?;
    drop(file);
    let file = File::open(&path)?;
    watch.time("large file, mmap", size >> 12, || touch(&file, size))
}

/// Reads one byte of each page through a mapping.
fn touch(file: &File, size: u64) -> Result<()> {
    let bytes = strata_sys::map::Map::of(file)?;
    ensure!(bytes.len() as u64 == size, "the whole file is mapped");
    let mut sum = 0_u64;
    for page in (0..bytes.len()).step_by(4096) {
        sum = sum.wrapping_add(u64::from(bytes[page]));
    }
    black_box(sum);
    Ok(())
}
