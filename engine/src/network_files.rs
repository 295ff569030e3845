//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container: files of its own, shown over the image's.
//!
//! Where the image has none, the runtime makes an empty file to mount on, which is no change of the container's
//! ([`places`]). Where a link of the image leads elsewhere, they are shown there.

use std::io;

use strata_layer::index::Index;

use crate::container::{Config, Container, Mount, Network};
use crate::own_file;

/// Where programs look for them.
const PATHS: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Where they are in a container of an image.
pub(crate) fn places(index: &Index) -> impl Iterator<Item = String> {
    PATHS.into_iter().filter_map(|path| own_file::place_of(index, path))
}

/// Writes the files and returns how they are mounted.
pub(crate) fn prepare(container: &Container, index: &Index) -> io::Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for path in PATHS {
        let Some(target) = own_file::place(container, index, path) else { continue };
        let name = path.trim_start_matches("/etc/");
        mounts.push(own_file::show(container, name, target, content(name, &container.config).as_bytes())?);
    }
    Ok(mounts)
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
