//! What all engines are given: a registry with images, and archives of them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use strata_tests::image::synthetic;

use super::Options;

/// A registry with the images, and archives of them.
pub(super) struct Scene {
    pub(super) strata: PathBuf,
    pub(super) work: PathBuf,
    registry: Child,
    pub(super) address: String,
    /// An uncompressed archive of `docker save`.
    pub(super) archive: PathBuf,
    /// Archives of an OCI layout with compressed layers.
    pub(super) gzip: PathBuf,
    pub(super) zstd: PathBuf,
    /// The folder that `commit` finds its changes in.
    pub(super) changes: PathBuf,
    /// Bytes and number of the image's files.
    pub(super) content: u64,
    pub(super) files: usize,
    /// Numbers of files of the images for `commit`, with their archives and names.
    pub(super) counted: Vec<(usize, PathBuf, String)>,
}

impl Scene {
    pub(super) fn prepare(strata: &Path, work: &Path, options: &Options) -> Result<Scene> {
        let (archive, reference, files) = if options.quick {
            (synthetic::spread(6)?, synthetic::spread_reference(6), 16_000)
        } else {
            (synthetic::large()?, synthetic::LARGE_REFERENCE.to_owned(), 20_000)
        };
        let counts: &[usize] = if options.quick { &[1_000] } else { &[1_000, 200_000, 1_000_000] };
        let counted = if options.laps.is_empty() || options.laps.iter().any(|lap| lap == "commit") {
            counts
                .iter()
                .map(|&count| Ok((count, synthetic::counted(count)?, synthetic::counted_reference(count))))
                .collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        // Everybody reads it from memory.
        std::io::copy(&mut fs::File::open(&archive)?, &mut std::io::sink())?;
        let content = archive.metadata()?.len();
        let folder = options.scene.clone().unwrap_or_else(|| work.join("scene"));
        fs::create_dir_all(&folder)?;
        let changes = folder.join("changes");
        fs::create_dir_all(&changes)?;
        for number in 0..10 {
            fs::write(changes.join(format!("changed-{number}")), vec![b'x'; 1000 * (number + 1)])?;
        }
        let (registry, address) = serve(strata, &folder.join("registry"))?;
        let (gzip, zstd) = (folder.join("gzip.tar"), folder.join("zstd.tar"));
        let (strata, work) = (strata.to_owned(), work.to_owned());
        let scene = Scene { strata, work, registry, address, archive, gzip, zstd, changes, content, files, counted };
        let ready = folder.join("ready");
        if !ready.exists() {
            scene.fill(&folder, &reference)?;
            fs::write(&ready, "")?;
        }
        Ok(scene)
    }

    /// Makes what the registry has, by ourselves.
    fn fill(&self, folder: &Path, reference: &str) -> Result<()> {
        let root = folder.join("store");
        let strata = |arguments: &[&str]| -> Result<()> {
            let output = Command::new(&self.strata).arg("--root").arg(&root).args(arguments).output()?;
            ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        strata(&["load", "-q", "-i", &text(&self.archive)])?;
        for format in ["gzip", "zstd"] {
            let name = self.name(format);
            strata(&["tag", reference, &name])?;
            strata(&["push", "-q", "--with-index", "--compression-format", format, &name])?;
            // Without skopeo the laps that need the archives are left out.
            let target = format!("oci-archive:{}:{format}", text(&folder.join(format!("{format}.tar"))));
            let source = format!("docker://{name}");
            let _ = Command::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", &source, &target]).status();
        }
        // A second image on the same base.
        strata(&["create", "--name", "second", reference, "true"])?;
        strata(&["cp", "-q", &format!("{}/.", text(&self.changes)), "second:/"])?;
        strata(&["commit", "second", &self.name("second")])?;
        strata(&["push", "-q", "--compression-format", "gzip", &self.name("second")])?;
        fs::remove_dir_all(&root)?;
        Ok(())
    }

    pub(super) fn name(&self, tag: &str) -> String {
        name_at(&self.address, tag)
    }
}

/// The image's name in the registry, or where it is reached by way of.
pub(super) fn name_at(address: &str, tag: &str) -> String {
    format!("{address}/bench/image:{tag}")
}

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Starts a registry at a port of its own choice.
fn serve(strata: &Path, folder: &Path) -> Result<(Child, String)> {
    let mut registry = Command::new(strata)
        .args(["registry", "serve", "--address", "127.0.0.1:0", "--folder"])
        .arg(folder)
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(registry.stderr.take().context("no standard error")?).read_line(&mut line)?;
    match line.trim().rsplit_once("http://") {
        Some((_, address)) => Ok((registry, address.to_owned())),
        None => {
            let _ = registry.kill();
            registry.wait()?;
            bail!("the registry does not serve: {line}")
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Fails only for one that has ended.
        let _ = self.registry.kill();
        let _ = self.registry.wait();
    }
}
