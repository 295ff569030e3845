//! `strata registry`: a registry of one's own.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use strata_registry::{Access, Fault, Options, Server, Tls};

use super::Outcome;
use super::login::read_password;

/// Serve a registry of images from a folder
#[derive(Debug, Args)]
#[command(after_long_help = "\
Everything of OCI distribution 1.1: docker, podman, skopeo and strata push to it and pull from it. Without --htpasswd \
everybody who reaches the address may do everything, so the default address is this machine's own.

Examples:
  strata registry serve --folder /srv/registry
  strata registry htpasswd alice < password > users
  strata registry serve --folder /srv/registry --address 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem \
--htpasswd users")]
pub(crate) struct Serve {
    /// Keep everything in FOLDER
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// Listen on this address
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5000")]
    address: String,
    /// Let only the users of this file in; made by 'strata registry htpasswd' or 'htpasswd -B'
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// Ask for names and passwords with each request, or give out tokens
    #[arg(long, value_name = "KIND", default_value = "basic")]
    auth: Auth,
    /// Let everybody pull
    #[arg(long)]
    anonymous_pull: bool,
    /// Encrypt, with this certificate (PEM, with those that lead to its authority)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let only clients in that have a certificate of this authority (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Accept no push and no deletion
    #[arg(long)]
    read_only: bool,
    /// Misbehave, to see what clients make of it: '[METHOD] PATH [skip=N] [times=N] KIND[=VALUE]'
    #[arg(long, value_name = "RULE", hide_short_help = true)]
    fault: Vec<Fault>,
}

/// How users prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Auth {
    /// With each request
    Basic,
    /// Once, for a token
    Token,
}

/// Print a line for a registry's password file; the password is read from standard input
#[derive(Debug, Args)]
pub(crate) struct Htpasswd {
    /// The name of the user
    #[arg(value_name = "NAME")]
    name: String,
}

/// Serves until the process is killed. What was acknowledged by then is on its way to the disk.
pub(crate) fn serve(serve: &Serve) -> Outcome {
    let access = match &serve.htpasswd {
        None => Access::open(),
        Some(path) => {
            let users = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            let access = match serve.auth {
                Auth::Basic => Access::basic(&users),
                Auth::Token => Access::token(&users),
            };
            access.with_context(|| path.display().to_string())?
        }
    };
    let tls = match (&serve.tls_cert, &serve.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls::from_files(certificate, key, serve.tls_client_ca.as_deref())?),
        _ => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let server = Server::start(Options {
        address: serve.address.clone(),
        folder: serve.folder.clone(),
        access: if serve.anonymous_pull { access.with_anonymous_reading() } else { access },
        tls,
        read_only: serve.read_only,
        record: false,
    })?;
    for fault in &serve.fault {
        server.misbehave(fault.clone());
    }
    eprintln!("serving {} on {scheme}://{}", serve.folder.display(), server.address());
    server.wait();
    Ok(0)
}

/// Prints a line of an htpasswd file.
pub(crate) fn htpasswd(htpasswd: &Htpasswd, out: &mut impl Write) -> Outcome {
    if htpasswd.name.is_empty() || htpasswd.name.contains([':', '\n']) {
        return Err(anyhow!("{:?} cannot be the name of a user", htpasswd.name).into());
    }
    let password = read_password()?;
    writeln!(out, "{}", strata_registry::hash_password(&htpasswd.name, &password)?)?;
    Ok(0)
}
