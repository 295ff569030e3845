//! What is told of images, in the lines of `docker events`.

use anyhow::{Context, Result, ensure};

use super::scene::Scene;
use crate::registry::Serving;

/// What Docker 20.10 tells of the same commands, without the times.
const LINES: &[&str] = &[
    "tag ID (name=made:1)",
    "import ID (name=ID)",
    "save ID (name=ID)",
    "untag ID (name=ID)",
    "delete ID (name=ID)",
    "load ID (name=ID)",
    "tag ID (name=REGISTRY/team/app:1)",
    "push REGISTRY/team/app:1 (name=REGISTRY/team/app)",
    "untag ID (name=ID)",
    "untag ID (name=ID)",
    "delete ID (name=ID)",
    "pull REGISTRY/team/app:1 (name=REGISTRY/team/app)",
    "pull REGISTRY/team/app:1 (name=REGISTRY/team/app)",
    "save ID (name=ID)",
];

pub(super) fn of_images() -> Result<()> {
    let scene = Scene::new()?;
    let other = Scene::new()?;
    other.fill("registry", &["team/unused:1"])?;
    let serving = Serving::with(&scene.strata, "registry", "127.0.0.1:0", &[])?;
    let name = format!("{}/team/app:1", serving.address);
    let root = other.path("root.tar").display().to_string();
    let id = scene.ok(&["import", &root, "made:1"])?.trim().to_owned();
    scene.ok(&["save", "-o", "saved.tar", "made:1"])?;
    scene.ok(&["rmi", "made:1"])?;
    scene.ok(&["load", "-q", "-i", "saved.tar"])?;
    scene.ok(&["tag", "made:1", &name])?;
    scene.ok(&["push", "-q", &name])?;
    scene.ok(&["rmi", &name])?;
    scene.ok(&["rmi", "made:1"])?;
    scene.ok(&["pull", "-q", &name])?;
    // Told although it was here.
    scene.ok(&["pull", "-q", &name])?;
    // Neither failures nor looking are.
    scene.refused(&["pull", &format!("{}/team/none:1", serving.address)])?;
    scene.refused(&["push", "made:1"])?;
    scene.ok(&["images"])?;
    scene.ok(&["save", "-o", "saved.tar", &name])?;
    let told = scene.ok(&["events", "--since", "1h", "--until", "0s"])?;
    let line = |line: &str| {
        let (time, rest) = line.split_once(" image ").with_context(|| format!("no event of an image: {line}"))?;
        ensure!(time.len() == "2026-11-29T22:27:36.418531967Z".len() && time.ends_with('Z'), "{time}");
        Ok(rest.replace(&id, "ID").replace(&serving.address, "REGISTRY"))
    };
    let told: Vec<String> = told.lines().map(line).collect::<Result<_>>()?;
    ensure!(told == LINES, "{told:#?}");
    Ok(())
}
