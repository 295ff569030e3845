//! `strata rename`

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
    context.engine()?.rename(&rename.container, &rename.name)?;
    Ok(0)
}
