//! Mounts folders or layer tars: `mount_tree LOWER[:LOWER...] UPPER WORK DIR [WORD...]`. Serves until unmounted, and says
//! then how often the kernel asked for what.
//!
//! Lowers that end in `.tar` are the layers of an image, bottom first; their indexes are made in WORK. Otherwise they are
//! folders, topmost first. With `-` for UPPER the mount is read-only. The word `off` switches passthrough off; `device`,
//! `ring` and `fuser` choose the transport.
#![allow(clippy::print_stdout, reason = "a program to try things with")]

use std::error::Error;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use strata_layer::index::Index;
use strata_layer::ingest::LayerIngest;
use strata_layer::tar::Limits;
use strata_unionfs::{ImageLayer, Lower, MountSpec, Options, Passthrough, Target, Transport, Upper, mount};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [lower, upper, work, dir, rest @ ..] = arguments.as_slice() else {
        return Err("usage: mount_tree LOWER[:LOWER...] UPPER WORK DIR [WORD...]".into());
    };
    let passthrough = if rest.iter().any(|word| word == "off") { Passthrough::Off } else { Passthrough::Auto };
    let transports = [Transport::Device, Transport::Ring, Transport::Fuser];
    let transport = transports.into_iter().find(|transport| rest.iter().any(|word| word == transport.name()));
    let lowers: Vec<PathBuf> = lower.split(':').map(PathBuf::from).collect();
    let is_tar = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tar");
    let lower = if lowers.iter().all(is_tar) { image(&lowers, Path::new(work))? } else { Lower::Folders(lowers) };
    let spec = MountSpec {
        lower,
        upper: (upper != "-").then(|| Upper { dir: upper.into(), work: work.into() }),
        options: Options { passthrough, transport: transport.unwrap_or_default(), ..Options::default() },
    };
    let mounted = mount(&spec, &Target::Directory(dir.into()))?;
    println!("{:?}", mounted.report());
    let counts = mounted.counts();
    mounted.serve()?;
    println!("{counts:?}");
    Ok(())
}

/// Indexes layers.
fn image(tars: &[PathBuf], store: &Path) -> Result<Lower, Box<dyn Error>> {
    let (mut indexes, mut layers) = (Vec::new(), Vec::new());
    for (number, tar) in tars.iter().enumerate() {
        let mut ingest = LayerIngest::new(Limits::default());
        let mut file = File::open(tar)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => ingest.push(&buffer[..read])?,
            }
        }
        let bytes = ingest.finish()?.index;
        let index = store.join(format!("{number}.index"));
        fs::write(&index, &bytes)?;
        indexes.push(Index::from_bytes(bytes)?);
        layers.push(ImageLayer {
            tar: tar.clone(),
            index,
            objects: store.join(format!("{number}.objects")),
            absent: None,
        });
    }
    let index = store.join("merged.index");
    fs::write(&index, strata_layer::merge::merge(&indexes.iter().collect::<Vec<_>>())?)?;
    Ok(Lower::Image { index, layers })
}
