//! Podman with strata as its `mount_program`, in the place of fuse-overlayfs. The oracle is the kernel's overlayfs, which
//! Podman uses without such a program: on fuse-overlayfs 1.10 itself, deleted files come back in what is committed here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use strata_tests::image::busybox;
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User, finish, mounts_below, program};
use strata_tests::tier::{Need, Suite};

use crate::reaper::Reaper;

pub(crate) fn register(suite: &mut Suite) {
    let needs = [Need::Fuse, Need::Busybox, Need::Program("podman"), Need::Program("runc")];
    suite.add("podman::privileged_containers_are_as_on_overlayfs", &needs, privileged);
    suite.add("podman::rootless_containers_are_as_on_overlayfs", &needs, rootless);
}

/// What is done in a container: everything that a layer has a form of its own for.
const CHANGES: &str = r#"
set -e
rm -rf /usr && mkdir -p /usr/new && echo n > /usr/new/f
mv /home /moved && mkdir /home && echo h > /home/h
chmod 700 /root && chown 7:8 /etc/passwd && echo add >> /etc/group
ln /etc/group /etc/linked && ln -s nowhere /symlink && mkfifo /fifo
rm /etc/motd && echo again > /etc/motd && rm /tmp/.x 2>/dev/null || true
dd if=/dev/zero of=/big bs=1M count=2 2>/dev/null && chmod 4755 /big
"#;

/// Everything in a container but what its runtime puts there. Folders have no link counts and sizes to compare.
const LIST: &str = r#"
find / -xdev ! -path '/proc*' ! -path '/sys*' ! -path '/dev*' ! -path /run/.containerenv ! -path /etc/hosts \
    ! -path /etc/resolv.conf ! -path /etc/hostname ! -path /etc/mtab > /tmp/.names
sort /tmp/.names | while read -r name; do
    case "$name" in /tmp/.names) continue ;; esac
    if [ -d "$name" ] && ! [ -h "$name" ]; then stat -c '%n %F %a %u %g' "$name"; else stat -c '%n %F %a %u %g %h %s' "$name"; fi
done
cat /usr/new/f /home/h /etc/linked /moved/not-executable /etc/motd
"#;

/// A private storage of Podman's.
struct Podman<'a> {
    strata: &'a Strata,
    folder: PathBuf,
    user: User,
    root_type: &'static str,
    _reaper: Reaper,
}

impl<'a> Podman<'a> {
    fn new(strata: &'a Strata, user: User, name: &str, mount_program: Option<&Path>) -> Result<Podman<'a>> {
        let folder = strata.make_folder(name)?;
        for sub in ["run", "home", "runtime"] {
            strata.make_folder(&format!("{name}/{sub}"))?;
        }
        let root = folder.display();
        let program = mount_program.map_or(String::new(), |program| {
            format!("[storage.options.overlay]\nmount_program = \"{}\"\n", program.display())
        });
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{root}/root\"\nrootless_storage_path = \"{root}/root\"\n\
             runroot = \"{root}/run\"\n{program}"
        );
        fs::write(folder.join("storage.conf"), storage)?;
        let engine = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n";
        fs::write(folder.join("containers.conf"), engine)?;
        let root_type = if mount_program.is_some() { "type fuse.fuse-overlayfs" } else { "type overlay" };
        let podman = Podman { strata, folder, user, root_type, _reaper: Reaper::start() };
        let image = fs::File::open(busybox::folder()?.join("docker.tar"))?;
        let finished = finish(podman.command(&["load", "-q"]).stdin(image))?;
        ensure!(finished.status.success(), "{finished}");
        Ok(podman)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "120", "podman"]).args(arguments).current_dir(self.strata.folder());
        if self.user == User::Plain {
            plain_user::demote(&mut command);
        }
        command
            .env("CONTAINERS_STORAGE_CONF", self.folder.join("storage.conf"))
            .env("CONTAINERS_CONF", self.folder.join("containers.conf"))
            .env("XDG_RUNTIME_DIR", self.folder.join("runtime"))
            .env("HOME", self.folder.join("home"));
        command
    }

    fn ok(&self, arguments: &[&str]) -> Result<String> {
        let finished = finish(&mut self.command(arguments))?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    }

    /// Runs a shell in a new container. The limits are ones that anybody may set.
    fn run(&self, options: &[&str], image: &str, script: &str) -> Result<String> {
        let fixed = ["run", "--network=none", "--ulimit=nofile=1000:1000", "--ulimit=nproc=1000:1000"];
        self.ok(&[&fixed, options, &[image, "sh", "-c", script]].concat())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // What is left is reported by the end of the test, which removes the folder.
        let _ = finish(&mut self.command(&["rm", "--force", "--all"]));
        if self.user == User::Caller {
            remove_cgroup_parents();
            return;
        }
        // Files of other users, which only this user's namespace can remove. A `system reset` would wait for the process
        // that holds the namespace to disappear, and as an orphan of ours it stays until the tests end.
        let _ = finish(&mut self.command(&["unshare", "rm", "-rf", &self.folder.join("root").display().to_string()]));
        let pause = fs::read_to_string(self.folder.join("runtime/libpod/tmp/pause.pid")).unwrap_or_default();
        if let Some(pid) = pause.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Podman leaves the parent of its containers' cgroups, and in that the one of their monitors.
fn remove_cgroup_parents() {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for parent in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|folder| folder.join("libpod_parent")) {
        for inner in ["conmon", ""] {
            // Not there, or in use by containers of somebody else: then it stays.
            let _ = fs::remove_dir(parent.join(inner));
        }
    }
}

/// Strata under the name by which Podman calls it.
fn stand_in(strata: &Strata) -> Result<PathBuf> {
    let place = strata.folder().join("fuse-overlayfs");
    fs::copy(program().context("no strata binary")?, &place)?;
    Ok(place)
}

/// What a container of the image, changed and committed, looks like.
fn life(podman: &Podman<'_>) -> Result<String> {
    let image = busybox::REFERENCE;
    let mounts = podman.run(&["--rm"], image, "test ! -e /var; mount | grep ' on / '")?;
    ensure!(mounts.contains(podman.root_type), "{mounts}");
    podman.run(&["--name=changed"], image, CHANGES)?;
    podman.ok(&["commit", "-q", "changed", "made"])?;
    let mut seen = podman.run(&["--rm"], "made", LIST)?;
    // A second layer of changes on the committed one.
    podman.run(&["--name=again"], "made", "rm -r /usr/new && mkdir /usr/new && mv /moved /usr/new/ && rm /home/h")?;
    podman.ok(&["commit", "-q", "again", "made-again"])?;
    seen += &podman.run(&["--rm"], "made-again", "find /usr /home /moved /var 2>/dev/null | sort")?;
    let file = podman.folder.join("home/copied");
    fs::write(&file, "copied in")?;
    podman.ok(&["cp", &file.display().to_string(), "changed:/root/copied"])?;
    let out = podman.folder.join("home/out");
    podman.ok(&["cp", "changed:/root/copied", &out.display().to_string()])?;
    ensure!(fs::read_to_string(&out)? == "copied in", "what was copied out is not what was copied in");
    for container in ["changed", "again"] {
        podman.ok(&["rm", container])?;
    }
    // In the first user's namespace; a plain user's mounts are in one of their own.
    let left = mounts_below(&podman.folder.join("root"));
    let left: Vec<_> = left.iter().filter(|place| place.ends_with("merged")).collect();
    ensure!(left.is_empty(), "still mounted: {left:?}");
    Ok(seen)
}

fn expect_same(ours: &str, theirs: &str) -> Result<()> {
    let missing: Vec<_> = theirs.lines().filter(|line| !ours.lines().any(|ours| ours == *line)).collect();
    let more: Vec<_> = ours.lines().filter(|line| !theirs.lines().any(|theirs| theirs == *line)).collect();
    ensure!(missing.is_empty() && more.is_empty(), "only on overlayfs: {missing:#?}\nonly on strata: {more:#?}");
    Ok(())
}

fn privileged() -> Result<()> {
    let strata = Strata::new()?;
    let ours = life(&Podman::new(&strata, User::Caller, "ours", Some(&stand_in(&strata)?))?)?;
    let theirs = life(&Podman::new(&strata, User::Caller, "theirs", None)?)?;
    expect_same(&ours, &theirs)
}

/// Both at once: without cgroups, Podman may wait many seconds for each container that has ended.
fn rootless() -> Result<()> {
    let strata = Strata::of(User::Plain)?;
    let program = stand_in(&strata)?;
    let short_life = |name: &str, program: Option<&Path>| -> Result<String> {
        let podman = Podman::new(&strata, User::Plain, name, program)?;
        podman.run(&["--name=changed"], busybox::REFERENCE, CHANGES)?;
        podman.ok(&["commit", "-q", "changed", "made"])?;
        Ok(podman.run(&["--rm"], "made", LIST)? + &keep_id(&podman)?)
    };
    let (ours, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| short_life("theirs", None));
        (short_life("ours", Some(&program)), theirs.join())
    });
    let theirs = theirs.map_err(|_| anyhow!("the other thread panicked"))?;
    expect_same(&ours?, &theirs?)
}

/// The user's own number inside: the layers are shown through `uidmapping` and `gidmapping`.
fn keep_id(podman: &Podman<'_>) -> Result<String> {
    let script = "id -u; id -g; echo x > /tmp/mine; mkdir /tmp/dir; stat -c '%n %u %g %a' /tmp/mine /tmp/dir / /bin /home /etc/group";
    podman.run(&["--rm", "--userns=keep-id"], busybox::REFERENCE, script)
}
