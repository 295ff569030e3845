//! `strata manifest`

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;

use anyhow::{Context as _, Result, bail};
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
    list(
        members,
        |digest| {
            let name = format!("{}@{digest}", reference.repository());
            let manifest = name.parse().map_err(anyhow::Error::from).and_then(|name| Fetched::of(client, &name));
            manifest.with_context(|| format!("manifest {digest} of {reference}"))
        },
        &reference.to_string(),
    )
}

/// How much the description of an index may take. Whoever makes one names what he likes in it, as often as he likes.
const MOST: usize = 64 << 20;

/// Describes the members of an index, each of which is fetched once.
fn list(members: &[Value], fetch: impl Fn(&str) -> Result<Fetched>, index: &str) -> Result<String> {
    let mut known: HashMap<&str, Fetched> = HashMap::new();
    let mut text = String::from("[");
    for member in members {
        let digest = member["digest"].as_str().unwrap_or_default();
        let manifest = match known.entry(digest) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(fetch(digest)?),
        };
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&entry(&format!("{index}@{digest}"), manifest, &member["platform"])?);
        if text.len() > MOST {
            bail!(
                "the manifests of {index} take more than {} MiB: look at them one by one, by their digests",
                MOST >> 20
            );
        }
    }
    text.push(']');
    Ok(text)
}

/// The manifest goes in as it is, so that its members keep their order.
fn entry(name: &str, fetched: &Fetched, platform: &Value) -> Result<String> {
    let kind = match fetched.media_type.as_str() {
        "application/vnd.docker.distribution.manifest.v2+json" => "SchemaV2Manifest",
        // Docker describes no index in an index.
        "application/vnd.docker.distribution.manifest.list.v2+json" => "ManifestList",
        "application/vnd.oci.image.index.v1+json" => "OCIIndex",
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn fetched(text: String) -> Fetched {
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        Fetched { media_type, digest: "sha256:0".to_owned(), document: json!({}), text }
    }

    #[test]
    fn a_member_is_fetched_once_however_often_it_is_named() {
        let fetches = Cell::new(0);
        let fetch = |_: &str| {
            fetches.set(fetches.get() + 1);
            Ok(fetched("{}".to_owned()))
        };
        let member = |digest: &str| json!({ "digest": digest, "platform": { "os": "linux" } });
        let members = [member("sha256:0"), member("sha256:1"), member("sha256:0")];
        let described: Value = serde_json::from_str(&list(&members, fetch, "r/n:1").unwrap()).unwrap();
        assert_eq!(fetches.get(), 2);
        assert_eq!(described[2]["Ref"], "r/n:1@sha256:0");
        assert_eq!(described[1]["Descriptor"]["platform"]["os"], "linux");
    }

    #[test]
    fn an_index_that_names_one_large_manifest_often_is_refused() {
        let members = vec![json!({ "digest": "sha256:0" }); 40_000];
        let large = || format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
        let refused = list(&members, |_| Ok(fetched(large())), "r/n:1").unwrap_err().to_string();
        assert!(refused.contains("more than 64 MiB"), "{refused}");
    }
}
