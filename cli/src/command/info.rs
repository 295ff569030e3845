//! `strata info`

use std::io::Write;
use std::sync::Arc;

use clap::Args;
use strata_engine::Info as Machine;

use super::{Context, Outcome};
use crate::output::{Template, human};

/// Show what this machine allows and what was chosen
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Use 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT", value_parser = parse)]
    format: Option<Shape>,
}

/// How it is shown.
#[derive(Clone, Debug)]
enum Shape {
    Json,
    Template(Arc<Template>),
}

fn parse(text: &str) -> Result<Shape, String> {
    match text {
        "json" => Ok(Shape::Json),
        text => Ok(Shape::Template(Arc::new(Template::parse(text)?))),
    }
}

/// Shows everything about the machine.
pub(crate) fn run(context: &Context, info: &Info, out: &mut impl Write) -> Outcome {
    let machine = context.engine_for_new()?.info();
    match &info.format {
        None => write!(out, "{}", text(&machine))?,
        Some(Shape::Json) => writeln!(out, "{}", serde_json::to_string(&machine)?)?,
        Some(Shape::Template(template)) => {
            let value = serde_json::to_value(&machine)?;
            writeln!(out, "{}", template.render(&value).map_err(anyhow::Error::msg)?)?;
        }
    }
    Ok(0)
}

fn text(info: &Machine) -> String {
    let mut text = format!(
        "Version: {}\nRoot: {}\nContainers: {} ({} running)\nImages: {}\nKernel: {}\nSystem: {}\n\
         Architecture: {}\nCPUs: {}\nMemory: {}\nCgroup Driver: {}\nCgroup Version: {} ({})\n\
         Cgroup Controllers: {}\n",
        info.server_version,
        info.docker_root_dir,
        info.containers,
        info.containers_running,
        info.images,
        info.kernel_version,
        info.operating_system,
        info.architecture,
        info.cpus,
        human::size(info.mem_total),
        info.cgroup_driver,
        info.cgroup_version,
        info.cgroup_layout,
        info.cgroup_controllers.join(" "),
    );
    text.push_str("\nChosen:\n");
    for choice in &info.choices {
        text.push_str(&format!("  {}: {}\n    ({})\n", choice.what, choice.chosen, choice.why));
    }
    text.push_str("\nThis machine:\n");
    for feature in &info.features {
        let state = if feature.available { "yes" } else { "no" };
        let detail = if feature.detail.is_empty() { String::new() } else { format!(", {}", feature.detail) };
        text.push_str(&format!("  {}: {state}{detail}\n", feature.name));
    }
    text
}
