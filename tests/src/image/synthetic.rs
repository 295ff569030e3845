//! Images of any number of layers, the same tree in each, made from a seed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::archive::{Form, Image, Layer};
use super::layer::{LayerWriter, Meta};
use super::{busybox, cache};

/// One tree of 16,000 files in 1,600 folders, spread over `layers` layers by a hash of each name; a folder is in every
/// layer that has a file of it. A static busybox is in the lowest layer. Uncompressed docker-archive.
pub fn spread(layers: usize) -> Result<PathBuf> {
    let folder = cache::get_or_make(&format!("spread-{layers}-1"), |folder| {
        let image = spread_image(layers, folder)?;
        image.write(Form::DockerNew, &folder.join(Form::DockerNew.file_name()))
    })?;
    Ok(folder.join(Form::DockerNew.file_name()))
}

/// What [`spread`] calls its image.
pub fn spread_reference(layers: usize) -> String {
    format!("strata-test/spread:{layers}")
}

/// The layers of [`spread`], bottom first.
pub fn spread_layers(layers: usize) -> Result<Vec<PathBuf>> {
    let archive = spread(layers)?;
    Ok((0..layers).map(|number| archive.with_file_name(format!("{number}.tar"))).collect())
}

/// A 1.4 GB archive of six layers, a static busybox and 20,000 files whose sizes are distributed as in real images: 94 % are below 64 KiB
/// and hold a tenth of the bytes, 24 hold half of them. Uncompressed docker-archive.
pub fn large() -> Result<PathBuf> {
    let folder = cache::get_or_make("large-2", |folder| {
        let image = large_image(folder)?;
        image.write(Form::DockerNew, &folder.join(Form::DockerNew.file_name()))
    })?;
    Ok(folder.join(Form::DockerNew.file_name()))
}

/// One layer of so many files of a hundred bytes, a hundred in each folder. Uncompressed docker-archive.
pub fn counted(files: usize) -> Result<PathBuf> {
    let folder = cache::get_or_make(&format!("counted-{files}-1"), |folder| {
        let path = folder.join("0.tar");
        let mut out = LayerWriter::new(std::io::BufWriter::with_capacity(1 << 20, File::create(&path)?));
        for number in 0..files {
            let parent = format!("data/{:02}/{:04}", number / 100_000, number / 100 % 1000);
            if number % 100 == 0 {
                out.directory(&parent, &Meta::mode(0o755))?;
            }
            out.file(format!("{parent}/file-{number}"), &Meta::mode(0o644), format!("{number:0100}").as_bytes())?;
        }
        out.finish()?;
        let layers = vec![Layer::of(&path, "files")?];
        let image = Image { reference: counted_reference(files), layers, config: json!({"Cmd": ["/bin/true"]}) };
        image.write(Form::DockerNew, &folder.join(Form::DockerNew.file_name()))?;
        Ok(std::fs::remove_file(&path)?)
    })?;
    Ok(folder.join(Form::DockerNew.file_name()))
}

/// What [`counted`] calls its image.
pub fn counted_reference(files: usize) -> String {
    format!("strata-test/counted:{files}")
}

/// What [`large`] calls its image.
pub const LARGE_REFERENCE: &str = "strata-test/large:1";

fn spread_image(layers: usize, folder: &Path) -> Result<Image> {
    let paths: Vec<PathBuf> = (0..layers).map(|number| folder.join(format!("{number}.tar"))).collect();
    let mut writers = Vec::new();
    for path in &paths {
        writers.push(LayerWriter::new(File::create(path)?));
    }
    let meta = Meta::mode(0o644);
    let directory = Meta::mode(0o755);
    let root = &mut writers[0];
    root.directory("bin", &directory)?;
    root.file("bin/busybox", &directory, &std::fs::read(busybox::program()?)?)?;
    root.hard_link("bin/true", "bin/busybox", &directory)?;
    root.hard_link("bin/sh", "bin/busybox", &directory)?;
    for name in ["dev", "proc", "sys", "tmp", "tree"] {
        root.directory(name, &directory)?;
    }
    let mut content = Noise::new(1);
    for outer in 0..40 {
        for inner in 0..40 {
            let mut present = vec![false; layers];
            for number in 0..10 {
                let path = format!("tree/d{outer:02}/sub-{inner:02}/file-{number}.txt");
                let layer = usize::try_from(hash(&path) % layers as u64)?;
                if !std::mem::replace(&mut present[layer], true) {
                    writers[layer].directory(format!("tree/d{outer:02}"), &directory)?;
                    writers[layer].directory(format!("tree/d{outer:02}/sub-{inner:02}"), &directory)?;
                }
                writers[layer].file(&path, &meta, &content.take_bytes(200 + (hash(&path) >> 32) % 4000)?)?;
            }
        }
    }
    let mut described = Vec::new();
    for (writer, path) in writers.into_iter().zip(&paths) {
        writer.finish()?;
        described.push(Layer::of(path, "part of a tree")?);
    }
    Ok(Image { reference: spread_reference(layers), layers: described, config: json!({"Cmd": ["/bin/true"]}) })
}

fn large_image(folder: &Path) -> Result<Image> {
    let mut layers = Vec::new();
    let mut content = Noise::new(2);
    let mut sizes = Noise::new(3);
    for number in 0..6 {
        let path = folder.join(format!("{number}.tar"));
        let mut out = LayerWriter::new(std::io::BufWriter::with_capacity(1 << 20, File::create(&path)?));
        if number == 0 {
            out.directory("bin", &Meta::mode(0o755))?;
            out.file("bin/busybox", &Meta::mode(0o755), &std::fs::read(busybox::program()?)?)?;
            out.hard_link("bin/true", "bin/busybox", &Meta::mode(0o755))?;
            for name in ["dev", "proc", "sys", "tmp"] {
                out.directory(name, &Meta::mode(0o755))?;
            }
        }
        out.directory("data", &Meta::mode(0o755))?;
        for directory in 0..60 {
            let parent = format!("data/l{number}-{directory:02}");
            out.directory(&parent, &Meta::mode(0o755))?;
            for file in 0..56 {
                let size = match file {
                    0 if directory % 18 == 0 => 30 << 20,
                    0..4 => (64 << 10) + sizes.next() % (640 << 10),
                    _ => sizes.next() % (12 << 10),
                };
                let name = format!("{parent}/file-{file}");
                out.file_from(name, &Meta::mode(0o644), size, &mut content.by_ref().take(size))?;
            }
        }
        out.finish()?;
        layers.push(Layer::of(&path, "files")?);
    }
    Ok(Image { reference: LARGE_REFERENCE.to_owned(), layers, config: json!({"Cmd": ["/bin/true"]}) })
}

/// The same bytes for the same seed, about as compressible as programs are: each 16 bytes are half noise, half repeated.
#[derive(Debug)]
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn take_bytes(&mut self, size: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.by_ref().take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for chunk in buffer.chunks_mut(16) {
            let value = self.next().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(value.iter().chain(b"strata..")) {
                *to = *from;
            }
        }
        Ok(buffer.len())
    }
}

/// FNV-1a, mixed: spreads names evenly and never changes.
fn hash(name: &str) -> u64 {
    let folded = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (folded ^ folded >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93)
}
