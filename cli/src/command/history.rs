//! `strata history`

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value};
use strata_engine::{HistoryLine, Timestamp};

use super::{Context, Outcome};
use crate::output::{Column, Format, List, human};

/// Show the history of an image
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Show the whole of everything
    #[arg(long)]
    no_trunc: bool,
    /// Show the identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Print sizes and dates for people
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    human: bool,
    /// Use 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Arc<Format>>,
    /// The image, by name or id
    #[arg(value_name = "IMAGE")]
    image: String,
}

const COLUMNS: [Column; 6] = [
    Column { field: "Comment", header: "COMMENT" },
    Column { field: "CreatedAt", header: "CREATED AT" },
    Column { field: "CreatedBy", header: "CREATED BY" },
    Column { field: "CreatedSince", header: "CREATED" },
    Column { field: "ID", header: "IMAGE" },
    Column { field: "Size", header: "SIZE" },
];

/// Shows the steps an image was made of, the newest first.
pub(crate) fn run(context: &Context, history: &History, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    let id = engine.images().resolve(&history.image)?;
    let lines = engine.images().history(&id)?;
    if history.quiet && history.format.is_none() {
        for line in &lines {
            writeln!(out, "{}", identifier(line, history.no_trunc))?;
        }
        return Ok(0);
    }
    let now = Timestamp::now();
    let rows = lines.iter().map(|line| row(line, history, now)).collect();
    let created = if history.human { "CreatedSince" } else { "CreatedAt" };
    List { columns: &COLUMNS, shown: &["ID", created, "CreatedBy", "Size", "Comment"], rows }
        .write(history.format.as_deref().unwrap_or(&Format::Table), out)?;
    Ok(0)
}

fn identifier(line: &HistoryLine, whole: bool) -> String {
    match &line.id {
        None => "<missing>".to_owned(),
        Some(id) if whole => id.to_string(),
        Some(id) => id.short(),
    }
}

fn row(line: &HistoryLine, history: &History, now: Timestamp) -> Map<String, Value> {
    let created_by = line.created_by.replace(['\t', '\n'], " ");
    let fields = [
        ("Comment", line.comment.clone()),
        ("CreatedAt", line.created.map_or_else(|| "N/A".to_owned(), |created| created.to_string())),
        ("CreatedBy", if history.no_trunc { created_by } else { human::ellipsis(&created_by, 45) }),
        ("CreatedSince", line.created.map_or_else(|| "N/A".to_owned(), |created| human::age(created, now))),
        ("ID", identifier(line, history.no_trunc)),
        ("Size", if history.human { human::size(line.size) } else { line.size.to_string() }),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}
