//! `strata commit`

use std::io::Write;

use clap::Args;
use strata_engine::{Change, ContainerCommit, ImageRef};

use super::{Context, Outcome};

/// Create a new image from a container's changes
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Say who made the image
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
    /// Say what was changed
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Apply a Dockerfile instruction, such as 'CMD ["sh"]'
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// The container, by name, id or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The name of the new image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

/// Commits a container and prints the new image's identifier.
pub(crate) fn run(context: &Context, commit: &Commit, out: &mut impl Write) -> Outcome {
    let options = ContainerCommit {
        reference: commit.reference.as_deref().map(str::parse::<ImageRef>).transpose()?,
        author: commit.author.clone(),
        message: commit.message.clone(),
        changes: commit.change.iter().map(|change| change.parse::<Change>()).collect::<Result<_, _>>()?,
    };
    let id = context.engine()?.commit(&commit.container, &options)?;
    writeln!(out, "{id}")?;
    Ok(0)
}
