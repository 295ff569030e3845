//! What this machine allows, and what strata makes of it.

use std::fs;
use std::path::Path;

use serde::Serialize;
use strata_sandbox::cgroup::{Hierarchies, Layout};
use strata_sandbox::userns;

use crate::engine::Engine;

/// Everything that `strata info` shows.
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
    /// What this machine allows, one by one.
    pub features: Vec<Feature>,
}

/// One thing the machine may allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Feature {
    /// What.
    pub name: String,
    /// Whether it can be used here.
    pub available: bool,
    /// What was found.
    pub found: String,
    /// What follows for strata.
    pub chosen: String,
}

impl Engine {
    /// Looks at the machine and the store.
    pub fn info(&self) -> Info {
        let containers = self.registry().list().unwrap_or_default();
        let running = containers.iter().filter(|container| container.state.is_running()).count();
        let machine = crate::bench::machine();
        let layout = Hierarchies::detect().map(|found| found.layout()).unwrap_or(Layout::Absent);
        Info {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            docker_root_dir: self.root().display().to_string(),
            containers: containers.len(),
            containers_running: running,
            containers_stopped: containers.len() - running,
            images: self.images().images().map(|images| images.len()).unwrap_or(0),
            kernel_version: machine.kernel.clone(),
            operating_system: operating_system(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpus: machine.cpus,
            mem_total: memory(),
            cgroup_version: if layout == Layout::V2 { "2" } else { "1" }.to_owned(),
            features: features(&machine.kernel, layout, self.root()),
        }
    }
}

fn features(kernel: &str, layout: Layout, root: &Path) -> Vec<Feature> {
    let version = kernel_version(kernel);
    vec![
        privileges(),
        fuse(),
        fuse_passthrough(version),
        fuse_over_io_uring(version),
        erofs(version, root),
        overlayfs(),
        cgroups(layout),
        user_namespaces(),
        landlock(),
        seccomp(),
        network(),
    ]
}

fn feature(name: &str, available: bool, found: impl Into<String>, chosen: impl Into<String>) -> Feature {
    Feature { name: name.to_owned(), available, found: found.into(), chosen: chosen.into() }
}

/// Whether we may mount: root, or root of a user namespace.
fn is_initial_root() -> bool {
    userns::is_initial() && strata_sandbox::capabilities::has_effective(strata_sandbox::capabilities::SYS_ADMIN)
}

fn privileges() -> Feature {
    match is_initial_root() {
        true => feature("privileges", true, "CAP_SYS_ADMIN", "mounts are made directly"),
        false => feature(
            "privileges",
            false,
            "no CAP_SYS_ADMIN",
            "containers run in a user namespace; 'strata mount' uses fusermount3",
        ),
    }
}

fn fuse() -> Feature {
    let device = Path::new("/dev/fuse");
    match fs::File::options().read(true).write(true).open(device) {
        Ok(_) => feature("FUSE", true, "/dev/fuse can be opened", "the union filesystem is served by FUSE"),
        Err(error) => {
            let found = format!("/dev/fuse: {}", crate::error_chain(&error));
            feature("FUSE", false, found, "nothing can be mounted or run; udev gives /dev/fuse the mode 0666")
        }
    }
}

fn fuse_passthrough(version: (u32, u32)) -> Feature {
    const NAME: &str = "FUSE passthrough";
    if version < (6, 9) {
        return feature(NAME, false, "needs Linux 6.9", "file data goes through the filesystem process");
    }
    match is_initial_root() {
        true => feature(NAME, true, "the kernel has it and we are root", "file data bypasses the filesystem process"),
        false => feature(
            NAME,
            false,
            "only for CAP_SYS_ADMIN of the initial user namespace",
            "file data goes through the filesystem process",
        ),
    }
}

fn fuse_over_io_uring(version: (u32, u32)) -> Feature {
    const NAME: &str = "FUSE over io_uring";
    let chosen = "requests are read from /dev/fuse";
    match fs::read_to_string("/sys/module/fuse/parameters/enable_uring") {
        Ok(text) if text.trim() == "Y" => feature(NAME, true, "enabled", chosen),
        Ok(_) => feature(NAME, false, "switched off: /sys/module/fuse/parameters/enable_uring is N", chosen),
        Err(_) if version >= (6, 14) => feature(NAME, false, "not built into this kernel", chosen),
        Err(_) => feature(NAME, false, "needs Linux 6.14", chosen),
    }
}

fn erofs(version: (u32, u32), root: &Path) -> Feature {
    const NAME: &str = "EROFS from files";
    let otherwise = "image files are read from their layer's tar";
    if !has_filesystem("erofs") {
        return feature(NAME, false, "the kernel lists no erofs", otherwise);
    }
    if version < (6, 12) {
        return feature(NAME, false, "needs Linux 6.12", otherwise);
    }
    if !is_initial_root() {
        return feature(NAME, false, "only for CAP_SYS_ADMIN of the initial user namespace", otherwise);
    }
    // Neither can hold the metadata of a mount that is made from a file.
    match filesystem_of(root) {
        Some(kind @ ("tmpfs" | "overlayfs")) => {
            feature(NAME, false, format!("the state folder is on {kind}"), otherwise)
        }
        _ => feature(NAME, true, "the kernel has it", "the kernel opens image files out of their layer's tar"),
    }
}

fn overlayfs() -> Feature {
    match has_filesystem("overlay") {
        true => feature("overlayfs", true, "the kernel has it", "not used; 'strata bench lookup' compares with it"),
        false => feature("overlayfs", false, "the kernel lists no overlay", "not used"),
    }
}

fn cgroups(layout: Layout) -> Feature {
    let (found, chosen) = match layout {
        Layout::V1 => ("version 1", "driver cgroupfs"),
        Layout::V2 => ("version 2", "driver cgroupfs"),
        Layout::Hybrid => ("hybrid: version 1 controllers beside a version 2 tree", "driver cgroupfs"),
        Layout::Absent => ("none are mounted", "containers run without limits; asking for one is an error"),
    };
    feature("cgroups", layout != Layout::Absent, found, chosen)
}

fn user_namespaces() -> Feature {
    const NAME: &str = "user namespaces";
    let read = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if read("/proc/sys/user/max_user_namespaces").unwrap_or(0) == 0 {
        return feature(NAME, false, "user.max_user_namespaces is 0", "plain users cannot run containers");
    }
    let helpers = ["newuidmap", "newgidmap"].iter().all(|name| Path::new("/usr/bin").join(name).is_file());
    let for_all = read("/proc/sys/kernel/unprivileged_userns_clone") != Some(0)
        && read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != Some(1);
    let found = match (for_all, helpers) {
        (true, true) => "for everybody, with newuidmap and newgidmap",
        (true, false) => "for everybody; newuidmap and newgidmap are not in /usr/bin",
        (false, _) => "for root only",
    };
    let chosen = match (for_all, helpers) {
        (true, true) => "plain users get their ranges of /etc/subuid and /etc/subgid",
        (true, false) => "plain users run containers in which only one user exists",
        (false, _) => "plain users cannot run containers",
    };
    feature(NAME, for_all, found, chosen)
}

fn landlock() -> Feature {
    match strata_sys::landlock::abi().ok() {
        Some(version) => feature(
            "landlock",
            true,
            format!("version {version}"),
            "a second wall around containers that may not mount",
        ),
        None => feature("landlock", false, "not in this kernel, or not switched on", "containers run without it"),
    }
}

fn seccomp() -> Feature {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) => feature("seccomp", true, actions.trim().to_owned(), "Docker's default profile"),
        Err(_) => {
            feature("seccomp", false, "not in this kernel", "containers do not start, except with seccomp=unconfined")
        }
    }
}

fn network() -> Feature {
    feature("networks", true, "none, host", "none unless --network host is given: bridges are not there yet")
}

fn has_filesystem(name: &str) -> bool {
    let listed = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    listed.lines().any(|line| line.split_whitespace().next_back() == Some(name))
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

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
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
    fn kernel_releases() {
        assert_eq!(kernel_version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(kernel_version("5.10"), (5, 10));
        assert_eq!(kernel_version("odd"), (0, 0));
    }
}
