//! Network devices of the host that a container gets (`linux.netDevices`, version 1.3 of the specification).
//!
//! A device is moved into the container's network namespace and named there in one step. The kernel keeps its hardware
//! address, queues and MTU, and takes its addresses away: those that were given to it for good are given to it again. If the
//! container does not come to be, the devices go back. Once it is there they are its own: with its network namespace the
//! kernel ends those that are virtual and puts the others back, as the specification has it.

mod netlink;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::Spec;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::SpawnError;
use netlink::{Address, Link, Netlink};

/// A device to move, by its names before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkDevice {
    host_name: String,
    name: String,
}

/// Reads `linux.netDevices`; [`Namespaces`](crate::plan::Namespaces) has seen to it that there is a namespace to move them to.
pub(crate) fn plan(spec: &Spec) -> Result<Vec<NetworkDevice>, SpawnError> {
    let listed = spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref());
    let mut taken = BTreeMap::new();
    for (host_name, device) in listed.into_iter().flatten() {
        let name = device.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(host_name);
        for name in [host_name, name] {
            if !is_valid(name) {
                return Err(SpawnError::Invalid(format!("linux.netDevices: {name:?} is no name of a network device")));
            }
        }
        if let Some(other) = taken.insert(name.clone(), host_name.clone()) {
            let both = format!("{other:?} and {host_name:?} are both to be called {name:?}");
            return Err(SpawnError::Invalid(format!("linux.netDevices: {both}")));
        }
    }
    Ok(taken.into_iter().map(|(name, host_name)| NetworkDevice { host_name, name }).collect())
}

/// As the kernel's `dev_valid_name`, without the patterns that it fills in itself.
fn is_valid(name: &str) -> bool {
    let is_odd = |letter: char| matches!(letter, '/' | ':' | '%' | '\0') || letter.is_ascii_whitespace();
    (1..=LONGEST_NAME).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(is_odd)
}

/// Devices that are in the container's namespace. Dropped before [`keep`](Moved::keep), they go back.
#[derive(Debug, Default)]
#[must_use = "dropped, the devices go back to the host"]
pub(crate) struct Moved(Option<Namespaces>);

/// The two ends of the way, and who has gone it.
#[derive(Debug)]
struct Namespaces {
    here: Netlink,
    /// The host's namespace, to go back to.
    here_file: File,
    there: Netlink,
    moved: Vec<Journey>,
}

/// A device that has been moved, and what it was before.
#[derive(Debug)]
struct Journey {
    device: NetworkDevice,
    before: Link,
    addresses: Vec<Address>,
}

impl Moved {
    /// Moves `devices` into the network namespace of process `pid`, and switches them on there.
    pub(crate) fn into_process(devices: &[NetworkDevice], pid: u32) -> Result<Self, SpawnError> {
        if devices.is_empty() {
            return Ok(Self::default());
        }
        let fail = |source| SpawnError::Parent { what: "reach the network namespaces of host and container", source };
        // Of the thread: in a library, others may be elsewhere.
        let here_file = File::open("/proc/thread-self/ns/net").map_err(fail)?;
        let there_file = File::open(format!("/proc/{pid}/ns/net")).map_err(fail)?;
        let (here, there) = (Netlink::open().map_err(fail)?, netlink_in(there_file.as_fd()).map_err(fail)?);
        let mut all = Self(Some(Namespaces { here, here_file, there, moved: Vec::new() }));
        if let Some(namespaces) = &mut all.0 {
            for device in devices {
                namespaces.take_over(device, there_file.as_fd())?;
            }
        }
        Ok(all)
    }

    /// Leaves them where they are.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        let Some(mut namespaces) = self.0.take() else { return };
        while let Some(journey) = namespaces.moved.pop() {
            if let Err(error) = namespaces.bring_back(&journey) {
                let name = &journey.device.host_name;
                tracing::warn!(%error, name, "network device not brought back after a failed start");
            }
        }
    }
}

impl Namespaces {
    fn take_over(&mut self, device: &NetworkDevice, there: BorrowedFd<'_>) -> Result<(), SpawnError> {
        let NetworkDevice { host_name, name } = device;
        let fail = |what| {
            let device = host_name.clone();
            move |source| SpawnError::NetworkDevice { device, what, source }
        };
        let before = self.here.link(host_name).map_err(fail("find it on the host"))?;
        // The kernel would move it all the same, and then fail to name it.
        if self.there.link(name).is_ok() {
            let taken = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(fail("name it in the container's network namespace")(taken));
        }
        let addresses = self.here.lasting_addresses(before.index).map_err(fail("list its addresses"))?;
        self.here.move_to(before.index, there, name).map_err(fail("move it to the container's network namespace"))?;
        self.moved.push(Journey { device: device.clone(), before, addresses: addresses.clone() });
        // The number may have been taken over there.
        let index = self.there.link(name).map_err(fail("find it in the container's network namespace"))?.index;
        for address in &addresses {
            self.there.add_address(index, address, host_name, name).map_err(fail("give it its addresses again"))?;
        }
        self.there.set_up(index, true).map_err(fail("switch it on"))
    }

    fn bring_back(&mut self, journey: &Journey) -> io::Result<()> {
        let NetworkDevice { host_name, name } = &journey.device;
        let index = self.there.link(name)?.index;
        self.there.move_to(index, self.here_file.as_fd(), host_name)?;
        let index = self.here.link(host_name)?.index;
        // One that does not take is no reason to leave the device off.
        let mut result = Ok(());
        for address in &journey.addresses {
            result = result.and(self.here.add_address(index, address, host_name, host_name));
        }
        self.here.set_up(index, journey.before.is_up).and(result)
    }
}

/// Opens a socket in another network namespace, from a thread that goes there and ends.
fn netlink_in(namespace: BorrowedFd<'_>) -> io::Result<Netlink> {
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            Netlink::open()
        });
        opened.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the other namespace panicked")))
    })
}

/// `IFNAMSIZ`, without the end.
const LONGEST_NAME: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(devices: &str) -> Result<Vec<(String, String)>, String> {
        let text = format!(r#"{{"ociVersion":"1.3.0","linux":{{"netDevices":{devices}}}}}"#);
        let spec: Spec = serde_json::from_str(&text).unwrap();
        let devices = plan(&spec).map_err(|error| error.to_string())?;
        Ok(devices.into_iter().map(|device| (device.host_name, device.name)).collect())
    }

    #[test]
    fn devices_keep_their_name_unless_another_is_given() {
        let pair = |host: &str, name: &str| (host.to_owned(), name.to_owned());
        let found = planned(r#"{"eth1": {}, "eth2": {"name": ""}, "eth3": {"name": "net0"}}"#).unwrap();
        assert_eq!(found, [pair("eth1", "eth1"), pair("eth2", "eth2"), pair("eth3", "net0")]);
        assert!(planned("{}").unwrap().is_empty());
    }

    #[test]
    fn names_that_no_device_can_have_are_refused() {
        for name in ["", "a/b", "..", "a b", "a:1", "eth%d", "0123456789abcdef"] {
            let error = planned(&format!(r#"{{"{name}": {{"name": "net0"}}}}"#)).unwrap_err();
            assert!(error.contains("is no name of a network device"), "{name}: {error}");
        }
        assert!(planned(r#"{"a": {"name": "net0"}, "net0": {}}"#).unwrap_err().contains("both to be called \"net0\""));
    }
}
