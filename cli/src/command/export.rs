//! `strata export`

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::{Context, Outcome};
use crate::failure::Failure;

/// Write a container's filesystem as a tar archive
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The container, by name, id or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Exports a container.
pub(crate) fn run(context: &Context, export: &Export) -> Outcome {
    let engine = context.engine()?;
    match &export.output {
        None if io::stdout().is_terminal() => {
            let failure = Failure::from(anyhow!("cowardly refusing to save to a terminal"));
            Err(failure.hint("use the -o flag or redirect"))
        }
        None => {
            // A plain file, as the buffering of standard output looks for line feeds.
            let stdout = rustix::io::dup(rustix::stdio::stdout())?;
            let mut out = BufWriter::with_capacity(1 << 20, File::from(stdout));
            engine.export(&export.container, &mut out)?;
            out.flush()?;
            Ok(0)
        }
        Some(path) => {
            let aside = Aside::create(path)?;
            let mut out = BufWriter::with_capacity(1 << 20, &aside.file);
            engine.export(&export.container, &mut out)?;
            out.flush()?;
            drop(out);
            aside.finish(path)?;
            Ok(0)
        }
    }
}

/// A file that takes the place of another only when it is complete.
pub(super) struct Aside {
    pub(super) file: File,
    path: PathBuf,
}

impl Aside {
    pub(super) fn create(path: &Path) -> anyhow::Result<Aside> {
        if path.is_dir() {
            return Err(anyhow!("failed to save to {}: it is a directory", path.display()));
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            return Err(anyhow!("invalid output path: directory {:?} does not exist", folder));
        }
        let mut name = path.file_name().context("the output has no file name")?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let aside = path.with_file_name(name);
        let file = File::create(&aside).with_context(|| format!("create {}", aside.display()))?;
        Ok(Aside { file, path: aside })
    }

    pub(super) fn finish(self, path: &Path) -> anyhow::Result<()> {
        std::fs::rename(&self.path, path).with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Gone already when it was finished.
        let _ = std::fs::remove_file(&self.path);
    }
}
