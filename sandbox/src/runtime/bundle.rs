//! A bundle: a folder with `config.json` and, usually, the root filesystem.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::RuntimeError;
use crate::cgroup::docker_device_rules;

/// A bundle as it was read.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) folder: PathBuf,
    pub(super) spec: Spec,
    /// The text of the spec.
    pub(super) text: Vec<u8>,
    /// The root filesystem.
    pub(super) rootfs: PathBuf,
}

impl Bundle {
    /// Reads the bundle in `folder`; relative paths in it count from there.
    pub(super) fn read(folder: &Path) -> Result<Self, RuntimeError> {
        let folder =
            folder.canonicalize().map_err(|source| RuntimeError::ReadSpec { path: folder.join(CONFIG), source })?;
        let path = folder.join(CONFIG);
        let text = fs::read(&path).map_err(|source| RuntimeError::ReadSpec { path: path.clone(), source })?;
        let mut spec = parse_spec(&text, &path)?;
        let root = spec.root().as_ref().ok_or_else(|| RuntimeError::InvalidSpec("root must be specified".into()))?;
        let rootfs = folder.join(root.path());
        if !rootfs.is_dir() {
            return Err(RuntimeError::InvalidSpec(format!("rootfs ({}) does not exist", rootfs.display())));
        }
        if spec.process().is_none() {
            return Err(RuntimeError::InvalidSpec("process property must be set".into()));
        }
        let mut mounts = spec.mounts().clone();
        for mount in mounts.iter_mut().flatten() {
            count_from(mount, &folder);
        }
        spec.set_mounts(mounts);
        allow_ordinary_devices(&mut spec);
        Ok(Self { folder, spec, text, rootfs })
    }
}

/// Reads a spec.
pub(super) fn read_spec(path: &Path) -> Result<Spec, RuntimeError> {
    let text = fs::read(path).map_err(|source| RuntimeError::ReadSpec { path: path.to_owned(), source })?;
    parse_spec(&text, path)
}

fn parse_spec(text: &[u8], path: &Path) -> Result<Spec, RuntimeError> {
    let spec: Spec =
        serde_json::from_slice(text).map_err(|source| RuntimeError::ParseSpec { path: path.to_owned(), source })?;
    // Within a major version, what we do not know we may ignore.
    if spec.version().split('.').next() != Some("1") {
        return Err(RuntimeError::InvalidSpec(format!("unsupported ociVersion {:?}", spec.version())));
    }
    Ok(spec)
}

/// A list of devices that are forbidden or allowed is taken to be about the others: those of every container are allowed
/// after all, as in runc.
fn allow_ordinary_devices(spec: &mut Spec) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    let Some(resources) = resources else { return };
    let Some(mut rules) = resources.devices().clone().filter(|rules| !rules.is_empty()) else { return };
    rules.extend(docker_device_rules().into_iter().filter(oci_spec::runtime::LinuxDeviceCgroup::allow));
    resources.set_devices(Some(rules));
}

/// Makes the relative source of a bind mount absolute.
fn count_from(mount: &mut Mount, folder: &Path) {
    let is_bind = mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| matches!(option.as_str(), "bind" | "rbind"));
    if let Some(source) = mount.source().as_ref().filter(|source| is_bind && source.is_relative()) {
        let source = folder.join(source);
        mount.set_source(Some(source));
    }
}

/// The spec's file.
pub(super) const CONFIG: &str = "config.json";
