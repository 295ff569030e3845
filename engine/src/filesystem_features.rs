//! What this machine allows a filesystem of ours, with reasons.

use std::fs;
use std::path::Path;

use strata_sandbox::capabilities::{SYS_ADMIN, has_effective};
use strata_sandbox::probe::Host;

use crate::info::Feature;

/// Looks. Nothing is mounted for it.
pub(crate) fn probe(host: &Host) -> Vec<Feature> {
    let listed = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let filesystem = |kind: &str| match listed.lines().any(|line| line.split_whitespace().next_back() == Some(kind)) {
        true => Ok(String::new()),
        false => Err("not in /proc/filesystems (is the module loaded?)".to_owned()),
    };
    let since = |major, minor| match host.version >= (major, minor) {
        true => Ok(String::new()),
        false => Err(format!("needs Linux {major}.{minor}")),
    };
    let privileged = || match host.initial_user_namespace && has_effective(SYS_ADMIN) {
        true => Ok(String::new()),
        false => Err("needs root of the initial user namespace".to_owned()),
    };
    vec![
        feature("fuse", device()),
        feature("fuse-passthrough", since(6, 9).and_then(|_| privileged())),
        feature("fuse-uring", since(6, 14).and_then(|_| uring())),
        feature("fusermount", helper()),
        feature("erofs", filesystem("erofs").and_then(|_| privileged())),
        feature("erofs-file-backed", since(6, 12)),
        feature("overlay", filesystem("overlay")),
    ]
}

fn feature(name: &str, result: Result<String, String>) -> Feature {
    let available = result.is_ok();
    let (Ok(detail) | Err(detail)) = result;
    Feature { name: name.to_owned(), available, detail }
}

fn device() -> Result<String, String> {
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Ok(String::new()),
        Err(error) => Err(format!("/dev/fuse: {}", crate::error_chain(&error))),
    }
}

fn uring() -> Result<String, String> {
    match fs::read_to_string("/sys/module/fuse/parameters/enable_uring") {
        Ok(text) if text.trim() == "Y" => Ok(String::new()),
        Ok(_) => Err("/sys/module/fuse/parameters/enable_uring is off".to_owned()),
        Err(_) => Err("not built into this kernel".to_owned()),
    }
}

fn helper() -> Result<String, String> {
    let folders = ["/usr/bin", "/bin", "/usr/local/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join("fusermount3")).find(|path| path.is_file());
    found
        .map(|path| path.display().to_string())
        .ok_or_else(|| "fusermount3 is not installed (package fuse3)".to_owned())
}
