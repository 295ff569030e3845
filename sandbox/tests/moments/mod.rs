//! A moment that is short: a `create` that is killed just before its last word.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use strata_sandbox::Inherited;
use strata_sandbox::capabilities::CapabilitySet;
use strata_sandbox::runtime::{Create, Receiver, Runtime, Status};
use strata_sandbox::seccomp::Profile;
use strata_sandbox::spec_default::{Defaults, spec_default};
use tempfile::TempDir;

use crate::support::{cgroup_name, rootfs};
use crate::walls::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![("a_create_killed_before_its_last_word_is_one", a_create_killed_before_its_last_word_is_one, None)]
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
    let pid = container().state().pid;
    // Until it has found the word, and given up its socket, a start would take that from it.
    let has_socket = || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok())
            .any(|what| what.to_string_lossy().starts_with("socket:"))
    };
    until("it does not wait", || !has_socket());
    assert_eq!(container().status(), Status::Created);
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
