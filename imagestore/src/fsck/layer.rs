//! Checking one layer: its tar, and everything that lies beside it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use strata_layer::{DiffId, Digest, objects};
use strata_sys::verity;

use super::{Check, Depth, Subject, is_damage};
use crate::disk::{DiskError, OnDisk, create_new, exists, open_if_present, read_if_present};
use crate::layout::{BLOB, CHECKED, COMPRESSED, INDEX, OBJECTS, TAR, VERITY};
use crate::lazy::{FolderAccess, LAZY, LazyFolder, NEXT_INDEX, is_lazy};
use crate::progress::Event;
use crate::scratch::failed_in;
use crate::stack::{StackError, open_index, open_sound};
use crate::store::{Store, StoreError};

impl Check<'_> {
    /// Checks a layer.
    pub(super) fn layer(&mut self, layer: DiffId) -> Result<(), StoreError> {
        let paths = self.store.layer_paths(layer);
        if paths.lazy_in.is_some() {
            return self.lazy(layer);
        }
        let Some(tar) = open_if_present(&paths.tar)? else {
            self.found(Subject::Layer(layer), "its tar is missing");
            return Ok(());
        };
        if let Some(problem) = self.verity(layer, &tar)? {
            self.found(Subject::Layer(layer), problem);
            return Ok(());
        }
        let whole = match self.options.depth {
            Depth::Quick => false,
            Depth::Whole => true,
            Depth::NotCheckedFor(time) => !self.was_checked(layer, time),
        };
        if whole {
            self.content(layer)?;
        } else {
            self.surface(layer, &tar)?;
        }
        self.objects(layer)?;
        self.notes(layer)
    }

    /// Checks what there is of a layer that is not whole. Its content is verified when it comes, and as a whole at the end.
    fn lazy(&mut self, layer: DiffId) -> Result<(), StoreError> {
        let place = self.store.layout.layer(layer);
        match LazyFolder::open(&place.join(LAZY), FolderAccess::Read) {
            Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                self.found(Subject::Layer(layer), super::with_causes(&error));
                return Ok(());
            }
            Ok(Some(folder)) if folder.is_refused()? => {
                self.found(Subject::Layer(layer), "it is not what its table of contents said");
                return Ok(());
            }
            // It may have become an ordinary one meanwhile.
            Ok(None) if open_if_present(&place.join(TAR))?.is_none() && is_lazy(&place)? => {
                self.found(Subject::Layer(layer), "what was fetched of it is missing");
                return Ok(());
            }
            result => drop(result?),
        }
        // It cannot be made of a tar that is not there.
        if open_sound(&self.store.layer_paths(layer).index)?.is_none() {
            self.found(Subject::Layer(layer), "it is not whole, and its index is damaged");
        }
        Ok(())
    }

    /// Reads the whole tar.
    fn content(&mut self, layer: DiffId) -> Result<(), StoreError> {
        let paths = self.store.layer_paths(layer);
        let name = layer.to_string();
        self.report.read += 1;
        self.progress
            .report(Event::Started { layer: &name, bytes: fs::metadata(&paths.tar).ok().map(|tar| tar.len()) });
        let mut advanced = |bytes| self.progress.report(Event::Advanced { layer: &name, bytes });
        let index = match self.store.read_layer_again(layer, self.scratch.as_ref(), &mut advanced) {
            Ok(index) => index,
            Err(StackError::Store(error)) if !is_damage(&error) => return Err(error),
            Err(StackError::DamagedLayer { found: Some(found), .. }) => {
                self.found(Subject::Layer(layer), format!("its tar has the digest {found}"));
                return Ok(());
            }
            Err(StackError::DamagedLayer { found: None, .. }) => {
                self.found(Subject::Layer(layer), "its tar is no layer any more");
                return Ok(());
            }
            Err(error) => {
                self.found(Subject::Layer(layer), super::with_causes(&error));
                return Ok(());
            }
        };
        self.progress.report(Event::Finished { layer: &name });
        if self.store.check_writable().is_ok() {
            mark_checked(&self.store.layout.layer(layer));
        }
        let path = self.index_of_tar(layer)?;
        let expected = index.checksum().map_err(|error| failed_in(&self.store.layout.work(), error))?;
        // Caches may be missing.
        if exists(&path)? && open_index(&path)?.is_none_or(|found| !found.is_the_one_of(&expected)) {
            let (subject, tar) = (Subject::LayerIndex(layer), Subject::Layer(layer));
            let make = |store: &Store| store.make_layer_index(layer, &path).map(drop);
            return self.found_index(subject, "it is not what the tar gives", tar, make);
        }
        Ok(())
    }

    /// Where the index of a layer's tar is: in its place, or beside it, where a kill has left it for the next user of the
    /// layer to put it in its place.
    fn index_of_tar(&self, layer: DiffId) -> Result<PathBuf, StoreError> {
        let folder = self.store.layout.layer(layer);
        let next = folder.join(NEXT_INDEX);
        Ok(if exists(&next)? { next } else { folder.join(INDEX) })
    }

    /// Looks at a layer without reading its tar.
    fn surface(&mut self, layer: DiffId, tar: &File) -> Result<(), StoreError> {
        let (paths, path) = (self.store.layer_paths(layer), self.index_of_tar(layer)?);
        let present = open_if_present(&path)?.is_some();
        match open_sound(&path)? {
            Some(index) => {
                let (is, expected) = (tar.metadata().on_disk("examine", &paths.tar)?.len(), index.layer(0));
                if let Some(expected) = expected.filter(|expected| expected.tar_size != is) {
                    let problem = format!("its tar has {is} bytes instead of {}", expected.tar_size);
                    self.found(Subject::Layer(layer), problem);
                }
                Ok(())
            }
            None if present => {
                let (subject, tar) = (Subject::LayerIndex(layer), Subject::Layer(layer));
                let make = |store: &Store| store.make_layer_index(layer, &path).map(drop);
                self.found_index(subject, "its checksum is wrong", tar, make)
            }
            None => Ok(()),
        }
    }

    /// Compares what the kernel verifies a tar against with what was noted; where nothing was, has it verified from now on.
    fn verity(&mut self, layer: DiffId, tar: &File) -> Result<Option<String>, StoreError> {
        let paths = self.store.layer_paths(layer);
        let note = self.store.layout.layer(layer).join(VERITY);
        let measured = verity::measure(tar.as_fd()).on_disk("measure", &paths.tar)?.map(Digest::from_bytes);
        let noted = read_if_present(&note)?;
        let noted = noted.as_deref().map(|bytes| std::str::from_utf8(bytes).ok()?.trim_end().parse::<Digest>().ok());
        match (noted, measured) {
            (None, None) => Ok(None),
            (Some(noted), Some(measured)) if noted == Some(measured) => {
                self.report.verified_by_kernel += 1;
                Ok(None)
            }
            (Some(None), _) => {
                self.found_cache(Subject::Notes(layer), "the digest of the tar's hash tree cannot be read", |_| {
                    Ok(remove(&note)?)
                })?;
                Ok(None)
            }
            // Copied to another filesystem, or noted by nobody: the tar's own digest still counts.
            (Some(Some(_)), None) => {
                self.found_cache(Subject::Notes(layer), "the kernel does not verify the tar any more", |_| {
                    Ok(remove(&note)?)
                })?;
                Ok(None)
            }
            (None, Some(_)) => Ok(None),
            (Some(Some(noted)), Some(measured)) => {
                Ok(Some(format!("its tar is another file: its hash tree has the digest {measured} instead of {noted}")))
            }
        }
    }

    fn objects(&mut self, layer: DiffId) -> Result<(), StoreError> {
        let path = self.store.layout.layer(layer).join(OBJECTS);
        let Some(found) = read_if_present(&path)? else { return Ok(()) };
        let Some(index) = open_sound(&self.store.layer_paths(layer).index)? else { return Ok(()) };
        if objects::table_of(&index).is_ok_and(|table| table == found) {
            return Ok(());
        }
        self.found_cache(Subject::Objects(layer), "it is not what the index gives", |_| Ok(remove(&path)?))
    }

    /// Checks what is noted about the compressed forms of a layer, and the one that is kept.
    fn notes(&mut self, layer: DiffId) -> Result<(), StoreError> {
        let folder = self.store.layout.layer(layer);
        let blob = read_if_present(&folder.join(BLOB))?;
        let digest = blob.as_deref().map(|bytes| std::str::from_utf8(bytes).ok()?.trim_end().parse::<Digest>().ok());
        if digest == Some(None) {
            let path = folder.join(BLOB);
            self.found_cache(Subject::Notes(layer), "the digest of its blob cannot be read", |_| Ok(remove(&path)?))?;
        }
        let compressed = folder.join(COMPRESSED);
        if self.options.depth != Depth::Quick
            && let Some(file) = open_if_present(&compressed)?
            && digest.flatten() != digest_of(file)
        {
            let problem = "the compressed form is not the one that came";
            self.found_cache(Subject::Notes(layer), problem, |_| Ok(remove(&compressed)?))?;
        }
        Ok(())
    }

    /// Returns whether the tar was read in a whole check within some time.
    fn was_checked(&self, layer: DiffId, time: Duration) -> bool {
        let marker = fs::metadata(self.store.layout.layer(layer).join(CHECKED));
        let checked = marker.and_then(|marker| marker.modified()).ok();
        checked.is_some_and(|checked| checked.elapsed().is_ok_and(|age| age < time))
    }
}

/// Notes that a layer was read and is whole. Where that fails, it is just read again sooner.
fn mark_checked(folder: &Path) {
    let path = folder.join(CHECKED);
    let file = File::options().write(true).open(&path).or_else(|_| create_new(&path).map_err(|error| error.source));
    let _ = file.and_then(|file| file.set_modified(std::time::SystemTime::now()));
}

/// Returns the digest of a file; `None` if it cannot be read.
fn digest_of(mut file: File) -> Option<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Some(Digest::from_bytes(hash.finalize().into())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on_disk("remove", path),
        _ => Ok(()),
    }
}

impl Store {
    /// Has the kernel verify a layer's tar from now on, where the filesystem can, and notes against what.
    ///
    /// `folder` is the layer's, in the store or on the way there. Nobody may have the tar open for writing.
    pub(crate) fn enable_verity(folder: &Path) -> Result<(), DiskError> {
        let path = folder.join(crate::layout::TAR);
        let tar = File::open(&path).on_disk("open", &path)?;
        // Where it cannot be done there is one guard less; the digest of the tar is checked by fsck as everywhere.
        let block = tar.metadata().on_disk("examine", &path)?.blksize().clamp(1024, 4096);
        if verity::enable(tar.as_fd(), u32::try_from(block).unwrap_or(4096)).is_err() {
            return Ok(());
        }
        let Some(digest) = verity::measure(tar.as_fd()).on_disk("measure", &path)? else { return Ok(()) };
        let note = folder.join(VERITY);
        let mut file = create_new(&note)?;
        io::Write::write_all(&mut file, format!("{}\n", Digest::from_bytes(digest)).as_bytes()).on_disk("write", &note)
    }
}
