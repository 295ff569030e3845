//! `strata fetch`: the process that fetches what layers of the store lack. Other commands start it.

use super::{Context, Outcome};
use crate::registries;

/// Starts the process, or is it.
pub(crate) fn run(context: &Context, stay: bool) -> Outcome {
    if stay {
        strata_engine::fetch(&context.root, registries::client()?)?;
    } else {
        strata_engine::start_fetching(&context.root)?;
    }
    Ok(0)
}
