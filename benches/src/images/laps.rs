//! What every engine does in turn, and with which words.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::engine::{Engine, Store};
use super::scene::{Scene, text};
use super::table::Figures;

/// Steps on one empty store.
pub(super) enum Lap {
    /// Loads an archive.
    Load { name: &'static str, archive: PathBuf },
    /// Pulls, and goes on with what was pulled.
    Pull,
    /// Pulls the other form.
    PullZstd,
    /// Commits ten changed files on an image of so many.
    Commit { files: usize, archive: PathBuf, image: String },
}

impl Lap {
    pub(super) fn all(scene: &Scene) -> Vec<Lap> {
        let load = |name, archive: &PathBuf| Lap::Load { name, archive: archive.clone() };
        let mut laps = vec![load("plain", &scene.archive), load("gzip", &scene.gzip), load("zstd", &scene.zstd)];
        laps.extend([Lap::Pull, Lap::PullZstd]);
        laps.extend(scene.counted.iter().map(|(files, archive, image)| Lap::Commit {
            files: *files,
            archive: archive.clone(),
            image: image.clone(),
        }));
        laps
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Lap::Load { name, .. } => name,
            Lap::Pull => "pull",
            Lap::PullZstd => "pull-zstd",
            Lap::Commit { .. } => "commit",
        }
    }
}

/// Runs one lap and notes its figures.
pub(super) fn run_lap(scene: &Scene, engine: Engine, lap: &Lap, figures: &mut Figures) -> Result<()> {
    let start = || engine.start(&scene.strata, scene.work.join("engine"));
    match lap {
        Lap::Load { name, archive } => {
            let row = format!("load {name}");
            let Some(words) = load_words(scene, engine, name, archive) else { return Ok(()) };
            let store = start()?;
            figures.add(&row, engine, store.time(&words(&store))?);
        }
        Lap::Pull => {
            let Some(words) = pull_words(engine) else { return Ok(()) };
            let store = start()?;
            let empty = store.space()?;
            figures.add("pull gzip", engine, store.time(&words(&store, &scene.name("gzip")))?);
            let first = store.space()? - empty;
            figures.space("disk after the pull", engine, first, scene.content);
            if engine != Engine::Skopeo {
                figures.add(
                    "second image on the same base",
                    engine,
                    store.time(&words(&store, &scene.name("second")))?,
                );
                let second = store.space()?.saturating_sub(empty + first);
                figures.space("disk for the second image", engine, second, scene.content);
                after_pull(scene, &store, figures)?;
            }
        }
        Lap::PullZstd => {
            let Some(words) = pull_words(engine) else { return Ok(()) };
            let store = start()?;
            figures.add("pull zstd", engine, store.time(&words(&store, &scene.name("zstd")))?);
        }
        Lap::Commit { files, archive, image } => {
            let commits = matches!(engine, Engine::Strata | Engine::Docker | Engine::Podman);
            // A million files take the peers minutes.
            if !commits || (*files > 500_000 && engine != Engine::Strata) {
                return Ok(());
            }
            let store = start()?;
            let loaded = store.command(&["load", "-q", "-i", &text(archive)]).output()?;
            if !loaded.status.success() {
                bail!("load: {}", String::from_utf8_lossy(&loaded.stderr));
            }
            commit(scene, &store, image, "bench/committed:1", &format!("commit, {files} files"), figures)?;
        }
    }
    Ok(())
}

/// Mount, save, commit and push of the image that was pulled.
fn after_pull(scene: &Scene, store: &Store, figures: &mut Figures) -> Result<()> {
    let engine = store.engine;
    let image = scene.name("gzip");
    let point = scene.work.join("point");
    fs::create_dir_all(&point)?;
    let mount: Option<Vec<String>> = match engine {
        Engine::Strata => Some(words(&["mount", &image, &text(&point)])),
        Engine::Podman => Some(words(&["image", "mount", &image])),
        Engine::Containerd => Some(words(&["images", "mount", &image, &text(&point)])),
        _ => None,
    };
    if let Some(mount) = mount {
        figures.add("mount", engine, store.time(&mount)?);
        let unmount: Vec<String> = match engine {
            Engine::Strata => words(&["umount", &text(&point)]),
            Engine::Podman => words(&["image", "unmount", &image]),
            _ => words(&["images", "unmount", "--rm", &text(&point)]),
        };
        store.command(&unmount).output()?;
    }

    let saved = scene.work.join("saved.tar");
    let save = match engine {
        Engine::Containerd => words(&["images", "export", &text(&saved), &image]),
        Engine::Podman => words(&["save", "-q", "-o", &text(&saved), &image]),
        _ => words(&["save", "-o", &text(&saved), &image]),
    };
    figures.add("save", engine, store.time(&save)?);
    fs::remove_file(&saved)?;

    if engine == Engine::Containerd {
        // It makes no images, so it has no changed layer to push.
        return Ok(());
    }
    let changed = scene.name(&format!("changed-{}", engine.name()));
    commit(scene, store, &image, &changed, &format!("commit, {} files", scene.files), figures)?;
    let push = match engine {
        Engine::Podman => words(&["push", "-q", "--tls-verify=false", &changed]),
        _ => words(&["push", "-q", &changed]),
    };
    figures.add("push, all but the top layer there", engine, store.time(&push)?);
    Ok(())
}

/// Changes ten files in a new container of `image` and commits it as `target`.
fn commit(scene: &Scene, store: &Store, image: &str, target: &str, row: &str, figures: &mut Figures) -> Result<()> {
    for preparation in [
        words(&["create", "--name", "bench", image, "true"]),
        words(&["cp", &format!("{}/.", text(&scene.changes)), "bench:/"]),
    ] {
        let output = store.command(&preparation).output()?;
        if !output.status.success() {
            bail!("{preparation:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    figures.add(row, store.engine, store.time(&words(&["commit", "bench", target]))?);
    Ok(())
}

type Words<'a> = Box<dyn Fn(&Store) -> Vec<String> + 'a>;

/// How an engine loads an archive; `None` where it has no such thing.
fn load_words<'a>(scene: &'a Scene, engine: Engine, name: &'a str, archive: &'a PathBuf) -> Option<Words<'a>> {
    if !archive.exists() {
        return None;
    }
    let path = text(archive);
    Some(match engine {
        Engine::Strata | Engine::Docker | Engine::Podman => Box::new(move |_| words(&["load", "-q", "-i", &path])),
        Engine::Containerd => Box::new(move |_| words(&["images", "import", &path])),
        Engine::Skopeo => {
            let kind = if name == "plain" { "docker-archive" } else { "oci-archive" };
            Box::new(move |store| {
                let target = format!("oci:{}:1", text(&store.folder().join("layout")));
                words(&["copy", "-q", &format!("{kind}:{path}"), &target])
            })
        }
        Engine::Umoci if name == "gzip" => {
            let layout = scene.work.join("layout");
            if !layout.exists() {
                let unpacked = fs::create_dir_all(&layout)
                    .context("make a folder")
                    .and_then(|()| strata_tests::oracle::extract(std::slice::from_ref(archive), &layout));
                unpacked.ok()?;
            }
            Box::new(move |store| {
                let image = format!("{}:gzip", text(&layout));
                words(&["unpack", "--image", &image, &text(&store.folder().join("bundle"))])
            })
        }
        Engine::Umoci => return None,
    })
}

type PullWords = fn(&Store, &str) -> Vec<String>;

/// How an engine pulls; `None` where it does not.
fn pull_words(engine: Engine) -> Option<PullWords> {
    Some(match engine {
        Engine::Strata | Engine::Docker => |_, name| words(&["pull", "-q", name]),
        Engine::Podman => |_, name| words(&["pull", "-q", "--tls-verify=false", name]),
        Engine::Containerd => |_, name| words(&["images", "pull", "--plain-http", name]),
        Engine::Skopeo => |store, name| {
            let target = format!("oci:{}:1", text(&store.folder().join("layout")));
            words(&["copy", "-q", "--src-tls-verify=false", &format!("docker://{name}"), &target])
        },
        Engine::Umoci => return None,
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
