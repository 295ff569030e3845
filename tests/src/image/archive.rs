//! Wraps layers and a configuration as an image archive, in each form that `load` reads.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::tree::hex;

/// A layer on disk: its uncompressed tar.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The tar.
    pub tar: PathBuf,
    /// `sha256:` and the digest of the tar.
    pub diff_id: String,
    /// How it was made, for the image's history.
    pub created_by: String,
}

impl Layer {
    /// Digests a tar.
    pub fn of(tar: &Path, created_by: &str) -> Result<Layer> {
        let digest = crate::tree::digest_of(tar).with_context(|| format!("read {tar:?}"))?;
        Ok(Layer { tar: tar.to_owned(), diff_id: format!("sha256:{digest}"), created_by: created_by.to_owned() })
    }
}

/// An image before it is put in an archive.
#[derive(Clone, Debug)]
pub struct Image {
    /// `name:tag`.
    pub reference: String,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// The `config` object: `Env`, `Cmd`, ...
    pub config: Value,
}

/// The forms of archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `docker save` before version 25: one folder for each layer, `repositories`, `manifest.json`.
    DockerOld,
    /// `docker save` since version 25: an OCI layout with uncompressed layers and `manifest.json`.
    DockerNew,
    /// An OCI layout with gzip layers, in a tar.
    OciGzip,
    /// An OCI layout with zstd layers behind a nested index, in a tar.
    OciZstd,
}

impl Form {
    /// All of them.
    pub const ALL: [Form; 4] = [Form::DockerOld, Form::DockerNew, Form::OciGzip, Form::OciZstd];

    /// The file name that archives of this form get here.
    pub fn file_name(self) -> &'static str {
        match self {
            Form::DockerOld => "docker-old.tar",
            Form::DockerNew => "docker.tar",
            Form::OciGzip => "oci-gzip.tar",
            Form::OciZstd => "oci-zstd.tar",
        }
    }
}

impl Image {
    /// The image's configuration: the bytes whose digest is the image's ID.
    pub fn configuration(&self) -> Vec<u8> {
        let history = self.layers.iter().map(|layer| json!({"created": CREATED, "created_by": layer.created_by}));
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        let document = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": CREATED,
            "config": self.config,
            "history": history.collect::<Vec<_>>(),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        document.to_string().into_bytes()
    }

    /// `sha256:` and the digest of the configuration.
    pub fn id(&self) -> String {
        format!("sha256:{}", digest(&self.configuration()))
    }

    /// Writes the archive.
    pub fn write(&self, form: Form, path: &Path) -> Result<()> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(|| format!("create {path:?}"))?);
        let mut out = Members::Tar(Builder::new(file));
        match form {
            Form::DockerOld => self.docker_old(&mut out)?,
            Form::DockerNew | Form::OciGzip | Form::OciZstd => self.oci(form, &mut out)?,
        }
        out.finish().with_context(|| format!("write {path:?}"))
    }

    /// Writes an OCI layout with gzip layers as a folder.
    pub fn write_folder(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path)?;
        self.oci(Form::OciGzip, &mut Members::Folder(path.to_owned()))
    }

    fn docker_old(&self, out: &mut Members) -> Result<()> {
        let configuration = self.configuration();
        let config_name = format!("{}.json", digest(&configuration));
        out.file(&config_name, &configuration)?;
        let mut names: Vec<String> = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            // The old form names folders by a made-up ID, and a repeated layer is a symbolic link to the first.
            let folder = digest(format!("{number} {}", layer.diff_id).as_bytes());
            out.directory(&folder)?;
            out.file(&format!("{folder}/VERSION"), b"1.0")?;
            out.file(&format!("{folder}/json"), json!({"id": folder, "os": "linux"}).to_string().as_bytes())?;
            let name = format!("{folder}/layer.tar");
            match self.layers[..number].iter().position(|earlier| earlier.diff_id == layer.diff_id) {
                Some(earlier) => out.symlink(&name, &format!("../{}", names[earlier]))?,
                None => out.copy(&name, &layer.tar)?,
            }
            names.push(name);
        }
        let (repository, tag) = self.reference.rsplit_once(':').unwrap_or((&self.reference, "latest"));
        out.file("manifest.json", &self.docker_manifest(&config_name, &names))?;
        let top = names.last().map(|name| name.trim_end_matches("/layer.tar"));
        out.file("repositories", json!({repository: {tag: top}}).to_string().as_bytes())
    }

    fn oci(&self, form: Form, out: &mut Members) -> Result<()> {
        let docker = form == Form::DockerNew;
        out.directory("blobs")?;
        out.directory("blobs/sha256")?;
        let mut layers = Vec::new();
        for layer in &self.layers {
            let (media_type, (digest, size)) = match form {
                Form::OciZstd => ("application/vnd.oci.image.layer.v1.tar+zstd", out.compressed(layer, zstd)?),
                Form::OciGzip => ("application/vnd.oci.image.layer.v1.tar+gzip", out.compressed(layer, gzip)?),
                _ => ("application/vnd.oci.image.layer.v1.tar", out.blob_of(&layer.tar, layer)?),
            };
            layers.push(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}));
        }
        let configuration = self.configuration();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": out.blob("application/vnd.oci.image.config.v1+json", &configuration)?,
            "layers": layers,
        });
        let mut top = out.blob(MANIFEST, manifest.to_string().as_bytes())?;
        top["platform"] = json!({"architecture": architecture(), "os": "linux"});
        if form == Form::OciZstd {
            let nested = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
            top = out.blob(INDEX, nested.to_string().as_bytes())?;
        }
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        top["annotations"] = json!({
            "io.containerd.image.name": format!("docker.io/{}", self.reference),
            "org.opencontainers.image.ref.name": tag,
        });
        out.file(
            "index.json",
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]}).to_string().as_bytes(),
        )?;
        if docker {
            let names = self.layers.iter().map(|layer| blob_name(layer.diff_id.trim_start_matches("sha256:")));
            let manifest = self.docker_manifest(&blob_name(&digest(&configuration)), &names.collect::<Vec<_>>());
            out.file("manifest.json", &manifest)?;
        }
        out.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    fn docker_manifest(&self, config: &str, layers: &[String]) -> Vec<u8> {
        json!([{"Config": config, "RepoTags": [self.reference], "Layers": layers}]).to_string().into_bytes()
    }
}

/// Where the members of an archive go.
enum Members {
    Tar(Builder<BufWriter<File>>),
    Folder(PathBuf),
}

impl Members {
    fn directory(&mut self, name: &str) -> Result<()> {
        match self {
            Members::Tar(tar) => {
                Ok(tar.append_data(&mut header(EntryType::Directory, 0o755, 0), format!("{name}/"), io::empty())?)
            }
            Members::Folder(root) => Ok(fs::create_dir_all(root.join(name))?),
        }
    }

    fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        match self {
            Members::Tar(tar) => Ok(tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), name, target)?),
            Members::Folder(root) => Ok(std::os::unix::fs::symlink(target, root.join(name))?),
        }
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.stream(name, content.len() as u64, &mut &content[..])
    }

    fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let file = File::open(from)?;
        self.stream(name, file.metadata()?.len(), &mut BufReader::with_capacity(1 << 20, file))
    }

    fn stream(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        match self {
            Members::Tar(tar) => tar.append_data(&mut header(EntryType::Regular, 0o644, size), name, content)?,
            Members::Folder(root) => {
                io::copy(content, &mut File::create(root.join(name))?)?;
            }
        }
        Ok(())
    }

    fn blob(&mut self, media_type: &str, content: &[u8]) -> Result<Value> {
        let digest = digest(content);
        self.file(&blob_name(&digest), content)?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()}))
    }

    fn blob_of(&mut self, file: &Path, layer: &Layer) -> Result<(String, u64)> {
        let digest = layer.diff_id.trim_start_matches("sha256:").to_owned();
        self.copy(&blob_name(&digest), file)?;
        Ok((digest, file.metadata()?.len()))
    }

    fn compressed(&mut self, layer: &Layer, compress: Compress) -> Result<(String, u64)> {
        let mut file = tempfile::tempfile_in(layer.tar.parent().context("a layer lies in a folder")?)?;
        compress(&mut File::open(&layer.tar)?, &mut file)?;
        io::Seek::rewind(&mut file)?;
        let size = file.metadata()?.len();
        let digest = crate::tree::digest_of_file(&mut file)?;
        io::Seek::rewind(&mut file)?;
        self.stream(&blob_name(&digest), size, &mut file)?;
        Ok((digest, size))
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Members::Tar(tar) => tar.into_inner()?.flush(),
            Members::Folder(_) => Ok(()),
        }
    }
}

type Compress = fn(&mut File, &mut File) -> io::Result<()>;

fn gzip(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::new(4));
    io::copy(from, &mut encoder)?;
    encoder.finish()?;
    Ok(())
}

fn zstd(from: &mut File, to: &mut File) -> io::Result<()> {
    zstd::stream::copy_encode(from, to, 3)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn blob_name(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// This machine's architecture, in the OCI's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

const CREATED: &str = "2024-01-02T03:04:05Z";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
