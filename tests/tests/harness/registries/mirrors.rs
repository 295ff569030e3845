//! Mirrors: of Docker Hub and of any other registry, and what happens when one fails.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use strata_tests::network;

use super::scene::{Authority, HOST, OTHER, Scene};
use crate::registry::Serving;

const MIRROR: &str = "192.0.2.1:5000";

pub(super) fn docker_hub() -> Result<()> {
    network::inside(&[("registry-1.docker.io", OTHER.1), HOST], || {
        let mut scene = Scene::new()?;
        let authority = Authority::new()?;
        authority.write(&scene.path("ca.pem"))?;
        scene.set("SSL_CERT_FILE", scene.path("ca.pem").display().to_string());
        scene.fill("full", &["library/app:1"])?;
        scene.strata.make_folder("empty")?;
        scene.configure(json!({"registry-mirrors": ["http://registry.example:5000/"]}))?;
        let mirror = |folder: &str, faults: &[&str]| Serving::with(&scene.strata, folder, MIRROR, faults);
        // Docker Hub is not asked for what the mirror has.
        let has_it = mirror("full", &[])?;
        let output = scene.ok(&["pull", "app:1"])?;
        ensure!(output.contains("1: Pulling from library/app\n"), "{output}");
        ensure!(output.ends_with("Status: Downloaded newer image for app:1\ndocker.io/library/app:1\n"), "{output}");
        scene.ok(&["rmi", "app:1"])?;
        drop(has_it);
        let nobody = scene.refused(&["pull", "app:1"])?;
        ensure!(nobody.contains("registry-1.docker.io"), "the registry's own failure is what counts: {nobody}");

        let names = ["registry-1.docker.io"];
        let _hub = scene.serve_encrypted(&authority, "full", "198.51.100.1:443", &names, &[])?;
        // Nobody is there; it lacks the image; it fails in every way, at the manifest or at the layer.
        scene.pulls("app:1")?;
        let lacks_it = mirror("empty", &[])?;
        scene.pulls("app:1")?;
        drop(lacks_it);
        for fault in [
            "/v2/* status=503",
            "/v2/* status=429:60",
            "/v2/* status=500",
            "/v2/* reset",
            "/v2/* garbage",
            "GET /v2/*/manifests/* shorten=3",
            "GET /v2/*/blobs/* status=404",
            "GET /v2/*/blobs/* status=503",
            "GET /v2/*/blobs/* flip=5",
            "GET /v2/*/blobs/* cut=20",
        ] {
            let fails = mirror("full", &["--fault", fault])?;
            let said = scene.pulls("app:1").with_context(|| format!("a mirror with {fault}"))?;
            // Nobody is patient with a mirror: another place is known.
            ensure!(said.matches("trying again").count() <= 1, "{fault}: {said}");
            drop(fails);
        }
        // What is pushed, and what other registries have, is no mirror's business.
        let _mirror = mirror("full", &["--read-only"])?;
        scene.ok(&["import", "root.tar", "app:2"])?;
        scene.ok(&["push", "-q", "app:2"])?;
        scene.configure(json!({"registry-mirrors": ["https://registry.example/path"]}))?;
        let invalid = scene.refused(&["pull", "app:1"])?;
        ensure!(invalid.contains("daemon.json") && invalid.contains("https://registry.example/path"), "{invalid}");
        Ok(())
    })
}

pub(super) fn any_registry() -> Result<()> {
    network::inside(&[HOST, OTHER, ("docker.example", OTHER.1)], || {
        let scene = Scene::new()?;
        scene.fill("full", &["team/app:1"])?;
        scene.strata.make_folder("empty")?;
        let keys = |mirrors: &[&str]| {
            let insecure = ["other.example:5000", "docker.example:5000"];
            json!({"mirrors": {"other.example:5000": mirrors}, "insecure-registries": insecure})
        };
        let name = "other.example:5000/team/app:1";
        scene.configure(keys(&["http://registry.example:5001", "http://registry.example:5000"]))?;
        let mirror = Serving::with(&scene.strata, "full", MIRROR, &[])?;
        scene.pulls(name)?;
        let other = scene.refused(&["pull", "docker.example:5000/team/app:1"])?;
        ensure!(other.contains("docker.example:5000"), "{other}");
        drop(mirror);
        let registry = Serving::with(&scene.strata, "full", "198.51.100.1:5000", &[])?;
        scene.pulls(name)?;
        // A mirror that loses the layers stands before an insecure registry without encryption.
        let _mirror = Serving::with(&scene.strata, "full", MIRROR, &["--fault", "GET /v2/*/blobs/* status=404"])?;
        scene.pulls(name)?;
        drop(registry);
        let gone = scene.refused(&["pull", name])?;
        ensure!(gone.contains("other.example:5000"), "{gone}");
        Ok(())
    })
}
