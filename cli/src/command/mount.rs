//! `strata mount`

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use strata_engine::{Engine, MountError, MountOptions, Platform, Upper, Writable};

use super::pull::{self, Lazy, Policy, Wanted};
use super::{Context, Outcome};
use crate::failure::Failure;

/// Show an image, a container or a union of folders as an ordinary folder
#[derive(Debug, Args)]
#[command(
    override_usage = "strata mount [OPTIONS] IMAGE|CONTAINER DIR\n       \
                      strata mount --lower A:B [--upper U --work W] DIR",
    after_long_help = "\
An image that is not here is pulled. The mount stays until 'strata umount DIR'. With --rw and no --upper, the changes to an image are kept in a new \
container, whose id is printed: 'strata diff', 'commit', 'mount' and 'rm' work on it.

Examples:
  strata mount debian:12 /mnt
  strata mount --rw debian:12 /mnt
  strata mount --pull always registry.example:5000/team/app:2 /mnt
  strata mount --lower /srv/b:/srv/a --upper /srv/changes --work /srv/work /mnt"
)]
pub(crate) struct Mount {
    /// Let the mount be written
    #[arg(long)]
    rw: bool,
    /// Mount these folders, topmost first, instead of an image
    #[arg(long, value_name = "DIR[:DIR...]")]
    lower: Option<OsString>,
    /// Keep the changes in this folder
    #[arg(long, value_name = "DIR", requires = "work")]
    upper: Option<PathBuf>,
    /// Use this folder, on the filesystem of the upper one, for work in progress
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Limit what the writable layer may hold
    #[arg(long, value_name = "BYTES")]
    size: Option<String>,
    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: Policy,
    /// Whether an image that says what is in it may be used before it is here
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    lazy: Lazy,
    /// Choose the image for this platform when it is pulled, as os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Do not say what is pulled
    #[arg(short, long)]
    quiet: bool,
    /// Set mount options, as for overlayfs
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// What to mount, unless folders are given, and where
    #[arg(required = true, num_args = 1..=2, value_name = "IMAGE|CONTAINER DIR")]
    operands: Vec<PathBuf>,
}

/// Mounts, and returns when the folder can be used.
pub(crate) fn run(context: &Context, mount: &Mount, out: &mut impl Write) -> Outcome {
    let mut options = MountOptions::default();
    if let Some(lower) = &mount.lower {
        let mut text = OsString::from("lowerdir=");
        // A comma is an ordinary letter here.
        text.push(escape_commas(lower));
        options.parse(&text)?;
    }
    for list in &mount.options {
        options.parse(list)?;
    }
    if let Some(size) = &mount.size {
        options.parse(OsStr::from_bytes([b"size=", size.as_bytes()].concat().as_slice()))?;
    }
    options.upper = mount.upper.clone().or(options.upper);
    options.work = mount.work.clone().or(options.work);
    options.make_absolute(&std::env::current_dir().context("find the current folder")?);
    match (options.lower.is_empty(), &mount.operands[..]) {
        (false, [directory]) => {
            strata_engine::mount_folders(&options, directory).map_err(explain)?;
            Ok(0)
        }
        (false, _) => Err(usage("with folders there is only one operand, the place to mount on")),
        (true, [name, directory]) => {
            let name = name.to_str().context("the name of an image or container is text")?;
            options.writable |= mount.rw;
            let engine = context.engine()?;
            let wanted =
                Wanted { policy: mount.pull, platform: mount.platform.as_ref(), lazy: mount.lazy, quiet: mount.quiet };
            ensure(&engine, name, &wanted)?;
            named(&engine, name, &options, directory, out)
        }
        (true, _) => Err(usage("an image or container and a place to mount on are needed")),
    }
}

/// Pulls an image as far as the policy allows, unless a container is called so.
pub(crate) fn ensure(engine: &Engine, name: &str, wanted: &Wanted<'_>) -> Result<(), Failure> {
    match engine.container(name) {
        // Nothing is run: an image that cannot be had is an ordinary failure.
        Err(error) if error.is_not_found() => {
            pull::ensure_image(engine, name, wanted).map_err(|failure| Failure { code: 1, ..failure })
        }
        // What is wrong with a container, mounting it tells.
        _ => Ok(()),
    }
}

/// Mounts an image or a container.
pub(crate) fn named(
    engine: &Engine,
    name: &str,
    mount: &MountOptions,
    directory: &std::path::Path,
    out: &mut impl Write,
) -> Outcome {
    let writable = match (&mount.upper, &mount.work) {
        (Some(dir), Some(work)) => Writable::At(Upper { dir: dir.clone(), work: work.clone() }),
        (None, None) if mount.writable && !mount.options.read_only => Writable::Kept,
        (None, None) => Writable::No,
        _ => return Err(usage("upperdir and workdir belong together")),
    };
    let made = engine.mount(name, writable, &mount.options, directory).map_err(explain)?;
    if let Some((id, container)) = made.container {
        writeln!(out, "{id}")?;
        eprintln!("strata: changes are kept in container {container}");
    }
    Ok(0)
}

fn escape_commas(text: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = text.as_bytes().iter().flat_map(|byte| match byte {
        b',' => vec![b'\\', b','],
        byte => vec![*byte],
    });
    OsString::from_vec(bytes.collect())
}

fn usage(text: &str) -> Failure {
    Failure { code: 125, error: anyhow!("{text}"), hint: Some("see 'strata mount --help'".to_owned()) }
}

/// Adds the advice to a failed mount.
pub(crate) fn explain(error: MountError) -> Failure {
    let hint = error.hint();
    Failure { hint, ..Failure::from(error) }
}
