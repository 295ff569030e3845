//! `strata manifest`

use std::io::Write;

use clap::Args;
use strata_engine::ImageRef;

use super::Outcome;
use crate::registries;

/// Show a manifest or index as the registry has it, byte for byte
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Accepted for compatibility: see insecure-registries in the guide
    #[arg(long, hide = true)]
    insecure: bool,
    /// Show the media type and the digest too
    #[arg(short, long)]
    verbose: bool,
    /// List what refers to it instead: signatures, indexes and other artifacts
    #[arg(long)]
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
    if inspect.referrers {
        let found = registries::client()?.referrers(&reference, inspect.artifact_type.as_deref(), &())?;
        writeln!(out, "{}", super::inspect::pretty(&serde_json::to_value(found)?)?)?;
        return Ok(0);
    }
    let (media_type, digest, bytes) = registries::client()?.manifest(&reference, &())?;
    if inspect.verbose {
        let document: serde_json::Value = serde_json::from_slice(&bytes)?;
        let described = serde_json::json!({
            "Ref": reference.to_string(),
            "Descriptor": {"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()},
            "Manifest": document,
        });
        writeln!(out, "{}", super::inspect::pretty(&described)?)?;
        return Ok(0);
    }
    out.write_all(&bytes)?;
    if bytes.last() != Some(&b'\n') {
        writeln!(out)?;
    }
    Ok(0)
}
