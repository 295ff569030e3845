//! `strata wait`

use std::io::Write;

use clap::Args;

use super::{Context, Outcome, for_each};

/// Wait until one or more containers stop, and print their exit codes
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The containers, by name, id or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Waits for one container after the other.
pub(crate) fn run(context: &Context, wait: &Wait, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    for_each(&wait.containers, |name| {
        let code = engine.wait(name)?;
        writeln!(out, "{code}")?;
        // The next one may take long.
        out.flush()?;
        Ok(())
    })
}
