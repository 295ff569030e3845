//! What a process asks of the kernel's schedulers: CPU, disk and memory.

use oci_spec::runtime::{
    IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Scheduler,
    Spec,
};
use rustix::thread::CpuSet;
use strata_sys::scheduling::SchedulingAttributes;

use crate::SpawnError;

/// Settings that the child makes for itself.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    pub(crate) scheduling: Option<SchedulingAttributes>,
    pub(crate) io_priority: Option<u16>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
}

/// Mode with flags, and a bit for each node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    pub(crate) mode: u32,
    pub(crate) nodes: Vec<u64>,
}

/// The CPUs of a process that joins a container: until it is in the container's cgroup, and afterwards.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    pub(crate) initial: Option<CpuSet>,
    pub(crate) last: Option<CpuSet>,
}

impl Tuning {
    /// Reads `process.scheduler`, `process.ioPriority` and `linux.memoryPolicy`.
    pub(crate) fn new(spec: &Spec) -> Result<Self, SpawnError> {
        let process = spec.process().as_ref();
        let scheduling = process.and_then(|process| process.scheduler().as_ref()).map(scheduling).transpose()?;
        let io_priority = match process.and_then(|process| process.io_priority().as_ref()) {
            None => None,
            Some(wanted) => {
                let class = match wanted.class() {
                    IOPriorityClass::IoprioClassRt => 1,
                    IOPriorityClass::IoprioClassBe => 2,
                    IOPriorityClass::IoprioClassIdle => 3,
                };
                let level = u16::try_from(wanted.priority()).ok().filter(|level| *level < 8);
                let level = level.ok_or_else(|| invalid("process.ioPriority.priority", wanted.priority()))?;
                Some(class << 13 | level)
            }
        };
        let memory_policy = spec.linux().as_ref().and_then(|linux| linux.memory_policy().as_ref());
        let memory_policy = memory_policy.map(memory_policy_of).transpose()?;
        Ok(Self { scheduling, io_priority, memory_policy })
    }
}

impl Affinity {
    /// Reads `process.execCPUAffinity`.
    pub(crate) fn new(spec: &Spec) -> Result<Self, SpawnError> {
        let wanted = spec.process().as_ref().and_then(|process| process.exec_cpu_affinity().as_ref());
        let Some(wanted) = wanted else { return Ok(Self::default()) };
        let set = |field: &str, text: &Option<String>| -> Result<Option<CpuSet>, SpawnError> {
            let Some(text) = text.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
            let numbers = list(text, CpuSet::MAX_CPU).ok_or_else(|| invalid(field, text))?;
            let mut set = CpuSet::new();
            numbers.into_iter().for_each(|cpu| set.set(cpu));
            Ok(Some(set))
        };
        Ok(Self {
            initial: set("process.execCPUAffinity.initial", wanted.initial())?,
            last: set("process.execCPUAffinity.final", wanted.cpu_affinity_final())?,
        })
    }
}

fn scheduling(wanted: &Scheduler) -> Result<SchedulingAttributes, SpawnError> {
    let (policy, real_time, deadline) = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => (0, false, false),
        LinuxSchedulerPolicy::SchedFifo => (1, true, false),
        LinuxSchedulerPolicy::SchedRr => (2, true, false),
        LinuxSchedulerPolicy::SchedBatch => (3, false, false),
        LinuxSchedulerPolicy::SchedIdle => (5, false, false),
        LinuxSchedulerPolicy::SchedDeadline => (6, false, true),
        // Linux has the number and no such policy.
        LinuxSchedulerPolicy::SchedIso => return Err(invalid("process.scheduler.policy", "SCHED_ISO")),
    };
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(invalid("process.scheduler.nice", nice));
    }
    let priority = wanted.priority().unwrap_or(0);
    let range = if real_time { 1..=99 } else { 0..=0 };
    if !range.contains(&priority) {
        return Err(invalid("process.scheduler.priority", priority));
    }
    let times = [
        ("process.scheduler.runtime", wanted.runtime()),
        ("process.scheduler.deadline", wanted.deadline()),
        ("process.scheduler.period", wanted.period()),
    ];
    if let Some((field, time)) = times.into_iter().find(|(_, time)| !deadline && time.is_some_and(|time| time > 0)) {
        return Err(invalid(field, time.unwrap_or(0)));
    }
    let mut flags = 0;
    for flag in wanted.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            // The specification has no field for their values.
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return Err(invalid("process.scheduler.flags", flag));
            }
        };
    }
    Ok(SchedulingAttributes {
        policy,
        flags,
        nice,
        priority: priority.unsigned_abs(),
        runtime: wanted.runtime().unwrap_or(0),
        deadline: wanted.deadline().unwrap_or(0),
        period: wanted.period().unwrap_or(0),
    })
}

fn memory_policy_of(wanted: &oci_spec::runtime::LinuxMemoryPolicy) -> Result<MemoryPolicy, SpawnError> {
    let mut mode = match wanted.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    for flag in wanted.flags().iter().flatten() {
        mode |= match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        };
    }
    let text = wanted.nodes().as_deref().unwrap_or_default();
    let numbers = match text {
        "" => Vec::new(),
        text => list(text, MAX_NODES).ok_or_else(|| invalid("linux.memoryPolicy.nodes", text))?,
    };
    let mut nodes = vec![0_u64; numbers.iter().max().map_or(0, |last| last / 64 + 1)];
    for number in numbers {
        nodes[number / 64] |= 1 << (number % 64);
    }
    Ok(MemoryPolicy { mode, nodes })
}

/// Reads `0-3,7`, numbers below `limit`.
fn list(text: &str, limit: usize) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= limit {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn invalid(field: &str, value: impl std::fmt::Display) -> SpawnError {
    SpawnError::Invalid(format!("{field}: {value} is out of range"))
}

/// As many as kernels are built for at most.
const MAX_NODES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning(text: &str) -> Result<Tuning, String> {
        let base = r#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":0,"gid":0}"#;
        let spec: Spec = serde_json::from_str(&format!("{base}{text}")).unwrap();
        Tuning::new(&spec).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_become_the_kernel_s_numbers() {
        let found = tuning(
            r#","scheduler":{"policy":"SCHED_FIFO","priority":5,"flags":["SCHED_RESET_ON_FORK"]},
               "ioPriority":{"class":"IOPRIO_CLASS_BE","priority":6}},
               "linux":{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"0,64-65","flags":["MPOL_F_STATIC_NODES"]}}}"#,
        )
        .unwrap();
        let scheduling = found.scheduling.unwrap();
        assert_eq!((scheduling.policy, scheduling.priority, scheduling.flags), (1, 5, 1));
        assert_eq!(found.io_priority, Some(2 << 13 | 6));
        assert_eq!(found.memory_policy, Some(MemoryPolicy { mode: 2 | 1 << 15, nodes: vec![1, 3] }));
    }

    #[test]
    fn what_the_kernel_would_refuse_names_its_field() {
        for (text, field) in [
            (r#","scheduler":{"policy":"SCHED_OTHER","priority":5}}}"#, "process.scheduler.priority"),
            (r#","scheduler":{"policy":"SCHED_FIFO"}}}"#, "process.scheduler.priority"),
            (r#","scheduler":{"policy":"SCHED_OTHER","nice":-21}}}"#, "process.scheduler.nice"),
            (r#","scheduler":{"policy":"SCHED_BATCH","runtime":1}}}"#, "process.scheduler.runtime"),
            (r#","scheduler":{"policy":"SCHED_ISO"}}}"#, "process.scheduler.policy"),
            (r#","ioPriority":{"class":"IOPRIO_CLASS_RT","priority":8}}}"#, "process.ioPriority.priority"),
            (r#"},"linux":{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"3-1"}}}"#, "linux.memoryPolicy.nodes"),
            (r#"},"linux":{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"9999"}}}"#, "linux.memoryPolicy.nodes"),
        ] {
            let error = tuning(text).err().unwrap_or_default();
            assert!(error.contains(field), "{text}: {error:?}");
        }
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(list("0-2,5", 8), Some(vec![0, 1, 2, 5]));
        for text in ["", "a", "2-1", "8", "1,,2", "-1"] {
            assert_eq!(list(text, 8), None, "{text}");
        }
    }
}
