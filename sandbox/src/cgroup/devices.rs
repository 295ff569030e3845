//! Which devices a container may use.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::CgroupError;

/// One rule of the device list; a later rule wins over an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// Which type of device.
    pub kind: DeviceKind,
    /// Major number; any when absent.
    pub major: Option<u32>,
    /// Minor number; any when absent.
    pub minor: Option<u32>,
    /// 1 to make the node, 2 to read, 4 to write: the kernel's `BPF_DEVCG_ACC_*`.
    pub access: u8,
}

/// The type of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Both.
    Any,
    /// Block.
    Block,
    /// Character.
    Char,
}

/// Making device files, in the kernel's numbering (`BPF_DEVCG_ACC_*`).
pub(super) const MKNOD: u8 = 1;
/// Reading.
pub(super) const READ: u8 = 2;
/// Writing.
pub(super) const WRITE: u8 = 4;

impl DeviceRule {
    /// Converts the rules of a spec.
    ///
    /// # Errors
    /// [`CgroupError::DeviceRule`] for numbers or accesses that do not exist.
    pub fn from_oci(rule: &LinuxDeviceCgroup) -> Result<Self, CgroupError> {
        let number = |value: Option<i64>| match value {
            None | Some(-1) => Ok(None),
            Some(number) => {
                u32::try_from(number).map(Some).map_err(|_| CgroupError::DeviceRule(format!("number {number}")))
            }
        };
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => DeviceKind::Any,
            Some(LinuxDeviceType::B) => DeviceKind::Block,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
            Some(LinuxDeviceType::P) => return Err(CgroupError::DeviceRule("a FIFO is no device".into())),
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(CgroupError::DeviceRule(format!("access {letter:?}"))),
            };
        }
        Ok(Self { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
    }

    /// Tells whether it is about every device and every access, and so leaves nothing of the rules before it.
    pub(crate) fn is_for_all(&self) -> bool {
        let every_device = self.kind == DeviceKind::Any && self.major.is_none() && self.minor.is_none();
        every_device && self.access == (READ | WRITE | MKNOD)
    }

    /// Returns the lines of v1's `devices.allow` and `devices.deny`, each to be written by itself.
    pub(super) fn v1_lines(&self) -> Vec<String> {
        // The kernel takes `a` for every device and every access, whatever follows it.
        if self.is_for_all() {
            return vec!["a".into()];
        }
        let kinds = match self.kind {
            DeviceKind::Any => "bc",
            DeviceKind::Block => "b",
            DeviceKind::Char => "c",
        };
        let number = |number: Option<u32>| number.map_or_else(|| "*".into(), |number| number.to_string());
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let access: String =
            letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect();
        kinds.chars().map(|kind| format!("{kind} {}:{} {access}", number(self.major), number(self.minor))).collect()
    }
}

/// Returns the rules of an unprivileged Docker container: its own `/dev`, terminals, and making any node.
#[must_use]
pub fn docker_device_rules() -> Vec<LinuxDeviceCgroup> {
    use LinuxDeviceType::{A, B, C};
    let rule = |allow, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build().expect("every field of the builder is optional")
    };
    let mut rules =
        vec![rule(false, A, None, None, "rwm"), rule(true, C, None, None, "m"), rule(true, B, None, None, "m")];
    // null, zero, full, random, urandom, tty, console, ptmx, and every pts.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule(true, C, Some(major), Some(minor), "rwm"));
    }
    rules.push(rule(true, C, Some(136), None, "rwm"));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_rules_as_v1_lines() {
        let lines: Vec<String> =
            docker_device_rules().iter().flat_map(|rule| DeviceRule::from_oci(rule).unwrap().v1_lines()).collect();
        assert_eq!(
            lines,
            [
                "a",
                "c *:* m",
                "b *:* m",
                "c 1:3 rwm",
                "c 1:5 rwm",
                "c 1:7 rwm",
                "c 1:8 rwm",
                "c 1:9 rwm",
                "c 5:0 rwm",
                "c 5:1 rwm",
                "c 5:2 rwm",
                "c 136:* rwm"
            ]
        );
    }

    #[test]
    fn a_rule_for_both_types_stays_one_about_its_numbers() {
        let rule = DeviceRule { allow: true, kind: DeviceKind::Any, major: Some(10), minor: Some(200), access: READ };
        assert_eq!(rule.v1_lines(), ["b 10:200 r", "c 10:200 r"]);
        assert_eq!(DeviceRule { major: None, minor: None, ..rule }.v1_lines(), ["b *:* r", "c *:* r"]);
    }

    #[test]
    fn malformed_rules_are_refused() {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).access("rx").build().unwrap();
        assert!(DeviceRule::from_oci(&rule).is_err());
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).major(1_i64 << 40).build().unwrap();
        assert!(DeviceRule::from_oci(&rule).is_err());
    }
}
