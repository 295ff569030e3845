//! `strata events`

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use serde_json::{Map, Value, json};
use strata_engine::{EventMessage, EventsFrom, ImageRef, Timestamp};

use super::filter::{self, Filter};
use super::logs::{fixed, moment};
use super::{Context, Outcome};
use crate::output::Template;
use crate::output::human::printable;

/// Show what happens to images, as it happens
#[derive(Debug, Args)]
#[command(after_long_help = "\
What happened before is kept for some thousand events, and shown with --since or --until.

Examples:
  strata events
  strata events --since 1h --until 0s
  strata events --filter event=fetch_failed --format '{{.Actor.Attributes.name}}'")]
pub(crate) struct Events {
    /// Show only what fits: event=, image=, label=, scope=, type=
    #[arg(short, long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Vec<Filter>,
    /// Use 'json' or a Go template
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    format: Option<std::sync::Arc<Shape>>,
    /// Show what happened since then as well: a time, or how long ago, such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show what happened before as well, and end then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// How an event is shown.
#[derive(Debug)]
enum Shape {
    Json,
    Line(Template),
}

fn parse_format(text: &str) -> Result<std::sync::Arc<Shape>, String> {
    // The names of fields are others in JSON than in templates.
    Ok(std::sync::Arc::new(match text.trim() {
        "json" | "{{json .}}" | "{{ json . }}" => Shape::Json,
        text => Shape::Line(Template::parse(text)?),
    }))
}

/// Prints events until the end, if there is one.
pub(crate) fn run(context: &Context, events: &Events, out: &mut impl Write) -> Outcome {
    filter::check(&events.filter, &["event", "image", "label", "scope", "type"])?;
    let since = events.since.as_deref().map(moment).transpose()?;
    let until = events.until.as_deref().map(moment).transpose()?;
    if since.zip(until).is_some_and(|(since, until)| since > until) {
        let text = |time: &Option<String>| time.clone().unwrap_or_default();
        let (since, until) = (text(&events.since), text(&events.until));
        return Err(anyhow!("`since` time ({since}) cannot be after `until` time ({until})").into());
    }
    let engine = context.engine()?;
    // Whoever says when it ends asks for what was as well.
    let from = if since.or(until).is_some() { EventsFrom::Beginning } else { EventsFrom::Now };
    let mut reader = engine.images().events(from)?;
    loop {
        // What is written before the end of time has come is read after it.
        let left = until.map(|until| left(until, Timestamp::now()));
        for event in reader.read()? {
            let wanted = since.is_none_or(|since| event.time() >= since);
            if wanted && until.is_none_or(|until| event.time() <= until) && fits(&event, &events.filter) {
                show(&event, events.format.as_deref(), out)?;
            }
        }
        out.flush()?;
        if left == Some(Duration::ZERO) {
            return Ok(0);
        }
        reader.wait(left)?;
    }
}

/// How long it is until then.
fn left(until: Timestamp, now: Timestamp) -> Duration {
    u64::try_from(until.in_nanoseconds() - now.in_nanoseconds()).map_or(Duration::ZERO, Duration::from_nanos)
}

fn show(event: &EventMessage, shape: Option<&Shape>, out: &mut impl Write) -> Result<()> {
    match shape {
        None => writeln!(out, "{}", printable(&line(event)))?,
        Some(Shape::Json) => writeln!(out, "{}", as_json(event))?,
        Some(Shape::Line(template)) => {
            writeln!(out, "{}", template.render(&as_fields(event)).map_err(anyhow::Error::msg)?)?;
        }
    }
    Ok(())
}

/// The line that Docker prints.
fn line(event: &EventMessage) -> String {
    let EventMessage { kind, action, actor, .. } = event;
    let attributes: Vec<String> = actor.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let attributes = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    format!("{} {kind} {action} {}{attributes}", fixed(event.time()), actor.id)
}

/// The document of Docker's API.
fn as_json(event: &EventMessage) -> Value {
    let mut document = Map::new();
    document.insert("status".to_owned(), json!(event.action));
    if !event.actor.id.is_empty() {
        document.insert("id".to_owned(), json!(event.actor.id));
    }
    document.insert("Type".to_owned(), json!(event.kind));
    document.insert("Action".to_owned(), json!(event.action));
    document.insert("Actor".to_owned(), json!(event.actor));
    document.insert("scope".to_owned(), json!(SCOPE));
    document.insert("time".to_owned(), json!(event.time().seconds));
    document.insert("timeNano".to_owned(), json!(event.nanoseconds()));
    Value::Object(document)
}

/// The fields of templates.
fn as_fields(event: &EventMessage) -> Value {
    json!({
        "Status": event.action, "ID": event.actor.id, "From": "", "Type": event.kind, "Action": event.action,
        "Actor": event.actor, "Scope": SCOPE, "Time": event.time().seconds, "TimeNano": event.nanoseconds(),
    })
}

fn fits(event: &EventMessage, filters: &[Filter]) -> bool {
    filter::all_keys_fit(filters, |filter| match filter.key.as_str() {
        "event" => filter.value == event.action,
        "type" => filter.value == event.kind,
        "scope" => filter.value == SCOPE,
        "image" => {
            let name = event.actor.attributes.get("name");
            name.into_iter()
                .chain([&event.actor.id])
                .any(|text| *text == filter.value || without_tag(text) == filter.value)
        }
        _ => filter.fits_label(&event.actor.attributes),
    })
}

fn without_tag(text: &str) -> String {
    text.parse::<ImageRef>().map_or_else(|_| text.to_owned(), |name| name.familiar_repository().into_owned())
}

/// Events are those of this root alone.
const SCOPE: &str = "local";

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> EventMessage {
        let text = r#"{"Type":"image","Action":"tag","Actor":{"ID":"sha256:73df","Attributes":{"a":"b","name":"one:1"}},"timeNano":1795977101286961379}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn events_look_as_dockers() {
        assert_eq!(line(&event()), "2026-11-29T18:31:41.286961379Z image tag sha256:73df (a=b, name=one:1)");
        assert_eq!(
            as_json(&event()).to_string(),
            r#"{"Action":"tag","Actor":{"Attributes":{"a":"b","name":"one:1"},"ID":"sha256:73df"},"Type":"image","id":"sha256:73df","scope":"local","status":"tag","time":1795977101,"timeNano":1795977101286961379}"#
        );
        let template =
            Template::parse("{{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}} {{.Time}} {{.Scope}}").unwrap();
        assert_eq!(template.render(&as_fields(&event())).unwrap(), "tag sha256:73df one:1 1795977101 local");
    }

    #[test]
    fn filters_are_those_of_docker() {
        for (texts, expected) in [
            (&["event=tag"][..], true),
            (&["event=ta"], false),
            (&["event=pull", "event=tag"], true),
            (&["image=one"], true),
            (&["image=one:1"], true),
            (&["image=sha256:73df"], true),
            (&["image=two"], false),
            (&["label=a"], true),
            (&["label=a=c"], false),
            (&["type=container"], false),
            (&["scope=local", "type=image", "label=a=b"], true),
        ] {
            let filters: Vec<Filter> = texts.iter().map(|text| filter::parse(text).unwrap()).collect();
            assert_eq!(fits(&event(), &filters), expected, "{texts:?}");
        }
        let at = |seconds| Timestamp { seconds, nanoseconds: 5 };
        assert_eq!(left(at(10), at(8)), Duration::from_secs(2));
        assert_eq!(left(at(8), at(10)), Duration::ZERO);
    }
}
