//! Which namespaces a container is in, and what a spec may ask for because of them.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::SpawnError;

/// Which namespaces are made anew, and which are joined.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` bits of those made anew.
    pub(crate) new: u64,
    /// Those joined, by the thread or process that makes the child.
    pub(crate) joined: Vec<(LinuxNamespaceType, OwnedFd)>,
}

impl Namespaces {
    /// Reads the spec's list and opens what is to be joined.
    pub(crate) fn from_spec(spec: &Spec) -> Result<Self, SpawnError> {
        let mut namespaces = Self::default();
        let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        for namespace in listed.into_iter().flatten() {
            let kind = namespace.typ();
            if namespaces.is_private(kind) {
                return Err(SpawnError::Invalid(format!("linux.namespaces: {kind} is listed twice")));
            }
            let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else {
                namespaces.new |= kind as u64;
                continue;
            };
            if !path.is_absolute() {
                return Err(SpawnError::Invalid(format!("linux.namespaces: {path:?} is not an absolute path")));
            }
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
                .map_err(|source| SpawnError::Namespace { path: path.clone(), source: source.into() })?;
            // A file that is no namespace has no kind either.
            if !strata_sys::namespace::kind(fd.as_fd()).is_ok_and(|found| found == kind as u64) {
                return Err(SpawnError::Invalid(format!("linux.namespaces: {path:?} is no {kind} namespace")));
            }
            if kind == LinuxNamespaceType::Mount && is_of_the_host(&fd) {
                let why = "is the mount namespace of the host, whose root the container's would replace";
                return Err(SpawnError::Invalid(format!("linux.namespaces: {path:?} {why}")));
            }
            namespaces.joined.push((kind, fd));
        }
        if !namespaces.is_private(LinuxNamespaceType::Mount) {
            return Err(SpawnError::Unsupported("a container without a mount namespace of its own".into()));
        }
        namespaces.check_needs(spec)?;
        Ok(namespaces)
    }

    /// Refuses what would change the host, or nothing at all, without a namespace of the container's own.
    fn check_needs(&self, spec: &Spec) -> Result<(), SpawnError> {
        use LinuxNamespaceType::{Network, Time, User, Uts};
        let linux = spec.linux().as_ref();
        let is_name = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
        let is_map = |map: Option<&Vec<LinuxIdMapping>>| map.is_some_and(|map| !map.is_empty());
        let offsets = linux.and_then(|linux| linux.time_offsets().as_ref());
        let devices = linux.and_then(|linux| linux.net_devices().as_ref());
        for (asked, field, kind) in [
            (is_name(spec.hostname()), "hostname", Uts),
            (is_name(spec.domainname()), "domainname", Uts),
            (is_map(linux.and_then(|linux| linux.uid_mappings().as_ref())), "linux.uidMappings", User),
            (is_map(linux.and_then(|linux| linux.gid_mappings().as_ref())), "linux.gidMappings", User),
            (devices.is_some_and(|devices| !devices.is_empty()), "linux.netDevices", Network),
        ] {
            if asked && !self.is_private(kind) {
                return Err(SpawnError::Invalid(format!("{field} needs a {kind} namespace of the container's own")));
            }
        }
        // Clocks are set before the first process is in.
        if offsets.is_some_and(|offsets| !offsets.is_empty()) && !self.has_new(Time) {
            return Err(SpawnError::Invalid("linux.timeOffsets needs a new time namespace".into()));
        }
        Ok(())
    }

    /// Tells whether a namespace of this kind is made anew.
    pub(crate) fn has_new(&self, kind: LinuxNamespaceType) -> bool {
        self.new & kind as u64 != 0
    }

    /// The user namespace that is joined.
    pub(crate) fn joined_user(&self) -> Option<&OwnedFd> {
        self.joined.iter().find_map(|(kind, fd)| (*kind == LinuxNamespaceType::User).then_some(fd))
    }

    /// Tells whether a namespace of this kind is not the caller's.
    pub(crate) fn is_private(&self, kind: LinuxNamespaceType) -> bool {
        self.has_new(kind) || self.has_joined(kind)
    }

    /// Tells whether a namespace of this kind is somebody else's.
    pub(crate) fn has_joined(&self, kind: LinuxNamespaceType) -> bool {
        self.joined.iter().any(|(joined, _)| *joined == kind)
    }
}

/// Tells whether this is the mount namespace of the calling thread, or that of the first process it sees.
fn is_of_the_host(namespace: &OwnedFd) -> bool {
    let identity = |found: rustix::fs::Stat| (found.st_dev, found.st_ino);
    let wanted = rustix::fs::fstat(namespace).ok().map(identity);
    ["/proc/thread-self/ns/mnt", "/proc/1/ns/mnt"].into_iter().any(|path| {
        let found = rustix::fs::stat(path).ok().map(identity);
        found.is_some() && found == wanted
    })
}
