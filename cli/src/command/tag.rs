//! `strata tag`

use clap::Args;
use strata_engine::ImageRef;

use super::{Context, Outcome};

/// Give an image another name
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The image, by name or id
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// The name it gets
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

/// Tags an image.
pub(crate) fn run(context: &Context, tag: &Tag) -> Outcome {
    // Not while the command line is read: a name that is none is a failure of the verb, with its exit code.
    let target: ImageRef = tag.target.parse()?;
    context.engine()?.images().tag(&tag.source, &target)?;
    Ok(0)
}
