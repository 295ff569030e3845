//! `load`: image archives of any tool into the store.
//!
//! What the input is, is told by its content: an archive of `docker save` or an OCI layout, as tar (plain or
//! compressed) or as a folder. Three ways lead to the same plan. From a file or folder the documents are read first
//! and then the layers that are missing, two at a time. A stream may have a layer before the document that names it,
//! so what looks like a layer is taken in as it comes, and matched with the documents at the end.
//!
//! Nothing is believed: blobs must have the digests and sizes that documents give them, tars the diff_ids of the
//! configuration. Nothing is visible before everything has been checked and is on the disk.

mod archive;
mod docker;
mod error;
mod members;
mod oci;
mod plan;
mod stream;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use strata_layer::DiffId;

use self::archive::{Archive, LayerSource};
pub use self::error::LoadError;
use self::plan::{PlannedImage, PlannedLayer, check, check_platform, plan};
use crate::image_id::ImageId;
use crate::ingest::{NewLayer, ingest_layer};
use crate::model::Platform;
use crate::progress::{Event, Progress};
use crate::publish::NewImage;
use crate::reference::ImageRef;
use crate::store::{Store, StoreError};
use crate::work::WorkDir;

/// Where an archive comes from.
pub enum Input<'a> {
    /// A file or a folder.
    Path(PathBuf),
    /// An open file, such as standard input. If it can be read at any position it is as good as a path.
    File(File),
    /// Anything that gives bytes.
    Stream(Box<dyn Read + Send + 'a>),
}

impl fmt::Debug for Input<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Input::Path(path) => formatter.debug_tuple("Path").field(path).finish(),
            Input::File(file) => formatter.debug_tuple("File").field(file).finish(),
            Input::Stream(_) => formatter.write_str("Stream"),
        }
    }
}

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The machine to choose images for, and images of other machines are refused; this one, and nothing is refused, if
    /// `None`.
    pub platform: Option<Platform>,
    /// The most bytes that one layer may have uncompressed.
    pub max_layer_size: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { platform: None, max_layer_size: MAX_LAYER_SIZE }
    }
}

/// A name, or an image without one, that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The name; `None` if the archive gives the image none.
    pub reference: Option<ImageRef>,
    /// The image.
    pub id: ImageId,
    /// The image that had the name before.
    pub replaced: Option<ImageId>,
}

impl fmt::Display for Loaded {
    /// Writes the line that Docker prints.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Some(reference) => write!(formatter, "Loaded image: {}", reference.familiar()),
            None => write!(formatter, "Loaded image ID: {}", self.id),
        }
    }
}

impl Store {
    /// Loads all images of an archive, or none if anything is wrong with it.
    pub fn load(
        &self,
        input: Input<'_>,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Loaded>, LoadError> {
        self.check_writable()?;
        let work = WorkDir::create(&self.layout).map_err(StoreError::from)?;
        let archive = Archive::open(input, &StreamContext { store: self, work: &work, options, progress })?;
        let machine = options.platform.clone().unwrap_or_else(Platform::host);
        let planned = plan(&archive, &machine)?;
        if let Some(wanted) = &options.platform {
            planned.iter().try_for_each(|image| check_platform(image, wanted))?;
        }
        let layers = self.take_layers(&archive, &planned, &work, options, progress)?;

        let images: Result<Vec<_>, _> = planned.into_iter().map(|image| new_image(self, image, &layers)).collect();
        let images = images?;
        let stacks = self.merge_new_stacks(&work, &layers, &images)?;
        let replaced = self.publish(&work, &layers, &stacks, &images)?;
        for image in &images {
            self.note_image("load", image.id(), &image.id().to_string());
        }
        Ok(images.iter().zip(replaced).flat_map(|(image, replaced)| report(image, &replaced)).collect())
    }

    /// Brings every layer of the plan into the temporary folder that is not in the store, and checks it.
    fn take_layers(
        &self,
        archive: &Archive,
        planned: &[PlannedImage],
        work: &WorkDir,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<DiffId, NewLayer>, LoadError> {
        let uses: Vec<&PlannedLayer> = planned.iter().flat_map(|image| &image.layers).collect();
        let wanted: Vec<DiffId> = uses.iter().map(|layer| layer.diff_id).collect();
        let present = self.pin_present(work, &wanted)?;

        // One job for each member: two members may hold one layer in two forms, and both are to be checked.
        let mut jobs = Vec::new();
        let mut taken: HashMap<&str, NewLayer> = HashMap::new();
        let mut seen: HashMap<&str, DiffId> = HashMap::new();
        for layer in &uses {
            if let Some(other) = seen.insert(&layer.member, layer.diff_id) {
                if other != layer.diff_id {
                    let member = layer.member.clone();
                    return Err(LoadError::DiffId { member, expected: layer.diff_id, found: other });
                }
                continue;
            }
            if present.contains(&layer.diff_id) {
                archive.check_exists(&layer.member)?;
                progress.report(Event::Present { layer: &layer.diff_id.to_string() });
                continue;
            }
            match archive.layer(&layer.member)? {
                LayerSource::Taken(new) => {
                    taken.insert(&layer.member, new.clone());
                }
                LayerSource::Present(found) => {
                    let member = layer.member.clone();
                    return Err(LoadError::DiffId { member, expected: layer.diff_id, found });
                }
                LayerSource::Reader { reader, size } => jobs.push(Job { layer, reader, size }),
            }
        }
        taken.extend(run_jobs(jobs, work, options, progress)?);

        let mut layers = BTreeMap::new();
        for layer in uses {
            let Some(new) = taken.get(layer.member.as_str()) else { continue };
            if let Some(expected) = layer.blob {
                check(&layer.member, expected, new.blob, new.blob_size)?;
            }
            if new.diff_id != layer.diff_id {
                let member = layer.member.clone();
                return Err(LoadError::DiffId { member, expected: layer.diff_id, found: new.diff_id });
            }
            layers.entry(layer.diff_id).or_insert_with(|| new.clone());
        }
        Ok(layers)
    }
}

/// Opens an input that is a tar and not an archive of images.
pub(crate) fn open_stream<'a>(input: Input<'a>) -> Result<Box<dyn Read + Send + 'a>, LoadError> {
    Ok(match input {
        Input::Stream(stream) => stream,
        Input::File(file) => Box::new(file),
        Input::Path(path) => {
            let open = |source| LoadError::Open { path: path.display().to_string(), source };
            Box::new(File::open(&path).map_err(open)?)
        }
    })
}

/// What is needed to take layers in while a stream passes by.
pub(crate) struct StreamContext<'a> {
    store: &'a Store,
    work: &'a WorkDir,
    options: &'a LoadOptions,
    progress: &'a dyn Progress,
}

/// A layer to take in.
struct Job<'p, 'a> {
    layer: &'p PlannedLayer,
    reader: Box<dyn Read + Send + 'a>,
    size: u64,
}

/// Takes layers in, two at a time.
fn run_jobs<'p>(
    jobs: Vec<Job<'p, '_>>,
    work: &WorkDir,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<HashMap<&'p str, NewLayer>, LoadError> {
    let threads = jobs.len().min(PARALLEL_LAYERS);
    let number = AtomicUsize::new(0);
    // Popped from the end, so the bottom layer, which tends to be the largest, comes first.
    let queue = Mutex::new(jobs.into_iter().rev().collect::<Vec<_>>());
    let done = Mutex::new(Ok(HashMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = queue.lock().expect("no holder panics").pop();
                    let Some(job) = job else { return };
                    let member = job.layer.member.as_str();
                    let folder = work.path().join(format!("layer-{}", number.fetch_add(1, Ordering::Relaxed)));
                    let result = run_job(job, folder, options, progress);
                    let failed = result.is_err();
                    let mut done = done.lock().expect("no holder panics");
                    match (&mut *done, result) {
                        (Ok(layers), Ok(new)) => {
                            layers.insert(member, new);
                        }
                        (Ok(_), Err(error)) => *done = Err(error),
                        // The first error is the one that is told.
                        (Err(_), _) => {}
                    }
                    if failed {
                        queue.lock().expect("no holder panics").clear();
                    }
                }
            });
        }
    });
    done.into_inner().expect("no holder panics")
}

fn run_job(
    job: Job<'_, '_>,
    folder: PathBuf,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<NewLayer, LoadError> {
    let Job { layer, reader, size } = job;
    if let Some(expected) = layer.blob.and_then(|blob| blob.size).filter(|expected| *expected != size) {
        return Err(LoadError::Size { member: layer.member.clone(), expected, found: size });
    }
    let name = layer.diff_id.to_string();
    progress.report(Event::Started { layer: &name, bytes: Some(size) });
    let mut advanced = |bytes| progress.report(Event::Advanced { layer: &name, bytes });
    let new = ingest_layer(reader, folder, options.max_layer_size, Some(layer.diff_id), &mut advanced)
        .map_err(|source| LoadError::layer(&layer.member, source))?;
    if new.blob_size != size {
        return Err(LoadError::Size { member: layer.member.clone(), expected: size, found: new.blob_size });
    }
    progress.report(Event::Finished { layer: &name });
    Ok(new)
}

/// Completes an image; one without a manifest gets the manifest of its plain layers.
fn new_image(store: &Store, image: PlannedImage, layers: &BTreeMap<DiffId, NewLayer>) -> Result<NewImage, LoadError> {
    let ids: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
    if let Some(manifest) = image.manifest {
        return Ok(NewImage {
            config: image.config,
            manifest,
            layers: ids,
            names: image.names,
            replaces_manifest: false,
        });
    }
    let mut sized = Vec::with_capacity(ids.len());
    for id in ids {
        let size = match layers.get(&id) {
            Some(new) => new.tar_size,
            None => store.tar_size(id)?,
        };
        sized.push((id, size));
    }
    Ok(NewImage::of_plain_layers(image.config, &sized, image.names))
}

fn report(image: &NewImage, replaced: &[(ImageRef, ImageId)]) -> Vec<Loaded> {
    let id = image.id();
    if image.names.is_empty() {
        return vec![Loaded { reference: None, id, replaced: None }];
    }
    let before = |name: &ImageRef| replaced.iter().find(|(other, _)| other == name).map(|(_, before)| *before);
    let loaded = |name: &ImageRef| Loaded { reference: Some(name.clone()), id, replaced: before(name) };
    image.names.iter().map(loaded).collect()
}

/// How many layers are taken in at once.
const PARALLEL_LAYERS: usize = 2;
/// 64 GiB.
const MAX_LAYER_SIZE: u64 = 64 << 30;
