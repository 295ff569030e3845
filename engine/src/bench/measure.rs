//! The operations that are timed.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::contender::{Contender, Layers};
use super::{BenchError, failed};

/// Files up to this size are small.
pub(super) const SMALL: u64 = 16 << 10;
/// So many of them are read at most.
pub(super) const MAX_SMALL_FILES: usize = 5000;

/// What there is in the image, relative to its root.
#[derive(Debug, Default)]
pub(super) struct Paths {
    pub(super) all: Vec<PathBuf>,
    pub(super) directories: Vec<PathBuf>,
    pub(super) small_files: Vec<PathBuf>,
}

/// One measurement. "First" is on a mount nobody has looked at yet, "again" follows on the same mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    WalkFirst,
    WalkAgain,
    ListFirst,
    AbsentFirst,
    AbsentAgain,
    ReadDirectories,
    ReadFilesFirst,
    ReadFilesAgain,
}

impl Trial {
    pub(super) const ALL: [Trial; 8] = [
        Trial::WalkFirst,
        Trial::WalkAgain,
        Trial::ListFirst,
        Trial::AbsentFirst,
        Trial::AbsentAgain,
        Trial::ReadDirectories,
        Trial::ReadFilesFirst,
        Trial::ReadFilesAgain,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Trial::WalkFirst => "walk + stat, first",
            Trial::WalkAgain => "walk + stat, again",
            Trial::ListFirst => "stat by list, first",
            Trial::AbsentFirst => "absent name, first",
            Trial::AbsentAgain => "absent name, again",
            Trial::ReadDirectories => "read directory, again",
            Trial::ReadFilesFirst => "read small file, first",
            Trial::ReadFilesAgain => "read small file, again",
        }
    }

    pub(super) fn operations(self, paths: &Paths) -> usize {
        match self {
            Trial::WalkFirst | Trial::WalkAgain | Trial::ListFirst => paths.all.len(),
            Trial::AbsentFirst | Trial::AbsentAgain | Trial::ReadDirectories => paths.directories.len(),
            Trial::ReadFilesFirst | Trial::ReadFilesAgain => paths.small_files.len(),
        }
    }

    /// Returns the median of `rounds` runs in microseconds per operation.
    pub(super) fn run(
        self,
        contender: Contender,
        layers: &Layers,
        paths: &Paths,
        rounds: usize,
    ) -> Result<f64, BenchError> {
        let mut results = Vec::new();
        for _ in 0..rounds.max(1) {
            let mounted = contender.mount(layers)?;
            let root = mounted.root();
            // The first request of all waits until a server is up, which is not what is measured.
            fs::metadata(root).map_err(failed("look at", root))?;
            if self.is_again() {
                self.once(root, paths).map_err(failed("look at", root))?;
            }
            let start = Instant::now();
            self.once(root, paths).map_err(failed("look at", root))?;
            let operations = self.operations(paths).max(1);
            #[expect(clippy::cast_precision_loss, reason = "a count of names is far below 2^52")]
            results.push(start.elapsed().as_secs_f64() * 1e6 / operations as f64);
        }
        results.sort_by(f64::total_cmp);
        Ok(results[results.len() / 2])
    }

    fn is_again(self) -> bool {
        matches!(self, Trial::WalkAgain | Trial::AbsentAgain | Trial::ReadDirectories | Trial::ReadFilesAgain)
    }

    fn once(self, root: &Path, paths: &Paths) -> io::Result<()> {
        match self {
            Trial::WalkFirst | Trial::WalkAgain => walk(root),
            Trial::ListFirst => paths.all.iter().try_for_each(|path| fs::symlink_metadata(root.join(path)).map(drop)),
            Trial::AbsentFirst | Trial::AbsentAgain => {
                for directory in &paths.directories {
                    let absent = root.join(directory).join(".no-such-name");
                    match fs::symlink_metadata(&absent) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                        Ok(_) => return Err(io::Error::other("the image has a name that nothing should have")),
                    }
                }
                Ok(())
            }
            Trial::ReadDirectories => paths
                .directories
                .iter()
                .try_for_each(|directory| fs::read_dir(root.join(directory))?.try_for_each(|entry| entry.map(drop))),
            Trial::ReadFilesFirst | Trial::ReadFilesAgain => {
                let mut buffer = vec![0; 2 * usize::try_from(SMALL).unwrap_or(0)];
                paths.small_files.iter().try_for_each(|path| {
                    let mut file = fs::File::open(root.join(path))?;
                    while file.read(&mut buffer)? > 0 {}
                    Ok(())
                })
            }
        }
    }
}

/// As `find -ls`: every directory is read, everything in it is looked at.
fn walk(root: &Path) -> io::Result<()> {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}
