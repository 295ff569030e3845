//! What is measured on: the same folders in every run, made here, and the same content as images.
//!
//! Every set lies as folders `l0` (bottom), `l1`, ... for those who stack folders, and as an image in a store for strata.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use strata_tests::image::archive::{Form, Image, Layer};
use strata_tests::image::layer::{LayerWriter, Meta};

use crate::walk::run;

/// A stack of layers in both forms.
#[derive(Clone, Debug)]
pub struct Set {
    /// Holds `l0`, `l1`, ..., and `empty`.
    pub folder: PathBuf,
    /// How many layers there are.
    pub layers: usize,
    /// The image's name in the store.
    pub reference: String,
}

/// All sets, and what programs take from outside of the mount.
#[derive(Debug)]
pub struct Data {
    folder: PathBuf,
    sizes: Sizes,
    strata: PathBuf,
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Folders of the tree; ten times as many files.
    pub folders: u64,
    /// The large file, in MiB.
    pub large: u64,
    /// The tree whose owner and mode are changed, in MiB.
    pub heavy: u64,
}

impl Data {
    /// Uses this folder; sets that are there already are not made again.
    pub fn new(folder: &Path, sizes: Sizes, strata: &Path) -> Result<Data> {
        fs::create_dir_all(folder)?;
        Ok(Data { folder: folder.to_owned(), sizes, strata: strata.to_owned() })
    }

    /// strata's store with the images.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// A tree of about 17,000 entries, as a Debian root has them, over that many layers.
    pub fn tree(&self, layers: usize) -> Result<Set> {
        let base = self.folder.join("base");
        made_once(&base, |base| make_tree(base, self.sizes.folders))?;
        self.set(&format!("t{layers}"), layers, |folder| {
            if layers == 1 {
                return copy_below(&base, &base, &|_| folder.join("l0"));
            }
            spread(&base, folder, layers)
        })
    }

    /// One large file, as `large`.
    pub fn large(&self) -> Result<Set> {
        self.set("large", 1, |folder| {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("l0/large"))?);
            let mut noise = Noise::new(3);
            for _ in 0..self.sizes.large {
                file.write_all(&noise.bytes(1 << 20))?;
            }
            Ok(file.flush()?)
        })
    }

    /// Few files, many bytes, below `heavy`.
    pub fn heavy(&self) -> Result<Set> {
        self.set("heavy", 1, |folder| {
            let mut noise = Noise::new(4);
            let block = noise.bytes(1 << 20);
            // Sizes from 4 KiB to 4 MiB, 1 MiB on average.
            for number in 0..self.sizes.heavy {
                let place = folder.join(format!("l0/heavy/d{:02}", number % 40));
                fs::create_dir_all(&place)?;
                let mut file = File::create(place.join(format!("f{number}")))?;
                let draw = noise.next() % 1024;
                let mut left = usize::try_from(4096 + draw * draw * draw / 256)?;
                while left > 0 {
                    let part = left.min(block.len());
                    file.write_all(&block[..part])?;
                    left -= part;
                }
            }
            Ok(())
        })
    }

    /// What the programs work on: `repo` (git), `crate` (cargo), `root` (dpkg), `old` (a folder with files).
    pub fn work(&self) -> Result<Set> {
        self.set("work", 1, |folder| {
            let root = folder.join("l0");
            fs::create_dir_all(root.join("old"))?;
            let mut noise = Noise::new(5);
            for number in 0..100 {
                fs::write(root.join(format!("old/file-{number}")), noise.bytes(2000))?;
            }
            make_crate(&root.join("crate"), &mut noise)?;
            make_dpkg_root(&root.join("root"))?;
            // As in an image that was pulled: inode numbers and times of change are not those that git has noted, so that
            // its first look reads everything, with whoever shows it.
            let made = folder.join("made");
            make_repository(&made, &mut noise)?;
            run(Command::new("cp").arg("-a").arg(&made).arg(root.join("repo")))?;
            Ok(fs::remove_dir_all(&made)?)
        })
    }

    /// A tar of 1,600 files, 38 MB.
    pub fn tar(&self) -> Result<PathBuf> {
        let path = self.folder.join("files.tar");
        if !path.exists() {
            let folder = self.folder.join("files");
            let mut noise = Noise::new(6);
            for number in 0..1600 {
                let place = folder.join(format!("part-{:02}/sub-{}", number % 20, number % 7));
                fs::create_dir_all(&place)?;
                fs::write(place.join(format!("file-{number}")), noise.bytes(size_of_file(number) * 3))?;
            }
            run(Command::new("tar").arg("-cf").arg(&path).arg("-C").arg(&folder).arg("."))?;
            fs::remove_dir_all(&folder)?;
        }
        Ok(path)
    }

    /// A Debian package with 500 files.
    pub fn package(&self) -> Result<PathBuf> {
        let path = self.folder.join("files.deb");
        if !path.exists() {
            let folder = self.folder.join("package");
            fs::create_dir_all(folder.join("DEBIAN"))?;
            fs::write(
                folder.join("DEBIAN/control"),
                "Package: strata-bench\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n\
                 Description: files to install\n",
            )?;
            let mut noise = Noise::new(7);
            for number in 0..500 {
                let place = folder.join(format!("usr/share/strata-bench/d{}", number % 25));
                fs::create_dir_all(&place)?;
                fs::write(place.join(format!("file-{number}")), noise.bytes(size_of_file(number)))?;
            }
            run(Command::new("dpkg-deb").args(["-Znone", "--build"]).arg(&folder).arg(&path))?;
            fs::remove_dir_all(&folder)?;
        }
        Ok(path)
    }

    fn set(&self, name: &str, layers: usize, make: impl FnOnce(&Path) -> Result<()>) -> Result<Set> {
        let folder = self.folder.join(name);
        let reference = format!("bench/{name}:1");
        made_once(&folder, |folder| {
            for name in (0..layers).map(|layer| format!("l{layer}")).chain(["empty".to_owned()]) {
                fs::create_dir_all(folder.join(name))?;
            }
            make(folder)?;
            self.load(folder, layers, &reference)
        })?;
        Ok(Set { folder, layers, reference })
    }

    /// Puts the folders into the store as an image.
    fn load(&self, folder: &Path, layers: usize, reference: &str) -> Result<()> {
        let mut described = Vec::new();
        for layer in 0..layers {
            let tar = folder.join(format!("{layer}.tar"));
            let mut out = LayerWriter::new(BufWriter::with_capacity(1 << 20, File::create(&tar)?));
            let root = folder.join(format!("l{layer}"));
            pack(&root, &root, &mut out)?;
            out.finish()?;
            described.push(Layer::of(&tar, "part of a tree")?);
        }
        let archive = folder.join("image.tar");
        let image = Image { reference: reference.to_owned(), layers: described, config: json!({}) };
        image.write(Form::DockerNew, &archive)?;
        run(Command::new(&self.strata).arg("--root").arg(self.store()).args(["load", "-i"]).arg(&archive))?;
        fs::remove_file(&archive)?;
        for layer in 0..layers {
            fs::remove_file(folder.join(format!("{layer}.tar")))?;
        }
        Ok(())
    }
}

impl Set {
    /// The folders, topmost first, by names relative to [`Set::folder`]: mount(2) takes a page of options.
    pub fn lower_names(&self) -> Vec<String> {
        (0..self.layers).rev().map(|layer| format!("l{layer}")).collect()
    }
}

/// Calls `make` with a new folder, unless it was made before; nothing half made is left under its name.
fn made_once(folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let done = folder.join(".made");
    if done.exists() {
        return Ok(());
    }
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    make(folder)?;
    File::create(&done)?;
    Ok(())
}

/// Folders up to six deep, ten files in each on average, a twelfth of them symbolic links.
fn make_tree(root: &Path, folders: u64) -> Result<()> {
    let mut noise = Noise::new(1);
    let mut places = vec![root.join("tree")];
    fs::create_dir(&places[0])?;
    while (places.len() as u64) < folders {
        let parent = &places[usize::try_from(noise.next() % places.len() as u64)?];
        if parent.components().count() - root.components().count() > 6 {
            continue;
        }
        let new = parent.join(format!("folder-{}", places.len()));
        fs::create_dir(&new)?;
        places.push(new);
    }
    for number in 0..folders * 10 {
        // Squared: a few folders have very many, as in real trees.
        let draw = (noise.next() % 1000) * (noise.next() % 1000);
        let place = &places[usize::try_from(draw * places.len() as u64 / 1_000_000)?];
        if number % 12 == 11 {
            symlink(format!("file-{}.so", number - 1), place.join(format!("link-{number}.so")))?;
        } else {
            fs::write(place.join(format!("file-{number}.so")), noise.bytes(size_of_file(number)))?;
        }
    }
    Ok(())
}

/// Sizes as in a Debian root, but for the few large files: half below 2 KiB, a few of 60.
fn size_of_file(number: u64) -> usize {
    let draw = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let ceiling = match draw % 100 {
        0..50 => 2_000,
        50..80 => 8_000,
        80..96 => 20_000,
        _ => 60_000,
    };
    usize::try_from(200 + (draw >> 7) % ceiling).unwrap_or(200)
}

/// Copies each file into one of the layers, by a hash of its name.
fn spread(base: &Path, folder: &Path, layers: usize) -> Result<()> {
    copy_below(base, base, &|path| {
        let hash = path
            .as_os_str()
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        folder.join(format!("l{}", (hash >> 20) % layers as u64))
    })
}

/// Copies, not links: a file with several names is treated otherwise when it is changed.
fn copy_below(base: &Path, place: &Path, layer_of: &dyn Fn(&Path) -> PathBuf) -> Result<()> {
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        let relative = path.strip_prefix(base)?;
        if relative == Path::new(".made") {
            continue;
        }
        let metadata = path.symlink_metadata()?;
        let target = layer_of(relative).join(relative);
        if metadata.is_dir() {
            // Also where it has nothing of its own in it.
            fs::create_dir_all(&target)?;
            copy_below(base, &path, layer_of)?;
            continue;
        }
        fs::create_dir_all(target.parent().context("a file is in a folder")?)?;
        if metadata.is_symlink() {
            symlink(fs::read_link(&path)?, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// Adds a folder's entries to a layer.
fn pack(root: &Path, place: &Path, out: &mut LayerWriter<impl std::io::Write>) -> Result<()> {
    let mut entries = fs::read_dir(place)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let metadata = path.symlink_metadata()?;
        let name = path.strip_prefix(root)?.as_os_str().as_bytes();
        let meta = Meta::mode(metadata.permissions().mode() & 0o7777).at(metadata.mtime(), 0);
        if metadata.is_dir() {
            out.directory(name, &meta)?;
            pack(root, &path, out)?;
        } else if metadata.is_symlink() {
            out.symlink(name, fs::read_link(&path)?.as_os_str().as_bytes(), &meta)?;
        } else {
            out.file_from(name, &meta, metadata.len(), &mut File::open(&path)?)?;
        }
    }
    Ok(())
}

/// A crate without dependencies that takes the compiler a second.
fn make_crate(folder: &Path, noise: &mut Noise) -> Result<()> {
    fs::create_dir_all(folder.join("src"))?;
    fs::write(
        folder.join("Cargo.toml"),
        "[package]\nname = \"measured\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    let mut main = String::new();
    for module in 0..30 {
        main.push_str(&format!("mod part{module};\n"));
        let mut text = String::new();
        for function in 0..20 {
            let (a, b) = (noise.next() % 1000, noise.next() % 1000);
            text.push_str(&format!(
                "pub fn function{function}(x: u64) -> String {{ format!(\"{{}} {{}}\", x * {a}, x ^ {b}) }}\n"
            ));
        }
        fs::write(folder.join(format!("src/part{module}.rs")), text)?;
    }
    main.push_str("fn main() {\n");
    for module in 0..30 {
        main.push_str(&format!("    println!(\"{{}}\", part{module}::function{}({module}));\n", module % 20));
    }
    main.push_str("}\n");
    Ok(fs::write(folder.join("src/main.rs"), main)?)
}

/// The folders that dpkg wants in a root.
fn make_dpkg_root(root: &Path) -> Result<()> {
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log", "usr/share", "tmp"]
    {
        fs::create_dir_all(root.join(folder))?;
    }
    for file in ["status", "available"] {
        File::create(root.join("var/lib/dpkg").join(file))?;
    }
    Ok(())
}

/// A repository with 2,000 files and one commit.
fn make_repository(folder: &Path, noise: &mut Noise) -> Result<()> {
    for number in 0..2000 {
        let place = folder.join(format!("module-{:02}/part-{}", number % 40, number % 9));
        fs::create_dir_all(&place)?;
        fs::write(place.join(format!("source-{number}.c")), noise.bytes(size_of_file(number)))?;
    }
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        command.args(["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0", "-C"]);
        run(command.arg(folder).args(arguments))
    };
    git(&["init", "-q"])?;
    git(&["add", "."])?;
    git(&["commit", "-q", "-m", "all"])
}

/// Reads files that are about to be measured, so that nobody is the first to.
pub fn warm(folder: &Path) -> Result<()> {
    let mut pending = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(place) = pending.pop() {
        for entry in fs::read_dir(&place)? {
            let path = entry?.path();
            let metadata = path.symlink_metadata()?;
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file() {
                bytes += std::io::copy(&mut File::open(&path)?.take(u64::MAX), &mut std::io::sink())?;
            }
        }
    }
    ensure!(bytes > 0, "nothing in {folder:?}");
    Ok(())
}

/// The same bytes in every run.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// That many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
