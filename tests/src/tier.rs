//! Which tests run here.
//!
//! A test's name starts with its tier: `privileged_` needs root, `rootless_` runs the command as a plain user,
//! `unprivileged_` runs as whoever it is. A test that this machine cannot run is marked as ignored, so that the runner
//! counts it as skipped, and `--skipped` prints the reason.

use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::image::{busybox, debian};
use crate::union::{self, Server};
use crate::{plain_user, strata, tools};

/// What a test needs besides the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// FUSE mounts.
    Fuse,
    /// The kept Debian image.
    Debian,
    /// A static busybox.
    Busybox,
    /// A kernel with fs-verity.
    Verity,
    /// A kernel with FUSE over io_uring.
    Uring,
    /// Cgroups of version 1.
    CgroupV1,
    /// A program on this machine.
    Program(&'static str),
    /// A program on this machine or in the test cache.
    Tool(&'static str),
    /// Somebody who shows unions.
    Server(Server),
}

/// All tests, on their way to the runner.
#[derive(Debug, Default)]
pub struct Suite {
    trials: Vec<Trial>,
    skipped: Vec<(String, String)>,
}

impl Suite {
    /// Adds a test; its name starts with the tier.
    pub fn add(&mut self, name: &str, needs: &[Need], body: fn() -> Result<()>) {
        let missing = missing_tier(name).or_else(|| needs.iter().find_map(|need| need.missing()));
        let run = move || body().map_err(|error| Failed::from(format!("{error:#}")));
        self.trials.push(Trial::test(name, run).with_ignored_flag(missing.is_some()));
        if let Some(reason) = missing {
            self.skipped.push((name.to_owned(), reason));
        }
    }

    /// Does what the command line asks for.
    #[expect(clippy::print_stdout, reason = "what `--skipped` is for")]
    pub fn run(self) -> ExitCode {
        if std::env::args().any(|argument| argument == "--skipped") {
            for (name, reason) in self.skipped {
                println!("{name}: {reason}");
            }
            return ExitCode::SUCCESS;
        }
        let arguments = Arguments::from_args();
        let ended = libtest_mimic::run(&arguments, self.trials);
        end_what_is_left();
        ended.exit_code()
    }
}

/// Prepares the process that runs tests: private mounts, and children of children come back here.
pub fn prepare() -> Result<()> {
    let only_lists = std::env::args().any(|argument| argument == "--list");
    if rustix::process::geteuid().is_root() && !only_lists {
        plain_user::enter_private_mounts()?;
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// A test that failed may leave servers behind; they became children of this process. None is waited for alone: the first
/// process of a pid namespace ends only when the others in it are reaped, and these may be children of this process, too.
fn end_what_is_left() {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let mut found = false;
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
            {
                found = true;
                // Already gone is as good.
                let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
                let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::NOHANG);
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn missing_tier(name: &str) -> Option<String> {
    static PLAIN: OnceLock<Option<String>> = OnceLock::new();
    if strata::program().is_none() {
        return Some("no strata binary: build strata-cli, or name one in STRATA_BIN".to_owned());
    }
    let local = name.rsplit("::").next().unwrap_or(name);
    if local.starts_with("privileged_") {
        (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned())
    } else if local.starts_with("rootless_") {
        PLAIN.get_or_init(|| plain_user_without_namespaces().or_else(|| Need::Program("newuidmap").missing())).clone()
    } else {
        assert!(local.starts_with("unprivileged_"), "{name} names no tier");
        None
    }
}

/// Whether a plain user can make a user namespace here. The ranges of ids come with the private mounts, so they are not
/// asked for when only names are listed.
fn plain_user_without_namespaces() -> Option<String> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--mount", "true"]);
    plain_user::demote(&mut command);
    match strata::finish(&mut command) {
        Ok(finished) if finished.status.success() => None,
        Ok(finished) => Some(format!("no user namespaces for plain users: {}", finished.stderr.trim())),
        Err(error) => Some(format!("{error:#}")),
    }
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Need::Fuse => match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
                Ok(_) if rustix::process::geteuid().is_root() => None,
                Ok(_) => Need::Program("fusermount3").missing(),
                Err(error) => Some(format!("/dev/fuse: {error}")),
            },
            Need::Debian => {
                debian::kept().is_none().then(|| "no Debian image (test-images debian makes it)".to_owned())
            }
            Need::Busybox => busybox::program().err().map(|error| format!("{error:#}")),
            Need::Verity => {
                let feature = std::path::Path::new("/sys/fs/ext4/features/verity");
                (!feature.exists()).then(|| "no fs-verity in this kernel".to_owned())
            }
            Need::Uring => {
                let switch = std::path::Path::new("/sys/module/fuse/parameters/enable_uring");
                (!switch.exists()).then(|| "no FUSE over io_uring in this kernel".to_owned())
            }
            Need::CgroupV1 => {
                let hierarchy = std::path::Path::new("/sys/fs/cgroup/memory");
                (!hierarchy.exists()).then(|| "no cgroups of version 1".to_owned())
            }
            Need::Program(name) => union::on_path(name).is_none().then(|| format!("no {name} on this machine")),
            Need::Tool(name) => {
                tools::program(name).is_none().then(|| format!("no {name} (./test packages installs it)"))
            }
            Need::Server(server) => union::missing(server),
        }
    }
}
