//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container: files of its own, shown over the image's.
//!
//! Only where the image has such a file: a mount point made for it would be a change that the container never made.

use std::io;

use strata_layer::index::{Index, Kind, NodeId};

use crate::container::{Bind, Config, Container, Mount, Network, OwnIds};
use crate::durable::{self, Durability};

/// Writes the files and returns how they are mounted.
pub(crate) fn prepare(container: &Container, index: &Index) -> io::Result<Vec<Mount>> {
    let config = &container.config;
    let mut mounts = Vec::new();
    let root = config.own_ids.as_ref().and_then(OwnIds::root);
    let Some(etc) = index.lookup(NodeId::ROOT, b"etc") else { return Ok(mounts) };
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        let kind = index.lookup(etc, name.as_bytes()).and_then(|node| index.attributes(node)).map(|found| found.kind);
        let is_taken = config.mounts.iter().any(|mount| covers(mount.target(), &target));
        if kind != Some(Kind::Regular) || is_taken {
            continue;
        }
        let source = container.folder().join(name);
        durable::write_new(&source, content(name, config).as_bytes(), Durability::Relaxed)?;
        std::fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        // Where the mount cannot map owners, they belong to the container's root like everything around them.
        if let Some((uid, gid)) = root.filter(|_| !crate::spec::can_map_owners(&source)) {
            std::os::unix::fs::chown(&source, Some(uid), Some(gid))?;
        }
        mounts.push(Mount::Bind(Bind {
            source,
            target,
            read_only: false,
            create_source: false,
            propagation: String::new(),
        }));
    }
    Ok(mounts)
}

/// Whether what is mounted on `place` decides about `path`.
fn covers(place: &str, path: &str) -> bool {
    path.strip_prefix(place.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn content(name: &str, config: &Config) -> String {
    // What cannot be read on the host is empty, as it is for the host's own programs.
    let of_host = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    match (name, config.network) {
        ("hostname", _) => format!("{}\n", config.hostname),
        ("hosts", Network::Host) => of_host("/etc/hosts"),
        ("hosts", Network::None) => HOSTS.to_owned(),
        _ => of_host("/etc/resolv.conf"),
    }
}

const HOSTS: &str = "127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_the_user_s_own_decides() {
        assert!(covers("/etc/hosts", "/etc/hosts") && covers("/etc", "/etc/hosts") && covers("/", "/etc/hosts"));
        assert!(!covers("/etc/host", "/etc/hosts") && !covers("/etc/hosts/x", "/etc/hosts"));
    }
}
