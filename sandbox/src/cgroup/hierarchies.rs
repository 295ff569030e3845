//! What cgroup hierarchies this host has mounted, and where.

use std::path::{Path, PathBuf};

use super::CgroupError;

/// The version of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller or group of them.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The overall layout, as `docker info` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Only version 1.
    V1,
    /// Version 1 with controllers, beside a version 2 tree.
    Hybrid,
    /// Only version 2.
    V2,
    /// Nothing is mounted.
    Absent,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its version.
    pub version: Version,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its controllers; for a named v1 hierarchy `name=x` alone. For v2, those that the root offers.
    pub controllers: Vec<String>,
    /// The cgroup of this process in it.
    pub own: String,
}

/// All mounted hierarchies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Reads what is mounted for this process.
    ///
    /// # Errors
    /// [`CgroupError::Detect`] when `/proc` is not readable.
    pub fn detect() -> Result<Self, CgroupError> {
        let read =
            |path: &'static str| std::fs::read_to_string(path).map_err(|source| CgroupError::Detect { path, source });
        let mut found = Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        for hierarchy in found.all.iter_mut().filter(|hierarchy| hierarchy.version == Version::V2) {
            let offered = std::fs::read_to_string(hierarchy.mount.join("cgroup.controllers")).unwrap_or_default();
            hierarchy.controllers = offered.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    /// The pure part of [`detect`](Self::detect); v2 controllers stay unknown.
    #[must_use]
    pub fn parse(mountinfo: &str, own: &str) -> Self {
        let mut all: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(mount)) = (left.next(), left.next()) else { continue };
            let mut right = right.split(' ');
            let (Some(fstype), _source, Some(options)) = (right.next(), right.next(), right.next()) else { continue };
            // Part of a hierarchy, bound somewhere: names would not count from its root.
            if root != "/" {
                continue;
            }
            let version = match fstype {
                "cgroup" => Version::V1,
                "cgroup2" => Version::V2,
                _ => continue,
            };
            let controllers: Vec<String> = match version {
                Version::V1 => options.split(',').filter(|option| is_controller(option)).map(str::to_owned).collect(),
                Version::V2 => Vec::new(),
            };
            let known = all.iter().any(|other| other.version == version && other.controllers == controllers);
            if known || (version == Version::V1 && controllers.is_empty()) {
                continue;
            }
            let own = own_path(own, version, &controllers);
            all.push(Hierarchy { version, mount: PathBuf::from(unescape(mount)), controllers, own });
        }
        Self { all }
    }

    /// Returns every hierarchy.
    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.all.iter()
    }

    /// Returns the hierarchy that has `controller`.
    #[must_use]
    pub fn with_controller(&self, controller: &str) -> Option<&Hierarchy> {
        self.all.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// Returns the layout of the whole.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let has = |version| self.all.iter().any(|hierarchy| hierarchy.version == version);
        match (has(Version::V1), has(Version::V2)) {
            (true, true) => Layout::Hybrid,
            (true, false) => Layout::V1,
            (false, true) => Layout::V2,
            (false, false) => Layout::Absent,
        }
    }
}

impl Hierarchy {
    /// Returns the directories below which cgroups can be made, best first: the root, and on v2 the parent of this
    /// process's own cgroup, which systemd hands to a user who has one delegated.
    pub(super) fn bases(&self) -> Vec<PathBuf> {
        let mut bases = vec![self.mount.clone()];
        let parent = Path::new(&self.own).parent().map(|parent| parent.strip_prefix("/").unwrap_or(parent));
        // Above the namespace's root there is nothing of ours.
        let below = parent.filter(|parent| !parent.as_os_str().is_empty() && !self.own.starts_with("/.."));
        if self.version == Version::V2
            && let Some(parent) = below
        {
            bases.push(self.mount.join(parent));
        }
        bases
    }

    /// Returns the last part of the mount point: the name under which containers see the hierarchy.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.mount.file_name().map(Path::new)
    }
}

fn is_controller(option: &str) -> bool {
    option.starts_with("name=") || CONTROLLERS.contains(&option)
}

fn own_path(own: &str, version: Version, controllers: &[String]) -> String {
    own.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(names, _)| match version {
            Version::V2 => names.is_empty(),
            Version::V1 => names.split(',').any(|name| controllers.iter().any(|controller| controller == name)),
        })
        .map_or_else(|| "/".to_owned(), |(_, path)| path.to_owned())
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('\\') {
        result.push_str(&rest[..position]);
        let code = rest.get(position + 1..position + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if code.is_ascii() => {
                result.push(char::from(code));
                rest = &rest[position + 4..];
            }
            _ => {
                result.push('\\');
                rest = &rest[position + 1..];
            }
        }
    }
    result + rest
}

/// The v1 controllers, to tell them from mount options.
const CONTROLLERS: [&str; 15] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_layout_is_read() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified\\040x rw - cgroup2 cgroup2 rw\n\
            50 31 0:29 /sub /mnt rw - cgroup cgroup rw,cpu,cpuacct\n";
        let own = "2:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c\n";
        let found = Hierarchies::parse(mountinfo, own);
        assert_eq!(found.layout(), Layout::Hybrid);
        assert_eq!(found.iter().count(), 3);
        let cpu = found.with_controller("cpuacct").unwrap();
        assert_eq!((cpu.mount.to_str(), cpu.own.as_str()), (Some("/sys/fs/cgroup/cpu,cpuacct"), "/a"));
        assert_eq!(found.with_controller("name=systemd").unwrap().own, "/b");
        let unified = found.iter().find(|hierarchy| hierarchy.version == Version::V2).unwrap();
        assert_eq!((unified.mount.to_str(), unified.own.as_str()), (Some("/sys/fs/cgroup/unified x"), "/c"));
        assert!(found.with_controller("memory").is_none());
    }

    #[test]
    fn a_delegated_parent_is_tried_after_the_root() {
        let bases = |own: &str| {
            let found = Hierarchies::parse("1 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n", &format!("0::{own}\n"));
            found.all[0].bases().iter().map(|base| base.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(bases("/user.slice/app.slice/x.scope"), ["/cg", "/cg/user.slice/app.slice"]);
        for own in ["/", "/x", "/../y/z"] {
            assert_eq!(bases(own), ["/cg"], "{own}");
        }
    }

    #[test]
    fn pure_layouts_are_told_apart() {
        let v2 = "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(Hierarchies::parse(v2, "0::/\n").layout(), Layout::V2);
        let v1 = "1 1 0:1 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        assert_eq!(Hierarchies::parse(v1, "1:pids:/\n").layout(), Layout::V1);
        assert_eq!(Hierarchies::parse("", "").layout(), Layout::Absent);
    }
}
