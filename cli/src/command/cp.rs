//! `strata cp`

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use strata_engine::{ArchiveError, CopyPlan, CopySource, FilesUse, Owner, Tree, Unpacked, plan_copy};

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::output::human;

/// Copy files between a container and the host
#[derive(Debug, Args)]
#[command(
    override_usage = "strata cp [OPTIONS] CONTAINER:PATH PATH|-\n       strata cp [OPTIONS] PATH|- CONTAINER:PATH",
    after_help = "'-' stands for a tar archive on standard input or output. A source path that ends in '/.' means the \
                  contents of that directory."
)]
pub(crate) struct Cp {
    /// Give files in the container to the user it runs as; on the host, keep owners and set-user-id bits
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symbolic link points to, not the link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not say what was copied
    #[arg(short, long)]
    quiet: bool,
    /// What to copy: CONTAINER:PATH, a path, or '-'
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// Where to: a path, '-', or CONTAINER:PATH
    #[arg(value_name = "TARGET")]
    target: OsString,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    /// An archive on standard input or output.
    Stream,
    /// A path of the host.
    Host(&'a [u8]),
    /// A container, and a path in it.
    Container(&'a str, &'a [u8]),
}

/// Copies in one of the two directions.
pub(crate) fn run(context: &Context, cp: &Cp) -> Outcome {
    match (place(&cp.source)?, place(&cp.target)?) {
        (Place::Container(name, path), target @ (Place::Host(_) | Place::Stream)) => {
            copy_out(context, cp, name, path, &target)
        }
        (source @ (Place::Host(_) | Place::Stream), Place::Container(name, path)) => {
            copy_in(context, cp, &source, name, path)
        }
        (Place::Container(..), Place::Container(..)) => {
            Err(anyhow!("copying between containers is not supported").into())
        }
        _ => Err(anyhow!("must specify at least one container source").into()),
    }
}

fn copy_out(context: &Context, cp: &Cp, name: &str, path: &[u8], target: &Place<'_>) -> Outcome {
    let absolute = absolute(target)?;
    enter(context, name)?;
    let files = context.engine()?.container_files(name, FilesUse::Read)?;
    let source = files.tree().source(path, cp.follow_link)?;
    let Place::Host(target) = target else {
        if io::stdout().is_terminal() {
            let failure = Failure::from(anyhow!("cowardly refusing to write an archive to a terminal"));
            return Err(failure.hint("redirect the output"));
        }
        // A plain file, as the buffering of standard output looks for line feeds.
        let stdout = File::from(rustix::io::dup(rustix::stdio::stdout())?);
        let mut out = BufWriter::with_capacity(1 << 20, stdout);
        files.tree().pack(&source.found, &source.name, &mut out)?;
        return Ok(0);
    };
    let host = Tree::host()?;
    let plan = plan_copy(&source, &host, &absolute).map_err(|error| output_error(error, target))?;
    let owner = if cp.archive { Owner::Kept } else { Owner::Maker };
    let copied = transfer(files.tree(), &source, &plan, |input| host.unpack(&plan.directory, input, owner));
    finish(cp, copied.map_err(|error| output_error(error, target)), OsStr::from_bytes(target).display())
}

fn copy_in(context: &Context, cp: &Cp, source: &Place<'_>, name: &str, path: &[u8]) -> Outcome {
    let absolute = absolute(source)?;
    enter(context, name)?;
    let files = context.engine()?.container_files(name, FilesUse::Write)?;
    let shown = format!("{name}:{}", OsStr::from_bytes(path).display());
    let Place::Host(_) = source else {
        let there = files.tree().follow(path)?.1;
        if !there.is_some_and(|found| found.is_directory()) {
            return Err(anyhow!("destination \"{shown}\" must be a directory").into());
        }
        let mut input = Counted { inner: io::stdin().lock(), count: 0 };
        let copied = files.write(path, &mut input, cp.archive);
        return finish(cp, copied.map(|done| (done, input.count)), shown);
    };
    let host = Tree::host()?;
    let found = host.source(&absolute, cp.follow_link).map_err(|error| match error {
        ArchiveError::NotFound { .. } => anyhow!("lstat {}: no such file or directory", text(&absolute)),
        error => error.into(),
    })?;
    let plan = plan_copy(&found, files.tree(), path)?;
    let copied = transfer(&host, &found, &plan, |input| files.write(&plan.directory, input, cp.archive));
    finish(cp, copied, shown)
}

/// Packs on one side and unpacks on the other, at once.
fn transfer(
    tree: &Tree,
    source: &CopySource,
    plan: &CopyPlan,
    unpack: impl FnOnce(&mut dyn Read) -> Result<Unpacked, ArchiveError>,
) -> Result<(Unpacked, u64), ArchiveError> {
    let (reader, writer) = io::pipe().map_err(ArchiveError::Input)?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut out = BufWriter::with_capacity(1 << 20, writer);
            let packed = tree.pack(&source.found, &plan.name, &mut out);
            // What a failure left in the buffer nobody wants, and nobody may be there to read it.
            drop(out.into_parts());
            packed
        });
        let mut input = Counted { inner: reader, count: 0 };
        let unpacked = unpack(&mut input);
        let count = input.count;
        // The other side learns that nobody reads on.
        drop(input);
        let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (packed, unpacked) {
            // What is cut off on this side is damaged on the other: the cause comes first.
            (Err(error), _) if !error.is_closed_pipe() => Err(error),
            (_, unpacked) => Ok((unpacked?, count)),
        }
    })
}

fn finish(cp: &Cp, copied: Result<(Unpacked, u64), impl Into<Failure>>, target: impl std::fmt::Display) -> Outcome {
    let (done, bytes) = copied.map_err(Into::into)?;
    for path in &done.left_out {
        eprintln!("strata: warning: device {} was left out", human::printable(&path.to_string_lossy()));
    }
    if !cp.quiet {
        let target = human::printable(&target.to_string());
        eprintln!("Successfully copied {} to {target}", human::size(bytes));
    }
    Ok(0)
}

/// The words of Docker's client for a place on the host that is not there.
fn output_error(error: ArchiveError, target: &[u8]) -> Failure {
    match error {
        ArchiveError::NotFound { path, .. } => {
            let path = path.trim_end_matches('/');
            let path = if path.is_empty() { text(target) } else { path.to_owned() };
            anyhow!("invalid output path: directory \"{path}\" does not exist").into()
        }
        error => error.into(),
    }
}

/// A plain user becomes root of a namespace: that of the container, if it runs, whose files nobody else sees.
fn enter(context: &Context, name: &str) -> Result<(), Failure> {
    strata_engine::enter_rootless_of(&context.root, name)?;
    Ok(())
}

/// Tells a container's path from one of the host, as Docker does.
fn place(argument: &OsStr) -> anyhow::Result<Place<'_>> {
    let bytes = argument.as_bytes();
    if bytes == b"-" {
        return Ok(Place::Stream);
    }
    if bytes.is_empty() {
        bail!("source can not be empty");
    }
    // Also a path with a colon is one of the host if it begins like one.
    let Some(colon) = bytes.iter().position(|byte| *byte == b':').filter(|_| !matches!(bytes[0], b'/' | b'.')) else {
        return Ok(Place::Host(bytes));
    };
    let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
    if path.is_empty() {
        bail!("destination can not be empty: {} names no path", text(bytes));
    }
    Ok(Place::Container(std::str::from_utf8(name).context("the name of a container")?, path))
}

/// Makes a path of the host absolute and keeps what its end says. Before the namespace changes: that has no memory of where
/// the user is.
fn absolute(place: &Place<'_>) -> anyhow::Result<Vec<u8>> {
    let Place::Host(path) = place else { return Ok(Vec::new()) };
    if path.starts_with(b"/") {
        return Ok(path.to_vec());
    }
    let current = std::env::current_dir().context("find the working directory")?;
    Ok([current.as_os_str().as_bytes(), b"/", *path].concat())
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_tell_containers_from_paths() {
        let place = |text: &'static str| place(OsStr::new(text)).unwrap();
        assert_eq!(place("c:/x"), Place::Container("c", b"/x"));
        assert_eq!(place("c:x:y"), Place::Container("c", b"x:y"));
        for path in ["/a:b", "./a:b", "../a:b", "a", ".hidden:x"] {
            assert_eq!(place(path), Place::Host(path.as_bytes()), "{path}");
        }
        assert_eq!(place("-"), Place::Stream);
        assert!(super::place(OsStr::new("c:")).is_err());
    }

    #[test]
    fn the_end_of_a_relative_path_is_kept() {
        let made = absolute(&Place::Host(b"a/.")).unwrap();
        assert!(made.starts_with(b"/") && made.ends_with(b"/a/."));
    }
}
