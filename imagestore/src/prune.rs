//! Removing all images that nobody uses.

use std::collections::BTreeMap;

use crate::catalog::CatalogGuard;
use crate::events::EventActor;
use crate::images::ImageSummary;
use crate::reference::ImageRef;
use crate::remove::{ContainerUse, RemoveError, Removed, freed_chains};
use crate::store::{Store, StoreError};

/// Which images are removed, apart from those that a container uses, which always stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// Those without a tag.
    Untagged,
    /// All.
    All,
}

/// What a pruning removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The steps.
    pub removed: Vec<Removed>,
    /// How many bytes of disk space became free.
    pub bytes: u64,
}

impl Store {
    /// Removes all unused images that fit, in one step, and whatever else nothing needs.
    pub fn prune(
        &self,
        unused: Unused,
        fits: impl Fn(&ImageSummary) -> bool,
        containers: &[ContainerUse],
    ) -> Result<Pruned, RemoveError> {
        self.check_writable()?;
        let is_used = |image: &ImageSummary| containers.iter().any(|user| user.image == image.id);
        let is_wanted =
            |image: &ImageSummary| unused == Unused::All || !image.names.iter().any(|name| name.tag().is_some());
        let images = self.images()?;
        let chosen: Vec<&ImageSummary> =
            images.iter().filter(|image| is_wanted(image) && !is_used(image) && fits(image)).collect();
        let is_full = |error: &StoreError| error.is_full();
        let pruned = self.with_reserve(is_full, || self.remove_all(&chosen))?;
        let reclaimed = BTreeMap::from([("reclaimed".to_owned(), pruned.bytes.to_string())]);
        self.note_actor("prune", EventActor { id: String::new(), attributes: reclaimed });
        Ok(pruned)
    }

    fn remove_all(&self, chosen: &[&ImageSummary]) -> Result<Pruned, StoreError> {
        let guard = CatalogGuard::lock(&self.layout)?;
        let mut catalog = guard.read()?;
        let mut removed = Vec::new();
        let mut steps_of = Vec::new();
        for image in chosen {
            let names: Vec<ImageRef> = catalog.names_of(image.id).cloned().collect();
            // One that got or lost a name since we looked is in use by somebody.
            if names != image.names {
                continue;
            }
            let Some(record) = catalog.images.remove(&image.id) else { continue };
            let first = removed.len();
            for name in names {
                catalog.names.remove(&name);
                removed.push(Removed::Untagged(name));
            }
            removed.push(Removed::Deleted(image.id));
            removed.extend(freed_chains(&catalog, &record.layers).into_iter().map(Removed::DeletedLayer));
            steps_of.push((image, first..removed.len()));
        }
        let bytes = self.write_shorter(guard, &catalog)?;
        for (image, steps) in steps_of {
            self.note_removed(image.id, &image.labels, &removed[steps]);
        }
        Ok(Pruned { removed, bytes })
    }
}
