//! Is the store whole? Everything is read and compared with the digests it must have, and what can be made good is.
//!
//! Three kinds of damage have three remedies. A cache (an index, an object table, a merged index, a note) is made again from
//! what it was made of. A layer, a configuration or a manifest is put aside, so that nothing of it is served any more,
//! and fetched again from the registry that the image is known to be in. The list of images is made again from the
//! documents; names are lost with it.
//!
//! A check runs beside everything else. What it reads is pinned, and what an image has stopped to need meanwhile is not
//! reported.

mod finding;
mod layer;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use strata_layer::index::TableError;
use strata_layer::{ChainId, DiffId, Digest, Scratch, index, merge};

pub use self::finding::{Finding, Outcome, Subject};
pub(crate) use self::repair::empty_quarantine;
use crate::catalog::{Catalog, CatalogError};
use crate::disk::{DiskError, exists, names_in, read_if_present};
use crate::image_id::ImageId;
use crate::images::ImageError;
use crate::layout::{CHAIN_LAYERS, INDEX};
use crate::lease;
use crate::model::{Document, ImageConfig};
use crate::progress::Progress;
use crate::registry::RegistryClient;
use crate::scratch::{failed_in, scratch_in};
use crate::stack::{StackError, chain_of, list_of, open_index, open_sound};
use crate::store::{Store, StoreError};
use crate::work::WorkDir;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct FsckOptions<'a> {
    /// How much is read.
    pub depth: Depth,
    /// What is done about what is found.
    pub mend: Mend<'a>,
}

/// How much a check reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Everything but the content of tars; of these, sizes, and what the kernel verifies them against.
    Quick,
    /// Everything.
    Whole,
    /// As [`Depth::Quick`], and the content of tars that were not read in a whole check for this long.
    NotCheckedFor(Duration),
}

/// What a check does about what it finds.
#[derive(Clone, Copy, Debug)]
pub enum Mend<'a> {
    /// Nothing.
    Nothing,
    /// Caches are made again.
    Caches,
    /// Everything else too, as far as that goes. Without a client registries are not asked.
    Everything(Option<&'a RegistryClient>),
}

/// What a check has found.
#[derive(Clone, Debug, Default)]
pub struct FsckReport {
    /// How many images there are.
    pub images: usize,
    /// How many layers they, leases and mounts need.
    pub layers: usize,
    /// How many of these were read completely.
    pub read: usize,
    /// How many of these the kernel verifies whenever they are read.
    pub verified_by_kernel: usize,
    /// What is wrong, what images cannot do without first.
    pub findings: Vec<Finding>,
    /// How many files and folders nothing needs. They are no damage, and the next collection removes them.
    pub leftovers: usize,
}

impl FsckReport {
    /// Returns whether all of the store is as it must be now.
    pub fn is_whole(&self) -> bool {
        self.findings.iter().all(Finding::is_repaired)
    }
}

impl Store {
    /// Checks everything that images, leases and mounts need.
    pub fn fsck(&self, options: &FsckOptions<'_>, progress: &dyn Progress) -> Result<FsckReport, StoreError> {
        if !matches!(options.mend, Mend::Nothing) {
            self.check_writable()?;
        }
        let mut check =
            Check { store: self, options: *options, progress, report: FsckReport::default(), scratch: None };
        let catalog = match self.catalog() {
            Err(CatalogError::Damaged) => check.damaged_catalog()?,
            result => result?,
        };
        // So that nothing is collected while it is read.
        let work = match self.check_writable() {
            Ok(()) => Some(WorkDir::create(&self.layout)?),
            Err(_) => None,
        };
        check.scratch = work.as_ref().map(|work| scratch_in(work.path()));
        let leases = check.leases()?;
        let mut stacks: BTreeMap<ChainId, Vec<DiffId>> = BTreeMap::new();
        stacks.extend(catalog.images.values().map(|record| (chain_of(&record.layers), record.layers.clone())));
        stacks.extend(leases.into_iter().map(|layers| (chain_of(&layers), layers)));
        let layers: BTreeSet<DiffId> = stacks.values().flatten().copied().collect();
        if let Some(work) = &work {
            self.pin_present(work, &layers.iter().copied().collect::<Vec<_>>())?;
        }
        check.report.images = catalog.images.len();
        check.report.layers = layers.len();
        for (id, record) in &catalog.images {
            check.documents(*id, record.manifest, &record.layers)?;
        }
        for layer in &layers {
            check.layer(*layer)?;
        }
        for (chain, layers) in &stacks {
            check.stack(*chain, layers)?;
        }
        check.leftovers(&catalog, &stacks, &layers)?;
        check.finish(&catalog, work.as_ref())
    }
}

/// A check that is going on.
struct Check<'c> {
    store: &'c Store,
    options: FsckOptions<'c>,
    progress: &'c dyn Progress,
    report: FsckReport,
    /// Where large indexes are put together; in memory where nothing can be written.
    scratch: Option<Scratch>,
}

impl Check<'_> {
    fn found(&mut self, subject: Subject, problem: impl Into<String>) {
        self.report.findings.push(Finding {
            subject,
            problem: problem.into(),
            images: Vec::new(),
            outcome: Outcome::Left,
        });
    }

    /// Notes a damaged cache; `make` makes it again.
    fn found_cache(
        &mut self,
        subject: Subject,
        problem: &str,
        make: impl FnOnce(&Store) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.found(subject, problem);
        if matches!(self.options.mend, Mend::Nothing) {
            return Ok(());
        }
        make(self.store)?;
        if let Some(finding) = self.report.findings.last_mut() {
            finding.outcome = Outcome::Repaired("made again".to_owned());
        }
        Ok(())
    }

    /// Notes a damaged index; `make` makes it again. If that finds its source damaged, nothing was made, and it is `source` that is
    /// to be told of.
    fn found_index(
        &mut self,
        subject: Subject,
        problem: &str,
        source: Subject,
        make: impl FnOnce(&Store) -> Result<(), StackError>,
    ) -> Result<(), StoreError> {
        let mut damaged = None;
        self.found_cache(subject, problem, |store| match make(store) {
            Err(StackError::Store(error)) => Err(error),
            result => {
                damaged = result.err();
                Ok(())
            }
        })?;
        if let Some(error) = damaged {
            self.report.findings.pop();
            self.found(source, with_causes(&error));
        }
        Ok(())
    }

    /// Checks the two documents of an image.
    fn documents(&mut self, id: ImageId, manifest: Digest, layers: &[DiffId]) -> Result<(), StoreError> {
        match self.store.blob(id.0).map(|bytes| ImageConfig::parse(&bytes)) {
            Err(ImageError::Store(error)) if !is_damage(&error) => return Err(error),
            Err(error) => self.found(Subject::Config(id.0), with_causes(&error)),
            Ok(Err(error)) => self.found(Subject::Config(id.0), with_causes(&error)),
            Ok(Ok(config)) if config.rootfs.diff_ids != layers => {
                self.found(Subject::Record(id.0), "it has other layers than the image's configuration");
            }
            Ok(Ok(_)) => {}
        }
        match self.store.blob(manifest).map(|bytes| Document::parse(&bytes, "")) {
            Err(ImageError::Store(error)) if !is_damage(&error) => return Err(error),
            Err(error) => self.found(Subject::Manifest(manifest), with_causes(&error)),
            Ok(Err(error)) => self.found(Subject::Manifest(manifest), with_causes(&error)),
            Ok(Ok(Document::Index(_))) => self.found(Subject::Manifest(manifest), "it is an index"),
            Ok(Ok(Document::Manifest(parsed))) => {
                if parsed.config.digest != id.0 || parsed.layers.len() != layers.len() {
                    self.found(Subject::Manifest(manifest), "it is the manifest of another image");
                }
            }
        }
        Ok(())
    }

    /// Checks what is kept of a whole stack.
    fn stack(&mut self, chain: ChainId, layers: &[DiffId]) -> Result<(), StoreError> {
        let folder = self.store.layout.chain(chain);
        let list = folder.join(CHAIN_LAYERS);
        if let Some(bytes) = read_if_present(&list)?
            && bytes != list_of(layers).as_bytes()
        {
            self.found_cache(Subject::StackList(chain), "it lists other layers", |store| {
                store.replace_file(&list, list_of(layers).as_bytes())
            })?;
        }
        let path = folder.join(INDEX);
        // Opened before the layers are read, which takes long: it may be removed meanwhile.
        let present = open_index(&path)?;
        if present.is_none() && !exists(&path)? {
            return Ok(());
        }
        let indexes: Option<Vec<index::Index>> = layers
            .iter()
            .map(|layer| open_sound(&self.store.layer_paths(*layer).index))
            .collect::<Result<_, DiskError>>()?;
        // Without the indexes of the layers nothing can be said, and the layers have been reported.
        let Some(indexes) = indexes else { return Ok(()) };
        let expected = match merge::merge_index(&indexes.iter().collect::<Vec<_>>(), self.scratch.as_ref()) {
            Ok(merged) => merged.checksum().map_err(|error| failed_in(&self.store.layout.work(), error))?,
            Err(merge::MergeError::Table(TableError::Scratch(error))) => {
                return Err(failed_in(&self.store.layout.work(), error).into());
            }
            Err(_) => return Ok(()),
        };
        if present.is_some_and(|present| present.is_the_one_of(&expected)) {
            return Ok(());
        }
        let subject = Subject::MergedIndex(chain);
        let make = |store: &Store| store.build_merged_index(layers, &path).map(drop);
        self.found_index(subject, "it is not what the layers give", subject, make)
    }

    /// Reads all leases; returns the stacks of those that are whole.
    fn leases(&mut self) -> Result<Vec<Vec<DiffId>>, StoreError> {
        let mut stacks = Vec::new();
        for name in self.store.leases()? {
            match lease::layers_of(&self.store.layout, &name) {
                Ok(layers) => stacks.extend(layers),
                Err(StoreError::Lease { name }) => {
                    let problem = format!("{name:?} cannot be read, and nothing is collected meanwhile");
                    self.found(Subject::Lease(Digest::of(name.as_bytes())), problem);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(stacks)
    }

    /// Counts what nothing needs.
    fn leftovers(
        &mut self,
        catalog: &Catalog,
        stacks: &BTreeMap<ChainId, Vec<DiffId>>,
        layers: &BTreeSet<DiffId>,
    ) -> Result<(), StoreError> {
        let layout = &self.store.layout;
        let blobs: BTreeSet<Digest> = catalog.images.iter().flat_map(|(id, record)| [id.0, record.manifest]).collect();
        let unneeded = |folder: &Path, is_needed: &dyn Fn(Digest) -> bool| -> Result<usize, DiskError> {
            let names = names_in(folder)?;
            Ok(names.iter().filter(|name| !Digest::from_hex(name).is_ok_and(is_needed)).count())
        };
        self.report.leftovers = unneeded(&layout.blobs(), &|digest| blobs.contains(&digest))?
            + unneeded(&layout.layers(), &|digest| layers.contains(&DiffId(digest)))?
            + unneeded(&layout.images(), &|digest| stacks.contains_key(&ChainId(digest)))?;
        Ok(())
    }

    /// Says whose problem each finding is, and mends.
    fn finish(mut self, catalog: &Catalog, work: Option<&WorkDir>) -> Result<FsckReport, StoreError> {
        // An image that was removed meanwhile took its files along, rightly.
        let now = self.store.catalog().or_else(|error| match error {
            CatalogError::Damaged => Ok(catalog.clone()),
            error => Err(error),
        })?;
        self.report.findings.retain_mut(|finding| {
            finding.images = images_with(&now, finding.subject);
            !finding.images.is_empty() || images_with(catalog, finding.subject).is_empty()
        });
        self.report.findings.sort_by_key(|finding| (finding.subject.is_cache(), finding.subject));
        if let (Mend::Everything(client), Some(work)) = (self.options.mend, work) {
            repair::repair(self.store, &now, &mut self.report.findings, client, work, self.progress)?;
        }
        Ok(self.report)
    }
}

/// Returns the images that need something, by name.
fn images_with(catalog: &Catalog, subject: Subject) -> Vec<String> {
    let needs = |id: &ImageId, layers: &[DiffId], manifest: Digest| match subject {
        Subject::Catalog | Subject::Lease(_) => false,
        Subject::Config(digest) | Subject::Record(digest) => id.0 == digest,
        Subject::Manifest(digest) => manifest == digest,
        Subject::Layer(layer) | Subject::LayerIndex(layer) | Subject::Objects(layer) | Subject::Notes(layer) => {
            layers.contains(&layer)
        }
        Subject::MergedIndex(chain) | Subject::StackList(chain) => chain_of(layers) == chain,
    };
    let mut found = Vec::new();
    let with = catalog.images.iter().filter(|(id, record)| needs(id, &record.layers, record.manifest));
    for (id, _) in with {
        let names: Vec<String> = catalog.names_of(*id).map(|name| name.familiar()).collect();
        found.extend(if names.is_empty() { vec![id.short()] } else { names });
    }
    found
}

/// Returns whether an error of the disk speaks of damage, and not of what else a disk can fail with.
fn is_damage(error: &StoreError) -> bool {
    use rustix::io::Errno;
    let StoreError::Disk(error) = error else { return false };
    // What disks, ext4, xfs, btrfs and fs-verity say of what they cannot read or what does not fit its checksum.
    [Errno::IO, Errno::UCLEAN, Errno::BADMSG]
        .iter()
        .any(|errno| error.source.raw_os_error() == Some(errno.raw_os_error()))
}

/// Returns an error with its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}
