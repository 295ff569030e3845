//! `strata tag`

use clap::Args;
use strata_engine::ImageRef;

use super::{Context, Outcome};

/// Give an image another name
#[derive(Debug, Args)]
pub(crate) struct Tag {
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: ImageRef,
}

/// Tags an image.
pub(crate) fn run(context: &Context, tag: &Tag) -> Outcome {
    context.engine()?.images().tag(&tag.source, &tag.target)?;
    Ok(0)
}
