//! Images to and from a registry and archives, beside other tools.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use strata_tests::image::synthetic;

use crate::load::{Dockerd, first_line, remove_engine_folder};
use crate::measure::{self, Cost};
use crate::report::{Report, row, seconds};
use crate::sandbox::podman_options;

/// Prints the tables.
pub fn figures(strata: &Path, work: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    let scene = Scene::prepare(strata, work)?;
    report.say(format!(
        "images of {} MB in 6 layers with 20,000 files, to and from `strata registry serve` on this machine and archives in\n\
         memory; median of {rounds}, each from or into an empty store",
        scene.size / 1_000_000
    ));
    let mut rows = vec![row(["", "seconds", "CPU-s", "peak MiB"])];
    for (what, who, task) in TASKS {
        let costs: Result<Vec<Cost>> = (0..rounds).map(|_| task(&scene)).collect();
        let name = format!("{what}: {who}");
        match costs {
            Ok(costs) => {
                let cost = measure::median(&costs);
                rows.push(row([&name, &seconds(cost.wall), &seconds(cost.cpu), &(cost.peak / 1024).to_string()]));
            }
            Err(error) => rows.push(vec![name, format!("not measured: {}", first_line(&error))]),
        }
    }
    report.table(&rows);
    disk(&scene, report)
}

type Task = fn(&Scene) -> Result<Cost>;

const TASKS: [(&str, &str, Task); 17] = [
    ("pull gzip", "strata", |scene| scene.fresh(&["pull", "-q", &scene.name("gzip")])),
    ("pull gzip", "podman", |scene| scene.podman(&["pull", "-q", "--tls-verify=false", &scene.name("gzip")])),
    ("pull gzip", "docker", |scene| scene.docker(&["pull", "-q", &scene.name("gzip")])),
    ("pull gzip, not unpacked", "skopeo", |scene| scene.skopeo(&scene.name("gzip"))),
    ("pull zstd", "strata", |scene| scene.fresh(&["pull", "-q", &scene.name("zstd")])),
    ("pull zstd", "podman", |scene| scene.podman(&["pull", "-q", "--tls-verify=false", &scene.name("zstd")])),
    ("run, absent, with index", "strata", |scene| scene.run(&scene.name("gzip"), "auto")),
    ("run, absent, all first", "strata", |scene| scene.run(&scene.name("gzip"), "never")),
    ("load plain", "strata", |scene| scene.fresh(&["load", "-q", "-i", &scene.text(&scene.archive)])),
    ("load plain", "podman", |scene| scene.podman(&["load", "-q", "-i", &scene.text(&scene.archive)])),
    ("load gzip", "strata", |scene| scene.fresh(&["load", "-q", "-i", &scene.text(&scene.gzip)])),
    ("load gzip", "podman", |scene| scene.podman(&["load", "-q", "-i", &scene.text(&scene.gzip)])),
    ("load zstd", "strata", |scene| scene.fresh(&["load", "-q", "-i", &scene.text(&scene.zstd)])),
    ("load zstd", "podman", |scene| scene.podman(&["load", "-q", "-i", &scene.text(&scene.zstd)])),
    ("save", "strata", |scene| scene.kept(&["save", "-o", "/dev/null", &scene.name("gzip")])),
    ("push gzip, all layers", "strata", |scene| {
        let name = scene.unused("all")?;
        scene.kept(&["push", "-q", "--compression-format", "gzip", &name])
    }),
    ("push, all but the top layer there", "strata", |scene| {
        let name = scene.changed()?;
        scene.kept(&["push", "-q", &name])
    }),
];

/// A registry with the image, archives of it, and a store that has it.
struct Scene {
    strata: PathBuf,
    work: PathBuf,
    registry: Child,
    address: String,
    archive: PathBuf,
    gzip: PathBuf,
    zstd: PathBuf,
    size: u64,
}

impl Scene {
    fn prepare(strata: &Path, work: &Path) -> Result<Scene> {
        let archive = synthetic::large()?;
        let size = archive.metadata()?.len();
        let mut registry = Command::new(strata)
            .args(["registry", "serve", "--address", "127.0.0.1:0", "--folder"])
            .arg(work.join("registry"))
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(registry.stderr.take().context("no standard error")?).read_line(&mut line)?;
        let address = line.trim().rsplit_once("http://").context("the registry does not serve")?.1.to_owned();
        let (gzip, zstd) = (work.join("gzip.tar"), work.join("zstd.tar"));
        let work = work.to_owned();
        let scene = Scene { strata: strata.to_owned(), work, registry, address, archive, gzip, zstd, size };
        let loaded = scene.command(&scene.root()).args(["load", "-i"]).arg(&scene.archive).output()?;
        ensure!(loaded.status.success(), "load: {}", String::from_utf8_lossy(&loaded.stderr));
        let loaded = String::from_utf8_lossy(&loaded.stdout).into_owned();
        let reference = loaded.trim().rsplit_once(' ').context("nothing was loaded")?.1.to_owned();
        for format in ["gzip", "zstd"] {
            scene.kept(&["tag", &reference, &scene.name(format)])?;
            scene.kept(&["push", "-q", "--with-index", "--compression-format", format, &scene.name(format)])?;
            let target = format!("oci-archive:{}:{format}", scene.text(&scene.work.join(format!("{format}.tar"))));
            // Without skopeo the rows that need the archives are left out.
            let _ = scene.copy(&scene.name(format), &target);
        }
        Ok(scene)
    }

    fn root(&self) -> PathBuf {
        self.work.join("kept")
    }

    fn text(&self, path: &Path) -> String {
        path.to_string_lossy().into_owned()
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/bench/large:{tag}", self.address)
    }

    fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(&self.strata);
        command.arg("--root").arg(root);
        command
    }

    /// A command on the store that has the image.
    fn kept(&self, arguments: &[&str]) -> Result<Cost> {
        measure::time(self.command(&self.root()).args(arguments))
    }

    /// A command on an empty store.
    fn fresh(&self, arguments: &[&str]) -> Result<Cost> {
        let root = self.work.join("fresh");
        let cost = measure::time(self.command(&root).args(arguments));
        fs::remove_dir_all(&root)?;
        rustix::fs::sync();
        cost
    }

    /// From an empty store to the end of a command in a container. What is fetched afterwards is given up.
    fn run(&self, name: &str, lazy: &str) -> Result<Cost> {
        let root = self.work.join("fresh");
        let arguments = ["run", "--rm", "-q", "--lazy", lazy, name, "/bin/true"];
        let cost = measure::time(self.command(&root).args(arguments));
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while fs::remove_dir_all(&root).is_err() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        cost
    }

    fn podman(&self, arguments: &[&str]) -> Result<Cost> {
        let root = self.work.join("podman");
        fs::create_dir_all(&root)?;
        let mut command = Command::new("podman");
        command.args(podman_options(&root)).args(arguments);
        let cost = measure::time(&command);
        remove_engine_folder(&root)?;
        rustix::fs::sync();
        cost
    }

    fn docker(&self, arguments: &[&str]) -> Result<Cost> {
        let daemon = Dockerd::start(&self.work.join("docker"))?;
        let cost = daemon.time(arguments);
        daemon.stop()?;
        rustix::fs::sync();
        cost
    }

    fn skopeo(&self, name: &str) -> Result<Cost> {
        let folder = self.work.join("skopeo");
        let cost = self.copy(name, &format!("dir:{}", folder.display()));
        let _ = fs::remove_dir_all(&folder);
        cost
    }

    fn copy(&self, name: &str, target: &str) -> Result<Cost> {
        let source = format!("docker://{name}");
        measure::time(Command::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", &source, target]))
    }

    /// Gives the image a name in a repository that has nothing of it.
    fn unused(&self, kind: &str) -> Result<String> {
        let folder = self.work.join("registry").join("repositories");
        let number = fs::read_dir(&folder).map_or(0, Iterator::count);
        let name = format!("{}/{kind}{number}:1", self.address);
        self.kept(&["tag", &self.name("gzip"), &name])?;
        Ok(name)
    }

    /// Makes an image with a small new layer on top, and returns its name.
    fn changed(&self) -> Result<String> {
        let number = fs::read_dir(self.root().join("images"))?.count();
        let (container, name) = (format!("changed{number}"), self.name(&format!("changed{number}")));
        self.kept(&["create", "--name", &container, &self.name("gzip"), "/bin/true"])?;
        let point = self.work.join("point");
        fs::create_dir_all(&point)?;
        let text = self.text(&point);
        self.kept(&["mount", "--rw", &container, &text])?;
        fs::write(point.join("changed"), number.to_string())?;
        self.kept(&["umount", &text])?;
        self.kept(&["commit", &container, &name])?;
        Ok(name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Fails only for one that has ended.
        let _ = self.registry.kill();
        let _ = self.registry.wait();
    }
}

/// The space that everything below a folder takes.
fn bytes_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        if metadata.is_dir() {
            bytes += bytes_below(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// How much of the disk the image takes.
fn disk(scene: &Scene, report: &mut Report) -> Result<()> {
    let root = scene.work.join("fresh");
    scene.kept(&["images"])?;
    measure::time(scene.command(&root).args(["pull", "-q", &scene.name("gzip")]))?;
    let taken = bytes_below(&root)?;
    let output =
        scene.command(&root).args(["image", "inspect", "--format", "{{.Size}}"]).arg(scene.name("gzip")).output()?;
    let content: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().context("no size")?;
    fs::remove_dir_all(&root)?;
    report.say(format!("on the disk after a pull: {} MB for {} MB in files", taken / 1_000_000, content / 1_000_000));
    Ok(())
}
