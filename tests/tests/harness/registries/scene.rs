//! A store, the files that say how it reaches registries, and an authority that signs for hosts.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use strata_tests::strata::{Finished, Strata, User, finish};

use crate::registry::Serving;

/// A host that serves without encryption or with a certificate of the scene's authority.
pub(super) const HOST: (&str, Ipv4Addr) = ("registry.example", Ipv4Addr::new(192, 0, 2, 1));
/// A host beside it.
pub(super) const OTHER: (&str, Ipv4Addr) = ("other.example", Ipv4Addr::new(198, 51, 100, 1));

/// A store and its surroundings.
pub(super) struct Scene {
    pub(super) strata: Strata,
    /// Variables of every command beside those that name the files.
    variables: Vec<(&'static str, String)>,
}

impl Scene {
    pub(super) fn new() -> Result<Scene> {
        Scene::of(User::Caller)
    }

    pub(super) fn of(user: User) -> Result<Scene> {
        let strata = Strata::of(user)?;
        for folder in ["docker", "certs"] {
            strata.make_folder(folder)?;
        }
        Ok(Scene { strata, variables: Vec::new() })
    }

    /// Sets a variable for all commands from now on.
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.into()));
    }

    /// Writes the `daemon.json` of all commands from now on.
    pub(super) fn configure(&self, keys: Value) -> Result<()> {
        Ok(fs::write(self.path("daemon.json"), keys.to_string())?)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.strata.folder().join(name)
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.strata.command(arguments);
        for name in PROXY_VARIABLES {
            command.env_remove(name);
        }
        for (name, path) in [("STRATA_CONFIG", "daemon.json"), ("STRATA_CERTS", "certs"), ("DOCKER_CONFIG", "docker")] {
            if self.path(path).exists() {
                command.env(name, self.path(path));
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Result<Finished> {
        finish(&mut self.command(arguments))
    }

    pub(super) fn ok(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.run(arguments)?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished.stdout)
    }

    /// Runs a command that must fail; returns what it says.
    pub(super) fn refused(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.run(arguments)?;
        ensure!(finished.code() == 1, "{finished}");
        Ok(finished.stderr)
    }

    /// Pulls an image that is not here and forgets it again; returns what was said on standard error.
    pub(super) fn pulls(&self, name: &str) -> Result<String> {
        let finished = self.run(&["pull", name])?;
        ensure!(finished.status.success() && finished.stdout.contains("Downloaded newer image for"), "{finished}");
        self.ok(&["rmi", name])?;
        Ok(finished.stderr)
    }

    /// Makes the folder of a registry that has an image of one small layer under these names, such as `team/app:1`.
    pub(super) fn fill(&self, folder: &str, names: &[&str]) -> Result<()> {
        let archive = self.path("root.tar");
        let mut tar = tar::Builder::new(File::create(&archive)?);
        let mut header = tar::Header::new_gnu();
        header.set_size(6);
        tar.append_data(&mut header, "hello", &b"hello\n"[..])?;
        tar.finish()?;
        let serving = Serving::with(&self.strata, folder, "127.0.0.1:0", &[])?;
        for name in names {
            let name = format!("{}/{name}", serving.address);
            self.ok(&["import", "root.tar", &name])?;
            self.ok(&["push", "-q", &name])?;
            self.ok(&["rmi", &name])?;
        }
        Ok(())
    }

    /// Serves a folder encrypted, with a certificate for these names.
    pub(super) fn serve_encrypted(
        &self,
        authority: &Authority,
        folder: &str,
        address: &str,
        names: &[&str],
        arguments: &[&str],
    ) -> Result<Serving> {
        let (certificate, key) = authority.sign(names)?;
        let (certificate_file, key_file) = (format!("{folder}.pem"), format!("{folder}.key"));
        fs::write(self.path(&certificate_file), certificate)?;
        fs::write(self.path(&key_file), key)?;
        let mut all = vec!["--tls-cert", &certificate_file, "--tls-key", &key_file];
        all.extend(arguments);
        Serving::with(&self.strata, folder, address, &all)
    }
}

/// An authority and what it has signed.
pub(super) struct Authority {
    pub(super) certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// Returns a certificate for names, and its key.
    pub(super) fn sign(&self, names: &[&str]) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Writes what the authority is known by.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, &self.certificate).with_context(|| format!("write {path:?}"))
    }
}

const PROXY_VARIABLES: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];
