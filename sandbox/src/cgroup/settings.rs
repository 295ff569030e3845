//! The spec's resources as values of control files, for either version.
//!
//! Pure: what is written where is decided here and tested without a cgroup.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::Version;

/// One limit for one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller that has the files.
    pub(super) controller: &'static str,
    /// Files and what to write there: the first that exists counts. None at all where this version has nothing like it.
    pub(super) files: Vec<(String, String)>,
    /// What the user asked for, for messages.
    pub(super) name: &'static str,
    /// What it means where the kernel has none of the files.
    pub(super) absent: Absent,
}

/// What a limit means that the kernel has no file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// That it cannot be had.
    Shortage,
    /// That memory is limited without swap, which is told, as in Docker.
    NoSwap,
    /// Nothing.
    Nothing,
}

/// A limit as the user knows it, for either version.
pub(super) struct Wanted {
    pub(super) controller: String,
    pub(super) name: String,
    /// Whether it is a file of version 2, and the controller of version 1 is of no use.
    pub(super) only_v2: bool,
}

/// Lists which controllers `resources` needs and what for; `block` is what the controller of disks is called here.
pub(super) fn wanted(resources: &LinuxResources, block: &str) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut want = |set: bool, controller: &str, name: &str| {
        if set {
            wanted.push(Wanted { controller: controller.to_owned(), name: name.to_owned(), only_v2: false });
        }
    };
    if let Some(memory) = resources.memory() {
        want(memory.limit().is_some_and(is_limit), "memory", "a memory limit");
        want(memory.swap().is_some_and(is_limit), "memory", "a swap limit");
        want(memory.reservation().is_some_and(is_limit), "memory", "a memory reservation");
        want(memory.kernel().is_some_and(is_limit), "memory", KERNEL);
        want(memory.kernel_tcp().is_some_and(is_limit), "memory", KERNEL_TCP);
        want(memory.swappiness().is_some(), "memory", "a swappiness");
        want(memory.disable_oom_killer() == Some(true), "memory", "a disabled OOM killer");
    }
    if let Some(cpu) = resources.cpu() {
        want(cpu.quota().is_some_and(is_limit) || cpu.period().is_some_and(|period| period > 0), "cpu", "a CPU quota");
        want(cpu.shares().is_some_and(|shares| shares > 0), "cpu", "CPU shares");
        want(cpu.burst().is_some_and(|burst| burst > 0), "cpu", "a CPU burst");
        want(cpu.idle().is_some_and(|idle| idle != 0), "cpu", "an idle CPU class");
        want(cpu.realtime_runtime().is_some_and(|runtime| runtime != 0), "cpu", "a real-time budget");
        want(cpu.cpus().as_ref().is_some_and(|cpus| !cpus.is_empty()), "cpuset", "a CPU set");
        want(cpu.mems().as_ref().is_some_and(|mems| !mems.is_empty()), "cpuset", "a memory node set");
    }
    want(resources.pids().as_ref().is_some_and(|pids| is_limit(pids.limit())), "pids", "a process limit");
    let mut disks = Settings::new(Version::V2);
    disks.block_io(resources.block_io().as_ref());
    for setting in disks.all {
        want(true, block, setting.name);
    }
    want(resources.hugepage_limits().iter().flatten().next().is_some(), "hugetlb", "a huge page limit");
    want(resources.rdma().as_ref().is_some_and(|devices| !devices.is_empty()), "rdma", "an RDMA limit");
    let network = resources.network().as_ref();
    want(network.is_some_and(|network| network.class_id().is_some()), "net_cls", "a network class");
    let priorities = network.and_then(|network| network.priorities().as_ref());
    want(priorities.is_some_and(|list| !list.is_empty()), "net_prio", "a network priority");
    wanted.extend(resources.unified().iter().flatten().filter_map(|(file, _)| {
        let name = format!("{file} of resources.unified");
        Some(Wanted { controller: owner_of_unified(file)?.to_owned(), name, only_v2: true })
    }));
    wanted
}

/// The controller that a file of `resources.unified` belongs to; none for those that every group has.
pub(super) fn owner_of_unified(file: &str) -> Option<&str> {
    file.split_once('.').map(|(owner, _)| owner).filter(|owner| *owner != "cgroup")
}

/// Translates `resources` for a hierarchy of `version`; the caller picks those whose controller it has.
pub(super) fn settings(resources: &LinuxResources, version: Version) -> Vec<Setting> {
    let mut settings = Settings::new(version);
    settings.memory(resources.memory().as_ref());
    settings.cpu(resources.cpu().as_ref());
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        settings.set("pids", "pids.max", max(pids.limit()), "a process limit");
    }
    settings.block_io(resources.block_io().as_ref());
    settings.others(resources);
    settings.all
}

/// The list while it is made.
struct Settings {
    version: Version,
    all: Vec<Setting>,
}

impl Settings {
    fn new(version: Version) -> Self {
        Self { version, all: Vec::new() }
    }

    fn set(&mut self, controller: &'static str, file: &str, value: impl ToString, name: &'static str) {
        self.set_first_of(controller, vec![(file.to_owned(), value.to_string())], name);
    }

    fn set_swap(&mut self, file: &str, value: impl ToString) {
        let files = vec![(file.to_owned(), value.to_string())];
        self.all.push(Setting { controller: "memory", files, name: "a swap limit", absent: Absent::NoSwap });
    }

    fn set_first_of(&mut self, controller: &'static str, files: Vec<(String, String)>, name: &'static str) {
        self.all.push(Setting { controller, files, name, absent: Absent::Shortage });
    }

    /// Something that has no file in this version.
    fn cannot(&mut self, controller: &'static str, name: &'static str) {
        self.set_first_of(controller, Vec::new(), name);
    }

    fn memory(&mut self, memory: Option<&LinuxMemory>) {
        let Some(memory) = memory else { return };
        let limit = memory.limit().filter(|limit| *limit != 0);
        let swap = memory.swap().filter(|swap| *swap != 0);
        let reservation = memory.reservation().filter(|reservation| *reservation != 0);
        // The file of version 1 is there still, and whatever is written to it has no effect since Linux 5.16.
        if memory.kernel().is_some_and(is_limit) {
            self.cannot("memory", KERNEL);
        }
        let kernel_tcp = memory.kernel_tcp().filter(|limit| is_limit(*limit));
        // Every kernel we run on counts a group together with those below it.
        if memory.use_hierarchy() == Some(false) {
            self.cannot("memory", "a memory limit without those of groups below");
        }
        if self.version == Version::V2 {
            if let Some(limit) = limit {
                self.set("memory", "memory.max", max(limit), "a memory limit");
            }
            if let Some(swap) = swap {
                // The spec counts memory plus swap, v2 counts swap alone.
                let swap_only = if swap < 0 { -1 } else { (swap - limit.unwrap_or(0).max(0)).max(0) };
                self.set_swap("memory.swap.max", max(swap_only));
            }
            if let Some(reservation) = reservation {
                self.set("memory", "memory.low", max(reservation), "a memory reservation");
            }
            for (asked, name) in [
                (kernel_tcp.is_some(), KERNEL_TCP),
                (memory.swappiness().is_some(), "a swappiness"),
                (memory.disable_oom_killer() == Some(true), "a disabled OOM killer"),
            ] {
                if asked {
                    self.cannot("memory", name);
                }
            }
            return;
        }
        if let Some(limit) = limit {
            self.set("memory", "memory.limit_in_bytes", limit, "a memory limit");
        }
        if let Some(swap) = swap {
            self.set_swap("memory.memsw.limit_in_bytes", swap);
        }
        if let Some(reservation) = reservation {
            self.set("memory", "memory.soft_limit_in_bytes", reservation, "a memory reservation");
        }
        if let Some(kernel_tcp) = kernel_tcp {
            self.set("memory", "memory.kmem.tcp.limit_in_bytes", kernel_tcp, KERNEL_TCP);
        }
        if let Some(swappiness) = memory.swappiness() {
            self.set("memory", "memory.swappiness", swappiness, "a swappiness");
        }
        if memory.disable_oom_killer() == Some(true) {
            self.set("memory", "memory.oom_control", "1", "a disabled OOM killer");
        }
    }

    fn cpu(&mut self, cpu: Option<&LinuxCpu>) {
        let Some(cpu) = cpu else { return };
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        let shares = cpu.shares().filter(|shares| *shares != 0);
        let real_time = [
            ("cpu.rt_period_us", cpu.realtime_period().map(i128::from), "a real-time period"),
            ("cpu.rt_runtime_us", cpu.realtime_runtime().map(i128::from), "a real-time budget"),
        ];
        let v2 = self.version == Version::V2;
        if v2 {
            if quota.is_some() || period.is_some() {
                let value = format!("{} {}", quota.map_or_else(|| "max".into(), max), period.unwrap_or(DEFAULT_PERIOD));
                self.set("cpu", "cpu.max", value, "a CPU quota");
            }
            if let Some(shares) = shares {
                self.set("cpu", "cpu.weight", weight_of(shares), "CPU shares");
            }
        } else {
            // The period first: the kernel checks the quota against it.
            if let Some(period) = period {
                self.set("cpu", "cpu.cfs_period_us", period, "a CPU period");
            }
            if let Some(quota) = quota {
                self.set("cpu", "cpu.cfs_quota_us", quota, "a CPU quota");
            }
        }
        if let Some(burst) = cpu.burst() {
            self.set("cpu", if v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" }, burst, "a CPU burst");
        }
        if let Some(shares) = shares.filter(|_| !v2) {
            self.set("cpu", "cpu.shares", shares, "CPU shares");
        }
        if let Some(idle) = cpu.idle() {
            self.set("cpu", "cpu.idle", idle, "an idle CPU class");
        }
        for (file, value, name) in real_time {
            match value.filter(|value| *value != 0) {
                Some(_) if v2 => self.cannot("cpu", name),
                Some(value) => self.set("cpu", file, value, name),
                None => {}
            }
        }
        if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
            self.set("cpuset", "cpuset.cpus", cpus, "a CPU set");
        }
        if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
            self.set("cpuset", "cpuset.mems", mems, "a memory node set");
        }
    }

    fn block_io(&mut self, io: Option<&LinuxBlockIo>) {
        let Some(io) = io else { return };
        let throttles = [
            (io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps"),
            (io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps"),
            (io.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "riops"),
            (io.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "wiops"),
        ];
        for (devices, v1_file, v2_key) in throttles {
            for device in devices.iter().flatten() {
                let number = format!("{}:{}", device.major(), device.minor());
                match (self.version, device.rate()) {
                    // No limit is 0 in the spec as in version 1, and a word in version 2.
                    (Version::V2, 0) => self.set("io", "io.max", format!("{number} {v2_key}=max"), "an I/O limit"),
                    (Version::V2, rate) => {
                        self.set("io", "io.max", format!("{number} {v2_key}={rate}"), "an I/O limit")
                    }
                    (Version::V1, rate) => self.set("blkio", v1_file, format!("{number} {rate}"), "an I/O limit"),
                }
            }
        }
        let devices = io.weight_device();
        self.io_weight(None, io.weight());
        self.io_leaf_weight(None, io.leaf_weight());
        for device in devices.iter().flatten() {
            let number = format!("{}:{} ", device.major(), device.minor());
            self.io_weight(Some(&number), device.weight());
            self.io_leaf_weight(Some(&number), device.leaf_weight());
        }
    }

    /// A share of a disk, or of all. Who keeps to it is the disk's scheduler: BFQ, in version 2 also the cost model, and in
    /// old kernels CFQ, with a file each. As in runc, BFQ's is preferred in version 2.
    fn io_weight(&mut self, device: Option<&str>, weight: Option<u16>) {
        let Some(weight) = weight.filter(|weight| *weight != 0) else { return };
        let number = device.unwrap_or_default();
        let name = if device.is_some() { "an I/O weight of a device" } else { "an I/O weight" };
        let own = format!("{number}{weight}");
        if self.version == Version::V2 {
            // 10..1000 to 1..10000, as the kernel's documentation maps them.
            let of_model = 1 + (u64::from(weight).max(10) - 10) * 9999 / 990;
            let files = [("io.bfq.weight", own), ("io.weight", format!("{number}{of_model}"))];
            self.set_first_of("io", files.map(|(file, value)| (file.to_owned(), value)).to_vec(), name);
        } else {
            let end = if device.is_some() { "weight_device" } else { "weight" };
            let files = ["blkio.", "blkio.bfq."].map(|start| (format!("{start}{end}"), own.clone()));
            self.set_first_of("blkio", files.to_vec(), name);
        }
    }

    /// The share of the group's own processes beside the groups below it, which only CFQ knew.
    fn io_leaf_weight(&mut self, device: Option<&str>, weight: Option<u16>) {
        let Some(weight) = weight.filter(|weight| *weight != 0) else { return };
        let number = device.unwrap_or_default();
        let (file, name) = match device {
            Some(_) => ("blkio.leaf_weight_device", "an I/O leaf weight of a device"),
            None => ("blkio.leaf_weight", "an I/O leaf weight"),
        };
        match self.version {
            Version::V2 => self.cannot("io", name),
            Version::V1 => self.set("blkio", file, format!("{number}{weight}"), name),
        }
    }

    fn others(&mut self, resources: &LinuxResources) {
        let end = if self.version == Version::V2 { "max" } else { "limit_in_bytes" };
        for limit in resources.hugepage_limits().iter().flatten() {
            let (size, name) = (limit.page_size(), "a huge page limit");
            self.set("hugetlb", &format!("hugetlb.{size}.{end}"), limit.limit(), name);
            // What is reserved is counted apart, since Linux 5.7.
            let files = vec![(format!("hugetlb.{size}.rsvd.{end}"), limit.limit().to_string())];
            self.all.push(Setting { controller: "hugetlb", files, name, absent: Absent::Nothing });
        }
        for (device, limits) in resources.rdma().iter().flatten() {
            let keys = [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())];
            let given = keys.into_iter().filter_map(|(key, limit)| Some(format!(" {key}={}", limit?)));
            self.set("rdma", "rdma.max", format!("{device}{}", given.collect::<String>()), "an RDMA limit");
        }
        let Some(network) = resources.network() else { return };
        if let Some(class) = network.class_id() {
            self.set("net_cls", "net_cls.classid", class, "a network class");
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            self.set("net_prio", "net_prio.ifpriomap", value, "a network priority");
        }
    }
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

const KERNEL: &str = "a kernel memory limit";
const KERNEL_TCP: &str = "a limit of TCP buffers";

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

    fn of(resources: &LinuxResources, version: Version) -> Vec<String> {
        let line = |setting: Setting| {
            let files: Vec<_> = setting.files.iter().map(|(file, value)| format!("{file}={value}")).collect();
            if files.is_empty() { format!("{} cannot be", setting.name) } else { files.join(" or ") }
        };
        settings(resources, version).into_iter().map(line).collect()
    }

    fn listing(version: Version) -> Vec<String> {
        of(&example(), version)
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
        assert_eq!(of(&unlimited, Version::V2), ["pids.max=max"]);
        assert!(wanted(&unlimited, "io").is_empty());
        assert_eq!(wanted(&example(), "io").len(), 6);
    }

    #[test]
    fn classes_and_devices_of_networks_are_wanted_and_written() {
        let json = r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
            "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]}}"#;
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        assert_eq!(
            of(&resources, Version::V1),
            ["rdma.max=mlx5_1 hca_handle=3 hca_object=10000", "net_cls.classid=1048577", "net_prio.ifpriomap=eth0 500"]
        );
        assert_eq!(wanted(&resources, "blkio").len(), 3);
    }

    #[test]
    fn disks_have_weights_and_limits_in_either_version() {
        let json = r#"{"blockIO": {"weight": 10, "leafWeight": 20,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 500, "leafWeight": 300}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 600}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}}"#;
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        assert_eq!(
            of(&resources, Version::V1),
            [
                "blkio.throttle.read_bps_device=8:16 600",
                "blkio.throttle.write_iops_device=8:16 0",
                "blkio.weight=10 or blkio.bfq.weight=10",
                "blkio.leaf_weight=20",
                "blkio.weight_device=8:0 500 or blkio.bfq.weight_device=8:0 500",
                "blkio.leaf_weight_device=8:0 300",
            ]
        );
        assert_eq!(
            of(&resources, Version::V2),
            [
                "io.max=8:16 rbps=600",
                "io.max=8:16 wiops=max",
                "io.bfq.weight=10 or io.weight=1",
                "an I/O leaf weight cannot be",
                "io.bfq.weight=8:0 500 or io.weight=8:0 4950",
                "an I/O leaf weight of a device cannot be",
            ]
        );
        assert!(wanted(&resources, "blkio").iter().all(|limit| limit.controller == "blkio"));
        assert_eq!(wanted(&resources, "blkio").len(), 6);
    }

    #[test]
    fn what_version_2_has_no_file_for_is_known() {
        let json = r#"{"memory": {"kernel": 5, "kernelTCP": 6, "swappiness": 0, "disableOOMKiller": true,
            "useHierarchy": false}, "cpu": {"realtimePeriod": 7, "realtimeRuntime": 8}}"#;
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let of_2 = of(&resources, Version::V2);
        assert!(of_2.len() == 7 && of_2.iter().all(|line| line.ends_with("cannot be")), "{of_2:?}");
        assert_eq!(
            of(&resources, Version::V1),
            [
                "a kernel memory limit cannot be",
                "a memory limit without those of groups below cannot be",
                "memory.kmem.tcp.limit_in_bytes=6",
                "memory.swappiness=0",
                "memory.oom_control=1",
                "cpu.rt_period_us=7",
                "cpu.rt_runtime_us=8",
            ]
        );
        let usual: LinuxResources =
            serde_json::from_str(r#"{"memory": {"kernel": -1, "useHierarchy": true, "disableOOMKiller": false}}"#)
                .unwrap();
        assert!(of(&usual, Version::V2).is_empty());
    }

    #[test]
    fn files_of_version_2_name_their_controller() {
        assert_eq!(owner_of_unified("memory.max"), Some("memory"));
        assert_eq!(owner_of_unified("hugetlb.2MB.max"), Some("hugetlb"));
        assert_eq!(owner_of_unified("cgroup.max.depth"), None);
        let unified: LinuxResources =
            serde_json::from_str(r#"{"unified": {"memory.high": "1", "cgroup.max.depth": "2"}}"#).unwrap();
        let wanted = wanted(&unified, "io");
        assert!(matches!(&wanted[..], [Wanted { controller, only_v2: true, .. }] if controller == "memory"));
    }

    #[test]
    fn weights_cover_both_ends() {
        assert_eq!((weight_of(2), weight_of(1024), weight_of(262_144)), (1, 39, 10_000));
    }
}
