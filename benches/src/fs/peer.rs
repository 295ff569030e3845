//! Who is measured, and how each mounts a stack.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::WaitOptions;

use super::data::{Data, Set};
use crate::walk::run;

/// One column.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name in tables.
    pub name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Strata { program: PathBuf, lower: Lower, options: &'static str },
    Overlayfs,
    FuseOverlayfs(PathBuf),
    Plain,
}

/// In which form strata gets the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lower {
    Image,
    Folders,
}

/// Where the changes of a mount go.
#[derive(Clone, Debug)]
pub struct UpperPlace {
    /// The changes.
    pub dir: PathBuf,
    /// Scratch space.
    pub work: PathBuf,
}

/// A mount in use. Dropped, it is taken away, and its server has ended.
#[derive(Debug)]
pub struct Mounted {
    /// Where to look.
    pub point: PathBuf,
    /// From the start of the command until the root could be looked at.
    pub took: Duration,
    is_mount: bool,
}

/// All peers that there are here: ours first.
pub fn all(strata: &Path, more: &[PathBuf]) -> Vec<Peer> {
    let ours = |name: &str, lower, options| Peer {
        name: name.to_owned(),
        kind: Kind::Strata { program: strata.to_owned(), lower, options },
    };
    let ring_by_itself = fs::read_to_string(ENABLE_URING).is_ok_and(|value| value.trim() == "Y");
    let mut peers = vec![
        ours("strata", Lower::Image, ""),
        ours("strata/folders", Lower::Folders, ""),
        // The transport that it does not choose by itself.
        if ring_by_itself {
            ours("strata/device", Lower::Image, "transport=device")
        } else {
            ours("strata/ring", Lower::Image, RING)
        },
        ours("strata/fuser", Lower::Image, "transport=fuser"),
        ours("strata/cached", Lower::Image, "passthrough=off"),
        Peer { name: "overlayfs".to_owned(), kind: Kind::Overlayfs },
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("fuse-overlayfs"));
    for program in on_path.chain(more.iter().cloned()) {
        let Some(version) = version_of(&program) else { continue };
        let name = format!("fuse-overlayfs-{version}");
        if !peers.iter().any(|peer| peer.name == name) {
            peers.push(Peer { name, kind: Kind::FuseOverlayfs(program) });
        }
    }
    peers.push(Peer { name: "plain".to_owned(), kind: Kind::Plain });
    peers
}

/// `1.10` of a program that says so.
fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.strip_prefix("fuse-overlayfs: version "))?;
    Some(version.trim().trim_end_matches(".0").to_owned())
}

impl Peer {
    /// Whether it is one of strata's modes.
    pub fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Strata { .. })
    }

    /// Whether it is a folder without a union.
    pub fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Plain)
    }

    /// Shows the set at `point`, writable if there is an upper. A plain folder shows its lowest layer, or with an upper
    /// a copy of it.
    pub fn mount(
        &self,
        data: &Data,
        set: &Set,
        upper: Option<&UpperPlace>,
        options: &str,
        point: &Path,
    ) -> Result<Mounted> {
        if self.is_plain() {
            let point = self.plain(set, upper)?;
            return Ok(Mounted { point, took: Duration::ZERO, is_mount: false });
        }
        let mut command = self.command(data, set, upper, options, point)?;
        let enabled = match &self.kind {
            Kind::Strata { options, .. } if *options == RING => Some(RingEnabled::new()?),
            _ => None,
        };
        let started = Instant::now();
        let result = run(&mut command);
        drop(enabled);
        result?;
        // From here on it has to be unmounted.
        let mut mounted = Mounted { point: point.to_owned(), took: Duration::ZERO, is_mount: true };
        let root = point.metadata().with_context(|| format!("look at {point:?}"))?;
        mounted.took = started.elapsed();
        let beside = point.parent().context("a place to mount on is in a folder")?.metadata()?;
        if root.dev() == beside.dev() {
            mounted.is_mount = false;
            bail!("{command:?} mounted nothing");
        }
        Ok(mounted)
    }

    fn plain(&self, set: &Set, upper: Option<&UpperPlace>) -> Result<PathBuf> {
        let lower = set.folder.join("l0");
        let Some(upper) = upper else {
            ensure!(set.layers == 1, "a plain folder has no layers");
            return Ok(lower);
        };
        let copy = upper.dir.join("copy");
        run(Command::new("cp").arg("-a").arg(&lower).arg(&copy))?;
        Ok(copy)
    }

    fn command(
        &self,
        data: &Data,
        set: &Set,
        upper: Option<&UpperPlace>,
        options: &str,
        point: &Path,
    ) -> Result<Command> {
        let names = set.lower_names();
        let mut command = match &self.kind {
            Kind::Plain => bail!("a plain folder is not mounted"),
            Kind::Strata { program, lower, options } => {
                let mut command = Command::new(program);
                command.arg("--root").arg(data.store()).arg("mount");
                if let Some(upper) = upper {
                    command.arg("--upper").arg(&upper.dir).arg("--work").arg(&upper.work);
                }
                if !options.is_empty() {
                    command.arg("-o").arg(options);
                }
                match lower {
                    Lower::Image => command.arg(&set.reference),
                    Lower::Folders => command.arg("--lower").arg(names.join(":")),
                };
                command.arg(point);
                command
            }
            Kind::Overlayfs | Kind::FuseOverlayfs(_) => {
                let mut text = OsString::from(format!("lowerdir={}", names.join(":")));
                // The kernel wants two layers at least.
                if names.len() == 1 && upper.is_none() {
                    text.push(":empty");
                }
                if let Some(upper) = upper {
                    text.push(",upperdir=");
                    text.push(&upper.dir);
                    text.push(",workdir=");
                    text.push(&upper.work);
                }
                let mut command = if let Kind::FuseOverlayfs(program) = &self.kind {
                    Command::new(program)
                } else {
                    if !options.is_empty() {
                        text.push(",");
                        text.push(options);
                    }
                    let mut command = Command::new("mount");
                    command.args(["-t", "overlay", "overlay"]);
                    command
                };
                command.arg("-o").arg(text).arg(point);
                command
            }
        };
        command.current_dir(&set.folder);
        Ok(command)
    }
}

/// Removes what was written, so that the next finds an empty upper.
pub fn clear(upper: &UpperPlace) -> Result<()> {
    for folder in [&upper.dir, &upper.work] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("remove {folder:?}"))?;
        }
        fs::create_dir_all(folder)?;
    }
    Ok(())
}

impl Mounted {
    /// Takes it away and waits for the end of its server.
    pub fn unmount(mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_mount, false) {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match rustix::mount::unmount(&self.point, UnmountFlags::empty()) {
                    Ok(()) => break,
                    // Something a program left behind still ends.
                    Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                    Err(error) => {
                        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
                        return Err(error).with_context(|| format!("unmount {:?}", self.point));
                    }
                }
            }
            wait_for_servers()?;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mount {
            let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
            let _ = wait_for_servers();
        }
    }
}

/// The processes that serve mounts, which became our children when what started them ended.
pub fn servers() -> Vec<u32> {
    let mut found = Vec::new();
    let mut pending = vec![std::process::id()];
    while let Some(pid) = pending.pop() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children: Vec<u32> = children.split_whitespace().filter_map(|text| text.parse().ok()).collect();
        found.extend(&children);
        pending.extend(children);
    }
    found
}

/// Nobody else is a child of ours between two runs.
fn wait_for_servers() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Err(Errno::CHILD) => return Ok(()),
            Ok(None) if Instant::now() > deadline => bail!("the server of the last mount does not end"),
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error).context("wait for the server of the last mount"),
        }
    }
}

/// The kernel offers io_uring to FUSE servers as long as this lives; then what was set before holds again.
#[derive(Debug)]
struct RingEnabled {
    before: String,
}

impl RingEnabled {
    fn new() -> Result<RingEnabled> {
        let before = fs::read_to_string(ENABLE_URING).context("this kernel has no io_uring for FUSE")?;
        let enabled = RingEnabled { before };
        fs::write(ENABLE_URING, "Y").context("switch io_uring for FUSE on")?;
        Ok(enabled)
    }
}

impl Drop for RingEnabled {
    fn drop(&mut self) {
        let _ = fs::write(ENABLE_URING, self.before.trim());
    }
}

const RING: &str = "transport=ring";
const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";
