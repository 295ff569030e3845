//! Bundles that every runtime can start: a busybox root and `runc spec` with Docker's capabilities, filter and limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use strata_tests::image::busybox;
use strata_tests::oracle;

/// Which bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Six namespaces, Docker's filter, limits of memory and processes.
    Full,
    /// The network is the host's.
    HostNetwork,
    /// Five namespaces, no filter, no limits.
    Minimal,
    /// As full, with a program that stays.
    Sleeping,
}

/// Extracts the root that all bundles share.
pub(crate) fn root(work: &Path) -> Result<PathBuf> {
    let root = work.join("rootfs");
    fs::create_dir_all(&root)?;
    let folder = busybox::folder()?;
    oracle::extract(&[folder.join("0.tar"), folder.join("1.tar")], &root)?;
    Ok(root)
}

/// Writes a bundle for that root and returns its folder.
pub(crate) fn write(work: &Path, root: &Path, kind: Kind) -> Result<PathBuf> {
    let folder = work.join(format!("bundle-{kind:?}"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("config.json"), configuration(root, kind)?.to_string())?;
    Ok(folder)
}

fn configuration(root: &Path, kind: Kind) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    crate::walk::run(Command::new("runc").arg("spec").arg("--bundle").arg(folder.path()))?;
    let mut spec: Value = serde_json::from_slice(&fs::read(folder.path().join("config.json"))?)?;
    spec["process"]["args"] = if kind == Kind::Sleeping { json!(["sleep", "1000000"]) } else { json!(["true"]) };
    spec["process"]["terminal"] = json!(false);
    spec["process"]["noNewPrivileges"] = json!(false);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(CAPABILITIES);
    }
    for set in ["ambient", "inheritable"] {
        spec["process"]["capabilities"][set] = json!([]);
    }
    // A root without CAP_SYS_RESOURCE may not set those of the template.
    spec["process"]["rlimits"] = json!([]);
    spec["root"] = json!({"path": root, "readonly": false});
    let kinds = ["pid", "ipc", "uts", "mount", "cgroup", "network"];
    let kinds = if matches!(kind, Kind::HostNetwork | Kind::Minimal) { &kinds[..5] } else { &kinds[..] };
    spec["linux"]["namespaces"] = kinds.iter().map(|kind| json!({"type": kind})).collect();
    let limits = json!({"pids": {"limit": 2048}, "memory": {"limit": 512 << 20}});
    match kind {
        Kind::Minimal => spec["linux"]["resources"] = json!({}),
        _ => {
            spec["linux"]["seccomp"] = seccomp()?;
            spec["linux"]["resources"] = limits;
        }
    }
    Ok(spec)
}

/// The profile that Docker and podman share, as podman's package installs it, resolved for the default capabilities.
fn seccomp() -> Result<Value> {
    let path = PathBuf::from("/usr/share/containers/seccomp.json");
    let text = fs::read(&path).with_context(|| format!("{path:?} (package golang-github-containers-common)"))?;
    let profile: Value = serde_json::from_slice(&text)?;
    let applies = |rule: &Value, key: &str| -> bool {
        let list = |name: &str| rule[key][name].as_array().into_iter().flatten().filter_map(Value::as_str);
        let capable = list("caps").any(|capability| CAPABILITIES.contains(&capability));
        let here = list("arches").any(|name| name == "amd64" || name == "x86" || name == "x32");
        if key == "includes" {
            (list("caps").count() == 0 || capable) && (list("arches").count() == 0 || here)
        } else {
            capable || here
        }
    };
    let rules = profile["syscalls"].as_array().context("the profile has rules")?;
    let kept: Vec<Value> = rules
        .iter()
        .filter(|rule| applies(rule, "includes") && !applies(rule, "excludes"))
        .map(|rule| {
            let mut kept = json!({"names": rule["names"], "action": rule["action"]});
            for key in ["args", "errnoRet"] {
                if !rule[key].is_null() {
                    kept[key] = rule[key].clone();
                }
            }
            kept
        })
        .collect();
    ensure!(kept.len() > 3, "the profile has hardly any rule");
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": kept,
    }))
}

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
