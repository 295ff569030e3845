//! What this machine allows, and what strata makes of it.

use std::fs;
use std::path::Path;

use serde::Serialize;
use strata_sandbox::capabilities::{SYS_ADMIN, has_effective};
use strata_sandbox::cgroup::{CgroupManager, Layout};
use strata_sandbox::probe::Host;
use strata_unionfs::Transport;

use crate::engine::Engine;
use crate::filesystem_features;

/// Everything that `strata info` shows. Names are Docker's where Docker has the field.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Info {
    /// Our version.
    pub server_version: String,
    /// The state folder.
    pub docker_root_dir: String,
    /// How many containers there are.
    pub containers: usize,
    /// How many of them run.
    pub containers_running: usize,
    /// How many of them do not.
    pub containers_stopped: usize,
    /// How many images there are.
    pub images: usize,
    /// The kernel's release.
    pub kernel_version: String,
    /// The distribution.
    pub operating_system: String,
    /// The kind of processor.
    pub architecture: String,
    /// How many CPUs may be used.
    #[serde(rename = "NCPU")]
    pub cpus: usize,
    /// Bytes of memory.
    pub mem_total: u64,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// How the hierarchies are mounted: `v1`, `hybrid`, `v2` or `absent`.
    pub cgroup_layout: String,
    /// Who makes cgroups.
    pub cgroup_driver: String,
    /// What can be limited.
    pub cgroup_controllers: Vec<String>,
    /// What was chosen for this machine, and why.
    pub choices: Vec<Choice>,
    /// What this machine allows, one by one.
    pub features: Vec<Feature>,
}

/// Something that is done in one of several ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Choice {
    /// What.
    pub what: String,
    /// The way that was chosen.
    pub chosen: String,
    /// The reason.
    pub why: String,
}

/// One thing the machine may allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Feature {
    /// What.
    pub name: String,
    /// Whether it can be used here.
    pub available: bool,
    /// A version, or why not.
    pub detail: String,
}

impl Engine {
    /// Looks at the machine and the store.
    pub fn info(&self) -> Info {
        let containers = self.registry().list().unwrap_or_default();
        let running = containers.iter().filter(|container| container.state.is_running()).count();
        let host = Host::probe();
        let mut features = filesystem_features::probe(&host);
        features.extend(host.features.iter().map(|feature| Feature {
            name: feature.name.to_owned(),
            available: feature.available,
            detail: feature.detail.clone(),
        }));
        let (cgroup_manager, why) = self.cgroup_manager();
        let layout = match host.cgroup_layout {
            Layout::V1 => "v1",
            Layout::Hybrid => "hybrid",
            Layout::V2 => "v2",
            Layout::Absent => "absent",
        };
        Info {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            docker_root_dir: self.root().display().to_string(),
            containers: containers.len(),
            containers_running: running,
            containers_stopped: containers.len() - running,
            images: self.images().images().map(|images| images.len()).unwrap_or(0),
            operating_system: operating_system(),
            cpus: crate::bench::machine().cpus,
            mem_total: memory(),
            cgroup_version: if host.cgroup_layout == Layout::V2 { "2" } else { "1" }.to_owned(),
            cgroup_layout: layout.to_owned(),
            cgroup_driver: cgroup_manager.name().to_owned(),
            cgroup_controllers: host.cgroup_controllers.iter().map(|(name, _)| name.clone()).collect(),
            choices: [
                choices(&host, &features, filesystem_of(self.root())),
                vec![Choice {
                    what: "cgroups of containers".to_owned(),
                    chosen: made_by(cgroup_manager).to_owned(),
                    why,
                }],
            ]
            .concat(),
            features,
            kernel_version: host.kernel,
            architecture: host.architecture,
        }
    }
}

fn choices(host: &Host, features: &[Feature], store: Option<&str>) -> Vec<Choice> {
    let choice =
        |what: &str, (chosen, why): (&str, String)| Choice { what: what.to_owned(), chosen: chosen.to_owned(), why };
    let find = |name: &str| features.iter().find(|feature| feature.name == name);
    let has = |name: &str| find(name).is_some_and(|feature| feature.available);
    // The first thing that is missing is the reason.
    let lacks = |names: &[&str]| {
        let missing = names.iter().find(|name| !has(name))?;
        Some(format!("{missing}: {}", find(missing).map_or("not looked for", |feature| &feature.detail)))
    };
    let passthrough = lacks(&["fuse", "fuse-passthrough"]);
    let objects = passthrough.clone().or_else(|| lacks(&["erofs", "erofs-file-backed"]));
    let objects = objects.or_else(|| match store {
        Some(kind @ ("tmpfs" | "overlayfs")) => Some(format!("the state folder is on {kind}")),
        _ => None,
    });
    vec![
        choice(
            "union filesystem",
            match lacks(&["fuse", "mount-api"]) {
                None => ("FUSE", "fuse and mount-api are available".to_owned()),
                Some(why) => ("none: nothing can be mounted or run", why),
            },
        ),
        choice("requests", requests(strata_unionfs::default_transport())),
        choice(
            "data of image files",
            match objects {
                None => (
                    "read by the kernel from the layer's tar",
                    "passthrough and EROFS from files are available".to_owned(),
                ),
                Some(why) => ("read by the filesystem process from the layer's tar", why),
            },
        ),
        choice(
            "data of changed files",
            match passthrough {
                None => ("read and written by the kernel", "passthrough is available".to_owned()),
                Some(why) => ("read and written by the filesystem process", why),
            },
        ),
        choice(
            "data of changed files that are limited (--size)",
            ("read and written by the filesystem process", "the kernel would not say what it allocates".to_owned()),
        ),
        choice(
            "mounts on folders",
            match (has_effective(SYS_ADMIN), host.initial_user_namespace) {
                (true, true) => ("made by strata, devices and set-user-id work", "strata runs as root".to_owned()),
                (true, false) => (
                    "made by strata, without devices, owners mapped by the kernel",
                    "strata runs as root of a user namespace".to_owned(),
                ),
                (false, _) => match lacks(&["fusermount"]) {
                    None => (
                        "made by fusermount3, without devices and set-user-id",
                        "a plain user may not mount, and fusermount3 is there".to_owned(),
                    ),
                    Some(why) => ("none, outside of a user namespace of one's own", why),
                },
            },
        ),
        choice(
            "user namespace of containers",
            match host.initial_user_namespace && has_effective(SYS_ADMIN) {
                true => ("none, or one of its own with --userns auto", "strata runs as root".to_owned()),
                false => match lacks(&["user-namespaces", "subordinate-ids"]) {
                    None => ("the user's, with subordinate ids", "newuidmap and ranges are there".to_owned()),
                    Some(why) if has("user-namespaces") => ("the user's, with one id", why),
                    Some(why) => ("none: containers cannot be run", why),
                },
            },
        ),
        choice(
            "second wall",
            match lacks(&["landlock"]) {
                None => ("landlock, unless the container may mount", "landlock is available".to_owned()),
                Some(why) => ("none", why),
            },
        ),
        choice("default network", ("none", "bridges are not there yet; --network host is the other".to_owned())),
    ]
}

fn made_by(manager: CgroupManager) -> &'static str {
    match manager {
        CgroupManager::Cgroupfs => "made by strata (cgroupfs)",
        CgroupManager::Systemd => "made by systemd, as transient scopes",
    }
}

/// How requests come, why so, and what the other way would give.
fn requests((transport, reason): (Transport, &'static str)) -> (&'static str, String) {
    match transport {
        Transport::Ring => ("taken from rings shared with the kernel (transport=ring)", reason.to_owned()),
        Transport::Fuser => ("read from /dev/fuse by the fuser crate (transport=fuser)", reason.to_owned()),
        Transport::Device | Transport::Auto => {
            let more = match reason.contains("enable_uring") {
                true => "; on, each request costs fewer system calls and wake-ups",
                false => "",
            };
            ("read from /dev/fuse (transport=device)", format!("{reason}{more}"))
        }
    }
}

fn filesystem_of(path: &Path) -> Option<&'static str> {
    const TMPFS: i64 = 0x0102_1994;
    const OVERLAYFS: i64 = 0x794c_7630;
    match rustix::fs::statfs(path).ok()?.f_type {
        TMPFS => Some("tmpfs"),
        OVERLAYFS => Some("overlayfs"),
        _ => None,
    }
}

fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or("Linux", |name| name.trim_matches('"')).to_owned()
}

fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transport_is_told_with_what_the_other_would_give() {
        let off = requests((Transport::Device, "/sys/module/fuse/parameters/enable_uring is off"));
        assert!(off.0.contains("transport=device") && off.1.contains("is off; on, each request"), "{off:?}");
        let old = requests((Transport::Device, "the kernel has no FUSE over io_uring"));
        assert_eq!(old.1, "the kernel has no FUSE over io_uring");
        assert!(requests((Transport::Ring, "fuse's enable_uring is on")).0.contains("transport=ring"));
    }

    #[test]
    fn what_is_missing_is_the_reason() {
        let host = Host::probe();
        let features = |missing: &str| -> Vec<Feature> {
            let names = ["fuse", "mount-api", "fuse-passthrough", "erofs", "erofs-file-backed", "landlock"];
            let feature = |name: &str| Feature {
                name: name.to_owned(),
                available: name != missing,
                detail: if name == missing { "needs Linux 6.12".to_owned() } else { String::new() },
            };
            names.into_iter().map(feature).collect()
        };
        let chosen = |missing: &str, store, what: &str| {
            let choices = choices(&host, &features(missing), store);
            let choice = choices.into_iter().find(|choice| choice.what == what).unwrap();
            format!("{}: {}", choice.chosen, choice.why)
        };
        let image = "data of image files";
        assert_eq!(
            chosen("erofs-file-backed", None, image),
            "read by the filesystem process from the layer's tar: erofs-file-backed: needs Linux 6.12"
        );
        assert_eq!(
            chosen("erofs-file-backed", None, "data of changed files"),
            "read and written by the kernel: passthrough is available"
        );
        assert_eq!(
            chosen("", Some("tmpfs"), image),
            "read by the filesystem process from the layer's tar: the state folder is on tmpfs"
        );
        assert_eq!(
            chosen("", None, image),
            "read by the kernel from the layer's tar: passthrough and EROFS from files are available"
        );
    }
}
