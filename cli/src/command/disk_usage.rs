//! `strata system df`

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};
use strata_engine::{ImageSummary, State, Timestamp, Usage};

use super::{Context, Outcome, images, ps};
use crate::output::{Column, Format, List, human};

/// Show how much of the disk images and containers take
#[derive(Debug, Args)]
#[command(after_long_help = "\
Sizes are blocks on the disk, as 'du' counts them, indexes and other caches included; all of them together are what \
'du' says of the root folder. RECLAIMABLE is what 'system prune -a' frees.")]
pub(crate) struct DiskUsage {
    /// List every image and container
    #[arg(short, long)]
    verbose: bool,
    /// Use 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse)]
    format: Option<Arc<Format>>,
}

const SUMMARY: [Column; 5] = [
    Column { field: "Active", header: "ACTIVE" },
    Column { field: "Reclaimable", header: "RECLAIMABLE" },
    Column { field: "Size", header: "SIZE" },
    Column { field: "TotalCount", header: "TOTAL" },
    Column { field: "Type", header: "TYPE" },
];
const SUMMARY_SHOWN: [&str; 5] = ["Type", "TotalCount", "Active", "Size", "Reclaimable"];

const IMAGES: [Column; 8] = [
    Column { field: "Containers", header: "CONTAINERS" },
    Column { field: "CreatedSince", header: "CREATED" },
    Column { field: "ID", header: "IMAGE ID" },
    Column { field: "Repository", header: "REPOSITORY" },
    Column { field: "SharedSize", header: "SHARED SIZE" },
    Column { field: "Size", header: "SIZE" },
    Column { field: "Tag", header: "TAG" },
    Column { field: "UniqueSize", header: "UNIQUE SIZE" },
];
const IMAGES_SHOWN: [&str; 8] =
    ["Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers"];

const CONTAINERS: [Column; 8] = [
    Column { field: "Command", header: "COMMAND" },
    Column { field: "ID", header: "CONTAINER ID" },
    Column { field: "Image", header: "IMAGE" },
    Column { field: "LocalVolumes", header: "LOCAL VOLUMES" },
    Column { field: "Names", header: "NAMES" },
    Column { field: "RunningFor", header: "CREATED" },
    Column { field: "Size", header: "SIZE" },
    Column { field: "Status", header: "STATUS" },
];
const CONTAINERS_SHOWN: [&str; 8] = ["ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names"];

const VOLUMES: [Column; 3] = [
    Column { field: "Links", header: "LINKS" },
    Column { field: "Name", header: "VOLUME NAME" },
    Column { field: "Size", header: "SIZE" },
];
const VOLUMES_SHOWN: [&str; 3] = ["Name", "Links", "Size"];

const CACHE: [Column; 7] = [
    Column { field: "CacheType", header: "CACHE TYPE" },
    Column { field: "CreatedSince", header: "CREATED" },
    Column { field: "ID", header: "CACHE ID" },
    Column { field: "LastUsedSince", header: "LAST USED" },
    Column { field: "Shared", header: "SHARED" },
    Column { field: "Size", header: "SIZE" },
    Column { field: "UsageCount", header: "USAGE" },
];
const CACHE_SHOWN: [&str; 7] = ["ID", "CacheType", "Size", "CreatedSince", "LastUsedSince", "UsageCount", "Shared"];

const OTHERS: [Column; 2] = [Column { field: "Kind", header: "KIND" }, Column { field: "Size", header: "SIZE" }];
const OTHERS_SHOWN: [&str; 2] = ["Kind", "Size"];

/// Looks at the disk and prints what takes how much.
pub(crate) fn run(context: &Context, options: &DiskUsage, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    let usage = engine.disk_usage()?;
    let format = options.format.as_deref().unwrap_or(&Format::Table);
    if !options.verbose {
        let rows = summary(&usage).into();
        List { columns: &SUMMARY, shown: &SUMMARY_SHOWN, rows }.write(format, out)?;
        return Ok(0);
    }
    let all = engine.images().images()?;
    let now = Timestamp::now();
    // As in Docker, only tables cut identifiers and commands.
    let whole = matches!(format, Format::Json | Format::Line(_));
    let images: Vec<_> = all.iter().map(|image| image_row(image, &usage, whole, now)).collect();
    let containers: Vec<_> = usage
        .containers
        .iter()
        .map(|(container, bytes)| {
            let mut row = ps::row(container, whole, now);
            row.insert("Size".to_owned(), Value::from(human::space(*bytes)));
            row
        })
        .collect();
    match format {
        Format::Table | Format::TableOf(_) => {
            let parts: [(&str, &[Column], &[&str], Vec<_>); 5] = [
                ("Images space usage:", &IMAGES, &IMAGES_SHOWN, images),
                ("Containers space usage:", &CONTAINERS, &CONTAINERS_SHOWN, containers),
                ("Local Volumes space usage:", &VOLUMES, &VOLUMES_SHOWN, Vec::new()),
                ("Build cache usage: 0B", &CACHE, &CACHE_SHOWN, Vec::new()),
                ("Other space usage:", &OTHERS, &OTHERS_SHOWN, others(&usage)),
            ];
            for (number, (title, columns, shown, rows)) in parts.into_iter().enumerate() {
                writeln!(out, "{}{title}\n", if number == 0 { "" } else { "\n" })?;
                List { columns, shown, rows }.write(&Format::Table, out)?;
            }
        }
        Format::Json | Format::Line(_) => {
            let all = json!({
                "BuildCache": [], "Containers": containers, "Images": images, "Others": others(&usage), "Volumes": [],
            });
            match format {
                Format::Line(template) => writeln!(out, "{}", template.render(&all).map_err(anyhow::Error::msg)?)?,
                _ => writeln!(out, "{all}")?,
            }
        }
    }
    Ok(0)
}

/// One line for each kind of thing; together they are everything.
fn summary(usage: &Usage) -> [Map<String, Value>; 4] {
    let in_use = |image| usage.uses(image) > 0;
    let running = usage.containers.iter().filter(|(container, _)| container.state.is_active());
    let idle = |state: &State| matches!(state, State::Created { .. } | State::Exited { .. } | State::Dead);
    let sum = |counts: &dyn Fn(&State) -> bool| -> u64 {
        usage.containers.iter().filter(|(container, _)| counts(&container.state)).map(|(_, bytes)| bytes).sum()
    };
    let store = &usage.store;
    let images_in_use = store.images.iter().filter(|image| in_use(**image)).count();
    [
        line("Images", store.images.len(), images_in_use, store.total(), store.reclaimable(in_use)),
        line("Containers", usage.containers.len(), running.count(), sum(&|_| true) + usage.other, sum(&idle)),
        line("Local Volumes", 0, 0, 0, 0),
        line("Build Cache", 0, 0, 0, 0),
    ]
}

fn line(kind: &str, total: usize, active: usize, bytes: u64, reclaimable: u64) -> Map<String, Value> {
    let share = (u128::from(reclaimable) * 100).checked_div(u128::from(bytes));
    let reclaimable = match share {
        Some(share) => format!("{} ({share}%)", human::space(reclaimable)),
        None => human::space(reclaimable),
    };
    row([
        ("Active", active.to_string()),
        ("Reclaimable", reclaimable),
        ("Size", human::space(bytes)),
        ("TotalCount", total.to_string()),
        ("Type", kind.to_owned()),
    ])
}

/// One line for an image, with the first of its names.
fn image_row(image: &ImageSummary, usage: &Usage, whole: bool, now: Timestamp) -> Map<String, Value> {
    let name = image.names.iter().find(|name| name.tag().is_some()).or(image.names.first());
    let (all, alone) = (usage.store.of_image(image.id), usage.store.of_image_alone(image.id));
    let mut fields = images::row(image, name, whole, now);
    fields.extend(row([
        ("Containers", usage.uses(image.id).to_string()),
        ("SharedSize", human::space(all - alone)),
        ("Size", human::space(all)),
        ("UniqueSize", human::space(alone)),
        ("VirtualSize", human::space(all)),
    ]));
    fields
}

/// What is neither an image nor a container.
fn others(usage: &Usage) -> Vec<Map<String, Value>> {
    let store = &usage.store;
    let kinds = [
        ("Layers that several images share", store.shared()),
        ("Layers kept by containers and mounts alone", store.kept()),
        ("Layers that nothing needs", store.unneeded()),
        ("Downloads", store.downloads),
        ("Damaged files put aside", store.quarantine),
        ("Files of running commands", store.working),
        ("Lists and folders", store.own + usage.other),
    ];
    kinds.into_iter().map(|(kind, bytes)| row([("Kind", kind.to_owned()), ("Size", human::space(bytes))])).collect()
}

fn row<const N: usize>(fields: [(&str, String); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}
