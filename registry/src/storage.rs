//! The folder of a registry.
//!
//! ```text
//! blobs/<algorithm>/<hex>                           the bytes of blobs and manifests, once for all repositories
//! repositories/<name>/_blobs/<algorithm>-<hex>      the repository has this blob (empty file)
//! repositories/<name>/_manifests/<algorithm>-<hex>  the repository has this manifest; holds its media type
//! repositories/<name>/_tags/<tag>                   holds the digest
//! repositories/<name>/_referrers/<subject>/<digest> holds the descriptor
//! uploads/<id>                                      what has arrived of an upload
//! ```
//!
//! No part of a repository's name begins with an underscore, so the two never meet. Every file is written aside and
//! renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::name::{BlobDigest, Hasher, Repository, hex};

#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
    temporary: AtomicU64,
    /// Held while an upload's file is extended or taken away.
    uploads: Mutex<()>,
    /// Held while bytes and the repositories that have them are put in place or taken away together.
    links: Mutex<()>,
}

/// A manifest with what is known about it.
#[derive(Debug)]
pub(crate) struct StoredManifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Storage {
    pub(crate) fn open(root: &Path) -> io::Result<Storage> {
        for folder in ["blobs/sha256", "blobs/sha512", "repositories", "uploads"] {
            fs::create_dir_all(root.join(folder))?;
        }
        Ok(Storage {
            root: root.to_owned(),
            temporary: AtomicU64::new(0),
            uploads: Mutex::new(()),
            links: Mutex::new(()),
        })
    }

    fn blob_path(&self, digest: &BlobDigest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    fn repository(&self, name: &Repository) -> PathBuf {
        self.root.join("repositories").join(name.as_str())
    }

    fn link(&self, name: &Repository, kind: &str, digest: &BlobDigest) -> PathBuf {
        self.repository(name).join(kind).join(file_name(digest))
    }

    /// Writes a small file in one step.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let aside = self.aside();
        File::create_new(&aside)?.write_all(bytes)?;
        fs::rename(&aside, path)
    }

    fn aside(&self) -> PathBuf {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        self.root.join("uploads").join(format!(".{}-{number}", std::process::id()))
    }

    // Blobs

    /// Opens a blob of a repository.
    pub(crate) fn blob(&self, name: &Repository, digest: &BlobDigest) -> io::Result<Option<File>> {
        let linked = self.link(name, BLOBS, digest).exists() || self.link(name, MANIFESTS, digest).exists();
        if !linked {
            return Ok(None);
        }
        present(File::open(self.blob_path(digest)))
    }

    /// Returns whether any repository has a blob.
    pub(crate) fn has_anywhere(&self, digest: &BlobDigest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Makes a blob that is there already one of another repository's; returns whether it is there.
    pub(crate) fn mount(&self, name: &Repository, digest: &BlobDigest) -> io::Result<bool> {
        let _lock = self.lock_links();
        let found = self.has_anywhere(digest);
        if found {
            self.write(&self.link(name, BLOBS, digest), b"")?;
        }
        Ok(found)
    }

    fn lock_links(&self) -> MutexGuard<'_, ()> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a blob from a repository; returns whether it had it.
    pub(crate) fn delete_blob(&self, name: &Repository, digest: &BlobDigest) -> io::Result<bool> {
        let _lock = self.lock_links();
        let had = remove(&self.link(name, BLOBS, digest))?;
        if had && !self.is_linked(digest)? {
            remove(&self.blob_path(digest))?;
        }
        Ok(had)
    }

    fn is_linked(&self, digest: &BlobDigest) -> io::Result<bool> {
        let links = |name: &String| {
            let folder = self.root.join("repositories").join(name);
            [BLOBS, MANIFESTS].iter().any(|kind| folder.join(kind).join(file_name(digest)).exists())
        };
        Ok(self.names_of_all()?.iter().any(links))
    }

    // Uploads

    /// Begins an upload; returns its name.
    pub(crate) fn start_upload(&self) -> io::Result<String> {
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let id = hex(&random);
        File::create_new(self.root.join("uploads").join(&id))?;
        Ok(id)
    }

    fn upload_path(&self, id: &str) -> Option<PathBuf> {
        let valid = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| self.root.join("uploads").join(id))
    }

    /// Returns how much of an upload has arrived; `None` if there is no such upload.
    pub(crate) fn upload_length(&self, id: &str) -> io::Result<Option<u64>> {
        let Some(path) = self.upload_path(id) else { return Ok(None) };
        Ok(present(fs::metadata(path))?.map(|metadata| metadata.len()))
    }

    /// Appends to an upload, whose length must be `at`. Returns the new length. What arrived before a cut stays.
    pub(crate) fn append(&self, id: &str, at: u64, body: &mut dyn Read) -> io::Result<Option<u64>> {
        let Some(path) = self.upload_path(id) else { return Ok(None) };
        let mut file = {
            let _lock = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(file) = present(OpenOptions::new().append(true).open(path))? else { return Ok(None) };
            if file.metadata()?.len() != at {
                return Ok(None);
            }
            file
        };
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = body.read(&mut buffer)?;
            if count == 0 {
                return Ok(Some(file.metadata()?.len()));
            }
            file.write_all(&buffer[..count])?;
        }
    }

    /// Makes a complete upload a blob of a repository, if it has that digest.
    pub(crate) fn finish_upload(&self, id: &str, name: &Repository, digest: &BlobDigest) -> io::Result<bool> {
        let Some(path) = self.upload_path(id) else { return Ok(false) };
        let mut file = File::open(&path)?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        if hasher.finish() != *digest {
            return Ok(false);
        }
        let _lock = self.lock_links();
        fs::rename(&path, self.blob_path(digest))?;
        self.write(&self.link(name, BLOBS, digest), b"")?;
        Ok(true)
    }

    /// Drops an upload; returns whether there was one.
    pub(crate) fn cancel_upload(&self, id: &str) -> io::Result<bool> {
        self.upload_path(id).map_or(Ok(false), |path| remove(&path))
    }

    // Manifests and tags

    pub(crate) fn manifest(&self, name: &Repository, digest: &BlobDigest) -> io::Result<Option<StoredManifest>> {
        let Some(media_type) = present(fs::read_to_string(self.link(name, MANIFESTS, digest)))? else {
            return Ok(None);
        };
        let bytes = present(fs::read(self.blob_path(digest)))?;
        Ok(bytes.map(|bytes| StoredManifest { media_type, bytes }))
    }

    pub(crate) fn put_manifest(
        &self,
        name: &Repository,
        digest: &BlobDigest,
        media_type: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        let _lock = self.lock_links();
        self.write(&self.blob_path(digest), bytes)?;
        self.write(&self.link(name, MANIFESTS, digest), media_type.as_bytes())
    }

    /// Takes a manifest with its tags from a repository; returns whether it had it.
    pub(crate) fn delete_manifest(&self, name: &Repository, digest: &BlobDigest) -> io::Result<bool> {
        let _lock = self.lock_links();
        if !remove(&self.link(name, MANIFESTS, digest))? {
            return Ok(false);
        }
        for tag in self.tags(name)?.unwrap_or_default() {
            if self.tag(name, &tag)?.as_ref() == Some(digest) {
                self.delete_tag(name, &tag)?;
            }
        }
        for subject in names_in(&self.repository(name).join(REFERRERS))? {
            remove(&self.repository(name).join(REFERRERS).join(subject).join(file_name(digest)))?;
        }
        if !self.is_linked(digest)? {
            remove(&self.blob_path(digest))?;
        }
        Ok(true)
    }

    pub(crate) fn tag(&self, name: &Repository, tag: &str) -> io::Result<Option<BlobDigest>> {
        let text = present(fs::read_to_string(self.repository(name).join(TAGS).join(tag)))?;
        Ok(text.and_then(|text| BlobDigest::parse(&text)))
    }

    pub(crate) fn set_tag(&self, name: &Repository, tag: &str, digest: &BlobDigest) -> io::Result<()> {
        self.write(&self.repository(name).join(TAGS).join(tag), digest.to_string().as_bytes())
    }

    pub(crate) fn delete_tag(&self, name: &Repository, tag: &str) -> io::Result<bool> {
        remove(&self.repository(name).join(TAGS).join(tag))
    }

    /// Returns the tags of a repository in order; `None` if there is no such repository.
    pub(crate) fn tags(&self, name: &Repository) -> io::Result<Option<Vec<String>>> {
        if !self.repository(name).join(MANIFESTS).exists() {
            return Ok(None);
        }
        names_in(&self.repository(name).join(TAGS)).map(Some)
    }

    pub(crate) fn add_referrer(
        &self,
        name: &Repository,
        subject: &BlobDigest,
        digest: &BlobDigest,
        descriptor: &serde_json::Value,
    ) -> io::Result<()> {
        let path = self.repository(name).join(REFERRERS).join(file_name(subject)).join(file_name(digest));
        self.write(&path, descriptor.to_string().as_bytes())
    }

    pub(crate) fn referrers(&self, name: &Repository, subject: &BlobDigest) -> io::Result<Vec<serde_json::Value>> {
        let folder = self.repository(name).join(REFERRERS).join(file_name(subject));
        let mut found = Vec::new();
        for name in names_in(&folder)? {
            let Some(bytes) = present(fs::read(folder.join(name)))? else { continue };
            found.extend(serde_json::from_slice(&bytes).ok());
        }
        Ok(found)
    }

    /// Returns the names of all repositories that have manifests, in order.
    pub(crate) fn repositories(&self) -> io::Result<Vec<String>> {
        let top = self.root.join("repositories");
        Ok(self.names_of_all()?.into_iter().filter(|name| top.join(name).join(MANIFESTS).exists()).collect())
    }

    /// Returns the names of all repositories, also of those that have only blobs so far, in order.
    pub(crate) fn names_of_all(&self) -> io::Result<Vec<String>> {
        let top = self.root.join("repositories");
        let mut found = Vec::new();
        let mut pending = vec![String::new()];
        while let Some(name) = pending.pop() {
            let children = names_in(&top.join(&name))?;
            if children.iter().any(|child| child.starts_with('_')) {
                found.push(name.clone());
            }
            let children = children.into_iter().filter(|child| !child.starts_with('_'));
            pending.extend(children.map(|child| if name.is_empty() { child } else { format!("{name}/{child}") }));
        }
        found.sort_unstable();
        Ok(found)
    }
}

fn file_name(digest: &BlobDigest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// What is not there is nothing and no error.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<bool> {
    present(fs::remove_file(path)).map(|removed| removed.is_some())
}

fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = present(fs::read_dir(folder))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

const BLOBS: &str = "_blobs";
const MANIFESTS: &str = "_manifests";
const TAGS: &str = "_tags";
const REFERRERS: &str = "_referrers";
const BUFFER: usize = 1 << 20;
