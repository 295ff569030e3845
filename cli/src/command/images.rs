//! `strata images`

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value};
use strata_engine::{ImageRef, ImageSummary, Timestamp};

use super::filter::{self, Filter};
use super::{Context, Outcome};
use crate::output::{Column, Format, List, human};

/// List images
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Accepted for compatibility: there are no intermediate images to hide
    #[arg(short, long)]
    all: bool,
    /// Show the digests of the manifests
    #[arg(long)]
    digests: bool,
    /// Show the whole identifiers
    #[arg(long)]
    no_trunc: bool,
    /// Show the identifiers only
    #[arg(short, long)]
    quiet: bool,
    /// Show only what fits: reference=, dangling=, label=, before=, since=
    #[arg(short, long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Vec<Filter>,
    /// Use 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Arc<Format>>,
    /// Show only images with this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

const COLUMNS: [Column; 12] = [
    Column { field: "Containers", header: "CONTAINERS" },
    Column { field: "CreatedAt", header: "CREATED AT" },
    Column { field: "CreatedSince", header: "CREATED" },
    Column { field: "Digest", header: "DIGEST" },
    Column { field: "ID", header: "IMAGE ID" },
    Column { field: "Repository", header: "REPOSITORY" },
    Column { field: "SharedSize", header: "SHARED SIZE" },
    Column { field: "Size", header: "SIZE" },
    Column { field: "State", header: "STATE" },
    Column { field: "Tag", header: "TAG" },
    Column { field: "UniqueSize", header: "UNIQUE SIZE" },
    Column { field: "VirtualSize", header: "VIRTUAL SIZE" },
];

/// Lists images: one line for every name, and one for an image without a name.
pub(crate) fn run(context: &Context, images: &Images, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    filter::check(&images.filter, &["reference", "dangling", "label", "before", "since"])?;
    images
        .filter
        .iter()
        .filter(|filter| filter.key == "dangling")
        .try_for_each(|filter| filter::truth(filter).map(drop))?;
    let all = engine.images().images()?;
    let created_of = |name: &str| -> Result<_, strata_engine::ImageError> {
        let id = engine.images().resolve(name)?;
        Ok(all.iter().find(|image| image.id == id).and_then(|image| image.created))
    };
    let mut bounds = Vec::new();
    for filter in &images.filter {
        if matches!(filter.key.as_str(), "before" | "since") {
            bounds.push((filter.key == "before", created_of(&filter.value)?));
        }
    }
    let now = Timestamp::now();
    let mut rows = Vec::new();
    let mut ids = Vec::new();
    for image in &all {
        let in_bounds =
            bounds.iter().all(|(before, bound)| if *before { image.created < *bound } else { image.created > *bound });
        if !in_bounds {
            continue;
        }
        for name in lines(image) {
            if chosen(image, name, images) {
                rows.push(row(image, name, images.no_trunc, now));
                ids.push(if images.no_trunc { image.id.to_string() } else { image.id.short() });
            }
        }
    }
    if images.quiet && images.format.is_none() {
        for id in ids {
            writeln!(out, "{id}")?;
        }
        return Ok(0);
    }
    let mut shown: Vec<&str> = match images.digests {
        true => vec!["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
        false => vec!["Repository", "Tag", "ID", "CreatedSince", "Size"],
    };
    // Docker has no such column, and there is nothing to say about images that are here.
    if all.iter().any(|image| image.lazy.is_some()) {
        shown.push("State");
    }
    List { columns: &COLUMNS, shown: &shown, rows }.write(images.format.as_deref().unwrap_or(&Format::Table), out)?;
    Ok(0)
}

/// The names of an image, or one line for none. A digest beside a tag of the same repository is no line of its own.
fn lines(image: &ImageSummary) -> Vec<Option<&ImageRef>> {
    let has_tag =
        |name: &ImageRef| image.names.iter().any(|other| other.tag().is_some() && other.same_repository(name));
    match image.names.is_empty() {
        true => vec![None],
        false => image.names.iter().filter(|name| name.tag().is_some() || !has_tag(name)).map(Some).collect(),
    }
}

/// The digest that a name goes with: the one it was pulled by, else that of the image's manifest.
fn digest_of(image: &ImageSummary, name: Option<&ImageRef>) -> String {
    let of_repository = |name: &ImageRef| {
        let same = image.names.iter().filter(|other| other.same_repository(name));
        let mut digests = same.filter_map(ImageRef::digest);
        digests.find(|digest| *digest == image.manifest).or_else(|| {
            image.names.iter().filter(|other| other.same_repository(name)).filter_map(ImageRef::digest).next_back()
        })
    };
    name.and_then(of_repository).unwrap_or(image.manifest).to_string()
}

fn chosen(image: &ImageSummary, name: Option<&ImageRef>, images: &Images) -> bool {
    if let Some(wanted) = &images.reference
        && !name.is_some_and(|name| fits_reference(name, wanted))
    {
        return false;
    }
    filter::all_keys_fit(&images.filter, |filter| match filter.key.as_str() {
        "dangling" => {
            let has_tag = image.names.iter().any(|name| name.tag().is_some());
            filter::truth(filter).is_ok_and(|dangling| dangling != has_tag)
        }
        "reference" => name.is_some_and(|name| fits_reference(name, &filter.value)),
        "label" => filter.fits_label(&image.labels),
        // Already applied.
        _ => true,
    })
}

/// Whether a name fits a repository, with or without a tag, either of which may have `*` and `?`.
fn fits_reference(name: &ImageRef, pattern: &str) -> bool {
    let (repository, tag) = match pattern.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (pattern, None),
    };
    let fits = |pattern: &str, text: &str| filter::glob(pattern.as_bytes(), text.as_bytes());
    (fits(repository, &name.familiar_repository()) || fits(repository, &name.repository()))
        && tag.is_none_or(|tag| fits(tag, name.tag().unwrap_or("<none>")))
}

/// Whether an image is here, or how much of it.
fn state(image: &ImageSummary) -> String {
    match &image.lazy {
        None => "whole".to_owned(),
        Some(lazy) => {
            let percent = lazy.here.saturating_mul(100) / lazy.size.max(1);
            let failing = if lazy.failure.is_some() { ", failing" } else { "" };
            format!("fetching {percent}%{failing}")
        }
    }
}

/// The fields of one line: an image by one of its names.
pub(super) fn row(image: &ImageSummary, name: Option<&ImageRef>, whole: bool, now: Timestamp) -> Map<String, Value> {
    const NONE: &str = "<none>";
    let fields = [
        ("Containers", "N/A".to_owned()),
        ("CreatedAt", image.created.map_or_else(|| "N/A".to_owned(), human::moment)),
        ("CreatedSince", created_since(image, now)),
        ("Digest", digest_of(image, name)),
        ("ID", if whole { image.id.to_string() } else { image.id.short() }),
        ("Repository", name.map_or_else(|| NONE.to_owned(), |name| name.familiar_repository().into_owned())),
        ("SharedSize", "N/A".to_owned()),
        ("Size", human::size(image.size)),
        ("State", state(image)),
        ("Tag", name.and_then(ImageRef::tag).unwrap_or(NONE).to_owned()),
        ("UniqueSize", "N/A".to_owned()),
        ("VirtualSize", human::space(image.size)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

/// How long ago an image was made.
fn created_since(image: &ImageSummary, now: Timestamp) -> String {
    image.created.map_or_else(|| "N/A".to_owned(), |created| human::age(created, now))
}
