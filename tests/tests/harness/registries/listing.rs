//! What a registry has: `pull -a`, `search`.

use anyhow::{Result, ensure};
use serde_json::json;
use strata_tests::network;

use super::scene::{Authority, HOST, OTHER, Scene};
use crate::registry::Serving;

pub(super) fn all_tags() -> Result<()> {
    let scene = Scene::new()?;
    scene.fill("registry", &["team/app:1", "team/app:2", "team/app:latest", "team/other:1"])?;
    let serving = Serving::with(&scene.strata, "registry", "127.0.0.1:0", &[])?;
    let name = format!("{}/team/app", serving.address);
    let refused = scene.refused(&["pull", "-a", &format!("{name}:1")])?;
    ensure!(refused.contains("tag can't be used with --all-tags/-a"), "{refused}");
    let output = scene.ok(&["pull", "-a", &name])?;
    for tag in ["1", "2", "latest"] {
        ensure!(output.contains(&format!("{tag}: Pulling from team/app\n")), "{output}");
        ensure!(output.contains(&format!("Status: Downloaded newer image for {name}:{tag}\n")), "{output}");
    }
    ensure!(output.ends_with(&format!("\n{name}\n")) && !output.contains("Using default tag"), "{output}");
    let images = scene.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}", &name])?;
    let mut images: Vec<&str> = images.lines().collect();
    images.sort_unstable();
    ensure!(images == [format!("{name}:1"), format!("{name}:2"), format!("{name}:latest")], "{images:?}");
    ensure!(scene.ok(&["pull", "-a", "-q", &name])? == format!("{name}\n"), "-q says more than the name");
    let missing = scene.refused(&["pull", "-a", &format!("{}/team/none", serving.address)])?;
    ensure!(missing.contains("not found") || missing.contains("does not exist"), "{missing}");
    // Pushed at once as well.
    let copy = format!("{}/copy/app", serving.address);
    for tag in ["1", "2"] {
        scene.ok(&["tag", &format!("{name}:{tag}"), &format!("{copy}:{tag}")])?;
    }
    let output = scene.ok(&["push", "-a", &copy])?;
    ensure!(output.contains("1: digest: sha256:") && output.contains("2: digest: sha256:"), "{output}");
    Ok(())
}

pub(super) fn search() -> Result<()> {
    network::inside(&[("index.docker.io", OTHER.1), HOST], || {
        let mut scene = Scene::new()?;
        let authority = Authority::new()?;
        authority.write(&scene.path("ca.pem"))?;
        scene.set("SSL_CERT_FILE", scene.path("ca.pem").display().to_string());
        scene.fill("hub", &["library/redis:1", "team/redis-tools:1", "team/app:1"])?;
        let names = ["index.docker.io"];
        let _hub = scene.serve_encrypted(&authority, "hub", "198.51.100.1:443", &names, &[])?;
        let found = scene.ok(&["search", "redis", "--format", "{{.Name}}"])?;
        ensure!(found == "library/redis\nteam/redis-tools\n", "{found}");
        ensure!(scene.ok(&["search", "--limit", "1", "-q", "redis"]).is_err(), "search has no -q");
        let found = scene.ok(&["search", "--limit", "1", "redis", "--format", "{{.Name}}"])?;
        ensure!(found == "library/redis\n", "{found}");
        let table = scene.ok(&["search", "redis"])?;
        ensure!(table.starts_with("NAME") && table.lines().count() == 3, "{table}");
        let none = scene.ok(&["search", "--filter", "is-official=true", "--filter", "stars=3", "redis"])?;
        ensure!(none.lines().count() == 1, "{none}");
        let refused = scene.refused(&["search", "--filter", "colour=red", "redis"])?;
        ensure!(refused.contains("invalid filter 'colour'"), "{refused}");
        // Another registry, which has no search, only a catalog.
        scene.configure(json!({"insecure-registries": ["registry.example:5000"]}))?;
        let faults = ["--fault", "GET /v1/search status=404"];
        let _other = Serving::with(&scene.strata, "hub", "192.0.2.1:5000", &faults)?;
        let found = scene.ok(&["search", "registry.example:5000/redis", "--format", "{{.Name}}"])?;
        ensure!(found == "registry.example:5000/library/redis\nregistry.example:5000/team/redis-tools\n", "{found}");
        Ok(())
    })
}
