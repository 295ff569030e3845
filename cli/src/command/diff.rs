//! `strata diff`

use std::io::Write;

use clap::Args;
use strata_engine::ChangeKind;

use super::{Context, Outcome};

/// Show what a container changed in its filesystem
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The container, by name, id or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Prints one line per change: `A`dded, `C`hanged or `D`eleted, and the path.
pub(crate) fn run(context: &Context, diff: &Diff, out: &mut impl Write) -> Outcome {
    for change in context.engine()?.changes(&diff.container)? {
        let letter = match change.kind {
            ChangeKind::Added => "A",
            ChangeKind::Modified => "C",
            ChangeKind::Deleted => "D",
        };
        // Names are bytes: what is not UTF-8 is passed on as it is.
        out.write_all(letter.as_bytes())?;
        out.write_all(b" ")?;
        out.write_all(&change.path)?;
        out.write_all(b"\n")?;
    }
    Ok(0)
}
