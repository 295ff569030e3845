//! Removing images and names, with Docker's rules and in Docker's words.
//!
//! A name is taken off; the image goes with its last name. An ID removes the image together with its names, unless
//! they are of several repositories or tags, which needs force. What a container uses is refused: a running one
//! always, a stopped one unless forced.

use std::collections::BTreeMap;

use strata_layer::{ChainId, DiffId};

use crate::catalog::{Catalog, CatalogGuard};
use crate::gc::sweep_locked;
use crate::image_id::ImageId;
use crate::images::{ImageError, find};
use crate::reference::ImageRef;
use crate::reserve;
use crate::store::{Store, StoreError};

/// How to remove.
#[derive(Clone, Debug, Default)]
pub struct RemoveOptions {
    /// Remove what would be refused but can be forced.
    pub force: bool,
    /// The containers there are.
    pub containers: Vec<ContainerUse>,
}

/// A container and the image it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUse {
    /// The container's ID.
    pub container: String,
    /// The image.
    pub image: ImageId,
    /// Whether the container is running.
    pub running: bool,
}

/// A step of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The name was taken off.
    Untagged(ImageRef),
    /// The image was removed.
    Deleted(ImageId),
    /// The layer on top of this stack was removed.
    DeletedLayer(ChainId),
}

impl Store {
    /// Removes a name, or an image by its ID, and frees what nothing else needs.
    pub fn remove(&self, name_or_id: &str, options: &RemoveOptions) -> Result<Vec<Removed>, RemoveError> {
        self.check_writable()?;
        let is_full = |error: &RemoveError| match error {
            RemoveError::Image(ImageError::Store(error)) => error.is_full(),
            _ => false,
        };
        self.with_reserve(is_full, || self.remove_once(name_or_id, options))
    }

    fn remove_once(&self, name_or_id: &str, options: &RemoveOptions) -> Result<Vec<Removed>, RemoveError> {
        let guard = CatalogGuard::lock(&self.layout).map_err(StoreError::from)?;
        let mut catalog = guard.read().map_err(StoreError::from)?;
        let image = find(&catalog, name_or_id)?;
        let removed = remove_from(&mut catalog, image, name_or_id, options)?;
        let labels = self.labels_of(image);
        self.write_shorter(guard, &catalog)?;
        self.note_removed(image, &labels, &removed);
        Ok(removed)
    }

    /// Notes the steps of removing an image, which has its labels until it is deleted.
    pub(crate) fn note_removed(&self, image: ImageId, labels: &BTreeMap<String, String>, removed: &[Removed]) {
        let id = image.to_string();
        // The digests of a repository go with its last tag, which is told once.
        let goes_along = |name: &ImageRef| {
            let tag = |step: &Removed| match step {
                Removed::Untagged(other) => other.tag().is_some() && other.same_repository(name),
                _ => false,
            };
            name.tag().is_none() && removed.iter().any(tag)
        };
        for step in removed {
            match step {
                Removed::Untagged(name) if goes_along(name) => {}
                Removed::Untagged(_) => self.note("untag", &id, &id, labels.clone()),
                Removed::Deleted(_) => self.note("delete", &id, &id, BTreeMap::new()),
                Removed::DeletedLayer(_) => {}
            }
        }
    }

    /// Writes a catalog that has lost images, and frees what only they needed. Returns how many bytes that were.
    pub(crate) fn write_shorter(&self, guard: CatalogGuard<'_>, catalog: &Catalog) -> Result<u64, StoreError> {
        guard.write(catalog)?;
        // The images are gone by now, whatever happens to their files: they can be collected later.
        let swept = sweep_locked(&self.layout, catalog).or_else(|error| {
            let more = error.is_full() && reserve::give_up(&self.layout);
            if more { sweep_locked(&self.layout, catalog) } else { Err(error) }
        });
        drop(guard);
        Ok(swept.map_or(0, |sweep| sweep.finish().bytes))
    }
}

fn remove_from(
    catalog: &mut Catalog,
    image: ImageId,
    text: &str,
    options: &RemoveOptions,
) -> Result<Vec<Removed>, RemoveError> {
    let mut removed = Vec::new();
    let names: Vec<ImageRef> = catalog.names_of(image).cloned().collect();
    let user = |running| options.containers.iter().find(|user| user.image == image && user.running == running);

    // A name by a digest that is not in the catalog stands for the image, as its ID does.
    let name = text.parse::<ImageRef>().ok().filter(|name| catalog.names.contains_key(name));
    if let Some(name) = name.filter(|_| !image.has_prefix(text)) {
        if let (false, true, Some(user)) = (options.force, is_one_tag(&names), user(true).or(user(false))) {
            return Err(RemoveError::NameInUse {
                name: text.to_owned(),
                container: short(&user.container),
                image: image.short(),
            });
        }
        catalog.names.remove(&name);
        removed.push(Removed::Untagged(name.clone()));
        // With the last tag of a repository go the digests that it was pulled by.
        let left = |catalog: &Catalog| catalog.names_of(image).cloned().collect::<Vec<_>>();
        if !left(catalog).iter().any(|other| other.same_repository(&name) && other.tag().is_some()) {
            for other in left(catalog).into_iter().filter(|other| other.same_repository(&name)) {
                catalog.names.remove(&other);
                removed.push(Removed::Untagged(other));
            }
        }
        if catalog.names_of(image).next().is_some() {
            return Ok(removed);
        }
        // The name is off; an image that is in use just stays without one.
        if user(true).is_some() || (!options.force && user(false).is_some()) {
            return Ok(removed);
        }
    } else {
        let conflict = |hard, why| RemoveError::Conflict { image: image.short(), hard, why };
        if let Some(user) = user(true) {
            return Err(conflict(true, Reason::Running { container: short(&user.container) }));
        }
        if !options.force && !is_one_tag(&names) {
            return Err(conflict(false, Reason::SeveralNames));
        }
        if let (false, Some(user)) = (options.force, user(false)) {
            return Err(conflict(false, Reason::Stopped { container: short(&user.container) }));
        }
        for name in names {
            catalog.names.remove(&name);
            removed.push(Removed::Untagged(name));
        }
    }

    let record = catalog.images.remove(&image);
    removed.push(Removed::Deleted(image));
    let layers = record.map(|record| record.layers).unwrap_or_default();
    removed.extend(freed_chains(catalog, &layers).into_iter().map(Removed::DeletedLayer));
    Ok(removed)
}

/// Returns the stacks of `layers` that no image in the catalog has, the highest first.
pub(crate) fn freed_chains(catalog: &Catalog, layers: &[DiffId]) -> Vec<ChainId> {
    let shared = |other: &Vec<DiffId>| layers.iter().zip(other).take_while(|(a, b)| a == b).count();
    let kept = catalog.images.values().map(|record| shared(&record.layers)).max().unwrap_or(0);
    let mut chains: Vec<ChainId> = Vec::new();
    for layer in layers {
        chains.push(ChainId::extend(chains.last().copied(), *layer));
    }
    chains.drain(..kept);
    chains.reverse();
    chains
}

/// Returns whether the names are one tag and digests of the same repository.
fn is_one_tag(names: &[ImageRef]) -> bool {
    let tags = names.iter().filter(|name| name.tag().is_some()).count();
    tags <= 1 && names.iter().all(|name| name.same_repository(&names[0]))
}

fn short(container: &str) -> String {
    container.chars().take(12).collect()
}

/// Why something was not removed. The wording is Docker's.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The image was not found, or the store failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The name is the last one of an image that a container uses.
    #[error(
        "conflict: unable to remove repository reference {name:?} (must force) - \
         container {container} is using its referenced image {image}"
    )]
    NameInUse {
        /// The name.
        name: String,
        /// The container.
        container: String,
        /// The image.
        image: String,
    },
    /// The image is needed.
    #[error("conflict: unable to delete {image} ({}) - {why}", if *hard { "cannot be forced" } else { "must be forced" })]
    Conflict {
        /// The image.
        image: String,
        /// Whether force does not help.
        hard: bool,
        /// By what.
        why: Reason,
    },
}

/// By what an image is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has several names.
    SeveralNames,
    /// A container runs on it.
    Running {
        /// The container.
        container: String,
    },
    /// A stopped container was made from it.
    Stopped {
        /// The container.
        container: String,
    },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::SeveralNames => formatter.write_str("image is referenced in multiple repositories"),
            Reason::Running { container } => write!(formatter, "image is being used by running container {container}"),
            Reason::Stopped { container } => write!(formatter, "image is being used by stopped container {container}"),
        }
    }
}

impl From<StoreError> for RemoveError {
    fn from(error: StoreError) -> Self {
        ImageError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use strata_layer::Digest;

    use super::*;
    use crate::catalog::ImageRecord;
    use crate::timestamp::Timestamp;

    const NOW: Timestamp = Timestamp { seconds: 0, nanoseconds: 0 };

    fn image(text: &str) -> ImageId {
        ImageId(Digest::of(text.as_bytes()))
    }

    /// A catalog with images, each given by its layers and its names.
    fn catalog(images: &[(&str, &[&str], &[&str])]) -> Catalog {
        let mut catalog = Catalog::default();
        for (name, layers, names) in images {
            let layers = layers.iter().map(|layer| DiffId(Digest::of(layer.as_bytes()))).collect();
            let record = ImageRecord { manifest: Digest::of(b"m"), layers, tagged: 0 };
            catalog.images.insert(image(name), record);
            for reference in *names {
                catalog.name(reference.parse().unwrap(), image(name), NOW);
            }
        }
        catalog
    }

    fn outcome(catalog: &mut Catalog, text: &str, options: &RemoveOptions) -> Vec<String> {
        let image = find(catalog, text).map_err(RemoveError::from);
        match image.and_then(|image| remove_from(catalog, image, text, options)) {
            Err(error) => vec![error.to_string()],
            Ok(steps) => steps
                .iter()
                .map(|step| match step {
                    Removed::Untagged(name) => format!("Untagged: {}", name.familiar()),
                    Removed::Deleted(id) => format!("Deleted: {id}"),
                    Removed::DeletedLayer(chain) => format!("Layer: {chain}"),
                })
                .collect(),
        }
    }

    fn used_by(name: &str, running: bool, force: bool) -> RemoveOptions {
        let container = ContainerUse { container: "c".repeat(64), image: image(name), running };
        RemoveOptions { force, containers: vec![container] }
    }

    #[test]
    fn a_name_is_taken_off_and_the_last_takes_the_image() {
        let mut catalog = catalog(&[("a", &["1", "2"], &["x", "x:2"]), ("b", &["1"], &[])]);
        let options = RemoveOptions::default();
        assert_eq!(outcome(&mut catalog, "x:2", &options), ["Untagged: x:2"]);
        let chain = ChainId::of(&[DiffId(Digest::of(b"1")), DiffId(Digest::of(b"2"))]).unwrap();
        assert_eq!(
            outcome(&mut catalog, "x", &options),
            ["Untagged: x:latest".to_owned(), format!("Deleted: {}", image("a")), format!("Layer: {chain}")]
        );
        assert_eq!(outcome(&mut catalog, "x", &options), ["No such image: x:latest"]);
    }

    #[test]
    fn an_id_with_several_names_needs_force() {
        let mut catalog = catalog(&[("a", &[], &["x", "y"])]);
        let id = image("a").short();
        let refused =
            format!("conflict: unable to delete {id} (must be forced) - image is referenced in multiple repositories");
        assert_eq!(outcome(&mut catalog, &id, &RemoveOptions::default()), [refused]);
        let force = RemoveOptions { force: true, ..Default::default() };
        let all =
            ["Untagged: x:latest".to_owned(), "Untagged: y:latest".to_owned(), format!("Deleted: {}", image("a"))];
        assert_eq!(outcome(&mut catalog, &id, &force), all);
    }

    #[test]
    fn containers_keep_images() {
        let fresh = || catalog(&[("a", &[], &["x"])]);
        let (id, container) = (image("a").short(), "c".repeat(12));
        for (text, options, expected) in [
            (
                "x",
                used_by("a", false, false),
                format!(
                    "conflict: unable to remove repository reference \"x\" (must force) - container {container} is using its referenced image {id}"
                ),
            ),
            (
                "x",
                used_by("a", true, false),
                format!(
                    "conflict: unable to remove repository reference \"x\" (must force) - container {container} is using its referenced image {id}"
                ),
            ),
            ("x", used_by("a", true, true), "Untagged: x:latest".to_owned()),
            (
                &id,
                used_by("a", true, true),
                format!(
                    "conflict: unable to delete {id} (cannot be forced) - image is being used by running container {container}"
                ),
            ),
            (
                &id,
                used_by("a", false, false),
                format!(
                    "conflict: unable to delete {id} (must be forced) - image is being used by stopped container {container}"
                ),
            ),
        ] {
            assert_eq!(outcome(&mut fresh(), text, &options), [expected]);
        }
        let gone = ["Untagged: x:latest".to_owned(), format!("Deleted: {}", image("a"))];
        assert_eq!(outcome(&mut fresh(), "x", &used_by("a", false, true)), gone);
        assert_eq!(outcome(&mut fresh(), &id, &used_by("b", true, false)), gone);
    }

    #[test]
    fn digests_go_with_the_last_tag_of_their_repository() {
        let pulled = format!("x@{}", Digest::of(b"manifest"));
        let mut catalog = catalog(&[("a", &[], &["x:1", &pulled])]);
        let steps = outcome(&mut catalog, "x:1", &RemoveOptions::default());
        assert_eq!(steps[..2], ["Untagged: x:1".to_owned(), format!("Untagged: {pulled}")]);
        assert_eq!(steps.len(), 3);
    }

    #[test]
    fn the_digest_of_the_manifest_stands_for_the_image() {
        let mut catalog = catalog(&[("a", &[], &["x:1", "x:2"])]);
        let text = format!("x@{}", Digest::of(b"m"));
        let refused = outcome(&mut catalog, &text, &RemoveOptions::default());
        assert!(refused[0].ends_with("image is referenced in multiple repositories"), "{refused:?}");
        assert_eq!(outcome(&mut catalog, "x:2", &RemoveOptions::default()), ["Untagged: x:2"]);
        let steps = outcome(&mut catalog, &text, &RemoveOptions::default());
        assert_eq!(steps, ["Untagged: x:1".to_owned(), format!("Deleted: {}", image("a"))]);
    }
}
