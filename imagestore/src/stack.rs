//! The layers of an image, ready to be mounted: every index present and valid, and a hold on all of it.
//!
//! Indexes are caches of the tars. What is absent, damaged or of another version is made again here, from a tar whose
//! digest is checked while it is read.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use strata_layer::index::{NewIndex, TableError};
use strata_layer::ingest::{LayerError, LayerIngest};
use strata_layer::tar::Limits;
use strata_layer::{ChainId, DiffId, Digest, Scratch, index, merge};

use crate::catalog::CatalogGuard;
use crate::disk::{
    DiskError, Lock, OnDisk, Sharing, create_new, exists, make_folder, open_if_present, read_if_present,
    rename_unless_present, sync_folder, write_durably,
};
use crate::fsck::with_causes;
use crate::image_id::ImageId;
use crate::layout::{BUILD_LOCK, CHAIN_LAYERS, INDEX, OBJECTS, TAR};
use crate::lazy::{FolderAccess, LAZY, LazyFolder, LazyProgress, is_lazy, is_refused};
use crate::lease;
use crate::scratch::{failed_in, scratch_in, write_index};
use crate::store::{Store, StoreError};
use crate::work::WorkDir;

/// An image's layers, ready to be mounted.
#[derive(Debug)]
pub struct Stack {
    /// The identity of the stack.
    pub chain_id: ChainId,
    /// The merged index.
    pub index: PathBuf,
    /// The layers, bottom first.
    pub layers: Vec<LayerPaths>,
    /// Keeps the garbage collector away.
    pub hold: Hold,
}

/// The files of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPaths {
    /// The layer.
    pub diff_id: DiffId,
    /// Its uncompressed tar.
    pub tar: PathBuf,
    /// The index of the tar.
    pub index: PathBuf,
    /// Its object table, which the first user of passthrough makes.
    pub objects: PathBuf,
    /// The root of the store, if the layer may not be whole and is to be opened as a [`LazyLayer`](crate::LazyLayer).
    pub lazy_in: Option<PathBuf>,
}

/// Keeps a stack and its layers in the store: a shared lock on the stack's folder.
///
/// It ends when the value is dropped or, if the descriptor was passed on to other processes, with the last of them.
#[derive(Debug)]
#[must_use = "the layers may be collected when this is dropped"]
pub struct Hold {
    lock: Lock,
}

impl Hold {
    /// Returns the descriptor that carries the lock, to be inherited by the process that serves the mount.
    pub fn as_file(&self) -> &File {
        self.lock.as_file()
    }
}

impl Store {
    /// Returns the layers of an image with everything that a mount needs, made where it was missing.
    pub fn stack(&self, image: &ImageId) -> Result<Stack, StackError> {
        if let Some(record) = self.catalog().map_err(StoreError::from)?.images.get(image) {
            crate::lazy::settle(self, &record.layers);
        }
        let (layers, hold) = {
            let _shared = CatalogGuard::share(&self.layout).map_err(StoreError::from)?;
            let catalog = self.catalog().map_err(StoreError::from)?;
            let record = catalog.images.get(image).ok_or(StackError::NoSuchImage { id: *image })?;
            (record.layers.clone(), self.hold_locked(&record.layers)?)
        };
        self.complete_stack(&layers, hold)
    }

    /// Returns the layers that a lease keeps, as [`Store::stack`] does for an image.
    pub fn leased_stack(&self, name: &str) -> Result<Stack, StackError> {
        crate::lazy::settle(self, &lease::layers_of(&self.layout, name)?.unwrap_or_default());
        let (layers, hold) = {
            let _shared = CatalogGuard::share(&self.layout).map_err(StoreError::from)?;
            let layers = lease::layers_of(&self.layout, name)?;
            let layers = layers.ok_or_else(|| StackError::NoSuchLease { name: name.to_owned() })?;
            let hold = self.hold_locked(&layers)?;
            (layers, hold)
        };
        self.complete_stack(&layers, hold)
    }

    /// Takes a hold on a stack.
    ///
    /// # Preconditions
    /// The catalog is locked, in whichever way, and what was read from it under this lock needs the layers.
    fn hold_locked(&self, layers: &[DiffId]) -> Result<Hold, StoreError> {
        let path = self.layout.chain(chain_of(layers));
        if open_if_present(&path)?.is_none() {
            self.check_writable()?;
            let work = WorkDir::create(&self.layout)?;
            let aside = work.path().join("chain");
            make_chain_folder(&aside, layers)?;
            rename_unless_present(&aside, &path)?;
        }
        // A collector goes by this list, so it must not be one that a power cut has damaged.
        let list = path.join(CHAIN_LAYERS);
        if read_if_present(&list)?.is_none_or(|bytes| bytes != list_of(layers).as_bytes()) {
            self.replace_file(&list, list_of(layers).as_bytes())?;
        }
        // Only collectors lock this exclusively, and they are kept off by the catalog's lock.
        let folder = File::open(&path).on_disk("open", &path)?;
        Ok(Hold { lock: Lock::wait(folder, Sharing::Shared, &path)? })
    }

    fn complete_stack(&self, layers: &[DiffId], hold: Hold) -> Result<Stack, StackError> {
        let chain_id = chain_of(layers);
        let folder = self.layout.chain(chain_id);
        let index = folder.join(INDEX);
        let merged = match open_merged(&index, layers)? {
            Some(merged) => merged,
            None => {
                let _building = Lock::wait_on_file(&folder.join(BUILD_LOCK), Sharing::Exclusive)?;
                // Raced with another process that has built it meanwhile.
                match open_merged(&index, layers)? {
                    Some(merged) => merged,
                    None => {
                        self.build_merged_index(layers, &index)?;
                        open_merged(&index, layers)?.ok_or(StackError::MergedIndexNotReadable { chain_id })?
                    }
                }
            }
        };
        let layers: Vec<LayerPaths> = layers.iter().map(|layer| self.layer_paths(*layer)).collect();
        for (paths, expected) in layers.iter().zip((0..).map_while(|number| merged.layer(number))) {
            let layer = paths.diff_id;
            if paths.lazy_in.is_some() {
                if is_refused(&self.layout.layer(layer))? {
                    return Err(StackError::RefusedLayer { layer });
                }
                // What there is of it is told by its map.
                continue;
            }
            match fs::metadata(&paths.tar) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StackError::NoSuchLayer { layer }),
                result if result.as_ref().is_ok_and(|tar| tar.len() == expected.tar_size) => {}
                result => {
                    result.on_disk("examine", &paths.tar)?;
                    return Err(StackError::DamagedLayer { layer, found: None });
                }
            }
            if !exists(&paths.index)? {
                self.layer_index(layer)?;
            }
        }
        Ok(Stack { chain_id, index, layers, hold })
    }

    /// Merges the indexes of layers into a file at `path`.
    pub(crate) fn build_merged_index(&self, layers: &[DiffId], path: &Path) -> Result<(), StackError> {
        let indexes = layers.iter().map(|layer| self.layer_index(*layer)).collect::<Result<Vec<_>, _>>()?;
        let references: Vec<&index::Index> = indexes.iter().collect();
        self.replace_index(path, |scratch| {
            merge::merge_index(&references, Some(scratch))
                .map_err(|error| StackError::merge(&self.layout.work(), error))
        })
    }

    /// Returns those of the layers whose tar is not here.
    pub(crate) fn absent_layers(&self, layers: &[DiffId]) -> Result<Vec<DiffId>, DiskError> {
        let mut absent = Vec::new();
        for layer in layers {
            let folder = self.layout.layer(*layer);
            if is_lazy(&folder)? && !exists(&folder.join(TAR))? {
                absent.push(*layer);
            }
        }
        Ok(absent)
    }

    /// Returns how much of the layers that are not whole is here; `None` if all are whole.
    pub fn lazy_progress(&self, layers: &[DiffId]) -> Result<Option<LazyProgress>, StoreError> {
        let mut sum: Option<LazyProgress> = None;
        for layer in self.absent_layers(layers)? {
            let folder = self.layout.layer(layer).join(LAZY);
            let progress = match LazyFolder::open(&folder, FolderAccess::Read) {
                Ok(Some(folder)) => folder.progress()?,
                // Whole by now.
                Ok(None) => continue,
                Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                    LazyProgress { failure: Some(with_causes(&error)), refused: true, ..LazyProgress::default() }
                }
                Err(error) => return Err(error.into()),
            };
            let sum = sum.get_or_insert_default();
            sum.here += progress.here;
            sum.size += progress.size;
            sum.failure = sum.failure.take().or(progress.failure);
            sum.refused |= progress.refused;
        }
        Ok(sum)
    }

    /// Returns the index of a layer, checked as a whole, and made again from the tar if it is missing or not right.
    pub fn layer_index(&self, layer: DiffId) -> Result<index::Index, StackError> {
        let paths = self.layer_paths(layer);
        if let Some(index) = open_sound(&paths.index)? {
            return Ok(index);
        }
        let folder = self.layout.layer(layer);
        if open_if_present(&folder)?.is_none() {
            return Err(StackError::NoSuchLayer { layer });
        }
        let _building = Lock::wait_on_file(&folder.join(BUILD_LOCK), Sharing::Exclusive)?;
        if let Some(index) = open_sound(&paths.index)? {
            return Ok(index);
        }
        self.make_layer_index(layer, &paths.index)?;
        open_index(&paths.index)?.ok_or(StackError::IndexNotReadable { layer })
    }

    /// Makes the index of a layer's tar anew, at `path`.
    pub(crate) fn make_layer_index(&self, layer: DiffId, path: &Path) -> Result<(), StackError> {
        self.replace_index(path, |scratch| self.read_layer_again(layer, Some(scratch), &mut |_| ()))
    }

    /// Reads a layer's whole tar, checks its digest and makes its index. `advanced` is told how far it is. Without `scratch`
    /// all of the index is in memory meanwhile.
    pub(crate) fn read_layer_again(
        &self,
        layer: DiffId,
        scratch: Option<&Scratch>,
        advanced: &mut dyn FnMut(u64),
    ) -> Result<NewIndex, StackError> {
        let path = self.layer_paths(layer).tar;
        let mut file = open_if_present(&path)?.ok_or(StackError::NoSuchLayer { layer })?;
        let damaged = |found| StackError::DamagedLayer { layer, found };
        // The tar was accepted once, so bytes that are refused now are not the ones that were stored.
        let refused = |error| match error {
            LayerError::Table(TableError::Scratch(error)) => {
                StoreError::from(failed_in(&self.layout.work(), error)).into()
            }
            _ => damaged(None),
        };
        let mut ingest = LayerIngest::new(Limits::default());
        if let Some(scratch) = scratch {
            ingest = ingest.with_scratch(scratch.clone());
        }
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let count = file.read(&mut buffer).on_disk("read", &path)?;
            done += count as u64;
            advanced(done);
            if count == 0 {
                break;
            }
            ingest.push(&buffer[..count]).map_err(refused)?;
        }
        let (found, index) = ingest.finish_index().map_err(refused)?;
        if found.diff_id != layer {
            return Err(damaged(Some(found.diff_id.0)));
        }
        Ok(index)
    }

    pub(crate) fn layer_paths(&self, layer: DiffId) -> LayerPaths {
        let folder = self.layout.layer(layer);
        LayerPaths {
            diff_id: layer,
            tar: folder.join(TAR),
            index: folder.join(INDEX),
            objects: folder.join(OBJECTS),
            // What cannot be looked at is found out when it is opened.
            lazy_in: is_lazy(&folder).unwrap_or(false).then(|| self.layout.root().to_owned()),
        }
    }

    /// Makes an index aside and puts it in its place.
    fn replace_index(
        &self,
        path: &Path,
        make: impl FnOnce(&Scratch) -> Result<NewIndex, StackError>,
    ) -> Result<(), StackError> {
        self.check_writable()?;
        let work = WorkDir::create(&self.layout).map_err(StoreError::from)?;
        let index = make(&scratch_in(work.path()))?;
        let aside = work.path().join("file");
        let placed = (|| {
            write_index(index, &aside)?.sync_all().on_disk("sync", &aside)?;
            fs::rename(&aside, path).on_disk("rename", path)?;
            sync_folder(path.parent().expect("files of the store lie in folders"))
        })();
        Ok(placed.map_err(StoreError::from)?)
    }

    /// Writes a file aside and puts it in its place.
    pub(crate) fn replace_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        self.check_writable()?;
        let work = WorkDir::create(&self.layout)?;
        let aside = work.path().join("file");
        write_durably(&aside, bytes)?;
        fs::rename(&aside, path).on_disk("rename", path)?;
        Ok(sync_folder(path.parent().expect("files of the store lie in folders"))?)
    }
}

/// Returns the identity of a stack; one of no layers has the digest of no bytes.
pub(crate) fn chain_of(layers: &[DiffId]) -> ChainId {
    ChainId::of(layers).unwrap_or_else(|| ChainId(Digest::of(b"")))
}

/// Makes the folder of a stack, with the list of its layers and no index. It is not on the disk yet.
pub(crate) fn make_chain_folder(folder: &Path, layers: &[DiffId]) -> Result<(), DiskError> {
    make_folder(folder)?;
    let path = folder.join(CHAIN_LAYERS);
    create_new(&path)?.write_all(list_of(layers).as_bytes()).on_disk("write", &path)
}

pub(crate) fn list_of(layers: &[DiffId]) -> String {
    layers.iter().map(|layer| format!("{layer}\n")).collect()
}

/// Opens a merged index; `None` if it is absent, not usable, or of other layers.
fn open_merged(path: &Path, layers: &[DiffId]) -> Result<Option<index::Index>, DiskError> {
    let fits = |index: &index::Index| {
        let found = (0..).map_while(|number| index.layer(number)).map(|layer| layer.diff_id);
        found.eq(layers.iter().copied())
    };
    Ok(open_index(path)?.filter(fits))
}

/// Opens an index and checks all of it; `None` if it is absent or not right.
pub(crate) fn open_sound(path: &Path) -> Result<Option<index::Index>, DiskError> {
    Ok(open_index(path)?.filter(|index| index.verify().is_ok()))
}

/// Opens an index; `None` if it is absent or not usable.
pub(crate) fn open_index(path: &Path) -> Result<Option<index::Index>, DiskError> {
    let Some(file) = open_if_present(path)? else { return Ok(None) };
    match index::Index::open(&file) {
        Err(index::IndexError::Map(error)) => Err(error).on_disk("map", path),
        // Whatever is wrong with it, the remedy is to make it again.
        result => Ok(result.ok()),
    }
}

/// Why the layers of an image are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such image.
    #[error("No such image: {id}")]
    NoSuchImage {
        /// The image asked for.
        id: ImageId,
    },
    /// There is no such lease.
    #[error("no lease named {name:?}")]
    NoSuchLease {
        /// The lease asked for.
        name: String,
    },
    /// A layer that the image needs is not there.
    #[error("layer {layer} is missing from the store")]
    NoSuchLayer {
        /// The layer.
        layer: DiffId,
    },
    /// The tar of a layer is not what was stored.
    #[error("layer {layer} is damaged on disk{}", found_text(.found))]
    DamagedLayer {
        /// The layer.
        layer: DiffId,
        /// The digest of what is there, if it could be read as a layer at all.
        found: Option<Digest>,
    },
    /// A layer that was used before it was whole turned out to be another.
    #[error("layer {layer} is not what its table of contents said; pull the image again to fetch the layer as a whole")]
    RefusedLayer {
        /// The layer.
        layer: DiffId,
    },
    /// An index that was just written cannot be read.
    #[error("the new index of layer {layer} cannot be read back")]
    IndexNotReadable {
        /// The layer.
        layer: DiffId,
    },
    /// A merged index that was just written cannot be read.
    #[error("the new index of the stack {chain_id} cannot be read back")]
    MergedIndexNotReadable {
        /// The stack.
        chain_id: ChainId,
    },
    /// The layers do not fit on each other.
    #[error("the layers do not fit on each other")]
    Merge {
        /// Why.
        source: merge::MergeError,
    },
}

impl StackError {
    /// Says why layers could not be merged with temporary files in `folder`: a full disk is no fault of theirs.
    pub(crate) fn merge(folder: &Path, error: merge::MergeError) -> StackError {
        match error {
            merge::MergeError::Table(TableError::Scratch(error)) => failed_in(folder, error).into(),
            source => StackError::Merge { source },
        }
    }
}

impl From<DiskError> for StackError {
    fn from(error: DiskError) -> Self {
        StoreError::from(error).into()
    }
}

fn found_text(found: &Option<Digest>) -> String {
    found.map(|digest| format!(": its digest is {digest}")).unwrap_or_default()
}
