//! `strata manifest`

use std::io::Write;

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use serde_json::{Value, json};
use strata_engine::{ImageRef, RegistryClient};

use super::Outcome;
use crate::output::indent;
use crate::registries;

/// Show a manifest or index of a registry
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Accepted for compatibility: see insecure-registries in the guide
    #[arg(long, hide = true)]
    insecure: bool,
    /// Show the name, media type, digest and platform too; of an index, all of its manifests
    #[arg(short, long)]
    verbose: bool,
    /// Show the very bytes that the registry has, of which the digest is made
    #[arg(long, conflicts_with = "verbose")]
    raw: bool,
    /// List what refers to it instead: signatures, indexes and other artifacts
    #[arg(long, conflicts_with_all = ["verbose", "raw"])]
    referrers: bool,
    /// List only this kind of artifact
    #[arg(long, value_name = "TYPE", requires = "referrers")]
    artifact_type: Option<String>,
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
}

/// Fetches a manifest and prints it.
pub(crate) fn inspect(inspect: &Inspect, out: &mut impl Write) -> Outcome {
    let reference: ImageRef = inspect.name.parse()?;
    let client = registries::client()?;
    if inspect.referrers {
        let found = client.referrers(&reference, inspect.artifact_type.as_deref(), &())?;
        writeln!(out, "{}", super::inspect::pretty(&serde_json::to_value(found)?)?)?;
        return Ok(0);
    }
    let manifest = Fetched::of(&client, &reference)?;
    if inspect.raw {
        out.write_all(manifest.text.as_bytes())?;
    } else if inspect.verbose {
        writeln!(out, "{}", indent(&described(&client, &reference, &manifest)?, "\t"))?;
    } else {
        // Docker's two ways of indenting.
        let step = if manifest.members().is_some() { "   " } else { "\t" };
        writeln!(out, "{}", indent(&manifest.text, step))?;
    }
    Ok(0)
}

/// A manifest or index as it came.
struct Fetched {
    media_type: String,
    digest: String,
    text: String,
    document: Value,
}

impl Fetched {
    fn of(client: &RegistryClient, reference: &ImageRef) -> Result<Fetched> {
        let (media_type, digest, bytes) = client.manifest(reference, &())?;
        let document = serde_json::from_slice(&bytes)?;
        Ok(Fetched { media_type, digest: digest.to_string(), text: String::from_utf8(bytes)?, document })
    }

    /// The descriptors of an index.
    fn members(&self) -> Option<&Vec<Value>> {
        self.document.get("manifests")?.as_array()
    }
}

/// Describes a manifest, or all those of an index, in Docker's words.
fn described(client: &RegistryClient, reference: &ImageRef, fetched: &Fetched) -> Result<String> {
    let Some(members) = fetched.members() else {
        let platform = client.platform_of(reference, fetched.text.as_bytes(), &())?;
        return entry(&reference.to_string(), fetched, &json!(platform));
    };
    let mut entries = Vec::new();
    for member in members {
        let digest = member["digest"].as_str().unwrap_or_default();
        let name = format!("{reference}@{digest}");
        let manifest = Fetched::of(client, &format!("{}@{digest}", reference.repository()).parse()?)?;
        entries.push(entry(&name, &manifest, &member["platform"])?);
    }
    Ok(format!("[{}]", entries.join(",")))
}

/// The manifest goes in as it is, so that its members keep their order.
fn entry(name: &str, fetched: &Fetched, platform: &Value) -> Result<String> {
    let kind = match fetched.media_type.as_str() {
        "application/vnd.docker.distribution.manifest.v2+json" => "SchemaV2Manifest",
        _ => "OCIManifest",
    };
    let quoted = |text: &str| serde_json::to_string(text);
    let platform = if platform.is_null() { String::new() } else { format!(r#","platform":{platform}"#) };
    Ok(format!(
        r#"{{"Ref":{},"Descriptor":{{"mediaType":{},"digest":"{}","size":{}{platform}}},"Raw":"{}","{kind}":{}}}"#,
        quoted(name)?,
        quoted(&fetched.media_type)?,
        fetched.digest,
        fetched.text.len(),
        BASE64_STANDARD.encode(&fetched.text),
        fetched.text,
    ))
}
