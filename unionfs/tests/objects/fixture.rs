//! A layer's files: data where a tar would have it, and an index of that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use strata_layer::index::{Builder, Content, Index, Layer as LayerName, Metadata, NodeId};
use strata_layer::objects::Segment;
use strata_layer::{DiffId, Digest};
use strata_unionfs::objects::{ObjectMount, ObjectPaths};

/// A layer being made, then made.
pub(crate) struct Layer {
    folder: tempfile::TempDir,
    tar: Vec<u8>,
    builder: Builder,
    /// Names and contents, but for the files that are too large to have theirs in memory.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Layer {
    pub(crate) fn new() -> Result<Layer> {
        Layer::on(&std::env::temp_dir())
    }

    pub(crate) fn on(folder: &Path) -> Result<Layer> {
        let folder = tempfile::Builder::new().prefix("strata-objects-").tempdir_in(folder)?;
        Ok(Layer { folder, tar: Vec::new(), builder: Builder::new(), files: BTreeMap::new() })
    }

    pub(crate) fn small() -> Result<Layer> {
        let mut layer = Layer::new()?;
        layer.add("a", b"content of a".to_vec());
        layer.add("b", b"content of b".to_vec());
        layer.finish()?;
        Ok(layer)
    }

    pub(crate) fn with_noise() -> Result<Layer> {
        let mut layer = Layer::new()?;
        layer.add("noise", noise(1 << 20));
        layer.add("a", b"content of a".to_vec());
        layer.finish()?;
        Ok(layer)
    }

    pub(crate) fn add(&mut self, name: &str, content: Vec<u8>) {
        let whole = if content.is_empty() { Vec::new() } else { vec![(0, content.clone())] };
        self.add_sparse(name, content.len() as u64, &whole);
    }

    pub(crate) fn add_sparse(&mut self, name: &str, size: u64, data: &[(u64, Vec<u8>)]) {
        self.tar.resize(self.tar.len() + 512, b'H');
        let mut segments = Vec::new();
        for (offset, bytes) in data {
            segments.push(Segment { offset: *offset, length: bytes.len() as u64, source: self.tar.len() as u64 });
            self.tar.extend_from_slice(bytes);
        }
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        let content = Content::Regular { size, segments: &segments };
        self.builder.add(name.as_bytes(), Metadata::default(), content).unwrap();
        if size < 1 << 30 {
            let mut content = vec![0; usize::try_from(size).unwrap()];
            for (offset, bytes) in data {
                content[usize::try_from(*offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
            }
            self.files.insert(name.to_owned(), content);
        }
    }

    pub(crate) fn finish(&mut self) -> Result<()> {
        let paths = self.paths();
        let layer = LayerName { diff_id: DiffId(Digest::of(&self.tar)), tar_size: self.tar.len() as u64 };
        std::fs::write(&paths.tar, &self.tar)?;
        std::fs::write(
            &paths.index,
            std::mem::replace(&mut self.builder, Builder::new()).finish(layer)?.into_bytes()?,
        )?;
        Ok(())
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn paths(&self) -> ObjectPaths {
        paths_in(self.folder())
    }

    pub(crate) fn nid(&self, name: &str) -> Result<Option<u64>> {
        nid_in(self.folder(), name)
    }

    pub(crate) fn digest(&self, name: &str) -> String {
        Digest::of(&self.files[name]).to_string()
    }

    /// Compares every file that is not empty.
    pub(crate) fn compare_all(&self, mount: &ObjectMount) -> Result<()> {
        for (name, expected) in &self.files {
            let mut content = Vec::new();
            File::from(mount.open_object(self.nid(name)?.context("no object")?)?).read_to_end(&mut content)?;
            ensure!(content == *expected, "{name} differs");
        }
        Ok(())
    }
}

pub(crate) fn paths_in(folder: &Path) -> ObjectPaths {
    ObjectPaths { tar: folder.join("tar"), index: folder.join("index"), objects: folder.join("objects") }
}

pub(crate) fn nid_in(folder: &Path, name: &str) -> Result<Option<u64>> {
    let index = Index::open(&File::open(folder.join("index"))?)?;
    let node = index.lookup(NodeId::ROOT, name.as_bytes()).with_context(|| format!("{name} is not in the index"))?;
    Ok(index.object(node).map(|object| object.nid))
}

/// Bytes without a pattern, the same ones for the same length.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u64 | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}
