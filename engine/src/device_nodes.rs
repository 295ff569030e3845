//! The devices of the host that a container is given, as the specification says them.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use crate::container::{Device, DeviceRule};

/// A device that a container cannot be given. The text is Docker's.
#[derive(Debug, thiserror::Error)]
#[error("error gathering device information while adding custom device {path:?}")]
pub struct DeviceError {
    /// On the host.
    path: PathBuf,
    source: std::io::Error,
}

/// A device that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// On the host.
    pub(crate) host: PathBuf,
    /// In the container.
    pub(crate) node: LinuxDevice,
    /// What may be done with it.
    pub(crate) rule: LinuxDeviceCgroup,
}

/// Looks the devices up. A folder stands for all devices in it.
pub(crate) fn find(devices: &[Device]) -> Result<Vec<Found>, crate::SpecError> {
    let mut found = Vec::new();
    for device in devices {
        let failed = |source| DeviceError { path: device.host.clone(), source };
        let nodes = nodes(&device.host, &device.container).map_err(failed)?;
        if nodes.is_empty() {
            return Err(failed(std::io::Error::other("not a device node")).into());
        }
        for (host, node) in nodes {
            let rule = LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(node.typ())
                .major(node.major())
                .minor(node.minor())
                .access(device.access.clone())
                .build()?;
            found.push(Found { host, node, rule });
        }
    }
    Ok(found)
}

/// The rule in the words of the specification.
pub(crate) fn rule(rule: &DeviceRule) -> Result<LinuxDeviceCgroup, OciSpecError> {
    let kind = match rule.kind {
        'b' => LinuxDeviceType::B,
        'c' => LinuxDeviceType::C,
        _ => LinuxDeviceType::A,
    };
    // The specification's word for any number.
    let number = |number: Option<u32>| number.map_or(-1, i64::from);
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .major(number(rule.major))
        .minor(number(rule.minor))
        .access(rule.access.clone())
        .build()
}

/// The device at `host`, or all below it, to be seen at `container`. A link is followed if it was named, not in a folder.
fn nodes(host: &Path, container: &Path) -> std::io::Result<Vec<(PathBuf, LinuxDevice)>> {
    let metadata = std::fs::metadata(host)?;
    if !metadata.is_dir() {
        return Ok(node(&metadata, container).map(|node| (host.to_owned(), node)).into_iter().collect());
    }
    let mut found = Vec::new();
    let mut folders = vec![(host.to_owned(), container.to_owned())];
    while let Some((host, container)) = folders.pop() {
        for entry in std::fs::read_dir(host)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Unplugged since.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            let place = container.join(entry.file_name());
            if metadata.is_dir() {
                folders.push((entry.path(), place));
            } else {
                found.extend(node(&metadata, &place).map(|node| (entry.path(), node)));
            }
        }
    }
    Ok(found)
}

fn node(metadata: &std::fs::Metadata, place: &Path) -> Option<LinuxDevice> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    let number = metadata.rdev();
    LinuxDeviceBuilder::default()
        .path(place)
        .typ(kind)
        .major(rustix::fs::major(number))
        .minor(rustix::fs::minor(number))
        .file_mode(metadata.permissions().mode() & 0o777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str) -> Device {
        Device { host: host.into(), container: "/dev/here".into(), access: "r".to_owned() }
    }

    #[test]
    fn a_device_keeps_its_numbers_and_has_the_place_and_letters_asked_for() {
        let found = find(&[device("/dev/null")]).unwrap();
        let [Found { node, rule, .. }] = &found[..] else { panic!("{found:?}") };
        assert_eq!((node.path().as_path(), node.major(), node.minor()), (Path::new("/dev/here"), 1, 3));
        assert_eq!((rule.allow(), rule.major(), rule.minor()), (true, Some(1), Some(3)));
        assert_eq!(rule.access().as_deref(), Some("r"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (path, why) in [("/no/such", "No such file"), ("/proc/version", "not a device node")] {
            let error = crate::error_chain(&find(&[device(path)]).unwrap_err());
            assert!(error.contains(why) && error.contains(path), "{error}");
        }
        assert!(find(&[device("/proc/self/task")]).is_err(), "a folder without devices");
    }

    #[test]
    fn any_number_is_a_word_of_its_own() {
        let rule = rule(&"b 8:* rm".parse().unwrap()).unwrap();
        assert_eq!((rule.typ(), rule.major(), rule.minor()), (Some(LinuxDeviceType::B), Some(8), Some(-1)));
    }
}
