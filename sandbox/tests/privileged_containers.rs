//! Containers of a busybox root filesystem, started as root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attacks;
mod fields;
mod moments;
mod support;
mod systemd;
mod walls;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder,
    LinuxResourcesBuilder, LinuxTimeOffset, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType,
};
use strata_sandbox::capabilities::CapabilitySet;
use strata_sandbox::spec_default::{Namespace, UserNamespace};
use strata_sandbox::userns::IdMaps;
use strata_sandbox::{Access, Landlock, Launch, Root, Sandbox, Seccomp, SpawnError, Stdio, WindowSize};
use support::{Container, rootfs};

fn main() {
    if let Some(bundle) = std::env::var_os(moments::KILLED) {
        moments::create_and_die(Path::new(&bundle));
    }
    let mut arguments = Arguments::from_args();
    // One of them counts descriptors.
    arguments.test_threads = Some(1);
    let unprivileged = (!support::is_root()).then(|| "needs root".to_owned());
    let landlock = (strata_sys::landlock::abi().unwrap_or(0) < 3).then(|| "needs landlock ABI 3".to_owned());
    let no_python = (!Path::new("/usr/bin/python3").exists() || !cfg!(target_arch = "x86_64"))
        .then(|| "needs Python on x86_64".to_owned());
    let trial = |name, test: fn(), missing: &Option<String>| {
        let missing = unprivileged.as_ref().or(missing.as_ref()).cloned();
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        match missing {
            Some(reason) => trial.with_ignored_flag(true).with_kind(reason),
            None => trial,
        }
    };
    let mut trials = vec![
        trial("a_sandbox_in_a_few_words", a_sandbox_in_a_few_words, &None),
        trial("nothing_is_mounted_over_proc", nothing_is_mounted_over_proc, &None),
        trial("a_swapped_folder_leads_no_mount_point_outside", a_swapped_folder_leads_no_mount_point_outside, &None),
        trial("many_threads_start_containers_at_once", many_threads_start_containers_at_once, &None),
        trial(
            "exit_codes_arrive_though_the_signal_for_them_is_ignored",
            exit_codes_arrive_though_the_signal_for_them_is_ignored,
            &None,
        ),
        trial("clocks_of_its_own", clocks_of_its_own, &None),
        trial("owners_of_a_volume_are_mapped_when_asked", owners_of_a_volume_are_mapped_when_asked, &None),
        trial("exit_codes_and_output_arrive", exit_codes_and_output_arrive, &None),
        trial("signals_reach_the_process_and_show_in_the_code", signals_reach_the_process_and_show_in_the_code, &None),
        trial("the_container_sees_only_itself", the_container_sees_only_itself, &None),
        trial("devices_are_dockers", devices_are_dockers, &None),
        trial("masked_and_read_only_paths", masked_and_read_only_paths, &None),
        trial("capabilities_are_exactly_the_ones_asked_for", capabilities_are_exactly_the_ones_asked_for, &None),
        trial("users_are_looked_up_in_the_image", users_are_looked_up_in_the_image, &None),
        trial(
            "commands_that_cannot_be_executed_say_so_as_docker",
            commands_that_cannot_be_executed_say_so_as_docker,
            &None,
        ),
        trial("a_terminal_of_its_own", a_terminal_of_its_own, &None),
        trial("bind_mounts_with_their_flags", bind_mounts_with_their_flags, &None),
        trial("a_read_only_root_with_writable_places", a_read_only_root_with_writable_places, &None),
        trial("limits_hold", limits_hold, &None),
        trial(
            "a_process_is_added_where_the_container_manages_its_cgroups",
            a_process_is_added_where_the_container_manages_its_cgroups,
            &(!Path::new(UNIFIED).is_dir()).then(|| "needs a v2 tree beside v1".to_owned()),
        ),
        trial("rlimits_and_sysctls_and_oom_score", rlimits_and_sysctls_and_oom_score, &None),
        trial("the_filter_denies_what_dockers_denies", the_filter_denies_what_dockers_denies, &None),
        trial("a_profile_of_ones_own", a_profile_of_ones_own, &None),
        trial("ids_of_its_own", ids_of_its_own, &None),
        trial("hostile_roots_are_refused_or_harmless", hostile_roots_are_refused_or_harmless, &None),
        trial("a_working_directory_cannot_lead_out", a_working_directory_cannot_lead_out, &None),
        trial(
            "landlock_is_up_and_ordinary_programs_do_not_notice",
            landlock_is_up_and_ordinary_programs_do_not_notice,
            &landlock,
        ),
        trial("a_thousand_starts_leave_nothing", a_thousand_starts_leave_nothing, &None),
        trial("processes_left_behind_die_with_the_first", processes_left_behind_die_with_the_first, &None),
        trial("a_frozen_container_stands_still", a_frozen_container_stands_still, &None),
        trial("namespaces_of_another_container_are_joined", namespaces_of_another_container_are_joined, &None),
        trial(
            "a_detached_mount_is_the_root_and_ends_with_the_container",
            a_detached_mount_is_the_root_and_ends_with_the_container,
            &None,
        ),
        trial("calls_with_dangerous_arguments_are_denied", calls_with_dangerous_arguments_are_denied, &no_python),
        trial("descriptors_of_the_host_do_not_come_along", descriptors_of_the_host_do_not_come_along, &no_python),
        trial("landlock_holds_where_the_mounts_would_not", landlock_holds_where_the_mounts_would_not, &landlock),
    ];
    for (name, test, missing) in
        [walls::cases(), attacks::cases(), fields::cases(), moments::cases(), systemd::cases()].concat()
    {
        trials.push(trial(name, test, &missing));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Where a v2 tree is on a machine that has both versions.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Its first process is in a group below, and its own has handed a controller on: no process may enter that. Where its first
/// process has got out of its group, nobody is taken after it.
fn a_process_is_added_where_the_container_manages_its_cgroups() {
    let root = rootfs();
    let running = Container::new(root.path(), &["sleep", "1000"]).start(Stdio::Inherit).unwrap();
    let place = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned()
    };
    let own = Path::new(UNIFIED).join(place(running.pid()));
    let outside = Path::new(UNIFIED).join(format!("{}-outside", place(running.pid())));
    fs::create_dir(own.join("init")).unwrap();
    fs::write(own.join("init/cgroup.procs"), running.pid().to_string()).unwrap();
    let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap();
    let Some(controller) = controllers.split_whitespace().next() else {
        running.signal(9).unwrap();
        running.wait().unwrap();
        return;
    };
    fs::write(own.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let (spec, sandbox_exec) = attacks::for_exec(&["cat", "/proc/self/cgroup"]);
    let (code, text) = sandbox_exec(&running, &spec).unwrap();
    assert!(code == 0 && text.lines().any(|line| line.starts_with("0::/") && line.ends_with("/init")), "{text}");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("cgroup.procs"), running.pid().to_string()).unwrap();
    let refused = sandbox_exec(&running, &spec);
    running.signal(9).unwrap();
    running.wait().unwrap();
    fs::remove_dir(&outside).unwrap();
    assert!(matches!(refused, Err(SpawnError::Cgroup(_))), "{refused:?}");
}

fn a_sandbox_in_a_few_words() {
    let root = rootfs();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("in"), "given\n").unwrap();
    let sandbox = Sandbox::new(root.path())
        .folder(folder.path(), "/data", Access::ReadOnly)
        .scratch("/tmp", 1 << 20)
        .directory("/data")
        .memory(64 << 20)
        .processes(20);
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let script = "cat in; touch /tmp/x; touch /data/x || touch /x || grep CapBnd /proc/self/status; sleep 1000";
    let sandboxed = sandbox.spawn(&["sh", "-c", script], stdio).unwrap();
    let (stdio, more) = Stdio::pipes().unwrap();
    let added = sandboxed.exec(&["sh", "-c", "pwd; exit 3"], stdio).unwrap();
    assert_eq!(added.wait().unwrap().code(), 3);
    assert_eq!(std::io::read_to_string(fs::File::from(more.stdout)).unwrap(), "/data\n");
    assert!(sandboxed.usage().memory_limit.is_none_or(|limit| limit == 64 << 20));
    assert_eq!(sandboxed.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    // All of it before the sandbox is ended, which is done to the script wherever it is.
    let mut output = BufReader::new(fs::File::from(pipes.stdout));
    let told: Vec<String> = output.by_ref().lines().take(2).map(Result::unwrap).collect();
    assert_eq!(told, ["given", "CapBnd:\t0000000000000000"]);
    drop(sandboxed);
    assert_eq!(output.read(&mut [0]).unwrap(), 0);
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Mount {
    MountBuilder::default()
        .source(source)
        .destination(destination)
        .typ("bind")
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .unwrap()
}

fn shell_text(script: &str) -> String {
    Container::shell(rootfs().path(), script).text()
}

fn exit_codes_and_output_arrive() {
    let root = rootfs();
    let output = Container::shell(root.path(), "echo out; echo err >&2; exit 42").run().unwrap();
    assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (42, "out\n", "err\n"));
    assert_eq!(Container::new(root.path(), &["true"]).run().unwrap().code(), 0);
    let killed = Container::shell(root.path(), "sh -c 'kill -9 $$'; exit $?").run().unwrap();
    assert_eq!(killed.code(), 137);
    let echo = Container { stdin: "through\n", ..Container::new(root.path(), &["cat"]) }.text();
    assert_eq!(echo, "through");
}

fn signals_reach_the_process_and_show_in_the_code() {
    let root = rootfs();
    let running = Container::new(root.path(), &["sleep", "100"]).start(Stdio::Inherit).unwrap();
    assert!(running.try_wait().unwrap().is_none());
    // The first process of a namespace is deaf to signals it does not handle, except this one.
    running.signal(libc::SIGTERM).unwrap();
    assert!(running.wait_timeout(Duration::from_millis(100)).unwrap().is_none());
    running.signal(libc::SIGKILL).unwrap();
    let status = running.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (137, Some(9)));
    running.signal(libc::SIGTERM).unwrap();

    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let running = Container::shell(root.path(), script).start(stdio).unwrap();
    let mut ready = [0; 6];
    fs::File::from(pipes.stdout).read_exact(&mut ready).unwrap();
    running.signal(libc::SIGTERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), 7);
}

fn the_container_sees_only_itself() {
    assert_eq!(shell_text("hostname"), "box");
    assert_eq!(shell_text("echo $$"), "1");
    assert_eq!(shell_text("echo /proc/[0-9]*"), "/proc/1");
    assert_eq!(shell_text("cat /proc/self/cgroup | cut -d: -f3 | sort -u"), "/");
    assert_eq!(shell_text("ls /sys/class/net"), "lo");
    assert_eq!(shell_text("ifconfig lo | grep -c 'inet addr:127.0.0.1'"), "1");
    // Nothing of the host's tree is left, not even detached.
    let mounts = shell_text("cat /proc/self/mountinfo");
    let seen: Vec<_> = mounts.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    let ours = |path: &&&str| ["/proc", "/dev", "/sys"].iter().any(|top| path.starts_with(top)) || **path == "/";
    assert_eq!(seen.iter().filter(ours).count(), seen.len(), "{mounts}");
    for expected in ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"] {
        assert!(seen.contains(&expected), "{expected} of {seen:?}");
    }
    // And no descriptor but the three streams (and ls's own).
    assert_eq!(shell_text("ls /proc/self/fd | wc -l"), "4");
}

fn devices_are_dockers() {
    let listing =
        shell_text("cd /dev; for node in null zero full random urandom tty; do stat -c '%n %t:%T %a %F' $node; done");
    assert_eq!(
        listing,
        "null 1:3 666 character special file\nzero 1:5 666 character special file\nfull 1:7 666 character special file\n\
         random 1:8 666 character special file\nurandom 1:9 666 character special file\ntty 5:0 666 character special file"
    );
    let links = shell_text("cd /dev; for link in fd stdin stdout stderr ptmx; do readlink $link; done");
    assert_eq!(links, "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx");
    assert_eq!(shell_text("echo through > /dev/stdout"), "through");
    assert_eq!(shell_text("stat -c %a /dev/shm"), "1777");
    // Other nodes may be made, but not opened.
    let denied = Container::shell(rootfs().path(), "mknod /tmp/mem c 1 1 && cat /tmp/mem").run().unwrap();
    assert!(denied.stderr.contains("Operation not permitted"), "{denied:?}");
    assert!(denied.stderr.contains("open") || denied.stderr.contains("/tmp/mem"), "{denied:?}");
}

fn masked_and_read_only_paths() {
    let root = rootfs();
    assert_eq!(Container::shell(root.path(), "cat /proc/kcore /proc/keys /proc/timer_list | wc -c").text(), "0");
    assert_eq!(
        Container::shell(root.path(), "ls /sys/firmware /proc/scsi 2>/dev/null | grep -v : | grep -c .; true").text(),
        "0"
    );
    for path in ["/proc/sys/kernel/core_pattern", "/sys/kernel/mm/ksm/run", "/sys/fs/cgroup/x"] {
        let output = Container::shell(root.path(), &format!("echo 1 > {path}")).run().unwrap();
        assert!(output.stderr.contains("Read-only file system"), "{path}: {output:?}");
    }
    let mut privileged = Container::shell(
        root.path(),
        "mount -t tmpfs none /tmp && echo mounted; test -w /sys/kernel/mm/ksm/run && echo writable",
    );
    privileged.defaults.privileged = true;
    privileged.seccomp = Seccomp::Unconfined;
    assert_eq!(privileged.text(), "mounted\nwritable");
}

fn capabilities_are_exactly_the_ones_asked_for() {
    let root = rootfs();
    let sets = "grep Cap /proc/self/status | sed 's/.*\\t//'";
    let status = Container::shell(root.path(), sets).text();
    assert_eq!(status, "0000000000000000\n00000000a80425fb\n00000000a80425fb\n00000000a80425fb\n0000000000000000");
    let mut none = Container::shell(root.path(), sets);
    none.defaults.capabilities = CapabilitySet::EMPTY;
    assert_eq!(none.text(), ["0000000000000000"; 5].join("\n"));
    let mut user = Container::shell(root.path(), sets);
    user.user = Some("web");
    assert_eq!(user.text(), "0000000000000000\n0000000000000000\n0000000000000000\n00000000a80425fb\n0000000000000000");
}

fn users_are_looked_up_in_the_image() {
    let root = rootfs();
    let run = |user| {
        let mut container = Container::shell(root.path(), "id -u; id -g; id -G; echo $HOME");
        container.user = Some(user);
        container.text().replace('\n', "|")
    };
    assert_eq!(run("web"), "33|33|33 40|/home/web");
    assert_eq!(run("33:0"), "33|0|0|/home/web");
    assert_eq!(run("1234:77"), "1234|77|77|/");
    for odd in ["", "-1", "1000abc", "4294967296", "0x0", ":0", "nobody"] {
        let mut container = Container::new(root.path(), &["true"]);
        container.user = Some(odd);
        let error = container.run().unwrap_err();
        assert!(matches!(error, SpawnError::User(_)), "{odd:?}: {error:?}");
        assert_eq!(error.exit_code(), 125);
    }
    // Account files that are traps: neither read through nor waited for.
    fs::remove_file(root.path().join("etc/passwd")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.path().join("etc/passwd"), rustix::fs::Mode::from_bits_truncate(0o644))
        .unwrap();
    let mut container = Container::new(root.path(), &["true"]);
    container.user = Some("web");
    assert!(container.run().is_err());
}

fn commands_that_cannot_be_executed_say_so_as_docker() {
    let root = rootfs();
    fs::write(root.path().join("bin/plain"), "text").unwrap();
    fs::write(root.path().join("script"), "#!/no/such/interpreter\n").unwrap();
    fs::write(root.path().join("garbage"), [0x7f, b'E', b'L', b'F', 0, 0]).unwrap();
    // Our own program, which landlock keeps the container from.
    fs::write(root.path().join("itself"), "#!/proc/self/exe\n").unwrap();
    for name in ["script", "garbage", "itself"] {
        fs::set_permissions(root.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let cases = [
        ("nonsense", 127, r#"exec: "nonsense": executable file not found in $PATH: unknown"#),
        ("/no/such", 127, r#"exec: "/no/such": stat /no/such: no such file or directory: unknown"#),
        ("/bin/plain", 126, r#"exec: "/bin/plain": permission denied: unknown"#),
        ("plain", 127, r#"exec: "plain": executable file not found in $PATH: unknown"#),
        ("/etc", 126, r#"exec: "/etc": is a directory: unknown"#),
        ("/script", 127, r#"exec: "/script": no such file or directory: unknown"#),
        ("/itself", 126, r#"exec: "/itself": permission denied: unknown"#),
        ("/garbage", 126, r#"exec: "/garbage": exec format error: unknown"#),
    ];
    for (name, code, text) in cases {
        let error = Container::new(root.path(), &[name]).run().unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().as_str()), (code, text), "{error:?}");
    }
    let empty = Container::new(root.path(), &[]).run().unwrap_err();
    assert_eq!(
        (empty.exit_code(), empty.to_string().as_str()),
        (125, "invalid container configuration: no command specified")
    );
}

fn a_terminal_of_its_own() {
    let root = rootfs();
    let script =
        "stty size; tty; test -t 0 && echo terminal; stat -c %t:%T /dev/console; read line; echo got $line; exit 3";
    let wanted = WindowSize { rows: 33, columns: 101 };
    let size = Some(wanted);
    let mut container = Container::shell(root.path(), script);
    container.defaults.terminal = true;
    let running = container.start(Stdio::Terminal { size }).unwrap();
    let console = running.console().unwrap();
    assert_eq!(strata_sandbox::console::size(console).unwrap(), wanted);
    let mut console = fs::File::from(console.try_clone_to_owned().unwrap());
    console.write_all(b"hello\n").unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    // The end of a terminal is EIO.
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(running.wait().unwrap().code(), 3);
    for expected in ["33 101", "/dev/pts/0", "terminal", "88:0", "got hello"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    // Ctrl-C goes to the foreground process, and the size can change.
    let mut container =
        Container::shell(root.path(), "trap 'stty size; exit 5' INT; echo ready; while :; do sleep 0.05; done");
    container.defaults.terminal = true;
    let running = container.start(Stdio::Terminal { size }).unwrap();
    let mut console = fs::File::from(running.console().unwrap().try_clone_to_owned().unwrap());
    let mut seen = String::new();
    while !seen.contains("ready") {
        let count = console.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    running.resize(WindowSize { rows: 11, columns: 22 }).unwrap();
    console.write_all(&[3]).unwrap();
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(seen.contains("11 22"), "{seen}");
    assert_eq!(running.wait().unwrap().code(), 5);
}

fn bind_mounts_with_their_flags() {
    let (root, data) = (rootfs(), tempfile::tempdir().unwrap());
    fs::write(data.path().join("file"), "content").unwrap();
    fs::create_dir(data.path().join("sub")).unwrap();
    let source = data.path().to_str().unwrap();
    let run = |mounts: Vec<Mount>, script: &str| {
        let mut container = Container::shell(root.path(), script);
        container.defaults.mounts = mounts;
        container.run()
    };
    let text = |mounts, script| run(mounts, script).unwrap().stdout.trim_end().to_owned();
    assert_eq!(text(vec![bind(source, "/new/deep/place", &["rbind"])], "cat /new/deep/place/file"), "content");
    assert_eq!(text(vec![bind(&format!("{source}/file"), "/etc/one", &["bind"])], "cat /etc/one"), "content");
    let output = run(vec![bind(source, "/data", &["rbind", "ro"])], "echo x > /data/new").unwrap();
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
    assert_eq!(text(vec![bind(source, "/data", &["rbind"])], "echo x > /data/sub/new; cat /data/sub/new"), "x");
    assert_eq!(fs::read_to_string(data.path().join("sub/new")).unwrap(), "x\n");
    let missing = run(vec![bind("/no/such/source", "/data", &["bind"])], "true").unwrap_err();
    assert_eq!(missing.to_string(), "bind source path does not exist: /no/such/source");
    // Flags reach what is mounted below only when asked to.
    let below = |options: &[&str]| {
        let options: Vec<_> = ["rbind"].iter().chain(options).copied().collect();
        text(vec![bind("/dev", "/mnt", &options)], "grep -c ' /mnt/shm ro\\| /mnt/pts ro' /proc/self/mountinfo; true")
    };
    let submounts =
        fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(" /dev/pts ")).count();
    if submounts > 0 {
        assert_eq!(below(&["ro"]), "0");
        assert_ne!(below(&["rro"]), "0");
    }
}

fn a_read_only_root_with_writable_places() {
    let root = rootfs();
    let tmpfs = MountBuilder::default()
        .source("tmpfs")
        .destination("/tmp")
        .typ("tmpfs")
        .options(["nosuid", "size=1m"].map(str::to_owned).to_vec())
        .build()
        .unwrap();
    for landlock in [Landlock::Auto, Landlock::Off] {
        let mut container = Container::shell(
            root.path(),
            "echo x > /etc/new; echo y > /tmp/new && cat /tmp/new; echo z > /dev/shm/z && cat /dev/shm/z",
        );
        container.defaults.read_only_root = true;
        container.defaults.mounts = vec![tmpfs.clone()];
        container.landlock = landlock;
        let output = container.run().unwrap();
        assert_eq!(output.stdout, "y\nz\n", "{output:?}");
        assert!(output.stderr.contains("/etc/new"), "{output:?}");
    }
    assert!(!root.path().join("etc/new").exists());
}

fn limits_hold() {
    let root = rootfs();
    let mut memory = Container::new(root.path(), &["/bin/busybox", "tail", "/dev/zero"]);
    let limit = LinuxMemoryBuilder::default().limit(16 << 20).build().unwrap();
    memory.defaults.resources = LinuxResourcesBuilder::default().memory(limit).build().unwrap();
    let output = memory.run().unwrap();
    assert_eq!(output.code(), 137, "{output:?}");
    assert!(output.status.out_of_memory());

    let mut pids = Container::shell(root.path(), "for i in 1 2 3 4 5 6 7 8; do sleep 2 & done; wait");
    let limit = LinuxPidsBuilder::default().limit(5).build().unwrap();
    pids.defaults.resources = LinuxResourcesBuilder::default().pids(limit).build().unwrap();
    let output = pids.run().unwrap();
    assert!(output.stderr.contains("can't fork"), "{output:?}");

    // What it takes to be throttled once, however slow the machine is.
    let script = "stat=/sys/fs/cgroup/cpu/cpu.stat; [ -e $stat ] || stat=/sys/fs/cgroup/cpu.stat; \
        until grep -q 'nr_throttled [1-9]' $stat; do :; done; echo throttled";
    let mut cpu = Container::shell(root.path(), script);
    let quota = LinuxCpuBuilder::default().quota(5_000).period(50_000_u64).build().unwrap();
    cpu.defaults.resources = LinuxResourcesBuilder::default().cpu(quota).build().unwrap();
    assert_eq!(cpu.text(), "throttled");
}

fn rlimits_and_sysctls_and_oom_score() {
    let root = rootfs();
    let mut container =
        Container::shell(root.path(), "ulimit -n; cat /proc/sys/net/ipv4/ip_default_ttl; cat /proc/self/oom_score_adj");
    let limit =
        PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(77_u64).hard(88_u64).build().unwrap();
    container.defaults.rlimits = vec![limit];
    container.defaults.sysctls.insert("net.ipv4.ip_default_ttl".into(), "33".into());
    container.defaults.oom_score = Some(321);
    assert_eq!(container.text(), "77\n33\n321");
    for (name, network) in [
        ("kernel.panic", Namespace::Own),
        ("vm.swappiness", Namespace::Own),
        ("net.ipv4.ip_forward", Namespace::Callers),
    ] {
        let root = rootfs();
        let mut container = Container::new(root.path(), &["true"]);
        container.defaults.sysctls.insert(name.into(), "1".into());
        container.defaults.network = network;
        assert!(matches!(container.run(), Err(SpawnError::Invalid(_))), "{name}");
    }
}

fn the_filter_denies_what_dockers_denies() {
    let root = rootfs();
    let denied = |script: &str| Container::shell(root.path(), script).run().unwrap();
    assert!(denied("mount -t tmpfs none /tmp").stderr.contains("permission denied"));
    assert!(denied("unshare -U true").stderr.contains("not permitted"));
    assert_eq!(shell_text("grep Seccomp: /proc/self/status | sed 's/.*\\t//'"), "2");
    let mut open = Container::shell(root.path(), "grep Seccomp: /proc/self/status | sed 's/.*\\t//'");
    open.seccomp = Seccomp::Unconfined;
    assert_eq!(open.text(), "0");
    let mut private = Container::shell(root.path(), "grep NoNewPrivs /proc/self/status | sed 's/.*\\t//'; id -u");
    private.defaults.no_new_privileges = true;
    private.user = Some("web");
    assert_eq!(private.text(), "1\n33");
}

fn a_profile_of_ones_own() {
    let root = rootfs();
    let text = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]}"#;
    let mut container = Container::shell(root.path(), "mkdir /tmp/x; echo $?; ls /tmp");
    container.seccomp = Seccomp::Profile(strata_sandbox::seccomp::Profile::from_json(text).unwrap());
    let output = container.run().unwrap();
    assert!(output.stderr.contains("Protocol error"), "{output:?}");
}

fn ids_of_its_own() {
    let root = rootfs();
    let mut container = Container::shell(
        root.path(),
        "id -u; cat /proc/self/uid_map; echo x > /tmp/made; stat -c %u:%g /tmp/made /bin/busybox; stat -c %t:%T /dev/null; echo > /dev/null; grep CapEff /proc/self/status",
    );
    container.defaults.user_namespace = UserNamespace::Own(IdMaps::block(1_100_000_000, 65_536));
    let text = container.text();
    assert!(text.starts_with("0\n") && text.contains("1100000000"), "{text}");
    assert!(text.contains("0:0\n0:0\n1:3") && text.ends_with("00000000a80425fb"), "{text}");
    // On the disk the file has the owner that the map of the mount says: the host's root, as everything of the image.
    assert_eq!(fs::metadata(root.path().join("tmp/made")).unwrap().uid(), 0);
    let mut user = Container::shell(root.path(), "id -u; id -G; ls /sys/class/net");
    user.defaults.user_namespace = UserNamespace::Own(IdMaps::block(1_100_000_000, 65_536));
    user.user = Some("web");
    assert_eq!(user.text(), "33\n33 40\nlo");
    let mut host = Container::shell(root.path(), "ls /sys/class/net | wc -l; echo 1 > /sys/kernel/mm/ksm/run");
    host.defaults.user_namespace = UserNamespace::Own(IdMaps::block(1_100_000_000, 65_536));
    host.defaults.network = Namespace::Callers;
    let output = host.run().unwrap();
    assert!(output.stderr.contains("/sys/kernel/mm/ksm/run"), "{output:?}");
}

fn hostile_roots_are_refused_or_harmless() {
    let canary = tempfile::tempdir().unwrap();
    fs::write(canary.path().join("file"), "untouched").unwrap();
    // Mounts of other programs come and go meanwhile.
    let mounts = || -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let ours = |point: &&str| !point.starts_with("/tmp/") || point.starts_with(canary.path().to_str().unwrap());
        points.filter(ours).map(str::to_owned).collect()
    };
    let before = mounts();
    for name in ["proc", "sys", "dev"] {
        for target in [canary.path().to_path_buf(), PathBuf::from("tmp"), PathBuf::from("/etc")] {
            let root = rootfs();
            fs::remove_dir(root.path().join(name)).unwrap();
            symlink(&target, root.path().join(name)).unwrap();
            let error = Container::new(root.path(), &["true"]).run().unwrap_err();
            assert!(matches!(error, SpawnError::NotADirectory { .. }), "{name} -> {target:?}: {error:?}");
        }
        let root = rootfs();
        fs::remove_dir(root.path().join(name)).unwrap();
        fs::write(root.path().join(name), "").unwrap();
        assert!(Container::new(root.path(), &["true"]).run().is_err());
    }
    // A link on the way of a mount is followed inside the root, wherever it points.
    let root = rootfs();
    symlink(canary.path(), root.path().join("escape")).unwrap();
    symlink("../../../../../../../../etc", root.path().join("dots")).unwrap();
    let mut container = Container::shell(root.path(), "ls /etc/inner && ls /escape");
    container.defaults.mounts = vec![
        bind("/tmp", "/dots/inner", &["rbind"]),
        bind(root.path().join("tmp").to_str().unwrap(), "/escape/x", &["bind"]),
    ];
    let output = container.run();
    assert!(output.is_err() || output.is_ok_and(|output| output.code() != 0));
    let mut container = Container::shell(root.path(), "ls -d /etc/inner");
    container.defaults.mounts = vec![bind("/tmp", "/dots/inner", &["rbind"])];
    assert_eq!(container.text(), "/etc/inner");
    assert_eq!(fs::read_dir(canary.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(canary.path().join("file")).unwrap(), "untouched");
    // /dev/null of the image is never used to mask, and device names of the image cannot stand in for ours.
    let root = rootfs();
    symlink("/proc/sys/kernel/core_pattern", root.path().join("dev/null")).unwrap();
    assert_eq!(Container::shell(root.path(), "stat -c %t:%T /dev/null; cat /proc/kcore | wc -c").text(), "1:3\n0");
    assert_eq!(mounts(), before);
}

fn a_working_directory_cannot_lead_out() {
    let root = rootfs();
    let _leaked = fs::File::open("/").unwrap();
    for number in 3..40 {
        let mut container = Container::new(root.path(), &["pwd"]);
        container.defaults.cwd = PathBuf::from(format!("/proc/self/fd/{number}"));
        let result = container.run();
        assert!(result.is_err(), "fd {number}: {result:?}");
    }
    symlink("/proc/self/fd/4", root.path().join("link")).unwrap();
    let mut container = Container::new(root.path(), &["pwd"]);
    container.defaults.cwd = PathBuf::from("/link/../..");
    assert_eq!(container.text(), "/");
    let mut container = Container::new(root.path(), &["pwd"]);
    container.defaults.cwd = PathBuf::from("/made/for/it");
    assert_eq!(container.text(), "/made/for/it");
}

fn landlock_is_up_and_ordinary_programs_do_not_notice() {
    let root = rootfs();
    let script = "cd /tmp && mkdir -p a b && echo x > a/f && mv a/f b/g && ln b/g a/h && ln -s g b/s && cat b/s && rm -r a b \
        && mknod fifo p && mknod null c 1 3 && : > /dev/null && cat /dev/stdin && echo y > /dev/stderr && : > f && dd if=/dev/zero of=f bs=1k count=1 conv=notrunc 2>/dev/null \
        && test -r /proc/self/mem && echo done";
    assert_eq!(Container { stdin: "in\n", ..Container::shell(root.path(), script) }.text(), "x\nin\ndone");
    // A file of the host as a stream can be opened again, though it lies outside.
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "from outside\n").unwrap();
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let Stdio::Fds { stdout, stderr, .. } = stdio else { unreachable!() };
    let stdin = fs::File::open(outside.path()).unwrap().into();
    let running =
        Container::new(root.path(), &["cat", "/dev/stdin"]).start(Stdio::Fds { stdin, stdout, stderr }).unwrap();
    let mut text = String::new();
    fs::File::from(pipes.stdout).read_to_string(&mut text).unwrap();
    assert_eq!((running.wait().unwrap().code(), text.as_str()), (0, "from outside\n"));
}

fn a_thousand_starts_leave_nothing() {
    let root = rootfs();
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let count = std::env::var("STRATA_TEST_STARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    for _ in 0..count {
        let running = Container::new(root.path(), &["true"]).start(Stdio::Inherit).unwrap();
        let status = running.wait_timeout(Duration::from_secs(10)).unwrap().expect("true ends");
        assert_eq!(status.code(), 0);
    }
    assert_eq!(descriptors(), before);
    let prefix = format!("{}-", std::process::id());
    for hierarchy in strata_sandbox::cgroup::Hierarchies::detect().unwrap().iter() {
        let left = fs::read_dir(hierarchy.mount.join("strata-test")).into_iter().flatten().flatten();
        let left: Vec<_> = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    assert_eq!(children, "", "zombies");
}

fn processes_left_behind_die_with_the_first() {
    let root = rootfs();
    let running = Container::shell(root.path(), "sleep 1000 & sleep 1000 & exit 0").start(Stdio::Inherit).unwrap();
    let group = running.cgroup().unwrap().directory("pids").map(PathBuf::from);
    assert_eq!(running.wait().unwrap().code(), 0);
    assert!(group.is_none_or(|path| !path.exists()));
}

fn a_frozen_container_stands_still() {
    let root = rootfs();
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let running = Container::shell(root.path(), "while :; do echo x; sleep 0.01; done").start(stdio).unwrap();
    let mut stdout = fs::File::from(pipes.stdout);
    let mut buffer = [0; 65536];
    stdout.read_exact(&mut buffer[..8]).unwrap();
    let group = running.cgroup().unwrap();
    group.freeze().unwrap();
    rustix::io::ioctl_fionbio(&stdout, true).unwrap();
    while stdout.read(&mut buffer).is_ok() {}
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(stdout.read(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    group.thaw().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(stdout.read(&mut buffer).unwrap() > 0);
    running.signal(libc::SIGKILL).unwrap();
    assert_eq!(running.wait().unwrap().code(), 137);
}

fn namespaces_of_another_container_are_joined() {
    let root = rootfs();
    let first = Container::new(root.path(), &["sleep", "100"]).start(Stdio::Inherit).unwrap();
    let path = |kind: &str| PathBuf::from(format!("/proc/{}/ns/{kind}", first.pid()));
    let mut second = Container::shell(root.path(), "readlink /proc/self/ns/net; ps | grep -c 'sleep 10[0]'; echo $$");
    second.defaults.network = Namespace::Path(path("net"));
    second.defaults.pid = Namespace::Path(path("pid"));
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let spec = strata_sandbox::spec_default::spec_default(second.defaults).unwrap();
    let running = strata_sandbox::spawn(Launch {
        stdio,
        seccomp: Seccomp::Default,
        ..Launch::new(&spec, Root::Path(root.path().to_owned()))
    })
    .unwrap();
    let mut text = String::new();
    fs::File::from(pipes.stdout).read_to_string(&mut text).unwrap();
    assert_eq!(running.wait().unwrap().code(), 0);
    let net = fs::read_link(path("net")).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), net.to_str());
    assert_eq!(lines.next(), Some("1"), "{text}");
    assert_ne!(lines.next(), Some("1"), "{text}");
    first.signal(libc::SIGKILL).unwrap();
    first.wait().unwrap();
}

fn a_detached_mount_is_the_root_and_ends_with_the_container() {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(std::os::fd::AsFd::as_fd(&context)).unwrap();
    let mount =
        fsmount(std::os::fd::AsFd::as_fd(&context), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let folder = |name| rustix::fs::mkdirat(&mount, name, rustix::fs::Mode::from_bits_truncate(0o755)).unwrap();
    folder("bin");
    let busybox = fs::read(rootfs().path().join("bin/busybox")).unwrap();
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&mount, "bin/sh", flags, rustix::fs::Mode::from_bits_truncate(0o755)).unwrap();
    fs::File::from(file).write_all(&busybox).unwrap();
    let defaults = strata_sandbox::spec_default::Defaults {
        // No folder for anything: all mount points are made.
        args: ["/bin/sh", "-c", "test -d /proc/self && test -c /dev/null && exit 6"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let spec = strata_sandbox::spec_default::spec_default(defaults).unwrap();
    let running = strata_sandbox::spawn(Launch::new(&spec, Root::Mount(mount))).unwrap();
    assert_eq!(running.wait().unwrap().code(), 6);
}

fn clocks_of_its_own() {
    let root = rootfs();
    let container = Container::shell(root.path(), "cut -d. -f1 /proc/uptime");
    let mut spec = strata_sandbox::spec_default::spec_default(container.defaults).unwrap();
    let linux = spec.linux_mut().as_mut().unwrap();
    let time = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Time).build().unwrap();
    linux.namespaces_mut().as_mut().unwrap().push(time);
    let offset: LinuxTimeOffset = serde_json::from_str(r#"{"secs": 1000000, "nanosecs": 0}"#).unwrap();
    linux.set_time_offsets(Some([("boottime".to_owned(), offset)].into()));
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let launch = Launch { stdio, ..Launch::new(&spec, Root::Path(root.path().to_owned())) };
    let running = strata_sandbox::spawn(launch).unwrap();
    let mut text = String::new();
    fs::File::from(pipes.stdout).read_to_string(&mut text).unwrap();
    assert_eq!(running.wait().unwrap().code(), 0);
    assert!(text.trim().parse::<u64>().unwrap() >= 1_000_000, "{text}");
}

fn owners_of_a_volume_are_mapped_when_asked() {
    let (root, volume) = (rootfs(), tempfile::tempdir().unwrap());
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let owner = |options: &[&str]| {
        let mut container =
            Container::shell(root.path(), "stat -c %u /volume; echo x > /volume/file; stat -c %u /volume/file");
        container.defaults.user_namespace = UserNamespace::Own(IdMaps::block(1_100_000_000, 65_536));
        container.defaults.mounts = vec![bind(volume.path().to_str().unwrap(), "/volume", options)];
        container.run().unwrap()
    };
    assert_eq!(owner(&["rbind", "idmap"]).stdout, "0\n0\n");
    assert_eq!(fs::metadata(volume.path().join("file")).unwrap().uid(), 0);
    // Without, root of the container is nobody to the host's files.
    let plain = owner(&["rbind"]);
    assert!(plain.stdout.starts_with("65534\n") && plain.stderr.contains("ermission denied"), "{plain:?}");
}

fn nothing_is_mounted_over_proc() {
    let root = rootfs();
    let source = root.path().join("tmp");
    let run = |target: &str| {
        let mut container = Container::new(root.path(), &["true"]);
        container.defaults.mounts = vec![bind(source.to_str().unwrap(), target, &["rbind"])];
        container.run()
    };
    for target in ["/proc", "/proc/sys", "/proc/self/attr", "//proc/../proc/1"] {
        let error = run(target).unwrap_err().to_string();
        assert!(error.ends_with("cannot be mounted because it is inside /proc"), "{target}: {error}");
    }
    assert_eq!(run("/process").unwrap().code(), 0);
}

/// An ignored signal stays so across exec.
fn exit_codes_arrive_though_the_signal_for_them_is_ignored() {
    let program = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new("env");
    command.arg("--ignore-signal=CHLD").arg(program).args(["--exact", "exit_codes_and_output_arrive"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("1 passed"), "{text} {}", String::from_utf8_lossy(&output.stderr));
}

/// Somebody swaps a folder on the way to a mount point for a link while containers start (CVE-2021-30465,
/// CVE-2024-45310): mount points are never made outside, whoever wins.
fn a_swapped_folder_leads_no_mount_point_outside() {
    let (root, canary) = (rootfs(), tempfile::tempdir().unwrap());
    fs::create_dir_all(root.path().join("race/real")).unwrap();
    fs::create_dir_all(canary.path().join("inner")).unwrap();
    symlink(canary.path(), root.path().join("link")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let (one, other) = (root.path().join("race"), root.path().join("link"));
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, flags).unwrap();
            }
        });
        let mut started = 0;
        for number in 0..150 {
            let mut container = Container::new(root.path(), &["true"]);
            container.cgroup = false;
            container.defaults.mounts = vec![bind("/tmp", &format!("/race/{number}/deep"), &["rbind"])];
            if let Ok(output) = container.run() {
                started += u32::from(output.code() == 0);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_ne!(started, 0);
    });
    let left: Vec<_> = fs::read_dir(canary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["inner"]);
}

fn many_threads_start_containers_at_once() {
    let root = rootfs();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let root = root.path();
            scope.spawn(move || {
                for number in 0..10 {
                    let output =
                        Container::shell(root, &format!("echo {thread}-{number}; exit {number}")).run().unwrap();
                    assert_eq!((output.code(), output.stdout), (number, format!("{thread}-{number}\n")));
                }
            });
        }
    });
}

/// Runs Python of this machine in a container whose root is this machine's, read-only.
fn python(script: &str) -> String {
    let mut container = Container::new(Path::new("/"), &["/usr/bin/python3", "-I", "-c", script]);
    container.defaults.read_only_root = true;
    container.text()
}

fn calls_with_dangerous_arguments_are_denied() {
    let script = r#"
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    return errno.errorcode.get(ctypes.get_errno(), "OK") if libc.syscall(*arguments) < 0 else "OK"
def family(number):
    try:
        socket.socket(number, socket.SOCK_SEQPACKET if number == 38 else socket.SOCK_STREAM, 0).close()
        return "OK"
    except OSError as error:
        return errno.errorcode[error.errno]
print("AF_ALG", family(38), "AF_VSOCK", family(40), "AF_UNIX", family(1), "AF_INET", family(2))
print("clone3", call(435, 0, 0), "unshare", call(272, 0x10000000), "setns", call(308, 0, 0))
print("clone", call(56, 0x10000000 | 17, 0, 0, 0, 0))
print("personality", call(135, ctypes.c_ulong(0xffffffff)), call(135, 0x0400000))
print("unknown", call(600), "keyctl", call(250, 0, 0, 0), "bpf", call(321, 0, 0, 0), "mount", call(165, 0, 0, 0, 0, 0))
print("io_uring", call(425, 1, 0), "userfaultfd", call(323, 0), "open_by_handle_at", call(304, 0, 0, 0))
"#;
    assert_eq!(
        python(script),
        "AF_ALG EPERM AF_VSOCK EPERM AF_UNIX OK AF_INET OK\nclone3 ENOSYS unshare EPERM setns EPERM\nclone EPERM\n\
         personality OK EPERM\nunknown ENOSYS keyctl EPERM bpf EPERM mount EPERM\n\
         io_uring EPERM userfaultfd EPERM open_by_handle_at EPERM"
    );
}

fn descriptors_of_the_host_do_not_come_along() {
    // One that would survive exec if nobody closed it.
    let leak = rustix::io::dup(fs::File::open("/").unwrap()).unwrap();
    let script = "import os; print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))";
    // The fourth is the listing's own.
    assert_eq!(python(script), "['0', '1', '2'] 4");
    drop(leak);
}

fn landlock_holds_where_the_mounts_would_not() {
    // A folder of the host as a stream, as if a descriptor had leaked (CVE-2024-21626). What was handed in may be used,
    // what lies above it may not.
    let (root, outside) = (rootfs(), tempfile::tempdir().unwrap());
    fs::create_dir(outside.path().join("given")).unwrap();
    fs::write(outside.path().join("given/file"), "given").unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let run = |landlock| {
        let (stdio, pipes) = Stdio::pipes().unwrap();
        let Stdio::Fds { stdout, stderr, .. } = stdio else { unreachable!() };
        let stdin = fs::File::open(outside.path().join("given")).unwrap().into();
        let mut container = Container::new(root.path(), &["cat", "/proc/self/fd/0/file", "/proc/self/fd/0/../secret"]);
        container.landlock = landlock;
        let running = container.start(Stdio::Fds { stdin, stdout, stderr }).unwrap();
        let mut text = String::new();
        fs::File::from(pipes.stdout).read_to_string(&mut text).unwrap();
        running.wait().unwrap();
        text
    };
    assert_eq!((run(Landlock::Off).as_str(), run(Landlock::Auto).as_str()), ("givensecret", "given"));
}
