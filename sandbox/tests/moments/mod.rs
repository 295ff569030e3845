//! Moments that are short: a container without room for one more process, a `create` that is killed just before its last word.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxPidsBuilder, LinuxResourcesBuilder};
use serde_json::json;
use strata_sandbox::Inherited;
use strata_sandbox::capabilities::CapabilitySet;
use strata_sandbox::runtime::{Create, Receiver, Runtime, Status};
use strata_sandbox::seccomp::Profile;
use strata_sandbox::spec_default::{Defaults, spec_default};
use tempfile::TempDir;

use crate::attacks;
use crate::support::{Container, cgroup_name, rootfs};
use crate::walls::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        ("a_process_is_added_to_a_container_that_is_full", a_process_is_added_to_a_container_that_is_full, None),
        ("a_create_killed_before_its_last_word_is_one", a_create_killed_before_its_last_word_is_one, None),
    ]
}

/// Entering is not subject to the limit with any runtime. What was added may not make more, and the limit stays what it was.
fn a_process_is_added_to_a_container_that_is_full() {
    let root = rootfs();
    let mut full = Container::shell(root.path(), "sleep 1000 & sleep 1000 & wait");
    let limit = LinuxPidsBuilder::default().limit(3).build().unwrap();
    full.defaults.resources = LinuxResourcesBuilder::default().pids(limit).build().unwrap();
    let full = full.start(strata_sandbox::Stdio::Inherit).unwrap();
    let group = full.cgroup().unwrap().directory("pids").unwrap().to_owned();
    let read = |name: &str| fs::read_to_string(group.join(name)).unwrap().trim().to_owned();
    until("it is not full", || read("pids.current") == "3");
    for round in 0..20 {
        let (spec, add) = attacks::for_exec(&["cat", "/proc/self/stat"]);
        let (code, text) = add(&full, &spec).unwrap();
        assert_eq!((code, text.contains("(cat)")), (0, true), "{round}: {text}");
        assert_eq!(read("pids.max"), "3");
    }
    let (spec, add) = attacks::for_exec(&["sh", "-c", "true & true; echo unreachable"]);
    let (code, text) = add(&full, &spec).unwrap();
    assert!(code != 0 && text.is_empty(), "it makes processes: {code} {text}");
    assert_eq!((read("pids.max").as_str(), read("pids.current").as_str()), ("3", "3"));
    // The container can do that, too: it gets nothing by it but that nothing is added.
    let held = fs::File::open(&group).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(add(&full, &spec).is_err());
    drop(held);
    assert!(add(&full, &spec).is_ok());
    full.signal(libc::SIGKILL).unwrap();
    full.wait().unwrap();
}

/// The first process finds the word that says that all is written down, and waits.
fn a_create_killed_before_its_last_word_is_one() {
    let (folder, root) = (TempDir::new().unwrap(), rootfs());
    fs::rename(root.path(), folder.path().join("rootfs")).unwrap();
    let args = ["sleep", "1000"].map(str::to_owned).to_vec();
    let mut spec = serde_json::to_value(spec_default(Defaults { args, ..Defaults::default() }).unwrap()).unwrap();
    spec["root"]["path"] = json!("rootfs");
    spec["linux"]["cgroupsPath"] = json!(cgroup_name().as_str());
    fs::write(folder.path().join("config.json"), spec.to_string()).unwrap();
    let mut create = Command::new(std::env::current_exe().unwrap());
    // The container has the same streams, and keeps them.
    create.env(KILLED, folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
    assert_eq!(create.status().unwrap().signal(), Some(libc::SIGSYS));
    let runtime = Runtime::new(folder.path().join("state"));
    let container = || runtime.container(&"killed".parse().unwrap()).unwrap();
    until("it does not wait", || container().status() == Status::Created);
    let pid = container().state().pid;
    container().start().unwrap();
    until("it is not its program", || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "sleep\n");
    container().delete(strata_sandbox::runtime::Delete::Any).unwrap();
}

/// What this program does instead of its tests when [`KILLED`] is set: a `create` that dies of the word with which it would let the
/// first process wait.
pub(crate) fn create_and_die(folder: &Path) {
    let options = Create {
        bundle: folder,
        inherited: Inherited::default(),
        console: None,
        pidfd: Some(&mut DiesOfItsNextWord),
        pid_file: None,
    };
    let made = Runtime::new(folder.join("state")).create(&"killed".parse().unwrap(), options);
    panic!("it lives: {made:?}");
}

/// Where a `create` that is to be killed finds its bundle.
pub(crate) const KILLED: &str = "STRATA_TEST_KILLED_CREATE";

/// Called when nothing is left but to write the record, and to say so.
#[derive(Debug)]
struct DiesOfItsNextWord;

impl Receiver for DiesOfItsNextWord {
    fn receive(&mut self, _: BorrowedFd<'_>) -> io::Result<()> {
        let forbidden = json!({ "names": ["sendto"], "action": "SCMP_ACT_KILL_PROCESS" });
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [forbidden] });
        let profile = Profile::from_oci(&serde_json::from_value(profile)?).map_err(io::Error::other)?;
        let program = profile.compile(CapabilitySet::ALL).map_err(io::Error::other)?;
        strata_sys::seccomp::load(&program.instructions, program.flags).map(drop)
    }
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
