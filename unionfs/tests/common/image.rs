//! Images made of tars, for tests.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use strata_layer::index::Index;
use strata_layer::ingest::LayerIngest;
use strata_layer::merge::merge;
use strata_layer::tar::Limits;
use strata_unionfs::{ImageLayer, Lower};

/// The files of an image: tars with their indexes, and the merged one.
pub(crate) struct Image {
    pub(crate) lower: Lower,
    pub(crate) merged: Index,
    pub(crate) tars: Vec<PathBuf>,
}

/// Indexes layers, bottom first, with all files but the tars below `store`.
pub(crate) fn image(store: &Path, tars: &[PathBuf]) -> Image {
    let mut indexes = Vec::new();
    let mut layers = Vec::new();
    for (number, tar) in tars.iter().enumerate() {
        let mut ingest = LayerIngest::new(Limits::default());
        let mut file = File::open(tar).unwrap();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut buffer).unwrap();
            if read == 0 {
                break;
            }
            ingest.push(&buffer[..read]).unwrap();
        }
        let index = ingest.finish().unwrap().index;
        let path = store.join(format!("{number}.index"));
        fs::write(&path, &index).unwrap();
        indexes.push(Index::from_bytes(index).unwrap());
        layers.push(ImageLayer {
            tar: tar.clone(),
            index: path,
            objects: store.join(format!("{number}.objects")),
            absent: None,
        });
    }
    let references: Vec<&Index> = indexes.iter().collect();
    let merged = merge(&references).unwrap();
    let path = store.join("merged.index");
    File::create(&path).unwrap().write_all(&merged).unwrap();
    Image {
        lower: Lower::Image { index: path, layers },
        merged: Index::from_bytes(merged).unwrap(),
        tars: tars.to_vec(),
    }
}
