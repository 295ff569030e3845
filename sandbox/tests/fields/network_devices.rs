//! `linux.netDevices`, with devices that a thread of the test makes in a network namespace of its own.

use std::process::Command;

use oci_spec::runtime::LinuxNamespaceType;
use serde_json::{Value, json};

use super::super::support::{Container, rootfs};
use super::super::walls::Case;

pub(super) fn cases() -> Vec<Case> {
    let missing = (!can_make_devices()).then(|| "needs root, busybox, and a kernel with veth devices".to_owned());
    vec![
        ("fields_network_devices_are_moved", moved, missing.clone()),
        ("fields_network_devices_come_back", come_back, missing.clone()),
        ("fields_network_devices_that_cannot_be_are_named", named, missing),
    ]
}

fn can_make_devices() -> bool {
    let made =
        std::thread::spawn(|| strata_sys::clone::unshare(LinuxNamespaceType::Network as u64).is_ok() && make_a0());
    made.join().unwrap_or(false)
}

/// Makes the device `a0` in the network namespace of this thread.
fn make_a0() -> bool {
    Command::new("busybox")
        .args(["ip", "link", "add", "name", "a0", "type", "veth"])
        .output()
        .is_ok_and(|made| made.status.success())
}

/// Does `test` where there is a device `a0` with addresses.
fn with_device(test: fn()) {
    let thread = std::thread::spawn(move || {
        strata_sys::clone::unshare(LinuxNamespaceType::Network as u64).unwrap();
        assert!(make_a0());
        ip(&["link", "set", "a0", "mtu", "1300", "address", "02:00:00:00:00:aa", "up"]).unwrap();
        ip(&["addr", "add", "10.9.8.7/24", "dev", "a0", "label", "a0:web"]).unwrap();
        ip(&["addr", "add", "fd00::5/64", "dev", "a0"]).unwrap();
        test();
    });
    thread.join().unwrap();
}

/// The output of busybox's `ip` in the network namespace of this thread.
fn ip(words: &[&str]) -> Result<String, String> {
    let output = Command::new("busybox").arg("ip").args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn with_devices(devices: Value, args: &[&str]) -> Result<String, String> {
    let root = rootfs();
    let container = Container { patch: json!({"linux": {"netDevices": devices}}), ..Container::new(root.path(), args) };
    match container.run() {
        Ok(output) => Ok(output.stdout),
        Err(error) => {
            Err(format!("{error}: {}", std::error::Error::source(&error).map_or(String::new(), |it| it.to_string())))
        }
    }
}

fn assert_is_a0(text: &str, name: &str) {
    for part in
        [name, "mtu 1300", "02:00:00:00:00:aa", "inet 10.9.8.7/24", &format!("{name}:web"), "inet6 fd00::5/64", ",UP"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

fn moved() {
    with_device(|| {
        let text = with_devices(json!({"a0": {"name": "net0"}}), &["ip", "addr", "show", "dev", "net0"]).unwrap();
        assert_is_a0(&text, "net0");
        assert!(ip(&["link", "show", "dev", "a0"]).is_err(), "it went with the container's namespace");
        ip(&["link", "add", "name", "b0", "type", "veth"]).unwrap();
        let text = with_devices(json!({"b0": {}}), &["ip", "addr", "show", "dev", "b0"]).unwrap();
        assert!(text.contains("b0") && text.contains(",UP"), "{text}");
    });
}

fn come_back() {
    with_device(|| {
        let error = with_devices(json!({"a0": {"name": "net0"}}), &["/missing"]).unwrap_err();
        assert!(error.contains("no such file"), "{error}");
        assert_is_a0(&ip(&["addr", "show", "dev", "a0"]).unwrap(), "a0");
        // The second of two fails.
        let error = with_devices(json!({"a0": {"name": "1st"}, "nothing": {"name": "2nd"}}), &["true"]).unwrap_err();
        assert!(error.contains("network device \"nothing\": find it on the host"), "{error}");
        assert_is_a0(&ip(&["addr", "show", "dev", "a0"]).unwrap(), "a0");
    });
}

fn named() {
    with_device(|| {
        let error = with_devices(json!({"a0": {"name": "lo"}}), &["true"]).unwrap_err();
        assert!(error.contains("\"a0\": name it in the container's network namespace"), "{error}");
        let error = with_devices(json!({"lo": {"name": "lo2"}}), &["true"]).unwrap_err();
        assert!(error.contains("stay in their namespace"), "{error}");
        assert_is_a0(&ip(&["addr", "show", "dev", "a0"]).unwrap(), "a0");
    });
    let root = rootfs();
    let mut spec = json!({"linux": {"netDevices": {"a0": {}}, "namespaces": [{"type": "mount"}, {"type": "uts"}]}});
    let run = |patch: &Value| Container { patch: patch.clone(), ..Container::new(root.path(), &["true"]) }.run();
    let error = run(&spec).unwrap_err().to_string();
    assert!(error.contains("linux.netDevices needs a net namespace"), "{error}");
    spec["linux"]["netDevices"] = json!({});
    run(&spec).unwrap();
}
