//! `strata system recover`

use std::io::Write;

use clap::Args;

use super::run::explain;
use super::{Context, Outcome};
use crate::failure::Failure;

/// Finish what was left half done and start what should run: for the start of the machine
#[derive(Debug, Args)]
pub(crate) struct Recover {}

/// Recovers, and prints the names of what was started.
pub(crate) fn recover(context: &Context, _recover: &Recover, out: &mut impl Write) -> Outcome {
    let mut code = 0;
    for (container, error) in context.engine()?.recover_all()? {
        match error {
            None => writeln!(out, "{}", container.config.name)?,
            Some(error) => {
                Failure { code: 1, ..explain(error) }.report();
                code = 1;
            }
        }
    }
    Ok(code)
}
