//! `strata push`

use std::io::{IsTerminal, Write};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use strata_engine::{CompressionFormat, ImageRef, Progress, ProgressEvent, ProgressUpload, PushOptions};

use super::{Context, Outcome, pull};
use crate::output::human::printable;
use crate::progress::Bars;
use crate::registries;

/// Upload an image to a registry
#[derive(Debug, Args)]
#[command(after_long_help = "\
An image that was pulled keeps its digest wherever the registry has its layers, or can take them from another of its \
repositories; see 'keep-blobs' in the guide for everywhere else.

Examples:
  strata tag debian:12 registry.example:5000/base/debian:12
  strata push registry.example:5000/base/debian:12
  strata push --compression-format zstd localhost:5000/app")]
pub(crate) struct Push {
    /// Upload all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Push all layers in this form, and not as they came
    #[arg(long, value_name = "FORMAT")]
    compression_format: Option<Format>,
    /// Put an index of the layers beside the image: strata runs it before it is pulled then
    #[arg(long)]
    with_index: bool,
    /// Print nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// Accepted for compatibility: images are not signed for Notary
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, hide = true)]
    disable_content_trust: Option<bool>,
    /// The image
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For every client there is
    Gzip,
    /// Smaller and faster
    Zstd,
    /// Not at all
    None,
}

/// Pushes an image, or all of a repository.
pub(crate) fn run(context: &Context, push: &Push, out: &mut impl Write) -> Outcome {
    let reference: ImageRef = push.name.parse()?;
    let engine = context.engine()?;
    let client = registries::client()?;
    let has_tag = push.name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    if push.all_tags && has_tag {
        return Err(anyhow!("tag can't be used with --all-tags/-a").into());
    }
    let references = match push.all_tags {
        false => vec![reference.clone()],
        true => tags_of(&engine, &reference)?,
    };
    if !push.quiet {
        if !push.all_tags && !has_tag {
            writeln!(out, "Using default tag: latest")?;
        }
        writeln!(out, "The push refers to repository [{}]", reference.repository())?;
        out.flush()?;
    }
    let format = push.compression_format.map(|format| match format {
        Format::Gzip => CompressionFormat::Gzip,
        Format::Zstd => CompressionFormat::Zstd,
        Format::None => CompressionFormat::None,
    });
    for reference in &references {
        let image = engine.images().resolve(&reference.to_string()).map_err(|error| match error.is_not_found() {
            true => not_local(reference),
            false => error.into(),
        })?;
        pull::complete(&engine, &image)?;
        let progress = Lines::new(push.quiet);
        let pushed = engine.images().push(
            &client,
            reference,
            &PushOptions { format, with_index: push.with_index },
            &progress,
        )?;
        drop(progress);
        if !push.quiet {
            let tag = reference.tag().unwrap_or("");
            writeln!(out, "{tag}: digest: {} size: {}", pushed.digest, pushed.size)?;
        }
    }
    if push.quiet {
        writeln!(out, "{reference}")?;
    }
    Ok(0)
}

fn tags_of(engine: &strata_engine::Engine, reference: &ImageRef) -> anyhow::Result<Vec<ImageRef>> {
    let images = engine.images().images()?;
    let names = images.iter().flat_map(|image| &image.names);
    let found: Vec<ImageRef> =
        names.filter(|name| name.tag().is_some() && name.same_repository(reference)).cloned().collect();
    if found.is_empty() {
        return Err(not_local(reference));
    }
    Ok(found)
}

fn not_local(reference: &ImageRef) -> anyhow::Error {
    anyhow!("An image does not exist locally with the tag: {}", reference.familiar_repository())
}

/// A line for each layer, as docker prints them without a terminal; bars on one.
struct Lines {
    quiet: bool,
    bars: Option<Bars>,
}

impl Lines {
    fn new(quiet: bool) -> Lines {
        let bars = !quiet && std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Lines { quiet, bars: bars.then(|| Bars::new(false)) }
    }
}

impl Progress for Lines {
    fn report(&self, event: ProgressEvent<'_>) {
        let short = |layer: &str| {
            let hex = layer.strip_prefix("sha256:").unwrap_or(layer);
            hex.get(..12).unwrap_or(hex).to_owned()
        };
        let text = match event {
            _ if self.quiet => return,
            ProgressEvent::Retrying { reason, delay, .. } => {
                eprintln!("strata: {}; trying again in {:.1} s", printable(reason), delay.as_secs_f32());
                return;
            }
            ProgressEvent::Uploaded { layer, how } => {
                let how = match how {
                    ProgressUpload::Sent => "Pushed".to_owned(),
                    ProgressUpload::Present => "Layer already exists".to_owned(),
                    ProgressUpload::Mounted { repository } => format!("Mounted from {repository}"),
                };
                format!("{}: {how}", short(layer))
            }
            ProgressEvent::NotEarly { layer, reason } => {
                eprintln!("strata: layer {} is left out of the index: {}", short(layer), printable(reason));
                return;
            }
            event if self.bars.is_some() => return self.bars.iter().for_each(|bars| bars.report(event)),
            ProgressEvent::Waiting { layer } => format!("{}: Preparing", short(layer)),
            _ => return,
        };
        // A reader that has gone is noticed when the result is written.
        let _ = writeln!(std::io::stdout(), "{}", printable(&text));
    }
}
