//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container: files of its own, shown over the image's.
//!
//! Where the image has none, the runtime makes an empty file to mount on, which is no change of the container's
//! ([`places`]). Where a link of the image leads elsewhere, they are shown there.

use std::io;

use strata_layer::index::Index;

use crate::container::{Config, Container, Mount, NameResolution, Namespace};
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
    match (name, &config.network) {
        ("hostname", _) => format!("{}\n", config.hostname),
        ("hosts", Namespace::Host) => hosts(of_host("/etc/hosts"), &config.names),
        // Who joins another's network has been given its names.
        ("hosts", Namespace::Private | Namespace::Container(_)) => hosts(HOSTS.to_owned(), &config.names),
        _ => resolver(of_host("/etc/resolv.conf"), &config.names),
    }
}

/// Adds the container's own lines.
fn hosts(mut text: String, names: &NameResolution) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for host in &names.hosts {
        text.push_str(&format!("{}\t{}\n", host.address, host.name));
    }
    text
}

/// Puts what the container says of each kind in the place of what the host says, in the order of Docker.
fn resolver(of_host: String, names: &NameResolution) -> String {
    if names.servers.is_empty() && names.search.is_empty() && names.options.is_empty() {
        return of_host;
    }
    let lines = |kinds: &[&str]| {
        let said =
            of_host.lines().filter(|line| kinds.iter().any(|kind| line.split_whitespace().next() == Some(*kind)));
        said.map(|line| format!("{line}\n")).collect::<String>()
    };
    let search = match names.search.as_slice() {
        [] => lines(&["search", "domain"]),
        [none] if none == "." => String::new(),
        domains => format!("search {}\n", domains.join(" ")),
    };
    let servers = match names.servers.as_slice() {
        [] => lines(&["nameserver"]),
        servers => servers.iter().map(|server| format!("nameserver {server}\n")).collect(),
    };
    let options = match names.options.as_slice() {
        [] => lines(&["options"]),
        options => format!("options {}\n", options.join(" ")),
    };
    search + &servers + &options
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
    fn what_the_container_says_stands_in_the_place_of_what_the_host_says() {
        let of_host = "# made by hand\ndomain old\nnameserver 10.0.0.1\noptions ndots:2\n";
        let said = |servers: &[&str], search: &[&str], options: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let servers = servers.iter().map(|server| server.parse().unwrap()).collect();
            let names = NameResolution { hosts: Vec::new(), servers, search: texts(search), options: texts(options) };
            resolver(of_host.to_owned(), &names)
        };
        assert_eq!(said(&[], &[], &[]), of_host);
        assert_eq!(
            said(&["9.9.9.9", "::1"], &[], &[]),
            "domain old\nnameserver 9.9.9.9\nnameserver ::1\noptions ndots:2\n"
        );
        assert_eq!(said(&[], &["a", "b"], &["rotate"]), "search a b\nnameserver 10.0.0.1\noptions rotate\n");
        assert_eq!(said(&[], &["."], &[]), "nameserver 10.0.0.1\noptions ndots:2\n");
    }

    #[test]
    fn further_hosts_come_last() {
        let names = NameResolution { hosts: vec!["db:10.0.0.1".parse().unwrap()], ..NameResolution::default() };
        assert_eq!(hosts("127.0.0.1\tlocalhost".to_owned(), &names), "127.0.0.1\tlocalhost\n10.0.0.1\tdb\n");
    }
}
