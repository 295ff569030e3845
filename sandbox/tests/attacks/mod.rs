//! Known attacks on container runtimes, each by its number, against a canary outside that must stay as it was.

mod canary;
mod waiting;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use oci_spec::runtime::{Mount, MountBuilder, Spec};
use strata_sandbox::spec_default::{Defaults, UserNamespace, spec_default};
use strata_sandbox::{Exec, Identity, Landlock, Listener, Running, Seccomp, SpawnError, Stdio, exec};

use self::canary::Canary;
use crate::support::{Container, rootfs};
use crate::walls::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = vec![
        ("cve_2019_5736_the_runtime_is_not_overwritten", cve_2019_5736_the_runtime_is_not_overwritten, None),
        (
            "cve_2024_21626_no_directory_of_the_host_for_an_exec",
            cve_2024_21626_no_directory_of_the_host_for_an_exec,
            None,
        ),
        ("cve_2025_31133_masks_are_never_the_images_null", cve_2025_31133_masks_are_never_the_images_null, None),
        ("cve_2025_52565_a_console_lands_on_no_link", cve_2025_52565_a_console_lands_on_no_link, None),
        ("cve_2025_52881_sysctls_go_to_no_other_file", cve_2025_52881_sysctls_go_to_no_other_file, None),
        ("cve_2026_41579_dev_swapped_for_a_link", cve_2026_41579_dev_swapped_for_a_link, None),
        ("cve_2026_30892_odd_users_are_nobody", cve_2026_30892_odd_users_are_nobody, None),
        ("cve_2024_45310_folders_of_a_volume_swapped", cve_2024_45310_folders_of_a_volume_swapped, None),
        ("cve_2023_25809_cgroups_are_read_only", cve_2023_25809_cgroups_are_read_only, None),
        ("cve_2022_29162_nothing_is_inheritable", cve_2022_29162_nothing_is_inheritable, None),
        ("cve_2022_0492_no_release_agent", cve_2022_0492_no_release_agent, None),
    ];
    cases.extend(waiting::cases());
    cases
}

fn bind(source: &Path, destination: &str) -> Mount {
    let options = vec!["rbind".to_owned()];
    MountBuilder::default().source(source).destination(destination).typ("bind").options(options).build().unwrap()
}

/// A container that waits, and the spec of a process to add to it.
fn waiting(root: &Path) -> Running {
    Container::new(root, &["sleep", "1000"]).start(Stdio::Inherit).unwrap()
}

fn added(arguments: &[&str], cwd: &str) -> Spec {
    let args = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    spec_default(Defaults { args, cwd: PathBuf::from(cwd), ..Defaults::default() }).unwrap()
}

/// Adds a process and returns its exit code and output.
fn add(init: &Running, spec: &Spec, user: Option<&str>) -> Result<(u8, String), SpawnError> {
    add_behind(Landlock::Auto, init, spec, user)
}

fn add_behind(landlock: Landlock, init: &Running, spec: &Spec, user: Option<&str>) -> Result<(u8, String), SpawnError> {
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let running = exec(Exec {
        spec,
        init,
        user,
        groups: &[],
        stdio,
        seccomp: Seccomp::Default,
        landlock,
        listener: Listener::Agent,
        identity: Identity::default(),
        inherited: strata_sandbox::Inherited::default(),
        cgroup: None,
    })?;
    drop(pipes.stdin);
    let text = std::io::read_to_string(fs::File::from(pipes.stdout)).unwrap();
    Ok((running.wait().unwrap().code(), text))
}

/// A process to add, and how.
pub(crate) fn for_exec(arguments: &[&str]) -> (Spec, Adds) {
    (added(arguments, "/"), |init, spec| add(init, spec, None))
}

type Adds = fn(&Running, &Spec) -> Result<(u8, String), SpawnError>;

fn end(running: &Running) {
    running.signal(libc::SIGKILL).unwrap();
    running.wait().unwrap();
}

/// Exchanges two names without pause while `work` runs.
fn while_swapping(one: &Path, other: &Path, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags);
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The container waits for an exec, and writes to whatever program it finds below `/proc`. Also its entrypoint is the
/// program that starts it.
fn cve_2019_5736_the_runtime_is_not_overwritten() {
    let root = rootfs();
    let program = std::env::current_exe().unwrap();
    let before = (fs::read(&program).unwrap(), fs::metadata(&program).unwrap().modified().unwrap());
    let script = "while :; do for p in /proc/[0-9]*; do case $p in */1) ;; *) (echo evil >> $p/exe) 2>/dev/null && echo $p;; esac; done; done";
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let running = Container::shell(root.path(), script).start(stdio).unwrap();
    for _ in 0..15 {
        assert_eq!(add(&running, &added(&["true"], "/"), None).unwrap().0, 0);
    }
    end(&running);
    assert_eq!(std::io::read_to_string(fs::File::from(pipes.stdout)).unwrap(), "");
    // An entrypoint whose interpreter is the process's own program, which is still ours when the kernel looks for it.
    fs::write(root.path().join("bin/entry"), "#!/proc/self/exe\n").unwrap();
    std::os::unix::fs::chown(root.path().join("bin/entry"), Some(0), Some(0)).unwrap();
    fs::set_permissions(root.path().join("bin/entry"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let started = Container::new(root.path(), &["/bin/entry"]).run();
    assert!(matches!(started, Err(SpawnError::Exec { .. })), "{started:?}");
    assert!(before == (fs::read(&program).unwrap(), fs::metadata(&program).unwrap().modified().unwrap()));
}

fn cve_2024_21626_no_directory_of_the_host_for_an_exec() {
    let (root, canary) = (rootfs(), Canary::new());
    // Descriptors that somebody forgot to close.
    let leaked: Vec<_> = (0..10).map(|_| rustix::io::dup(fs::File::open(canary.path()).unwrap()).unwrap()).collect();
    symlink("/proc/self/fd/5", root.path().join("link")).unwrap();
    let running = waiting(root.path());
    for cwd in (3..40).map(|number| format!("/proc/self/fd/{number}")).chain(["/link".to_owned()]) {
        let result = add(&running, &added(&["ls", "file"], &cwd), None);
        assert!(result.is_err(), "{cwd}: {result:?}");
    }
    // And none arrives, by whatever name.
    let script = "ls /proc/self/fd | wc -l; ls -l /proc/self/fd/ | grep -c /tmp/";
    let (_, text) = add(&running, &added(&["/bin/sh", "-c", script], "/"), None).unwrap();
    assert_eq!(text, "4\n0\n");
    end(&running);
    drop(leaked);
    canary.check();
}

fn cve_2025_31133_masks_are_never_the_images_null() {
    let (root, canary) = (rootfs(), Canary::new());
    let dev = root.path().join("dev");
    fs::write(dev.join("null"), "").unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("other")).unwrap();
    let script = "cat /proc/kcore | wc -c; (: >> /proc/sys/kernel/core_pattern) 2>/dev/null || echo safe; stat -c %t:%T /dev/null";
    while_swapping(&dev.join("null"), &dev.join("other"), || {
        for _ in 0..8 {
            // Also where /dev is a folder of the image: then ours is made there, or nothing starts.
            let output = Container::shell(root.path(), script).run().unwrap();
            assert_eq!(output.stdout, "0\nsafe\n1:3\n", "{output:?}");
            let mut own = Container::shell(root.path(), script);
            own.defaults.mounts = vec![bind(&dev, "/dev")];
            if let Ok(output) = own.run() {
                assert!(output.stdout.contains("safe"), "{output:?}");
            }
        }
    });
    canary.check();
}

fn cve_2025_52565_a_console_lands_on_no_link() {
    let (root, canary) = (rootfs(), Canary::new());
    let dev = tempfile::tempdir().unwrap();
    symlink(canary.file(), dev.path().join("console")).unwrap();
    fs::create_dir(dev.path().join("pts")).unwrap();
    for name in ["/dev/console", "/dev"] {
        let mut container = Container::new(root.path(), &["true"]);
        container.defaults.terminal = true;
        let source = if name == "/dev" { dev.path().to_owned() } else { dev.path().join("console") };
        container.defaults.mounts = vec![bind(&source, name)];
        if let Ok(running) = container.start(Stdio::Terminal { size: None }) {
            running.wait().unwrap();
        }
    }
    // The image's own, while somebody swaps it.
    let image = root.path().join("dev/console");
    fs::write(&image, "").unwrap();
    symlink(canary.file(), root.path().join("dev/other")).unwrap();
    while_swapping(&image, &root.path().join("dev/other"), || {
        for _ in 0..8 {
            let container = Container::shell(root.path(), "echo evil > /dev/console");
            let running = container.start(Stdio::Terminal { size: None }).unwrap();
            running.wait().unwrap();
        }
    });
    canary.check();
}

fn cve_2025_52881_sysctls_go_to_no_other_file() {
    let (root, canary) = (rootfs(), Canary::new());
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let forged = tempfile::tempdir().unwrap();
    fs::create_dir_all(forged.path().join("sys/net/ipv4")).unwrap();
    symlink(canary.file(), forged.path().join("sys/net/ipv4/ip_forward")).unwrap();
    for destination in ["/proc", "/proc/sys", "/proc/sys/net", "/proc/self", "/proc/../proc/sys"] {
        let mut container = Container::new(root.path(), &["true"]);
        container.defaults.sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        container.defaults.mounts = vec![bind(forged.path(), destination)];
        assert!(matches!(container.run(), Err(SpawnError::Invalid(_))), "{destination}");
    }
    // A name that climbs out of the namespace's own.
    for name in ["net/../kernel/core_pattern", "net.ipv4...kernel.core_pattern", "net//../../sysrq-trigger"] {
        let mut container = Container::new(root.path(), &["true"]);
        container.defaults.sysctls = [(name.to_owned(), "evil".to_owned())].into();
        assert!(matches!(container.run(), Err(SpawnError::Invalid(_))), "{name}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    canary.check();
}

fn cve_2026_41579_dev_swapped_for_a_link() {
    let (root, canary) = (rootfs(), Canary::new());
    for name in ["dev", "proc", "sys"] {
        let other = root.path().join(format!("{name}-link"));
        symlink(canary.path(), &other).unwrap();
        let mut started = 0;
        while_swapping(&root.path().join(name), &other, || {
            for _ in 0..8 {
                let mut container = Container::new(root.path(), &["true"]);
                container.cgroup = false;
                match container.run() {
                    Ok(output) => started += u32::from(output.code() == 0),
                    Err(SpawnError::NotADirectory { .. } | SpawnError::Setup { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
        canary.check();
    }
}

fn cve_2026_30892_odd_users_are_nobody() {
    let root = rootfs();
    let running = waiting(root.path());
    for user in
        ["1000abc", "-1", "4294967296", "4294967295", "0x0", ":0", "", "2147483648", "+0", " 0", "0:-1", "web:x"]
    {
        let result = add(&running, &added(&["id", "-u"], "/"), Some(user));
        assert!(matches!(result, Err(SpawnError::User(_))), "{user:?}: {result:?}");
        let mut container = Container::new(root.path(), &["id", "-u"]);
        container.user = Some(user);
        assert!(matches!(container.run(), Err(SpawnError::User(_))), "{user:?}");
    }
    assert_eq!(add(&running, &added(&["id", "-u"], "/"), Some("web")).unwrap(), (0, "33\n".to_owned()));
    end(&running);
}

/// Two containers share a volume; one of them swaps folders in it while the other's mount points are made in there.
fn cve_2024_45310_folders_of_a_volume_swapped() {
    let (root, canary, volume) = (rootfs(), Canary::new(), tempfile::tempdir().unwrap());
    fs::create_dir_all(volume.path().join("a")).unwrap();
    let up = "../".repeat(20);
    symlink(format!("{up}{}", canary.path().display()), volume.path().join("b")).unwrap();
    while_swapping(&volume.path().join("a"), &volume.path().join("b"), || {
        for number in 0..25 {
            let mut container = Container::new(root.path(), &["true"]);
            container.cgroup = false;
            container.defaults.mounts =
                vec![bind(volume.path(), "/volume"), bind(Path::new("/tmp"), &format!("/volume/a/{number}/deep"))];
            // Either may win.
            let _ = container.run();
        }
    });
    canary.check();
}

fn cve_2023_25809_cgroups_are_read_only() {
    let root = rootfs();
    let script = "for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo 1 > $f && echo wrote $f; done 2>/dev/null; \
        for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/evil && echo made $d; done 2>/dev/null; \
        find /sys/fs/cgroup -name cgroup.procs | head -n 1 | wc -l";
    assert_eq!(Container::shell(root.path(), script).text(), "1");
    // With ids of its own, and where the cgroups shown are the host's.
    let mut container = Container::shell(root.path(), script);
    container.defaults.user_namespace = UserNamespace::Own(strata_sandbox::userns::IdMaps::block(200_000, 65_536));
    assert_eq!(container.text(), "1");
}

fn cve_2022_29162_nothing_is_inheritable() {
    let root = rootfs();
    let look = &["grep", "-E", "Cap(Inh|Amb)", "/proc/self/status"];
    let nothing = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000";
    for user in [None, Some("web")] {
        assert_eq!(Container { user, ..Container::new(root.path(), look) }.text(), nothing);
        let running = waiting(root.path());
        assert_eq!(add(&running, &added(look, "/"), user).unwrap().1.trim_end(), nothing);
        end(&running);
    }
}

fn cve_2022_0492_no_release_agent() {
    let root = rootfs();
    let script = "mkdir -p /tmp/c; mount -t cgroup -o rdma none /tmp/c && echo mounted; \
        unshare -Ur mount -t cgroup -o rdma none /tmp/c && echo mounted; \
        for f in $(find /sys/fs/cgroup -name release_agent); do echo /evil > $f && echo wrote; done; \
        mount -o remount,rw /sys/fs/cgroup && echo remounted; true";
    let output = Container::shell(root.path(), script).run().unwrap();
    assert_eq!((output.code(), output.stdout.as_str()), (0, ""), "{output:?}");
}
