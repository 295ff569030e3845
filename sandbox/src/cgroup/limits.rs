//! Limits written to the files of a group, and what becomes of those that cannot be had.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::group::{Group, is_denied};
use super::settings::{Absent, Setting, Wanted, owner_of_unified, settings};
use super::{CgroupError, Version};

/// What a limit means that this host does not know or this user may not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shortage {
    /// An error, as in OCI runtimes.
    #[default]
    Refused,
    /// A warning that names it, as in Docker.
    Told,
}

impl Shortage {
    /// Refuses, or takes down what was left out.
    pub(super) fn meet(self, error: CgroupError, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        match self {
            Self::Refused => Err(error),
            Self::Told => {
                warnings.push(format!("{error}. Limitation discarded."));
                Ok(())
            }
        }
    }
}

impl Wanted {
    /// Tells whether a controller of this version will do.
    pub(super) fn is_met_by(&self, found: Option<Version>) -> bool {
        found.is_some_and(|version| !self.only_v2 || version == Version::V2)
    }

    pub(super) fn without_controller(&self) -> CgroupError {
        let controller = if self.only_v2 { format!("v2 {}", self.controller) } else { self.controller.clone() };
        CgroupError::NoController { controller, setting: self.name.clone() }
    }
}

/// Writes every limit whose controller `group` has.
pub(super) fn apply(
    group: &Group,
    resources: &LinuxResources,
    shortage: Shortage,
    warnings: &mut Vec<String>,
) -> Result<(), CgroupError> {
    let mut all = settings(resources, group.version);
    raise_both_first(group, &mut all);
    for setting in all {
        if !group.controllers.iter().any(|name| name == setting.controller) {
            continue;
        }
        let Setting { files, name, absent, .. } = setting;
        let Some((file, value)) = files.into_iter().find(|(file, _)| group.path.join(file).exists()) else {
            match absent {
                Absent::Nothing => {}
                Absent::NoSwap => warnings.push(
                    "Your kernel does not support swap limit capabilities or the cgroup is not mounted. \
                     Memory limited without swap."
                        .to_owned(),
                ),
                Absent::Shortage => shortage.meet(CgroupError::NoFile { setting: name.to_owned() }, warnings)?,
            }
            continue;
        };
        match write_control(&group.path.join(&file), &value) {
            Ok(()) => {}
            Err(source) if is_denied(&source) && !crate::userns::is_initial() => {
                shortage.meet(CgroupError::NotDelegated { setting: name.to_owned(), source }, warnings)?;
            }
            Err(source) => return Err(CgroupError::Set { file, value, source }),
        }
    }
    if group.version == Version::V2 {
        for (file, value) in resources.unified().iter().flatten() {
            if file.contains('/') {
                return Err(CgroupError::Name(file.clone()));
            }
            if owner_of_unified(file).is_none_or(|owner| group.controllers.iter().any(|name| name == owner)) {
                write_control(&group.path.join(file), value).map_err(|source| CgroupError::Set {
                    file: file.clone(),
                    value: value.clone(),
                    source,
                })?;
            }
        }
    }
    Ok(())
}

/// Version 1 refuses a limit below what is in use; version 2 kills for it, unless it is asked to look first.
pub(super) fn refuse_below_usage(group: &Group, resources: &LinuxResources) -> Result<(), CgroupError> {
    let asked = resources.memory().filter(|memory| memory.check_before_update() == Some(true));
    let limit = asked.and_then(|memory| memory.limit()).and_then(|limit| u64::try_from(limit).ok());
    let Some(limit) = limit.filter(|limit| *limit > 0 && group.version == Version::V2) else { return Ok(()) };
    let usage = fs::read_to_string(group.path.join("memory.current")).unwrap_or_default();
    match usage.trim().parse() {
        Ok(usage) if usage > limit => Err(CgroupError::BelowUsage { limit, usage }),
        // A hierarchy without the controller has no usage.
        _ => Ok(()),
    }
}

/// Writes a control file that has to be there: asked to make it, the kernel would say that this is forbidden.
fn write_control(path: &Path, value: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::File::options().write(true).open(path)?, value.as_bytes())
}

/// Version 1 refuses a memory limit above that of memory and swap together, and the other way round: whichever is in the
/// way of the other is written first.
fn raise_both_first(group: &Group, all: &mut [Setting]) {
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let position =
        |wanted: &str| all.iter().position(|setting| setting.files.first().is_some_and(|(file, _)| file == wanted));
    let (Some(memory), Some(both)) = (position("memory.limit_in_bytes"), position(BOTH)) else { return };
    let present = fs::read_to_string(group.path.join(BOTH)).unwrap_or_default();
    let (Ok(present), Ok(wanted)) = (present.trim().parse::<i64>(), all[both].files[0].1.parse::<i64>()) else {
        return;
    };
    if memory < both && (wanted < 0 || wanted > present) {
        all.swap(memory, both);
    }
}
