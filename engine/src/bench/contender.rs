//! Who shows the layers as one tree.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use strata_unionfs::{Lower, MountSpec, Options};

use super::{BenchError, failed};
use crate::filesystem::FilesystemProcess;

/// A union filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Strata,
    Overlayfs,
    FuseOverlayfs,
}

/// The same layers in the forms that the contenders take.
#[derive(Debug)]
pub(super) struct Layers {
    /// As the store has them.
    pub(super) lower: Lower,
    /// Unpacked, bottom first.
    pub(super) folders: Vec<PathBuf>,
    /// A folder to work in.
    pub(super) work: PathBuf,
}

/// A mounted tree; dropping it unmounts.
#[derive(Debug)]
pub(super) struct Mounted {
    root: PathBuf,
    server: Option<FilesystemProcess>,
}

impl Contender {
    pub(super) const ALL: [Contender; 3] = [Contender::Strata, Contender::Overlayfs, Contender::FuseOverlayfs];

    /// Mounts the layers, read-only and fresh.
    pub(super) fn mount(self, layers: &Layers) -> Result<Mounted, BenchError> {
        let root = layers.work.join("merged");
        fs::create_dir_all(&root).map_err(failed("create", &root))?;
        let server = match self {
            Contender::Strata => Some(mount_strata(layers, &root).map_err(|error| self.refused(&error))?),
            Contender::Overlayfs => {
                mount_overlayfs(layers, &root).map_err(|error| self.refused(&error))?;
                None
            }
            Contender::FuseOverlayfs => {
                self.mount_fuse_overlayfs(layers, &root)?;
                None
            }
        };
        Ok(Mounted { root, server })
    }

    fn refused(self, error: &dyn std::error::Error) -> BenchError {
        BenchError::Mount { contender: self.to_string(), reason: crate::error_chain(error) }
    }

    fn mount_fuse_overlayfs(self, layers: &Layers, root: &Path) -> Result<(), BenchError> {
        let mut option = std::ffi::OsString::from("ro,lowerdir=");
        for (number, folder) in topmost_first(layers).iter().enumerate() {
            if number > 0 {
                option.push(":");
            }
            option.push(folder);
        }
        let output = Command::new("fuse-overlayfs").arg("-o").arg(option).arg(root).output();
        let output = output.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                BenchError::Mount { contender: self.to_string(), reason: "it is not installed".to_owned() }
            }
            _ => self.refused(&error),
        })?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(BenchError::Mount { contender: self.to_string(), reason })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Contender::Strata => "strata",
            Contender::Overlayfs => "overlayfs",
            Contender::FuseOverlayfs => "fuse-overlayfs",
        })
    }
}

impl Mounted {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.root, UnmountFlags::empty()) {
            tracing::warn!(root = ?self.root, %error, "not unmounted; it goes with the benchmark's namespace");
        }
        if let Some(server) = self.server.take() {
            server.wait(std::time::Duration::from_secs(5));
        }
    }
}

fn mount_strata(layers: &Layers, root: &Path) -> Result<FilesystemProcess, crate::filesystem::FilesystemError> {
    let options = Options { read_only: true, allow_other: true, ..Options::default() };
    let spec = MountSpec { lower: layers.lower.clone(), upper: None, options };
    FilesystemProcess::start(&spec, Some(root), &[])
}

fn mount_overlayfs(layers: &Layers, root: &Path) -> rustix::io::Result<()> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount};
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "strata-bench")?;
    let folders = topmost_first(layers);
    // One by one: a list is cut at a page by the kernel. Before 6.8 only a list is known.
    let one_by_one = folders.iter().try_for_each(|folder| fsconfig_set_string(&context, "lowerdir+", folder));
    if one_by_one.is_err() {
        let list = folders.iter().map(|folder| folder.to_string_lossy()).collect::<Vec<_>>().join(":");
        fsconfig_set_string(&context, "lowerdir", list)?;
    }
    if !strata_sandbox::userns::is_initial() {
        fsconfig_set_flag(&context, "userxattr")?;
    }
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    move_mount(&mount, "", rustix::fs::CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// The folders as overlayfs takes them. It refuses a single one without an upper: an empty one goes below.
fn topmost_first(layers: &Layers) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = layers.folders.iter().rev().cloned().collect();
    if folders.len() < 2 {
        let empty = layers.work.join("empty");
        // If it cannot be made, the mount says so.
        let _ = fs::create_dir(&empty);
        folders.push(empty);
    }
    folders
}
