//! Images made on the spot, as every kind of archive.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test program uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Write};
use std::path::Path;

use serde_json::{Value, json};
use strata_imagestore::{Depth, FsckOptions, ImageId, Input, LoadError, LoadOptions, Loaded, Mend, Store};
use strata_layer::Digest;

/// An archive in memory: names and contents in the order in which they are written.
#[derive(Clone, Default)]
pub struct Members(pub Vec<(String, Vec<u8>)>);

impl Members {
    pub fn push(&mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.0.push((name.into(), content.into()));
    }

    pub fn get_mut(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.0.iter_mut().find(|(other, _)| other == name).expect("a member of this name").1
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(other, _)| other != name);
    }

    /// Adds a blob and returns its descriptor.
    pub fn blob(&mut self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(content);
        let name = format!("blobs/sha256/{}", digest.hex());
        if !self.0.iter().any(|(other, _)| *other == name) {
            self.push(name, content);
        }
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()})
    }

    /// The archive as a tar. A content that begins with `-> ` is a symbolic link.
    pub fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            match content.strip_prefix(b"-> ") {
                Some(target) => {
                    header.set_size(0);
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, name, std::str::from_utf8(target).unwrap()).unwrap();
                }
                None => {
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, name, &content[..]).unwrap();
                }
            }
        }
        builder.into_inner().unwrap()
    }

    /// The archive as a folder.
    pub fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in &self.0 {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }
}

/// A layer of files, each with its content.
pub fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A layer of one file of so many bytes that do not compress.
pub fn large_layer(name: &str, size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = vec![0; size];
    for chunk in content.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size as u64);
    builder.append_data(&mut header, name, &content[..]).unwrap();
    builder.into_inner().unwrap()
}

/// The layers that most tests use: a base, a change, a deletion.
pub fn sample_layers() -> Vec<Vec<u8>> {
    vec![
        layer(&[("etc/passwd", "root:x:0:0::/:/bin/sh\n"), ("bin/tool", "#!/bin/sh\n"), ("gone", "x")]),
        layer(&[("etc/passwd", "root:x:0:0:changed:/:/bin/sh\n"), (".wh.gone", "")]),
        layer(&[("srv/app", "app")]),
    ]
}

pub fn config_of(layers: &[Vec<u8>]) -> Value {
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/tool"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": layers.iter().map(|_| json!({"created_by": "step"})).collect::<Vec<_>>(),
    })
}

/// `docker save` before version 25: a folder for each layer, the documents at the end.
pub fn docker_old(layers: &[Vec<u8>], tags: &[&str]) -> Members {
    let config = config_of(layers).to_string().into_bytes();
    let mut members = Members::default();
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let folder = Digest::of(&[&layer[..], &[u8::try_from(number).unwrap()]].concat()).hex();
        members.push(format!("{folder}/VERSION"), "1.0");
        members.push(format!("{folder}/json"), json!({"id": folder}).to_string());
        let repeated = layers[..number].iter().position(|other| other == layer);
        let name = format!("{folder}/layer.tar");
        match repeated {
            Some(first) => members.push(name.clone(), format!("-> ../{}", names[first])),
            None => members.push(name.clone(), layer.clone()),
        }
        names.push(name);
    }
    let config_name = format!("{}.json", Digest::of(&config).hex());
    members.push(config_name.clone(), config);
    members.push("manifest.json", json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]).to_string());
    members.push("repositories", "{}");
    members
}

/// Compresses a layer as an OCI layout has it.
pub fn compress(layer: &[u8], kind: &str) -> Vec<u8> {
    match kind {
        "" => layer.to_vec(),
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(layer).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => {
            // Two frames and a skippable one between them, as zstd:chunked has.
            let (a, b) = layer.split_at(layer.len() / 2);
            let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b't', b'o', b'c'];
            [zstd::encode_all(a, 1).unwrap(), skippable.to_vec(), zstd::encode_all(b, 1).unwrap()].concat()
        }
        other => panic!("{other}"),
    }
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Adds the blobs of an image and returns the descriptor of its manifest.
pub fn oci_image(members: &mut Members, layers: &[Vec<u8>], kind: &str) -> Value {
    oci_image_with_config(members, layers, kind, &config_of(layers))
}

pub fn oci_image_with_config(members: &mut Members, layers: &[Vec<u8>], kind: &str, config: &Value) -> Value {
    let media_type = match kind {
        "" => "application/vnd.oci.image.layer.v1.tar".to_owned(),
        kind => format!("application/vnd.oci.image.layer.v1.tar+{kind}"),
    };
    let config = members.blob(CONFIG, config.to_string().as_bytes());
    let layers: Vec<Value> = layers.iter().map(|layer| members.blob(&media_type, &compress(layer, kind))).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    members.blob(MANIFEST, manifest.to_string().as_bytes())
}

/// Ends an OCI layout.
pub fn oci_layout(mut members: Members, manifests: &[Value]) -> Members {
    members.push("index.json", json!({"schemaVersion": 2, "manifests": manifests}).to_string());
    members.push("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string());
    members
}

pub fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

/// An OCI layout of one image.
pub fn oci(layers: &[Vec<u8>], kind: &str, name: &str) -> Members {
    let mut members = Members::default();
    let manifest = oci_image(&mut members, layers, kind);
    oci_layout(members, &[named(manifest, name)])
}

/// `docker save` since version 25: both forms at once.
pub fn docker_new(layers: &[Vec<u8>], tag: &str) -> Members {
    let mut members = oci(layers, "", tag);
    let config = config_of(layers).to_string();
    let blob = |content: &[u8]| format!("blobs/sha256/{}", Digest::of(content).hex());
    let layers: Vec<String> = layers.iter().map(|layer| blob(layer)).collect();
    let manifest = json!([{"Config": blob(config.as_bytes()), "RepoTags": [tag], "Layers": layers}]);
    members.push("manifest.json", manifest.to_string());
    members
}

pub fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(&folder.path().join("store")).unwrap()
}

pub fn load_stream(store: &Store, bytes: &[u8]) -> Result<Vec<Loaded>, LoadError> {
    store.load(Input::Stream(Box::new(Cursor::new(bytes.to_vec()))), &options(), &())
}

pub fn load_file(store: &Store, bytes: &[u8]) -> Result<Vec<Loaded>, LoadError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    store.load(Input::Path(file.path().to_owned()), &options(), &())
}

pub fn options() -> LoadOptions {
    LoadOptions { platform: Some("linux/amd64".parse().unwrap()), ..Default::default() }
}

/// The whole message of an error, with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Everything in a store that must not change when an operation fails: names, kinds and contents, without locks.
pub fn snapshot(store: &Store) -> BTreeMap<String, Digest> {
    fn walk(folder: &Path, root: &Path, found: &mut BTreeMap<String, Digest>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                walk(&path, root, found);
            } else if !name.ends_with("lock") {
                found.insert(name, Digest::of(&std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(store.root(), store.root(), &mut found);
    found
}

/// The paths in the merged tree of an image.
pub fn merged_paths(store: &Store, image: &strata_imagestore::ImageId) -> Vec<String> {
    use strata_layer::index::{Index, NodeId};
    let stack = store.stack(image).unwrap();
    let index = Index::open(&std::fs::File::open(&stack.index).unwrap()).unwrap();
    let mut paths = Vec::new();
    let mut folders = vec![(NodeId::ROOT, String::new())];
    while let Some((folder, path)) = folders.pop() {
        for child in index.children(folder) {
            let path = format!("{path}/{}", String::from_utf8_lossy(child.name));
            if child.kind == strata_layer::index::Kind::Directory {
                folders.push((child.node, path));
            } else {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths
}

/// A folder in memory where there is one: these tests are about order and not about disks.
pub fn fast_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn names(store: &Store) -> BTreeSet<(String, ImageId)> {
    let images = store.images().unwrap();
    images.iter().flat_map(|image| image.names.iter().map(|name| (name.familiar(), image.id))).collect()
}

/// Checks everything, and makes caches again that are damaged.
pub fn verify(store: &Store) -> Vec<strata_imagestore::Finding> {
    let options = FsckOptions { depth: Depth::Whole, mend: Mend::Caches };
    store.fsck(&options, &()).unwrap().findings
}

/// Checks that a store is whole and, after a collection, has nothing that no image needs.
pub fn check_whole(store: &Store) {
    assert!(verify(store).iter().all(strata_imagestore::Finding::is_repaired));
    store.gc().unwrap();
    let mut needed = BTreeSet::new();
    let mut blobs = BTreeSet::new();
    for summary in store.images().unwrap() {
        let image = store.image(&summary.id).unwrap();
        needed.extend(image.layers.iter().map(|layer| layer.0.hex()));
        blobs.extend([image.id.0.hex(), image.manifest.hex()]);
    }
    let list = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(store.root().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(list("layers"), needed);
    assert_eq!(list("blobs/sha256"), blobs);
    assert_eq!(list("tmp"), BTreeSet::new());
}
