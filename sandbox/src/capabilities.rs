//! Capability names, numbers and sets; Docker's default set and its `--cap-add` and `--cap-drop` arithmetic.

use std::fmt;

use oci_spec::runtime::{Capabilities, Capability};

/// A set of capabilities: bit n is capability number n.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: Self = Self(0);
    /// Every capability this crate knows by name.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);
    /// What Docker gives to a container.
    pub const DOCKER: Self = Self(
        1 << CHOWN
            | 1 << DAC_OVERRIDE
            | 1 << FOWNER
            | 1 << FSETID
            | 1 << KILL
            | 1 << SETGID
            | 1 << SETUID
            | 1 << SETPCAP
            | 1 << NET_BIND_SERVICE
            | 1 << NET_RAW
            | 1 << SYS_CHROOT
            | 1 << MKNOD
            | 1 << AUDIT_WRITE
            | 1 << SETFCAP,
    );

    /// What a hardened container gets: Docker's, without raw packets, device nodes, audit records, file capabilities and
    /// chroot.
    pub const HARDENED: Self =
        Self(Self::DOCKER.0 & !(1 << NET_RAW | 1 << MKNOD | 1 << AUDIT_WRITE | 1 << SETFCAP | 1 << SYS_CHROOT));

    /// Makes a set of raw bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the raw bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Tells whether capability number `number` is in the set.
    #[must_use]
    pub const fn contains(self, number: u32) -> bool {
        number < 64 && self.0 & (1 << number) != 0
    }

    /// Returns what is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns what is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns Docker's default set changed by `--cap-add` and `--cap-drop` names (with or without `CAP_`, any case,
    /// `ALL`). As in Docker, a name in both lists is added.
    ///
    /// # Errors
    /// [`UnknownCapability`] for a name that is none.
    pub fn docker_adjusted<S: AsRef<str>>(add: &[S], drop: &[S]) -> Result<Self, UnknownCapability> {
        Self::DOCKER.adjusted(add, drop)
    }

    /// As [`docker_adjusted`](Self::docker_adjusted), from this set.
    ///
    /// # Errors
    /// [`UnknownCapability`] for a name that is none.
    pub fn adjusted<S: AsRef<str>>(self, add: &[S], drop: &[S]) -> Result<Self, UnknownCapability> {
        let add = add.iter().map(|name| Self::parse(name.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let drop = drop.iter().map(|name| Self::parse(name.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let union = |sets: &[Self]| sets.iter().fold(0, |bits, set| bits | set.0);
        let base = if add.contains(&Self::ALL) {
            // Docker: everything but what is dropped by name.
            let named: u64 = drop.iter().filter(|set| **set != Self::ALL).fold(0, |bits, set| bits | set.0);
            return Ok(Self(Self::ALL.0 & !named));
        } else if drop.contains(&Self::ALL) {
            0
        } else {
            self.0 & !union(&drop)
        };
        Ok(Self(base | union(&add)))
    }

    /// Parses one name, `ALL` included.
    ///
    /// # Errors
    /// [`UnknownCapability`] for a name that is none.
    pub fn parse(name: &str) -> Result<Self, UnknownCapability> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            return Ok(Self::ALL);
        }
        NAMES
            .iter()
            .position(|known| *known == bare)
            .map(|number| Self(1 << number))
            .ok_or_else(|| UnknownCapability(name.to_owned()))
    }

    /// Converts the spec's form. Every name that the spec's type can hold is known here.
    #[must_use]
    pub fn from_oci(capabilities: Option<&Capabilities>) -> Self {
        let names = capabilities.into_iter().flatten();
        Self(names.filter_map(|name| Self::parse(&name.to_string()).ok()).fold(0, |bits, set| bits | set.0))
    }

    /// Converts to the spec's form.
    #[must_use]
    pub fn to_oci(self) -> Capabilities {
        self.names().filter_map(|name| name.parse::<Capability>().ok()).collect()
    }

    /// Returns the names in the set, without `CAP_`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(number, _)| self.0 & (1 << number) != 0).map(|(_, name)| *name)
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.names()).finish()
    }
}

/// Tells whether the calling thread has capability number `number` in effect, in its own user namespace.
#[must_use]
pub fn has_effective(number: u32) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.bits() & (1 << number) != 0)
}

/// A capability name that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid capability: {0:?}")]
pub struct UnknownCapability(pub String);

/// May change owners of files.
pub const CHOWN: u32 = 0;
/// Is not bound by file permissions.
pub const DAC_OVERRIDE: u32 = 1;
/// May do what owners of files may.
pub const FOWNER: u32 = 3;
/// Keeps set-user-id bits when writing.
pub const FSETID: u32 = 4;
/// May signal any process.
pub const KILL: u32 = 5;
/// May change group ids.
pub const SETGID: u32 = 6;
/// May change user ids.
pub const SETUID: u32 = 7;
/// May change capability sets.
pub const SETPCAP: u32 = 8;
/// May bind ports below 1024.
pub const NET_BIND_SERVICE: u32 = 10;
/// May open raw sockets.
pub const NET_RAW: u32 = 13;
/// May chroot and join mount namespaces.
pub const SYS_CHROOT: u32 = 18;
/// May trace any process.
pub const SYS_PTRACE: u32 = 19;
/// May mount, join namespaces, and much else.
pub const SYS_ADMIN: u32 = 21;
/// May exceed limits.
pub const SYS_RESOURCE: u32 = 24;
/// May make device files.
pub const MKNOD: u32 = 27;
/// May write to the audit log.
pub const AUDIT_WRITE: u32 = 29;
/// May set file capabilities.
pub const SETFCAP: u32 = 31;

/// By number, as in the kernel's `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_spec_type_both_ways() {
        assert_eq!(CapabilitySet::ALL.to_oci().len(), NAMES.len());
        assert_eq!(CapabilitySet::from_oci(Some(&CapabilitySet::ALL.to_oci())), CapabilitySet::ALL);
        assert_eq!(NAMES[usize::try_from(SYS_ADMIN).unwrap()], "SYS_ADMIN");
        assert_eq!(NAMES[usize::try_from(SYS_PTRACE).unwrap()], "SYS_PTRACE");
        assert_eq!(NAMES[usize::try_from(SETFCAP).unwrap()], "SETFCAP");
    }

    #[test]
    fn docker_default_set_is_the_documented_fourteen() {
        assert_eq!(CapabilitySet::DOCKER.bits(), 0xa804_25fb);
    }

    #[test]
    fn add_and_drop_follow_docker() {
        let adjusted = |add: &[&str], drop: &[&str]| CapabilitySet::docker_adjusted(add, drop).unwrap();
        assert_eq!(adjusted(&[], &[]), CapabilitySet::DOCKER);
        assert_eq!(adjusted(&[], &["ALL"]), CapabilitySet::EMPTY);
        assert_eq!(adjusted(&["all"], &[]), CapabilitySet::ALL);
        assert_eq!(adjusted(&["net_admin"], &["ALL"]).names().collect::<Vec<_>>(), ["NET_ADMIN"]);
        assert!(!adjusted(&["ALL"], &["CAP_SYS_ADMIN"]).contains(SYS_ADMIN));
        assert!(!adjusted(&[], &["cap_mknod"]).contains(MKNOD));
        assert_eq!(CapabilitySet::docker_adjusted(&["nonsense"], &[]), Err(UnknownCapability("nonsense".into())));
    }
}
