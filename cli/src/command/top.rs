//! `strata top`

use std::io::Write;

use clap::Args;

use super::{Context, Outcome};
use crate::output::Table;

/// List the processes of a running container
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// The container, and options for the host's 'ps' [default: -ef]
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = false, value_name = "CONTAINER")]
    container_and_options: Vec<String>,
}

/// Lists processes as the host's `ps` does.
pub(crate) fn run(context: &Context, top: &Top, out: &mut impl Write) -> Outcome {
    let (name, options) = top.container_and_options.split_first().expect("clap requires one value");
    let processes = context.engine()?.top(name, options)?;
    let mut table = Table::new(processes.titles);
    for row in processes.rows {
        table.push(row);
    }
    write!(out, "{table}")?;
    Ok(0)
}
