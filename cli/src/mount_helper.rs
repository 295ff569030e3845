//! Being called by another name: as mount(8)'s helper or in the place of fuse-overlayfs.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use strata_engine::{Force, MountOptions};

use crate::command::{self, Context, Outcome};

/// The program strata is called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// By its own name.
    Command,
    /// `mount.fuse.strata SOURCE DIR -o OPTIONS`, as mount(8) does.
    MountHelper,
    /// `umount.fuse.strata DIR`, as umount(8) does.
    UmountHelper,
    /// `fuse-overlayfs -o OPTIONS DIR`
    FuseOverlayfs,
}

impl Role {
    /// Tells it by the name of the program.
    pub(crate) fn of(program: &OsStr) -> Role {
        match Path::new(program).file_name().and_then(OsStr::to_str) {
            Some("mount.fuse.strata" | "mount.strata") => Role::MountHelper,
            Some("umount.fuse.strata" | "umount.strata") => Role::UmountHelper,
            Some(FUSE_OVERLAYFS) => Role::FuseOverlayfs,
            _ => Role::Command,
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    operands: Vec<PathBuf>,
    options: Vec<OsString>,
    version: bool,
    help: bool,
    foreground: bool,
}

impl Call {
    /// Prints what is asked for instead of a mount, the version or how the program is called; returns whether it was.
    fn answers_by_itself(&self, program: &str, usage: &str) -> bool {
        if self.version {
            println!("{program}: version {} (strata)", env!("CARGO_PKG_VERSION"));
        } else if self.help {
            println!("{usage}");
        }
        self.version || self.help
    }
}

/// Mounts as mount(8)'s helper: the source is an image or a container, or a mere word before `lowerdir=`.
pub(crate) fn mount_helper(context: &Context, arguments: Vec<OsString>) -> Outcome {
    let call = read(arguments)?;
    if call.answers_by_itself("mount.fuse.strata", MOUNT_USAGE) {
        return Ok(0);
    }
    let [source, directory] = &call.operands[..] else {
        return Err(anyhow!("{MOUNT_USAGE}").into());
    };
    let mut options = options(&call, MountOptions::default())?;
    if options.remount {
        strata_engine::remount(&options, directory)?;
        return Ok(0);
    }
    if !options.lower.is_empty() {
        if options.options.source == MountOptions::default().options.source {
            // What stands there is what mount(8) and /proc/self/mountinfo are to show.
            options.options.source = source.to_string_lossy().into_owned();
        }
        strata_engine::mount_folders(&options, directory).map_err(command::mount::explain)?;
        return Ok(0);
    }
    let name = source.to_str().context("the name of an image or container is text")?;
    // mount(8) says `rw` when nobody asked: an image is written only with an upper of its own.
    let options = MountOptions { writable: false, ..options };
    let engine = context.engine()?;
    let wanted = command::pull::Wanted {
        policy: command::pull::Policy::Missing,
        platform: None,
        lazy: command::pull::Lazy::Auto,
        quiet: false,
    };
    command::mount::ensure(&engine, name, &wanted)?;
    command::mount::named(&engine, name, &options, directory, &mut std::io::sink())
}

/// Unmounts as umount(8)'s helper.
pub(crate) fn umount_helper(arguments: Vec<OsString>) -> Outcome {
    let mut force = Force::No;
    let mut directories = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            // The namespace file and the type are umount(8)'s own affair.
            Some("-N" | "-t") => drop(arguments.next()),
            Some("-h" | "--help") => {
                println!("{UMOUNT_USAGE}");
                return Ok(0);
            }
            Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                for flag in flags.chars().skip(1) {
                    match flag {
                        'l' => force = Force::Detach,
                        'f' => force = Force::Abort,
                        'n' | 'r' | 'v' | 'i' => {}
                        _ => return Err(anyhow!("unknown option {flags}").into()),
                    }
                }
            }
            _ => directories.push(PathBuf::from(argument)),
        }
    }
    let [directory] = &directories[..] else {
        return Err(anyhow!("{UMOUNT_USAGE}").into());
    };
    command::umount::unmount(directory, force)?;
    Ok(0)
}

/// Mounts folders as fuse-overlayfs does.
pub(crate) fn fuse_overlayfs(arguments: Vec<OsString>) -> Outcome {
    let call = read(arguments)?;
    if call.answers_by_itself(FUSE_OVERLAYFS, FUSE_OVERLAYFS_USAGE) {
        return Ok(0);
    }
    let [directory] = &call.operands[..] else {
        return Err(anyhow!("{FUSE_OVERLAYFS_USAGE}").into());
    };
    let mut defaults = MountOptions::default();
    defaults.options.source = FUSE_OVERLAYFS.to_owned();
    defaults.options.subtype = FUSE_OVERLAYFS.to_owned();
    // Podman unpacks layers with such names for this program.
    defaults.options.named_whiteouts = true;
    let options = options(&call, defaults)?;
    let server = strata_engine::mount_folders(&options, directory).map_err(command::mount::explain)?;
    if call.foreground {
        server.wait_forever();
    }
    Ok(0)
}

fn options(call: &Call, defaults: MountOptions) -> anyhow::Result<MountOptions> {
    let mut options = defaults;
    for list in &call.options {
        options.parse(list)?;
    }
    options.make_absolute(&std::env::current_dir().context("find the current folder")?);
    Ok(options)
}

/// Reads options before, between and after the operands, as mount(8) passes them.
fn read(arguments: Vec<OsString>) -> anyhow::Result<Call> {
    let mut call = Call::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("option {} needs a value", argument.display()));
        match argument.to_str() {
            Some("-o") => call.options.push(value()?),
            // The type and the namespace file are mount(8)'s own affair.
            Some("-t" | "-N") => drop(value()?),
            Some("-f") => call.foreground = true,
            Some("-s" | "-n" | "-v" | "-d" | "--debug") => {}
            Some("--version" | "-V") => call.version = true,
            Some("--help" | "-h") => call.help = true,
            Some(text) if text.starts_with("-o") => call.options.push(text[2..].into()),
            Some(text) if text.starts_with('-') && text != "-" => bail!("unknown option {text}"),
            _ => call.operands.push(argument.into()),
        }
    }
    Ok(call)
}

const FUSE_OVERLAYFS: &str = "fuse-overlayfs";
const FUSE_OVERLAYFS_USAGE: &str = "usage: fuse-overlayfs [-f] [-o lowerdir=A:B[,upperdir=U,workdir=W][,...]] DIR";
const MOUNT_USAGE: &str =
    "usage: mount.fuse.strata IMAGE|CONTAINER|WORD DIR [-o [lowerdir=A:B[,upperdir=U,workdir=W]][,...]]";
const UMOUNT_USAGE: &str = "usage: umount.fuse.strata DIR [-l] [-f]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_name() {
        assert_eq!(Role::of(OsStr::new("/usr/sbin/mount.fuse.strata")), Role::MountHelper);
        assert_eq!(Role::of(OsStr::new("fuse-overlayfs")), Role::FuseOverlayfs);
        assert_eq!(Role::of(OsStr::new("/usr/bin/strata")), Role::Command);
    }

    #[test]
    fn options_stand_anywhere() {
        let words = ["debian:12", "/mnt", "-s", "-o", "ro,nodev", "-t", "fuse.strata", "-onosuid"];
        let call = read(words.iter().map(OsString::from).collect()).unwrap();
        assert_eq!(call.operands, [PathBuf::from("debian:12"), PathBuf::from("/mnt")]);
        assert_eq!(call.options, [OsString::from("ro,nodev"), OsString::from("nosuid")]);
        assert!(read(vec!["-o".into()]).is_err());
        assert!(read(vec!["--nope".into()]).is_err());
    }
}
