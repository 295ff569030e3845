//! Archives that docker, skopeo, podman, buildah and umoci write, and what they make of ours. Where a tool is not installed, its test is reported as ignored, with the
//! reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Trial};
use strata_imagestore::{ImageId, Input, Store};
use support::*;

fn main() {
    let trial = |name, test: fn(), programs: &[&str]| {
        let missing = programs.iter().find(|program| !is_installed(program));
        let trial = Trial::test(name, move || {
            test();
            Ok(())
        });
        match missing {
            Some(program) => trial.with_ignored_flag(true).with_kind(format!("needs {program}")),
            None => trial,
        }
    };
    let trials = vec![
        trial("what_skopeo_writes_is_loaded", what_skopeo_writes_is_loaded, &["skopeo"]),
        trial("what_podman_saves_is_loaded", what_podman_saves_is_loaded, &["podman"]),
        trial("skopeo_reads_what_is_saved", skopeo_reads_what_is_saved, &["skopeo"]),
        trial("podman_loads_what_is_saved", podman_loads_what_is_saved, &["podman"]),
        trial("umoci_unpacks_what_is_saved", umoci_unpacks_what_is_saved, &["umoci", "tar"]),
        trial("skopeo_and_the_registry", skopeo_and_the_registry, &["skopeo"]),
        trial("podman_and_the_registry", podman_and_the_registry, &["podman"]),
        trial("docker_loads_what_is_saved_and_saves_what_is_loaded", docker_both_ways, &["docker", "dockerd"]),
        trial("buildah_both_ways", buildah_both_ways, &["buildah"]),
        trial("podman_chunked_layers_are_pulled", podman_chunked_layers_are_pulled, &["podman"]),
        trial("what_umoci_repacks_is_loaded", what_umoci_repacks_is_loaded, &["skopeo", "umoci"]),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Whether a program is here and works at all: podman, for one, needs more than to be installed.
fn is_installed(program: &str) -> bool {
    let arguments: &[&str] = if program == "podman" { &["info"] } else { &["--version"] };
    if program == "dockerd" && !rustix::process::geteuid().is_root() {
        return false;
    }
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Layers as they occur: a replaced file, a deletion, an opaque folder, one that repeats.
fn layers() -> Vec<Vec<u8>> {
    let mut layers = sample_layers();
    layers.push(layer(&[("etc/.wh..wh..opq", ""), ("etc/new", "new")]));
    layers.push(layer(&[("srv/app", "app")]));
    layers
}

const PATHS: [&str; 3] = ["/bin/tool", "/etc/new", "/srv/app"];

/// Loads by path and by stream and returns the images.
#[track_caller]
fn load_both(path: &Path) -> Vec<(String, ImageId)> {
    let mut results = Vec::new();
    for stream in [false, true] {
        if stream && path.is_dir() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let input =
            if stream { Input::Stream(Box::new(File::open(path).unwrap())) } else { Input::Path(path.to_owned()) };
        let loaded = store.load(input, &options(), &()).unwrap_or_else(|error| panic!("{}", chain(&error)));
        for image in &loaded {
            assert_eq!(merged_paths(&store, &image.id), PATHS);
        }
        assert!(verify(&store).is_empty());
        results.push(loaded.iter().map(|image| (image.to_string(), image.id)).collect::<Vec<_>>());
    }
    assert!(results.iter().all(|result| *result == results[0]));
    results.remove(0)
}

fn source(folder: &Path) -> ImageId {
    let archive = docker_old(&layers(), &["test/x:1"]).tar();
    fs::write(folder.join("source.tar"), &archive).unwrap();
    let store = tempfile::tempdir().unwrap();
    let store = Store::open(store.path()).unwrap();
    load_file(&store, &archive).unwrap()[0].id
}

fn what_skopeo_writes_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let id = source(folder.path());
    let path = |name: &str| folder.path().join(name);
    let from = format!("docker-archive:{}", path("source.tar").display());
    let mut rewritten = None;
    for (kind, name, suffix, extra) in [
        ("docker-archive", "docker.tar", ":test/x:1", vec![]),
        ("oci-archive", "oci.tar", ":test/x:1", vec![]),
        ("oci", "oci", ":test/x:1", vec![]),
        ("oci", "oci-zstd", ":test/x:1", vec!["--dest-compress-format", "zstd"]),
        ("oci-archive", "oci-zstd.tar", ":test/x:1", vec!["--dest-compress-format", "zstd"]),
    ] {
        let to = format!("{kind}:{}{suffix}", path(name).display());
        let arguments = [vec!["copy", "--insecure-policy", "--quiet"], extra, vec![&from, &to]].concat();
        run("skopeo", &arguments);
        // Docker's configuration is kept; on the way to OCI's it is written anew, the same whatever the compression.
        let found = load_both(&path(name));
        let expected = if kind == "docker-archive" { id } else { *rewritten.get_or_insert(found[0].1) };
        assert_eq!(found, [("Loaded image: test/x:1".to_owned(), expected)], "{name}");
    }
}

fn what_podman_saves_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let id = source(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (root, runroot) = (path("root"), path("run"));
    let podman = |arguments: &[&str]| {
        let storage =
            ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
        run("podman", &[&storage[..], arguments].concat())
    };
    podman(&["load", "--quiet", "--input", &path("source.tar")]);
    podman(&["tag", "localhost/test/x:1", "localhost/test/y:2"]);
    for (format, name) in [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar"), ("oci-dir", "oci")] {
        podman(&["save", "--quiet", "--format", format, "--output", &path(name), "localhost/test/x:1"]);
        let loaded = load_both(&folder.path().join(name));
        assert_eq!(loaded.len(), 1, "{name}");
        assert!(format != "docker-archive" || loaded[0].1 == id);
    }
    let several = [
        "save",
        "--quiet",
        "--multi-image-archive",
        "--output",
        &path("several.tar"),
        "localhost/test/x:1",
        "localhost/test/y:2",
    ];
    podman(&several);
    let mut lines: Vec<String> =
        load_both(&folder.path().join("several.tar")).into_iter().map(|(line, _)| line).collect();
    lines.sort();
    assert_eq!(lines, ["Loaded image: localhost/test/x:1", "Loaded image: localhost/test/y:2"]);
}

fn what_umoci_repacks_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    source(folder.path());
    let from = format!("docker-archive:{}", folder.path().join("source.tar").display());
    let layout = folder.path().join("layout");
    let to = format!("oci:{}:1", layout.display());
    run("skopeo", &["copy", "--insecure-policy", "--quiet", &from, &to]);
    let image = format!("{}:1", layout.display());
    let new = format!("{}/etc/new", folder.path().join("bundle/rootfs").display());
    let bundle = folder.path().join("bundle").display().to_string();
    let rootless = if rustix::process::geteuid().is_root() { vec![] } else { vec!["--rootless"] };
    run("umoci", &[vec!["unpack", "--image", &image], rootless, vec![&bundle]].concat());
    fs::write(new, "changed by umoci").unwrap();
    run("umoci", &["repack", "--image", &image, &bundle]);
    run("umoci", &["config", "--config.user", "daemon", "--image", &image]);

    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let loaded = store.load(Input::Path(layout), &options(), &()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let image = store.image(&loaded[0].id).unwrap();
    assert_eq!(image.config.config.user, "daemon");
    assert_eq!(image.layers.len(), layers().len() + 1);
    assert_eq!(merged_paths(&store, &image.id), PATHS);
}

/// A store with an image, and the archive that it saves.
fn saved(folder: &Path) -> (Store, ImageId) {
    let store = Store::open(&folder.join("saving")).unwrap();
    let id = load_file(&store, &docker_old(&layers(), &["test/x:1", "test/y:2"]).tar()).unwrap()[0].id;
    store.save(&["test/x:1", "test/y:2"], None, &mut File::create(folder.join("saved.tar")).unwrap()).unwrap();
    (store, id)
}

/// The digest of the configuration in a folder that skopeo has written.
fn config_in(folder: &Path) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

fn skopeo_reads_what_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (_, id) = saved(folder.path());
    let archive = folder.path().join("saved.tar").display().to_string();
    for (number, from) in [
        format!("docker-archive:{archive}:test/x:1"),
        format!("docker-archive:{archive}:docker.io/test/y:2"),
        format!("oci-archive:{archive}:1"),
    ]
    .iter()
    .enumerate()
    {
        let to = folder.path().join(format!("dir-{number}"));
        run("skopeo", &["copy", "--insecure-policy", "--quiet", from, &format!("dir:{}", to.display())]);
        assert_eq!(config_in(&to), id.to_string(), "{from}");
    }
}

fn podman(folder: &Path, arguments: &[&str]) -> String {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (root, runroot) = (path("podman-root"), path("podman-run"));
    let storage = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
    let output = Command::new("podman").args(storage).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn podman_loads_what_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (_, id) = saved(folder.path());
    let archive = folder.path().join("saved.tar").display().to_string();
    podman(folder.path(), &["load", "--quiet", "--input", &archive]);
    for name in ["test/x:1", "test/y:2"] {
        // What archives call by a short name is podman's own, whoever wrote them.
        let found = podman(folder.path(), &["image", "inspect", "--format", "{{.Id}}", &format!("localhost/{name}")]);
        assert_eq!(format!("sha256:{found}"), id.to_string());
    }
}

fn umoci_unpacks_what_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(path("layout")).unwrap();
    run("tar", &["-C", &path("layout"), "-xf", &path("saved.tar")]);
    let image = format!("{}:1", path("layout"));
    let rootless = if rustix::process::geteuid().is_root() { vec![] } else { vec!["--rootless"] };
    run("umoci", &[vec!["unpack", "--image", &image], rootless, vec![&path("bundle")]].concat());
    assert_eq!(fs::read_to_string(path("bundle/rootfs/etc/new")).unwrap(), "new");
    assert!(!Path::new(&path("bundle/rootfs/gone")).exists());
}

fn registry(folder: &Path) -> (strata_registry::Server, String) {
    let server = strata_registry::Server::start(strata_registry::Options::local(&folder.join("registry"))).unwrap();
    let address = server.address().to_string();
    (server, address)
}

fn client() -> strata_imagestore::RegistryClient {
    strata_imagestore::RegistryClient::new(strata_imagestore::RegistrySettings::default())
}

fn skopeo_and_the_registry() {
    let folder = tempfile::tempdir().unwrap();
    let (store, id) = saved(folder.path());
    let (_server, address) = registry(folder.path());
    let archive = format!("docker-archive:{}:test/x:1", folder.path().join("saved.tar").display());
    // What skopeo pushes is pulled; as an index of one platform and with zstd too.
    for (number, extra) in [vec![], vec!["--format", "oci"], vec!["--format", "oci", "--dest-compress-format", "zstd"]]
        .into_iter()
        .enumerate()
    {
        let name = format!("{address}/by/skopeo:{number}");
        let to = format!("docker://{name}");
        let common = ["copy", "--insecure-policy", "--quiet", "--dest-tls-verify=false"];
        run("skopeo", &[&common[..], &extra, &[&archive, &to]].concat());
        let other = Store::open(&folder.path().join(format!("pulled-{number}"))).unwrap();
        let pulled = other.pull(&client(), &name.parse().unwrap(), &Default::default(), &());
        let pulled = pulled.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(merged_paths(&other, &pulled.id), PATHS);
        // skopeo writes the configuration anew for OCI's form.
        assert!(number > 0 || pulled.id == id);
    }
    // What is pushed here is read by skopeo.
    for (tag, format) in
        [("gzip", strata_imagestore::CompressionFormat::Gzip), ("zstd", strata_imagestore::CompressionFormat::Zstd)]
    {
        let name = format!("{address}/by/strata:{tag}");
        store.tag("test/x:1", &name.parse().unwrap()).unwrap();
        let options = strata_imagestore::PushOptions { format: Some(format), with_index: false };
        store
            .push(&client(), &name.parse().unwrap(), &options, &())
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let to = folder.path().join(tag);
        run(
            "skopeo",
            &[
                "copy",
                "--insecure-policy",
                "--quiet",
                "--src-tls-verify=false",
                &format!("docker://{name}"),
                &format!("dir:{}", to.display()),
            ],
        );
        assert_eq!(config_in(&to), id.to_string());
    }
}

fn podman_and_the_registry() {
    let folder = tempfile::tempdir().unwrap();
    let (store, id) = saved(folder.path());
    let (_server, address) = registry(folder.path());
    let name = format!("{address}/by/strata:1");
    store.tag("test/x:1", &name.parse().unwrap()).unwrap();
    let pushed = store.push(&client(), &name.parse().unwrap(), &Default::default(), &()).unwrap();
    let pulled = podman(folder.path(), &["pull", "--quiet", "--tls-verify=false", &name]);
    assert_eq!(format!("sha256:{pulled}"), id.to_string());
    assert_eq!(
        podman(folder.path(), &["image", "inspect", "--format", "{{.Digest}}", &name]),
        pushed.digest.to_string()
    );
    let back = format!("{address}/by/podman:1");
    podman(folder.path(), &["tag", &name, &back]);
    podman(folder.path(), &["push", "--quiet", "--tls-verify=false", &back]);
    let other = Store::open(&folder.path().join("pulled")).unwrap();
    let pulled = other.pull(&client(), &back.parse().unwrap(), &Default::default(), &());
    let pulled = pulled.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(merged_paths(&other, &pulled.id), PATHS);
}

/// Podman 4 leaves zeros at the end of a tar out of what it compresses in chunks, and writes no tar-split.
fn podman_chunked_layers_are_pulled() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, address) = registry(folder.path());
    let tar = folder.path().join("root.tar");
    let root = folder.path().join("root/etc");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("large"), large_layer("x", 1 << 20)).unwrap();
    fs::write(root.join("zeros"), vec![0; 300_000]).unwrap();
    run("tar", &["-C", &folder.path().join("root").display().to_string(), "-cf", &tar.display().to_string(), "."]);
    podman(folder.path(), &["import", "--quiet", &tar.display().to_string(), "localhost/chunked:1"]);
    let name = format!("{address}/by/podman:chunked");
    let to = format!("docker://{name}");
    let format = ["push", "--quiet", "--tls-verify=false", "--compression-format", "zstd:chunked"];
    podman(folder.path(), &[&format[..], &["localhost/chunked:1", &to]].concat());
    let store = Store::open(&folder.path().join("pulled")).unwrap();
    let options = strata_imagestore::PullOptions { start: strata_imagestore::Start::Early, ..Default::default() };
    let pulled = store.pull(&client(), &name.parse().unwrap(), &options, &());
    let pulled = pulled.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(merged_paths(&store, &pulled.id), ["/etc/large", "/etc/zeros"]);
    assert!(verify(&store).is_empty());
}

/// A daemon of Docker's with a state of its own, that ends with this.
struct Daemon {
    child: std::process::Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let log = File::create(path("log")).unwrap();
        let child = Command::new("dockerd")
            .args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .args(["--host", &format!("unix://{}", path("socket")), "--storage-driver", "vfs"])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .env("HOME", folder.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Daemon { child, folder };
        for _ in 0..200 {
            if daemon.command(&["version"]).output().unwrap().status.success() {
                return daemon;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{}", fs::read_to_string(daemon.folder.path().join("log")).unwrap());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        let host = format!("unix://{}", self.folder.path().join("socket").display());
        command.args(["--host", &host]).args(arguments).env("HOME", self.folder.path());
        command
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0)) {
            // So that it ends its containerd, too.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn docker_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let (store, id) = saved(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let daemon = Daemon::start();
    daemon.docker(&["load", "--input", &path("saved.tar")]);
    for name in ["test/x:1", "test/y:2"] {
        assert_eq!(daemon.docker(&["image", "inspect", "--format", "{{.Id}}", name]), id.to_string());
    }
    // There and back: names and IDs are the same.
    daemon.docker(&["save", "--output", &path("docker.tar"), "test/x:1", "test/y:2"]);
    let mut loaded = load_both(&folder.path().join("docker.tar"));
    loaded.sort();
    assert_eq!(loaded, [("Loaded image: test/x:1".to_owned(), id), ("Loaded image: test/y:2".to_owned(), id)]);
    daemon.docker(&["save", "--output", &path("by-id.tar"), &id.to_string()]);
    assert_eq!(load_both(&folder.path().join("by-id.tar")), [(format!("Loaded image ID: {id}"), id)]);
    fs::write(path("root.tar"), &layers()[0]).unwrap();
    // What Docker makes of a tar, and what it makes of the same tar of ours.
    let imported = daemon.docker(&["import", "--change", "CMD [\"/bin/tool\"]", &path("root.tar"), "imported:1"]);
    daemon.docker(&["save", "--output", &path("imported.tar"), "imported:1"]);
    let loaded = store.load(Input::Path(folder.path().join("imported.tar")), &options(), &()).unwrap();
    assert_eq!(loaded[0].id.to_string(), imported);
    assert_eq!(store.image(&loaded[0].id).unwrap().config.config.cmd, Some(vec!["/bin/tool".to_owned()]));
    // Kept over removal.
    daemon.docker(&["image", "rm", "--force", &id.to_string()]);
    store.remove(&id.to_string(), &strata_imagestore::RemoveOptions { force: true, ..Default::default() }).unwrap();
    assert_eq!(load_file(&store, &fs::read(path("docker.tar")).unwrap()).unwrap()[0].id, id);
    store.save(&["test/x:1"], None, &mut File::create(path("again.tar")).unwrap()).unwrap();
    daemon.docker(&["load", "--input", &path("again.tar")]);
    assert_eq!(daemon.docker(&["image", "inspect", "--format", "{{.Id}}", "test/x:1"]), id.to_string());
}

fn buildah_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let (_, id) = saved(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let buildah = |arguments: &[&str]| {
        let storage = ["--root", &path("root"), "--runroot", &path("run"), "--storage-driver", "vfs"];
        let output = Command::new("buildah").args(storage).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // What is saved is a base for buildah.
    let pulled = buildah(&["pull", "--quiet", &format!("docker-archive:{}:test/x:1", path("saved.tar"))]);
    assert_eq!(format!("sha256:{pulled}"), id.to_string());
    let container = buildah(&["from", &pulled]);
    buildah(&["config", "--cmd", "/bin/tool", &container]);
    for (kind, name) in [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar"), ("oci", "oci")] {
        let to = format!("{kind}:{}:by/buildah:1", path(name));
        buildah(&["commit", "--quiet", &container, &to]);
        let loaded = load_both(&folder.path().join(name));
        assert!(loaded.len() == 1 && loaded[0].0.ends_with("by/buildah:1"), "{kind}: {loaded:?}");
    }
    buildah(&["rm", &container]);
}
