//! `strata rename`

use anyhow::Context as _;
use clap::Args;
use strata_engine::ContainerName;

use super::{Context, Outcome};

/// Give a container another name
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// The container, by name, id or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Its new name
    #[arg(value_name = "NEW_NAME")]
    name: ContainerName,
}

/// Renames a container.
pub(crate) fn run(context: &Context, rename: &Rename) -> Outcome {
    let engine = context.engine()?;
    let renamed = engine.rename(&rename.container, &rename.name);
    renamed.with_context(|| format!("failed to rename container named {}", rename.container))?;
    Ok(0)
}
