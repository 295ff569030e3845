//! `spec`: a `config.json` to begin with, like runc's.

use serde_json::{Value, json};

use super::features::TEMPLATE_VERSION;
use crate::spec_default::{DEFAULT_PATH, MASKED_PATHS, READ_ONLY_PATHS};

/// Who will run the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Root.
    Root,
    /// This user without privileges, in a user namespace of the container's own.
    User {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// Returns the document: a shell on a terminal, with the root filesystem in `rootfs`.
#[must_use]
pub fn template(audience: Audience) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mut spec = json!({
        "ociVersion": TEMPLATE_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [format!("PATH={DEFAULT_PATH}"), "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "strata",
        "mounts": mounts(audience),
        "linux": {
            "namespaces": namespaces(audience),
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS
        }
    });
    match audience {
        // No devices but those that every container has.
        Audience::Root => spec["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] }),
        Audience::User { uid, gid } => {
            let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
            spec["linux"]["uidMappings"] = map(uid);
            spec["linux"]["gidMappings"] = map(gid);
        }
    }
    spec
}

fn mounts(audience: Audience) -> Value {
    // A plain user's namespace has no group for terminals, and may not make a view of a network that it does not own.
    let (pts_options, sys) = match audience {
        Audience::Root => (
            json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }),
        ),
        Audience::User { .. } => (
            json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            json!({ "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] }),
        ),
    };
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts_options },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
        sys,
        { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
    ])
}

fn namespaces(audience: Audience) -> Value {
    let mut kinds = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    kinds.push(match audience {
        Audience::Root => "network",
        Audience::User { .. } => "user",
    });
    kinds.into_iter().map(|kind| json!({ "type": kind })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_specs() {
        for audience in [Audience::Root, Audience::User { uid: 1000, gid: 1000 }] {
            let spec: oci_spec::runtime::Spec = serde_json::from_value(template(audience)).unwrap();
            assert_eq!(spec.process().as_ref().unwrap().args().as_deref(), Some(&["sh".to_owned()][..]));
        }
    }
}
