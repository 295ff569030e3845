//! Containers started by a plain user: this program makes itself one, then root of a namespace of its own.
//!
//! It has a main of its own, because a user namespace can only be entered by a process with one thread.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is its own test harness")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use oci_spec::runtime::{LinuxMemoryBuilder, LinuxResourcesBuilder};
use strata_sandbox::cgroup::{CgroupError, Hierarchies};
use strata_sandbox::spec_default::{Namespace, UserNamespace};
use strata_sandbox::userns::{IdMaps, Rootless, enter_rootless};
use strata_sandbox::{SpawnError, Stdio, WindowSize};
use support::{Container, rootfs};

const NAME: &str = "plain_user";
const NOBODY: u32 = 65534;
const STAGE: &str = "STRATA_TEST_ROOTLESS_ROOT";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("{NAME}: test");
        }
        return;
    }
    match std::env::var_os(STAGE) {
        Some(root) => as_plain_user(Path::new(&root)),
        None => prepare(),
    }
}

/// Makes a root filesystem for the plain user, and becomes one in a child.
fn prepare() {
    let root = rootfs();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        let status =
            Command::new("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(root.path()).status().unwrap();
        assert!(status.success());
    }
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // The build folder need not be open to everybody.
    let program = root.path().join("test-program");
    std::fs::copy("/proc/self/exe", &program).unwrap();
    let mut child = Command::new(&program);
    child.env(STAGE, root.path()).env("HOME", root.path()).current_dir("/");
    if is_root {
        child.uid(NOBODY).gid(NOBODY);
    }
    let status = child.status().unwrap();
    assert!(status.success(), "{status}");
}

fn as_plain_user(root: &Path) {
    assert!(!rustix::process::geteuid().is_root());
    let way = match enter_rootless() {
        Ok(way) => way,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    assert_ne!(way, Rootless::NotNeeded);
    assert!(rustix::process::geteuid().is_root());
    assert_eq!(enter_rootless().unwrap(), Rootless::NotNeeded);
    eprintln!("{way:?}");

    // Without a cgroup, as a user has none by default here, and with one asked for without limits.
    for cgroup in [false, true] {
        for network in [Namespace::Own, Namespace::Callers] {
            let mut container = Container::shell(
                root,
                "id -u; hostname; echo $$; echo x > /tmp/made && cat /tmp/made; : > /dev/null; head -c 3 /dev/zero | wc -c; test -r /sys/kernel && test -r /proc/self/status && echo seen",
            );
            container.cgroup = cgroup;
            container.defaults.network = network;
            assert_eq!(container.text(), "0\nbox\n1\nx\n3\nseen");
        }
    }
    let output = Container::shell(root, "echo 1 > /proc/sys/kernel/core_pattern; cat /proc/kcore | wc -c; exit 3")
        .run()
        .unwrap();
    assert_eq!((output.code(), output.stdout.as_str()), (3, "0\n"));
    assert!(output.stderr.contains("core_pattern"), "{output:?}");

    // A limit is applied or refused by name, never forgotten.
    let mut limited = Container::new(root, &["true"]);
    let memory = LinuxMemoryBuilder::default().limit(64 << 20).build().unwrap();
    limited.defaults.resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
    match limited.run() {
        Ok(output) => assert_eq!(output.code(), 0),
        Err(SpawnError::Cgroup(error @ (CgroupError::NotDelegated { .. } | CgroupError::NoController { .. }))) => {
            assert!(error.to_string().contains("a memory limit"), "{error}");
        }
        Err(error) => panic!("{error:?} with {:?}", Hierarchies::detect()),
    }

    let mut terminal = Container::shell(root, "tty; stty size; exit 9");
    terminal.defaults.terminal = true;
    let running = terminal.start(Stdio::Terminal { size: Some(WindowSize { rows: 5, columns: 6 }) }).unwrap();
    let mut text = Vec::new();
    let mut console = std::fs::File::from(running.console().unwrap().try_clone_to_owned().unwrap());
    // The end of a terminal is EIO.
    let _ = std::io::Read::read_to_end(&mut console, &mut text);
    assert_eq!(running.wait().unwrap().code(), 9);
    assert!(String::from_utf8_lossy(&text).contains("5 6"), "{}", String::from_utf8_lossy(&text));

    // Another user needs another id.
    let mut other = Container::shell(root, "id -u; id -g");
    other.user = Some("33:33");
    match (way, other.run()) {
        (Rootless::Ranges, result) => assert_eq!(result.unwrap().stdout, "33\n33\n"),
        (_, Err(error)) => assert!(error.to_string().contains("mapped"), "{error}"),
        (_, Ok(output)) => panic!("{output:?}"),
    }
    // A user namespace in the user namespace.
    let mut nested =
        Container::shell(root, "id -u; cat /proc/self/uid_map | wc -l; echo y > /tmp/nested && cat /tmp/nested");
    nested.defaults.user_namespace = UserNamespace::Own(IdMaps::block(0, 1));
    let output = nested.run().unwrap();
    assert_eq!(output.stdout, "0\n1\ny\n", "{output:?}");
    let missing = Container::new(root, &["nonsense"]).run().unwrap_err();
    assert_eq!(missing.exit_code(), 127);
}
