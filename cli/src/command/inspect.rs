//! `strata inspect`

use std::io::Write;

use clap::{Args, ValueEnum};
use serde_json::Value;
use strata_engine::{Engine, InspectError};

use super::{Context, Outcome};
use crate::output::Template;

/// Show everything about containers and images
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Look for this kind of object only
    #[arg(long, value_name = "KIND")]
    r#type: Option<Kind>,
    /// Also show what the files of containers take
    #[arg(short, long)]
    size: bool,
    #[command(flatten)]
    what: What,
}

/// Show everything about images
#[derive(Debug, Args)]
pub(crate) struct InspectImage {
    /// Add each layer: what it was in the registry, what is here of it, which step made it, which images share it
    #[arg(long)]
    layers: bool,
    #[command(flatten)]
    what: What,
}

/// Show everything about containers
#[derive(Debug, Args)]
pub(crate) struct InspectContainer {
    /// Also show what its files take
    #[arg(short, long)]
    size: bool,
    #[command(flatten)]
    what: What,
}

/// What all three are given.
#[derive(Debug, Args)]
struct What {
    /// Use 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT", value_parser = Shape::parse)]
    format: Option<Shape>,
    /// The objects, by name, id or the beginning of an id
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Containers
    Container,
    /// Images
    Image,
}

/// How each object is shown.
#[derive(Clone, Debug)]
enum Shape {
    Json,
    Template(std::sync::Arc<Template>),
}

impl Shape {
    fn parse(text: &str) -> Result<Shape, String> {
        match text {
            "json" => Ok(Shape::Json),
            text => Ok(Shape::Template(std::sync::Arc::new(Template::parse(text)?))),
        }
    }
}

/// Inspects objects of any kind: a container comes before an image of the same name.
pub(crate) fn run(context: &Context, inspect: &Inspect, out: &mut impl Write) -> Outcome {
    let find = |engine: &Engine, name: &str| match inspect.r#type {
        Some(Kind::Container) => engine.inspect_container(name, inspect.size),
        Some(Kind::Image) => engine.inspect_image(name),
        None => match engine.inspect_container(name, inspect.size) {
            Err(error) if error.is_not_found() => engine.inspect_image(name),
            result => result,
        },
    };
    show(context, &inspect.what, inspect.r#type.is_none(), find, out)
}

/// Inspects images.
pub(crate) fn image(context: &Context, inspect: &InspectImage, out: &mut impl Write) -> Outcome {
    let find = match inspect.layers {
        true => Engine::inspect_image_with_layers,
        false => Engine::inspect_image,
    };
    show(context, &inspect.what, false, find, out)
}

/// Inspects containers.
pub(crate) fn container(context: &Context, inspect: &InspectContainer, out: &mut impl Write) -> Outcome {
    let find = |engine: &Engine, name: &str| engine.inspect_container(name, inspect.size);
    show(context, &inspect.what, false, find, out)
}

fn show(
    context: &Context,
    what: &What,
    any_kind: bool,
    find: impl Fn(&Engine, &str) -> Result<Value, InspectError>,
    out: &mut impl Write,
) -> Outcome {
    let engine = context.engine()?;
    let mut found = Vec::new();
    let code = super::for_each(&what.names, |name| {
        match find(&engine, name) {
            Ok(value) => found.push(value),
            Err(error) if any_kind && error.is_not_found() => {
                return Err(anyhow::anyhow!("no such object: {name}").into());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    })?;
    match &what.format {
        None => writeln!(out, "{}", pretty(&Value::Array(found))?)?,
        Some(Shape::Json) => {
            for value in found {
                writeln!(out, "{value}")?;
            }
        }
        Some(Shape::Template(template)) => {
            for value in found {
                writeln!(out, "{}", template.render(&value).map_err(anyhow::Error::msg)?)?;
            }
        }
    }
    Ok(code)
}

/// Indented by four, as Docker does.
pub(super) fn pretty(value: &Value) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    serde::Serialize::serialize(value, &mut serializer)?;
    Ok(String::from_utf8(bytes)?)
}
