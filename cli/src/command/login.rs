//! `strata login` and `strata logout`

use std::io::{self, IsTerminal, Read as _, Write};

use anyhow::{anyhow, bail};
use clap::Args;
use strata_engine::{Login as RegistryLogin, Secret, Stored};

use super::Outcome;
use crate::failure::Failure;
use crate::registries;

/// Log in to a registry
#[derive(Debug, Args)]
#[command(after_long_help = "\
Logins are kept where docker keeps them, in ~/.docker/config.json or by the credential helper that it names, and are \
shared with it.

Examples:
  strata login registry.example:5000 -u alice
  strata login -u alice --password-stdin < token")]
pub(crate) struct Login {
    /// The name of the user
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The password; others on this machine can see it while the command runs
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// The registry; Docker Hub by default
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

/// Log out from a registry
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// The registry; Docker Hub by default
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

/// Tries a login and keeps it.
pub(crate) fn login(login: &Login, out: &mut impl Write) -> Outcome {
    let server = server_of(login.server.as_deref());
    let client = registries::client()?;
    let kept = client.kept_login(&server)?;
    let asked = login.username.is_some() || login.password.is_some() || login.password_stdin;
    if let (false, Some(kept)) = (asked, &kept) {
        writeln!(out, "Authenticating with existing credentials... [Username: {}]", kept.user)?;
        if client.login(&server, kept).is_ok() {
            writeln!(out, "Login Succeeded")?;
            return Ok(0);
        }
        writeln!(out, "Login did not succeed, error: the credentials that were kept are refused")?;
    }
    if login.password_stdin && login.username.is_none() {
        return Err(anyhow!("Must provide --username with --password-stdin").into());
    }
    if login.password.is_some() {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    out.flush()?;
    let user = match &login.username {
        Some(user) => user.clone(),
        None => read_user(kept.as_ref().map(|kept| kept.user.as_str()))?,
    };
    let password = match (&login.password, login.password_stdin) {
        (Some(password), _) => password.clone(),
        (None, true) => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        (None, false) if !io::stdin().is_terminal() => {
            let failure = Failure::from(anyhow!("Cannot perform an interactive login from a non TTY device"));
            return Err(failure.hint("give the password through standard input, with --password-stdin"));
        }
        (None, false) => read_password()?,
    };
    let secret = Secret::Password(password);
    let stored = client.login(&server, &RegistryLogin { user, secret })?;
    if let Stored::InFile(path) = stored {
        eprintln!("WARNING! Your credentials are stored unencrypted in '{}'.", path.display());
    }
    writeln!(out, "Login Succeeded")?;
    Ok(0)
}

/// Forgets a login.
pub(crate) fn logout(logout: &Logout, out: &mut impl Write) -> Outcome {
    let server = server_of(logout.server.as_deref());
    let shown = if server == HUB { "https://index.docker.io/v1/" } else { &server };
    let known = registries::client()?.logout(&server)?;
    match known {
        true => writeln!(out, "Removing login credentials for {shown}")?,
        false => writeln!(out, "Not logged in to {shown}")?,
    }
    Ok(0)
}

/// Returns the registry that is meant by what was typed.
fn server_of(typed: Option<&str>) -> String {
    let typed = typed.unwrap_or(HUB);
    let host = typed.split_once("://").map_or(typed, |(_, rest)| rest);
    match host.split('/').next().unwrap_or(host) {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

fn read_user(known: Option<&str>) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        bail!("Cannot perform an interactive login from a non TTY device");
    }
    match known {
        Some(known) => eprint!("Username ({known}): "),
        None => eprint!("Username: "),
    }
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    match (line.trim(), known) {
        ("", Some(known)) => Ok(known.to_owned()),
        ("", None) => bail!("username is empty"),
        (user, _) => Ok(user.to_owned()),
    }
}

/// Reads a password, which is not shown on a terminal.
pub(crate) fn read_password() -> anyhow::Result<String> {
    let stdin = io::stdin();
    let _hidden = match stdin.is_terminal() {
        true => {
            eprint!("Password: ");
            Some(crate::terminal::HiddenInput::enter(std::os::fd::AsFd::as_fd(&stdin))?)
        }
        false => None,
    };
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        bail!("password is empty");
    }
    Ok(password.to_owned())
}

const HUB: &str = "docker.io";
