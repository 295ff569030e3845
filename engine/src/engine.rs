//! The engine: a root folder with its images and containers.

use std::path::{Path, PathBuf};

use strata_imagestore::{
    ContainerUse, ImageId, ImageSummary, OpenError, Pruned, RemoveOptions, Removed, Stack, StackError, Store, Unused,
};
use strata_sandbox::cgroup::CgroupManager;
use strata_unionfs::{Absent, ImageLayer, Lower};

use crate::container::{Container, Containers, FindError, RecordError, choose_manager};

/// Everything below one root folder.
#[derive(Debug)]
pub struct Engine {
    root: PathBuf,
    store: Store,
    containers: Containers,
    /// Who is to make cgroups, where somebody said so.
    cgroup_manager: Option<CgroupManager>,
}

/// A root folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("open the state folder {root:?}")]
pub struct EngineError {
    root: PathBuf,
    source: OpenError,
}

/// An image that cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveImageError {
    /// The containers that may use it cannot be listed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store refuses.
    #[error(transparent)]
    Image(#[from] strata_imagestore::RemoveError),
}

impl RemoveImageError {
    /// Whether there is no such image.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RemoveImageError::Image(strata_imagestore::RemoveError::Image(error)) if error.is_not_found())
    }
}

impl Engine {
    /// Opens the engine of a root folder, which is made if it does not exist.
    pub fn open(root: &Path) -> Result<Engine, EngineError> {
        crate::fetcher::provide_layers();
        let error = |source| EngineError { root: root.to_owned(), source };
        let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        let store = Store::open(&absolute).map_err(error)?;
        // One root may be named in several ways, and two roots must never meet in one cgroup.
        let root = absolute.canonicalize().unwrap_or(absolute);
        Ok(Engine { containers: Containers::new(&root), store, root, cgroup_manager: None })
    }

    /// Has the cgroups of new containers made like this; `None` chooses by the machine.
    #[must_use]
    pub fn with_cgroup_manager(self, cgroup_manager: Option<CgroupManager>) -> Engine {
        Engine { cgroup_manager, ..self }
    }

    /// Who makes the cgroups of new containers, and why.
    pub fn cgroup_manager(&self) -> (CgroupManager, String) {
        match self.cgroup_manager {
            Some(asked) => (asked, "it was asked for".to_owned()),
            None => choose_manager(),
        }
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The images.
    pub fn images(&self) -> &Store {
        &self.store
    }

    /// The containers, the newest first, after what killed commands left has been dealt with.
    pub fn containers(&self) -> Result<Vec<Container>, RecordError> {
        self.recover_and_list()
    }

    /// Finds a container by its identifier, its name, or the beginning of its identifier.
    pub fn container(&self, name: &str) -> Result<Container, FindError> {
        // Looking after all containers for the sake of one is felt when there are a thousand and each is named. Nor does
        // recovering bring any back: what is not found now is not found then.
        let found = self.containers.find(name)?;
        if found.is_settled_as(name) {
            return Ok(found);
        }
        self.recover()?;
        self.containers.find(name)
    }

    /// Removes an image's name, or the image, as `docker rmi` does.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Vec<Removed>, RemoveImageError> {
        let options = RemoveOptions { force, containers: self.image_uses()? };
        Ok(self.store.remove(name, &options)?)
    }

    /// Removes the images that no container uses and that fit, as `docker image prune` does.
    pub fn prune_images(
        &self,
        unused: Unused,
        fits: impl Fn(&ImageSummary) -> bool,
    ) -> Result<Pruned, RemoveImageError> {
        Ok(self.store.prune(unused, fits, &self.image_uses()?)?)
    }

    fn image_uses(&self) -> Result<Vec<ContainerUse>, RecordError> {
        let uses = self.containers()?.into_iter().filter_map(|container| {
            Some(ContainerUse {
                container: container.config.id.to_string(),
                image: image_id(&container)?,
                running: container.state.is_active(),
            })
        });
        Ok(uses.collect())
    }

    pub(crate) fn registry(&self) -> &Containers {
        &self.containers
    }

    /// The layers that a container stands on. They stay in the store as long as the container, whatever happens to
    /// the image's names.
    pub(crate) fn stack_of(&self, container: &Container) -> Result<Stack, StackError> {
        match (self.store.leased_stack(&lease_name(container)), image_id(container)) {
            // One that goes with its process has no lease, and needs its image only as long.
            (Err(StackError::NoSuchLease { .. }), Some(image)) => self.store.stack(&image),
            (result, _) => result,
        }
    }

    /// Gives back what kept a container's layers. If that fails, the next recovery does it.
    pub(crate) fn release(&self, lease: &str) {
        if let Err(error) = self.store.release(lease) {
            tracing::warn!(%lease, error = %crate::error_chain(&error), "lease not released");
        }
    }
}

/// The name of the lease that keeps a container's layers.
pub(crate) fn lease_name(container: &Container) -> String {
    format!("{LEASE_PREFIX}{}", container.config.id)
}

/// How the leases of containers begin.
pub(crate) const LEASE_PREFIX: &str = "container-";

/// The image a container was made from.
pub(crate) fn image_id(container: &Container) -> Option<ImageId> {
    container.config.image.parse().ok().map(ImageId)
}

/// The layers of a stack as the union takes them.
pub(crate) fn lower_of(stack: &Stack) -> Lower {
    let layers = stack.layers.iter().map(|layer| ImageLayer {
        tar: layer.tar.clone(),
        index: layer.index.clone(),
        objects: layer.objects.clone(),
        absent: layer.lazy_in.clone().map(|store| Absent { store, layer: layer.diff_id.0.to_string() }),
    });
    Lower::Image { index: stack.index.clone(), layers: layers.collect() }
}
