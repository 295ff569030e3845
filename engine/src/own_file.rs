//! Files in `/etc` that are a container's own, shown over the image's, and kept in the container's folder.

use std::io;

use strata_layer::index::{Index, Kind, NodeId};

use crate::container::{Bind, Container, Mount, OwnIds};
use crate::durable::{self, Durability};

/// Where `path` leads in the image, unless somebody else mounts there or it is no place for a file.
pub(crate) fn place(container: &Container, index: &Index, path: &str) -> Option<String> {
    let is_taken = |path: &str| container.config.mounts.iter().any(|mount| covers(mount.target(), path));
    place_of(index, path).filter(|target| !is_taken(path) && !is_taken(target))
}

/// Writes the file anew, and returns how it is mounted.
pub(crate) fn show(container: &Container, name: &str, target: String, content: &[u8]) -> io::Result<Mount> {
    let source = container.folder().join(name);
    durable::write_new(&source, content, Durability::Relaxed)?;
    std::fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    // Where the mount cannot map owners, they belong to the container's root like everything around them.
    let root = container.config.own_ids.as_ref().and_then(OwnIds::root);
    if let Some((uid, gid)) = root.filter(|_| !crate::spec::can_map_owners(&source)) {
        std::os::unix::fs::chown(&source, Some(uid), Some(gid))?;
    }
    Ok(Mount::Bind(Bind { source, target, read_only: false, create_source: false, propagation: String::new() }))
}

/// Follows the links of an image to where a file is, or can be made. `None` if something else is there or on the way.
pub(crate) fn place_of(index: &Index, path: &str) -> Option<String> {
    let components = |path: &[u8]| path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut left = components(path.as_bytes());
    let mut reached: Vec<(Vec<u8>, Option<NodeId>)> = Vec::new();
    let mut is_folder = true;
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == b".." {
            reached.pop();
        }
        if name.is_empty() || name == b"." || name == b".." {
            continue;
        }
        let folder = reached.last().map_or(Some(NodeId::ROOT), |(_, node)| *node);
        let node = folder.and_then(|folder| index.lookup(folder, &name));
        let kind = node.and_then(|node| index.attributes(node)).map(|found| found.kind);
        match (kind, node) {
            (Some(Kind::Symlink), Some(node)) => {
                links += 1;
                let target = index.symlink_target(node).filter(|_| links <= MOST_LINKS)?;
                if target.starts_with(b"/") {
                    reached.clear();
                }
                left.extend(components(target));
            }
            (None | Some(Kind::Directory), _) => {
                is_folder = kind.is_some();
                reached.push((name, node));
            }
            (Some(Kind::Regular), _) if left.is_empty() => {
                is_folder = false;
                reached.push((name, node));
            }
            _ => return None,
        }
    }
    let place: Vec<u8> = reached.iter().flat_map(|(name, _)| [b"/", &**name].concat()).collect();
    // What is mounted there brings its own.
    let is_free = |place: &String| !ALWAYS_MOUNTED.iter().any(|mounted| covers(mounted, place));
    String::from_utf8(place).ok().filter(|place| !is_folder && is_free(place))
}

/// Where every container has something mounted.
pub(crate) const ALWAYS_MOUNTED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// As many links are followed as the kernel would.
const MOST_LINKS: u32 = 40;

/// Whether what is mounted on `place` decides about `path`.
fn covers(place: &str, path: &str) -> bool {
    path.strip_prefix(place.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use strata_layer::index::{Builder, Content, Layer, Metadata};

    use super::*;

    #[test]
    fn files_are_where_links_lead_and_only_where_a_file_can_be() {
        const EMPTY: Content<'_> = Content::Regular { size: 0, segments: &[] };
        let mut builder = Builder::new();
        let mut add = |path: &str, content| builder.add(path.as_bytes(), Metadata::default(), content).unwrap();
        for (link, target) in [
            ("dangling", "../run/systemd/resolve.conf"),
            ("absolute", "/etc/file"),
            ("above", "../../../etc/file"),
            ("folder", "conf.d"),
            ("through", "file/x"),
            ("pipe", "fifo"),
            ("loop", "loop"),
            ("kernel", "/proc/net/pnp"),
            ("device", "../dev/null"),
        ] {
            add(&format!("etc/{link}"), Content::Symlink { target: target.as_bytes() });
        }
        add("etc/file", EMPTY);
        add("etc/fifo", Content::Fifo);
        add("etc/conf.d/x", EMPTY);
        add("link-to-etc", Content::Symlink { target: b"etc" });
        let index = builder
            .finish(Layer { diff_id: strata_layer::DiffId(strata_layer::Digest::of(b"")), tar_size: 0 })
            .unwrap()
            .into_bytes()
            .unwrap();
        let index = Index::from_bytes(index).unwrap();
        for (path, place) in [
            ("/etc/file", Some("/etc/file")),
            ("/etc/absent", Some("/etc/absent")),
            ("/none/at/all", Some("/none/at/all")),
            ("/etc/dangling", Some("/run/systemd/resolve.conf")),
            ("/etc/absolute", Some("/etc/file")),
            ("/etc/above", Some("/etc/file")),
            ("/link-to-etc/file", Some("/etc/file")),
            ("/etc/folder", None),
            ("/etc/through", None),
            ("/etc/pipe", None),
            ("/etc/loop", None),
            ("/etc/kernel", None),
            ("/etc/device", None),
        ] {
            assert_eq!(place_of(&index, path).as_deref(), place, "{path}");
        }
    }

    #[test]
    fn a_mount_of_the_user_s_own_decides() {
        assert!(covers("/etc/hosts", "/etc/hosts") && covers("/etc", "/etc/hosts") && covers("/", "/etc/hosts"));
        assert!(!covers("/etc/host", "/etc/hosts") && !covers("/etc/hosts/x", "/etc/hosts"));
    }
}
