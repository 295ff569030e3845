//! What this machine allows a sandbox to do, with reasons.
//!
//! Each question is answered by asking the kernel where that has no effect, else by what the kernel says about itself.

use std::fs;
use std::path::Path;

use crate::capabilities::{SYS_ADMIN, has_effective};
use crate::cgroup::{Hierarchies, Layout};
use crate::{seccomp, userns};

/// What was found.
#[derive(Clone, Debug)]
pub struct Host {
    /// The kernel's release, such as `6.18.44`.
    pub kernel: String,
    /// Major and minor version of it.
    pub version: (u32, u32),
    /// Machine architecture as the kernel names it.
    pub architecture: String,
    /// How cgroups are mounted.
    pub cgroup_layout: Layout,
    /// Every controller that can limit something here, with the version of its hierarchy.
    pub cgroup_controllers: Vec<(String, u8)>,
    /// Whether this process is in the initial user namespace.
    pub initial_user_namespace: bool,
    /// The features, in a fixed order.
    pub features: Vec<Feature>,
}

/// One thing that this machine has or lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name, in lower case with dashes.
    pub name: &'static str,
    /// Whether it can be used by this process.
    pub available: bool,
    /// A version, or why not.
    pub detail: String,
}

impl Host {
    /// Looks.
    #[must_use]
    pub fn probe() -> Self {
        let uname = rustix::system::uname();
        let hierarchies = Hierarchies::detect().unwrap_or_default();
        let version = seccomp::kernel_version();
        let mut cgroup_controllers: Vec<(String, u8)> = hierarchies
            .iter()
            .flat_map(|hierarchy| {
                let version = match hierarchy.version {
                    crate::cgroup::Version::V1 => 1,
                    crate::cgroup::Version::V2 => 2,
                };
                hierarchy.controllers.iter().map(move |name| (name.clone(), version))
            })
            .filter(|(name, _)| !name.starts_with("name="))
            .collect();
        cgroup_controllers.sort();
        Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            version,
            architecture: uname.machine().to_string_lossy().into_owned(),
            cgroup_layout: hierarchies.layout(),
            cgroup_controllers,
            initial_user_namespace: userns::is_initial(),
            features: features(version, &hierarchies),
        }
    }

    /// Tells whether a feature is available.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature.name == name && feature.available)
    }
}

fn features(version: (u32, u32), hierarchies: &Hierarchies) -> Vec<Feature> {
    let since = |major, minor| version >= (major, minor);
    let privileged = userns::is_initial() && has_effective(SYS_ADMIN);
    let feature = |name, result: Result<String, String>| match result {
        Ok(detail) => Feature { name, available: true, detail },
        Err(detail) => Feature { name, available: false, detail },
    };
    let kernel = |major, minor| {
        if since(major, minor) { Ok(String::new()) } else { Err(format!("needs Linux {major}.{minor}")) }
    };
    let root = || if privileged { Ok(()) } else { Err("needs root of the initial user namespace".to_owned()) };
    vec![
        feature("mount-api", kernel(5, 12)),
        feature("clone-into-cgroup", kernel(5, 7)),
        feature("user-namespaces", user_namespaces(privileged)),
        feature("subordinate-ids", subordinate_ids()),
        feature("idmapped-mounts", kernel(5, 12).and_then(|detail| root().map(|()| detail))),
        feature("seccomp", seccomp_state()),
        feature("landlock", landlock_state()),
        feature("cgroup-writable", cgroup_state(hierarchies)),
        feature("swap-limit", swap_limit(hierarchies)),
        feature("apparmor", security_module("apparmor")),
        feature("selinux", security_module("selinux")),
    ]
}

fn user_namespaces(privileged: bool) -> Result<String, String> {
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if !Path::new("/proc/self/ns/user").exists() {
        return Err("the kernel is built without them".into());
    }
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Err("user.max_user_namespaces is 0".into());
    }
    if !privileged && number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Err("kernel.unprivileged_userns_clone is 0".into());
    }
    if !privileged && number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Err("kernel.apparmor_restrict_unprivileged_userns is 1".into());
    }
    Ok(String::new())
}

fn subordinate_ids() -> Result<String, String> {
    program("newuidmap")?;
    program("newgidmap")?;
    match userns::subordinate_count() {
        0 => Err("no range in /etc/subuid and /etc/subgid for this user".into()),
        count => Ok(format!("{count} ids")),
    }
}

fn seccomp_state() -> Result<String, String> {
    const ERRNO: u32 = 0x0005_0000;
    if strata_sys::seccomp::is_action_available(ERRNO) {
        Ok("filter".into())
    } else {
        Err("the kernel has no seccomp filters".into())
    }
}

fn landlock_state() -> Result<String, String> {
    match strata_sys::landlock::abi() {
        Ok(abi @ 0..=2) => Err(format!("ABI {abi} is too old, needs 3 (Linux 6.2)")),
        Ok(abi @ (3 | 4)) => {
            Ok(format!("ABI {abi}: files{}; device ioctls need 5, scopes 6", if abi > 3 { ", ports" } else { "" }))
        }
        Ok(abi @ 5) => Ok(format!("ABI {abi}: files, ports; scopes of signals and abstract sockets need 6")),
        Ok(abi) => Ok(format!("ABI {abi}: files, ports, scopes")),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err("switched off at boot".into()),
        Err(_) => Err("the kernel is built without it".into()),
    }
}

fn cgroup_state(hierarchies: &Hierarchies) -> Result<String, String> {
    let mut any = false;
    for hierarchy in hierarchies.iter() {
        any = true;
        if rustix::fs::access(&hierarchy.mount, rustix::fs::Access::WRITE_OK).is_err() {
            return Err(format!("{} is not writable for this user", hierarchy.mount.display()));
        }
    }
    if any { Ok(String::new()) } else { Err("no cgroup hierarchy is mounted".into()) }
}

fn swap_limit(hierarchies: &Hierarchies) -> Result<String, String> {
    let Some(memory) = hierarchies.with_controller("memory") else {
        return Err("no memory controller".into());
    };
    match memory.version {
        crate::cgroup::Version::V2 => Ok(String::new()),
        crate::cgroup::Version::V1 if memory.mount.join("memory.memsw.limit_in_bytes").exists() => Ok(String::new()),
        crate::cgroup::Version::V1 => Err("the kernel does not account swap (boot with swapaccount=1)".into()),
    }
}

fn program(name: &str) -> Result<String, String> {
    userns::find_program(name).map(|path| path.display().to_string()).ok_or_else(|| format!("{name} is not installed"))
}

fn security_module(name: &str) -> Result<String, String> {
    let active = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let enabled = Path::new("/sys/module").join(name).join("parameters/enabled");
    let by_module = fs::read_to_string(enabled).is_ok_and(|text| text.trim() == "Y");
    if by_module || active.trim().split(',').any(|module| module == name) {
        Ok("active on the host; container labels are not applied".into())
    } else {
        Err("not active".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_an_answer_and_a_reason() {
        let host = Host::probe();
        assert!(host.version >= (5, 0), "{host:?}");
        for feature in &host.features {
            assert!(feature.available || !feature.detail.is_empty(), "{feature:?}");
        }
        assert!(host.has("seccomp"));
        assert!(!host.has("nonsense"));
    }
}
