//! The spec's resources as values of control files, for either version.
//!
//! Pure: what is written where is decided here and tested without a cgroup.

use oci_spec::runtime::LinuxResources;

use super::Version;

/// One value for one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller that has the file.
    pub(super) controller: &'static str,
    /// The file.
    pub(super) file: String,
    /// The value.
    pub(super) value: String,
    /// What the user asked for, for messages.
    pub(super) name: &'static str,
}

/// A limit as the user knows it, for either version.
pub(super) struct Wanted {
    pub(super) controller: &'static str,
    pub(super) name: &'static str,
}

/// Lists which controllers `resources` needs and what for.
pub(super) fn wanted(resources: &LinuxResources) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut want = |set: bool, controller, name| {
        if set {
            wanted.push(Wanted { controller, name });
        }
    };
    if let Some(memory) = resources.memory() {
        want(memory.limit().is_some_and(is_limit), "memory", "a memory limit");
        want(memory.swap().is_some_and(is_limit), "memory", "a swap limit");
        want(memory.reservation().is_some_and(is_limit), "memory", "a memory reservation");
        want(memory.swappiness().is_some(), "memory", "a swappiness");
        want(memory.disable_oom_killer() == Some(true), "memory", "a disabled OOM killer");
    }
    if let Some(cpu) = resources.cpu() {
        want(cpu.quota().is_some_and(is_limit) || cpu.period().is_some_and(|period| period > 0), "cpu", "a CPU quota");
        want(cpu.shares().is_some_and(|shares| shares > 0), "cpu", "CPU shares");
        want(cpu.realtime_runtime().is_some_and(|runtime| runtime != 0), "cpu", "a real-time budget");
        want(cpu.cpus().as_ref().is_some_and(|cpus| !cpus.is_empty()), "cpuset", "a CPU set");
        want(cpu.mems().as_ref().is_some_and(|mems| !mems.is_empty()), "cpuset", "a memory node set");
    }
    want(resources.pids().as_ref().is_some_and(|pids| is_limit(pids.limit())), "pids", "a process limit");
    want(resources.hugepage_limits().iter().flatten().next().is_some(), "hugetlb", "a huge page limit");
    want(resources.rdma().as_ref().is_some_and(|devices| !devices.is_empty()), "rdma", "an RDMA limit");
    let network = resources.network().as_ref();
    want(network.is_some_and(|network| network.class_id().is_some()), "net_cls", "a network class");
    let priorities = network.and_then(|network| network.priorities().as_ref());
    want(priorities.is_some_and(|list| !list.is_empty()), "net_prio", "a network priority");
    wanted
}

/// Translates `resources` for a hierarchy of `version`; the caller picks those whose controller it has.
pub(super) fn settings(resources: &LinuxResources, version: Version) -> Vec<Setting> {
    let mut all = Vec::new();
    let mut set = |controller, file: &str, value: String, name| {
        all.push(Setting { controller, file: file.to_owned(), value, name });
    };
    let v2 = version == Version::V2;
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().filter(|limit| *limit != 0);
        let swap = memory.swap().filter(|swap| *swap != 0);
        if v2 {
            if let Some(limit) = limit {
                set("memory", "memory.max", max(limit), "a memory limit");
            }
            if let Some(swap) = swap {
                // The spec counts memory plus swap, v2 counts swap alone.
                let swap_only = if swap < 0 { -1 } else { (swap - limit.unwrap_or(0).max(0)).max(0) };
                set("memory", "memory.swap.max", max(swap_only), "a swap limit");
            }
            if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
                set("memory", "memory.low", max(reservation), "a memory reservation");
            }
        } else {
            if let Some(limit) = limit {
                set("memory", "memory.limit_in_bytes", limit.to_string(), "a memory limit");
            }
            if let Some(swap) = swap {
                set("memory", "memory.memsw.limit_in_bytes", swap.to_string(), "a swap limit");
            }
            if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
                set("memory", "memory.soft_limit_in_bytes", reservation.to_string(), "a memory reservation");
            }
            if let Some(swappiness) = memory.swappiness() {
                set("memory", "memory.swappiness", swappiness.to_string(), "a swappiness");
            }
            if memory.disable_oom_killer() == Some(true) {
                set("memory", "memory.oom_control", "1".into(), "a disabled OOM killer");
            }
        }
    }
    if let Some(cpu) = resources.cpu() {
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        let shares = cpu.shares().filter(|shares| *shares != 0);
        if v2 {
            if quota.is_some() || period.is_some() {
                let value = format!("{} {}", quota.map_or_else(|| "max".into(), max), period.unwrap_or(DEFAULT_PERIOD));
                set("cpu", "cpu.max", value, "a CPU quota");
            }
            if let Some(shares) = shares {
                set("cpu", "cpu.weight", weight_of(shares).to_string(), "CPU shares");
            }
            if let Some(idle) = cpu.idle() {
                set("cpu", "cpu.idle", idle.to_string(), "an idle CPU class");
            }
            if let Some(burst) = cpu.burst() {
                set("cpu", "cpu.max.burst", burst.to_string(), "a CPU burst");
            }
        } else {
            // The period first: the kernel checks the quota against it.
            if let Some(period) = period {
                set("cpu", "cpu.cfs_period_us", period.to_string(), "a CPU period");
            }
            if let Some(quota) = quota {
                set("cpu", "cpu.cfs_quota_us", quota.to_string(), "a CPU quota");
            }
            if let Some(burst) = cpu.burst() {
                set("cpu", "cpu.cfs_burst_us", burst.to_string(), "a CPU burst");
            }
            if let Some(shares) = shares {
                set("cpu", "cpu.shares", shares.to_string(), "CPU shares");
            }
            if let Some(idle) = cpu.idle() {
                set("cpu", "cpu.idle", idle.to_string(), "an idle CPU class");
            }
            if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
                set("cpu", "cpu.rt_period_us", period.to_string(), "a real-time period");
            }
            if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
                set("cpu", "cpu.rt_runtime_us", runtime.to_string(), "a real-time budget");
            }
        }
        if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
            set("cpuset", "cpuset.cpus", cpus.clone(), "a CPU set");
        }
        if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
            set("cpuset", "cpuset.mems", mems.clone(), "a memory node set");
        }
    }
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        set("pids", "pids.max", max(pids.limit()), "a process limit");
    }
    if let Some(io) = resources.block_io() {
        let throttles = [
            (io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps"),
            (io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps"),
            (io.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "riops"),
            (io.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "wiops"),
        ];
        for (devices, v1_file, v2_key) in throttles {
            for device in devices.iter().flatten() {
                let number = format!("{}:{}", device.major(), device.minor());
                if v2 {
                    set("io", "io.max", format!("{number} {v2_key}={}", device.rate()), "an I/O limit");
                } else {
                    set("blkio", v1_file, format!("{number} {}", device.rate()), "an I/O limit");
                }
            }
        }
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            if v2 {
                // 10..1000 to 1..10000, as the kernel's documentation maps them.
                let weight = 1 + (u64::from(weight).max(10) - 10) * 9999 / 990;
                set("io", "io.weight", weight.to_string(), "an I/O weight");
            } else {
                set("blkio", "blkio.weight", weight.to_string(), "an I/O weight");
            }
        }
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let file = if v2 {
            format!("hugetlb.{}.max", limit.page_size())
        } else {
            format!("hugetlb.{}.limit_in_bytes", limit.page_size())
        };
        set("hugetlb", &file, limit.limit().to_string(), "a huge page limit");
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let keys = [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())];
        let given = keys.into_iter().filter_map(|(key, limit)| Some(format!(" {key}={}", limit?)));
        set("rdma", "rdma.max", format!("{device}{}", given.collect::<String>()), "an RDMA limit");
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            set("net_cls", "net_cls.classid", class.to_string(), "a network class");
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            set("net_prio", "net_prio.ifpriomap", value, "a network priority");
        }
    }
    all
}

/// -1 is no limit.
fn is_limit(value: i64) -> bool {
    value > 0
}

/// v2 writes "no limit" as a word.
fn max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// v1 shares (2..262144, 1024 usual) as v2 weight (1..10000, 100 usual), the mapping that runtimes agree on.
pub(super) fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

const DEFAULT_PERIOD: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

    fn example() -> LinuxResources {
        LinuxResourcesBuilder::default()
            .memory(LinuxMemoryBuilder::default().limit(64 << 20).swap(128 << 20).build().unwrap())
            .cpu(
                LinuxCpuBuilder::default().quota(50_000).period(100_000_u64).shares(512_u64).cpus("0").build().unwrap(),
            )
            .pids(LinuxPidsBuilder::default().limit(9).build().unwrap())
            .build()
            .unwrap()
    }

    fn listing(version: Version) -> Vec<String> {
        settings(&example(), version).iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    #[test]
    fn v1_files() {
        assert_eq!(
            listing(Version::V1),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=134217728",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpu.shares=512",
                "cpuset.cpus=0",
                "pids.max=9"
            ]
        );
    }

    #[test]
    fn v2_files() {
        assert_eq!(
            listing(Version::V2),
            [
                "memory.max=67108864",
                "memory.swap.max=67108864",
                "cpu.max=50000 100000",
                "cpu.weight=20",
                "cpuset.cpus=0",
                "pids.max=9"
            ]
        );
    }

    #[test]
    fn unlimited_is_a_word_in_v2_and_no_limit_wants_no_controller() {
        let unlimited = LinuxResourcesBuilder::default()
            .pids(LinuxPidsBuilder::default().limit(-1).build().unwrap())
            .build()
            .unwrap();
        assert_eq!(settings(&unlimited, Version::V2)[0].value, "max");
        assert!(wanted(&unlimited).is_empty());
        assert_eq!(wanted(&example()).len(), 6);
    }

    #[test]
    fn classes_and_devices_of_networks_are_wanted_and_written() {
        let json = r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
            "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]}}"#;
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let listing: Vec<_> = settings(&resources, Version::V1)
            .iter()
            .map(|setting| format!("{} {}={}", setting.controller, setting.file, setting.value))
            .collect();
        assert_eq!(
            listing,
            [
                "rdma rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
                "net_cls net_cls.classid=1048577",
                "net_prio net_prio.ifpriomap=eth0 500"
            ]
        );
        assert_eq!(wanted(&resources).len(), 3);
    }

    #[test]
    fn weights_cover_both_ends() {
        assert_eq!((weight_of(2), weight_of(1024), weight_of(262_144)), (1, 39, 10_000));
    }
}
