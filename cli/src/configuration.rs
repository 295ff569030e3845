//! Where configuration is, and what `daemon.json` and variables say about the engine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use strata_engine::CgroupManager;

/// Returns who is to make cgroups, where that is said: by the variable, or in `daemon.json` as Docker has it
/// (`"exec-opts": ["native.cgroupdriver=systemd"]`).
pub(crate) fn cgroup_manager() -> anyhow::Result<Option<CgroupManager>> {
    if let Some(named) = std::env::var("STRATA_CGROUP_MANAGER").ok().filter(|named| !named.is_empty()) {
        return named.parse().map(Some).map_err(|error| anyhow!("STRATA_CGROUP_MANAGER: {error}"));
    }
    match daemon_json()? {
        Some((path, bytes)) => of_daemon_json(&bytes).with_context(|| path.display().to_string()),
        None => Ok(None),
    }
}

fn of_daemon_json(bytes: &[u8]) -> anyhow::Result<Option<CgroupManager>> {
    #[derive(Deserialize)]
    struct Options {
        #[serde(default, rename = "exec-opts")]
        exec_options: Vec<String>,
    }
    let options: Options = serde_json::from_slice(bytes)?;
    // As in Docker, the last one counts.
    let named = options.exec_options.iter().rev().find_map(|option| option.strip_prefix("native.cgroupdriver="));
    named.map(|named| named.parse().map_err(|error: String| anyhow!("exec-opts: {error}"))).transpose()
}

/// The first `daemon.json` that there is, with its content: the one that was named, strata's, Docker's; a plain user's own come
/// first.
pub(crate) fn daemon_json() -> anyhow::Result<Option<(PathBuf, Vec<u8>)>> {
    let mut known = configuration_folders().into_iter().map(|folder| folder.join("daemon.json"));
    let found = variable("STRATA_CONFIG").or_else(|| known.find(|path| path.is_file()));
    let Some(path) = found else { return Ok(None) };
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(Some((path, bytes)))
}

/// The folders with configuration, a plain user's own first.
pub(crate) fn configuration_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if !is_root() {
        let own = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
        folders.extend(own.into_iter().flat_map(|own| [own.join("strata"), own.join("docker")]));
    }
    folders.extend(["/etc/strata", "/etc/docker"].map(|path| Path::new(path).to_owned()));
    folders
}

/// Whether this is the machine's root, and not only that of a user namespace that a plain user's command has made.
fn is_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root() && whole
}

/// A variable that is set and not empty, as a path.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_option_says_who_makes_cgroups() {
        let of = |text: &str| of_daemon_json(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(of(r#"{"registry-mirrors": []}"#), Ok(None));
        assert_eq!(of(r#"{"exec-opts": ["native.cgroupdriver=systemd"]}"#), Ok(Some(CgroupManager::Systemd)));
        let twice = r#"{"exec-opts": ["native.cgroupdriver=systemd", "native.cgroupdriver=cgroupfs"]}"#;
        assert_eq!(of(twice), Ok(Some(CgroupManager::Cgroupfs)));
        assert!(of(r#"{"exec-opts": ["native.cgroupdriver=x"]}"#).unwrap_err().contains("use cgroupfs or systemd"));
    }
}
