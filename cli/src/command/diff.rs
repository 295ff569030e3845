//! `strata diff`

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};
use strata_engine::{Aspect, ChangeKind, Difference, FileKind, Side};

use super::{Context, Outcome};
use crate::output::{Column, Format, List, human};

/// Show what a container changed in its filesystem, or how two images or containers differ
#[derive(Debug, Args)]
#[command(after_long_help = "\
Lines begin with A for what is new, C for what changed, D for what is gone. Of two images or containers every path is \
compared: type, permissions, owner, time, content and extended attributes. Data is read only where it lies in \
different layers.

Examples:
  strata diff web
  strata diff debian:12 debian:13 --stat
  strata diff app:1 app:2 --format json")]
pub(crate) struct Diff {
    /// Sum up by folder
    #[arg(long)]
    stat: bool,
    /// Use 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = Format::parse, conflicts_with = "stat")]
    format: Option<Arc<Format>>,
    /// A container; or, with a second, what to compare it with: an image or container, by name, id or its beginning
    #[arg(value_name = "CONTAINER|IMAGE")]
    before: String,
    /// The image or container that came after it
    #[arg(value_name = "IMAGE|CONTAINER")]
    after: Option<String>,
}

const COLUMNS: [Column; 8] = [
    Column { field: "Change", header: "CHANGE" },
    Column { field: "What", header: "WHAT" },
    Column { field: "Type", header: "TYPE" },
    Column { field: "Before", header: "BEFORE" },
    Column { field: "After", header: "AFTER" },
    Column { field: "Size", header: "SIZE" },
    Column { field: "Path", header: "PATH" },
    Column { field: "RawPath", header: "RAW PATH" },
];

/// Prints one line per difference.
pub(crate) fn run(context: &Context, diff: &Diff, out: &mut impl Write) -> Outcome {
    let engine = context.engine()?;
    if diff.after.is_none() && diff.format.is_none() && !diff.stat {
        // As Docker compares: cheaper, and blind to what is not worth a layer.
        for change in engine.changes(&diff.before)? {
            write_line(change.kind, None, &change.path, out)?;
        }
        return Ok(0);
    }
    let mut folders: BTreeMap<Vec<u8>, Sums> = BTreeMap::new();
    let mut total = Sums::default();
    let mut rows = Vec::new();
    engine.compare(&diff.before, diff.after.as_deref(), &mut |difference| {
        if diff.stat {
            total.add(&difference);
            folders.entry(top_folder(&difference)).or_default().add(&difference);
        } else if diff.format.is_some() {
            rows.push(row(&difference));
        } else {
            write_line(difference.change(), Some(&difference), &difference.path, out)?;
        }
        Ok(())
    })?;
    if diff.stat {
        write_sums(folders, &total, out)?;
    } else if let Some(format) = &diff.format {
        let shown = ["Change", "What", "Size", "Path"];
        List { columns: &COLUMNS, shown: &shown, rows }.write(format, out)?;
    }
    Ok(0)
}

/// Names are bytes: what is not UTF-8 is passed on as it is.
fn write_line(
    kind: ChangeKind,
    difference: Option<&Difference>,
    path: &[u8],
    out: &mut impl Write,
) -> std::io::Result<()> {
    out.write_all(letter(kind).as_bytes())?;
    if let Some(difference) = difference {
        write!(out, " {:>9}", size_text(difference))?;
    }
    out.write_all(b" ")?;
    out.write_all(path)?;
    out.write_all(b"\n")
}

fn letter(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "A",
        ChangeKind::Modified => "C",
        ChangeKind::Deleted => "D",
    }
}

fn size_of(side: Option<&Side>) -> u64 {
    side.map_or(0, |side| side.size)
}

/// By how much the files at a path grew or shrank; a dash where that means nothing.
fn size_text(difference: &Difference) -> String {
    let is_file = |side: &Option<Side>| side.is_some_and(|side| side.kind == FileKind::Regular);
    if !is_file(&difference.before) && !is_file(&difference.after) {
        return "-".to_owned();
    }
    growth_text(size_of(difference.before.as_ref()), size_of(difference.after.as_ref()))
}

fn growth_text(before: u64, after: u64) -> String {
    let sign = if after < before { "-" } else { "+" };
    format!("{sign}{}", human::size(after.abs_diff(before)))
}

fn row(difference: &Difference) -> Map<String, Value> {
    let kind = difference.after.or(difference.before).map_or("", |side| kind_text(side.kind));
    let what: Vec<&str> = difference.aspects.iter().map(|aspect| aspect_text(*aspect)).collect();
    let side = |side: &Option<Side>| match side {
        None => Value::Null,
        Some(side) => json!({ "Type": kind_text(side.kind), "Size": side.size }),
    };
    let path = String::from_utf8_lossy(&difference.path);
    let raw: String = match std::str::from_utf8(&difference.path) {
        Ok(_) => String::new(),
        Err(_) => difference.path.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let fields = [
        ("Change", json!(letter(difference.change()))),
        ("What", json!(what.join(","))),
        ("Type", json!(kind)),
        ("Before", side(&difference.before)),
        ("After", side(&difference.after)),
        ("Size", json!(size_text(difference))),
        ("Path", json!(path)),
        ("RawPath", json!(raw)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn kind_text(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::Regular => "file",
        FileKind::Symlink => "symlink",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

fn aspect_text(aspect: Aspect) -> &'static str {
    match aspect {
        Aspect::Kind => "type",
        Aspect::Mode => "mode",
        Aspect::Owner => "owner",
        Aspect::Time => "time",
        Aspect::Content => "content",
        Aspect::Attributes => "attributes",
    }
}

/// Differences in numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    added: u64,
    changed: u64,
    removed: u64,
    before: u64,
    after: u64,
}

impl Sums {
    fn add(&mut self, difference: &Difference) {
        *match difference.change() {
            ChangeKind::Added => &mut self.added,
            ChangeKind::Modified => &mut self.changed,
            ChangeKind::Deleted => &mut self.removed,
        } += 1;
        self.before += size_of(difference.before.as_ref());
        self.after += size_of(difference.after.as_ref());
    }
}

/// The folder below the root that a path is in.
fn top_folder(difference: &Difference) -> Vec<u8> {
    let name = difference.path.split(|byte| *byte == b'/').nth(1).unwrap_or_default();
    [b"/", name].concat()
}

fn write_sums(folders: BTreeMap<Vec<u8>, Sums>, total: &Sums, out: &mut impl Write) -> std::io::Result<()> {
    for (folder, sums) in folders {
        let growth = growth_text(sums.before, sums.after);
        write!(out, "{:>7} added {:>7} changed {:>7} removed {growth:>9} ", sums.added, sums.changed, sums.removed)?;
        out.write_all(&folder)?;
        out.write_all(b"\n")?;
    }
    let growth = growth_text(total.before, total.after);
    writeln!(out, "{} added, {} changed, {} removed, {growth}", total.added, total.changed, total.removed)
}
