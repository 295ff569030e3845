//! The merged indexes of images that are not visible yet.
//!
//! Whether layers fit on each other shows when they are merged: a hard link may lead to a file of a layer below, or to
//! none. So that is done before an image becomes visible, and the index is kept, which makes the first mount as quick
//! as the next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use strata_layer::index::Index;
use strata_layer::{ChainId, DiffId, merge};

use crate::ingest::NewLayer;
use crate::layout::INDEX;
use crate::publish::NewImage;
use crate::scratch::{scratch_in, write_index};
use crate::stack::{StackError, chain_of, make_chain_folder, open_index};
use crate::store::Store;
use crate::work::WorkDir;

/// A merged index in a temporary folder.
#[derive(Debug)]
pub(crate) struct NewStack {
    pub(crate) chain: ChainId,
    /// The folder, as it will be in the store.
    pub(crate) folder: PathBuf,
}

impl Store {
    /// Merges the layers of each image that the store has no merged index for.
    ///
    /// Layers that are not new are in the store and pinned.
    pub(crate) fn merge_new_stacks(
        &self,
        work: &WorkDir,
        new: &BTreeMap<DiffId, NewLayer>,
        images: &[NewImage],
    ) -> Result<Vec<NewStack>, StackError> {
        let mut stacks = Vec::new();
        let mut seen = BTreeSet::new();
        for image in images {
            let chain = chain_of(&image.layers);
            if !seen.insert(chain) || open_index(&self.layout.chain(chain).join(INDEX))?.is_some() {
                continue;
            }
            let index = |layer: &DiffId| match new.get(layer) {
                Some(new) => open_index(&new.folder.join(INDEX))?.ok_or(StackError::IndexNotReadable { layer: *layer }),
                None => self.layer_index(*layer),
            };
            let indexes = image.layers.iter().map(index).collect::<Result<Vec<Index>, _>>()?;
            let references: Vec<&Index> = indexes.iter().collect();
            let scratch = scratch_in(work.path());
            let merged = merge::merge_index(&references, Some(&scratch));
            let merged = merged.map_err(|error| StackError::merge(work.path(), error))?;
            let folder = work.path().join(format!("chain-{}", stacks.len()));
            make_chain_folder(&folder, &image.layers)?;
            write_index(merged, &folder.join(INDEX))?;
            stacks.push(NewStack { chain, folder });
        }
        Ok(stacks)
    }
}
