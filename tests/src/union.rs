//! Unions of plain folders, mounted by strata or by one of its peers, whose layers can rotate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use crate::plain_user;
use crate::strata::{Strata, User, finish};

/// Who shows the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The command under test.
    Strata,
    /// The kernel's overlayfs, with everything that keeps identity.
    Overlayfs,
    /// The program of that name on this machine.
    FuseOverlayfs,
    /// Nobody: an ext4 filesystem of its own, in which there are no layers.
    Ext4,
}

/// A stack of folders and a place to show it. Dropped, it is unmounted and removed.
#[derive(Debug)]
pub struct Union {
    strata: Strata,
    server: Server,
    options: Option<String>,
    /// How often the layers have rotated.
    rotations: usize,
}

impl Union {
    /// An empty lower and an empty upper, not mounted yet.
    pub fn new(server: Server) -> Result<Union> {
        Union::of(server, User::Caller)
    }

    /// The same, with everything owned and done by `user`.
    pub fn of(server: Server, user: User) -> Result<Union> {
        let strata = Strata::of(user)?;
        let union = Union { strata, server, options: None, rotations: 0 };
        // Others than the owner are let in: tests become other users.
        open_to_all(union.folder())?;
        open_to_all(&union.strata.make_folder("mnt")?)?;
        if server == Server::Ext4 {
            union.make_ext4()?;
        }
        open_to_all(&union.make("lower0")?)?;
        open_to_all(&union.make("upper0")?)?;
        union.make("work0")?;
        Ok(union)
    }

    /// Adds mount options.
    #[must_use]
    pub fn with_options(mut self, options: &str) -> Union {
        self.options = Some(options.to_owned());
        self
    }

    /// The mount options that were added.
    pub fn options(&self) -> &str {
        self.options.as_deref().unwrap_or_default()
    }

    /// Where everything lies.
    pub fn folder(&self) -> &Path {
        self.strata.folder()
    }

    /// The command under test.
    pub fn strata(&self) -> &Strata {
        &self.strata
    }

    /// Where the union is shown.
    pub fn point(&self) -> PathBuf {
        self.folder().join("mnt")
    }

    /// The folder at the bottom, to be filled before mounting. Without layers, where the union is shown.
    pub fn bottom(&self) -> PathBuf {
        if self.server == Server::Ext4 { self.point() } else { self.folder().join("lower0") }
    }

    /// The folder with the changes.
    pub fn upper(&self) -> PathBuf {
        if self.server == Server::Ext4 {
            return self.point();
        }
        self.folder().join(format!("upper{}", self.rotations))
    }

    /// Mounts it.
    pub fn mount(&self) -> Result<()> {
        let layers = self.layers();
        let mut command = match self.server {
            Server::Ext4 => return Ok(()),
            Server::Strata => {
                let mut command = self.strata.command(["mount"]);
                let (lower, upper, work) = &layers;
                command.args(["--lower", lower, "--upper", upper, "--work", work]);
                if let Some(options) = &self.options {
                    command.args(["-o", options]);
                }
                command
            }
            Server::Overlayfs | Server::FuseOverlayfs => {
                let (lower, upper, work) = &layers;
                let mut options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
                let mut command;
                if self.server == Server::Overlayfs {
                    options += ",redirect_dir=on,index=on,xino=on";
                    command = Command::new("mount");
                    command.args(["-t", "overlay", "overlay"]);
                } else {
                    options += ",dev,suid,allow_other";
                    command = Command::new("fuse-overlayfs");
                }
                if let Some(more) = &self.options {
                    options = format!("{options},{more}");
                }
                command.args(["-o", &options]);
                command
            }
        };
        command.arg("mnt").current_dir(self.folder());
        let finished = finish(&mut command)?;
        ensure!(finished.status.success(), "{finished}");
        Ok(())
    }

    /// Takes the mount away.
    pub fn unmount(&self) -> Result<()> {
        if self.server == Server::Ext4 {
            return Ok(());
        }
        for _ in 0..200 {
            match rustix::mount::unmount(self.point(), rustix::mount::UnmountFlags::empty()) {
                Ok(()) => return Ok(()),
                // Whoever just ended may hold it for a moment.
                Err(Errno::BUSY) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return Err(error).context("unmount"),
            }
        }
        bail!("{:?} stays busy", self.point());
    }

    /// Mounts it anew.
    pub fn remount(&self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Mounts it anew with what was the upper as the topmost lower, and an empty upper.
    pub fn rotate(&mut self) -> Result<()> {
        self.unmount()?;
        if self.server != Server::Ext4 {
            self.rotations += 1;
            let upper = self.make(&format!("upper{}", self.rotations))?;
            // The root of the union is that of the upper.
            let before = self.folder().join(format!("upper{}", self.rotations - 1));
            fs::set_permissions(&upper, fs::metadata(before)?.permissions())?;
            self.make(&format!("work{}", self.rotations))?;
        }
        self.mount()
    }

    /// How many lowers there are.
    pub fn depth(&self) -> usize {
        self.rotations + 1
    }

    /// The process that serves the mount, as the mount itself tells, and the one that keeps it.
    pub fn server_and_keeper(&self) -> Result<[u32; 2]> {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(self.point(), "strata.server", &mut value[..]).context("ask who serves")?;
        let text = String::from_utf8_lossy(&value[..length]);
        let server = text.split(' ').next().unwrap_or_default().parse().with_context(|| format!("{text:?}"))?;
        let status = fs::read_to_string(format!("/proc/{server}/status"))?;
        let keeper = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        Ok([server, keeper.with_context(|| format!("no parent in {status}"))?])
    }

    /// Runs a shell script where the union is shown; it must succeed. Returns its output.
    pub fn shell(&self, script: &str) -> Result<String> {
        let finished = finish(Command::new("bash").args(["-euc", script]).current_dir(self.point()))?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    }

    /// Lowers, topmost first, upper and work, relative to the folder.
    fn layers(&self) -> (String, String, String) {
        let lowers = (0..self.rotations).rev().map(|number| format!("upper{number}"));
        let lowers = lowers.chain(["lower0".to_owned()]).collect::<Vec<_>>().join(":");
        (lowers, format!("upper{}", self.rotations), format!("work{}", self.rotations))
    }

    fn make(&self, name: &str) -> Result<PathBuf> {
        self.strata.make_folder(name)
    }

    /// Mounts a small ext4 where the union would be.
    fn make_ext4(&self) -> Result<()> {
        let script = "truncate -s 3G image && mkfs.ext4 -q -F image && mount -o loop image mnt && rmdir mnt/lost+found";
        let finished = finish(Command::new("bash").args(["-euc", script]).current_dir(self.folder()))?;
        ensure!(finished.status.success(), "{finished}");
        Ok(())
    }
}

/// Why there can be no such server here, if so.
pub fn missing(server: Server) -> Option<String> {
    match server {
        Server::Strata => None,
        Server::Overlayfs => {
            let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
            (!known.contains("\toverlay\n")).then(|| "no overlayfs in this kernel".to_owned())
        }
        Server::FuseOverlayfs => on_path("fuse-overlayfs").is_none().then(|| "no fuse-overlayfs".to_owned()),
        Server::Ext4 => {
            if on_path("mkfs.ext4").is_none() {
                return Some("no mkfs.ext4".to_owned());
            }
            (!Path::new("/dev/loop-control").exists()).then(|| "no loop devices".to_owned())
        }
    }
}

/// Finds a program as the shell would.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Makes a command run as the plain user who is not the owner of a tree.
pub fn as_other(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.uid(plain_user::ID).gid(plain_user::ID);
}

fn open_to_all(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
