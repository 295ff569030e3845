//! The table file: reading it, and making it from the layer's index.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use strata_layer::index::Index;
use strata_layer::objects;

use super::ObjectsUnavailable;

/// What a table is made from.
#[derive(Debug)]
pub(super) struct Source {
    /// The data.
    pub(super) tar: File,
    /// The description of the data.
    pub(super) index: Index,
    index_path: PathBuf,
}

impl Source {
    /// Opens the index that belongs to `tar`.
    pub(super) fn open(index_path: &Path, tar: File) -> Result<Source, ObjectsUnavailable> {
        let file = File::open(index_path).map_err(ObjectsUnavailable::io("open", index_path))?;
        let index =
            Index::open(&file).map_err(|source| ObjectsUnavailable::Index { path: index_path.to_owned(), source })?;
        let length = tar.metadata().map_err(ObjectsUnavailable::io("stat the tar of", index_path))?.len();
        let expected = index.layer(0).map_or(0, |layer| layer.tar_size);
        if length != expected {
            return Err(ObjectsUnavailable::TarLength { length, expected });
        }
        Ok(Source { tar, index, index_path: index_path.to_owned() })
    }

    /// Returns what ties a table, and a mount of it, to this very index and so to this very tar.
    pub(super) fn owner(&self) -> [u8; 32] {
        self.index.checksum()
    }
}

/// Opens the table of `source` at `path`, after writing it if what is there is not that table, whole.
///
/// # Preconditions
/// The caller holds the lock of the record beside the table.
pub(super) fn open_or_make(source: &Source, path: &Path) -> Result<File, ObjectsUnavailable> {
    match open_intact(path, &source.owner()) {
        Ok(Some(file)) => return Ok(file),
        Ok(None) => tracing::debug!(?path, "object table is damaged or of another index, making it again"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(ObjectsUnavailable::io("read", path)(error)),
    }
    let table = objects::table_of(&source.index)
        .map_err(|error| ObjectsUnavailable::Table { path: source.index_path.clone(), source: error })?;
    replace(path, &table).map_err(ObjectsUnavailable::io("write", path))?;
    File::open(path).map_err(ObjectsUnavailable::io("open", path))
}

/// Opens the table if its content is what was made for `owner`.
fn open_intact(path: &Path, owner: &[u8]) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(objects::is_intact(&bytes, owner).then_some(file))
}

/// Puts `bytes` at `path`, at once. Not durable: what a power cut damages is noticed and made again.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.to_owned().into_os_string();
    aside.push(".new");
    // The lock makes us the only writer, so a file of this name is what a killed one left.
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    let written = file.write_all(bytes).and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        // The first error is the one to report; the leftover is overwritten next time.
        let _ = std::fs::remove_file(&aside);
    }
    written
}
