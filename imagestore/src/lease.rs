//! Leases: named pins on a stack of layers that outlive the process and the image's name.
//!
//! A container takes one, so that its layers stay when the image is removed by force.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};
use strata_layer::DiffId;

use crate::catalog::CatalogGuard;
use crate::disk::{DiskError, OnDisk, names_in, read_if_present, sync_folder, write_durably};
use crate::image_id::ImageId;
use crate::layout::Layout;
use crate::model::parse_own_json;
use crate::stack::StackError;
use crate::store::{Store, StoreError};
use crate::work::WorkDir;

impl Store {
    /// Keeps the layers of an image until [`Store::release`], whatever happens to the image.
    ///
    /// `name` is the lease's; an existing lease of that name is replaced.
    pub fn lease(&self, name: &str, image: &ImageId) -> Result<(), StackError> {
        self.check_writable()?;
        let name = check_name(name)?;
        let guard = CatalogGuard::lock(&self.layout).map_err(StoreError::from)?;
        let catalog = guard.read().map_err(StoreError::from)?;
        let record = catalog.images.get(image).ok_or(StackError::NoSuchImage { id: *image })?;
        let lease = Lease { layers: record.layers.iter().map(DiffId::to_string).collect() };
        self.write_lease(name, &lease).map_err(StoreError::from)?;
        Ok(())
    }

    /// Gives a lease back. Its layers go with the next collection if nothing else needs them.
    pub fn release(&self, name: &str) -> Result<(), StoreError> {
        self.check_writable()?;
        let path = self.layout.leases().join(check_name(name)?);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Ok(Err(error).on_disk("remove", &path)?),
            _ => Ok(()),
        }
    }

    /// Returns the names of all leases.
    pub fn leases(&self) -> Result<Vec<String>, StoreError> {
        Ok(names_in(&self.layout.leases())?)
    }

    fn write_lease(&self, name: &str, lease: &Lease) -> Result<(), DiskError> {
        let work = WorkDir::create(&self.layout)?;
        let (aside, path) = (work.path().join("lease"), self.layout.leases().join(name));
        write_durably(&aside, &serde_json::to_vec(lease).expect("a lease has only string keys"))?;
        fs::rename(&aside, &path).on_disk("rename", &path)?;
        sync_folder(&self.layout.leases())
    }
}

/// Returns the layers of one lease, bottom first; `None` if there is no such lease.
pub(crate) fn layers_of(layout: &Layout, name: &str) -> Result<Option<Vec<DiffId>>, StoreError> {
    let damaged = || StoreError::Lease { name: name.to_owned() };
    let Some(bytes) = read_if_present(&layout.leases().join(check_name(name)?))? else { return Ok(None) };
    let lease: Lease = parse_own_json(&bytes).map_err(|_| damaged())?;
    lease.layers.iter().map(|text| text.parse().map_err(|_| damaged())).collect::<Result<_, _>>().map(Some)
}

/// Returns the stacks that leases keep.
pub(crate) fn leased_stacks(layout: &Layout) -> Result<Vec<Vec<DiffId>>, StoreError> {
    let mut stacks = Vec::new();
    for name in names_in(&layout.leases())? {
        // Released in between: nothing to keep.
        stacks.extend(layers_of(layout, &name)?);
    }
    Ok(stacks)
}

fn check_name(name: &str) -> Result<&str, StoreError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = (1..=128).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.');
    if valid { Ok(name) } else { Err(StoreError::Lease { name: name.to_owned() }) }
}

#[derive(Serialize, Deserialize)]
struct Lease {
    layers: Vec<String>,
}
