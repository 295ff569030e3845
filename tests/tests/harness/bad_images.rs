//! Archives and layers that are damaged or lie: a clear error, exit code 1, and a store as it was.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use strata_tests::image::archive::{Form, Image, Layer};
use strata_tests::image::layer::{LayerWriter, Meta};
use strata_tests::strata::Strata;
use strata_tests::tier::Suite;
use tar::{EntryType, Header};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("bad_images::unprivileged_damaged_archives_change_nothing", &[], damaged_archives);
    suite.add("bad_images::unprivileged_archives_that_contradict_themselves", &[], contradictions);
    suite.add("bad_images::unprivileged_layers_that_lie_are_refused_by_name", &[], lying_layers);
    suite.add("bad_images::unprivileged_absolute_names_stay_below_the_root", &[], absolute_names);
    suite.add("bad_images::unprivileged_what_is_no_archive_is_refused", &[], no_archives);
    suite.add("bad_images::unprivileged_import_of_bad_trees_is_refused", &[], bad_imports);
    suite.add("bad_images::privileged_full_disk_changes_nothing", &[], full_disk);
}

/// A store with one good image in it, and the files of the test beside it.
struct Bench {
    strata: Strata,
    before: std::collections::BTreeMap<PathBuf, String>,
}

impl Bench {
    fn new() -> Result<Bench> {
        let strata = Strata::new()?;
        let layer = layer(&strata, "good-layer.tar", |out| out.file("good", &Meta::mode(0o644), b"good"))?;
        let archive = strata.folder().join("good.tar");
        image(vec![layer]).write(Form::DockerNew, &archive)?;
        strata.ok(["load".as_ref(), "-i".as_ref(), archive.as_os_str()])?;
        let before = strata.state_listing()?;
        Ok(Bench { strata, before })
    }

    /// `load` of the archive must fail, say all of `words`, and leave the store as it was.
    fn refuses(&self, case: &str, archive: &Path, words: &[&str]) -> Result<()> {
        let file_name = archive.file_name().context("an archive has a name")?.to_string_lossy().into_owned();
        let words = words.iter().copied().chain([file_name.as_str()]);
        self.refuses_command(case, &["load".as_ref(), "-i".as_ref(), archive.as_os_str()], words)
    }

    fn refuses_command<'a>(
        &self,
        case: &str,
        arguments: &[&std::ffi::OsStr],
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<()> {
        let finished = self.strata.run(arguments).with_context(|| case.to_owned())?;
        ensure!(finished.code() == 1, "{case}: exit code 1 expected\n{finished}");
        for word in words {
            ensure!(finished.stderr.contains(word), "{case}: the message does not say {word:?}\n{finished}");
        }
        ensure!(!finished.stderr.contains("panicked"), "{case}: {finished}");
        let after = self.strata.state_listing()?;
        ensure!(after == self.before, "{case}: the store changed\nbefore {:#?}\nafter {after:#?}", self.before);
        Ok(())
    }
}

fn layer(strata: &Strata, name: &str, write: impl FnOnce(&mut LayerWriter<File>) -> io::Result<()>) -> Result<Layer> {
    let path = strata.folder().join(name);
    let mut out = LayerWriter::new(File::create(&path)?);
    write(&mut out)?;
    out.finish()?;
    Layer::of(&path, "test")
}

fn image(layers: Vec<Layer>) -> Image {
    Image { reference: "test/bad:1".to_owned(), layers, config: json!({"Cmd": ["/good"]}) }
}

fn noisy_layer(strata: &Strata) -> Result<Layer> {
    let content: Vec<u8> =
        (0..400_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    layer(strata, "noisy.tar", |out| out.file("noise", &Meta::mode(0o644), &content))
}

fn damaged_archives() -> Result<()> {
    let bench = Bench::new()?;
    let layer = noisy_layer(&bench.strata)?;
    let image = image(vec![layer]);
    for form in Form::ALL {
        let good = bench.strata.folder().join(form.file_name());
        image.write(form, &good)?;
        let bytes = fs::read(&good)?;
        let bad = bench.strata.folder().join(format!("bad-{}", form.file_name()));

        for share in [3, 5, 9] {
            fs::write(&bad, &bytes[..bytes.len() * share / 10])?;
            bench.refuses(&format!("{form:?} cut at {share}0 %"), &bad, &[])?;
        }
        // In the middle of the noise, which is most of the archive.
        for share in [4, 6, 8] {
            let mut flipped = bytes.clone();
            let position = bytes.len() * share / 10;
            flipped[position] ^= 0x10;
            fs::write(&bad, &flipped)?;
            bench.refuses(
                &format!("{form:?} flipped at {share}0 %"),
                &bad,
                &[if form == Form::DockerOld { "/layer.tar" } else { "sha256" }],
            )?;
        }
        // The undamaged one is fine, so it was the damage that was refused.
        let other = bench.strata.another()?;
        other.load(&good)?;
    }
    Ok(())
}

fn contradictions() -> Result<()> {
    let bench = Bench::new()?;
    let folder = bench.strata.folder().to_owned();
    let first = layer(&bench.strata, "first.tar", |out| out.file("a", &Meta::mode(0o644), b"a"))?;
    let second = layer(&bench.strata, "second.tar", |out| out.file("b", &Meta::mode(0o644), b"b"))?;
    let wrong = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";

    for form in Form::ALL {
        let bad = folder.join(form.file_name());
        let lying = Layer { diff_id: wrong.to_owned(), ..first.clone() };
        image(vec![lying, second.clone()]).write(form, &bad)?;
        bench.refuses(&format!("{form:?}, wrong diff_id"), &bad, &["sha256:"])?;

        image(vec![first.clone(), second.clone()]).write(form, &bad)?;
        let victim = match form {
            Form::DockerOld => "/layer.tar".to_owned(),
            _ => biggest_blob(&bad)?,
        };
        rewrite(&bad, &|name, content| (!name.ends_with(&victim)).then_some(content))?;
        bench.refuses(&format!("{form:?}, missing layer"), &bad, &[&victim[victim.len().min(1)..]])?;
    }

    let bad = folder.join("bad.tar");
    let edited = |edit: Edit<'_>| -> Result<()> {
        image(vec![first.clone(), second.clone()]).write(Form::DockerOld, &bad)?;
        rewrite(&bad, edit)
    };
    edited(&|name, content| Some(if name == "manifest.json" { b"{ no json".to_vec() } else { content }))?;
    bench.refuses("manifest that is no JSON", &bad, &["manifest.json"])?;
    edited(&|name, content| Some(if name == "manifest.json" { b"[]".to_vec() } else { content }))?;
    bench.refuses("manifest without images", &bad, &["no image"])?;
    let is_config = |name: &str| name.len() == 69 && name.ends_with(".json");
    edited(&|name, content| Some(if is_config(name) { b"[1, 2]".to_vec() } else { content }))?;
    bench.refuses("configuration that is none", &bad, &[".json"])?;
    edited(&|name, content| (!is_config(name)).then_some(content))?;
    bench.refuses("no configuration", &bad, &[".json"])?;
    edited(&|name, content| {
        let text = String::from_utf8_lossy(&content).replace("/layer.tar\"", "/../../layer.tar\"");
        Some(if name == "manifest.json" { text.into_bytes() } else { content })
    })?;
    bench.refuses("layer path that leaves the archive", &bad, &["layer.tar"])?;
    edited(&|name, content| {
        let manifest = || -> Option<Vec<u8>> {
            let mut document: serde_json::Value = serde_json::from_slice(&content).ok()?;
            document[0]["Layers"].as_array_mut()?.pop();
            serde_json::to_vec(&document).ok()
        };
        if name == "manifest.json" { manifest() } else { Some(content) }
    })?;
    bench.refuses("fewer layers than diff_ids", &bad, &["layer"])?;
    Ok(())
}

/// What each lying layer holds, and what the message must name.
type Lie = (&'static str, &'static str, fn(&mut LayerWriter<File>) -> io::Result<()>);

const LIES: &[Lie] = &[
    ("leaves the layer by ..", "../evil", |out| out.file("../evil", &PLAIN, b"x")),
    ("leaves the layer inside", "a/../../evil", |out| out.file("a/../../evil", &PLAIN, b"x")),
    ("hard link out of the layer", "escape", |out| out.hard_link("escape", "../../etc/passwd", &PLAIN)),
    ("hard link to nothing", "dangling", |out| out.hard_link("dangling", "not/there", &PLAIN)),
    ("hard link to a folder", "to-folder", |out| {
        out.directory("folder", &PLAIN)?;
        out.hard_link("to-folder", "folder", &PLAIN)
    }),
    ("hard link to itself", "itself", |out| out.hard_link("itself", "itself", &PLAIN)),
    ("whiteout of the root", ".wh..", |out| out.file(".wh..", &PLAIN, b"")),
    ("whiteout of the parent", ".wh...", |out| out.file("a/.wh...", &PLAIN, b"")),
    ("whiteout of nothing", ".wh.", |out| out.file("a/.wh.", &PLAIN, b"")),
    ("size of 8 EiB", "huge", |out| out.raw(&huge_header()?, b"")),
    ("name of 256 bytes", "nnnnnnnn", |out| out.file("n".repeat(256), &PLAIN, b"")),
    ("file as a parent", "parent/child", |out| {
        out.file("parent", &PLAIN, b"")?;
        out.file("parent/child", &PLAIN, b"")
    }),
    ("root that is a file", ".", |out| out.file(".", &PLAIN, b"x")),
    ("root that is a symbolic link", ".", |out| out.symlink("./", "/etc", &PLAIN)),
    ("entry of no known kind", "strange", |out| out.raw(&strange_header()?, b"")),
    ("header with a wrong checksum", "checksum", |out| out.raw(&tampered_header()?, b"")),
];

const PLAIN: Meta =
    Meta { mode: 0o644, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: std::collections::BTreeMap::new() };

fn huge_header() -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path("huge")?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(1 << 63);
    header.set_cksum();
    Ok(header)
}

fn strange_header() -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path("strange")?;
    header.set_entry_type(EntryType::new(b'Z'));
    header.set_size(0);
    header.set_cksum();
    Ok(header)
}

fn tampered_header() -> io::Result<Header> {
    let mut header = strange_header()?;
    header.set_path("tampered")?;
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    header.set_mode(0o777);
    Ok(header)
}

fn lying_layers() -> Result<()> {
    let bench = Bench::new()?;
    for (number, (case, word, write)) in LIES.iter().enumerate() {
        let layer = layer(&bench.strata, &format!("lie-{number}-layer.tar"), |out| {
            out.file("before", &PLAIN, b"before")?;
            write(out)?;
            out.file("after", &PLAIN, b"after")
        })?;
        let archive = bench.strata.folder().join(format!("lie-{number}.tar"));
        image(vec![layer]).write(Form::DockerNew, &archive)?;
        bench.refuses(case, &archive, &[word])?;
    }
    Ok(())
}

/// Docker takes absolute names as names below the root, and images with them exist: so do we, and nothing outside is
/// touched.
fn absolute_names() -> Result<()> {
    let bench = Bench::new()?;
    let outside = bench.strata.folder().join("outside");
    let name = outside.to_string_lossy().into_owned();
    let layer = layer(&bench.strata, "absolute-layer.tar", |out| {
        out.file(&name, &PLAIN, b"inside")?;
        out.hard_link("twin", &name, &PLAIN)
    })?;
    let archive = bench.strata.folder().join("absolute.tar");
    let id = image(vec![layer.clone()]).id();
    image(vec![layer]).write(Form::DockerNew, &archive)?;
    bench.strata.load(&archive)?;
    bench.strata.ok(["image", "inspect", &id])?;
    ensure!(!outside.exists(), "an absolute name left the store");
    Ok(())
}

fn no_archives() -> Result<()> {
    let bench = Bench::new()?;
    let folder = bench.strata.folder();
    let empty_tar = LayerWriter::new(Vec::new()).finish()?;
    let mut other_tar = LayerWriter::new(Vec::new());
    other_tar.file("readme", &PLAIN, b"just a tar")?;
    for (name, content) in [
        ("empty", Vec::new()),
        ("text", b"hello, this is no archive\n".repeat(100)),
        ("program", fs::read("/proc/self/exe")?),
        ("zeros", vec![0; 1 << 20]),
        ("gzip-of-nothing", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0]),
        ("empty-tar", empty_tar),
        ("tar-of-other-things", other_tar.finish()?),
    ] {
        let path = folder.join(name);
        fs::write(&path, content)?;
        bench.refuses(name, &path, &[])?;
    }
    bench.refuses("an archive that is not there", &folder.join("absent.tar"), &["No such file"])?;
    fs::create_dir(folder.join("empty-folder"))?;
    bench.refuses("a folder that is no layout", &folder.join("empty-folder"), &[])
}

fn bad_imports() -> Result<()> {
    let bench = Bench::new()?;
    for (number, (case, word, write)) in LIES.iter().enumerate() {
        let layer = layer(&bench.strata, &format!("tree-{number}.tar"), write)?;
        let arguments = ["import".as_ref(), layer.tar.as_os_str(), "bad:tree".as_ref()];
        bench.refuses_command(case, &arguments, [*word])?;
    }
    Ok(())
}

fn full_disk() -> Result<()> {
    let bench = Bench::new()?;
    let layer = noisy_layer(&bench.strata)?;
    let archive = bench.strata.folder().join("too-large.tar");
    image(vec![layer]).write(Form::DockerNew, &archive)?;

    // The whole state on a small file system of its own.
    let small = bench.strata.another()?;
    fs::create_dir(small.state())?;
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "strata-test"])
        .arg(small.state())
        .status()?;
    ensure!(status.success(), "mount a small tmpfs");
    let good = bench.strata.folder().join("good.tar");
    small.load(&good)?;
    let before = small.state_listing()?;
    let bench = Bench { strata: small, before };
    bench.refuses("full disk", &archive, &["No space left on device"])?;
    let images = bench.strata.ok(["images", "-q"])?;
    ensure!(images.lines().count() == 1, "{images}");
    Ok(())
}

/// The name of the archive's largest member.
fn biggest_blob(archive: &Path) -> Result<String> {
    let mut tar = tar::Archive::new(File::open(archive)?);
    let mut largest = (0, String::new());
    for entry in tar.entries()? {
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name.starts_with("blobs/") {
            largest = largest.max((entry.size(), name));
        }
    }
    Ok(largest.1)
}

/// What becomes of an archive's member: its new content, or nothing.
type Edit<'a> = &'a dyn Fn(&str, Vec<u8>) -> Option<Vec<u8>>;

/// Passes every regular member through `edit`, which may change or drop it.
fn rewrite(archive: &Path, edit: Edit<'_>) -> Result<()> {
    let bytes = fs::read(archive)?;
    let mut out = LayerWriter::new(File::create(archive)?);
    for entry in tar::Archive::new(&bytes[..]).entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let mut content = Vec::new();
        io::Read::read_to_end(&mut entry, &mut content)?;
        if let Some(content) = edit(&name, content) {
            out.file(&name, &PLAIN, &content)?;
        }
    }
    out.finish()?;
    Ok(())
}
