//! The runtime for a plain user who is in no user namespace of his own yet.
//!
//! Making a container takes mounts, so `create` and `run` first become root of a namespace with all ids that the user has
//! (`newuidmap`), and make the container's own below that. The spec speaks of ids outside of both. Most other verbs need
//! no powers but those over one's own processes; `exec` enters the namespace that the container was made in.

use std::os::fd::AsFd;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Container, RuntimeError};
use crate::capabilities::{SYS_ADMIN, has_effective};
use crate::userns::{self, IdMaps, Rootless};

/// Becomes root of a namespace, if that is needed to make containers. Tells whether it was: then specs are to be
/// [translated](super::Runtime::with_ids_outside).
///
/// # Preconditions
/// The process has one thread.
///
/// # Errors
/// [`RuntimeError::UserNamespace`].
pub fn enter() -> Result<bool, RuntimeError> {
    Ok(userns::enter_rootless()? != Rootless::NotNeeded)
}

/// Writes the ids of a spec as they are in the namespace that [`enter`] made.
pub(super) fn translate(spec: &mut Spec) -> Result<(), RuntimeError> {
    let Some(mut linux) = spec.linux().clone() else { return Ok(()) };
    let is_user = |kind: LinuxNamespaceType| kind == LinuxNamespaceType::User;
    if !linux.namespaces().iter().flatten().any(|namespace| is_user(namespace.typ())) {
        return Err(RuntimeError::InvalidSpec(
            "rootless container requires user namespaces: add one to linux.namespaces, with its maps".into(),
        ));
    }
    let is_mapped = |mount: &oci_spec::runtime::Mount| mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    if let Some(mount) = spec.mounts().iter().flatten().find(|mount| is_mapped(mount)) {
        let text = format!("owners of the mount on {:?} cannot be mapped by a plain user", mount.destination());
        return Err(RuntimeError::InvalidSpec(text));
    }
    let uids = inside(linux.uid_mappings().as_deref().unwrap_or_default(), userns::uid_inside, "uidMappings")?;
    let gids = inside(linux.gid_mappings().as_deref().unwrap_or_default(), userns::gid_inside, "gidMappings")?;
    let (uids, gids) = IdMaps { uids, gids }.to_oci();
    linux.set_uid_mappings(Some(uids));
    linux.set_gid_mappings(Some(gids));
    spec.set_linux(Some(linux));
    Ok(())
}

fn inside(
    maps: &[LinuxIdMapping],
    look_up: fn(userns::IdRange) -> Option<Vec<userns::IdRange>>,
    field: &str,
) -> Result<Vec<userns::IdRange>, RuntimeError> {
    let mut found = Vec::new();
    for map in maps {
        let range = userns::IdRange { container: map.container_id(), host: map.host_id(), size: map.size() };
        found.extend(look_up(range).ok_or_else(|| {
            let (first, size) = (range.host, range.size);
            let text = format!(
                "linux.{field}: {size} ids from {first} are not all this user's; see newuidmap(1), /etc/subuid and /etc/subgid"
            );
            RuntimeError::InvalidSpec(text)
        })?);
    }
    Ok(found)
}

impl Container {
    /// Enters the user namespace in which the container was made, if that is needed to add a process to it.
    ///
    /// # Preconditions
    /// The process has one thread.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`], [`RuntimeError::UserNamespace`].
    pub fn enter_namespace_of_maker(&self) -> Result<(), RuntimeError> {
        if has_effective(SYS_ADMIN) {
            return Ok(());
        }
        let running = self.process()?;
        let path = format!("/proc/{}/ns/user", running.pid());
        let open = || openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let own = open().map_err(|errno| userns::UserNamespaceError::Join { source: errno.into() })?;
        // The number was still its own when the file was opened, if it lives now.
        let alive = self.process()?.pid() == running.pid();
        let maker = strata_sys::namespace::parent(own.as_fd());
        match (alive, maker) {
            (true, Ok(maker)) => Ok(userns::enter_rootless_in(maker.as_fd())?),
            (true, Err(source)) => Err(userns::UserNamespaceError::Join { source }.into()),
            (false, _) => Err(RuntimeError::NotRunning),
        }
    }
}
