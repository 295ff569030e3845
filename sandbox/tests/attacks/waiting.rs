//! Attacks on a container that is made and not yet started: its first process is still this program.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use strata_sandbox::runtime::{
    Added, Addition, Container as Created, Create, Delete, Differences, Runtime, RuntimeError,
};
use strata_sandbox::spec_default::{Defaults, spec_default};
use strata_sandbox::{ExitStatus, Inherited, Landlock, Running, Stdio};
use tempfile::TempDir;

use crate::support::{Container, rootfs};
use crate::walls::Case;

pub(super) fn cases() -> Vec<Case> {
    let machine = (!cfg!(target_arch = "x86_64")).then(|| "the attack is written in x86_64's machine code".to_owned());
    vec![
        ("a_sidecar_that_may_trace_gains_nothing", a_sidecar_that_may_trace_gains_nothing, machine),
        (
            "a_process_that_is_added_is_born_with_its_own_powers",
            a_process_that_is_added_is_born_with_its_own_powers,
            None,
        ),
        ("what_waits_is_what_its_program_will_be", what_waits_is_what_its_program_will_be, None),
        ("a_process_added_before_the_start_gets_at_nothing", a_process_added_before_the_start_gets_at_nothing, None),
        ("who_holds_its_answers_holds_up_no_start", who_holds_its_answers_holds_up_no_start, None),
        ("a_narrow_filter_does_not_stop_the_wait", a_narrow_filter_does_not_stop_the_wait, None),
    ]
}

/// A container that waits, with its bundle and state folder. Dropped, it is removed.
struct Waiting {
    folder: TempDir,
    created: Option<Created>,
}

impl Waiting {
    fn new(args: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let (folder, root) = (TempDir::new().unwrap(), rootfs());
        fs::rename(root.path(), folder.path().join("rootfs")).unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let spec = spec_default(Defaults { args, ..Defaults::default() }).unwrap();
        let mut spec = serde_json::to_value(spec).unwrap();
        spec["root"]["path"] = json!("rootfs");
        spec["linux"]["cgroupsPath"] = json!(crate::support::cgroup_name().as_str());
        change(&mut spec);
        fs::write(folder.path().join("config.json"), spec.to_string()).unwrap();
        let runtime = Runtime::new(folder.path().join("state"));
        let options = Create {
            bundle: folder.path(),
            inherited: Inherited::default(),
            console: None,
            pidfd: None,
            pid_file: None,
        };
        let (created, _) = runtime.create(&"waiting".parse().unwrap(), options).unwrap();
        Self { folder, created: Some(created) }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    fn pid(&self) -> u32 {
        self.created.as_ref().unwrap().state().pid
    }

    fn again(&self) -> Result<Created, RuntimeError> {
        Runtime::new(self.folder.path().join("state")).container(&"waiting".parse().unwrap())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.created.take());
        let _ = self.again().and_then(|created| created.delete(Delete::Any));
    }
}

fn set_namespace(spec: &mut Value, kind: &str, path: &str) {
    let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != kind);
    list.push(json!({ "type": kind, "path": path }));
}

/// One that is in nobody's way here.
fn filter() -> Value {
    let denied = json!({ "names": ["kexec_load"], "action": "SCMP_ACT_ERRNO" });
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied] })
}

/// Makes a mount namespace, which needs `CAP_SYS_ADMIN`, and exits with 42 if it got one, else with 7.
const PAYLOAD: &[u8] = &[
    0xb8, 0x10, 0x01, 0x00, 0x00, // mov eax, 272 (unshare)
    0xbf, 0x00, 0x00, 0x02, 0x00, // mov edi, CLONE_NEWNS
    0x0f, 0x05, // syscall
    0xbf, 0x2a, 0x00, 0x00, 0x00, // mov edi, 42
    0x85, 0xc0, // test eax, eax
    0x74, 0x05, // jz +5
    0xbf, 0x07, 0x00, 0x00, 0x00, // mov edi, 7
    0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax, 231 (exit_group)
    0x0f, 0x05, // syscall
];

/// Writes it over what the waiting process does next.
const TAKE_OVER: &str = "for p in /proc/[0-9]*; do grep -q strata:init $p/comm && break; done; \
    set -- $(cat $p/syscall); dd if=/payload of=$p/mem bs=1 seek=$(($9)) conv=notrunc 2>/dev/null && echo written";

/// A sidecar with `CAP_SYS_PTRACE` has the waiting process do what it likes. That is no more than it could have had the
/// container's own program do a moment later.
fn a_sidecar_that_may_trace_gains_nothing() {
    for filtered in [true, false] {
        let root = rootfs();
        fs::write(root.path().join("payload"), PAYLOAD).unwrap();
        let mut sidecar = Container::new(root.path(), &["sleep", "1000"]);
        sidecar.patch = json!({ "process": { "capabilities": {
            "bounding": ["CAP_SYS_PTRACE"], "effective": ["CAP_SYS_PTRACE"], "permitted": ["CAP_SYS_PTRACE"] } } });
        let sidecar = sidecar.start(Stdio::Inherit).unwrap();
        let mut waiting = Waiting::new(&["sleep", "1000"], |spec| {
            set_namespace(spec, "pid", &format!("/proc/{}/ns/pid", sidecar.pid()));
            if filtered {
                spec["linux"]["seccomp"] = filter();
            }
        });
        let mut spec = super::added(&["/bin/sh", "-c", TAKE_OVER], "/");
        may_trace(&mut spec);
        // Landlock would be in the way, which an OCI runtime's containers do without.
        let written = super::add_behind(Landlock::Off, &sidecar, &spec, None).unwrap();
        assert_eq!(written, (0, "written\n".to_owned()), "the attack itself works");
        let pid = waiting.pid();
        assert!(waiting.created.take().unwrap().start().is_err(), "its program never ran");
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7), "it could do what its container may not; filtered: {filtered}");
        super::end(&sidecar);
    }
}

/// Stops at whatever else is in its pid namespace, says what that may do, and looks for the next.
const WATCH: &str = "while :; do for p in /proc/[0-9]*; do \
    case $p in /proc/1|/proc/$$) continue;; esac; \
    c=$(grep -s -e CapPrm -e ^Seccomp: $p/status) && [ -n \"$c\" ] && echo \"$c\" >> /seen; done; done";

/// A container that may trace sees no process of an `exec` that can do more than the program will. Without that, it could have it do
/// what it likes as root of the machine.
fn a_process_that_is_added_is_born_with_its_own_powers() {
    for no_new_privileges in [true, false] {
        let root = rootfs();
        let mut watching = Container::new(root.path(), &["/bin/sh", "-c", WATCH]);
        watching.patch = json!({ "process": { "capabilities": {
            "bounding": ["CAP_SYS_PTRACE"], "effective": ["CAP_SYS_PTRACE"], "permitted": ["CAP_SYS_PTRACE"] } } });
        let watching = watching.start(Stdio::Inherit).unwrap();
        let mut spec = super::added(&["/bin/sh", "-c", "exit 3"], "/");
        may_trace(&mut spec);
        if let Some(process) = spec.process_mut() {
            process.set_no_new_privileges(Some(no_new_privileges));
        }
        for _ in 0..40 {
            assert_eq!(super::add_behind(Landlock::Off, &watching, &spec, None).unwrap().0, 3);
        }
        // Whoever fails is reaped, or the container could not end.
        let mut missing = super::added(&["/missing"], "/");
        may_trace(&mut missing);
        for _ in 0..20 {
            assert!(super::add_behind(Landlock::Off, &watching, &missing, None).is_err());
        }
        super::end(&watching);
        let seen = fs::read_to_string(root.path().join("seen")).unwrap_or_default();
        let own = format!("{:016x}", 1_u64 << 19);
        let is_own = |line: &&str| line.ends_with(&own) || *line == "Seccomp:\t2";
        let more: Vec<&str> = seen.lines().filter(|line| !is_own(line)).collect();
        assert!(more.is_empty(), "no_new_privs {no_new_privileges}: {more:?}");
        assert!(!seen.is_empty(), "nothing was seen at all");
    }
}

fn may_trace(spec: &mut Spec) {
    let mut value = serde_json::to_value(&*spec).unwrap();
    for set in ["bounding", "effective", "permitted"] {
        value["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
    }
    *spec = serde_json::from_value(value).unwrap();
}

/// The lines of `/proc/PID/status` that say what a process may do.
fn powers(pid: u32) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kinds = ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"];
    status.lines().filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).map(str::to_owned).collect()
}

fn what_waits_is_what_its_program_will_be() {
    for no_new_privileges in [true, false] {
        let mut waiting = Waiting::new(&["sleep", "1000"], |spec| {
            spec["linux"]["seccomp"] = filter();
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["process"]["user"] = json!({ "uid": 33, "gid": 33, "additionalGids": [40] });
            spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 64 }]);
        });
        let pid = waiting.pid();
        let limits = || fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let (before, limits_before) = (powers(pid), limits());
        assert!(before.iter().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')), "{before:?}");
        waiting.created.take().unwrap().start().unwrap();
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "sleep\n");
        let mut after = powers(pid);
        // A program that is executed by a plain user has none in effect but what its file gives.
        for (line, then) in after.iter_mut().zip(&before) {
            if line.starts_with("CapPrm") || line.starts_with("CapEff") {
                assert!(line.ends_with("\t0000000000000000"), "{line}");
                line.clone_from(then);
            }
        }
        assert_eq!(before, after);
        assert_eq!(limits_before, limits());
    }
}

/// Adds a process to a container that waits and returns how it ended.
fn add_to(created: &Created, script: &str) -> ExitStatus {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let running: Running = created
        .exec(Addition {
            process: Added::Command(Box::new(Differences { args, ..Differences::default() })),
            inherited: Inherited::default(),
            ignore_paused: false,
            cgroup: None,
            console: None,
            pidfd: None,
            pid_file: None,
        })
        .unwrap();
    match running.wait_timeout(Duration::from_secs(20)).unwrap() {
        Some(status) => status,
        None => panic!("{script} does not end"),
    }
}

fn a_process_added_before_the_start_gets_at_nothing() {
    let mut waiting = Waiting::new(&["/bin/sh", "-c", "echo ran > /ran; sleep 1000"], |_| {});
    let script = "for f in mem exe environ maps fd/0 fd/3 root/bin cwd/bin; do \
        cat /proc/1/$f >/dev/null 2>&1 && echo $f >> /got; (: >> /proc/1/$f) 2>/dev/null && echo wrote $f >> /got; done; \
        grep CapEff /proc/1/status > /one; grep CapEff /proc/self/status > /own; true";
    assert_eq!(add_to(waiting.created.as_ref().unwrap(), script).code(), 0);
    let root = waiting.root();
    let read = |name: &str| fs::read_to_string(root.join(name));
    assert!(read("got").is_err(), "{}", read("got").unwrap());
    assert_eq!(read("one").unwrap(), read("own").unwrap());
    assert!(read("ran").is_err());
    waiting.created.take().unwrap().start().unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while read("ran").is_err() {
        assert!(std::time::Instant::now() < until, "it does not start any more");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Who may trace it can take its descriptors, and keep the pipe for the answers open. The end of the first process ends the
/// wait for them all the same, and whoever removes the container by force need not wait.
fn who_holds_its_answers_holds_up_no_start() {
    let mut waiting = Waiting::new(&["sleep", "1000"], |_| {});
    let pipe = waiting.folder.path().join("state/waiting/start.answers");
    let held = fs::File::options().read(true).write(true).open(pipe).unwrap();
    let (comm, created) = (format!("/proc/{}/comm", waiting.pid()), waiting.created.take().unwrap());
    let start = std::thread::spawn(move || created.start().map(drop));
    let until = std::time::Instant::now() + Duration::from_secs(20);
    let in_time = |what: &str| {
        assert!(std::time::Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    };
    while fs::read_to_string(&comm).unwrap() != "sleep\n" {
        in_time("the program does not come");
    }
    while !start.is_finished() {
        in_time("start waits for the pipe, though the program runs");
    }
    let again = waiting.again().unwrap();
    let delete = std::thread::spawn(move || again.delete(Delete::Any).map(drop));
    while !(start.is_finished() && delete.is_finished()) {
        in_time("start waits for the pipe, and delete for start");
    }
    // It had said that it executes its program.
    start.join().unwrap().unwrap();
    delete.join().unwrap().unwrap();
    drop(held);
}

/// What a program needs that does nothing but loop is enough.
fn a_narrow_filter_does_not_stop_the_wait() {
    let calls: &[&str] = &["read", "write", "close", "execve", "exit_group", "exit"];
    // Without no_new_privs, the filter is up while the ids change.
    let ids: &[&str] = &["capget", "capset", "prctl", "setgroups", "setresgid", "setresuid"];
    let libc: &[&str] = &[
        "arch_prctl",
        "brk",
        "mmap",
        "mprotect",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "readlinkat",
        "readlink",
        "getrandom",
        "uname",
        "getuid",
        "getgid",
        "geteuid",
        "getegid",
        "setuid",
        "setgid",
        "munmap",
        "fstat",
        "newfstatat",
        "ioctl",
        "writev",
    ];
    for no_new_privileges in [true, false] {
        let allowed = [calls, libc, if no_new_privileges { &[] } else { ids }].concat();
        let mut waiting = Waiting::new(&["echo", "through"], |spec| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
                "syscalls": [{ "names": allowed, "action": "SCMP_ACT_ALLOW" }],
            });
        });
        waiting.created.take().unwrap().start().unwrap();
    }
}
