//! The specification field by field: what a program finds in its container, the files of its cgroup, and what is refused.
//!
//! Where a peer does otherwise, the table says how; `docs/compat.md` explains it.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use strata_tests::tier::{Need, Suite};

use super::bundle::{Bench, Runtime, each};

pub(super) fn register(suite: &mut Suite, needs: &[Need]) {
    suite.add("runtime::privileged_fields_that_a_program_sees", needs, || each(seen_inside));
    // Files of version 2 are tested below the harness.
    let of_version_1 = [needs, &[Need::CgroupV1]].concat();
    suite.add("runtime::privileged_fields_of_resources", &of_version_1, || each(resources));
    suite.add("runtime::privileged_fields_that_are_refused", needs, || each(refused));
}

use Runtime::{Crun, Runc};

/// What a shell prints about a field, and which peer has it otherwise.
type Field = (&'static str, &'static str, &'static str, Otherwise);

type Otherwise = &'static [(Runtime, &'static str)];

const SEEN: &[Field] = &[
    ("hostname", "hostname", "bench", &[]),
    ("domainname", "cat /proc/sys/kernel/domainname", "home.example", &[(Runc, "(none)")]),
    ("root.readonly", "touch /x 2>/dev/null || echo read-only", "read-only", &[]),
    ("process.cwd", "pwd", "/tmp", &[]),
    ("process.env", "echo $FROM", "config", &[]),
    ("process.user.umask", "umask", "0027", &[]),
    ("process.user.additionalGids", "id -G", "0 7 8", &[]),
    ("process.rlimits", "echo $(ulimit -n) $(ulimit -Hn)", "100 200", &[]),
    ("process.oomScoreAdj", "cat /proc/self/oom_score_adj", "500", &[]),
    ("process.noNewPrivileges", "grep NoNewPrivs /proc/self/status | tr -d '\\t'", "NoNewPrivs:1", &[]),
    ("process.capabilities.effective", "grep CapEff /proc/self/status | tr -d '\\t'", "CapEff:0000000000000020", &[]),
    ("process.capabilities.bounding", "grep CapBnd /proc/self/status | tr -d '\\t'", "CapBnd:00000000000000e3", &[]),
    ("process.capabilities.inheritable", "grep CapInh /proc/self/status | tr -d '\\t'", "CapInh:0000000000000020", &[]),
    ("process.capabilities.ambient", "grep CapAmb /proc/self/status | tr -d '\\t'", "CapAmb:0000000000000020", &[]),
    ("process.scheduler", "cut -d' ' -f41 /proc/self/stat", "3", &[(Runc, "0"), (Crun, "0")]),
    ("process.ioPriority", "ionice -p $$ | cut -d: -f1", "best-effort", &[(Runc, "none"), (Crun, "none")]),
    (
        "mounts of tmpfs",
        "stat -c %a /root; df -k /root | awk 'NR > 1 { print $2 }'",
        "1700\n1024",
        &[(Runc, "755\n1024")],
    ),
    (
        "options of mounts",
        "awk '$2 == \"/root\" { print $4 }' /proc/mounts | grep -o nosuid,noexec",
        "nosuid,noexec",
        &[],
    ),
    ("linux.maskedPaths", "cat /proc/kallsyms | wc -c", "0", &[]),
    ("linux.readonlyPaths", "echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo read-only", "read-only", &[]),
    ("linux.sysctl", "cat /proc/sys/kernel/shm_rmid_forced", "1", &[]),
    ("linux.devices", "stat -c '%F %t:%T %a %u:%g' /dev/one", "character special file 1:5 640 33:40", &[]),
    ("linux.rootfsPropagation", "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo", "-", &[]),
    ("linux.personality.domain", "uname -m", "i686", &[(Runc, "x86_64")]),
    ("linux.seccomp", "mkdir /tmp/x 2>&1 | grep -o 'Input/output error'", "Input/output error", &[]),
];

fn seen_inside(bench: &mut Bench) -> Result<()> {
    let script: String = SEEN.iter().map(|(name, command, ..)| format!("echo '= {name}'; {command}\n")).collect();
    bench.configure(|spec| {
        spec["ociVersion"] = json!("1.0.2");
        spec["domainname"] = json!("home.example");
        spec["root"]["readonly"] = json!(true);
        let process = &mut spec["process"];
        process["args"] = json!(["sh", "-c", script]);
        process["cwd"] = json!("/tmp");
        process["user"] = json!({ "uid": 0, "gid": 0, "umask": 0o27, "additionalGids": [7, 8] });
        process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
        process["oomScoreAdj"] = json!(500);
        process["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 7 });
        process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        let kill = json!(["CAP_KILL"]);
        process["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"],
            "effective": kill, "permitted": kill, "inheritable": kill, "ambient": kill,
        });
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            let options = ["nosuid", "noexec", "mode=1700", "size=1m"];
            mounts.push(json!({ "destination": "/root", "type": "tmpfs", "source": "tmpfs", "options": options }));
            mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
        }
        let linux = &mut spec["linux"];
        linux["maskedPaths"] = json!(["/proc/kallsyms"]);
        linux["readonlyPaths"] = json!(["/proc/sys"]);
        linux["sysctl"] = json!({ "kernel.shm_rmid_forced": "1" });
        linux["rootfsPropagation"] = json!("private");
        linux["personality"] = json!({ "domain": "LINUX32" });
        linux["devices"] = json!([{
            "path": "/dev/one", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 33, "gid": 40
        }]);
        let names = ["mkdir", "mkdirat"];
        linux["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 5 }],
        });
    })?;
    let id = bench.id();
    let text = bench.ok(&["run", &id])?;
    let mut found = text.split("= ").skip(1).filter_map(|part| part.split_once('\n'));
    let mut wrong = Vec::new();
    for (name, _, expected, otherwise) in SEEN {
        let (found_name, value) = found.next().with_context(|| format!("nothing about {name}: {text}"))?;
        let of_peer = otherwise.iter().find(|(runtime, _)| *runtime == bench.runtime).map(|(_, value)| *value);
        let expected = match (*name, cfg!(target_arch = "x86_64")) {
            ("linux.personality.domain", false) => value.trim_end(),
            _ => of_peer.unwrap_or(expected),
        };
        if found_name != *name || value.trim_end() != expected {
            wrong.push(format!("{name} is {value:?}, not {expected:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A controller with a file of version 1, and what that has to say.
type Limit = (&'static str, &'static str, &'static str, Otherwise);

const LIMITS: &[Limit] = &[
    ("memory", "memory.limit_in_bytes", "67108864", &[]),
    ("memory", "memory.soft_limit_in_bytes", "33554432", &[]),
    ("memory", "memory.swappiness", "33", &[]),
    ("cpu", "cpu.shares", "512", &[]),
    ("cpu", "cpu.cfs_quota_us", "40000", &[]),
    ("cpu", "cpu.cfs_period_us", "80000", &[]),
    ("cpuset", "cpuset.cpus", "0", &[]),
    ("cpuset", "cpuset.mems", "0", &[]),
    ("pids", "pids.max", "44", &[]),
    ("blkio", "blkio.bfq.weight", "300", &[(Crun, "100")]),
];

fn resources(bench: &mut Bench) -> Result<()> {
    let runtime = bench.runtime;
    bench.configure(|spec| {
        spec["linux"]["resources"] = json!({
            "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swappiness": 33 },
            "cpu": { "shares": 512, "quota": 40_000, "period": 80_000, "cpus": "0", "mems": "0" },
            "pids": { "limit": 44 },
        });
        // crun knows the file of a scheduler alone that is gone.
        if runtime != Runtime::Crun {
            spec["linux"]["resources"]["blockIO"] = json!({ "weight": 300 });
        }
    })?;
    let id = bench.id();
    bench.ok(&["run", "--detach", &id])?;
    for (controller, file, expected, otherwise) in LIMITS {
        let path = bench.cgroup(controller)?.join(file);
        // A kernel without BFQ has no such file, and then nobody came this far.
        let found = fs::read_to_string(&path).with_context(|| format!("{path:?}"))?;
        let of_peer = otherwise.iter().find(|(runtime, _)| *runtime == bench.runtime).map(|(_, value)| *value);
        let expected = of_peer.unwrap_or(expected);
        let found = found.trim().trim_start_matches("default ");
        ensure!(found == expected, "{file} is {found:?}, not {expected:?}");
    }
    Ok(())
}

/// What is changed, what of it our message names, and who takes it all the same.
type Refused = (&'static str, &'static str, fn(&mut Value), &'static [Runtime]);

const REFUSED: &[Refused] = &[
    ("a relative cwd", "cwd", |spec| spec["process"]["cwd"] = json!("tmp"), &[Crun]),
    ("no arguments", "no command specified", |spec| spec["process"]["args"] = json!([]), &[]),
    (
        "a limit of the same kind twice",
        "process.rlimits",
        |spec| {
            let limit = json!({ "type": "RLIMIT_CORE", "soft": 1, "hard": 1 });
            spec["process"]["rlimits"] = json!([limit, limit]);
        },
        &[Runc, Crun],
    ),
    (
        "a limit that is none",
        "RLIMIT_NONE",
        |spec| {
            spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NONE", "soft": 1, "hard": 1 }]);
        },
        &[],
    ),
    (
        "a namespace twice",
        "linux.namespaces",
        |spec| {
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.push(json!({ "type": "pid" }));
            }
        },
        &[Crun],
    ),
    (
        "a namespace of another kind",
        "linux.namespaces",
        |spec| {
            spec["linux"]["namespaces"][1]["path"] = json!("/proc/self/ns/net");
        },
        &[],
    ),
    ("a sysctl of the host", "vm.swappiness", |spec| spec["linux"]["sysctl"] = json!({ "vm.swappiness": "60" }), &[]),
    (
        "mappings without a user namespace",
        "linux.uidMappings",
        |spec| {
            spec["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
        },
        &[Runc, Crun],
    ),
    (
        "a propagation that is none",
        "rootfsPropagation",
        |spec| spec["linux"]["rootfsPropagation"] = json!("sideways"),
        &[Crun],
    ),
    (
        "a device of an unknown type",
        "`q`",
        |spec| {
            spec["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "q", "major": 1, "minor": 5 }]);
        },
        &[Crun],
    ),
    (
        "an unknown action of seccomp",
        "SCMP_ACT_NONE",
        |spec| {
            spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_NONE" });
        },
        &[],
    ),
    (
        "a controller of version 2 that is not there",
        "none.max",
        |spec| {
            spec["linux"]["resources"] = json!({ "unified": { "none.max": "1" } });
        },
        &[],
    ),
    (
        "a page size that is not there",
        "huge page limit",
        |spec| {
            spec["linux"]["resources"] = json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] });
        },
        &[],
    ),
    (
        "a share of a disk that only old kernels know",
        "I/O leaf weight",
        |spec| {
            spec["linux"]["resources"] = json!({ "blockIO": { "leafWeight": 20 } });
        },
        &[],
    ),
    (
        "an execution domain that is none",
        "PDP",
        |spec| spec["linux"]["personality"] = json!({ "domain": "PDP" }),
        &[Runc],
    ),
    (
        "flags of an execution domain that are none",
        "linux.personality.flags",
        |spec| {
            spec["linux"]["personality"] = json!({ "domain": "LINUX", "flags": ["x"] });
        },
        &[Runc, Crun],
    ),
    (
        "a memory policy that is none",
        "MPOL_NONE",
        |spec| {
            spec["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_NONE" });
        },
        &[Runc, Crun],
    ),
    (
        "a network device that is not there",
        "strata-nothing",
        |spec| {
            spec["linux"]["netDevices"] = json!({ "strata-nothing": {} });
        },
        &[Runc, Crun],
    ),
    (
        "classes of the processor's cache",
        "linux.intelRdt",
        |spec| spec["linux"]["intelRdt"] = json!({ "closID": "x" }),
        &[Runc, Crun],
    ),
];

fn refused(bench: &mut Bench) -> Result<()> {
    let mut otherwise = Vec::new();
    for (name, named, change, takers) in REFUSED {
        bench.configure(|spec| {
            spec["process"]["args"] = json!(["true"]);
            change(spec);
        })?;
        let id = bench.id();
        let finished = bench.run(&["run", &id])?;
        if finished.status.success() != takers.contains(&bench.runtime) {
            otherwise.push(format!("{name}: {finished}"));
        }
        if bench.runtime == Runtime::Strata {
            ensure!(finished.stderr.contains(named), "{name}: {named:?} is not named: {finished}");
            ensure!(bench.left().is_empty(), "{name}: left {:?}", bench.left());
        }
    }
    ensure!(otherwise.is_empty(), "{}", otherwise.join("\n"));
    Ok(())
}
