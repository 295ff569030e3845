//! A busybox root filesystem and a container in one line.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_spec::runtime::Spec;
use serde_json::Value;
use strata_sandbox::cgroup::CgroupName;
use strata_sandbox::spec_default::{Defaults, spec_default};
use strata_sandbox::{ExitStatus, Landlock, Launch, Root, Running, Seccomp, SpawnError, Stdio, spawn};
use tempfile::TempDir;

/// Makes a root filesystem with busybox and two users, or says why there is none.
pub(crate) fn rootfs() -> TempDir {
    let root = TempDir::new().unwrap();
    for folder in ["bin", "etc", "tmp", "root", "home/web", "proc", "sys", "dev", "usr/bin"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("the package busybox-static is installed"), root.path().join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/home/web:/bin/sh\n").unwrap();
    fs::write(root.path().join("etc/group"), "root:x:0:\nwww:x:33:\nlogs:x:40:web\ntty:x:5:\n").unwrap();
    // A mode that lets ids of user namespaces in.
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    root
}

/// Tells whether this process may do everything these tests of the privileged tier do.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root() && strata_sandbox::userns::is_initial()
}

/// What came out of a container.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn code(&self) -> u8 {
        self.status.code()
    }
}

/// A container to run to its end.
pub(crate) struct Container<'a> {
    pub(crate) root: &'a Path,
    pub(crate) defaults: Defaults,
    pub(crate) user: Option<&'a str>,
    pub(crate) seccomp: Seccomp,
    pub(crate) landlock: Landlock,
    pub(crate) cgroup: bool,
    pub(crate) stdin: &'a str,
    /// Merged into the spec (RFC 7396).
    pub(crate) patch: Value,
}

impl<'a> Container<'a> {
    pub(crate) fn new(root: &'a Path, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let defaults = Defaults { args, hostname: Some("box".into()), ..Defaults::default() };
        Self {
            root,
            defaults,
            user: None,
            seccomp: Seccomp::Default,
            landlock: Landlock::Auto,
            cgroup: true,
            stdin: "",
            patch: Value::Null,
        }
    }

    pub(crate) fn shell(root: &'a Path, script: &str) -> Self {
        Self::new(root, &["/bin/sh", "-c", script])
    }

    pub(crate) fn start(self, stdio: Stdio) -> Result<Running, SpawnError> {
        let mut spec = serde_json::to_value(spec_default(self.defaults).unwrap()).unwrap();
        merge(&mut spec, &self.patch);
        let spec: Spec = serde_json::from_value(spec).unwrap();
        spawn(Launch {
            user: self.user,
            stdio,
            cgroup: self.cgroup.then(cgroup_name),
            seccomp: self.seccomp,
            landlock: self.landlock,
            ..Launch::new(&spec, Root::Path(self.root.to_owned()))
        })
    }

    pub(crate) fn run(self) -> Result<Output, SpawnError> {
        let (stdio, pipes) = Stdio::pipes().unwrap();
        let input = self.stdin.to_owned();
        let running = self.start(stdio)?;
        let mut stdin = fs::File::from(pipes.stdin);
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(input.as_bytes());
        });
        let read = |fd| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                fs::File::from(fd).read_to_end(&mut text).unwrap();
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let (stdout, stderr) = (read(pipes.stdout), read(pipes.stderr));
        // A watchdog instead of a hang.
        let status = running.wait_timeout(Duration::from_secs(60)).unwrap();
        if status.is_none() {
            running.signal(9).unwrap();
        }
        let status = running.wait().unwrap();
        writer.join().unwrap();
        Ok(Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() })
    }

    /// Runs it and returns what it wrote, trimmed; it must succeed.
    pub(crate) fn text(self) -> String {
        let output = self.run().unwrap();
        assert_eq!(output.code(), 0, "{output:?}");
        output.stdout.trim_end().to_owned()
    }
}

fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return };
    for (key, new) in patch {
        match (&mut value[key.as_str()], new) {
            (old @ Value::Object(_), Value::Object(_)) => merge(old, new),
            (old, new) => *old = new.clone(),
        }
    }
}

/// A cgroup that no other test uses.
pub(crate) fn cgroup_name() -> CgroupName {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    // Without a parent of its own, which nobody would remove.
    CgroupName::new(&format!("strata-test-{}-{number}", std::process::id())).unwrap()
}

const APPLETS: [&str; 46] = [
    "sh", "ls", "cat", "echo", "true", "false", "id", "mount", "umount", "hostname", "sleep", "kill", "ps", "pwd",
    "env", "mkdir", "touch", "rm", "stat", "stty", "tty", "head", "tail", "grep", "sed", "awk", "dd", "ifconfig", "ip",
    "mknod", "chmod", "chown", "ln", "readlink", "test", "wc", "sort", "uname", "su", "chroot", "unshare", "ping",
    "find", "cut", "yes", "seq",
];
