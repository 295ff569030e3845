//! Where the tables of an index go that are too large for memory.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use strata_layer::index::NewIndex;
use strata_layer::{Memory, Scratch, ScratchError};

use crate::disk::{DiskError, create_new};

/// Lets tables go into files without a name in `folder`, which must exist as long as something is added to them.
pub(crate) fn scratch_in(folder: &Path) -> Scratch {
    let folder = folder.to_owned();
    Scratch::new(&MEMORY, move || unnamed_file(&folder))
}

/// Says which folder's files failed.
pub(crate) fn failed_in(folder: &Path, error: ScratchError) -> DiskError {
    DiskError { action: "write temporary files in", path: folder.to_owned(), source: error.to_io() }
}

/// Writes an index to a new file, which is not on the disk yet.
pub(crate) fn write_index(index: NewIndex, path: &Path) -> Result<File, DiskError> {
    let folder = path.parent().expect("files of the store lie in folders");
    let mut file = create_new(path)?;
    index.write_to(&mut file).map_err(|error| failed_in(folder, error))?;
    Ok(file)
}

/// Makes a file that is gone when it is closed.
fn unnamed_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // Not every file system can.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = folder.join(format!("scratch-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// What the tables of all layers on their way in may take in memory: some 160,000 entries. An index takes nearly as much
/// again when it is put together.
static MEMORY: Memory = Memory::new(16 << 20);
