//! Limits in systemd's words, as runc says them.
//!
//! systemd has no word for all of them. What it lacks is written to the files of the cgroup, which is ours (`Delegate`); what it
//! has is said to it as well, since it writes its own view when it is reloaded.

use std::fs;

use oci_spec::runtime::LinuxResources;

use super::wire::Value;
use crate::cgroup::devices::{DeviceKind, DeviceRule, MKNOD, READ, WRITE};
use crate::cgroup::settings::weight_of;
use crate::cgroup::{CgroupError, Version};

/// Name and value.
pub(super) type Property = (&'static str, Value);

/// Translates limits for the systemd of version `systemd`, on a host whose controllers are of `version`.
pub(super) fn of_resources(
    resources: &LinuxResources,
    version: Version,
    systemd: u32,
) -> Result<Vec<Property>, CgroupError> {
    let mut found = Vec::new();
    let unified = version == Version::V2;
    // Anything below zero is no limit.
    let limit = |value: i64| Value::U64(u64::try_from(value).unwrap_or(u64::MAX));
    if let Some(memory) = resources.memory() {
        let max = memory.limit().filter(|limit| *limit != 0);
        if let Some(max) = max {
            found.push((if unified { "MemoryMax" } else { "MemoryLimit" }, limit(max)));
        }
        if let Some(low) = memory.reservation().filter(|low| unified && *low != 0) {
            found.push(("MemoryLow", limit(low)));
        }
        if let Some(both) = memory.swap().filter(|both| unified && *both != 0) {
            // Memory and swap together in the spec, swap alone in v2.
            let swap = if both < 0 { -1 } else { both.saturating_sub(max.unwrap_or(0).max(0)).max(0) };
            found.push(("MemorySwapMax", limit(swap)));
        }
    }
    if let Some(cpu) = resources.cpu() {
        let is_idle = unified && systemd >= 252 && cpu.idle() == Some(1);
        match cpu.shares().filter(|shares| *shares != 0) {
            _ if is_idle => found.push(("CPUWeight", Value::U64(0))),
            Some(shares) if unified => found.push(("CPUWeight", Value::U64(weight_of(shares)))),
            Some(shares) => found.push(("CPUShares", Value::U64(shares))),
            None => {}
        }
        let period = cpu.period().filter(|period| *period != 0);
        let quota = cpu.quota().filter(|quota| *quota != 0);
        if let Some(period) = period.filter(|_| systemd >= 242) {
            found.push(("CPUQuotaPeriodUSec", Value::U64(period)));
        }
        if period.is_some() || quota.is_some() {
            found.push(("CPUQuotaPerSecUSec", Value::U64(quota_per_second(quota, period))));
        }
        if unified && systemd >= 244 {
            for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
                if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                    let bits = bits(list).ok_or_else(|| CgroupError::List(list.to_owned()))?;
                    found.push((name, Value::Bytes(bits)));
                }
            }
        }
    }
    if let Some(pids) = resources.pids()
        && pids.limit() != 0
    {
        found.push(("TasksMax", limit(pids.limit())));
    }
    if let Some(weight) =
        resources.block_io().as_ref().and_then(|io| io.weight()).filter(|weight| !unified && *weight != 0)
    {
        found.push(("BlockIOWeight", Value::U64(u64::from(weight))));
    }
    let rules = resources.devices().iter().flatten().map(DeviceRule::from_oci).collect::<Result<Vec<_>, _>>()?;
    found.extend(of_devices(&rules));
    Ok(found)
}

/// Microseconds of CPU time in a second, in whole percents, since that is how systemd keeps it.
fn quota_per_second(quota: Option<i64>, period: Option<u64>) -> u64 {
    const PERCENT: u64 = 10_000;
    match quota.and_then(|quota| u64::try_from(quota).ok()) {
        None => u64::MAX,
        Some(quota) => (quota.saturating_mul(1_000_000) / period.unwrap_or(100_000)).next_multiple_of(PERCENT),
    }
}

/// A list such as `0-2,5` as bits, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > 8191 {
            return None;
        }
        for number in first..=last {
            if bits.len() <= number / 8 {
                bits.resize(number / 8 + 1, 0);
            }
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    Some(bits)
}

fn of_devices(rules: &[DeviceRule]) -> Vec<Property> {
    if rules.is_empty() {
        return Vec::new();
    }
    let mut is_open = false;
    let mut allowed = Vec::new();
    for rule in rules {
        if rule.is_for_all() {
            is_open = rule.allow;
            allowed.clear();
        } else if rule.allow {
            let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
            let access: String = letters.iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, it)| it).collect();
            allowed.extend(nodes(rule).into_iter().map(|node| (node, access.clone())));
        }
        // A denial after a permission systemd has no word for. The program on the cgroup does.
    }
    let policy = if is_open { "auto" } else { "strict" };
    let allowed = if is_open { Vec::new() } else { allowed };
    vec![("DevicePolicy", Value::Text(policy.to_owned())), ("DeviceAllow", Value::Pairs(allowed))]
}

/// The devices of a rule: a node, or a group of `/proc/devices`.
fn nodes(rule: &DeviceRule) -> Vec<String> {
    let kinds: &[&str] = match rule.kind {
        DeviceKind::Any => &["char", "block"],
        DeviceKind::Block => &["block"],
        DeviceKind::Char => &["char"],
    };
    let node = |kind: &&str| match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (Some(major), None) => group(&fs::read_to_string("/proc/devices").unwrap_or_default(), kind, major)
            .map(|name| format!("{kind}-{name}")),
        (None, None) => Some(format!("{kind}-*")),
        // systemd has no word for one minor number of all devices.
        (None, Some(_)) => None,
    };
    kinds.iter().filter_map(node).collect()
}

/// The name of a major number in `/proc/devices`.
fn group(table: &str, kind: &str, major: u32) -> Option<String> {
    let heading = if kind == "char" { "Character devices:" } else { "Block devices:" };
    let mut lines = table.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    lines.find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        (number.parse() == Ok(major)).then(|| name.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str, version: Version, systemd: u32) -> Vec<Property> {
        of_resources(&serde_json::from_str(json).unwrap(), version, systemd).unwrap()
    }

    #[test]
    fn limits_are_said_as_runc_says_them() {
        let all = r#"{"memory": {"limit": 1000, "reservation": 500, "swap": 1500},
            "cpu": {"shares": 1024, "quota": 50500, "period": 100000, "cpus": "0-1,9", "mems": "0"},
            "pids": {"limit": 7}, "blockIO": {"weight": 300}}"#;
        let cpus = |found: &[Property]| found.iter().any(|(name, _)| *name == "AllowedCPUs");
        let found = of(all, Version::V2, 252);
        assert_eq!(
            found,
            [
                ("MemoryMax", Value::U64(1000)),
                ("MemoryLow", Value::U64(500)),
                ("MemorySwapMax", Value::U64(500)),
                ("CPUWeight", Value::U64(39)),
                ("CPUQuotaPeriodUSec", Value::U64(100_000)),
                ("CPUQuotaPerSecUSec", Value::U64(510_000)),
                ("AllowedCPUs", Value::Bytes(vec![3, 2])),
                ("AllowedMemoryNodes", Value::Bytes(vec![1])),
                ("TasksMax", Value::U64(7)),
            ]
        );
        assert!(!cpus(&of(all, Version::V2, 239)));
        let found = of(all, Version::V1, 252);
        assert_eq!(found[0], ("MemoryLimit", Value::U64(1000)));
        assert_eq!(found[1], ("CPUShares", Value::U64(1024)));
        assert_eq!(found.last(), Some(&("BlockIOWeight", Value::U64(300))));
        let none = of(
            r#"{"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}"#,
            Version::V2,
            252,
        );
        assert_eq!(none.len(), 4);
        assert!(none.iter().all(|(_, value)| *value == Value::U64(u64::MAX)), "{none:?}");
        assert!(of_resources(&serde_json::from_str(r#"{"cpu": {"cpus": "2-1"}}"#).unwrap(), Version::V2, 252).is_err());
    }

    #[test]
    fn devices_are_nodes_and_groups() {
        let rules = r#"{"devices": [{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "c", "access": "m"}, {"allow": true, "type": "a", "minor": 3}]}"#;
        let text = |text: &str| text.to_owned();
        let pairs = vec![(text("/dev/char/1:3"), text("rw")), (text("char-*"), text("m"))];
        let expected = [("DevicePolicy", Value::Text(text("strict"))), ("DeviceAllow", Value::Pairs(pairs))];
        assert_eq!(of(rules, Version::V2, 252), expected);
        let open = of(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#, Version::V2, 252);
        assert_eq!(open[0], ("DevicePolicy", Value::Text(text("auto"))));
        let table = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  1 ramdisk\n";
        assert_eq!(group(table, "char", 136).as_deref(), Some("pts"));
        assert_eq!(group(table, "block", 1).as_deref(), Some("ramdisk"));
        assert_eq!(group(table, "block", 136), None);
    }
}
