//! Who makes cgroups.

use serde::{Deserialize, Serialize};

/// Who makes the cgroups of containers: Docker's `native.cgroupdriver`, Podman's `--cgroup-manager`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupManager {
    /// We do.
    #[default]
    Cgroupfs,
    /// systemd, each as a transient scope.
    Systemd,
}

impl CgroupManager {
    /// Its name, as `docker info` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }

    /// Whether it is what there is on every host.
    #[must_use]
    pub fn is_cgroupfs(&self) -> bool {
        *self == Self::Cgroupfs
    }
}

impl std::str::FromStr for CgroupManager {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cgroupfs" => Ok(Self::Cgroupfs),
            "systemd" => Ok(Self::Systemd),
            _ => Err(format!("unknown cgroup manager {text:?}; use cgroupfs or systemd")),
        }
    }
}
