//! What lookups cost on a real mount of an image, beside the kernel's overlayfs and fuse-overlayfs over the same layers.
//!
//! Everything happens in a mount namespace of the process's own: whatever kills it, no mount stays.

mod contender;
mod measure;
mod unpack;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Serialize;
use strata_imagestore::{ImageError, StackError};
use strata_layer::index::{Index, IndexError, Kind, NodeId};

use crate::engine::{Engine, lower_of};

use self::contender::{Contender, Layers};
use self::measure::{Paths, Trial};

/// The results of one run.
#[derive(Clone, Debug, Serialize)]
pub struct LookupReport {
    /// The image as it was named.
    pub image: String,
    /// The machine it ran on.
    pub machine: Machine,
    /// How many layers the image has.
    pub layers: usize,
    /// How many names its tree has.
    pub entries: usize,
    /// How many of them are directories.
    pub directories: usize,
    /// How many small files were read.
    pub small_files: usize,
    /// Each figure is the median of so many runs.
    pub rounds: usize,
    /// The figures, in the order of `contenders`.
    pub measures: Vec<Measure>,
    /// Who was measured.
    pub contenders: Vec<String>,
    /// Who was not, and why.
    pub skipped: Vec<(String, String)>,
}

/// Where it ran.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// How many CPUs may be used.
    pub cpus: usize,
    /// What kind they are.
    pub cpu_model: String,
}

/// One thing that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// What.
    pub name: String,
    /// How many operations one run has.
    pub operations: usize,
    /// Microseconds per operation for each contender.
    pub microseconds: Vec<f64>,
}

/// A benchmark that could not run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The image cannot be found.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its layers cannot be used.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Its index cannot be read.
    #[error("read the index of the image")]
    Index(#[from] IndexError),
    /// A mount namespace could not be made.
    #[error("make a mount namespace")]
    Namespace(#[source] io::Error),
    /// A file or folder of the benchmark.
    #[error("{what} {path:?}")]
    File {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A contender could not be mounted.
    #[error("mount by {contender}: {reason}")]
    Mount {
        /// Which.
        contender: String,
        /// Why.
        reason: String,
    },
}

impl Engine {
    /// Measures lookups in an image. `note` is told what is going on.
    pub fn bench_lookup(
        &self,
        name: &str,
        rounds: usize,
        note: &mut dyn FnMut(&str),
    ) -> Result<LookupReport, BenchError> {
        let image = self.images().resolve(name)?;
        let stack = self.images().stack(&image)?;
        let index = open_index(&stack.index)?;
        let paths = Paths::collect(&index);
        private_mounts()?;
        let folder = Folder::create(self.root())?;

        note("unpacking the layers for the other contenders");
        let layers: Vec<PathBuf> =
            stack.layers.iter().enumerate().map(|(number, _)| folder.path.join(number.to_string())).collect();
        for (number, layer) in stack.layers.iter().enumerate() {
            let index = open_index(&layer.index)?;
            unpack::unpack(&index, &layer.tar, &layers[..=number])?;
        }
        let layers = Layers { lower: lower_of(&stack), folders: layers, work: folder.path.clone() };

        let mut skipped = Vec::new();
        let mut contenders = Vec::new();
        for contender in Contender::ALL {
            match contender.mount(&layers) {
                Ok(_) => contenders.push(contender),
                // Our own must work; the others are a matter of the machine.
                Err(error) if contender == Contender::Strata => return Err(error),
                Err(error) => skipped.push((contender.to_string(), crate::error_chain(&error))),
            }
        }
        let mut measures = Vec::new();
        for trial in Trial::ALL {
            note(trial.name());
            let mut microseconds = Vec::new();
            for contender in &contenders {
                microseconds.push(trial.run(*contender, &layers, &paths, rounds)?);
            }
            measures.push(Measure {
                name: trial.name().to_owned(),
                operations: trial.operations(&paths),
                microseconds,
            });
        }
        Ok(LookupReport {
            image: name.to_owned(),
            machine: machine(),
            layers: stack.layers.len(),
            entries: paths.all.len(),
            directories: paths.directories.len(),
            small_files: paths.small_files.len(),
            rounds,
            measures,
            contenders: contenders.iter().map(ToString::to_string).collect(),
            skipped,
        })
    }
}

fn open_index(path: &Path) -> Result<Index, BenchError> {
    let file = fs::File::open(path).map_err(failed("open", path))?;
    Ok(Index::open(&file)?)
}

/// Leaves the host's mounts alone from here on.
fn private_mounts() -> Result<(), BenchError> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    let new_mounts = u64::from(rustix::thread::UnshareFlags::NEWNS.bits());
    strata_sys::clone::unshare(new_mounts).map_err(BenchError::Namespace)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| BenchError::Namespace(error.into()))?;
    // A copy of a mount here would keep its server alive after it is unmounted on the host.
    for mount in crate::mount::table::read().map_err(BenchError::Namespace)? {
        if mount.kind == crate::mount::FILESYSTEM_TYPE {
            // Gone meanwhile, or below another that is.
            let _ = rustix::mount::unmount(&mount.directory, rustix::mount::UnmountFlags::DETACH);
        }
    }
    Ok(())
}

/// The machine in words.
pub(crate) fn machine() -> Machine {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        cpu_model: model.map_or("unknown", |(_, model)| model).to_owned(),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    let path = path.to_owned();
    move |source| BenchError::File { what, path, source }
}

/// A folder for the time of the benchmark, on the disk of the store. What a killed benchmark left is removed first.
struct Folder {
    path: PathBuf,
    _lock: std::os::fd::OwnedFd,
}

impl Folder {
    fn create(root: &Path) -> Result<Folder, BenchError> {
        let parent = root.join("bench");
        fs::create_dir_all(&parent).map_err(failed("create", &parent))?;
        for entry in fs::read_dir(&parent).map_err(failed("read", &parent))?.flatten() {
            // One that is locked belongs to a benchmark that runs.
            if lock(&entry.path()).is_ok() {
                fs::remove_dir_all(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        let path = parent.join(std::process::id().to_string());
        fs::create_dir(&path).map_err(failed("create", &path))?;
        let lock = lock(&path).map_err(failed("lock", &path))?;
        Ok(Folder { path, _lock: lock })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = ?self.path, %error, "not removed; the next benchmark does it");
        }
    }
}

fn lock(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let folder = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

impl Paths {
    /// Collects the paths of a merged index, parents before children.
    fn collect(index: &Index) -> Paths {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let mut paths = Paths::default();
        let mut pending = vec![(NodeId::ROOT, PathBuf::new())];
        while let Some((directory, path)) = pending.pop() {
            paths.directories.push(path.clone());
            for child in index.children(directory) {
                let path = path.join(OsStr::from_bytes(child.name));
                paths.all.push(path.clone());
                let size = index.attributes(child.node).map_or(0, |attributes| attributes.size);
                match child.kind {
                    Kind::Directory => pending.push((child.node, path)),
                    Kind::Regular if size <= measure::SMALL && paths.small_files.len() < measure::MAX_SMALL_FILES => {
                        paths.small_files.push(path);
                    }
                    _ => {}
                }
            }
        }
        paths
    }
}
