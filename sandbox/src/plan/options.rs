//! The mount options of the spec: flags, propagation, data for the filesystem, and what we do ourselves.

use std::ffi::CString;

use rustix::mount::MountPropagationFlags;
use strata_sys::mount_attributes as attributes;
use strata_sys::mount_attributes::MountAttributes;

use crate::SpawnError;

/// Mount options, sorted by who handles them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// `bind` or `rbind`.
    pub(crate) bind: Option<Bind>,
    /// Flags of the mount itself.
    pub(crate) attributes: MountAttributes,
    /// Flags of the mount and everything below it (`rro` and its family).
    pub(crate) recursive: MountAttributes,
    /// Propagation, and whether it reaches what is below.
    pub(crate) propagation: Option<(u64, bool)>,
    /// Begin a memory filesystem with what it covers.
    pub(crate) copy_up: bool,
    /// `idmap` (the mount alone) or `ridmap`.
    pub(crate) idmap: Option<bool>,
    /// What the filesystem gets.
    pub(crate) data: Vec<(CString, Option<CString>)>,
}

/// How much a bind mount shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    /// The one filesystem.
    One,
    /// And what is mounted below.
    Recursive,
}

impl MountOptions {
    /// Sorts `options`. What is not known goes to the filesystem, which refuses what it does not know either.
    pub(crate) fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self, SpawnError> {
        let mut parsed = Self::default();
        for option in options.iter().map(AsRef::as_ref) {
            if parsed.take_attribute(option) || parsed.take_propagation(option) {
                continue;
            }
            match option {
                "" | "defaults" | "async" | "loud" | "mand" | "nomand" | "noiversion" => {}
                "bind" => parsed.bind = parsed.bind.or(Some(Bind::One)),
                "rbind" => parsed.bind = Some(Bind::Recursive),
                "idmap" => parsed.idmap = Some(false),
                "ridmap" => parsed.idmap = Some(true),
                "tmpcopyup" => parsed.copy_up = true,
                "remount" => {
                    return Err(SpawnError::Unsupported(format!("mount option {option:?}")));
                }
                _ => {
                    let text = |text: &str| {
                        CString::new(text).map_err(|_| SpawnError::Invalid(format!("mount option {option:?}")))
                    };
                    parsed.data.push(match option.split_once('=') {
                        Some((key, value)) => (text(key)?, Some(text(value)?)),
                        None => (text(option)?, None),
                    });
                }
            }
        }
        Ok(parsed)
    }

    /// The last word about a flag wins.
    fn take_attribute(&mut self, option: &str) -> bool {
        let (target, name) = match option.strip_prefix('r') {
            // "ro", "relatime" and "rw" begin with the letter as well.
            Some(rest) if !matches!(option, "ro" | "rw" | "relatime") => (&mut self.recursive, rest),
            _ => (&mut self.attributes, option),
        };
        let (set, clear) = match name {
            "ro" => (attributes::RDONLY, 0),
            "rw" => (0, attributes::RDONLY),
            "nosuid" => (attributes::NOSUID, 0),
            "suid" => (0, attributes::NOSUID),
            "nodev" => (attributes::NODEV, 0),
            "dev" => (0, attributes::NODEV),
            "noexec" => (attributes::NOEXEC, 0),
            "exec" => (0, attributes::NOEXEC),
            "nodiratime" => (attributes::NODIRATIME, 0),
            "diratime" => (0, attributes::NODIRATIME),
            "nosymfollow" => (attributes::NOSYMFOLLOW, 0),
            "symfollow" => (0, attributes::NOSYMFOLLOW),
            // These share one field, which the kernel wants cleared as a whole.
            "noatime" => (attributes::NOATIME, attributes::ATIME),
            "strictatime" => (attributes::STRICTATIME, attributes::ATIME),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, attributes::ATIME),
            _ => return false,
        };
        if clear & attributes::ATIME != 0 {
            target.set &= !attributes::ATIME;
        }
        target.set = target.set & !clear | set;
        target.clear = target.clear & !set | clear;
        true
    }

    fn take_propagation(&mut self, option: &str) -> bool {
        let (recursive, name) = match option.strip_prefix('r') {
            Some(rest) => (true, rest),
            None => (false, option),
        };
        let kind = match name {
            "private" => MountPropagationFlags::PRIVATE,
            "shared" => MountPropagationFlags::SHARED,
            "slave" => MountPropagationFlags::DOWNSTREAM,
            "unbindable" => MountPropagationFlags::UNBINDABLE,
            _ => return false,
        };
        self.propagation = Some((u64::from(kind.bits()), recursive));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_data_and_propagation_are_sorted() {
        let parsed =
            MountOptions::parse(&["nosuid", "ro", "rw", "rslave", "size=64k", "newinstance", "rbind", "rnoexec"])
                .unwrap();
        assert_eq!(
            parsed.attributes,
            MountAttributes { set: attributes::NOSUID, clear: attributes::RDONLY, propagation: 0 }
        );
        assert_eq!(parsed.recursive, MountAttributes { set: attributes::NOEXEC, clear: 0, propagation: 0 });
        assert_eq!(parsed.propagation, Some((u64::from(MountPropagationFlags::DOWNSTREAM.bits()), true)));
        assert_eq!(parsed.bind, Some(Bind::Recursive));
        assert_eq!(parsed.data, [(c"size".to_owned(), Some(c"64k".to_owned())), (c"newinstance".to_owned(), None)]);
    }

    #[test]
    fn recursive_read_only_is_not_the_plain_one() {
        let parsed = MountOptions::parse(&["rro", "relatime"]).unwrap();
        assert_eq!(parsed.recursive.set, attributes::RDONLY);
        assert_eq!(parsed.attributes, MountAttributes { set: 0, clear: attributes::ATIME, propagation: 0 });
    }

    #[test]
    fn access_time_modes_replace_each_other() {
        let parsed = MountOptions::parse(&["noatime", "strictatime"]).unwrap();
        assert_eq!((parsed.attributes.set, parsed.attributes.clear), (attributes::STRICTATIME, attributes::ATIME));
    }
}
