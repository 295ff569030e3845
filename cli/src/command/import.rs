//! `strata import`

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use strata_engine::{Change, CommitOptions, ImageRef, Input, Platform};

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::progress::Bars;
use crate::registries;

/// Make an image of a root filesystem's tar archive
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Apply a Dockerfile instruction, such as 'CMD ["sh"]'
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Set the message of the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// The machine that the image is for, as os/architecture[/variant]; this one if not given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// The archive, a file or an address (http:// or https://); '-' is standard input
    #[arg(value_name = "FILE|URL|-")]
    file: PathBuf,
    /// The name of the new image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

/// Imports an archive and prints the new image's identifier.
pub(crate) fn run(context: &Context, import: &Import, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    let stdin = io::stdin();
    let input = if import.file == Path::new("-") {
        if stdin.is_terminal() {
            return Err(Failure::from(anyhow!("requested import from stdin, but stdin is a terminal")));
        }
        Input::File(File::from(stdin.as_fd().try_clone_to_owned()?))
    } else if let Some(url) = address(&import.file) {
        Input::Stream(registries::client()?.open(url)?)
    } else {
        Input::Path(import.file.clone())
    };
    let options = CommitOptions {
        reference: import.reference.as_deref().map(str::parse::<ImageRef>).transpose()?,
        message: import.message.clone().or_else(|| Some(format!("Imported from {}", address(&import.file)?))),
        changes: import.change.iter().map(|change| change.parse::<Change>()).collect::<Result<_, _>>()?,
        platform: import.platform.clone(),
        ..CommitOptions::default()
    };
    let progress = Bars::new(false);
    let id = engine.images().import(input, &options, &progress)?;
    drop(progress);
    writeln!(out, "{id}")?;
    Ok(0)
}

/// The operand as an address, if it is one.
fn address(file: &Path) -> Option<&str> {
    file.to_str().filter(|text| text.starts_with("http://") || text.starts_with("https://"))
}
