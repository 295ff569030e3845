//! `strata search`

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value};

use super::filter::{self, Filter};
use super::{Context, Outcome};
use crate::output::human::ellipsis;
use crate::output::{Column, Format, List};
use crate::registries;

/// Search a registry for images
#[derive(Debug, Args)]
#[command(after_long_help = "\
Docker Hub is searched unless the term begins with a registry. One that has no search lists its repositories.

Examples:
  strata search redis
  strata search --filter is-official=true nginx
  strata search registry.example:5000/team")]
pub(crate) struct Search {
    /// Show only what fits: stars=, is-official=
    #[arg(short, long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Vec<Filter>,
    /// Show at most this many
    #[arg(long, value_name = "NUMBER", default_value = "25", value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,
    /// Show the whole descriptions
    #[arg(long)]
    no_trunc: bool,
    /// Use 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Arc<Format>>,
    /// A part of the name
    #[arg(value_name = "[REGISTRY/]TERM")]
    term: String,
}

const COLUMNS: [Column; 4] = [
    Column { field: "Name", header: "NAME" },
    Column { field: "Description", header: "DESCRIPTION" },
    Column { field: "StarCount", header: "STARS" },
    Column { field: "IsOfficial", header: "OFFICIAL" },
];

/// Searches and lists what was found.
pub(crate) fn run(_: &Context, search: &Search, out: &mut impl Write) -> Outcome {
    const WIDTH: usize = 45;
    filter::check(&search.filter, &["stars", "is-official"])?;
    let (registry, term) = match search.term.split_once('/') {
        Some((host, rest)) if host == "localhost" || host.contains(['.', ':']) => (host, rest),
        _ => ("docker.io", search.term.as_str()),
    };
    let found = registries::client()?.search(registry, term, search.limit.into(), &())?;
    let mut rows = Vec::new();
    for repository in found {
        let fits = filter::all_keys_fit(&search.filter, |filter| match filter.key.as_str() {
            "stars" => filter.value.parse().is_ok_and(|least: u64| repository.stars >= least),
            _ => matches!(filter.value.as_str(), "true" | "1") == repository.official,
        });
        if !fits {
            continue;
        }
        let description = match search.no_trunc {
            true => repository.description.clone(),
            false => ellipsis(&repository.description, WIDTH),
        };
        let name =
            if registry == "docker.io" { repository.name.clone() } else { format!("{registry}/{}", repository.name) };
        let fields = [
            ("Name", name),
            ("Description", description.replace('\n', " ")),
            ("StarCount", repository.stars.to_string()),
            ("IsOfficial", if repository.official { "[OK]".to_owned() } else { String::new() }),
        ];
        rows.push(fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<Map<_, _>>());
    }
    let shown = ["Name", "Description", "StarCount", "IsOfficial"];
    List { columns: &COLUMNS, shown: &shown, rows }.write(search.format.as_deref().unwrap_or(&Format::Table), out)?;
    Ok(0)
}
