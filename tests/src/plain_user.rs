//! Being a plain user, also where the tests run as root.
//!
//! Root enters a mount namespace of its own with copies of the user databases that have one user more, so that nothing
//! of the machine changes and `newuidmap` knows the user.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// The user's number, and its group's.
pub const ID: u32 = 61_999;
/// The user's name.
pub const NAME: &str = "strata-plain";

/// Starts this program again in a mount namespace of its own, unless it already is in one, and there adds the user.
/// For root only, before anything else: what the program was asked to do is done by its successor.
pub fn enter_private_mounts() -> Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?);
        return Err(command.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec()).context("start unshare");
    }
    open_fuse_to_all().context("a private /dev/fuse")?;
    let folder =
        tempfile::Builder::new().prefix("strata-users-").tempdir_in("/run").or_else(|_| tempfile::tempdir())?;
    for (file, line) in [
        ("passwd", format!("{NAME}:x:{ID}:{ID}::/nonexistent:/bin/sh\n")),
        ("group", format!("{NAME}:x:{ID}:\n")),
        ("subuid", format!("{NAME}:2100000000:65536\n")),
        ("subgid", format!("{NAME}:2100000000:65536\n")),
    ] {
        let original = Path::new("/etc").join(file);
        if !original.exists() {
            continue;
        }
        let copy = folder.path().join(file);
        fs::write(&copy, fs::read_to_string(&original)? + &line)?;
        rustix::mount::mount_bind(&copy, &original).with_context(|| format!("bind over {original:?}"))?;
    }
    Ok(())
}

/// Systems with udev let everybody open /dev/fuse; where only root may, these mounts get a node of their own.
fn open_fuse_to_all() -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Ok(metadata) = Path::new("/dev/fuse").metadata() else { return Ok(()) };
    if metadata.mode() & 0o666 == 0o666 {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    // Not below /run or the like, which may be mounted without devices.
    let status =
        Command::new("mount").args(["-t", "tmpfs", "-o", "dev", "strata-tests"]).arg(folder.path()).status()?;
    anyhow::ensure!(status.success(), "mount: {status}");
    let node = folder.path().join("fuse");
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &node, kind, rustix::fs::Mode::from_raw_mode(0o666), metadata.rdev())?;
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666))?;
    rustix::mount::mount_bind(&node, "/dev/fuse")?;
    rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH)?;
    Ok(())
}

/// Makes a command run as the plain user; if the tests are not run by root, the user is who runs them.
pub fn demote(command: &mut Command) {
    if rustix::process::geteuid().is_root() {
        command.uid(ID).gid(ID).env_remove("XDG_RUNTIME_DIR").env_remove("XDG_DATA_HOME").env_remove("SUDO_UID");
    }
}

/// Makes a folder of the plain user.
pub fn own(path: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(ID), Some(ID))?;
    }
    Ok(())
}

/// Set for the program inside.
const INSIDE: &str = "STRATA_TESTS_INSIDE";
