//! A bundle: a folder with `config.json` and, usually, the root filesystem.

use std::fs;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxBuilder, LinuxDeviceCgroup, LinuxResourcesBuilder, Mount, Spec};

use super::RuntimeError;
use crate::cgroup::{DeviceRule, docker_device_rules};

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
        let rootfs = without_dots(&folder.join(root.path()));
        match rootfs.canonicalize() {
            Ok(real) if !real.is_dir() => return Err(no_root(&rootfs)),
            Err(_) => return Err(no_root(&rootfs)),
            Ok(real) if real != rootfs => {
                let (path, real) = (rootfs.display(), real.display());
                // In runc's words. Where it leads could change between a look and a use.
                let text = format!("invalid rootfs: not an absolute path, or a symlink: {path} is {real}");
                return Err(RuntimeError::InvalidSpec(text));
            }
            Ok(_) => {}
        }
        if spec.process().is_none() {
            return Err(RuntimeError::InvalidSpec("process property must be set".into()));
        }
        for mount in spec.mounts_mut().iter_mut().flatten() {
            count_from(mount, &folder);
        }
        restrict_devices(&mut spec);
        Ok(Self { folder, spec, text, rootfs })
    }
}

fn no_root(path: &Path) -> RuntimeError {
    RuntimeError::InvalidSpec(format!("rootfs ({}) does not exist", path.display()))
}

/// Takes `.` and `..` out of an absolute path, as if there were no symbolic links.
fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
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

/// As in runc, everything is forbidden but what the list allows, and the devices of every container are allowed after all:
/// a list, if there is one, is taken to be about the others.
fn restrict_devices(spec: &mut Spec) {
    if spec.linux().is_none() {
        spec.set_linux(LinuxBuilder::default().build().ok());
    }
    let Some(linux) = spec.linux_mut() else { return };
    if linux.resources().is_none() {
        linux.set_resources(LinuxResourcesBuilder::default().build().ok());
    }
    let Some(resources) = linux.resources_mut() else { return };
    let listed = resources.devices().clone().unwrap_or_default();
    let (mut rules, ordinary): (Vec<_>, Vec<_>) = docker_device_rules().into_iter().partition(|rule| !rule.allow());
    if listed.first().is_some_and(is_for_all) {
        rules.clear();
    }
    rules.extend(listed.into_iter().chain(ordinary));
    resources.set_devices(Some(rules));
}

/// Tells whether a rule leaves nothing of those before it.
fn is_for_all(rule: &LinuxDeviceCgroup) -> bool {
    DeviceRule::from_oci(rule).is_ok_and(|rule| rule.is_for_all())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_directory_and_no_symbolic_link() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::create_dir(folder.path().join("rootfs")).unwrap();
        fs::write(bundle.join("file"), "").unwrap();
        std::os::unix::fs::symlink("rootfs", bundle.join("link")).unwrap();
        std::os::unix::fs::symlink(&bundle, folder.path().join("way")).unwrap();
        let read = |bundle: &Path, root: &str| {
            let text = format!(
                r#"{{"ociVersion":"1.2.0","root":{{"path":"{root}"}},"process":{{"cwd":"/","user":{{"uid":0,"gid":0}}}}}}"#
            );
            fs::write(bundle.join(CONFIG), text).unwrap();
            Bundle::read(bundle).map(|bundle| bundle.rootfs)
        };
        let real = bundle.canonicalize().unwrap();
        for good in ["rootfs", "./rootfs/", "../bundle/rootfs", real.join("rootfs").to_str().unwrap()] {
            assert_eq!(read(&bundle, good).unwrap(), real.join("rootfs"), "{good}");
        }
        let way = folder.path().join("way");
        assert_eq!(read(&way, "rootfs").unwrap(), real.join("rootfs"), "only what the spec says counts");
        for (bad, why) in [
            ("link", "or a symlink"),
            ("link/", "or a symlink"),
            (way.join("rootfs").to_str().unwrap(), "or a symlink"),
            ("file", "does not exist"),
            ("missing", "does not exist"),
        ] {
            let error = read(&bundle, bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn devices_are_forbidden_unless_allowed() {
        let rules = |linux: &str| {
            let mut spec: Spec = serde_json::from_str(&format!(r#"{{"ociVersion":"1.2.0"{linux}}}"#)).unwrap();
            restrict_devices(&mut spec);
            spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().clone().unwrap()
        };
        for without in
            ["", r#","linux":{}"#, r#","linux":{"resources":{}}"#, r#","linux":{"resources":{"devices":[]}}"#]
        {
            assert_eq!(rules(without), docker_device_rules(), "{without}");
        }
        let one = rules(r#","linux":{"resources":{"devices":[{"allow":true,"type":"c","major":10,"access":"r"}]}}"#);
        assert_eq!((one[0].clone(), one.len()), (docker_device_rules()[0].clone(), docker_device_rules().len() + 1));
        assert_eq!((one[1].allow(), one[1].major()), (true, Some(10)));
        let all = rules(r#","linux":{"resources":{"devices":[{"allow":true,"access":"rwm"}]}}"#);
        assert!(all.iter().all(LinuxDeviceCgroup::allow));
    }
}
