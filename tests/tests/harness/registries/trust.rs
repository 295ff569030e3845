//! Who must prove what: insecure registries, authorities and certificates in `certs.d`.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::json;
use strata_tests::network;
use strata_tests::strata::User;

use super::scene::{Authority, HOST, OTHER, Scene};
use crate::registry::Serving;

pub(super) fn insecure() -> Result<()> {
    let hosts = [HOST, OTHER, ("here.example", std::net::Ipv4Addr::LOCALHOST)];
    // The loopback address is there already.
    network::inside(&hosts, || {
        let scene = Scene::new()?;
        scene.fill("registry", &["team/app:1"])?;
        let authority = Authority::new()?;
        let _plain = Serving::with(&scene.strata, "registry", "0.0.0.0:5000", &[])?;
        let _encrypted = scene.serve_encrypted(&authority, "registry", "192.0.2.1:5001", &["registry.example"], &[])?;
        let refused = scene.refused(&["pull", "registry.example:5000/team/app:1"])?;
        ensure!(refused.contains("server gave HTTP response to HTTPS client"), "{refused}");
        let refused = scene.refused(&["pull", "registry.example:5001/team/app:1"])?;
        ensure!(refused.contains("registry.example:5001") && refused.contains("certificate"), "{refused}");
        for (entry, names) in [
            ("registry.example:5000", &["registry.example:5000"][..]),
            ("registry.example:5001", &["registry.example:5001"]),
            ("192.0.2.1:5000", &["192.0.2.1:5000"]),
            // A network counts for names that lead into it, too.
            ("192.0.2.0/24", &["192.0.2.1:5000", "192.0.2.1:5001", "registry.example:5000", "registry.example:5001"]),
        ] {
            scene.configure(json!({"insecure-registries": [entry]}))?;
            for name in names {
                scene.pulls(&format!("{name}/team/app:1"))?;
            }
            let refused = scene.refused(&["pull", "other.example:5000/team/app:1"])?;
            ensure!(refused.contains("server gave HTTP response to HTTPS client"), "{entry}: {refused}");
        }
        // This machine itself, whatever it is called.
        scene.configure(json!({}))?;
        for name in ["127.0.0.1:5000", "localhost:5000", "here.example:5000"] {
            scene.pulls(&format!("{name}/team/app:1"))?;
        }
        // It is only who they are that is not asked: a push and a login work as well.
        scene.configure(json!({"insecure-registries": ["192.0.2.0/24"]}))?;
        scene.ok(&["pull", "-q", "registry.example:5001/team/app:1"])?;
        scene.ok(&["tag", "registry.example:5001/team/app:1", "registry.example:5001/team/app:2"])?;
        scene.ok(&["push", "-q", "registry.example:5001/team/app:2"])?;
        scene.configure(json!({"insecure-registries": "registry.example:5000"}))?;
        let broken = scene.refused(&["pull", "registry.example:5000/team/app:1"])?;
        ensure!(broken.contains("daemon.json"), "{broken}");
        Ok(())
    })
}

pub(super) fn certificates() -> Result<()> {
    network::inside(&[HOST, OTHER], || {
        let scene = Scene::new()?;
        scene.fill("registry", &["team/app:1"])?;
        let (authority, clients) = (Authority::new()?, Authority::new()?);
        let names = ["registry.example", "192.0.2.1"];
        let _registry = scene.serve_encrypted(&authority, "registry", "192.0.2.1:5001", &names, &[])?;
        let name = "registry.example:5001/team/app:1";
        let folder = scene.path("certs/registry.example:5001");
        let refused = scene.refused(&["pull", name])?;
        ensure!(refused.contains("certificate"), "{refused}");
        authority.write(&folder.join("ca.crt"))?;
        scene.pulls(name)?;
        // The folder is for this host and port.
        let refused = scene.refused(&["pull", "192.0.2.1:5001/team/app:1"])?;
        ensure!(refused.contains("certificate"), "{refused}");
        // Several authorities add up; one that is broken is named.
        Authority::new()?.write(&folder.join("another.crt"))?;
        scene.pulls(name)?;
        fs::write(folder.join("another.crt"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")?;
        let refused = scene.refused(&["pull", name])?;
        ensure!(refused.contains("another.crt"), "{refused}");
        fs::remove_file(folder.join("another.crt"))?;
        // A certificate for another host proves nothing.
        let _other = scene.serve_encrypted(&authority, "registry", "198.51.100.1:5001", &names, &[])?;
        authority.write(&scene.path("certs/other.example:5001/ca.crt"))?;
        let refused = scene.refused(&["pull", "other.example:5001/team/app:1"])?;
        ensure!(refused.contains("other.example"), "{refused}");

        // A registry that lets nobody in without a certificate.
        fs::write(scene.path("clients.pem"), &clients.certificate)?;
        let arguments = ["--tls-client-ca", "clients.pem"];
        let _closed = scene.serve_encrypted(&authority, "registry", "192.0.2.1:443", &names, &arguments)?;
        let name = "registry.example/team/app:1";
        // Docker takes the folder with the port only if the name has it; here both are of this host.
        let folder = scene.path("certs/registry.example");
        authority.write(&folder.join("ca.crt"))?;
        let refused = scene.refused(&["pull", name])?;
        ensure!(refused.to_lowercase().contains("certificate"), "{refused}");
        let (certificate, key) = clients.sign(&["client"])?;
        fs::write(folder.join("client.cert"), certificate)?;
        let refused = scene.refused(&["pull", name])?;
        ensure!(refused.contains("missing key") && refused.contains("client.key"), "{refused}");
        fs::write(folder.join("client.key"), key)?;
        scene.pulls(name)?;
        let (certificate, key) = authority.sign(&["client"])?;
        fs::write(folder.join("client.cert"), certificate)?;
        fs::write(folder.join("client.key"), key)?;
        let refused = scene.refused(&["pull", name])?;
        ensure!(refused.to_lowercase().contains("certificate") || refused.contains("alert"), "{refused}");
        Ok(())
    })
}

/// No variable names the files: they are where Docker has them.
pub(super) fn own_files() -> Result<()> {
    network::inside(&[HOST, OTHER], || {
        let scene = Scene::of(User::Plain)?;
        scene.fill("registry", &["team/app:1"])?;
        let authority = Authority::new()?;
        let _plain = Serving::with(&scene.strata, "registry", "198.51.100.1:5000", &[])?;
        let _encrypted = scene.serve_encrypted(&authority, "registry", "192.0.2.1:5001", &["registry.example"], &[])?;
        for folder in ["docker", "certs"] {
            fs::remove_dir_all(scene.path(folder))?;
        }
        let own = scene.path(".config/docker");
        authority.write(&own.join("certs.d/registry.example:5001/ca.crt"))?;
        fs::write(own.join("daemon.json"), json!({"insecure-registries": ["other.example:5000"]}).to_string())?;
        scene.pulls("registry.example:5001/team/app:1")?;
        scene.pulls("other.example:5000/team/app:1")?;
        Ok(())
    })
}
