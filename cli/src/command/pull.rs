//! `strata pull`

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use strata_engine::{
    Engine, ImageId, ImageRef, LazyProgress, Platform, Progress, ProgressEvent, PullOptions, Pulled, RegistryClient,
    Start,
};

use super::container_options::ContainerOptions;
use super::{Context, Outcome};
use crate::failure::Failure;
use crate::output::human::{printable, size};
use crate::progress::Bars;
use crate::registries;

/// Download an image from a registry
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  strata pull debian:12
  strata pull --platform linux/arm64 alpine
  strata pull registry.example:5000/team/app@sha256:...")]
pub(crate) struct Pull {
    /// Download all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Choose the image for this platform, as os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Print nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// Accepted for compatibility: signatures of Notary are not checked
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, hide = true)]
    disable_content_trust: Option<bool>,
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
}

/// When an image that a container needs is pulled: if it is not here, in any case, not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    #[default]
    Missing,
    Always,
    Never,
}

/// Whether an image may be used before it is here: if it says what is in it, not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lazy {
    #[default]
    Auto,
    Never,
}

/// What to do about an image that something else is to be done with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) policy: Policy,
    pub(crate) platform: Option<&'a Platform>,
    pub(crate) lazy: Lazy,
    pub(crate) quiet: bool,
}

/// Waits until an image is whole.
pub(crate) fn complete(engine: &Engine, image: &ImageId) -> Result<(), Failure> {
    let shown = std::io::stderr().is_terminal();
    let mut last = String::new();
    engine.complete(image, &mut |progress: &LazyProgress| {
        let text = format!("{} of {}", size(progress.here), size(progress.size));
        if shown && text != last {
            eprint!("\r\x1b[Kwaiting for the rest of the image: {text}");
            last = text;
        }
    })?;
    if !last.is_empty() {
        eprint!("\r\x1b[K");
    }
    Ok(())
}

/// Pulls an image, or all of a repository.
pub(crate) fn run(context: &Context, pull: &Pull, out: &mut impl Write) -> Outcome {
    let reference: ImageRef = pull.name.parse()?;
    let engine = context.engine()?;
    let client = registries::client()?;
    let has_tag = pull.name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    if pull.all_tags && has_tag {
        return Err(anyhow!("tag can't be used with --all-tags/-a").into());
    }
    let references = match pull.all_tags {
        false => vec![reference.clone()],
        true => {
            let tags = client.tags(&reference, &())?;
            tags.iter().map(|tag| reference.with_tag(tag)).collect::<Result<_, _>>()?
        }
    };
    if !pull.quiet && !pull.all_tags && !has_tag {
        writeln!(out, "Using default tag: latest")?;
        out.flush()?;
    }
    for reference in &references {
        let options = PullOptions { platform: pull.platform.clone(), ..PullOptions::default() };
        let pulled = fetch(&engine, &client, reference, &options, Shown::of(pull.quiet))?;
        if pulled.early {
            // It was begun to be used before it was here.
            complete(&engine, &pulled.id)?;
        }
        if !pull.quiet {
            summarise(&pulled, out)?;
        }
    }
    match pull.all_tags {
        false => writeln!(out, "{reference}")?,
        true => writeln!(out, "{}", reference.repository())?,
    }
    Ok(0)
}

/// Makes sure that an image which a container is to be made of is here, as far as the policy allows.
pub(crate) fn ensure(engine: &Engine, options: &ContainerOptions) -> Result<(), Failure> {
    let Some(image) = options.image_and_command.first() else { return Ok(()) };
    let wanted =
        Wanted { policy: options.pull, platform: options.platform.as_ref(), lazy: options.lazy, quiet: options.quiet };
    ensure_image(engine, image, &wanted)
}

/// Makes sure that an image is here, as far as the policy allows. What is said goes to standard error.
pub(crate) fn ensure_image(engine: &Engine, image: &str, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let Wanted { policy, platform, lazy, quiet } = *wanted;
    let missing = match engine.images().resolve(image) {
        Ok(_) => false,
        Err(error) if error.is_not_found() => true,
        // Something else is wrong, which starting the container will tell.
        Err(_) => return Ok(()),
    };
    if policy == Policy::Never || (policy == Policy::Missing && !missing) {
        return Ok(());
    }
    // What looks like an ID names no image of a registry.
    let Ok(reference) = image.parse::<ImageRef>() else { return Ok(()) };
    if missing && !quiet {
        eprintln!("Unable to find image '{}' locally", reference.familiar());
    }
    let client = registries::client().map_err(Failure::of_engine)?;
    let shown = if quiet { Shown::Nothing } else { Shown::OnStandardError };
    let start = match lazy {
        Lazy::Auto => Start::Early,
        Lazy::Never => Start::Whole,
    };
    let options = PullOptions { platform: platform.cloned(), start, ..PullOptions::default() };
    let pulled = fetch(engine, &client, &reference, &options, shown).map_err(Failure::of_engine)?;
    match lazy {
        Lazy::Never if pulled.early => complete(engine, &pulled.id)?,
        Lazy::Auto if pulled.early => engine.start_fetcher().map_err(Failure::of_engine)?,
        _ => {}
    }
    if !quiet {
        let mut text = Vec::new();
        summarise(&pulled, &mut text)?;
        eprint!("{}", String::from_utf8_lossy(&text));
    }
    Ok(())
}

fn summarise(pulled: &Pulled, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "Digest: {}", pulled.digest)?;
    let name = pulled.reference.familiar();
    match pulled.up_to_date {
        true => writeln!(out, "Status: Image is up to date for {name}"),
        false => writeln!(out, "Status: Downloaded newer image for {name}"),
    }
}

fn fetch(
    engine: &Engine,
    client: &RegistryClient,
    reference: &ImageRef,
    options: &PullOptions,
    shown: Shown,
) -> Result<Pulled, strata_engine::RegistryError> {
    let progress = Lines::new(shown);
    engine.images().pull(client, reference, options, &progress)
}

/// Where what happens is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    OnStandardOutput,
    OnStandardError,
}

impl Shown {
    fn of(quiet: bool) -> Shown {
        if quiet { Shown::Nothing } else { Shown::OnStandardOutput }
    }
}

/// A line for each step of each layer, as docker prints them without a terminal; bars on one.
struct Lines {
    shown: Shown,
    bars: Option<Bars>,
    complete: Mutex<BTreeSet<String>>,
}

impl Lines {
    fn new(shown: Shown) -> Lines {
        let bars = shown != Shown::Nothing && std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Lines { shown, bars: bars.then(|| Bars::new(false)), complete: Mutex::default() }
    }

    fn line(&self, text: &str) {
        match self.shown {
            Shown::Nothing => {}
            Shown::OnStandardOutput => {
                // A reader that has gone is noticed when the result is written.
                let _ = writeln!(std::io::stdout(), "{}", printable(text));
            }
            Shown::OnStandardError => eprintln!("{}", printable(text)),
        }
    }
}

impl Progress for Lines {
    fn report(&self, event: ProgressEvent<'_>) {
        let short = |layer: &str| {
            let hex = layer.strip_prefix("sha256:").unwrap_or(layer);
            hex.get(..12).unwrap_or(hex).to_owned()
        };
        match event {
            ProgressEvent::Pulling { tag, repository } => self.line(&format!("{tag}: Pulling from {repository}")),
            ProgressEvent::Present { layer } => self.line(&format!("{}: Already exists", short(layer))),
            ProgressEvent::Retrying { reason, delay, .. } if self.shown != Shown::Nothing => {
                let seconds = delay.as_secs_f32();
                eprintln!("strata: {}; trying again in {seconds:.1} s", printable(reason));
            }
            event if self.bars.is_some() => self.bars.iter().for_each(|bars| bars.report(event)),
            ProgressEvent::Early { layer } => self.line(&format!("{}: Fetched when it is read", short(layer))),
            ProgressEvent::Waiting { layer } => self.line(&format!("{}: Pulling fs layer", short(layer))),
            ProgressEvent::Finished { layer } => {
                let mut complete = self.complete.lock().unwrap_or_else(PoisonError::into_inner);
                if complete.insert(layer.to_owned()) {
                    self.line(&format!("{}: Pull complete", short(layer)));
                }
            }
            _ => {}
        }
    }
}
