//! The labels that a security module of the kernel gives to a process and to its mounts.

use std::ffi::{CStr, CString};
use std::path::Path;

use oci_spec::runtime::Spec;

use crate::SpawnError;

/// What is written to files below `/proc/self/attr` for the program that is executed next.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    pub(crate) writes: Vec<(&'static CStr, CString)>,
}

impl Labels {
    /// Reads `process.apparmorProfile` and `process.selinuxLabel`. As in runc, a label that the kernel could not apply is an
    /// error.
    pub(crate) fn new(spec: &Spec) -> Result<Self, SpawnError> {
        let process = spec.process().as_ref();
        let given = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
        let text = |field: &str, text: String| {
            CString::new(text).map_err(|_| SpawnError::Invalid(format!("{field} has a NUL in it")))
        };
        let mut labels = Self::default();
        // Whoever is not confined stays so.
        let profile = given(process.and_then(|process| process.apparmor_profile().as_ref()));
        if let Some(profile) = profile.filter(|profile| profile != UNCONFINED) {
            if !has_apparmor() {
                return Err(missing("process.apparmorProfile", "AppArmor"));
            }
            // Since Linux 5.8 beside the file that all modules share.
            let own = Path::new("/proc/self/attr/apparmor/exec").exists();
            let file = if own { c"/proc/self/attr/apparmor/exec" } else { c"/proc/self/attr/exec" };
            labels.writes.push((file, text("process.apparmorProfile", format!("exec {profile}"))?));
        }
        if let Some(label) = given(process.and_then(|process| process.selinux_label().as_ref())) {
            if !has_selinux() {
                return Err(missing("process.selinuxLabel", "SELinux"));
            }
            labels.writes.push((c"/proc/self/attr/exec", text("process.selinuxLabel", label)?));
        }
        Ok(labels)
    }
}

/// The label of new filesystems (`linux.mountLabel`).
pub(crate) fn mount_label(spec: &Spec) -> Result<Option<CString>, SpawnError> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_ref());
    let Some(label) = label.filter(|label| !label.is_empty()) else { return Ok(None) };
    if !has_selinux() {
        return Err(missing("linux.mountLabel", "SELinux"));
    }
    let invalid = |_| SpawnError::Invalid("linux.mountLabel has a NUL in it".into());
    CString::new(label.as_str()).map(Some).map_err(invalid)
}

/// Tells whether AppArmor can confine processes here.
pub(crate) fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn missing(field: &str, module: &str) -> SpawnError {
    SpawnError::Unsupported(format!("{field}: {module} is not enabled on this host"))
}

const UNCONFINED: &str = "unconfined";
